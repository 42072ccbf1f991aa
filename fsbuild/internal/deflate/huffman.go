package deflate

import (
	"math/bits"
	"slices"
)

// symbolCode is a symbol's Huffman code, its first bit lowest.
type symbolCode struct {
	bits   uint16
	length uint8
}

// codes are the two codes of a block, and how their lengths are written.
type codes struct {
	literals  [512]symbolCode // of which numLiterals are used
	distances [32]symbolCode  // of which numDistance are used
	lens      []lengthToken   // the lengths of both codes, as symbols
	lenCode   [19]symbolCode
	numLit    int // lengths that are written
	numDist   int
	numLen    int
	sorter    huffman
}

// lengthToken is a symbol of the alphabet of code lengths (RFC 1951 section
// 3.2.7) with its extra bits.
type lengthToken struct {
	symbol, extra uint8
}

// Limits of code lengths.
const (
	maxCodeBits = 15
	maxLenBits  = 7
)

// lenOrder is the order in which the code lengths of code lengths are written.
var lenOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamic makes the best codes for counted symbols. It returns how many bits
// the block's header takes.
func (c *codes) dynamic(h *histogram) (header int) {
	c.sorter.build(c.literals[:numLiterals], h.literals[:numLiterals], maxCodeBits)
	c.sorter.build(c.distances[:numDistance], h.distances[:numDistance], maxCodeBits)
	c.numLit = used(c.literals[:numLiterals], firstLength)
	c.numDist = used(c.distances[:numDistance], 1)
	c.packLengths()
	var counts [19]uint32
	for _, t := range c.lens {
		counts[t.symbol]++
	}
	c.sorter.build(c.lenCode[:], counts[:], maxLenBits)
	c.numLen = len(lenOrder)
	for c.numLen > 4 && c.lenCode[lenOrder[c.numLen-1]].length == 0 {
		c.numLen--
	}
	header = 3 + 5 + 5 + 4 + 3*c.numLen
	for _, t := range c.lens {
		header += int(c.lenCode[t.symbol].length) + int(lenExtra(t.symbol))
	}
	return header
}

// used is how many codes there are up to the last that has a length, at least
// least.
func used(codes []symbolCode, least int) int {
	n := len(codes)
	for n > least && codes[n-1].length == 0 {
		n--
	}
	return n
}

func lenExtra(symbol uint8) uint {
	switch symbol {
	case 16:
		return 2
	case 17:
		return 3
	case 18:
		return 7
	default:
		return 0
	}
}

// packLengths writes runs of equal lengths as symbols.
func (c *codes) packLengths() {
	var all [numLiterals + numDistance]uint8
	n := 0
	for _, s := range c.literals[:c.numLit] {
		all[n] = s.length
		n++
	}
	for _, s := range c.distances[:c.numDist] {
		all[n] = s.length
		n++
	}
	c.lens = c.lens[:0]
	for i := 0; i < n; {
		run := 1
		for i+run < n && all[i+run] == all[i] {
			run++
		}
		c.packRun(all[i], run)
		i += run
	}
}

func (c *codes) packRun(length uint8, run int) {
	if length != 0 {
		c.lens = append(c.lens, lengthToken{symbol: length})
		run--
	}
	for run >= 3 {
		symbol, least, most := uint8(16), 3, 6
		switch {
		case length == 0 && run > 10:
			symbol, least, most = 18, 11, 138
		case length == 0:
			symbol, most = 17, 10
		}
		n := min(run, most)
		c.lens = append(c.lens, lengthToken{symbol, uint8(n - least)})
		run -= n
	}
	for range run {
		c.lens = append(c.lens, lengthToken{symbol: length})
	}
}

// lengths writes the header of a dynamic block behind its first three bits.
func (w *bitWriter) lengths(c *codes) {
	w.bits(uint64(c.numLit-firstLength)|uint64(c.numDist-1)<<5|uint64(c.numLen-4)<<10, 14)
	for _, s := range lenOrder[:c.numLen] {
		w.bits(uint64(c.lenCode[s].length), 3)
	}
	for _, t := range c.lens {
		s := c.lenCode[t.symbol]
		w.bits(uint64(s.bits)|uint64(t.extra)<<s.length, uint(s.length)+lenExtra(t.symbol))
	}
}

