// Package qcow2 writes and reads QEMU copy-on-write images. See [Reader] for
// what is read.
//
// A [Writer] makes version 3 (or 2) from a stream of ascending writes: what is
// never written, or written as zeros, takes no cluster. Clusters are compressed
// by parallel workers; the bytes are the same for any number of them. There is
// no backing file, external data file, snapshot, encryption or internal bitmap,
// and a written image is never changed.
//
// The format is specified in QEMU's docs/interop/qcow2.txt (as of QEMU 9). All
// numbers on disk are big-endian. The file is laid out as
//
//	header | L1 table | data, with L2 tables and refcount blocks between | refcount table | last refcount blocks
//
// Unless asked otherwise, deflate streams keep their distances within 4 KiB,
// the window that QEMU's own encoder uses: wider ones happen to be read by QEMU
// itself, but not by readers that inflate in pieces through a window of that
// size.
//
// # Stability
//
// The API may change until version 1 of the module. The bytes for the same
// disk and Options are part of it: a release that writes others says so.
package qcow2

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"cairn/fsbuild/internal/deflate"
	"cairn/fsbuild/internal/disk"
)

// Compression says how data clusters are stored. A cluster that does not
// shrink is stored as it is in every case.
type Compression uint8

// Compression methods.
const (
	Deflate Compression = iota // the format's classic method, read by everything
	Zstd                       // needs version 3 and QEMU 5.1 or later to read
	None                       // no compression
)

// DefaultClusterSize is qemu-img's, in bytes.
const DefaultClusterSize = 64 << 10

// DefaultWindow is the largest distance in deflate streams, in bytes: QEMU
// deflates with a window of 12 bits and promises readers no more.
const DefaultWindow = 4 << 10

// Options change the image from qemu-img's defaults. The zero value is a
// version 3 image with Deflate.
type Options struct {
	Version     int         // 2 or 3; 0 means 3
	ClusterSize int         // bytes, a power of two from 512 to 2 MiB; 0 means DefaultClusterSize
	Compression Compression // method for data clusters
	Window      int         // largest distance in deflate streams, a power of two from 256 to 32 KiB; 0 means DefaultWindow
	Workers     int         // compressing goroutines; 0 means one for each CPU, at most 16. Changes no byte.
}

// Errors that a caller may test with errors.Is.
var (
	// ErrOption means that an option is out of range or excluded by another.
	ErrOption = errors.New("option not supported by qcow2")
	// ErrSize means that the virtual size is no positive multiple of 512, or
	// too large for the cluster size.
	ErrSize = errors.New("virtual size not supported by qcow2")
	// ErrOrder means that a write began before the end of the one before, or
	// left the virtual disk.
	ErrOrder = disk.ErrOrder
	// ErrClosed means that the Writer was closed or aborted.
	ErrClosed = errors.New("qcow2 writer is closed")
)

// Limits of the format and of QEMU (block/qcow2.h).
const (
	minClusterBits  = 9
	maxClusterBits  = 21
	maxL1Bytes      = 32 << 20
	maxRefcountTabs = 8 << 20 // bytes in the refcount table
)

// Bits of L1 and L2 entries.
const (
	copied     uint64 = 1 << 63 // the cluster's refcount is exactly one
	compressed uint64 = 1 << 62 // L2: a compressed cluster descriptor
)

// geometry is what follows from the options and the virtual size.
type geometry struct {
	version     int
	clusterBits int
	clusterSize int64
	compression Compression
	window      int
	virtualSize int64
	l2Entries   int64 // guest clusters in one L2 table
	l1Entries   int64
}

