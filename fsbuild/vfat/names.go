package vfat

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Case bits of Windows NT in an entry: base or extension is in lower case.
const (
	lowerBase = 0x08
	lowerExt  = 0x10
)

// unitsPerSlot is how much of a long name one slot holds, in UTF-16 units.
const unitsPerSlot = 13

// longName returns a name in UTF-16 or says why FAT cannot hold it ("Long
// Directory Entries", with the characters that Windows reserves).
func longName(name string) ([]uint16, error) {
	if !utf8.ValidString(name) {
		return nil, fmt.Errorf("name is not UTF-8")
	}
	for _, r := range name {
		if r < ' ' || strings.ContainsRune(`"*/:<>?\|`, r) || r == 0xffff {
			return nil, fmt.Errorf("name has the character %q", r)
		}
	}
	if last := name[len(name)-1]; last == '.' || last == ' ' {
		return nil, fmt.Errorf("name ends with %q", last)
	}
	units := utf16.Encode([]rune(name))
	if len(units) > maxUnits {
		return nil, fmt.Errorf("name has %d UTF-16 units, the limit is %d", len(units), maxUnits)
	}
	return units, nil
}

// foldName returns a key that is the same for names that differ in case only:
// Unicode's simple upper case, which Windows uses too.
func foldName(name string) string { return strings.Map(unicode.ToUpper, name) }

// shortChar tells whether a short name may have a character, and if that is a
// letter, its case ("Naming Conventions").
func shortChar(c byte) (ok, lower, upper bool) {
	lower, upper = c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z'
	ok = lower || upper || c >= '0' && c <= '9' || strings.IndexByte("$%'-_@~`!(){}^#&", c) >= 0
	return ok, lower, upper
}

// shortPart puts the base or extension of an 8.3 name into a field in upper
// case. It fails for a part that is too long or has another character.
func shortPart(field []byte, part string) (ok, lower, upper bool) {
	if len(part) > len(field) {
		return false, false, false
	}
	for i := range len(part) {
		good, low, up := shortChar(part[i])
		if !good {
			return false, false, false
		}
		lower, upper = lower || low, upper || up
		field[i] = part[i]
		if low {
			field[i] -= 'a' - 'A'
		}
	}
	return true, lower, upper
}

// shortName is a name as a directory entry holds it: base and extension,
// padded with spaces.
type shortName [11]byte

func blankName() (s shortName) {
	for i := range s {
		s[i] = ' '
	}
	return s
}

// parseShort converts an 8.3 name. caseBits are valid when whole: then base
// and extension each have one case, so that no long name is needed.
func parseShort(name string) (s shortName, caseBits byte, whole, ok bool) {
	s = blankName()
	base, ext, dot := strings.Cut(name, ".")
	if base == "" || dot && ext == "" {
		return s, 0, false, false
	}
	baseOK, baseLower, baseUpper := shortPart(s[:8], base)
	extOK, extLower, extUpper := shortPart(s[8:], ext)
	if baseLower {
		caseBits |= lowerBase
	}
	if extLower {
		caseBits |= lowerExt
	}
	return s, caseBits, (!baseLower || !baseUpper) && (!extLower || !extUpper), baseOK && extOK
}

// checksum ties the slots of a long name to the short name behind them
// ("ChkSum").
func (s *shortName) checksum() (sum byte) {
	for _, c := range s {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// aliases hands out the short names of one directory.
type aliases struct {
	used map[shortName]bool
	next map[series]int
}

// series is a run of aliases that differ in their number only, of so many
// digits.
type series struct {
	stem   string
	ext    [3]byte
	digits int
}

func newAliases() aliases {
	return aliases{used: map[shortName]bool{}, next: map[series]int{}}
}

// alias makes a short name for a name that is none ("The Basis-Name
// Generation Algorithm" and "The Numeric-Tail Generation Algorithm"). Other
// than there, characters that are not ASCII always become "_", so that the
// result does not depend on a code page.
func (a *aliases) alias(name string) (shortName, error) {
	base, ext := basis(name)
	s := blankName()
	copy(s[8:], ext)
	for digits := 1; digits <= 6; digits++ {
		stem := base[:min(len(base), 7-digits)]
		key, most := series{stem, [3]byte(s[8:]), digits}, pow10(digits)
		for n := max(a.next[key], most/10); n < most; n++ {
			a.next[key] = n + 1
			copy(s[:8], "        ")
			copy(s[:8], stem+"~"+strconv.Itoa(n))
			if !a.used[s] {
				a.used[s] = true
				return s, nil
			}
		}
	}
	return s, fmt.Errorf("no short name of the form %s~N is left", base[:1])
}

func pow10(n int) int {
	p := 1
	for range n {
		p *= 10
	}
	return p
}

// basis returns what an alias is made of: upper case, without spaces and
// without dots but the last, other characters than a short name's replaced.
func basis(name string) (base, ext string) {
	name = strings.ReplaceAll(name, " ", "")
	name = strings.TrimLeft(name, ".")
	clean := func(s string, most int) string {
		var b strings.Builder
		for _, r := range s {
			switch {
			case b.Len() == most:
				return b.String()
			case r == '.':
				continue
			case r >= utf8.RuneSelf:
				r = '_'
			}
			c := byte(r)
			if ok, lower, _ := shortChar(c); !ok {
				c = '_'
			} else if lower {
				c -= 'a' - 'A'
			}
			b.WriteByte(c)
		}
		return b.String()
	}
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return clean(name[:i], 8), clean(name[i+1:], 3)
	}
	return clean(name, 8), ""
}
