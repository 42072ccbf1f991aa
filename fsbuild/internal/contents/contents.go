// Package contents copies contents of a tree into archives, and makes sure
// that each is exactly as long as its node says.
package contents

import (
	"errors"
	"fmt"
	"io"

	"cairn/fsbuild/tree"
)

// ErrChanged is the cause when a content is not as long as its node says.
var ErrChanged = errors.New("content changed while it was read")

// BufferSize is a good length for the buffer of Copy, in bytes.
const BufferSize = 256 << 10

// Copy writes the content of a regular file: n.Size bytes or an error. buf is
// scratch of at least two bytes.
func Copy(w io.Writer, n *tree.Node, buf []byte) error {
	if n.Size == 0 && n.Content == nil {
		return nil
	}
	r, err := Open(n)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		k, rerr := r.Read(buf)
		if _, werr := w.Write(buf[:k]); werr != nil {
			return werr
		}
		if errors.Is(rerr, io.EOF) {
			return nil
		}
		if rerr != nil {
			return rerr
		}
	}
}

// Reader yields a content. Read fills the whole slice, which is not empty,
// except at the end; that it reports with io.EOF, together with the last bytes
// or alone, and only when exactly Size bytes were read.
type Reader struct {
	r    io.ReadCloser
	size int64
	off  int64
	err  error
}

// Open opens the content of a regular file, which may be nil when it is empty.
func Open(n *tree.Node) (*Reader, error) {
	if n.Content == nil {
		return &Reader{err: io.EOF}, nil
	}
	r, err := n.Content.Open()
	if err != nil {
		return nil, err
	}
	return &Reader{r: r, size: n.Size}, nil
}

// Read implements io.Reader as the type says.
func (r *Reader) Read(b []byte) (n int, err error) {
	if r.err != nil {
		return 0, r.err
	}
	for idle := 0; n < len(b) && r.err == nil; idle++ {
		var k int
		k, r.err = r.r.Read(b[n:])
		n += k
		if k > 0 {
			idle = 0
		} else if idle > 100 {
			r.err = io.ErrNoProgress
		}
	}
	switch left := r.size - r.off - int64(n); {
	case left < 0:
		n = int(r.size - r.off)
		r.err = fmt.Errorf("%w: it has more than %d bytes", ErrChanged, r.size)
	case errors.Is(r.err, io.EOF) && left > 0:
		r.err = fmt.Errorf("%w: it has %d bytes, not %d", ErrChanged, r.off+int64(n), r.size)
	}
	r.off += int64(n)
	return n, r.err
}

// Close closes the content.
func (r *Reader) Close() error {
	if r.r == nil {
		return nil
	}
	return r.r.Close()
}
