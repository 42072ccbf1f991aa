package tar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"cairn/fsbuild/internal/contents"
	"cairn/fsbuild/tar/entry"
	"cairn/fsbuild/tree"
)

// Limits bound one archive. A field that is zero stands for its default.
type Limits = entry.Limits

// Options say how to read. The zero value is for an archive from a stranger.
type Options struct {
	// KeepXattr tells which attributes to keep. nil means those that belong
	// to an image: user.*, security.capability and POSIX ACLs, without what
	// would forge the bookkeeping of overlayfs or of rootless runtimes.
	KeepXattr func(name string) bool
	Limits    Limits
}

// EntryError is the error of one entry.
type EntryError struct {
	Name string // as the archive spells it
	Err  error
}

// Error returns the name, quoted, and the cause.
func (e *EntryError) Error() string { return fmt.Sprintf("read tar entry %q: %v", e.Name, e.Err) }

// Unwrap returns the cause.
func (e *EntryError) Unwrap() error { return e.Err }

// Read reads the archive in the first size bytes of src. Contents of the tree
// are read from src when they are opened, so src must stay as it is; it is
// used concurrently if they are.
//
// The tree is what extracting into an empty directory would give, with the
// root as "/": later entries win over earlier ones, an entry for a directory
// keeps what is in it, and links in the archive's own names are followed
// inside the root. Directories that have no entry are 0755, root's, time 0. A
// leading slash is taken off; "..", a hard link to nothing or to a directory,
// and whatever would replace a directory with something in it are errors.
// Whiteouts of OCI layers are files like others. Bytes behind the end of the
// archive are ignored. An error in an entry is an [*EntryError].
func Read(ctx context.Context, src io.ReaderAt, size int64, o Options) (*tree.Tree, error) {
	r := newReader(o)
	if err := r.archive(ctx, io.NewSectionReader(src, 0, size)); err != nil {
		return nil, err
	}
	return r.finish(), nil
}

// ReadLayers reads archives that are the layers of a container image, the
// lowest first, as one tree. The rules are those of [Read] and of the OCI Image
// Layer Filesystem Changeset,
// https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md: names that
// begin with ".wh." hide what lower layers have, whichever comes first in the
// archive, and what is no directory replaces one with all that is in it. An
// archive may end with its last content, without padding, since umoci writes
// such ones. The limits are for all layers together.
func ReadLayers(ctx context.Context, layers []*io.SectionReader, o Options) (*tree.Tree, error) {
	r := newReader(o)
	for i, l := range layers {
		r.upper, r.hidden = map[string]bool{}, map[string]bool{}
		if err := r.archive(ctx, l); err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
		}
	}
	return r.finish(), nil
}

func newReader(o Options) *reader {
	if o.KeepXattr == nil {
		o.KeepXattr = entry.KeepXattr
	}
	o.Limits = o.Limits.Filled()
	return &reader{o: o, tree: tree.New()}
}

// reader is the state of one Read. Paths in the tree have no symlink in them.
type reader struct {
	o       Options
	src     *io.SectionReader
	tree    *tree.Tree
	upper   map[string]bool // paths that this layer made or passed through; nil without whiteouts
	hidden  map[string]bool // directories of which this layer hid what lower ones have
	inode   uint64          // that was given last
	entries int
	devices int
	bytes   int64
}

// archive adds the entries of one archive.
func (r *reader) archive(ctx context.Context, src *io.SectionReader) error {
	r.src = src
	s, last := newScanner(src, r.upper != nil), ""
	for {
		h, err := s.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read tar archive after %q: %w", last, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		last = h.Name
		if err := r.entry(h, s); err != nil {
			return &EntryError{Name: h.Name, Err: err}
		}
	}
}

// entry adds one entry.
func (r *reader) entry(h *tar.Header, s *scanner) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return checkGlobal(h.PAXRecords)
	}
	if r.entries++; r.entries > r.o.Limits.Entries {
		return fmt.Errorf("%w: more than %d entries", ErrLimit, r.o.Limits.Entries)
	}
	n, err := r.node(h)
	if err != nil {
		return err
	}
	if err := r.content(&n, h, s); err != nil {
		return err
	}
	if r.upper != nil {
		w, err := entry.ParseWhiteout(n.Path, h.Typeflag)
		if err != nil {
			return err
		}
		if w != (entry.Whiteout{}) {
			return r.hide(w)
		}
	}
	if n.Path == "." {
		return r.root(n)
	}
	dir, err := r.directory(n.Parent())
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	if dir != n.Parent() {
		if n.Path, err = r.o.Limits.Clean(path.Join(dir, n.Name())); err != nil { // links made it too long
			return err
		}
	}
	if h.Typeflag == tar.TypeLink {
		return r.link(n.Path, h.Linkname)
	}
	return r.put(n)
}

