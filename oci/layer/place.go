package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/tar/entry"
	"cairn/fsbuild/tree"
)

// replace calls create, which makes something new at p, and once more after
// removing what stands in its way.
func (u *unpacker) replace(p place, create func() error) error {
	err := create()
	if errors.Is(err, unix.EEXIST) {
		if err = u.displace(p); err == nil {
			err = create()
		}
	}
	return err
}

// displace removes what is at p, so that something else can be put there.
func (u *unpacker) displace(p place) error {
	var st unix.Stat_t
	if err := unix.Fstatat(p.dir.fd, p.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if !u.o.Whiteouts {
			return fmt.Errorf("replace a directory: %w", unix.EISDIR)
		}
		u.dirs.purge(p.dir)
		u.ledger.dropBelow(p.path)
		_, err := removeTree(p.dir.fd, p.base, p.path, nil)
		return err
	case unix.S_IFLNK:
		u.dirs.purge(p.dir)
	}
	return unix.Unlinkat(p.dir.fd, p.base, 0)
}

// regular makes a file with the data of r.
func (u *unpacker) regular(ctx context.Context, p place, m metadata, h *tar.Header, r io.Reader) error {
	if u.bytes += h.Size; h.Size > u.o.Limits.TotalBytes || u.bytes > u.o.Limits.TotalBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrLimit, u.o.Limits.TotalBytes)
	}
	fd := -1
	err := u.replace(p, func() error {
		var err error
		fd, err = retry(func() (int, error) {
			return unix.Openat(p.dir.fd, p.base, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("create file: %w", err)
	}
	u.note(p.path, tree.Regular)
	err = u.fill(ctx, fd, h, r)
	if err == nil && p.dir.acl {
		err = removeXattr(fd, aclAccess)
	}
	if err == nil {
		err = u.apply(fd, m)
	}
	if cerr := unix.Close(fd); err == nil && cerr != nil {
		err = fmt.Errorf("close file: %w", cerr)
	}
	if err != nil {
		return err
	}
	return setTime(p.dir.fd, p.base, m.mtime)
}

// fill copies the data of an entry; the holes of a sparse one stay holes.
func (u *unpacker) fill(ctx context.Context, fd int, h *tar.Header, r io.Reader) error {
	sparse := entry.IsSparse(h)
	for off := int64(0); off < h.Size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := u.buf[:min(h.Size-off, int64(len(u.buf)))]
		if _, err := io.ReadFull(r, b); err != nil {
			return fmt.Errorf("read data: %w", err)
		}
		var err error
		if sparse {
			err = writeData(fd, b, off)
		} else {
			err = writeAll(fd, b, off)
		}
		if err != nil {
			return fmt.Errorf("write data: %w", err)
		}
		off += int64(len(b))
	}
	if !sparse {
		return nil
	}
	if err := unix.Ftruncate(fd, h.Size); err != nil {
		return fmt.Errorf("set size: %w", err)
	}
	return nil
}

// writeAll writes b at off.
func writeAll(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := retry(func() (int, error) { return unix.Pwrite(fd, b, off) })
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// writeData writes the blocks of b that are not all zeros.
func writeData(fd int, b []byte, off int64) error {
	const block = 4096
	for len(b) > 0 {
		n := 0
		for n < len(b) && !isZero(b[n:min(n+block, len(b))]) {
			n = min(n+block, len(b))
		}
		if err := writeAll(fd, b[:n], off); err != nil {
			return err
		}
		skip := min(n+block, len(b)) // the block that ended the run is zero
		b, off = b[skip:], off+int64(skip)
	}
	return nil
}

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// directory makes a directory, or changes the one that is there.
func (u *unpacker) directory(p place, m metadata) error {
	inherits, fresh := p.dir.acl, true
	err := unix.Mkdirat(p.dir.fd, p.base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		switch s, serr := u.standing(p); {
		case serr != nil:
			return serr
		case s == kept:
			return nil
		case s == existing:
			err, fresh = nil, false
		default:
			if err = u.displace(p); err == nil {
				err = unix.Mkdirat(p.dir.fd, p.base, 0o700)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	u.note(p.path, tree.Directory)
	e, err := u.dirs.get(p.path, false)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	if fresh && inherits {
		if err := u.dirs.disinherit(e); err != nil {
			return err
		}
	}
	return u.applyDir(e, m, fresh)
}

// root gives the root directory its metadata.
func (u *unpacker) root(m metadata) error {
	if u.o.KeepDirSymlinks {
		return nil
	}
	e, err := u.dirs.get(".", false)
	if err != nil {
		return err
	}
	return u.applyDir(e, m, false)
}

// What stands at the place of a directory entry.
type standing int

const (
	other    standing = iota // must make way
	existing                 // a directory that takes the metadata of the entry
	kept                     // stays as it is
)

func (u *unpacker) standing(p place) (standing, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(p.dir.fd, p.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return other, err
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR && u.o.KeepDirSymlinks:
		return kept, nil
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return existing, nil
	case st.Mode&unix.S_IFMT != unix.S_IFLNK || !u.o.KeepDirSymlinks:
		return other, nil
	}
	if _, err := u.dirs.get(p.path, false); err != nil {
		return other, nil //nolint:nilerr // dangling, a loop, or to something else: it makes way
	}
	return kept, nil
}

// symlink makes a symbolic link. Its target is data and never followed here.
func (u *unpacker) symlink(p place, m metadata, target string) error {
	if target == "" || len(target) > u.o.Limits.NameBytes {
		return fmt.Errorf("%w: a link target of %d bytes", ErrUnsafe, len(target))
	}
	if len(m.xattrs) > 0 {
		return fmt.Errorf("%w: a symlink with attribute %q", ErrUnsupported, m.xattrs[0].Name)
	}
	if u.o.KeepDirSymlinks {
		if s, err := u.standing(p); err == nil && s == kept && u.isDir(p) {
			return nil
		}
	}
	if err := u.replace(p, func() error { return unix.Symlinkat(target, p.dir.fd, p.base) }); err != nil {
		return fmt.Errorf("make symlink: %w", err)
	}
	u.note(p.path, tree.Symlink)
	return u.applyAt(p, m)
}

func (u *unpacker) isDir(p place) bool {
	var st unix.Stat_t
	err := unix.Fstatat(p.dir.fd, p.base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// fifo makes a named pipe.
func (u *unpacker) fifo(p place, m metadata) error {
	if len(m.xattrs) > 0 {
		return fmt.Errorf("%w: a fifo with attribute %q", ErrUnsupported, m.xattrs[0].Name)
	}
	if err := u.replace(p, func() error { return unix.Mknodat(p.dir.fd, p.base, unix.S_IFIFO|0o600, 0) }); err != nil {
		return fmt.Errorf("make fifo: %w", err)
	}
	u.note(p.path, tree.FIFO)
	return u.applyAt(p, m)
}

// link makes another name for a file that the tree has. The target is a name
// of the archive and resolved inside the root; a symlink itself is linked.
func (u *unpacker) link(p place, linkname string) error {
	target, err := u.o.Limits.Clean(linkname)
	if err != nil {
		return fmt.Errorf("hard link target: %w", err)
	}
	err = u.replace(p, func() error {
		src, err := u.dirs.get(path.Dir(target), false)
		if err != nil {
			return err
		}
		return u.linkAt(placeIn(src, path.Base(target)), p)
	})
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", linkname, err)
	}
	return nil
}

func (u *unpacker) linkAt(from, to place) error {
	var a, b unix.Stat_t
	err := unix.Fstatat(from.dir.fd, from.base, &a, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) && u.ledger.has(from.path) {
		return u.linkDevice(from, to)
	}
	if err != nil {
		return err
	}
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fmt.Errorf("%w: the target is a directory", ErrUnsafe)
	}
	if unix.Fstatat(to.dir.fd, to.base, &b, unix.AT_SYMLINK_NOFOLLOW) == nil && a.Dev == b.Dev && a.Ino == b.Ino {
		u.note(to.path, tree.Regular)
		return nil // the same file already, perhaps by the same name
	}
	if err := unix.Linkat(from.dir.fd, from.base, to.dir.fd, to.base, 0); err != nil {
		return err
	}
	u.note(to.path, tree.Regular)
	return nil
}

// linkDevice gives a device of the ledger another name.
func (u *unpacker) linkDevice(from, to place) error {
	n := u.ledger[from.path]
	n.Path = to.path
	return u.record(to, n)
}

// device puts a device node in the ledger.
func (u *unpacker) device(p place, m metadata, h *tar.Header) error {
	n := tree.Node{
		Path: p.path, Type: tree.CharDevice, Mode: m.mode, UID: m.owner.uid, GID: m.owner.gid,
		MTime: tree.Time{Sec: m.mtime.Sec, Nsec: uint32(m.mtime.Nsec)}, Xattrs: m.xattrs,
		Major: uint32(h.Devmajor), Minor: uint32(h.Devminor),
	}
	if h.Typeflag == tar.TypeBlock {
		n.Type = tree.BlockDevice
	}
	if err := entry.CheckDevice(h); err != nil {
		return err
	}
	return u.record(p, n)
}

func (u *unpacker) record(p place, n tree.Node) error {
	if err := u.displace(p); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if !u.ledger.has(p.path) && len(u.ledger) >= u.o.Limits.Devices {
		return fmt.Errorf("%w: more than %d devices", ErrLimit, u.o.Limits.Devices)
	}
	u.note(p.path, n.Type)
	u.ledger[p.path] = n
	return nil
}
