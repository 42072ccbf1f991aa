package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"

	"cairn/fsbuild/tree"
)

// storedContent is the content of a regular file in blocks. Its map is read
// anew by each Open and Data, so that a tree of many files stays small.
type storedContent struct {
	r *Reader
	m mapping
}

var (
	_ tree.Content = (*storedContent)(nil)
	_ tree.Sparse  = (*storedContent)(nil)
)

func (c *storedContent) blockMap() ([]mapped, error) {
	runs, err := c.r.blockMap(&c.m, uint64((c.m.size+c.r.dev.blockSize-1)/c.r.dev.blockSize), map[uint64]struct{}{})
	if err != nil {
		return nil, fmt.Errorf("read ext4: %w", err)
	}
	return runs, nil
}

// Open reads the file's block map. The reader seeks, too.
func (c *storedContent) Open() (io.ReadCloser, error) {
	runs, err := c.blockMap()
	if err != nil {
		return nil, err
	}
	return &contentReader{c: c, runs: runs}, nil
}

// Data returns the runs that have blocks with data: what the image's own file
// system stores, so that a copy has the same holes.
func (c *storedContent) Data() ([]tree.Extent, error) {
	runs, err := c.blockMap()
	if err != nil {
		return nil, err
	}
	return dataExtents(runs, c.r.dev.blockSize, c.m.size), nil
}

// contentReader reads one file.
type contentReader struct {
	c      *storedContent
	runs   []mapped
	at     int // in runs: the first that ends after off
	off    int64
	closed bool
}

// Read reads data and holes until b is full or the file ends.
func (r *contentReader) Read(b []byte) (int, error) {
	if r.closed {
		return 0, fs.ErrClosed
	}
	done := 0
	for done < len(b) && r.off < r.c.m.size {
		n, err := r.part(b[done:])
		if err != nil {
			return done, fmt.Errorf("read ext4: inode %d: %w", r.c.m.number, err)
		}
		done += n
		r.off += int64(n)
	}
	if done == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return done, nil
}

// part reads from one run or one hole.
func (r *contentReader) part(b []byte) (int, error) {
	size := r.c.r.dev.blockSize
	for r.at < len(r.runs) && int64(r.runs[r.at].logical+r.runs[r.at].count)*size <= r.off {
		r.at++
	}
	end := r.c.m.size
	if r.at == len(r.runs) {
		b = b[:min(int64(len(b)), end-r.off)]
		clear(b)
		return len(b), nil
	}
	m := r.runs[r.at]
	start := int64(m.logical) * size
	if r.off < start {
		b = b[:min(int64(len(b)), start-r.off)]
		clear(b)
		return len(b), nil
	}
	end = min(end, start+int64(m.count)*size)
	b = b[:min(int64(len(b)), end-r.off)]
	return len(b), r.c.r.dev.read(b, int64(m.block)*size+r.off-start)
}

// Seek moves within the file, or to its end.
func (r *contentReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.c.m.size
	default:
		return r.off, errors.New("read ext4: seek: unknown origin")
	}
	if offset < 0 || offset > r.c.m.size {
		return r.off, errors.New("read ext4: seek: not within the file")
	}
	r.off = offset
	size := r.c.r.dev.blockSize
	r.at = sort.Search(len(r.runs), func(i int) bool { return int64(r.runs[i].logical+r.runs[i].count)*size > offset })
	return offset, nil
}

// Close ends reading.
func (r *contentReader) Close() error {
	if r.closed {
		return fs.ErrClosed
	}
	r.closed = true
	return nil
}

// inlineContent is the content of a file that goes on with a hole after what
// its inode holds.
type inlineContent struct {
	data []byte
	size int64
}

var _ tree.Sparse = (*inlineContent)(nil)

// Open returns a reader over data and hole.
func (c *inlineContent) Open() (io.ReadCloser, error) {
	hole := io.LimitReader(zeroReader{}, c.size-int64(len(c.data)))
	return io.NopCloser(io.MultiReader(bytes.NewReader(c.data), hole)), nil
}

// Data returns what is not the hole at the end, unless it is all zero.
func (c *inlineContent) Data() ([]tree.Extent, error) {
	if len(bytes.Trim(c.data, "\x00")) == 0 {
		return nil, nil
	}
	return []tree.Extent{{Len: int64(len(c.data))}}, nil
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
