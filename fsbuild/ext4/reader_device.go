package ext4

import (
	"errors"
	"fmt"
	"io"
)

// device reads bytes of a file system, as they are after the journal's
// recovery.
type device struct {
	r         io.ReaderAt
	size      int64 // in bytes
	blockSize int64
	replayed  map[uint64]logged // by block: what the journal has instead
}

// logged says where the journal keeps a block.
type logged struct {
	block   uint64 // of the file system
	escaped bool   // its first bytes were the journal's magic number
}

// source is what metadata is read from.
type source interface {
	read(b []byte, off int64) error
}

// read fills b from an offset.
func (d *device) read(b []byte, off int64) error {
	if err := d.raw(b, off); err != nil || len(d.replayed) == 0 {
		return err
	}
	end := off + int64(len(b))
	for block := off / d.blockSize; block*d.blockSize < end; block++ {
		l, ok := d.replayed[uint64(block)]
		if !ok {
			continue
		}
		start := block * d.blockSize
		from, to := max(start, off), min(start+d.blockSize, end)
		part := b[from-off : to-off]
		if err := d.raw(part, int64(l.block)*d.blockSize+from-start); err != nil {
			return err
		}
		if l.escaped && from-start < int64(len(journalMagic)) {
			copy(part, journalMagic[from-start:])
		}
	}
	return nil
}

// raw reads without the journal's blocks.
func (d *device) raw(b []byte, off int64) error {
	if off < 0 || off > d.size || int64(len(b)) > d.size-off {
		return corrupt("%d bytes at offset %d are beyond the end at %d", len(b), off, d.size)
	}
	n, err := d.r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at offset %d: %w", len(b), off, err)
}

// Sizes of the cache for inode tables and descriptors.
const (
	cacheChunk  = 64 << 10
	cacheChunks = 32
)

// chunkCache remembers what was read last.
type chunkCache struct {
	dev    *device
	chunks map[int64][]byte // by number
	order  [cacheChunks]int64
	next   int // in order: what is forgotten next
}

func newChunkCache(d *device) *chunkCache {
	c := &chunkCache{dev: d, chunks: map[int64][]byte{}}
	for i := range c.order {
		c.order[i] = -1
	}
	return c
}

func (c *chunkCache) read(b []byte, off int64) error {
	for len(b) > 0 {
		if off < 0 || off >= c.dev.size {
			return corrupt("%d bytes at offset %d are beyond the end at %d", len(b), off, c.dev.size)
		}
		chunk, err := c.chunk(off / cacheChunk)
		if err != nil {
			return err
		}
		n := copy(b, chunk[off%cacheChunk:])
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func (c *chunkCache) chunk(k int64) ([]byte, error) {
	if b, ok := c.chunks[k]; ok {
		return b, nil
	}
	b := c.chunks[c.order[c.next]]
	delete(c.chunks, c.order[c.next])
	if b = b[:cap(b)]; len(b) == 0 {
		b = make([]byte, cacheChunk)
	}
	c.order[c.next] = -1
	b = b[:min(cacheChunk, c.dev.size-k*cacheChunk)]
	if err := c.dev.read(b, k*cacheChunk); err != nil {
		return nil, err
	}
	c.chunks[k] = b
	c.order[c.next] = k
	c.next = (c.next + 1) % cacheChunks
	return b, nil
}
