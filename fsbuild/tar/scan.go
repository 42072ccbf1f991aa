package tar

import (
	"archive/tar"
	"errors"
	"io"

	"cairn/fsbuild/tree"
)

// scanner goes through the entries of one archive. The headers that almost all
// archives consist of are parsed here. From the beginning of every other entry
// on archive/tar parses: sparse files, global headers, what only old programs
// wrote, the end of the archive, and all that is damaged. So nothing is
// accepted that archive/tar does not accept.
type scanner struct {
	in    window
	isCut bool // the padding behind the last content may be missing

	parser
	rare  *tar.Reader // of the entry, if archive/tar parsed it
	start int64       // of its headers
	data  int64       // of its content
	end   int64       // of its content
}

func newScanner(src *io.SectionReader, isCut bool) *scanner {
	return &scanner{in: window{r: src, ahead: leastAhead / 2}, isCut: isCut}
}

// next returns the header of the next entry, which the call after it reuses, or
// io.EOF. The content of a sparse one must be skipped before.
func (s *scanner) next() (h *tar.Header, err error) {
	s.start = padded(s.end)
	if s.rare = nil; s.usual() {
		h = &s.head
	} else if h, err = s.other(); err != nil {
		return nil, err
	}
	if s.data, s.end = s.in.off, s.in.off; types[h.Typeflag] == tree.Regular {
		s.end += min(h.Size, s.in.r.Size()) // does not overflow, and is beyond the archive if it should be
	}
	return h, nil
}

// usual parses the entry at start, if it can, and goes on to its data.
func (s *scanner) usual() bool {
	s.parser = parser{}
	for off := s.start; ; {
		b, ok := s.in.bytes(off, blockSize)
		if !ok || !s.block((*[blockSize]byte)(b)) {
			return false
		}
		off += blockSize
		switch t := s.head.Typeflag; {
		case t == 0 || types[t] != 0 && t != tar.TypeGNUSparse || t == tar.TypeLink:
			s.in.off = off
			return s.last((*[blockSize]byte)(b))
		case t == tar.TypeXHeader || t == tar.TypeGNULongName || t == tar.TypeGNULongLink:
			data, ok := s.in.bytes(off, s.head.Size)
			if !ok || !s.before(t, data) {
				return false
			}
			off += padded(s.head.Size)
		default:
			return false
		}
	}
}

// other has archive/tar parse what is at start, if the archive reaches there.
func (s *scanner) other() (*tar.Header, error) {
	if s.start > s.in.r.Size() && !s.isCut {
		return nil, io.ErrUnexpectedEOF
	}
	if s.data < s.end { // there is a last byte
		if _, ok := s.in.bytes(s.end-1, 1); !ok {
			return nil, io.ErrUnexpectedEOF
		}
	}
	s.in.off = s.start
	s.rare = tar.NewReader(&s.in)
	h, err := s.rare.Next()
	if errors.Is(err, tar.ErrInsecurePath) { // names are checked elsewhere
		err = nil
	}
	return h, err
}

// skipSparse reads the content of a sparse entry, to see that it is sound and
// where it ends.
func (s *scanner) skipSparse() error {
	_, err := io.Copy(io.Discard, s.rare)
	s.end = s.in.off
	return err
}

// padded rounds a size up to whole blocks.
func padded(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

// window reads ahead: little behind what was skipped, and more the longer
// headers follow each other. off is where Read continues.
type window struct {
	r     *io.SectionReader
	buf   [64 << 10]byte
	start int64 // of buf
	n     int64 // bytes in buf
	ahead int64 // bytes to read
	off   int64
}

// leastAhead is what a window reads first. Headers of an entry with an extended
// header are three blocks.
const leastAhead = 8 << 10

// fill reads at least n bytes from off on, if they are there.
func (w *window) fill(off, n int64) error {
	if w.start <= off && off <= w.start+w.n {
		w.ahead = min(2*w.ahead, int64(len(w.buf)))
	} else {
		w.ahead = leastAhead
	}
	k, err := w.r.ReadAt(w.buf[:max(n, w.ahead)], off)
	w.start, w.n = off, int64(k)
	return err
}

// bytes returns n bytes from off on, if they are there and fit into the window.
func (w *window) bytes(off, n int64) ([]byte, bool) {
	if n > int64(len(w.buf)) {
		return nil, false
	}
	if off < w.start || off+n > w.start+w.n {
		_ = w.fill(off, n) // what is missing then says it
	}
	from := off - w.start
	if from+n > w.n {
		return nil, false
	}
	return w.buf[from : from+n], true
}

// Read implements io.Reader.
func (w *window) Read(b []byte) (int, error) {
	if w.off < w.start || w.off >= w.start+w.n {
		if err := w.fill(w.off, 1); w.n == 0 {
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
