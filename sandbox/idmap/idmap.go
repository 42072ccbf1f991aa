// Package idmap computes the user and group id maps of the sandbox and
// translates ids between the host, the worker and the image.
//
// There are three views of one file's owner. The host sees a subordinate id of
// the caller. The worker ("outer" namespace) sees 0 for the caller and
// 1..65536 for the subordinate range. The hooks and the image ("inner"
// namespace) see 0..65535, so that image id i is outer id i+1 and image root
// is never the caller:
//
//	image 0 .. 65535  =  outer 1 .. 65536  =  host subuid+0 .. subuid+65535
//	                     outer 0           =  host caller
//
// The package is pure: it parses the text of /etc/subuid, /etc/subgid
// (subuid(5)) and /proc/self/uid_map (user_namespaces(7)) given to it, and
// neither reads files nor changes a process. It does not know NSS sources of
// subordinate ids other than those files.
//
// Invariant: no extent that [Map.Inner] returns spans two extents of the map
// that it was made from, since the kernel refuses such a map.
package idmap

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Size is the number of ids of an image: 0..65535.
const Size = 65536

// smallest is the number of ids that an image can live with: 0..65534, which
// includes nobody. A user namespace with 65536 ids has no more, since the
// caller keeps one.
const smallest = Size - 1

// maxID is the largest id; 2³²-1 means "no id" to the kernel.
const maxID = 1<<32 - 2

// RootBase is the first host id of the range that real root uses where its own
// map allows it. The range is outside of what distributions, systemd and
// container managers assign (systemd UIDS-GIDS: 0x70000000 and up is unused).
const RootBase = 0x70000000

// ErrNoRange reports that the caller has no range of at least 65536
// subordinate ids.
var ErrNoRange = errors.New("no range of 65536 subordinate ids")

// Extent is one line of a uid_map or gid_map: Count ids from Inside on are the
// ids from Outside on in the parent namespace.
type Extent struct {
	Inside, Outside, Count uint32
}

// Map is the id map of a user namespace.
type Map struct {
	UID, GID []Extent
}

// Range is a range of subordinate ids, one line of /etc/subuid.
type Range struct {
	First, Count uint32
}

// Ranges returns the ranges that the text of /etc/subuid or /etc/subgid gives
// to one of names (a login name, or a uid in decimal), in the file's order.
// Lines that are malformed or reach beyond the last id are ignored, as
// newuidmap(1) ignores them.
func Ranges(text []byte, names ...string) []Range {
	var out []Range
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || f[0] == "" || !contains(names, f[0]) {
			continue
		}
		first, err1 := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 != nil || err2 != nil || count == 0 || first+count-1 > maxID {
			continue
		}
		out = append(out, Range{uint32(first), uint32(count)})
	}
	return out
}

func contains(names []string, s string) bool {
	for _, n := range names {
		if n == s {
			return true
		}
	}
	return false
}

// ForUser returns the outer map of an ordinary user: outer 0 is the caller,
// outer 1..65536 the first 65536 ids of the given ranges. A range that holds
// the caller's own id is cut off there, and ranges that overlap count once. The
// error is [ErrNoRange] when they are too few.
func ForUser(uid, gid uint32, uids, gids []Range) (Map, error) {
	u, err := fill(uid, uids)
	if err != nil {
		return Map{}, fmt.Errorf("map uids: %w", err)
	}
	g, err := fill(gid, gids)
	if err != nil {
		return Map{}, fmt.Errorf("map gids: %w", err)
	}
	return Map{UID: u, GID: g}, nil
}

// fill maps outer 0 to own and then Size ids out of ranges.
func fill(own uint32, ranges []Range) ([]Extent, error) {
	out := []Extent{{0, own, 1}}
	next := uint32(1)
	for _, r := range ranges {
		for _, free := range subtract(r, out) {
			n := min(free.Count, Size+1-next)
			if n == 0 {
				break
			}
			out = append(out, Extent{next, free.First, n})
			next += n
		}
	}
	if next != Size+1 {
		return nil, fmt.Errorf("%w: found %d", ErrNoRange, next-1)
	}
	return out, nil
}

// subtract returns the parts of r that no extent has taken yet.
func subtract(r Range, taken []Extent) []Range {
	parts := []Range{r}
	for _, t := range taken {
		var left []Range
		for _, p := range parts {
			left = append(left, cut(p, uint64(t.Outside), uint64(t.Outside)+uint64(t.Count))...)
		}
		parts = left
	}
	return parts
}

// cut returns what of p lies outside [from, to).
func cut(p Range, from, to uint64) []Range {
	first, end := uint64(p.First), uint64(p.First)+uint64(p.Count)
	if to <= first || end <= from {
		return []Range{p}
	}
	var out []Range
	if first < from {
		out = append(out, Range{p.First, uint32(from - first)})
	}
	if to < end {
		out = append(out, Range{uint32(to), uint32(end - to)})
	}
	return out
}

