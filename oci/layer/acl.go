package layer

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Tags of POSIX ACL entries in the kernel's interchange format,
// linux/posix_acl_xattr.h: a 32-bit version, then entries of 16-bit tag,
// 16-bit permissions and 32-bit id, all little-endian, ordered by tag and id.
const (
	aclVersion  = 2
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
	aclNoID     = math.MaxUint32
)

type aclEntry struct {
	tag, perm uint16
	id        uint32 // aclNoID unless the tag is aclUser or aclGroup
}

func (e aclEntry) named() bool { return e.tag == aclUser || e.tag == aclGroup }

type acl []aclEntry

func decodeACL(b []byte) (acl, error) {
	if len(b) < 4 || (len(b)-4)%8 != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, fmt.Errorf("%w: a malformed ACL of %d bytes", ErrUnsafe, len(b))
	}
	var a acl
	for b = b[4:]; len(b) > 0; b = b[8:] {
		a = append(a, aclEntry{
			tag: binary.LittleEndian.Uint16(b), perm: binary.LittleEndian.Uint16(b[2:]), id: binary.LittleEndian.Uint32(b[4:]),
		})
	}
	return a.checked()
}

// checked returns the ACL in order and with no ids where there must be none.
func (a acl) checked() (acl, error) {
	for i, e := range a {
		switch e.tag {
		case aclUser, aclGroup:
			if _, err := checkID(int64(e.id)); err != nil {
				return nil, err
			}
		case aclUserObj, aclGroupObj, aclMask, aclOther:
			a[i].id = aclNoID
		default:
			return nil, fmt.Errorf("%w: ACL entry of type %#x", ErrUnsafe, e.tag)
		}
		if e.perm > 7 {
			return nil, fmt.Errorf("%w: ACL permissions %#o", ErrUnsafe, e.perm)
		}
	}
	slices.SortFunc(a, func(x, y aclEntry) int { return cmp.Or(cmp.Compare(x.tag, y.tag), cmp.Compare(x.id, y.id)) })
	for i := 1; i < len(a); i++ {
		if a[i].tag == a[i-1].tag && a[i].id == a[i-1].id {
			return nil, fmt.Errorf("%w: an ACL with two equal entries", ErrUnsafe)
		}
	}
	return a, nil
}

func (a acl) encode() []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+8*len(a)), aclVersion)
	for _, e := range a {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// shiftACL adds shift to the ids of an encoded ACL.
func shiftACL(b []byte, shift int) ([]byte, error) {
	if shift <= 0 {
		return b, nil
	}
	a, err := decodeACL(b)
	if err != nil {
		return nil, err
	}
	for i, e := range a {
		if !e.named() {
			continue
		}
		if a[i].id, err = checkID(int64(e.id) + int64(shift)); err != nil {
			return nil, err
		}
	}
	return a.encode(), nil
}

// parseACLText reads the text of a SCHILY.acl record: entries separated by
// commas or newlines, "user:NAME:rwx:1001" with the id last as star writes
// it, or "user:1001:rwx" as GNU tar does. Names alone mean nothing here.
func parseACLText(text string) (acl, error) {
	var a acl
	for _, s := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		s, _, _ = strings.Cut(s, "#") // a comment with the effective rights
		s = strings.TrimPrefix(strings.TrimSpace(s), "default:")
		if s == "" {
			continue
		}
		e, err := parseACLEntry(s)
		if err != nil {
			return nil, fmt.Errorf("%w: ACL entry %q: %w", ErrUnsafe, s, err)
		}
		a = append(a, e)
	}
	return a.checked()
}

func parseACLEntry(s string) (aclEntry, error) {
	f := strings.Split(s, ":")
	if len(f) == 2 { // "mask:r-x" and "other:r-x"
		f = []string{f[0], "", f[1]}
	}
	if len(f) != 3 && len(f) != 4 {
		return aclEntry{}, fmt.Errorf("%d fields", len(f))
	}
	e := aclEntry{id: aclNoID}
	switch f[0] {
	case "user", "u":
		e.tag = aclUserObj
	case "group", "g":
		e.tag = aclGroupObj
	case "mask", "m":
		e.tag = aclMask
	case "other", "o":
		e.tag = aclOther
	default:
		return e, errors.New("unknown type")
	}
	if f[1] != "" {
		if e.tag != aclUserObj && e.tag != aclGroupObj {
			return e, errors.New("a name where none can be")
		}
		number := f[1]
		if len(f) == 4 {
			number = f[3]
		}
		id, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return e, errors.New("no numeric id")
		}
		e.tag, e.id = e.tag<<1, uint32(id)
	}
	for i, c := range f[2] {
		k := strings.IndexRune("rwx-", c)
		if k < 0 || i > 2 {
			return e, errors.New("unknown permissions")
		}
		if k < 3 {
			e.perm |= 4 >> k
		}
	}
	return e, nil
}
