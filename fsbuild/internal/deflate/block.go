package deflate

import (
	"encoding/binary"
	"math"
)

// Symbols of the two alphabets (RFC 1951 section 3.2.5).
const (
	endOfBlock  = 256
	firstLength = 257
	numLiterals = 286
	numDistance = 30
)

// symbolRange is what one symbol of a length or distance stands for: a base
// and some extra bits.
type symbolRange struct {
	base  uint16
	extra uint8
}

var (
	lengths   = lengthRanges()
	distances = distanceRanges()

	lengthTokens = tokensOfLengths()    // by length-minMatch
	nearSymbol   = symbolsOfDistances() // by distance-1, below 256
	farSymbol    = symbolsOfFar()       // by (distance-1)>>7
)

func lengthRanges() (r [29]symbolRange) {
	base := 3
	for i := range 28 {
		extra := max(0, i/4-1)
		r[i] = symbolRange{uint16(base), uint8(extra)}
		base += 1 << extra
	}
	r[28] = symbolRange{base: maxMatch}
	return r
}

func distanceRanges() (r [numDistance]symbolRange) {
	base := 1
	for i := range r {
		extra := max(0, i/2-1)
		r[i] = symbolRange{uint16(base), uint8(extra)}
		base += 1 << extra
	}
	return r
}

func tokensOfLengths() (s [256]token) {
	for i, r := range lengths {
		for extra := range 1 << r.extra {
			if n := int(r.base) + extra; n <= maxMatch {
				s[n-minMatch] = token(firstLength+i) | token(extra)<<31 | token(r.extra)<<36 | token(n)<<39
			}
		}
	}
	return s
}

func findDistance(d int) uint8 {
	i := 0
	for i+1 < len(distances) && int(distances[i+1].base)-1 <= d {
		i++
	}
	return uint8(i)
}

func symbolsOfDistances() (s [256]uint8) {
	for d := range s {
		s[d] = findDistance(d)
	}
	return s
}

func symbolsOfFar() (s [256]uint8) {
	for d := range s {
		s[d] = findDistance(d << 7)
	}
	return s
}

// distanceSymbol takes a distance less one.
func distanceSymbol(d int) uint8 {
	if d < 256 {
		return nearSymbol[d]
	}
	return farSymbol[d>>7&0xff]
}

// histogram counts the symbols of a range of tokens, but for the one that ends
// a block.
type histogram struct {
	literals  [512]uint32 // of which numLiterals are symbols
	distances [32]uint32  // of which numDistance are symbols
	size      int         // bytes of data
	estimate  float32     // of the block's bits without extra bits; 0 when not known
}

// add counts tokens.
func (h *histogram) add(tokens []token) {
	size := 0
	for _, t := range tokens {
		h.literals[t&0x1ff]++
		h.distances[t>>9&0x1f]++
		size += int(t >> 39)
	}
	h.size += size
}

// join adds the counts of the range that follows, unless two blocks are
// expected to be smaller than one.
func (h *histogram) join(next *histogram) bool {
	both := *h
	for i, n := range next.literals[:numLiterals] {
		both.literals[i] += n
	}
	for i, n := range next.distances[:numDistance] {
		both.distances[i] += n
	}
	both.size += next.size
	both.estimate = both.bits()
	if h.estimate == 0 {
		h.estimate = h.bits()
	}
	next.estimate = next.bits()
	if both.estimate > h.estimate+next.estimate {
		return false
	}
	*h = both
	return true
}

// headerBits and symbolBits estimate what the code lengths of a block take.
const (
	headerBits = 60
	symbolBits = 3.5
)

// bits estimates the size of a block by its entropy.
func (h *histogram) bits() float32 {
	literal, a := entropy(h.literals[:numLiterals])
	distance, b := entropy(h.distances[:numDistance])
	return headerBits + symbolBits*float32(a+b) + literal + distance
}

// entropy returns the entropy of counted symbols, in bits for all of them, and
// how many different ones there are.
func entropy(counts []uint32) (sum float32, used int) {
	total := uint32(0)
	for _, n := range counts {
		if n != 0 {
			total += n
			used++
			sum -= timesLog(n)
		}
	}
	return sum + timesLog(total), used
}

// timesLog is n*log2(n).
func timesLog(n uint32) float32 {
	if n < uint32(len(smallLogs)) {
		return smallLogs[n]
	}
	return float32(float64(n) * math.Log2(float64(n)))
}