// ForRoot returns the outer map of real root, who needs no subordinate ranges:
// outer 0 is root, outer 1..65536 a range of its own. uidMap and gidMap are the
// texts of root's own /proc/self/uid_map and gid_map: on the host the range
// starts at [RootBase]; inside another user namespace it is the last 65536 ids
// that exist there (or 65535 where there are no more).
func ForRoot(uidMap, gidMap []byte) (Map, error) {
	u, err := rootExtents(uidMap)
	if err != nil {
		return Map{}, fmt.Errorf("map uids: %w", err)
	}
	g, err := rootExtents(gidMap)
	if err != nil {
		return Map{}, fmt.Errorf("map gids: %w", err)
	}
	return Map{UID: u, GID: g}, nil
}

func rootExtents(text []byte) ([]Extent, error) {
	own, err := ParseExtents(text)
	if err != nil {
		return nil, err
	}
	var best Range
	for _, e := range own {
		first, end := uint64(max(e.Inside, 1)), uint64(e.Inside)+uint64(e.Count)
		if first <= RootBase && RootBase+Size <= end {
			best = Range{RootBase, Size}
			break
		}
		if n := min(end-min(first, end), Size); n >= smallest {
			best = Range{uint32(end - n), uint32(n)}
		}
	}
	if best.Count == 0 {
		return nil, fmt.Errorf("%w in this user namespace", ErrNoRange)
	}
	return []Extent{{0, 0, 1}, {1, best.First, best.Count}}, nil
}

// ParseExtents reads the text of a uid_map or gid_map.
func ParseExtents(text []byte) ([]Extent, error) {
	var out []Extent
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 3 {
			return nil, fmt.Errorf("parse id map: line %q: want three numbers", strings.TrimSpace(line))
		}
		var v [3]uint32
		for i := range f {
			n, err := strconv.ParseUint(f[i], 10, 32)
			if err != nil {
				return nil, fmt.Errorf("parse id map: %w", err)
			}
			v[i] = uint32(n)
		}
		out = append(out, Extent{v[0], v[1], v[2]})
	}
	return out, nil
}

// Text returns extents in the form that the kernel reads and newuidmap takes
// as arguments, one line per extent.
func Text(extents []Extent) string {
	var b strings.Builder
	for _, e := range extents {
		fmt.Fprintf(&b, "%d %d %d\n", e.Inside, e.Outside, e.Count)
	}
	return b.String()
}

// Args returns extents as the arguments of newuidmap and newgidmap.
func Args(extents []Extent) []string {
	return strings.Fields(Text(extents))
}

// Inner returns the map of the hooks' namespace relative to the outer one: ids
// 0.. of the image to outer shift.. . It has as many extents as m has from
// outer id shift on.
func (m Map) Inner(shift uint32) Map {
	return Map{UID: inner(m.UID, shift), GID: inner(m.GID, shift)}
}

func inner(extents []Extent, shift uint32) []Extent {
	var out []Extent
	for _, e := range extents {
		end := uint64(e.Inside) + uint64(e.Count)
		if end <= uint64(shift) {
			continue
		}
		first := max(e.Inside, shift)
		count := min(end-uint64(first), uint64(Size)-min(uint64(Size), uint64(first-shift)))
		if count > 0 {
			out = append(out, Extent{first - shift, first, uint32(count)})
		}
	}
	return out
}

// ToOutside translates an id of the namespace into one of its parent. The
// second result is false when the id is not mapped.
func ToOutside(extents []Extent, id uint32) (uint32, bool) {
	for _, e := range extents {
		if id >= e.Inside && id-e.Inside < e.Count {
			return e.Outside + (id - e.Inside), true
		}
	}
	return 0, false
}

// ToInside translates an id of the parent into one of the namespace. The
// second result is false when the id is not mapped.
func ToInside(extents []Extent, id uint32) (uint32, bool) {
	for _, e := range extents {
		if id >= e.Outside && id-e.Outside < e.Count {
			return e.Inside + (id - e.Outside), true
		}
	}
	return 0, false
}

// Base names the host ids of the image's ids, such as "0:100000:65536" for
// uids and gids alike. It belongs in the key of a snapshot, whose files have
// owners that are right under one map only.
func (m Map) Base() string {
	u, g := base(m.UID), base(m.GID)
	if u == g {
		return u
	}
	return u + "/" + g
}

func base(extents []Extent) string {
	var parts []string
	for _, e := range extents {
		if e.Inside > 0 {
			parts = append(parts, fmt.Sprintf("%d:%d:%d", e.Inside-1, e.Outside, e.Count))
		}
	}
	return strings.Join(parts, ",")
}

// ImageID returns the function that translates an owner as the worker sees it
// into the image's: outer id minus shift. Ids below shift (the caller's) and
// above the image's last are errors.
func ImageID(shift uint32) func(uint32) (uint32, error) {
	return func(outer uint32) (uint32, error) {
		if outer < shift || outer-shift >= Size {
			return 0, fmt.Errorf("translate owner %d: not an id of the image", outer)
		}
		return outer - shift, nil
	}
}
