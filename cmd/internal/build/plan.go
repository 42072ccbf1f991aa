package build

import (
	"crypto/md5" //nolint:gosec // diskimage-builder's callers ask for it
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"cairn/elements"
)

// planned is what is settled before anything is fetched or made.
type planned struct {
	selection *elements.Selection
	staged    []Staged
	tools     []string
	block     *blockDevice
}

// plan expands the elements and refuses what cannot be built.
func (p *parent) plan() error {
	catalog, selection, err := openElements(p.req)
	if err != nil {
		return withHint(err)
	}
	for _, warning := range catalog.Warnings() {
		p.tell(Event{Kind: Message, Text: warning})
	}
	if err := p.checkRequest(); err != nil {
		return err
	}
	block, err := p.findBlockDevice(selection)
	if err != nil {
		return err
	}
	p.planned = planned{selection: selection, tools: baseTools, block: block}
	for _, e := range selection.Elements {
		p.planned.staged = append(p.planned.staged, Staged{Name: e.Name, Seen: e.Dir, BuiltIn: e.Builtin})
		if !e.Builtin {
			p.planned.tools = hostTools
		}
	}
	p.tell(Event{Kind: Message, Text: "Building elements: " + strings.Join(selection.Requested, " ")})
	p.tell(Event{Kind: Message, Text: "Expanded element dependencies to: " + strings.Join(selection.Names(), " ")})
	return nil
}

// baseTools are what the tools root holds beside Debian's required packages
// when all elements are built in: what debian-minimal asks for, so that the
// tools root and the base are one snapshot.
var baseTools = []string{"dbus", "libpam-systemd", "netbase", "sudo", "systemd-sysv", "udev"}

// hostTools are the packages that hooks outside the image find in the tools
// root beside Debian's required ones, when an element is not ours: what
// diskimage-builder's own elements call on the host. Built-in elements need no
// more than the required packages, so that their tools root is the base itself.
var hostTools = []string{
	"ca-certificates", "curl", "debootstrap", "dosfstools", "e2fsprogs", "file", "gdisk", "git", "gpg", "gpgv", "jq", "kpartx",
	"procps", "python3", "python3-yaml", "qemu-utils", "rsync", "squashfs-tools", "unzip", "wget", "xz-utils", "zstd",
}

// checkRequest refuses what could only fail at the end.
func (p *parent) checkRequest() error {
	for _, format := range p.req.Formats {
		if err := checkFolder(filepath.Dir(outputPath(p.req, "", format))); err != nil {
			return err
		}
	}
	return nil
}

// checkFolder tries whether files can be made in the output folder.
func checkFolder(dir string) error {
	f, err := os.CreateTemp(dir, ".cairn-*")
	if err != nil {
		f := asFailure(fail(errors.Unwrap(err), "make the output in %s", dir))
		f.Hint = "-o names another place, which must exist and let you write"
		return f
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// job is what the worker is to do.
func (p *parent) job() Job {
	req := *p.req
	req.Locked = nil
	req.Debian.HostSources, req.Debian.Keyring = nil, nil
	return Job{
		Request: req, Elements: p.planned.staged, Names: p.planned.selection.Names(), Work: p.workDir, Seed: p.inputs.seed,
		Epoch: p.inputs.epoch, MapBase: p.ids.Base(), ToolsFor: p.planned.tools, CA: p.inputs.server.CAPEM(),
		TCPPorts: p.inputs.ports(), BlockDevice: p.planned.block.text,
	}
}

// variable is one of the caller's environment.
func (p *parent) variable(name string) string {
	for _, kv := range p.req.Env {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

// tell shows an event.
func (p *parent) tell(e Event) {
	if p.event != nil {
		p.eventMu.Lock()
		defer p.eventMu.Unlock()
		p.event(e)
	}
}

// writeChecksums writes diskimage-builder's checksum files beside the outputs.
func (p *parent) writeChecksums(s *Summary) error {
	kinds := map[string]func() hash.Hash{"md5": md5.New, "sha256": sha256.New}
	for _, o := range s.Outputs {
		for _, kind := range p.req.Checksums {
			sum, err := hashFile(o.Path, kinds[kind]())
			if err != nil {
				return err
			}
			line := fmt.Sprintf("%s  %s\n", sum, outputName(p.req, o.Disk, o.Format))
			if err := replaceFile(strings.NewReader(line), o.Path+"."+kind, 0o644); err != nil {
				return fail(err, "write the checksum of %s", o.Path)
			}
		}
	}
	return nil
}

func hashFile(name string, h hash.Hash) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// withHint makes a Failure of an error that knows what to do.
func withHint(err error) error {
	if err == nil {
		return nil
	}
	return asFailure(err)
}
