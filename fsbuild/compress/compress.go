// Package compress reads compressed streams by name or by their first bytes:
// gzip (RFC 1952), xz (https://tukaani.org/xz/xz-file-format-1.2.1.txt) and
// Zstandard (RFC 8878), each with any number of concatenated members.
//
// A Reader decodes in the caller's goroutine, verifies the checks that the
// format carries, and returns io.EOF only at the true end of an intact stream:
// an empty, truncated or trailing-garbage input is an error. Memory is bounded
// by MaxWindow however the input was made. The size of the output is not
// bounded; who reads from strangers limits it.
//
// AppendXZ makes xz streams of blocks. The package compresses nothing else,
// does not seek, and knows no bzip2, lzma (".lzma" alone) or lz4.
package compress

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// Names of the formats, as NewReader takes and Detect returns them.
const (
	Gzip = "gzip"
	XZ   = "xz"
	Zstd = "zstd"
	None = "none"
)

// MagicLen is the number of bytes that Detect needs to tell every format.
const MagicLen = 6

// MaxWindow is the largest dictionary or window, in bytes, that a stream may
// ask for: 64 MiB, enough for xz -9 and zstd --ultra -22 without --long.
// Streams that want more fail with ErrWindow.
const MaxWindow = 64 << 20

// Errors that a caller may test with errors.Is. An error of the source reader
// is returned with neither of them.
var (
	// ErrUnknown means that the name given to NewReader is none of ours.
	ErrUnknown = errors.New("unknown compression format")
	// ErrCorrupt means that the stream is damaged, truncated, followed by
	// something else, or not of the format: fetch it again.
	ErrCorrupt = errors.New("compressed data is corrupt")
	// ErrWindow means that the stream needs a window above MaxWindow: it must
	// be compressed again with a smaller one.
	ErrWindow = errors.New("compression window exceeds 64 MiB")
)

// Detect tells the format from the first bytes of a stream, MagicLen of them
// if there are as many. It returns None for what it does not know.
func Detect(magic []byte) string {
	for _, f := range []struct{ name, magic string }{
		{Gzip, "\x1f\x8b"},
		{XZ, "\xfd7zXZ\x00"},
		{Zstd, "\x28\xb5\x2f\xfd"},
	} {
		if len(magic) >= len(f.magic) && string(magic[:len(f.magic)]) == f.magic {
			return f.name
		}
	}
	if isSkippableZstd(magic) {
		return Zstd
	}
	return None
}

// isSkippableZstd reports whether magic begins one of the sixteen skippable
// frames (RFC 8878 section 3.1.2), which pzstd writes first.
func isSkippableZstd(magic []byte) bool {
	return len(magic) >= 4 && magic[0]&0xf0 == 0x50 && string(magic[1:4]) == "\x2a\x4d\x18"
}

// NewReader returns the uncompressed content of r, which is compressed as name
// says. It reads the stream's header, so r must be ready; r may be read beyond
// the end of the stream, and is not closed by the reader's Close. Close frees
// memory and must be called.
func NewReader(name string, r io.Reader) (io.ReadCloser, error) {
	src := &source{r: r}
	d := &reader{name: name, src: src}
	var err error
	switch name {
	case None:
		return io.NopCloser(r), nil
	case Gzip:
		err = d.openGzip()
	case XZ:
		d.dec, err = xz.NewReader(src, MaxWindow)
	case Zstd:
		err = d.openZstd()
	default:
		return nil, fmt.Errorf("read compressed data: %q: %w", name, ErrUnknown)
	}
	if err != nil {
		return nil, d.explain(err)
	}
	return d, nil
}

// NewDetectingReader is NewReader for the format that Detect sees in r's first
// bytes, and returns its name too. Input of no known format, be it empty, is
// returned as it is, named None.
func NewDetectingReader(r io.Reader) (io.ReadCloser, string, error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	magic, err := buffered.Peek(MagicLen)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", fmt.Errorf("read compressed data: %w", err)
	}
	name := Detect(magic)
	rc, err := NewReader(name, buffered)
	return rc, name, err
}

// reader is one decoder with the errors of its source kept apart.
type reader struct {
	name  string
	src   *source
	dec   io.Reader
	close func()
	err   error // sticky
}

func (d *reader) openGzip() error {
	dec, err := gzip.NewReader(d.src)
	if err != nil {
		return err
	}
	d.dec = dec
	return nil
}

func (d *reader) openZstd() error {
	dec, err := zstd.NewReader(d.src,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(MaxWindow))
	if err != nil {
		return err
	}
	d.dec, d.close = dec, dec.Close
	return nil
}

// Read implements io.Reader. Errors are sticky.
func (d *reader) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.dec.Read(p)
	if err != nil {
		d.err = d.explain(err)
	}
	return n, d.err
}

// Close implements io.Closer; reading afterwards fails.
func (d *reader) Close() error {
	if d.close != nil {
		d.close()
		d.close = nil
	}
	d.err = fmt.Errorf("read %s data: reader is closed", d.name)
	return nil
}

// explain turns a decoder's error into one of ours: the source's own error
// first, then io.EOF at a true end, then what the decoder disliked.
func (d *reader) explain(err error) error {
	switch {
	case d.src.err != nil:
		return fmt.Errorf("read %s data: %w", d.name, d.src.err)
	case errors.Is(err, io.EOF) && d.dec != nil && d.src.n > 0:
		return io.EOF
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	case errors.Is(err, xz.ErrMemlimit), errors.Is(err, zstd.ErrWindowSizeExceeded):
		return fmt.Errorf("decompress %s data: %w", d.name, ErrWindow)
	}
	return fmt.Errorf("decompress %s data: %w: %w", d.name, ErrCorrupt, err)
}

// source remembers what happened to the compressed input: n bytes were read,
// and err, other than io.EOF, ended it.
type source struct {
	r   io.Reader
	n   int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}
