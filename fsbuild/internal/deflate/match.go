package deflate

import (
	"encoding/binary"
	"math/bits"
)

// How hard the finder tries. More of it costs time and gains little.
const (
	chainLength = 24   // positions that are looked at for a match
	niceLength  = 64   // a match of this length ends the search
	farShort    = 1024 // a match of minMatch bytes is not worth a distance from here on
	lazyLength  = 5    // nothing better is looked for than a match of this length
	maxStep     = 64   // but no fewer than one of so many
	patience    = 7    // after 1<<patience bytes without a match, every second one is tried, and so on
)

const (
	hashBits  = 13
	hash3Bits = 11
)

// finder finds matches by the hash of the first four bytes, in chains from the
// newest position to older ones, and the newest match of three bytes.
type finder struct {
	window int
	mask   int                   // window-1
	near   int                   // the furthest distance for a match of minMatch bytes
	base   int32                 // added to positions in the heads, so that those of earlier blocks are out of the window
	head   [1 << hashBits]int32  // newest position for a hash of four bytes
	head3  [1 << hash3Bits]int32 // and of three bytes
	back   [MaxWindow]uint16     // from a position, modulo window, how far back the one before is, at most 1<<16-1
}

func (f *finder) init(window int) {
	f.window, f.mask, f.near, f.base = window, window-1, min(window, farShort-1), int32(window+1)
}

// next makes the finder forget a block of n bytes.
func (f *finder) next(n int) {
	base := int(f.base) + n + f.window + 1
	if base > 1<<30 {
		base = f.window + 1
		clear(f.head[:])
		clear(f.head3[:])
	}
	f.base = int32(base)
}

func load32(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[i : i+4]) }
func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i : i+8]) }

// insert makes position p, where v is, known. It returns the newest position
// before it with the same hash of four bytes; for none, one out of the window.
func (f *finder) insert(v uint32, p int) int {
	h := v * 0x9e3779b1 >> (32 - hashBits)
	old := int(f.head[h] - f.base)
	f.head[h] = int32(p) + f.base
	f.back[p&f.mask&(MaxWindow-1)] = uint16(min(p-old, 1<<16-1))
	return old
}

// insert3 does so for three bytes, without chains.
func (f *finder) insert3(v uint32, p int) int {
	h := v << 8 * 0x9e3779b1 >> (32 - hash3Bits)
	old := int(f.head3[h] - f.base)
	f.head3[h] = int32(p) + f.base
	return old
}

// longest finds the longest match of p that is longer than best bytes, at least
// minMatch, along the chain from cand, looking at no more than depth positions.
// The length is 0 for none.
func (f *finder) longest(src []byte, p, cand, best, depth int) (length, distance int) {
	most := min(maxMatch, len(src)-p)
	for best < most {
		if cand, depth = f.follow(src[best-3:], p, cand, depth); depth == 0 {
			break
		}
		if n := matchLength(src, cand, p, most); n > best {
			best, length, distance = n, n, p-cand
			if n >= niceLength {
				break
			}
		}
		cand, depth = f.before(cand), depth-1
	}
	return length, distance
}

// before is the position before p in its chain.
func (f *finder) before(p int) int { return p - int(f.back[p&f.mask&(MaxWindow-1)]) }

// follow goes along the chain of p from cand to the next position where ends
// has the same four bytes as at p. It looks at no more than depth positions and
// returns how many are left with that one; 0 if there is none. It is apart from
// longest for the sake of its few variables, which stay in registers.
//
//go:noinline
func (f *finder) follow(ends []byte, p, cand, depth int) (at, left int) {
	end, limit := load32(ends, p), p-f.window
	for ; depth > 0 && cand >= limit; depth-- {
		if load32(ends, cand) == end {
			return cand, depth
		}
		cand = f.before(cand)
	}
	return cand, 0
}

// matchLength is the length of the match of p with a, up to most.
func matchLength(src []byte, a, p, most int) int {
	x, y := src[a:a+most], src[p:p+most]
	n := 0
	for n+8 <= most {
		if d := load64(x, n) ^ load64(y, n); d != 0 {
			return n + bits.TrailingZeros64(d)/8
		}
		n += 8
	}
	for n < most && x[n] == y[n] {
		n++
	}
	return n
}

// parse turns src from p on into tokens, and returns where it stopped: at the
// end or where there were maxTokens.
func (e *Encoder) parse(src []byte, p int) int {
	tokens, n := e.tokens[:cap(e.tokens)], 0
	last := len(src) - 4 // last position that has a hash
	since := p           // where the last match ended
	for p <= last && n < maxTokens {
		v := load32(src, p)
		cand, three := e.find.insert(v, p), e.find.insert3(v, p)
		length, distance := 0, 0
		if p-cand <= e.find.window {
			length, distance = e.find.longest(src, p, cand, minMatch, chainLength)
		}
		if length == 0 && p-three <= e.find.near && (load32(src, three)^v)<<8 == 0 {
			length, distance = minMatch, p-three
		}
		if length == 0 {
			next := min(p+1+min((p-since)>>patience, maxStep), len(src))
			for ; p < next; p++ {
				tokens[n] = literal(src[p])
				n++
			}
			continue
		}
		start := p
		if length < lazyLength {
			p, length, distance = e.improve(src, p, last, length, distance)
		} else {
			e.find.insertAll(src, p+1, min(p+length, last+1))
		}
		for ; start < p; start++ {
			tokens[n] = literal(src[start])
			n++
		}
		tokens[n] = match(length, distance)
		n++
		p += length
		since = p
	}
	for ; p > last && p < len(src); p++ {
		tokens[n] = literal(src[p])
		n++
	}
	e.tokens = tokens[:n]
	return p
}

// insertAll inserts the positions from p to end.
func (f *finder) insertAll(src []byte, p, end int) {
	for ; p+4 <= end && p+8 <= len(src); p += 4 {
		v := load64(src, p)
		f.insert(uint32(v), p)
		f.insert(uint32(v>>8), p+1)
		f.insert(uint32(v>>16), p+2)
		f.insert(uint32(v>>24), p+3)
	}
	for ; p < end; p++ {
		f.insert(load32(src, p), p)
	}
}

// improve looks for a match at the position behind p that is worth more than
// the one at p, until there is none. It inserts all positions up to the end of
// the match.
func (e *Encoder) improve(src []byte, p, last, length, distance int) (at, bestLength, bestDistance int) {
	for length < lazyLength && p < last {
		v := load32(src, p+1)
		cand, n, d := e.find.insert(v, p+1), 0, 0
		e.find.insert3(v, p+1)
		if p+1-cand <= e.find.window {
			n, d = e.find.longest(src, p+1, cand, max(length-1, minMatch), chainLength/2)
		}
		if n == 0 || 4*(n-length)+bits.Len(uint(distance))-bits.Len(uint(d)) <= 2 {
			e.find.insertAll(src, p+2, min(p+length, last+1))
			return p, length, distance
		}
		p, length, distance = p+1, n, d
	}
	e.find.insertAll(src, p+1, min(p+length, last+1))
	return p, length, distance
}
