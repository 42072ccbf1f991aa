// Package layer puts a tar archive into a directory on disk: a layer of an OCI
// image, or the data member of a Debian package.
//
// The rules for layers are those of the OCI Image Layer Filesystem Changeset,
// https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md. Archives
// may be ustar, PAX or GNU (long names, sparse files), with SCHILY.xattr.* and
// SCHILY.acl.* records.
//
// Archives are taken to be hostile. Nothing outside the root is read, made or
// changed: a parent directory is opened with openat2(2) below the root without
// following any link, links in the archive's own names are resolved by this
// package inside the root, and the last component is made with O_EXCL or its
// equals on the parent's descriptor. Nobody else may change the root during
// the call. Linux 5.6 or later is needed.
//
// What is on disk afterwards depends on the archive, the options and what was
// there before, never on privilege, time or the host: device nodes are never
// made but returned in a [Ledger], times are cut to what ext4 can hold, and of
// the extended attributes only user.*, security.capability and POSIX ACLs are
// kept. Those that would forge the bookkeeping of overlayfs or of rootless
// runtimes are dropped, as is what only means something on the machine that
// made the archive, such as SELinux labels.
//
// The package does not decompress, fetch, verify digests or write archives.
package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/tar/entry"
	"cairn/fsbuild/tree"
)

// Options say how an archive becomes a directory. The zero value is for a
// plain archive with the ids of the archive.
type Options struct {
	// IDShift is added to every uid and gid on its way to disk, also to those
	// in ACLs. Below zero nothing is chowned and file capabilities are dropped.
	IDShift int
	// Whiteouts gives names that begin with ".wh." the meaning that they have
	// in an OCI layer, and lets a file replace a directory.
	Whiteouts bool
	// KeepDirSymlinks is dpkg's way: an entry for a directory leaves an
	// existing directory, or a link to one inside the root, as it is, and an
	// entry for a link leaves an existing directory.
	KeepDirSymlinks bool
	// Exclude, if set, reports that an entry is to be left out. The name is
	// clean and relative, "." for the root.
	Exclude func(name string) bool
	// Entry, if set, is called for every entry once it is in place, in the
	// order of the archive, with its clean name; not for excluded ones and
	// whiteouts. Its error ends Unpack.
	Entry func(name string, h *tar.Header) error
	// Ledger is what unpacking the layers below returned. It is not changed.
	Ledger Ledger
	// Limits bound what an archive may ask for.
	Limits Limits
}

// Limits bound one archive. A field that is zero stands for its default.
type Limits = entry.Limits

// Errors that an [EntryError] may wrap, besides those of the operating system
// and of archive/tar.
var (
	// ErrUnsafe means that the entry is one that only an attacker or a broken
	// program writes, such as a name with "..".
	ErrUnsafe = entry.ErrUnsafe
	// ErrLimit means that the archive exceeds one of the [Limits].
	ErrLimit = entry.ErrLimit
	// ErrUnsupported means that a directory tree cannot hold the entry.
	ErrUnsupported = entry.ErrUnsupported
)

// EntryError is the error of one entry. The root then holds a part of the
// archive and should be thrown away.
type EntryError struct {
	Name string // as the archive spells it
	Err  error
}

// Error returns the name, quoted, and the cause.
func (e *EntryError) Error() string { return fmt.Sprintf("unpack %q: %v", e.Name, e.Err) }

// Unwrap returns the cause.
func (e *EntryError) Unwrap() error { return e.Err }

// Unpack puts the tar archive r into the directory root, which must exist, and
// returns the device nodes that belong there, those of o.Ledger that are still
// valid included. It reads r up to the end of the archive or a little further.
// Files are not synced to disk. An error in an entry is an [*EntryError].
func Unpack(ctx context.Context, root string, r io.Reader, o Options) (Ledger, error) {
	rootfd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root of layer: %s: %w", root, err)
	}
	defer closeFD(rootfd)
	o.Limits = o.Limits.Filled()
	u := &unpacker{o: o, ledger: newLedger(o.Ledger), buf: make([]byte, 1<<20)}
	if o.Whiteouts {
		u.upper = map[string]struct{}{}
	}
	u.dirs = newDirs(rootfd, o.IDShift, u.note)
	defer u.dirs.purge(nil)
	if err := u.all(ctx, r); err != nil {
		return nil, err
	}
	if err := u.dirs.finish(); err != nil {
		return nil, err
	}
	return u.ledger.nodes(), nil
}

// unpacker is the state of one Unpack.
type unpacker struct {
	o       Options
	dirs    *dirs
	ledger  ledger
	upper   map[string]struct{} // paths that this layer made or passed through; nil without whiteouts
	buf     []byte
	entries int
	bytes   int64
}

func (u *unpacker) all(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(bufio.NewReaderSize(r, 256<<10))
	last := ""
	for {
		h, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, tar.ErrInsecurePath): // the names are checked here
			return fmt.Errorf("read archive after %q: %w", last, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		last = h.Name
		if err := u.entry(ctx, h, tr); err != nil {
			return &EntryError{Name: h.Name, Err: err}
		}
	}
}

// entry checks one entry and puts it in place.
func (u *unpacker) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if u.entries++; u.entries > u.o.Limits.Entries {
		return fmt.Errorf("%w: more than %d entries", ErrLimit, u.o.Limits.Entries)
	}
	name, err := u.o.Limits.Clean(h.Name)
	if err != nil {
		return err
	}
	if u.o.Exclude != nil && u.o.Exclude(name) {
		return nil
	}
	if u.o.Whiteouts {
		w, err := entry.ParseWhiteout(name, h.Typeflag)
		if err != nil {
			return err
		}
		if w != (entry.Whiteout{}) {
			return u.hide(w)
		}
	}
	if err := u.put(ctx, name, h, r); err != nil {
		return err
	}
	if u.o.Entry != nil {
		return u.o.Entry(name, h)
	}
	return nil
}

// put makes one object of the tree.
func (u *unpacker) put(ctx context.Context, name string, h *tar.Header, r io.Reader) error {
	m, err := u.metadata(h)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the root is not a directory", ErrUnsafe)
		}
		return u.root(m)
	}
	dir, err := u.dirs.get(path.Dir(name), true)
	if err != nil {
		return fmt.Errorf("open parent: %w", err)
	}
	p := placeIn(dir, path.Base(name))
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.regular(ctx, p, m, h, r)
	case tar.TypeDir:
		return u.directory(p, m)
	case tar.TypeSymlink:
		return u.symlink(p, m, h.Linkname)
	case tar.TypeLink:
		return u.link(p, h.Linkname)
	case tar.TypeFifo:
		return u.fifo(p, m)
	case tar.TypeChar, tar.TypeBlock:
		return u.device(p, m, h)
	}
	return fmt.Errorf("%w: type %q", ErrUnsupported, h.Typeflag)
}

// note is told of every path that comes to be, by its place in the tree.
func (u *unpacker) note(name string, t tree.Type) {
	u.ledger.drop(name)
	if t != tree.Directory {
		delete(u.dirs.meta, name)
	}
	if u.upper == nil {
		return
	}
	for ; name != "."; name = path.Dir(name) {
		if _, ok := u.upper[name]; ok {
			return
		}
		u.upper[name] = struct{}{}
	}
}

// closeFD closes a descriptor that was only read from or looked through.
func closeFD(fd int) { _ = unix.Close(fd) }
