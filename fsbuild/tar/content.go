package tar

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"sync"

	"cairn/fsbuild/tree"
)

// Files from holesFrom bytes on are searched for holes: units of holeUnit
// bytes that are all zero, whether the archive has them as holes or not. It is
// the rule of package dir, so that the same bytes make the same image.
const (
	holesFrom = 1 << 20
	holeUnit  = 64 << 10
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

// Data reads the file once and returns what is not zero.
func (l *large) Data() ([]tree.Extent, error) {
	l.once.Do(func() { l.data, l.err = l.search() })
	return l.data, l.err
}

func (l *large) search() (data []tree.Extent, err error) {
	r, err := l.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	buf := make([]byte, holeUnit)
	for off := int64(0); off < l.size; off += holeUnit {
		b := buf[:min(holeUnit, l.size-off)]
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, fmt.Errorf("search for holes: %w", err)
		}
		switch last := len(data) - 1; {
		case isZero(b):
		case last >= 0 && data[last].Off+data[last].Len == off:
			data[last].Len += int64(len(b))
		default:
			data = append(data, tree.Extent{Off: off, Len: int64(len(b))})
		}
	}
	return data, nil
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
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
