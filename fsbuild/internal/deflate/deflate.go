// Package deflate compresses whole blocks of memory to raw deflate streams
// (RFC 1951), as the clusters of disk containers are. The distances stay within
// a window that the caller chooses: 4 KiB is what QEMU's encoder uses and all
// that its readers promise.
//
// Matches are found in hash chains and taken lazily; where the statistics of
// the data change, a new Huffman block begins. There are no levels and no
// streaming.
package deflate

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

// Windows that an Encoder can have, in bytes.
const (
	MinWindow = 1 << 8
	MaxWindow = 1 << 15
)

// ErrWindow means that a window is no power of two in MinWindow to MaxWindow.
var ErrWindow = errors.New("window not supported by deflate")

// Lengths of matches.
const (
	minMatch = 3
	maxMatch = 258
)

// Encoder compresses one block after the other. What it writes depends on the
// block and the window only, never on the blocks before. It must not be used
// concurrently.
type Encoder struct {
	find   finder
	tokens []token
	runs   []histogram // of runTokens tokens each
	code   codes
	fixed  codes
	out    bitWriter
}

// NewEncoder returns an Encoder whose distances are at most window bytes.
func NewEncoder(window int) (*Encoder, error) {
	if window < MinWindow || window > MaxWindow || bits.OnesCount(uint(window)) != 1 {
		return nil, fmt.Errorf("window of %d bytes: %w", window, ErrWindow)
	}
	e := &Encoder{}
	e.tokens = make([]token, 0, maxTokens+moreRoom)
	e.find.init(window)
	e.fixed.setFixed()
	return e, nil
}

// Encode appends src, compressed, to dst and returns the result. src must be
// shorter than 1 GiB.
func (e *Encoder) Encode(dst, src []byte) []byte {
	e.out = bitWriter{b: dst}
	for p, final := 0, false; !final; {
		start := p
		p = e.parse(src, p)
		final = p == len(src)
		e.count()
		e.blocks(src[start:p], final)
	}
	e.find.next(len(src))
	return e.out.finish()
}

// blocks writes the tokens, which stand for data, in one block or more.
func (e *Encoder) blocks(data []byte, final bool) {
	first, block := 0, e.runs[0]
	for i := 1; i < len(e.runs); i++ {
		if !block.join(&e.runs[i]) {
			data = e.block(&block, e.tokens[first:i*runTokens], data, false)
			first, block = i*runTokens, e.runs[i]
		}
	}
	e.block(&block, e.tokens[first:], data, final)
}

// Tokens that are kept before they are written as blocks, and how many more
// one step of the parser may add.
const (
	maxTokens = 64 << 10
	moreRoom  = 1 << 10
)

// token is a literal byte or a match, with all that is needed to count and
// write it without asking which of the two it is:
//
//	bits  0 to 8   symbol of the literal or length
//	bits  9 to 13  symbol of the distance; noDistance for a literal
//	bits 14 to 26  extra bits of the distance
//	bits 27 to 30  how many those are
//	bits 31 to 35  extra bits of the length
//	bits 36 to 38  how many those are
//	bits 39 to 47  bytes of data: 1 for a literal
type token uint64

// noDistance is a symbol that takes no bits.
const noDistance = numDistance

func literal(b byte) token { return token(b) | noDistance<<9 | 1<<39 }

func match(length, distance int) token {
	d := token(distanceSymbol(distance - 1))
	r := distances[d]
	return lengthTokens[length-minMatch] | d<<9 | token(distance-int(r.base))<<14 | token(r.extra)<<27
}

// runTokens is how finely the borders of blocks are looked for.
const runTokens = 1024

// count makes the histograms of all runs.
func (e *Encoder) count() {
	n := max(1, (len(e.tokens)+runTokens-1)/runTokens)
	e.runs = slices.Grow(e.runs[:0], n)[:n]
	clear(e.runs)
	for i := range e.runs {
		e.runs[i].add(e.tokens[i*runTokens : min((i+1)*runTokens, len(e.tokens))])
	}
}
