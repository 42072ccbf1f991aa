package partition

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// GUID is a globally unique identifier in the order of its text form (RFC
// 9562): the first byte is the first two digits. On the disk the first three
// fields are little-endian ("UEFI Specification 2.10", appendix A).
type GUID [16]byte

// ParseGUID reads 32 hexadecimal digits of either case in groups of 8, 4, 4, 4
// and 12, with a dash between groups.
func ParseGUID(text string) (GUID, error) {
	var g GUID
	groups := strings.Split(text, "-")
	lengths := []int{8, 4, 4, 4, 12}
	if len(groups) != len(lengths) {
		return g, fmt.Errorf("read GUID %q: %w", text, errGUID)
	}
	for i, s := range groups {
		if len(s) != lengths[i] {
			return g, fmt.Errorf("read GUID %q: %w", text, errGUID)
		}
	}
	b, err := hex.DecodeString(strings.Join(groups, ""))
	if err != nil {
		return g, fmt.Errorf("read GUID %q: %w", text, errGUID)
	}
	return GUID(b), nil
}

var errGUID = errors.New("not of the form 00000000-0000-0000-0000-000000000000")

// String returns the text form in lower case, as Linux writes PARTUUIDs.
func (g GUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[0:4], g[4:6], g[6:8], g[8:10], g[10:16])
}

// IsZero reports whether g is all zeros, which marks an unused entry as a type.
func (g GUID) IsZero() bool { return g == GUID{} }

// swapped returns g with its first three fields reversed: from the order of the
// text to that of the disk, and back.
func (g GUID) swapped() GUID {
	return GUID{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]}
}
