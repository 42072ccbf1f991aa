package tar

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"sync"

	"cairn/fsbuild/internal/contents"
	"cairn/fsbuild/tree"
)

// file is a content in an archive.
type file struct {
	src    io.ReaderAt
	off    int64 // of the data, or of the headers when sparse
	size   int64
	sparse bool
}

// large is a content that may have holes.
type large struct {
	file
	once sync.Once
	data []tree.Extent
	err  error
}

var (
	_ tree.Content = (*file)(nil)
	_ tree.Sparse  = (*large)(nil)
)

// section reads a part of the archive. It can seek.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

// Open returns a reader from the archive.
func (f *file) Open() (io.ReadCloser, error) {
	if !f.sparse {
		return section{io.NewSectionReader(f.src, f.off, f.size)}, nil
	}
	tr := tar.NewReader(io.NewSectionReader(f.src, f.off, 1<<62-f.off))
	h, err := tr.Next()
	switch {
	case err != nil && !errors.Is(err, tar.ErrInsecurePath):
		return nil, fmt.Errorf("read sparse file: %w", err)
	case h.Size != f.size:
		return nil, fmt.Errorf("read sparse file: the archive changed: it has %d bytes, not %d", h.Size, f.size)
	}
	return io.NopCloser(tr), nil
}

// Data finds the runs that are not holes, by the rule of package contents,
// whether the archive has them as holes or not.
func (l *large) Data() ([]tree.Extent, error) {
	l.once.Do(func() { l.data, l.err = l.search() })
	return l.data, l.err
}

func (l *large) search() ([]tree.Extent, error) {
	r, err := l.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	at, ok := r.(io.ReaderAt)
	if !ok {
		at = &forward{r: r}
	}
	return contents.FindData(at, l.size, nil)
}

// forward is an io.ReaderAt for ascending ranges of what can only be read in
// order.
type forward struct {
	r   io.Reader
	off int64
}

func (f *forward) ReadAt(b []byte, off int64) (int, error) {
	skipped, err := io.CopyN(io.Discard, f.r, off-f.off)
	f.off += skipped
	if err != nil {
		return 0, err
	}
	n, err := io.ReadFull(f.r, b)
	f.off += int64(n)
	return n, err
}

// window reads ahead and can seek within what it read, so that headers cost
// few reads and data that is not wanted costs none. off is where the reader of
// it is.
type window struct {
	r     *io.SectionReader
	buf   [64 << 10]byte
	start int64 // of buf
	n     int   // bytes in buf
	off   int64
}

// Read implements io.Reader.
func (w *window) Read(b []byte) (int, error) {
	if w.off < w.start || w.off >= w.start+int64(w.n) {
		n, err := w.r.ReadAt(w.buf[:], w.off)
		if w.start, w.n = w.off, n; n == 0 {
			return 0, err
		}
	}
	n := copy(b, w.buf[w.off-w.start:w.n])
	w.off += int64(n)
	return n, nil
}

// Seek implements io.Seeker for the origins that archive/tar uses.
func (w *window) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekCurrent {
		offset += w.off
	}
	if whence == io.SeekEnd || offset < 0 {
		return w.off, errors.New("seek: not within the archive")
	}
	w.off = offset
	return offset, nil
}