// root takes an entry for the root itself.
func (r *reader) root(n tree.Node) error {
	if n.Type != tree.Directory {
		return fmt.Errorf("%w: the root is not a directory", ErrUnsafe)
	}
	return r.put(n)
}

// checkGlobal accepts a global header that changes nothing. Others would have
// to be merged into each entry, which archive/tar leaves undone.
func checkGlobal(records map[string]string) error {
	for key := range records {
		if key != "comment" {
			return fmt.Errorf("%w: a global header", ErrUnsupported)
		}
	}
	return nil
}

// types are the types of nodes by that of an entry, except hard links.
var types = [256]tree.Type{
	tar.TypeReg: tree.Regular, tar.TypeCont: tree.Regular, tar.TypeGNUSparse: tree.Regular,
	tar.TypeDir: tree.Directory, tar.TypeSymlink: tree.Symlink, tar.TypeChar: tree.CharDevice,
	tar.TypeBlock: tree.BlockDevice, tar.TypeFifo: tree.FIFO,
}

// node makes a node of a header, without content and not yet in its place.
func (r *reader) node(h *tar.Header) (n tree.Node, err error) {
	if n.Path, err = r.o.Limits.Clean(h.Name); err != nil {
		return n, err
	}
	if h.Typeflag == tar.TypeLink {
		return n, nil
	}
	if n.Type = types[h.Typeflag]; n.Type == 0 {
		return n, fmt.Errorf("%w: type %q", ErrUnsupported, h.Typeflag)
	}
	if n.UID, err = entry.ID(int64(h.Uid)); err != nil {
		return n, err
	}
	if n.GID, err = entry.ID(int64(h.Gid)); err != nil {
		return n, err
	}
	if n.Xattrs, err = entry.Xattrs(h.PAXRecords, r.o.KeepXattr, r.o.Limits.XattrBytes); err != nil {
		return n, err
	}
	n.Mode = uint32(h.Mode & 0o7777)
	n.MTime = tree.Time{Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond())}
	switch n.Type {
	case tree.Symlink:
		n.Mode, n.Target = 0o777, h.Linkname // a symlink has no mode of its own
		if n.Target == "" || len(n.Target) > r.o.Limits.NameBytes {
			return n, fmt.Errorf("%w: a link target of %d bytes", ErrUnsafe, len(n.Target))
		}
	case tree.CharDevice, tree.BlockDevice:
		n.Major, n.Minor = uint32(h.Devmajor), uint32(h.Devminor)
		if r.devices++; r.devices > r.o.Limits.Devices {
			return n, fmt.Errorf("%w: more than %d devices", ErrLimit, r.o.Limits.Devices)
		}
		err = entry.CheckDevice(h)
	default: // has nothing more
	}
	return n, err
}

// content gives a regular file its content.
func (r *reader) content(n *tree.Node, h *tar.Header, s *scanner) error {
	if n.Type != tree.Regular {
		return nil
	}
	if r.bytes += h.Size; h.Size > r.o.Limits.TotalBytes || r.bytes > r.o.Limits.TotalBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrLimit, r.o.Limits.TotalBytes)
	}
	n.Size = h.Size
	f := file{src: r.src, off: s.data, size: n.Size}
	if entry.IsSparse(h) {
		if err := s.skipSparse(); err != nil {
			return fmt.Errorf("read sparse data: %w", err)
		}
		f.off, f.sparse = s.start, true
	}
	if n.Size >= contents.HolesFrom {
		n.Content = &large{file: f}
	} else {
		n.Content = &f
	}
	return nil
}

// put puts a node in its place, if what is there gives way.
func (r *reader) put(n tree.Node) error {
	err := r.tree.Add(n)
	if errors.Is(err, tree.ErrExist) {
		err = r.replace(n)
	}
	if err != nil {
		return err
	}
	r.note(n.Path)
	return nil
}

// replace puts a node in the place of what has its path. A directory that
// stays one keeps what is in it.
func (r *reader) replace(n tree.Node) error {
	if old := r.tree.Lookup(n.Path); old.Type == n.Type {
		*old = n
		return nil
	}
	if r.upper == nil {
		for range r.tree.Children(n.Path) {
			return fmt.Errorf("%w: it replaces a directory that is not empty", ErrUnsupported)
		}
	}
	r.tree.Remove(n.Path)
	return r.tree.Add(n)
}

