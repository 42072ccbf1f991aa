package bootstrap

import "strings"

// CompareVersions orders two Debian package versions as dpkg and apt do
// (Debian Policy 5.6.12: epoch, upstream version, revision). The result is
// negative, zero or positive; different spellings of one version, such as
// "1", "0:1" and "1-0", compare equal. Any string is accepted: an invalid
// version still has a defined place in the order.
func CompareVersions(a, b string) int {
	if a == b {
		return 0
	}
	aEpoch, aUpstream, aRevision := splitVersion(a)
	bEpoch, bUpstream, bRevision := splitVersion(b)
	if c := comparePart(aEpoch, bEpoch); c != 0 {
		return c
	}
	if c := comparePart(aUpstream, bUpstream); c != 0 {
		return c
	}
	return comparePart(aRevision, bRevision)
}

// splitVersion cuts a version at its first colon and its last hyphen.
func splitVersion(v string) (epoch, upstream, revision string) {
	upstream = v
	if i := strings.IndexByte(v, ':'); i >= 0 {
		epoch, upstream = v[:i], v[i+1:]
	}
	if i := strings.LastIndexByte(upstream, '-'); i >= 0 {
		upstream, revision = upstream[:i], upstream[i+1:]
	}
	return epoch, upstream, revision
}

// comparePart walks both strings in alternating runs of non-digits, compared
// by rank, and digits, compared as numbers of any length.
func comparePart(a, b string) int {
	for a != "" || b != "" {
		for (a != "" && !isDigit(a[0])) || (b != "" && !isDigit(b[0])) {
			if c := versionRank(a) - versionRank(b); c != 0 {
				return c
			}
			a, b = a[1:], b[1:]
		}
		var c int
		if c, a, b = compareNumber(a, b); c != 0 {
			return c
		}
	}
	return 0
}

// compareNumber compares the leading digits and returns what follows them.
func compareNumber(a, b string) (c int, aRest, bRest string) {
	na, nb := digits(a), digits(b)
	aRest, bRest = a[na:], b[nb:]
	x, y := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
	if len(x) != len(y) {
		return len(x) - len(y), aRest, bRest
	}
	return strings.Compare(x, y), aRest, bRest
}

// digits counts the digits that s starts with.
func digits(s string) int {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return n
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// versionRank is the weight of the first byte of s: tilde before the end,
// the end (and a digit, which ends the run) before letters, letters before
// everything else.
func versionRank(s string) int {
	switch {
	case s == "" || isDigit(s[0]):
		return 0
	case s[0] == '~':
		return -1
	case 'a' <= s[0] && s[0] <= 'z', 'A' <= s[0] && s[0] <= 'Z':
		return int(s[0])
	}
	return int(s[0]) + 256
}

// relation is the operator of a versioned dependency.
type relation uint8

const (
	anyVersion   relation = iota
	earlier               // <<
	earlierEqual          // <=
	equal                 // =
	laterEqual            // >=
	later                 // >>
)

// satisfied reports whether have stands in the relation to want. An empty
// have is an unversioned provides, which satisfies no versioned relation.
func (r relation) satisfied(have, want string) bool {
	if r == anyVersion || want == "" {
		return true
	}
	if have == "" {
		return false
	}
	c := CompareVersions(have, want)
	switch r {
	case earlier:
		return c < 0
	case earlierEqual:
		return c <= 0
	case equal:
		return c == 0
	case laterEqual:
		return c >= 0
	default:
		return c > 0
	}
}

// String returns the operator as dependency fields write it, "" for none.
func (r relation) String() string {
	return [...]string{anyVersion: "", earlier: "<<", earlierEqual: "<=", equal: "=", laterEqual: ">=", later: ">>"}[r]
}
