package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"cairn/elements/bootstrap"
	"cairn/fsbuild/tree"
	"cairn/oci"
	"cairn/oci/layer"
	"cairn/reproducibility/store"
	"cairn/sandbox"
)

// A DebianQuestion asks for a tree of packages, which a base or the tools root is
// made of.
type DebianQuestion struct {
	Purpose string   // "tools" or "base": where the lock names it
	Suite   string   // "" for the request's
	Include []string // beside the essential and required packages
	Fetch   bool     // have the packages in the store, too
}

// A DebianAnswer is what to unpack, or why there is nothing.
type DebianAnswer struct {
	Packages []bootstrap.Package
	Failure  *Failure
}

// An ImageQuestion asks for the image of a registry.
type ImageQuestion struct{ Reference string }

// An ImageAnswer is what to unpack, or why there is nothing.
type ImageAnswer struct {
	Image   oci.Image
	Failure *Failure
}

// makeTools has the tools root ready: a snapshot in the store.
func (w *worker) makeTools(ctx context.Context) error {
	if err := w.sweepStore(); err != nil {
		return err
	}
	dir, _, err := w.debianSnapshot(ctx, DebianQuestion{Purpose: "tools", Include: w.job.ToolsFor})
	if err != nil {
		return fail(err, "tools root")
	}
	w.tools = dir
	return nil
}

// sweepStore removes from the store what killed builds left half-made. Its
// files belong to ids that only the worker can name.
func (w *worker) sweepStore() error {
	st, err := store.Open(w.req.Store)
	if err != nil {
		return err
	}
	return fail(st.Sweep(), "content store")
}

