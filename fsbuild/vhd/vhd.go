// Package vhd writes and reads Virtual Hard Disk images (.vhd), the format of
// Azure, Hyper-V and Virtual PC: fixed ones (the raw disk with a footer) and
// dynamic ones, whose blocks of zeros take no room. Differencing images (with a
// parent) are neither written nor read, nor is the later format VHDX.
//
// The format is specified in Microsoft's "Virtual Hard Disk Image Format
// Specification", version 1.0. All numbers on disk are big-endian. The files are
// laid out as
//
//	fixed:   disk | footer
//	dynamic: copy of footer | header | block allocation table | blocks | footer
//
// and a block is a sector of bits, one for each sector that is stored, and the
// block's data.
//
// # Sizes
//
// A footer says the size twice: in bytes, and as a geometry of cylinders, heads
// and sectors, which can express few sizes. Readers differ in what they
// believe; QEMU decides by the name of the program that made the image. With
// [Exact] the size is what it was asked to be, the geometry is the largest there
// is, which tells readers not to believe it, and QEMU, Azure and Hyper-V all
// take the bytes; this is what qemu-img does with force_size=on. With [Geometry] the size is rounded up to a
// geometry, as qemu-img does by itself, so that Virtual PC sees all of the disk
// too. Azure takes fixed images only, of whole MiB: use Exact and such a size.
package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"cairn/fsbuild/internal/disk"
)

// Kind is how the disk is stored.
type Kind uint8

// Kinds of image.
const (
	Dynamic Kind = iota
	Fixed
)

// Sizing says which size counts, see the package's text.
type Sizing uint8

// Ways to settle the size.
const (
	Exact    Sizing = iota // force_size=on: the size as it is given
	Geometry               // force_size=off: rounded up to cylinders
)

// Options of an image. The zero value is a dynamic image of the exact size.
type Options struct {
	Kind   Kind
	Sizing Sizing
	UUID   [16]byte  // of the image; give each one its own
	Time   time.Time // of creation, up to 2136-02-07; what is before 2000-01-01, when the format's time begins, becomes that
}

// Errors that a caller may test with errors.Is.
var (
	// ErrOption means that an option is out of range.
	ErrOption = errors.New("option not supported by vhd")
	// ErrSize means that the virtual size is no positive multiple of 512, or
	// above MaxSize.
	ErrSize = errors.New("virtual size not supported by vhd")
	// ErrOrder means that a write began before the end of the one before, or
	// left the virtual disk.
	ErrOrder = disk.ErrOrder
	// ErrClosed means that the Writer was closed or aborted.
	ErrClosed = errors.New("vhd writer is closed")
	// ErrCorrupt means that an image is damaged, cut off or no vhd at all.
	ErrCorrupt = errors.New("corrupt vhd image")
	// ErrUnsupported means that an image has a feature that is not read.
	ErrUnsupported = errors.New("vhd feature not supported")
)

// MaxSize is the largest virtual size in bytes, as of QEMU and Hyper-V.
const MaxSize = 2040 << 30

const (
	sectorSize = 512
	footerSize = 512
	headerSize = 1024
	blockSize  = 2 << 20 // of the dynamic images that we write
	bitmapSize = blockSize / sectorSize / 8

	headerOffset = footerSize
	tableOffset  = headerOffset + headerSize

	unused      = 0xffff_ffff           // table entry of a block that is not stored
	noOffset    = 0xffff_ffff_ffff_ffff // where an offset has no meaning
	version     = 0x0001_0000           // of the format, in footer and header
	typeFixed   = 2
	typeDynamic = 3
	typeDiff    = 4
)

// geometry is cylinders, heads and sectors per track.
type geometry struct {
	cylinders    uint16
	heads, track uint8
}

func (g geometry) sectors() int64 {
	return int64(g.cylinders) * int64(g.heads) * int64(g.track)
}

// The geometry's limits, of the format and of BIOS calls.
const (
	maxCylinders = 65535
	maxHeads     = 16
	maxTrack     = 255
	largeTrack   = 63
	maxCHS       = maxCylinders * maxHeads * maxTrack
)

