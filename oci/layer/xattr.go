package layer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/tar/entry"
	"cairn/fsbuild/tree"
)

const (
	aclAccess  = entry.ACLAccess
	aclDefault = entry.ACLDefault
	capability = entry.Capability
)

// The revisions of struct vfs_cap_data in linux/capability.h: the top byte of
// its first word, little-endian.
const (
	capRevisionMask = 0xff000000
	capRevision3    = 0x03000000
)

// shiftCapability returns the value for a tree whose root user is shift.
func shiftCapability(v []byte, shift int) []byte {
	if shift == 0 {
		return v
	}
	magic := binary.LittleEndian.Uint32(v)
	v = slices.Clone(v)
	binary.LittleEndian.PutUint32(v, magic&^uint32(capRevisionMask)|capRevision3)
	return binary.LittleEndian.AppendUint32(v, uint32(shift))
}

// shiftACL adds shift to the ids of an encoded ACL.
func shiftACL(b []byte, shift int) ([]byte, error) {
	if shift <= 0 {
		return b, nil
	}
	a, err := entry.DecodeACL(b)
	if err != nil {
		return nil, err
	}
	for i, e := range a {
		if !e.Named() {
			continue
		}
		if a[i].ID, err = entry.ID(int64(e.ID) + int64(shift)); err != nil {
			return nil, err
		}
	}
	return a.Encode(), nil
}

// setXattrs sets attributes of the image on an open file of the disk.
func setXattrs(fd int, xattrs []tree.Xattr, shift int) error {
	for _, x := range xattrs {
		value := x.Value
		switch x.Name {
		case capability:
			if shift < 0 {
				continue
			}
			value = shiftCapability(value, shift)
		case aclAccess, aclDefault:
			var err error
			if value, err = shiftACL(value, shift); err != nil {
				return fmt.Errorf("attribute %q: %w", x.Name, err)
			}
		}
		if err := unix.Fsetxattr(fd, x.Name, value, 0); err != nil {
			return fmt.Errorf("set attribute %q: %w", x.Name, err)
		}
	}
	return nil
}

// clearXattrs removes the attributes that an entry may set.
func clearXattrs(fd int) error {
	names, err := listXattrs(fd)
	if err != nil {
		return fmt.Errorf("list attributes: %w", err)
	}
	for _, name := range names {
		if entry.KeepXattr(name) {
			if err := removeXattr(fd, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// listXattrs returns the attribute names of an open file; none where the file
// system has none.
func listXattrs(fd int) ([]string, error) {
	var small [256]byte
	buf := small[:]
	for {
		n, err := unix.Flistxattr(fd, buf)
		switch {
		case errors.Is(err, unix.EOPNOTSUPP):
			return nil, nil
		case errors.Is(err, unix.ERANGE) && len(buf) < 64<<10: // XATTR_LIST_MAX
			buf = make([]byte, 64<<10)
			continue
		case err != nil || n == 0:
			return nil, err
		}
		return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
	}
}

// copyXattr reports whether CopyTree copies an attribute: what Unpack sets, and
// whatever else the user namespace holds.
func copyXattr(name string) bool {
	return strings.HasPrefix(name, "user.") || entry.KeepXattr(name)
}

func hasXattr(fd int, name string) bool {
	_, err := unix.Fgetxattr(fd, name, nil)
	return err == nil
}

// removeXattr removes an attribute; that it is not there is no error.
func removeXattr(fd int, name string) error {
	err := unix.Fremovexattr(fd, name)
	if err == nil || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return fmt.Errorf("remove attribute %q: %w", name, err)
}
