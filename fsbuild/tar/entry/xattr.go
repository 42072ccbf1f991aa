package entry

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"cairn/fsbuild/tree"
)

// Attributes whose values are checked.
const (
	ACLAccess  = "system.posix_acl_access"
	ACLDefault = "system.posix_acl_default"
	Capability = "security.capability"
)

// KeepXattr reports whether an attribute belongs to an image: user.*,
// security.capability and POSIX ACLs do. user.overlay.*
// and user.rootlesscontainers would be taken for the bookkeeping of overlayfs
// (mount option userxattr) and of rootless runtimes.
func KeepXattr(name string) bool {
	switch name {
	case ACLAccess, ACLDefault, Capability:
		return true
	case "user.rootlesscontainers":
		return false
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// Xattrs returns the attributes in an entry's PAX records that keep accepts,
// sorted by name: SCHILY.xattr.* as star, GNU tar and every OCI tool write
// them, and the texts SCHILY.acl.* of star, GNU tar and libarchive. An ACL in
// both forms is taken in binary. A value may have up to limit bytes.
func Xattrs(records map[string]string, keep func(name string) bool, limit int) ([]tree.Xattr, error) {
	if len(records) == 0 {
		return nil, nil
	}
	found := map[string][]byte{}
	for key, value := range records {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || !keep(name) {
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
	for _, a := range []struct{ key, name string }{{"SCHILY.acl.access", ACLAccess}, {"SCHILY.acl.default", ACLDefault}} {
		if _, both := found[a.name]; both || records[a.key] == "" {
			continue
		}
		if !keep(a.name) {
			continue
		}
		acl, err := parseACLText(records[a.key])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.key, err)
		}
		found[a.name] = acl.Encode()
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
	case Capability:
		return checkCapability(value)
	case ACLAccess, ACLDefault:
		acl, err := DecodeACL(value)
		if err != nil {
			return nil, err
		}
		return acl.Encode(), nil
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
