// Package disk is what the readers and writers of disk containers have in
// common: reading by pieces, runs of data, and a cache of blocks.
package disk

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"cairn/fsbuild/tree"
)

// ErrOffset means that a read began before the start of the disk.
var ErrOffset = errors.New("negative offset")

// ReadAt reads a disk of size bytes into p, as io.ReaderAt asks, with a function
// that reads at least one byte from off to the start of p, or fails. It never
// asks for bytes beyond the disk's end.
func ReadAt(p []byte, off, size int64, piece func(p []byte, off int64) (int, error)) (n int, err error) {
	if off < 0 {
		return 0, ErrOffset
	}
	short := off >= size || int64(len(p)) > size-off
	if short {
		p = p[:max(0, min(int64(len(p)), size-off))]
	}
	for n < len(p) {
		m, err := piece(p[n:], off+int64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	if short {
		return n, io.EOF
	}
	return n, nil
}

// Data joins what status says into runs of data, ascending and disjoint, over a
// disk of size bytes. status tells whether there is data at off, and for how
// many bytes, at least one, the same holds. The last pair may be an error.
func Data(size int64, status func(off int64) (n int64, data bool, err error)) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		var run tree.Extent
		for off := int64(0); off < size; {
			n, data, err := status(off)
			if err != nil {
				yield(tree.Extent{}, err)
				return
			}
			n = min(n, size-off)
			switch {
			case data && run.Len == 0:
				run = tree.Extent{Off: off, Len: n}
			case data:
				run.Len += n
			case run.Len > 0:
				if !yield(run, nil) {
					return
				}
				run = tree.Extent{}
			}
			off += n
		}
		if run.Len > 0 {
			yield(run, nil)
		}
	}
}

// Full reads all of p from a file of size bytes. Bytes that the file lacks are
// an error that wraps io.ErrUnexpectedEOF.
func Full(r io.ReaderAt, size int64, p []byte, off int64) error {
	if off < 0 || off > size || int64(len(p)) > size-off {
		return fmt.Errorf("%d bytes at %d are beyond the file's end at %d: %w", len(p), off, size, io.ErrUnexpectedEOF)
	}
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Cache keeps the blocks that were used last. It may be used concurrently. The
// blocks are shared: nobody may change them.
type Cache struct {
	mu     sync.Mutex
	blocks []cached // the one used last comes first
	limit  int
}

type cached struct {
	key  int64
	data []byte
}

// NewCache returns a cache of limit blocks.
func NewCache(limit int) *Cache { return &Cache{limit: limit} }

// Get returns the block of a key. load makes it when it is not there; for keys
// that are asked for at the same time it may be called more than once.
func (c *Cache) Get(key int64, load func() ([]byte, error)) ([]byte, error) {
	if data := c.find(key); data != nil {
		return data, nil
	}
	data, err := load()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.blocks) < c.limit {
		c.blocks = append(c.blocks, cached{})
	}
	copy(c.blocks[1:], c.blocks)
	c.blocks[0] = cached{key, data}
	return data, nil
}

func (c *Cache) find(key int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, b := range c.blocks {
		if b.key == key {
			copy(c.blocks[1:i+1], c.blocks[:i])
			c.blocks[0] = b
			return b.data
		}
	}
	return nil
}
