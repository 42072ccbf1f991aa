// Package vmdk writes and reads VMware disk images (.vmdk) that are one file:
// streamOptimized ones, whose grains are compressed, for OVF packages and
// imports into ESXi, and monolithicSparse ones, for VMware Workstation. Grains
// of zeros take no room. What consists of several files, or of a text that names
// others (monolithicFlat, the twoGbMaxExtent and vmfs types), images with a
// parent, and the older COWD format are neither written nor read.
//
// The format is specified in VMware's "Virtual Disk Format 5.0" (version 1.1 of
// the technical note). All numbers on disk are little-endian, offsets and sizes
// count sectors of 512 bytes. The files are laid out as
//
//	sparse: header | descriptor | spare directory and tables | directory and tables | grains
//	stream: header | descriptor | grains, each table behind its own | directory | footer | end
//
// A grain is 64 KiB of the disk, a table says where 512 grains are, and the
// directory where the tables are. In a stream everything behind the descriptor
// has a marker before it, so that it can be read from a pipe. OpenStack's Glance
// is not content with a stream, since it does not look for the footer: there use
// a sparse image.
package vmdk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"cairn/fsbuild/internal/disk"
)

// Kind is how the disk is stored.
type Kind uint8

// Kinds of image, by the name that the descriptor gives them.
const (
	StreamOptimized Kind = iota
	MonolithicSparse
)

// Options of an image. The zero value is a stream.
type Options struct {
	Kind    Kind
	CID     uint32 // content id: give images of other contents another one; 0 and 0xffffffff have a meaning of their own and become 1
	Workers int    // compressing goroutines; 0 means one for each CPU, at most 16. Changes no byte.
}

// Errors that a caller may test with errors.Is.
var (
	// ErrOption means that an option is out of range.
	ErrOption = errors.New("option not supported by vmdk")
	// ErrSize means that the virtual size is no positive multiple of 512 or
	// above MaxSize, or that the file would be larger than 2 TiB.
	ErrSize = errors.New("size not supported by vmdk")
	// ErrOrder means that a write began before the end of the one before, or
	// left the virtual disk.
	ErrOrder = disk.ErrOrder
	// ErrClosed means that the Writer was closed or aborted.
	ErrClosed = errors.New("vmdk writer is closed")
	// ErrCorrupt means that an image is damaged, cut off or no vmdk at all.
	ErrCorrupt = errors.New("corrupt vmdk image")
	// ErrUnsupported means that an image has a feature that is not read.
	ErrUnsupported = errors.New("vmdk feature not supported")
)

// MaxSize is the largest virtual size in bytes that we write.
const MaxSize = 62 << 40

const (
	sectorSize   = 512
	grainSize    = 64 << 10 // of the images that we write
	grainSectors = grainSize / sectorSize
	tableEntries = 512
	tableSectors = tableEntries * 4 / sectorSize
	perTable     = tableEntries * grainSize

	descriptorAt      = 1
	descriptorSectors = 20
	tablesAt          = descriptorAt + descriptorSectors

	directoryAtEnd = 0xffff_ffff_ffff_ffff // in a stream's header: see the footer
	maxSector      = 1<<32 - 1             // that a table entry can name
	noParent       = 0xffff_ffff
)

// Flags of the header.
const (
	flagNewlines   = 1 << 0 // the newline bytes in the header are to be checked
	flagSpare      = 1 << 1 // there is a spare directory
	flagZeroGrains = 1 << 2 // a table entry of 1 is a grain of zeros
	flagCompressed = 1 << 16
	flagMarkers    = 1 << 17
)

// Kinds of marker.
const (
	markEnd       = 0
	markTable     = 1
	markDirectory = 2
	markFooter    = 3
)

// geometry is what follows from the virtual size.
type geometry struct {
	kind    Kind
	size    int64 // of the virtual disk, in bytes
	tables  int64
	cid     uint32
	spareAt int64 // sectors, of a sparse image
	dirAt   int64
	dataAt  int64
}

