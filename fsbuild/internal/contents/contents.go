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

// BufferSize is how much an [Output] gathers, in bytes.
const BufferSize = 256 << 10

// leastRead is the room in the buffer that is worth a read.
const leastRead = 4 << 10

// Output gathers what an archive consists of. Contents are read straight into
// its buffer.
type Output struct {
	Size int64 // of all that was written, in bytes

	w   io.Writer
	buf []byte
	n   int // bytes in buf
}

// NewOutput returns an Output to w, which Flush must end.
func NewOutput(w io.Writer) *Output { return &Output{w: w, buf: make([]byte, BufferSize)} }

// Write implements io.Writer.
func (o *Output) Write(b []byte) (n int, err error) {
	for n < len(b) {
		if o.n == len(o.buf) {
			if err := o.Flush(); err != nil {
				return n, err
			}
		}
		k := copy(o.buf[o.n:], b[n:])
		o.add(k)
		n += k
	}
	return n, nil
}

func (o *Output) add(n int) {
	o.n += n
	o.Size += int64(n)
}

// Copy writes the content of a regular file: n.Size bytes or an error.
func (o *Output) Copy(n *tree.Node) error {
	if n.Size == 0 && n.Content == nil {
		return nil
	}
	r, err := Open(n)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		if len(o.buf)-o.n < leastRead {
			if err := o.Flush(); err != nil {
				return err
			}
		}
		k, err := r.Read(o.buf[o.n:])
		o.add(k)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Flush writes what was gathered.
func (o *Output) Flush() error {
	k, err := o.w.Write(o.buf[:o.n])
	if err == nil && k < o.n {
		err = io.ErrShortWrite
	}
	o.n = 0
	return err
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
