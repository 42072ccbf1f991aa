package layer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/tree"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	capability = "security.capability"
)

// keepXattr reports whether an attribute belongs to an image. user.overlay.*
// and user.rootlesscontainers would be taken for the bookkeeping of overlayfs
// (mount option userxattr) and of rootless runtimes.
func keepXattr(name string) bool {
	switch name {
	case aclAccess, aclDefault, capability:
		return true
	case "user.rootlesscontainers":
		return false
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// parseXattrs returns the attributes in an entry's PAX records: SCHILY.xattr.*
// as star, GNU tar and every OCI tool write them, and the texts SCHILY.acl.*
// of star, GNU tar and libarchive. An ACL in both forms is taken in binary.
func parseXattrs(records map[string]string, limit int) ([]tree.Xattr, error) {
	found := map[string][]byte{}
	for key, value := range records {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || !keepXattr(name) {
			continue
		}
		if len(value) > limit {
			return nil, fmt.Errorf("%w: attribute %q of %d bytes", ErrLimit, name, len(value))
		}
		v, err := checkXattr(name, []byte(value))
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", name, err)
		}
		found[name] = v
	}
	for _, a := range []struct{ key, name string }{{"SCHILY.acl.access", aclAccess}, {"SCHILY.acl.default", aclDefault}} {
		if _, both := found[a.name]; both || records[a.key] == "" {
			continue
		}
		acl, err := parseACLText(records[a.key])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.key, err)
		}
		found[a.name] = acl.encode()
	}
	xattrs := make([]tree.Xattr, 0, len(found))
	for name, value := range found {
		xattrs = append(xattrs, tree.Xattr{Name: name, Value: value})
	}
	slices.SortFunc(xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return xattrs, nil
}

// checkXattr checks and normalises the value of a kept attribute.
func checkXattr(name string, value []byte) ([]byte, error) {
	switch name {
	case capability:
		return checkCapability(value)
	case aclAccess, aclDefault:
		acl, err := decodeACL(value)
		if err != nil {
			return nil, err
		}
		return acl.encode(), nil
	}
	return value, nil
}

// Revisions of struct vfs_cap_data, linux/capability.h: the top byte of its
// first word, little-endian. Revision 3 ends with the user id that is root in
// the namespaces where the capability counts.
const (
	capRevisionMask = 0xff000000
	capRevision2    = 0x02000000
	capRevision3    = 0x03000000
	capSize2        = 20
	capSize3        = 24
)

// checkCapability returns the value in revision 2, as an image has it.
func checkCapability(v []byte) ([]byte, error) {
	if len(v) < capSize2 {
		return nil, fmt.Errorf("%w: a capability of %d bytes", ErrUnsafe, len(v))
	}
	magic := binary.LittleEndian.Uint32(v)
	switch {
	case magic&capRevisionMask == capRevision2 && len(v) == capSize2:
		return v, nil
	case magic&capRevisionMask != capRevision3 || len(v) != capSize3:
		return nil, fmt.Errorf("%w: a capability of revision %#x and %d bytes", ErrUnsafe, magic>>24, len(v))
	}
	if root := binary.LittleEndian.Uint32(v[capSize2:]); root != 0 {
		return nil, fmt.Errorf("%w: a capability for the namespaces of user %d", ErrUnsafe, root)
	}
	v = slices.Clone(v[:capSize2])
	binary.LittleEndian.PutUint32(v, magic&^uint32(capRevisionMask)|capRevision2)
	return v, nil
}

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
		if keepXattr(name) {
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
	return strings.HasPrefix(name, "user.") || keepXattr(name)
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