// snapshotKey names a snapshot by all that went into it, this program
// included: another version may make it in another way.
func (w *worker) snapshotKey(kind string, parts ...string) string {
	h := sha256.New()
	for _, p := range append([]string{"cairn snapshot", w.program, kind, w.job.MapBase, w.job.Epoch.UTC().Format("20060102T150405Z")}, parts...) {
		fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// debianSnapshot is a configured Debian tree in the store. It is made when it
// is not there yet.
func (w *worker) debianSnapshot(ctx context.Context, q DebianQuestion) (string, []tree.Node, error) {
	var a DebianAnswer
	if err := w.askDebian(ctx, q, &a); err != nil {
		return "", nil, err
	}
	var parts []string
	for _, p := range a.Packages {
		parts = append(parts, string(p.Digest))
	}
	key := w.snapshotKey("deb", parts...)
	return w.snapshot(ctx, key, func(dir string) ([]tree.Node, error) {
		q.Fetch = true
		if err := w.askDebian(ctx, q, &a); err != nil {
			return nil, err
		}
		return w.bootstrapDebian(ctx, dir, a.Packages)
	})
}

func (w *worker) askDebian(ctx context.Context, q DebianQuestion, a *DebianAnswer) error {
	*a = DebianAnswer{}
	if err := w.host.ask(ctx, askBootstrap, q, a); err != nil {
		return err
	}
	if a.Failure != nil {
		return a.Failure
	}
	return nil
}

// snapshot returns the tree kept under key, having it made first if need be.
func (w *worker) snapshot(ctx context.Context, key string, make func(dir string) ([]tree.Node, error)) (string, []tree.Node, error) {
	st, err := store.Open(w.req.Store)
	if err != nil {
		return "", nil, err
	}
	s, err := st.Snapshot(key)
	if err == nil {
		w.undo = append(w.undo, s.Close)
		devices, err := parseDevices(s.Manifest)
		return s.Dir, devices, err
	}
	if !errors.Is(err, store.ErrNotFound) {
		return "", nil, fail(err, "content store")
	}
	sw, err := st.NewSnapshotContext(ctx, key)
	if errors.Is(err, store.ErrExists) {
		return w.snapshot(ctx, key, make) // another build was quicker
	}
	if err != nil {
		return "", nil, fail(err, "content store")
	}
	if err := makeImageDir(sw.Dir()); err != nil {
		return "", nil, errors.Join(err, sw.Abort())
	}
	devices, err := make(sw.Dir())
	if err != nil {
		return "", nil, errors.Join(err, w.abort(sw))
	}
	manifest, err := formatDevices(devices)
	if err != nil {
		return "", nil, errors.Join(err, w.abort(sw))
	}
	if err := sw.Commit(manifest); err != nil {
		return "", nil, fail(err, "keep the snapshot")
	}
	return w.snapshot(ctx, key, make)
}

// abort gives a snapshot up. Its files belong to the image's ids.
func (w *worker) abort(sw *store.SnapshotWriter) error {
	return errors.Join(removeBelow(sw.Dir()), sw.Abort())
}

// A snapshot's manifest holds the device nodes that its tree cannot.
func formatDevices(devices []tree.Node) ([]byte, error) {
	return json.Marshal(devices)
}

func parseDevices(manifest []byte) ([]tree.Node, error) {
	var devices []tree.Node
	if len(bytes.TrimSpace(manifest)) == 0 {
		return nil, nil
	}
	err := json.Unmarshal(manifest, &devices)
	return devices, err
}

// bootstrapDebian unpacks packages and has the tree's own dpkg configure them,
// in a session that has no tools.
func (w *worker) bootstrapDebian(ctx context.Context, dir string, packages []bootstrap.Package) ([]tree.Node, error) {
	debs, err := w.stageDebs(packages)
	if err != nil {
		return nil, err
	}
	result, err := bootstrap.Unpack(ctx, dir, debs, bootstrap.UnpackOptions{
		IDShift: sandbox.IDShift, Arch: w.req.Arch,
		Progress: func(done, total int, _ string) {
			w.host.tell(Event{Kind: Progress, Step: w.step, Unit: "packages", Done: int64(done), Total: int64(total)})
		},
	})
	if err != nil {
		return nil, err
	}
	return result.Devices, w.configure(ctx, dir, result)
}

// seenDebs is where the tree's own dpkg finds package files, and outDebs where
// the session has them.
const (
	seenDebs = seenTarget + "/debs"
	outDebs  = "/run/cairn-debs"
)

// stageDebs copies the packages that the tree's dpkg unpacks itself to where
// the image's root can read them. The others are read from the store.
func (w *worker) stageDebs(packages []bootstrap.Package) ([]bootstrap.Deb, error) {
	st, err := store.Open(w.req.Store)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(w.dirs.work, "debs")
	if err := errors.Join(sandbox.RemoveAll(dir), makeImageDir(dir)); err != nil {
		return nil, err
	}
	var debs []bootstrap.Deb
	for _, p := range packages {
		d := bootstrap.Deb{Path: st.Path(p.Digest), Digest: p.Digest, Base: p.Base, Auto: p.Auto}
		if !p.Base {
			name := path.Base(p.Filename)
			if err := stageFile(d.Path, dir, name); err != nil {
				return nil, fail(err, "package %s", p.Name)
			}
			d.Inside = path.Join(seenDebs, name)
		}
		debs = append(debs, d)
	}
	return debs, nil
}

// configure runs the steps that follow unpacking inside the new tree.
func (w *worker) configure(ctx context.Context, dir string, result *bootstrap.Unpacked) (err error) {
	if err := w.stageBinaryOnce(); err != nil {
		return err
	}
	s, err := sandbox.StartSession(ctx, sandbox.SessionSpec{
		Root: w.dirs.empty, Hostname: hostname, Network: sandbox.NetworkNone, Binary: seenBin + "/cairn",
		Mounts: []sandbox.Mount{
			{Source: dir, Target: seenMnt},
			{Source: w.dirs.shared, Target: seenShared},
			{Source: filepath.Join(w.dirs.work, "debs"), Target: outDebs, ReadOnly: true},
		},
	})
	if err != nil {
		return fail(err, "start the session that configures packages")
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	c, err := s.Container(ctx, sandbox.ContainerSpec{
		Rootfs: seenMnt, Hostname: hostname, Mounts: []sandbox.Mount{{Source: outDebs, Target: seenDebs, ReadOnly: true}},
	})
	if err != nil {
		return fail(err, "start the container that configures packages")
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for _, step := range result.Steps {
		err := w.runHooks(ctx, "configure "+strings.Join(step.Args, " "), func(cmd sandbox.Command) (sandbox.Status, error) {
			cmd.Args, cmd.Dir, cmd.Env = step.Args, "/", append(step.Env, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", w.job.Epoch.Unix()))
			return c.Run(ctx, cmd)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// bootstrapBase fills the tree for the element debian-minimal.
func (w *worker) bootstrapBase(ctx context.Context, suite string, include []string) error {
	dir, devices, err := w.debianSnapshot(ctx, DebianQuestion{Purpose: "base", Suite: suite, Include: include})
	if err != nil {
		return err
	}
	return w.startFrom(ctx, dir, devices)
}

// imageBase fills the tree for the element debian.
func (w *worker) imageBase(ctx context.Context, reference string) error {
	var a ImageAnswer
	if err := w.host.ask(ctx, askImage, ImageQuestion{reference}, &a); err != nil {
		return err
	}
	if a.Failure != nil {
		return a.Failure
	}
	w.host.tell(Event{Kind: Message, Step: w.step, Text: reference + " is " + string(a.Image.ResolvedDigest)})
	key := w.snapshotKey("oci", string(a.Image.ConfigDigest))
	dir, devices, err := w.snapshot(ctx, key, func(dir string) ([]tree.Node, error) {
		st, err := store.Open(w.req.Store)
		if err != nil {
			return nil, err
		}
		return oci.Unpack(ctx, st, &a.Image, dir, layer.Options{IDShift: sandbox.IDShift, Whiteouts: true})
	})
	if err != nil {
		return err
	}
	return w.startFrom(ctx, dir, devices)
}

// startFrom copies a snapshot to be the tree.
func (w *worker) startFrom(ctx context.Context, dir string, devices []tree.Node) error {
	w.ledger = devices
	if _, err := layer.CopyTree(ctx, dir, w.dirs.mnt, layer.CopyOptions{}); err != nil {
		return fail(err, "copy the base")
	}
	return nil
}

// stageBinaryOnce has our own program where sessions find it.
func (w *worker) stageBinaryOnce() error {
	if _, err := os.Lstat(filepath.Join(w.dirs.shared, "bin", "cairn")); err == nil {
		return nil
	}
	return w.stageBinary()
}
