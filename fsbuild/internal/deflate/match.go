package deflate

import (
	"encoding/binary"
	"math/bits"
)

// How hard the finder tries. More of it costs time and gains little.
const (
	chainLength = 32   // positions that are looked at for a match
	niceLength  = 64   // a match of this length ends the search
	farShort    = 1024 // a match of minMatch bytes is not worth a distance from here on
	lazyLength  = 16   // nothing better is looked for than a match of this length
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
	base   int32                 // added to positions in the heads, so that those of earlier blocks are below it
	head   [1 << hashBits]int32  // newest position for a hash of four bytes
	head3  [1 << hash3Bits]int32 // and of three bytes
	back   [MaxWindow]uint16     // from a position, modulo MaxWindow, how far back the one before is, at most 1<<16-1
}

func (f *finder) init(window int) { f.window, f.base = window, 1 }

// next makes the finder forget a block of n bytes.
func (f *finder) next(n int) {
	f.base += int32(n)
	if f.base > 1<<30 {
		f.base = 1
		clear(f.head[:])
		clear(f.head3[:])
	}
}

func load32(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[i:]) }
func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }

// insert makes position p, where v is, known. It returns the newest position
// before it with the same hash of four bytes; negative for none.
func (f *finder) insert(v uint32, p int) int {
	h := v * 0x9e3779b1 >> (32 - hashBits)
	old := int(f.head[h] - f.base)
	f.head[h] = int32(p) + f.base
	f.back[p&(MaxWindow-1)] = uint16(min(p-old, 1<<16-1))
	return old
}

// insert3 does so for three bytes, without chains.
func (f *finder) insert3(v uint32, p int) int {
	h := v << 8 * 0x9e3779b1 >> (32 - hash3Bits)
	old := int(f.head3[h] - f.base)
	f.head3[h] = int32(p) + f.base
	return old
}

// longest inserts p and finds the longest match there that is longer than
// beat, looking at no more than depth positions. The length is 0 for none.
func (f *finder) longest(src []byte, p, beat, depth int) (length, distance int) {
	first := load32(src, p)
	cand := f.insert(first, p)
	three := f.insert3(first, p)
	limit := max(0, p-f.window)
	if beat < minMatch && three >= limit && p-three < farShort && (load32(src, three)^first)<<8 == 0 {
		length, distance = minMatch, p-three
	}
	if cand < limit {
		return length, distance
	}
	best, most := max(beat, minMatch), min(maxMatch, len(src)-p)
	if best >= most {
		return length, distance
	}
	tail := load32(src, p+best-3)
	for {
		if load32(src, cand+best-3) == tail && load32(src, cand) == first {
			if n := matchLength(src, cand, p, most); n > best {
				best, length, distance = n, n, p-cand
				if n >= niceLength || n == most {
					break
				}
				tail = load32(src, p+best-3)
			}
		}
		cand -= int(f.back[cand&(MaxWindow-1)])
		if depth--; depth <= 0 || cand < limit {
			break
		}
	}
	return length, distance
}

// matchLength is the length of the match of p with a, of which four bytes are
// known to be equal, up to most.
func matchLength(src []byte, a, p, most int) int {
	x, y := src[a:a+most], src[p:p+most]
	n := 4
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
		length, distance := e.find.longest(src, p, 0, chainLength)
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
		n, d := e.find.longest(src, p+1, length-1, chainLength/2)
		if n == 0 || 4*(n-length)+bits.Len(uint(distance))-bits.Len(uint(d)) <= 2 {
			e.find.insertAll(src, p+2, min(p+length, last+1))
			return p, length, distance
		}
		p, length, distance = p+1, n, d
	}
	e.find.insertAll(src, p+1, min(p+length, last+1))
	return p, length, distance
}