func newGeometry(size int64, o Options) (geometry, error) {
	switch {
	case o.Kind > MonolithicSparse:
		return geometry{}, fmt.Errorf("kind %d: %w", o.Kind, ErrOption)
	case o.Workers < 0:
		return geometry{}, fmt.Errorf("%d workers: %w", o.Workers, ErrOption)
	case size <= 0 || size%sectorSize != 0 || size > MaxSize:
		return geometry{}, fmt.Errorf("%d bytes: %w", size, ErrSize)
	}
	g := geometry{kind: o.Kind, size: size, tables: (size + perTable - 1) / perTable, cid: o.CID}
	if g.cid == 0 || g.cid == noParent {
		g.cid = 1
	}
	if g.kind == StreamOptimized {
		g.dataAt = grainSectors
		return g, nil
	}
	both := g.dirSectors() + g.tables*tableSectors
	g.spareAt = tablesAt
	g.dirAt = g.spareAt + both
	g.dataAt = (g.dirAt + both + grainSectors - 1) / grainSectors * grainSectors
	if g.dataAt > maxSector {
		return geometry{}, fmt.Errorf("%d bytes: %w", size, ErrSize)
	}
	return g, nil
}

// dirSectors is the length of the directory.
func (g geometry) dirSectors() int64 { return (g.tables*4 + sectorSize - 1) / sectorSize }

// header encodes the header, or a stream's footer, where the directory is at
// dirAt.
func (g geometry) header(dirAt uint64) []byte {
	flags, version := uint32(flagNewlines|flagSpare), uint32(1)
	if g.kind == StreamOptimized {
		flags, version = flagNewlines|flagCompressed|flagMarkers, 3
	}
	b := make([]byte, sectorSize)
	le := binary.LittleEndian
	copy(b, "KDMV")                                 // 0: magic
	le.PutUint32(b[4:], version)                    // 4: version
	le.PutUint32(b[8:], flags)                      // 8: flags
	le.PutUint64(b[12:], uint64(g.size/sectorSize)) // 12: capacity
	le.PutUint64(b[20:], grainSectors)              // 20: grain size
	le.PutUint64(b[28:], descriptorAt)              // 28: where the descriptor is
	le.PutUint64(b[36:], descriptorSectors)         // 36: and how long
	le.PutUint32(b[44:], tableEntries)              // 44: entries of a table
	le.PutUint64(b[48:], uint64(g.spareAt))         // 48: spare directory
	le.PutUint64(b[56:], dirAt)                     // 56: directory
	le.PutUint64(b[64:], uint64(g.dataAt))          // 64: where grains begin
	copy(b[73:], "\n \r\n")                         // 72: shut down cleanly; 73: newlines, which a transfer as text would damage
	if g.kind == StreamOptimized {
		le.PutUint16(b[77:], 1) // 77: compression deflate
	}
	return b
}

// descriptor is the text that says what the image is.
func (g geometry) descriptor() []byte {
	kind := "streamOptimized"
	if g.kind == MonolithicSparse {
		kind = "monolithicSparse"
	}
	const heads, track = 255, 63 // what VMware gives a SCSI disk
	cylinders := max(1, min(65535, g.size/sectorSize/heads/track))
	text := fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=%08x
parentCID=ffffffff
createType="%s"

# Extent description
RW %d SPARSE "disk.vmdk"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "%d"
ddb.geometry.sectors = "%d"
ddb.adapterType = "lsilogic"
`, g.cid, kind, g.size/sectorSize, cylinders, heads, track)
	return append([]byte(text), make([]byte, descriptorSectors*sectorSize-len(text))...)
}

// marker encodes the sector before metadata of so many sectors.
func marker(kind uint32, sectors int64) []byte {
	b := make([]byte, sectorSize)
	binary.LittleEndian.PutUint64(b, uint64(sectors))
	binary.LittleEndian.PutUint32(b[12:], kind) // 8: size, zero for all but grains
	return b
}