func newGeometry(virtualSize int64, o Options) (geometry, error) {
	if o.Version == 0 {
		o.Version = 3
	}
	if o.ClusterSize == 0 {
		o.ClusterSize = DefaultClusterSize
	}
	g := geometry{
		version:     o.Version,
		clusterBits: bits.Len(uint(o.ClusterSize)) - 1,
		clusterSize: int64(o.ClusterSize),
		compression: o.Compression,
		window:      cmp.Or(o.Window, DefaultWindow),
		virtualSize: virtualSize,
		l2Entries:   int64(o.ClusterSize) / 8,
	}
	if err := g.check(o); err != nil {
		return geometry{}, err
	}
	perTable := g.clusterSize * g.l2Entries
	g.l1Entries = (virtualSize-1)/perTable + 1
	if g.l1Entries*8 > maxL1Bytes {
		return geometry{}, fmt.Errorf("%d bytes with clusters of %d bytes: %w", virtualSize, g.clusterSize, ErrSize)
	}
	return g, nil
}

func (g geometry) check(o Options) error {
	switch {
	case o.Version != 2 && o.Version != 3:
		return fmt.Errorf("version %d: %w", o.Version, ErrOption)
	case o.ClusterSize < 0 || bits.OnesCount(uint(o.ClusterSize)) != 1 ||
		g.clusterBits < minClusterBits || g.clusterBits > maxClusterBits:
		return fmt.Errorf("cluster size %d: %w", o.ClusterSize, ErrOption)
	case o.Compression > None:
		return fmt.Errorf("compression %d: %w", o.Compression, ErrOption)
	case o.Compression == Zstd && o.Version == 2:
		return fmt.Errorf("zstd in version 2: %w", ErrOption)
	case bits.OnesCount(uint(g.window)) != 1 || g.window < deflate.MinWindow || g.window > deflate.MaxWindow:
		return fmt.Errorf("window of %d bytes: %w", g.window, ErrOption)
	case o.Workers < 0:
		return fmt.Errorf("%d workers: %w", o.Workers, ErrOption)
	case g.virtualSize <= 0 || g.virtualSize%512 != 0:
		return fmt.Errorf("%d bytes: %w", g.virtualSize, ErrSize)
	}
	return nil
}

// l1Clusters is the number of clusters that the L1 table takes.
func (g geometry) l1Clusters() int64 {
	return (g.l1Entries*8 + g.clusterSize - 1) / g.clusterSize
}

// descriptor is the L2 entry of a compressed cluster of size bytes at offset:
// the offset in the low bits, above it the number of further 512-byte sectors
// that the data touches.
func (g geometry) descriptor(offset, size int64) uint64 {
	further := (offset+size-1)>>9 - offset>>9
	return compressed | uint64(further)<<(62-(g.clusterBits-8)) | uint64(offset)
}

// Header lengths. The fields after offset 72 exist from version 3 on; the
// compression type follows the 104 bytes that every version 3 has.
const (
	headerLen2    = 72
	headerLen3    = 104
	headerLenZstd = 112
)

// header encodes the first bytes of the image.
func (g geometry) header(refTableOffset, refTableClusters int64) []byte {
	b := make([]byte, headerLenZstd)
	be := binary.BigEndian
	copy(b, "QFI\xfb")                             // 0: magic
	be.PutUint32(b[4:], uint32(g.version))         // 4: version
	be.PutUint32(b[20:], uint32(g.clusterBits))    // 8..19: no backing file; 20: cluster_bits
	be.PutUint64(b[24:], uint64(g.virtualSize))    // 24: size
	be.PutUint32(b[36:], uint32(g.l1Entries))      // 32: no encryption; 36: l1_size
	be.PutUint64(b[40:], uint64(g.clusterSize))    // 40: l1_table_offset
	be.PutUint64(b[48:], uint64(refTableOffset))   // 48: refcount_table_offset
	be.PutUint32(b[56:], uint32(refTableClusters)) // 56: refcount_table_clusters; 60..71: no snapshots
	if g.version == 2 {
		return b[:headerLen2]
	}
	be.PutUint32(b[96:], 4) // 72..95: features; 96: refcount_order, 1<<4 bits
	length := headerLen3
	if g.compression == Zstd {
		be.PutUint64(b[72:], 1<<3) // incompatible feature: compression type
		b[104] = 1                 // compression_type zstd
		length = headerLenZstd
	}
	be.PutUint32(b[100:], uint32(length)) // 100: header_length
	return b[:length]
}