// note remembers what this layer has.
func (r *reader) note(name string) {
	for ; r.upper != nil && name != "." && !r.upper[name]; name = path.Dir(name) {
		r.upper[name] = true
	}
}

// hide carries out a whiteout.
func (r *reader) hide(w entry.Whiteout) error {
	dir := w.Path
	if !w.Opaque {
		dir = path.Dir(w.Path)
	}
	dir, err := r.resolve(dir)
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	if w.Opaque {
		r.removeKids(dir)
	} else {
		r.remove(path.Join(dir, path.Base(w.Path)))
	}
	return nil
}

// remove removes what is at a path with all below it, except what this layer
// has and what that lies in.
func (r *reader) remove(name string) {
	if r.upper[name] {
		r.removeKids(name)
	} else {
		r.tree.Remove(name)
	}
}

// removeKids does the same with all that is in a directory. To do so again in
// the same layer would change nothing.
func (r *reader) removeKids(dir string) {
	if r.hidden[dir] {
		return
	}
	r.hidden[dir] = true
	var names []string
	for n := range r.tree.Children(dir) {
		names = append(names, n.Path)
	}
	for _, name := range names {
		r.remove(name)
	}
}

// link gives a file another name.
func (r *reader) link(name, linkname string) error {
	target, err := r.o.Limits.Clean(linkname)
	if err != nil {
		return fmt.Errorf("hard link target: %w", err)
	}
	dir, err := r.resolve(path.Dir(target))
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", linkname, err)
	}
	old := r.tree.Lookup(path.Join(dir, path.Base(target)))
	switch {
	case old == nil:
		return fmt.Errorf("hard link to %q: %w", linkname, fs.ErrNotExist)
	case old.Type == tree.Directory:
		return fmt.Errorf("%w: hard link to the directory %q", ErrUnsafe, linkname)
	case old.Path == name:
		r.note(name)
		return nil
	case old.Inode == 0:
		r.inode++
		old.Inode = r.inode
	}
	n := *old
	n.Path = name
	return r.put(n)
}

const maxLinks = 40 // symlinks followed in one name, as the kernel does (MAXSYMLINKS)

var errLoop = fmt.Errorf("%w: too many symbolic links in the name", ErrUnsafe)

// resolve follows the symlinks of a clean name as chroot(2) would. What does
// not exist is kept as it is spelled.
func (r *reader) resolve(name string) (string, error) {
	if r.isDirectory(name) {
		return name, nil
	}
	done, links := ".", 0
	for todo := name; todo != ""; {
		var c string
		c, todo, _ = strings.Cut(todo, "/")
		switch c {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		done = path.Join(done, c)
		n := r.tree.Lookup(done)
		if n == nil || n.Type != tree.Symlink {
			continue
		}
		if links++; links > maxLinks {
			return "", errLoop
		}
		if done = path.Dir(done); n.Target[0] == '/' {
			done = "."
		}
		todo = n.Target + "/" + todo
	}
	return r.o.Limits.Clean(done) // links may have made it too long, or too deep
}

func (r *reader) isDirectory(name string) bool {
	n := r.tree.Lookup(name)
	return n != nil && n.Type == tree.Directory
}

// directory returns the path of a directory by its name, and makes what is
// missing on the way.
func (r *reader) directory(name string) (string, error) {
	if r.isDirectory(name) {
		return name, nil
	}
	dir, err := r.resolve(name)
	if err != nil {
		return "", err
	}
	var missing []string
	for p := dir; ; p = path.Dir(p) {
		n := r.tree.Lookup(p)
		if n == nil {
			missing = append(missing, p)
			continue
		}
		if n.Type != tree.Directory {
			return "", fmt.Errorf("%q: %w", p, tree.ErrNotDir)
		}
		break
	}
	for _, p := range slices.Backward(missing) {
		if err := r.put(tree.Node{Path: p, Type: tree.Directory, Mode: 0o755}); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// finish returns the tree. Files whose other names are gone have one name.
func (r *reader) finish() *tree.Tree {
	if r.inode == 0 {
		return r.tree
	}
	names := make([]int, r.inode+1)
	for n := range r.tree.All() {
		names[n.Inode]++
	}
	for n := range r.tree.All() {
		if names[n.Inode] == 1 {
			n.Inode = 0
		}
	}
	return r.tree
}
