package vmdk

import (
	"encoding/binary"
	"fmt"
	"hash/adler32"
	"io"

	"cairn/fsbuild/internal/deflate"
	"cairn/fsbuild/internal/disk"
)

// Writer makes one image. Its methods must not be called concurrently.
//
// WriteAt copies into grains; full ones go to workers, which compress them, and
// in the order of the disk to one committer, which gives them their place in
// the file and writes them. All memory is in a fixed number of grains, at most
// 16 MiB, in the encoders, and in the directory: 4 bytes for each 32 MiB of the
// disk.
type Writer struct {
	grains *disk.Blocks
	commit *committer
}

// buffered is the number of bytes that grains in flight may take.
const buffered = 16 << 20

// NewWriter starts an image of a disk of size bytes, a positive multiple of 512
// up to MaxSize, in w, which must be empty (or read as zeros). Close or Abort
// must be called.
func NewWriter(w io.WriterAt, size int64, o Options) (*Writer, error) {
	g, err := newGeometry(size, o)
	if err != nil {
		return nil, fmt.Errorf("write vmdk: %w", err)
	}
	encode := make([]func(*disk.Block) error, disk.Workers(o.Workers))
	for i := range encode {
		if encode[i], err = newEncoding(g.kind); err != nil {
			return nil, fmt.Errorf("write vmdk: %w", err)
		}
	}
	c := newCommitter(w, g)
	return &Writer{commit: c, grains: disk.NewBlocks(disk.BlocksOptions{
		What: "write vmdk", Closed: ErrClosed, Size: size, BlockSize: grainSize, Buffered: buffered, Container: c, Encode: encode,
	})}, nil
}

// newEncoding returns a worker's function, which makes what goes into the file.
// A stream's grain is its marker and a zlib stream (RFC 1950), in whole sectors.
func newEncoding(kind Kind) (func(*disk.Block) error, error) {
	if kind == MonolithicSparse {
		return func(c *disk.Block) error {
			c.Stored = c.Data
			return nil
		}, nil
	}
	e, err := deflate.NewEncoder(deflate.MaxWindow)
	return func(c *disk.Block) error {
		c.Packed = appendGrain(c.Packed[:0], e, c)
		c.Stored = c.Packed
		return nil
	}, err
}

func appendGrain(b []byte, e *deflate.Encoder, c *disk.Block) []byte {
	const grainMarker = 12
	b = binary.LittleEndian.AppendUint64(b, uint64(c.Index*grainSectors))
	b = append(b, 0, 0, 0, 0, 0x78, 0x9c) // the size comes below; deflate with 32 KiB
	b = e.Encode(b, c.Data)
	b = binary.BigEndian.AppendUint32(b, adler32.Checksum(c.Data))
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-grainMarker))
	b = append(b, make([]byte, -len(b)&(sectorSize-1))...)
	return b
}

// WriteAt implements io.WriterAt for ascending, non-overlapping ranges. It
// keeps no reference to p. An error of the output comes at a later call.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) { return w.grains.WriteAt(p, off) }

// Close writes what is left and the tables. The image is complete, if not yet
// synced, when Close returns nil.
func (w *Writer) Close() error { return w.grains.Close() }

// Abort ends the goroutines and leaves the output as it is, which is no valid
// image. After Close it does nothing.
func (w *Writer) Abort() { w.grains.Abort() }

// Size returns the size of the file in bytes after Close.
func (w *Writer) Size() int64 { return w.commit.next * sectorSize }