var smallLogs = computeLogs()

func computeLogs() (t [4096]float32) {
	for n := 1; n < len(t); n++ {
		t[n] = float32(float64(n) * math.Log2(float64(n)))
	}
	return t
}

// maxStored is the most that a stored block can hold.
const maxStored = 1<<16 - 1

// block writes the tokens at the start of data in the smallest of the three
// ways, and returns the data behind them.
func (e *Encoder) block(h *histogram, tokens []token, data []byte, final bool) []byte {
	size := h.size
	h.literals[endOfBlock] = 1
	extra := h.extraBits()
	header := e.code.dynamic(h)
	dynamic := header + e.code.cost(h) + extra
	stored := 8*size + 40*max(1, (size+maxStored-1)/maxStored)
	cost := e.fixed.cost(h) + extra
	e.out.grow((min(dynamic, cost, stored+8) + 3*64) / 8)
	switch {
	case stored < min(dynamic, cost):
		e.out.stored(data[:size], final)
	case cost < dynamic:
		e.out.bits(header3(1, final), 3)
		e.out.tokens(&e.fixed, tokens)
	default:
		e.out.bits(header3(2, final), 3)
		e.out.lengths(&e.code)
		e.out.tokens(&e.code, tokens)
	}
	return data[size:]
}

func header3(kind uint64, final bool) uint64 {
	if final {
		return kind<<1 | 1
	}
	return kind << 1
}

// extraBits is the number of bits behind the symbols.
func (h *histogram) extraBits() (n int) {
	for i, r := range lengths {
		n += int(h.literals[firstLength+i]) * int(r.extra)
	}
	for i, r := range distances {
		n += int(h.distances[i]) * int(r.extra)
	}
	return n
}

// bitWriter writes the least significant bit first.
type bitWriter struct {
	b   []byte
	acc uint64
	n   uint // bits in acc, fewer than 8 between calls
}

// grow makes room for n bytes and what is written beyond them.
func (w *bitWriter) grow(n int) {
	if need := len(w.b) + n + 16; need > cap(w.b) {
		b := make([]byte, len(w.b), max(need, 2*cap(w.b)))
		copy(b, w.b)
		w.b = b
	}
}

// bits writes the n low bits of v, at most 56.
func (w *bitWriter) bits(v uint64, n uint) {
	w.acc |= v << w.n
	w.n += n
	at := len(w.b)
	w.b = w.b[:at+8]
	binary.LittleEndian.PutUint64(w.b[at:], w.acc)
	w.b = w.b[:at+int(w.n/8)]
	w.acc >>= w.n &^ 7
	w.n &= 7
}

func (w *bitWriter) stored(data []byte, final bool) {
	for first := true; first || len(data) > 0; first = false {
		n := min(len(data), maxStored)
		w.grow(n + 8)
		w.bits(header3(0, final && n == len(data)), 3)
		w.bits(0, -w.n&7)
		w.bits(uint64(n)|uint64(^uint16(n))<<16, 32)
		w.b = append(w.b, data[:n]...)
		data = data[n:]
	}
}

// tokens writes tokens and the end of the block.
func (w *bitWriter) tokens(c *codes, tokens []token) {
	b, acc, have := w.b[:cap(w.b)], w.acc, w.n
	at := len(w.b)
	for _, t := range tokens {
		s, d := c.literals[t&0x1ff], c.distances[t>>9&0x1f]
		acc |= uint64(s.bits) << (have & 63)
		have += uint(s.length)
		acc |= uint64(t>>31&0x1f) << (have & 63)
		have += uint(t >> 36 & 7)
		acc |= uint64(d.bits) << (have & 63)
		have += uint(d.length)
		acc |= uint64(t>>14&0x1fff) << (have & 63)
		have += uint(t >> 27 & 15)
		binary.LittleEndian.PutUint64(b[at:at+8], acc)
		at += int(have / 8)
		acc >>= have & 56
		have &= 7
	}
	w.b, w.acc, w.n = b[:at], acc, have
	s := c.literals[endOfBlock]
	w.bits(uint64(s.bits), uint(s.length))
}

// finish pads to a byte.
func (w *bitWriter) finish() []byte {
	w.grow(8)
	w.bits(0, -w.n&7)
	return w.b
}
