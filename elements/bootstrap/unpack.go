package bootstrap

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"cairn/fsbuild/tree"
	"cairn/oci/layer"
	"cairn/reproducibility/store"
)

// Deb is one package file for Unpack.
type Deb struct {
	Path   string       // of the file, as the worker sees it
	Digest store.Digest // verified before anything is unpacked; "" means no check
	// Inside is where the file is while the steps run, as dpkg inside the tree
	// sees it. Only packages that are not of the base need it.
	Inside string
	Base   bool // as Resolve says
	Auto   bool // as Resolve says
}

// UnpackOptions say how a tree is made.
type UnpackOptions struct {
	// IDShift is added to owners on their way to disk; below zero nothing is
	// chowned.
	IDShift int
	// Arch is Debian's name of the tree's architecture.
	Arch string
	// Ahead is how many packages are decompressed at a time, at most; 0 means
	// 2. Each takes up to 16 MiB and the decompressor's window.
	Ahead int
	// Progress is told after each package of the base; it may be nil.
	Progress func(done, total int, name string)
}

// Step is one command that has to run inside the tree, by the orchestrator,
// with the tree as root, / as working directory, no standard input and Env as
// the whole environment.
type Step struct {
	Args []string // Args[0] is an absolute path
	Env  []string // "NAME=value"
}

// Unpacked is what Unpack leaves behind.
type Unpacked struct {
	// Steps configure the packages, in this order, each only if the one
	// before succeeded.
	Steps []Step
	// Devices are the nodes of /dev, and any that packages have, which could
	// not be made on disk.
	Devices layer.Ledger
}

// linkDirs are the directories besides bin, lib and sbin that are links into
// /usr from the start, by architecture, as debootstrap makes them.
var linkDirs = map[string][]string{
	"amd64":   {"lib32", "lib64", "libx32"},
	"i386":    {"lib64", "libx32"},
	"mips":    {"lib32", "lib64"},
	"mipsel":  {"lib32", "lib64"},
	"loong64": {"lib32", "lib64"},
	"ppc64":   {"lib32", "lib64"},
	"ppc64el": {"lib64"},
	"s390x":   {"lib32"},
	"x32":     {"lib32", "lib64", "libx32"},
}

// Unpack makes a tree out of packages in the empty directory root. The
// packages of the base are unpacked here, without any help of the tree: their
// files, and what dpkg's database says about unpacked packages. What remains
// to be done is returned as steps: preinst scripts of the base, its
// configuration by the tree's own dpkg, and then the other packages, by dpkg
// alone. No file of the tree is executed here.
func Unpack(ctx context.Context, root string, debs []Deb, o UnpackOptions) (*Unpacked, error) {
	if o.Ahead <= 0 {
		o.Ahead = 2
	}
	packages, err := openDebs(ctx, debs)
	defer closeDebs(packages)
	if err != nil {
		return nil, err
	}
	base := slices.DeleteFunc(slices.Clone(packages), func(p *packageFile) bool { return !p.deb.Base })
	t, err := openTree(root, o)
	if err != nil {
		return nil, err
	}
	defer t.close()
	if err = t.prepare(ctx, base); err != nil {
		return nil, err
	}
	ledger, err := t.unpackAll(ctx, base)
	if err != nil {
		return nil, err
	}
	if err = t.writeDatabase(base, packages); err != nil {
		return nil, err
	}
	return &Unpacked{Steps: steps(packages), Devices: addDevices(ledger)}, nil
}

// packageFile is an open package.
type packageFile struct {
	deb     Deb
	file    *os.File
	data    archive
	control *control
	paths   []string // of the data archive, clean and relative, in its order
}

// fail adds which package an error is about.
func (p *packageFile) fail(err error) error {
	if p.control != nil {
		return fmt.Errorf("unpack package %s %s: %w", p.control.name, p.control.version, err)
	}
	return fmt.Errorf("unpack package %s: %w", p.deb.Path, err)
}

// openDebs opens and verifies the packages and reads their control archives.
// What is open is returned in any case.
func openDebs(ctx context.Context, debs []Deb) ([]*packageFile, error) {
	var list []*packageFile
	seen := make(map[string]bool)
	for _, d := range debs {
		if err := ctx.Err(); err != nil {
			return list, err
		}
		p := &packageFile{deb: d}
		list = append(list, p)
		if err := p.open(); err != nil {
			return list, p.fail(err)
		}
		if seen[p.control.infoName()] {
			return list, p.fail(errors.New("given twice"))
		}
		seen[p.control.infoName()] = true
	}
	return list, nil
}

func (p *packageFile) open() error {
	f, err := os.Open(p.deb.Path)
	if err != nil {
		return err
	}
	p.file = f
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if p.deb.Digest != "" {
		if _, err = io.Copy(io.Discard, store.Verify(f, p.deb.Digest, info.Size())); err != nil {
			return err
		}
	}
	controlArchive, data, err := readDeb(f, info.Size())
	if err != nil {
		return err
	}
	p.data = data
	r, err := controlArchive.open()
	if err != nil {
		return err
	}
	defer r.Close()
	p.control, err = readControl(r)
	return err
}

func closeDebs(list []*packageFile) {
	for _, p := range list {
		if p.file != nil {
			_ = p.file.Close() // only read from
		}
	}
}

