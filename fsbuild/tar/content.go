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
	src    *io.SectionReader
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
