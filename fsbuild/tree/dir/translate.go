package dir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"cairn/fsbuild/tree"
)

var le = binary.LittleEndian

// Names and constants of attributes that hold ids (linux/capability.h,
// linux/posix_acl_xattr.h).
const (
	xattrCapability = "security.capability"
	xattrACL        = "system.posix_acl_access"
	xattrDefaultACL = "system.posix_acl_default"

	capRevisionMask = 0xff000000
	capRevision1    = 0x01000000
	capRevision2    = 0x02000000
	capRevision3    = 0x03000000
	capSize1        = 12
	capSize2        = 20
	capSize3        = 24 // the last four bytes are the user id of root

	aclVersion = 2
	aclUser    = 0x02
	aclGroup   = 0x08
)

// translate turns ids inside a value into those of the image.
func (s *scanner) translate(x tree.Xattr) ([]byte, error) {
	switch x.Name {
	case xattrCapability:
		return s.capability(x.Value)
	case xattrACL, xattrDefaultACL:
		return s.acl(x.Value)
	}
	return x.Value, nil
}

// capability turns revision 3 into 2, which holds in any user namespace.
func (s *scanner) capability(v []byte) ([]byte, error) {
	if len(v) < 4 {
		return nil, errors.New("malformed file capability")
	}
	magic := le.Uint32(v)
	switch revision := magic & capRevisionMask; {
	case revision == capRevision1 && len(v) == capSize1, revision == capRevision2 && len(v) == capSize2:
		return v, nil
	case revision != capRevision3 || len(v) != capSize3:
		return nil, errors.New("malformed file capability")
	}
	if root := le.Uint32(v[capSize2:]); root != s.o.RootID {
		return nil, fmt.Errorf("file capability is for the namespace of user %d, not %d", root, s.o.RootID)
	}
	out := slices.Clone(v[:capSize2])
	le.PutUint32(out, magic&^capRevisionMask|capRevision2)
	return out, nil
}

// acl translates the ids of named users and groups.
func (s *scanner) acl(v []byte) ([]byte, error) {
	if len(v) < 4 || len(v)%8 != 4 || le.Uint32(v) != aclVersion {
		return nil, errors.New("malformed POSIX ACL")
	}
	if s.o.ID == nil {
		return v, nil
	}
	out := slices.Clone(v)
	for e := out[4:]; len(e) > 0; e = e[8:] {
		if tag := le.Uint16(e); tag != aclUser && tag != aclGroup {
			continue
		}
		id, err := s.o.ID(le.Uint32(e[4:]))
		if err != nil {
			return nil, err
		}
		le.PutUint32(e[4:], id)
	}
	return out, nil
}