// unpackAll unpacks the data of the base, decompressing ahead.
func (t *treeDir) unpackAll(ctx context.Context, base []*packageFile) (layer.Ledger, error) {
	ahead := newPipeline(base, t.o.Ahead)
	defer ahead.stop()
	var ledger layer.Ledger
	for i, p := range base {
		r, err := ahead.next()
		if err != nil {
			return nil, p.fail(err)
		}
		ledger, err = layer.Unpack(ctx, t.path, r, layer.Options{
			IDShift: t.o.IDShift, KeepDirSymlinks: true, Ledger: ledger,
			Entry: func(name string, _ *tar.Header) error {
				p.paths = append(p.paths, name)
				return nil
			},
		})
		if err == nil {
			_, err = io.Copy(io.Discard, r) // so that a damaged end is noticed
		}
		if err != nil {
			return nil, p.fail(err)
		}
		if t.o.Progress != nil {
			t.o.Progress(i+1, len(base), p.control.name)
		}
	}
	return ledger, nil
}

// pipelineDepth is how far, in chunks, one package is decompressed ahead.
const pipelineDepth = 16 << 20 / aheadChunk

// pipeline decompresses the data of some packages ahead of who unpacks them.
type pipeline struct {
	waiting []*packageFile
	running []*stage
	limit   int
	current *stage
}

// stage is one package being decompressed.
type stage struct {
	*aheadReader
	source io.Closer
}

func newPipeline(list []*packageFile, limit int) *pipeline {
	return &pipeline{waiting: list, limit: limit}
}

// next ends the package before and returns the data of the next one.
func (l *pipeline) next() (io.Reader, error) {
	l.finish()
	for len(l.waiting) > 0 && len(l.running) < l.limit {
		r, err := l.waiting[0].data.open()
		if err != nil {
			return nil, err
		}
		l.running = append(l.running, &stage{startAhead(r, pipelineDepth), r})
		l.waiting = l.waiting[1:]
	}
	l.current, l.running = l.running[0], l.running[1:]
	return l.current, nil
}

func (l *pipeline) finish() {
	if l.current != nil {
		l.current.stop()
		_ = l.current.source.Close() // only read from
		l.current = nil
	}
}

// stop ends everything that runs.
func (l *pipeline) stop() {
	l.finish()
	for len(l.running) > 0 {
		l.current, l.running = l.running[0], l.running[1:]
		l.finish()
	}
}

// prepare makes what has to be there before the first package.
func (t *treeDir) prepare(ctx context.Context, base []*packageFile) error {
	entries, err := t.fs.Open(".")
	if err != nil {
		return fmt.Errorf("prepare tree: %w", err)
	}
	defer entries.Close()
	if _, err = entries.Readdirnames(1); !errors.Is(err, io.EOF) {
		return fmt.Errorf("prepare tree: %s: %w", t.path, errors.Join(err, errors.New("the directory must be empty")))
	}
	links, err := t.topLinks(ctx, base)
	if err != nil {
		return err
	}
	for _, link := range links {
		if err := t.mkdirAll("usr/"+link, 0o755); err != nil {
			return err
		}
		if err := t.symlink("usr/"+link, link); err != nil {
			return err
		}
	}
	return t.skeleton()
}

// topLinks lists the directories that are links into /usr: those that
// base-files has as links (Debian 13 and later), or else debootstrap's.
func (t *treeDir) topLinks(ctx context.Context, base []*packageFile) ([]string, error) {
	for _, p := range base {
		if p.control.name != "base-files" {
			continue
		}
		links, err := p.usrLinks(ctx)
		if err != nil {
			return nil, p.fail(err)
		}
		if len(links) > 0 {
			return links, nil
		}
	}
	return append([]string{"bin", "lib", "sbin"}, linkDirs[t.o.Arch]...), nil
}

// usrLinks lists the links of a package from the top directory to a directory
// of the same name in usr.
func (p *packageFile) usrLinks(ctx context.Context) ([]string, error) {
	r, err := p.data.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var links []string
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return links, nil
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, err
		}
		name := path.Clean(h.Name)
		if h.Typeflag == tar.TypeSymlink && !strings.Contains(name, "/") && path.Clean(h.Linkname) == "usr/"+name {
			links = append(links, name)
		}
	}
}

// addDevices adds the device nodes that a /dev on disk has, as debootstrap
// makes them, unless a package brought them.
func addDevices(ledger layer.Ledger) layer.Ledger {
	for _, d := range [...]struct {
		name         string
		mode         uint32
		major, minor uint32
		gid          uint32
	}{
		{"console", 0o600, 5, 1, 0},
		{"full", 0o666, 1, 7, 0},
		{"null", 0o666, 1, 3, 0},
		{"ptmx", 0o666, 5, 2, 0},
		{"random", 0o666, 1, 8, 0},
		{"tty", 0o666, 5, 0, 0},
		{"urandom", 0o666, 1, 9, 0},
		{"zero", 0o666, 1, 5, 0},
	} {
		name := "dev/" + d.name
		if slices.ContainsFunc(ledger, func(n tree.Node) bool { return n.Path == name }) {
			continue
		}
		ledger = append(ledger, tree.Node{
			Path: name, Type: tree.CharDevice, Mode: d.mode, GID: d.gid, Major: d.major, Minor: d.minor,
		})
	}
	slices.SortFunc(ledger, func(a, b tree.Node) int { return strings.Compare(a.Path, b.Path) })
	return ledger
}

// conffiles lists the configuration files that the package has now, clean and
// relative.
func (c *control) conffiles() ([]string, error) {
	var list []string
	for line := range bytes.Lines(c.file("conffiles")) {
		name := strings.TrimRight(string(line), " \t\n")
		if name == "" || strings.HasPrefix(name, "remove-on-upgrade ") {
			continue
		}
		clean, ok := strings.CutPrefix(name, "/")
		if !ok || !cleanRelative(clean) {
			return nil, fmt.Errorf("invalid conffile %.120q", name)
		}
		list = append(list, clean)
	}
	return list, nil
}
