package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// ErrOrder means that a write began before the end of the one before, or left
// the disk.
var ErrOrder = errors.New("write out of order")

// Order checks that writes are ascending and within a disk.
type Order struct {
	Size int64
	pos  int64
}

// Check accounts for a write of n bytes at off.
func (o *Order) Check(n int, off int64) error {
	switch {
	case off < o.pos:
		return fmt.Errorf("offset %d is before %d: %w", off, o.pos, ErrOrder)
	case off > o.Size-int64(n):
		return fmt.Errorf("%d bytes at %d leave the disk of %d: %w", n, off, o.Size, ErrOrder)
	}
	o.pos = off + int64(n)
	return nil
}

// holeSize is the unit in which zeros are looked for.
const holeSize = 4096

var zeros [holeSize]byte

// Pieces calls write for the ranges of p, which belongs at off, that are not
// all zeros. They are cut at multiples of holeSize, and joined up to multiples
// of limit, a multiple of holeSize, and no further.
func Pieces(p []byte, off, limit int64, write func(p []byte, off int64) error) error {
	for len(p) > 0 {
		end := min(int64(len(p)), limit-off%limit)
		if err := nonZero(p[:end], off, write); err != nil {
			return err
		}
		p, off = p[end:], off+end
	}
	return nil
}

func nonZero(p []byte, off int64, write func(p []byte, off int64) error) error {
	for start := int64(0); start < int64(len(p)); {
		end := start
		for end < int64(len(p)) {
			next := min(int64(len(p)), end+holeSize-(off+end)%holeSize)
			if bytes.Equal(p[end:next], zeros[:next-end]) {
				break
			}
			end = next
		}
		if end > start {
			if err := write(p[start:end], off+start); err != nil {
				return err
			}
		}
		start = min(int64(len(p)), end+holeSize-(off+end)%holeSize)
	}
	return nil
}

// Fill writes n bytes of value b at off.
func Fill(w io.WriterAt, b byte, off, n int64) error {
	chunk := bytes.Repeat([]byte{b}, int(min(n, 64<<10)))
	for n > 0 {
		m := min(n, int64(len(chunk)))
		if _, err := w.WriteAt(chunk[:m], off); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}
