// Package swap writes swap areas as mkswap does: version 1, with a UUID, a
// label and pages of a given size, and without a list of bad pages.
//
// A swap area is one page of header; the rest is never read before Linux has
// written it. So [Header] is all there is to write, and what follows may be
// anything: a hole, or zeros.
//
// Software suspend images, the old version 0 and areas of foreign byte order
// are not written.
//
// The format is union swap_header of Linux's include/linux/swap.h.
package swap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
)

// Sizes and offsets of union swap_header, after 1024 bytes for a boot sector.
const (
	DefaultPageSize = 4096
	minPageSize     = 4096
	maxPageSize     = 64 << 10
	minPages        = 10 // mkswap makes no smaller area
	maxLabel        = 15 // mkswap keeps the sixteenth byte for a NUL

	atVersion  = 1024
	atLastPage = 1028
	atUUID     = 1036
	atLabel    = 1052
	version    = 1
	signature  = "SWAPSPACE2" // the last ten bytes of the page
)

// ErrParams is wrapped by every error: what is asked for cannot be represented.
var ErrParams = errors.New("invalid swap area")

// Params are what decides the header. The zero value lacks size and UUID.
type Params struct {
	// Size in bytes, of the whole area: ten pages or more. What is left of a
	// last page is not used. Linux counts pages in 32 bits.
	Size     int64
	UUID     [16]byte // required: areas are found by it
	Label    string   // at most 15 bytes, no NUL
	PageSize int      // of the machine that will use it: a power of two, 4 KiB to 64 KiB; 0 means 4 KiB
}

// Header returns the first page of the area. The error wraps [ErrParams] and
// says what the limit is.
func Header(p Params) ([]byte, error) {
	if p.PageSize == 0 {
		p.PageSize = DefaultPageSize
	}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("make swap area: %w: %w", ErrParams, err)
	}
	b := make([]byte, p.PageSize)
	le := binary.LittleEndian
	le.PutUint32(b[atVersion:], version)
	le.PutUint32(b[atLastPage:], uint32(p.Size/int64(p.PageSize)-1))
	copy(b[atUUID:], p.UUID[:])
	copy(b[atLabel:], p.Label)
	copy(b[len(b)-len(signature):], signature)
	return b, nil
}

func (p *Params) check() error {
	pages := p.Size / int64(max(p.PageSize, 1))
	switch {
	case p.PageSize < minPageSize || p.PageSize > maxPageSize || p.PageSize&(p.PageSize-1) != 0:
		return fmt.Errorf("page size %d is not a power of two from %d to %d", p.PageSize, minPageSize, maxPageSize)
	case pages < minPages:
		return fmt.Errorf("size %d is less than %d pages, %d bytes", p.Size, minPages, minPages*p.PageSize)
	case pages-1 > math.MaxUint32:
		return fmt.Errorf("size %d is more than 2^32 pages of %d bytes", p.Size, p.PageSize)
	case p.UUID == [16]byte{}:
		return errors.New("the UUID is missing")
	case len(p.Label) > maxLabel:
		return fmt.Errorf("label %q has %d bytes, the limit is %d", p.Label, len(p.Label), maxLabel)
	case strings.IndexByte(p.Label, 0) >= 0:
		return fmt.Errorf("label %q has a NUL byte", p.Label)
	}
	return nil
}
