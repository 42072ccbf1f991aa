package vfat

import (
	"io"

	"cairn/fsbuild/tree"
)

// content is the content of a file of an image, of at least one byte.
type content struct {
	im    *image
	start uint32
	size  int64
}

var _ tree.Content = (*content)(nil)

// Open returns a reader that fails with [ErrDamaged] where the chain of
// clusters does, or when that is not as long as the size says.
func (c *content) Open() (io.ReadCloser, error) {
	return &contentReader{im: c.im, fat: newFATReader(c.im), cluster: c.start, left: c.size}, nil
}

// contentReader reads a chain of clusters.
type contentReader struct {
	im      *image
	fat     *fatReader
	cluster uint32 // that the next byte is in
	skip    int64  // bytes of it that were read
	left    int64  // bytes of the file
	err     error
}

// Close does nothing.
func (r *contentReader) Close() error { return nil }

// Read reads from adjacent clusters at once.
func (r *contentReader) Read(b []byte) (int, error) {
	if r.left == 0 && r.err == nil {
		r.err = io.EOF
	}
	if r.err != nil || len(b) == 0 {
		return 0, r.err
	}
	offset := r.im.geo.offset(r.cluster) + r.skip
	n, err := r.take(min(int64(len(b)), r.left))
	if err == nil {
		err = readAt(r.im.r, b[:n], offset, r.im.size)
	}
	if err != nil {
		r.err = err
		return 0, err
	}
	return int(n), nil
}

// take goes on by as many bytes as are adjacent, at most want, which the file
// has. With the last byte of the file the chain must end; no cycle does.
func (r *contentReader) take(want int64) (n int64, err error) {
	size := int64(r.im.geo.clusterSize())
	for {
		k := min(want-n, size-r.skip)
		n, r.skip, r.left = n+k, r.skip+k, r.left-k
		if r.skip < size && r.left > 0 {
			return n, nil
		}
		next, err := r.fat.next(r.cluster)
		switch {
		case err != nil:
			return 0, err
		case r.left > 0 && next == 0:
			return 0, damaged("the chain of clusters ends %d bytes before the file", r.left)
		case r.left == 0 && next != 0:
			return 0, damaged("the chain of clusters goes on behind the file")
		}
		adjacent := next == r.cluster+1
		r.cluster, r.skip = next, 0
		if !adjacent || n == want {
			return n, nil
		}
	}
}
