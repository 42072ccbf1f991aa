package entry

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
	ACLUserObj  = 0x01
	ACLUser     = 0x02
	ACLGroupObj = 0x04
	ACLGroup    = 0x08
	ACLMask     = 0x10
	ACLOther    = 0x20
	ACLNoID     = math.MaxUint32
)

const aclVersion = 2

// ACLEntry is one entry of a POSIX ACL.
type ACLEntry struct {
	Tag  uint16 // one of the constants ACLUserObj to ACLOther
	Perm uint16 // 0 to 7
	ID   uint32 // ACLNoID unless the entry is Named
}

// Named reports whether the entry is for a user or group with an id.
func (e ACLEntry) Named() bool { return e.Tag == ACLUser || e.Tag == ACLGroup }

// ACL is a POSIX ACL, ordered by tag and id.
type ACL []ACLEntry

// DecodeACL reads the interchange format, strictly.
func DecodeACL(b []byte) (ACL, error) {
	if len(b) < 4 || (len(b)-4)%8 != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, fmt.Errorf("%w: a malformed ACL of %d bytes", ErrUnsafe, len(b))
	}
	var a ACL
	for b = b[4:]; len(b) > 0; b = b[8:] {
		a = append(a, ACLEntry{
			Tag: binary.LittleEndian.Uint16(b), Perm: binary.LittleEndian.Uint16(b[2:]), ID: binary.LittleEndian.Uint32(b[4:]),
		})
	}
	return a.checked()
}

// checked returns the ACL in order and with no ids where there must be none.
func (a ACL) checked() (ACL, error) {
	for i, e := range a {
		switch e.Tag {
		case ACLUser, ACLGroup:
			if _, err := ID(int64(e.ID)); err != nil {
				return nil, err
			}
		case ACLUserObj, ACLGroupObj, ACLMask, ACLOther:
			a[i].ID = ACLNoID
		default:
			return nil, fmt.Errorf("%w: ACL entry of type %#x", ErrUnsafe, e.Tag)
		}
		if e.Perm > 7 {
			return nil, fmt.Errorf("%w: ACL permissions %#o", ErrUnsafe, e.Perm)
		}
	}
	slices.SortFunc(a, func(x, y ACLEntry) int { return cmp.Or(cmp.Compare(x.Tag, y.Tag), cmp.Compare(x.ID, y.ID)) })
	for i := 1; i < len(a); i++ {
		if a[i].Tag == a[i-1].Tag && a[i].ID == a[i-1].ID {
			return nil, fmt.Errorf("%w: an ACL with two equal entries", ErrUnsafe)
		}
	}
	return a, nil
}

// Encode returns the interchange format.
func (a ACL) Encode() []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+8*len(a)), aclVersion)
	for _, e := range a {
		b = binary.LittleEndian.AppendUint16(b, e.Tag)
		b = binary.LittleEndian.AppendUint16(b, e.Perm)
		b = binary.LittleEndian.AppendUint32(b, e.ID)
	}
	return b
}

// parseACLText reads the text of a SCHILY.acl record: entries separated by
// commas or newlines, "user:NAME:rwx:1001" with the id last as star writes
// it, or "user:1001:rwx" as GNU tar does. Names alone mean nothing here.
func parseACLText(text string) (ACL, error) {
	var a ACL
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

func parseACLEntry(s string) (ACLEntry, error) {
	f := strings.Split(s, ":")
	if len(f) == 2 { // "mask:r-x" and "other:r-x"
		f = []string{f[0], "", f[1]}
	}
	if len(f) != 3 && len(f) != 4 {
		return ACLEntry{}, fmt.Errorf("%d fields", len(f))
	}
	e := ACLEntry{ID: ACLNoID}
	switch f[0] {
	case "user", "u":
		e.Tag = ACLUserObj
	case "group", "g":
		e.Tag = ACLGroupObj
	case "mask", "m":
		e.Tag = ACLMask
	case "other", "o":
		e.Tag = ACLOther
	default:
		return e, errors.New("unknown type")
	}
	if f[1] != "" {
		if e.Tag != ACLUserObj && e.Tag != ACLGroupObj {
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
		e.Tag, e.ID = e.Tag<<1, uint32(id)
	}
	for i, c := range f[2] {
		k := strings.IndexRune("rwx-", c)
		if k < 0 || i > 2 {
			return e, errors.New("unknown permissions")
		}
		if k < 3 {
			e.Perm |= 4 >> k
		}
	}
	return e, nil
}