// setFixed makes the codes of RFC 1951 section 3.2.6.
func (c *codes) setFixed() {
	for i := range numLiterals + 2 {
		length := uint8(8)
		switch {
		case i >= 144 && i < 256:
			length = 9
		case i >= 256 && i < 280:
			length = 7
		}
		c.literals[i].length = length
	}
	for i := range numDistance + 2 {
		c.distances[i].length = 5
	}
	assign(c.literals[:numLiterals+2])
	assign(c.distances[:])
	c.distances[noDistance] = symbolCode{}
}

// cost is the number of bits that counted symbols take.
func (c *codes) cost(h *histogram) (n int) {
	for i, count := range h.literals[:numLiterals] {
		n += int(count) * int(c.literals[i].length)
	}
	for i, count := range h.distances[:numDistance] {
		n += int(count) * int(c.distances[i].length)
	}
	return n
}

// huffman builds codes. Its fields are working memory.
type huffman struct {
	leaves []uint32 // count<<9 | symbol, ascending
	nodes  []uint32
}

// build gives codes to the symbols that are counted, and to at least two, of
// most bits at most: readers need not accept an incomplete code.
func (s *huffman) build(codes []symbolCode, counts []uint32, most int) {
	s.leaves = s.leaves[:0]
	for i, n := range counts {
		if n != 0 {
			s.leaves = append(s.leaves, min(n, 1<<23-1)<<9|uint32(i))
		}
	}
	for i := 0; len(s.leaves) < 2; i++ {
		if counts[i] == 0 {
			s.leaves = append(s.leaves, 1<<9|uint32(i))
		}
	}
	slices.Sort(s.leaves)
	perLength := s.depths(most)
	clear(codes)
	at := 0
	for length := most; length > 0; length-- { // the rarest symbols have the longest codes
		for range perLength[length] {
			codes[s.leaves[at]&0x1ff].length = uint8(length)
			at++
		}
	}
	assign(codes)
}

// depths computes how many leaves of the Huffman tree have each depth, with
// those that are too deep moved up.
func (s *huffman) depths(most int) (perLength [maxCodeBits + 1]int) {
	n := len(s.leaves)
	// nodes holds the weights of inner nodes, and then the parents of them.
	s.nodes = slices.Grow(s.nodes[:0], n)[:n]
	leaf, inner := 0, 0
	for made := range n - 1 {
		weight := uint32(0)
		for range 2 {
			if inner >= made || leaf < n && s.leaves[leaf]>>9 <= s.nodes[inner] {
				weight += s.leaves[leaf] >> 9
				leaf++
			} else {
				weight += s.nodes[inner]
				s.nodes[inner] = uint32(made)
				inner++
			}
		}
		s.nodes[made] = weight
	}
	s.nodes[n-2] = 0 // the root's depth
	children := 1    // places at the depth below
	at := n - 2
	for i := n - 3; i >= 0; i-- {
		s.nodes[i] = s.nodes[s.nodes[i]] + 1
	}
	for depth := 1; children > 0; depth++ {
		places := 2 * children
		children = 0
		for at > 0 && s.nodes[at-1] == uint32(depth) {
			at--
			children++
		}
		perLength[min(depth, most)] += places - children
	}
	shorten(&perLength, most)
	return perLength
}

// shorten makes the lengths a code again, after leaves that were too deep were
// counted at depth most.
func shorten(perLength *[maxCodeBits + 1]int, most int) {
	total := 0 // of the places at depth most that the code takes
	for length := 1; length <= most; length++ {
		total += perLength[length] << (most - length)
	}
	for ; total > 1<<most; total-- {
		perLength[most]--
		for length := most - 1; ; length-- {
			if perLength[length] > 0 {
				perLength[length]--
				perLength[length+1] += 2
				break
			}
		}
	}
}

// assign numbers the codes of given lengths (RFC 1951 section 3.2.2).
func assign(codes []symbolCode) {
	var count, next [maxCodeBits + 1]uint16
	for _, c := range codes {
		count[c.length]++
	}
	count[0] = 0
	for length := 1; length <= maxCodeBits; length++ {
		next[length] = (next[length-1] + count[length-1]) << 1
	}
	for i := range codes {
		c := &codes[i]
		if c.length != 0 {
			c.bits = bits.Reverse16(next[c.length]) >> (16 - c.length)
			next[c.length]++
		}
	}
}