// geometryOf computes the geometry for a number of sectors as the
// specification's appendix does.
func geometryOf(sectors int64) geometry {
	sectors = min(sectors, maxCHS)
	if sectors >= maxCylinders*maxHeads*largeTrack {
		return geometry{uint16(sectors / maxTrack / maxHeads), maxHeads, maxTrack}
	}
	const most = 1024 // cylinders, below the largest tracks
	tracks := sectors / 17
	heads := max(4, (tracks+most-1)/most)
	if tracks < heads*most && heads <= maxHeads {
		return geometry{uint16(tracks / heads), uint8(heads), 17}
	}
	if tracks = sectors / 31; tracks < maxHeads*most {
		return geometry{uint16(tracks / maxHeads), maxHeads, 31}
	}
	return geometry{uint16(sectors / largeTrack / maxHeads), maxHeads, largeTrack}
}

// roundUp finds the smallest size of a geometry that holds so many sectors, as
// QEMU does. What no geometry can hold stays as it is.
func roundUp(sectors int64) int64 {
	if sectors > maxCHS {
		return sectors
	}
	n := sectors
	g := geometryOf(n)
	for g.sectors() < sectors {
		n++
		g = geometryOf(n)
	}
	return g.sectors()
}

// plan settles the sizes of an image.
func (o Options) plan(size int64) (int64, error) {
	switch {
	case o.Kind > Fixed:
		return 0, fmt.Errorf("kind %d: %w", o.Kind, ErrOption)
	case o.Sizing > Geometry:
		return 0, fmt.Errorf("sizing %d: %w", o.Sizing, ErrOption)
	case size <= 0 || size%sectorSize != 0 || size > MaxSize:
		return 0, fmt.Errorf("%d bytes: %w", size, ErrSize)
	}
	if _, err := o.seconds(); err != nil {
		return 0, err
	}
	if o.Sizing == Geometry {
		size = roundUp(size/sectorSize) * sectorSize
	}
	return size, nil
}

// seconds since 2000 began, UTC.
func (o Options) seconds() (uint32, error) {
	s := max(0, o.Time.Unix()-time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Unix())
	if s > 1<<32-1 {
		return 0, fmt.Errorf("time %s: %w", o.Time.UTC().Format(time.RFC3339), ErrOption)
	}
	return uint32(s), nil
}

// footer encodes the footer of an image of size bytes.
func (o Options) footer(size int64) ([]byte, error) {
	seconds, err := o.seconds()
	if err != nil {
		return nil, err
	}
	creator, g := "qem2", geometryOf(maxCHS) // by this name QEMU takes the size in bytes
	if o.Sizing == Geometry {
		creator, g = "qemu", geometryOf(size/sectorSize)
	}
	kind, offset := uint32(typeFixed), uint64(noOffset)
	if o.Kind == Dynamic {
		kind, offset = typeDynamic, headerOffset
	}
	b := make([]byte, footerSize)
	be := binary.BigEndian
	copy(b, "conectix")               // 0: cookie
	be.PutUint32(b[8:], 2)            // 8: features, a reserved bit that is always set
	be.PutUint32(b[12:], version)     // 12: version of the format
	be.PutUint64(b[16:], offset)      // 16: where the header is
	be.PutUint32(b[24:], seconds)     // 24: time of creation
	copy(b[28:], creator)             // 28: program that made it
	be.PutUint32(b[32:], 0x0005_0003) // 32: version of that
	copy(b[36:], "Wi2k")              // 36: its operating system
	be.PutUint64(b[40:], uint64(size))
	be.PutUint64(b[48:], uint64(size)) // 40: size at first; 48: now
	be.PutUint16(b[56:], g.cylinders)  // 56: geometry
	b[58], b[59] = g.heads, g.track
	be.PutUint32(b[60:], kind)
	copy(b[68:], o.UUID[:]) // 64: checksum; 68: identity; 84: no saved state
	be.PutUint32(b[64:], checksum(b, 64))
	return b, nil
}

// header encodes a dynamic image's header.
func header(blocks int64) []byte {
	b := make([]byte, headerSize)
	be := binary.BigEndian
	copy(b, "cxsparse")                  // 0: cookie
	be.PutUint64(b[8:], noOffset)        // 8: nothing follows
	be.PutUint64(b[16:], tableOffset)    // 16: where the table is
	be.PutUint32(b[24:], version)        // 24: version
	be.PutUint32(b[28:], uint32(blocks)) // 28: table entries
	be.PutUint32(b[32:], blockSize)      // 32: block size; 40: no parent
	be.PutUint32(b[36:], checksum(b, 36))
	return b
}

// checksum is the complement of the sum of all bytes but the four at offset
// at, where it is stored.
func checksum(b []byte, at int) uint32 {
	sum := uint32(0)
	for i, c := range b {
		if i < at || i >= at+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

func isPowerOfTwo(n int64) bool { return n > 0 && bits.OnesCount64(uint64(n)) == 1 }
