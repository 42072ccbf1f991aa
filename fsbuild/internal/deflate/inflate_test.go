package deflate

import "errors"

var errDeflate = errors.New("bad deflate stream")

// bitReader reads a deflate stream, least significant bit first.
type bitReader struct {
	b   []byte
	pos int // in bits
}

func (r *bitReader) bits(n int) int {
	v := 0
	for i := range n {
		if r.pos>>3 < len(r.b) {
			v |= int(r.b[r.pos>>3]>>(r.pos&7)&1) << i
		}
		r.pos++
	}
	return v
}

// decodeTable maps a code, with a leading 1 bit before it, to its symbol.
type decodeTable map[int]int

// newDecodeTable assigns canonical codes (RFC 1951 section 3.2.2).
func newDecodeTable(lengths []int) decodeTable {
	h, code := decodeTable{}, 0
	for length := 1; length <= 15; length++ {
		code <<= 1
		for symbol, l := range lengths {
			if l == length {
				h[1<<length|code] = symbol
				code++
			}
		}
	}
	return h
}

func (r *bitReader) symbol(h decodeTable) (int, error) {
	code := 1
	for range 15 {
		code = code<<1 | r.bits(1)
		if s, ok := h[code]; ok {
			return s, nil
		}
	}
	return 0, errDeflate
}

// farthest returns the largest distance in a deflate stream (RFC 1951).
func farthest(b []byte) (far int, err error) {
	r := &bitReader{b: b}
	for last := false; !last; {
		last = r.bits(1) == 1
		kind := r.bits(2)
		if kind == 0 {
			r.pos = (r.pos + 7) &^ 7
			n := r.bits(16)
			r.pos += 16 + 8*n
		} else {
			far, err = r.block(kind, far)
		}
		if err != nil || r.pos > 8*len(b) {
			return 0, errors.Join(err, errDeflate)
		}
	}
	return far, nil
}

func (r *bitReader) block(kind, far int) (int, error) {
	literals, distances, err := r.tables(kind)
	for err == nil {
		s, e := r.symbol(literals)
		if e != nil || r.pos > 8*len(r.b) {
			return 0, errDeflate
		}
		if s == 256 {
			return far, nil
		}
		if s > 256 {
			r.bits(lengthBits(s))
			d, e := r.symbol(distances)
			if e != nil || d > 29 {
				return 0, errDeflate
			}
			far = max(far, r.distance(d))
		}
	}
	return 0, err
}

func lengthBits(symbol int) int {
	if symbol < 265 || symbol == 285 {
		return 0
	}
	return (symbol - 261) / 4
}

func (r *bitReader) distance(d int) int {
	if d < 4 {
		return d + 1
	}
	extra := d/2 - 1
	return (2+d&1)<<extra + 1 + r.bits(extra)
}

func (r *bitReader) tables(kind int) (literals, distances decodeTable, err error) {
	if kind == 1 {
		lengths := make([]int, 288)
		for i := range lengths {
			lengths[i] = map[bool]int{true: 8, false: 9}[i < 144]
			if i >= 256 {
				lengths[i] = map[bool]int{true: 7, false: 8}[i < 280]
			}
		}
		fixed := make([]int, 30)
		for i := range fixed {
			fixed[i] = 5
		}
		return newDecodeTable(lengths), newDecodeTable(fixed), nil
	}
	if kind == 3 {
		return nil, nil, errDeflate
	}
	nl, nd, nc := r.bits(5)+257, r.bits(5)+1, r.bits(4)+4
	order := []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
	codes := make([]int, 19)
	for _, i := range order[:nc] {
		codes[i] = r.bits(3)
	}
	lengths, err := r.codeLengths(newDecodeTable(codes), nl+nd)
	if err != nil {
		return nil, nil, err
	}
	return newDecodeTable(lengths[:nl]), newDecodeTable(lengths[nl:]), nil
}

func (r *bitReader) codeLengths(h decodeTable, n int) (lengths []int, err error) {
	for len(lengths) < n {
		s, err := r.symbol(h)
		if err != nil {
			return nil, err
		}
		value, count := 0, 1
		switch {
		case s < 16:
			value = s
		case s == 16 && len(lengths) > 0:
			value, count = lengths[len(lengths)-1], 3+r.bits(2)
		case s == 17:
			count = 3 + r.bits(3)
		case s == 18:
			count = 11 + r.bits(7)
		default:
			return nil, errDeflate
		}
		for range count {
			lengths = append(lengths, value)
		}
	}
	if len(lengths) != n {
		return nil, errDeflate
	}
	return lengths, nil
}
