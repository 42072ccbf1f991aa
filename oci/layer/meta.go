package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/tar/entry"
	"cairn/fsbuild/tree"
)

// metadata is what an entry says of its object, in ids of the image.
type metadata struct {
	mode   uint32
	owner  owner
	mtime  unix.Timespec
	xattrs []tree.Xattr // sorted by name
}

type owner struct{ uid, gid uint32 }

func (u *unpacker) metadata(h *tar.Header) (metadata, error) {
	uid, err := entry.ID(int64(h.Uid))
	if err != nil {
		return metadata{}, err
	}
	gid, err := entry.ID(int64(h.Gid))
	if err != nil {
		return metadata{}, err
	}
	xattrs, err := entry.Xattrs(h.PAXRecords, entry.KeepXattr, u.o.Limits.XattrBytes)
	if err != nil {
		return metadata{}, err
	}
	return metadata{
		mode:   uint32(h.Mode & 0o7777),
		owner:  owner{uid, gid},
		mtime:  clampTime(h.ModTime),
		xattrs: xattrs,
	}, nil
}

// The seconds that ext4 can hold with large inodes.
const (
	minTime = -1 << 31
	maxTime = 3<<32 + 1<<31 - 1
)

func clampTime(t time.Time) unix.Timespec {
	switch sec := t.Unix(); {
	case sec < minTime:
		return unix.Timespec{Sec: minTime}
	case sec > maxTime:
		return unix.Timespec{Sec: maxTime}
	default:
		return unix.Timespec{Sec: sec, Nsec: int64(t.Nanosecond())}
	}
}

// chown sets the owner of an open file or directory.
func chown(fd int, o owner, shift int) error {
	return chownWith(o, shift, func(uid, gid int) error { return unix.Fchown(fd, uid, gid) })
}

// chownAt sets the owner of a name without following a link.
func chownAt(p place, o owner, shift int) error {
	return chownWith(o, shift, func(uid, gid int) error {
		return unix.Fchownat(p.dir.fd, p.base, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func chownWith(o owner, shift int, call func(uid, gid int) error) error {
	if shift < 0 {
		return nil
	}
	uid, gid := int64(o.uid)+int64(shift), int64(o.gid)+int64(shift)
	if uid >= math.MaxUint32 || gid >= math.MaxUint32 {
		return fmt.Errorf("%w: owner %d:%d is above the ids of this system", ErrUnsafe, o.uid, o.gid)
	}
	err := call(int(uid), int(gid))
	switch {
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOVERFLOW):
		return fmt.Errorf("set owner %d:%d: not in the range of ids that the user namespace maps: %w", o.uid, o.gid, err)
	case err != nil:
		return fmt.Errorf("set owner %d:%d: %w", o.uid, o.gid, err)
	}
	return nil
}

// apply sets everything but the time on an open file. Changing the owner
// clears setuid bits and capabilities, and so comes first.
func (u *unpacker) apply(fd int, m metadata) error {
	if err := chown(fd, m.owner, u.o.IDShift); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, m.mode); err != nil {
		return fmt.Errorf("set mode %#o: %w", m.mode, err)
	}
	return setXattrs(fd, m.xattrs, u.o.IDShift)
}

// applyAt sets everything but attributes on a name that cannot be opened.
func (u *unpacker) applyAt(p place, m metadata) error {
	if err := chownAt(p, m.owner, u.o.IDShift); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(p.dir.fd, p.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // a symlink has no mode of its own
		if err := chmodat(p.dir.fd, p.base, m.mode); err != nil {
			return err
		}
	}
	return setTime(p.dir.fd, p.base, m.mtime)
}

// applyDir sets everything but the time, and a mode that would lock its owner
// out, which come in dirs.finish.
func (u *unpacker) applyDir(e *dir, m metadata, fresh bool) error {
	locked := m.mode&0o700 != 0o700
	u.dirs.meta[e.path] = dirMeta{mtime: m.mtime, mode: m.mode, setMode: locked}
	if !fresh {
		if err := clearXattrs(e.fd); err != nil {
			return err
		}
	}
	open := m
	if locked {
		open.mode |= 0o700
	}
	if err := u.apply(e.fd, open); err != nil {
		return err
	}
	e.acl = slices.ContainsFunc(m.xattrs, func(x tree.Xattr) bool { return x.Name == aclDefault })
	return nil
}
