package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const copyBuffer = 256 << 10 // bytes

// Path returns where the blob d is or would be, or "" if d is not valid. The
// file must not be modified; what is read from it directly is not verified.
func (s *Store) Path(d Digest) string {
	digits := d.Hex()
	if digits == "" {
		return ""
	}
	return s.path(blobsDir, digits[:2], digits)
}

// Has reports whether the store holds the blob d, without reading it.
func (s *Store) Has(d Digest) bool {
	_, err := s.Stat(d)
	return err == nil
}

// Stat returns the size of the blob d in bytes without reading it, or an error
// that wraps [ErrNotFound] or [ErrBadDigest].
func (s *Store) Stat(d Digest) (int64, error) {
	if !d.Valid() {
		return 0, fmt.Errorf("digest %q: %w", string(d), ErrBadDigest)
	}
	fi, err := os.Lstat(s.Path(d))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.Mode().IsRegular() {
		return 0, fmt.Errorf("blob %s: %w", d, ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("stat blob: %w", err)
	}
	return fi.Size(), nil
}

// Put reads r to its end and keeps what it read as a blob. It returns its
// digest and its size in bytes. Content with another digest than want, if that
// is not "", is not kept and reported as a [*MismatchError]. A blob that is
// there already is replaced, so that putting it again mends a damaged one.
func (s *Store) Put(ctx context.Context, r io.Reader, want Digest) (Digest, int64, error) {
	if want != "" && !want.Valid() {
		return "", 0, fmt.Errorf("put blob: digest %q: %w", string(want), ErrBadDigest)
	}
	f, err := s.createTemp()
	if err != nil {
		return "", 0, fmt.Errorf("put blob: %w", err)
	}
	defer f.Close()
	got, n, err := copyHashed(ctx, f, r)
	if err == nil && want != "" && got != want {
		err = &MismatchError{Want: want, Got: got, WantSize: -1, GotSize: n}
	}
	if err == nil {
		err = s.publish(f, got)
	}
	if err != nil {
		return "", n, errors.Join(fmt.Errorf("put blob: %w", err), discard(f))
	}
	return got, n, nil
}

// PutBytes keeps b as a blob and returns its digest.
func (s *Store) PutBytes(ctx context.Context, b []byte) (Digest, error) {
	d, _, err := s.Put(ctx, bytes.NewReader(b), "")
	return d, err
}

// Open returns a reader of the blob d and its size in bytes. The reader fails
// with a [*CorruptError] in place of io.EOF, and the blob is removed, if its
// content does not have digest d: what was read is to be trusted only after
// io.EOF. The error wraps [ErrNotFound] if there is no such blob.
func (s *Store) Open(d Digest) (io.ReadCloser, int64, error) {
	f, size, err := s.openBlob(d)
	if err != nil {
		return nil, 0, err
	}
	return &blobReader{s: s, f: f, d: d, r: Verify(f, d, size)}, size, nil
}

// OpenVerified reads the whole blob d to verify it and returns it as a file, at
// its start, with its size in bytes. The file must not be modified. Errors are
// those of [Store.Open].
func (s *Store) OpenVerified(d Digest) (*os.File, int64, error) {
	f, size, err := s.openBlob(d)
	if err != nil {
		return nil, 0, err
	}
	err = s.verifyFile(f, d, size)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, size, nil
}

// ReadAll returns the content of the blob d, verified. It fails if that is
// longer than limit bytes; else errors are those of [Store.Open].
func (s *Store) ReadAll(d Digest, limit int64) ([]byte, error) {
	r, size, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, fmt.Errorf("read blob %s: %d bytes are more than the limit of %d", d, size, limit)
	}
	b := make([]byte, 0, size+1) // room for a read that meets io.EOF
	buf := bytes.NewBuffer(b)
	if _, err := buf.ReadFrom(r); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func (s *Store) openBlob(d Digest) (*os.File, int64, error) {
	if !d.Valid() {
		return nil, 0, fmt.Errorf("open blob: digest %q: %w", string(d), ErrBadDigest)
	}
	f, err := os.OpenFile(s.Path(d), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("blob %s: %w", d, ErrNotFound)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = s.corrupt(f, d, errors.New("not a regular file"))
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("open blob: %w", err), f.Close())
	}
	return f, fi.Size(), nil
}

// verifyFile reads f to its end, which is to be blob d of size bytes.
func (s *Store) verifyFile(f *os.File, d Digest, size int64) error {
	_, err := io.CopyBuffer(io.Discard, onlyReader{Verify(f, d, size)}, make([]byte, copyBuffer))
	return s.judge(f, d, err)
}

// judge turns a mismatch found while reading f as blob d into the blob's
// removal and a CorruptError.
func (s *Store) judge(f *os.File, d Digest, err error) error {
	var mismatch *MismatchError
	if errors.As(err, &mismatch) {
		return s.corrupt(f, d, mismatch)
	}
	return err
}

// corrupt removes the damaged blob d, opened as f, unless somebody has put
// another file there meanwhile.
func (s *Store) corrupt(f *os.File, d Digest, cause error) error {
	e := &CorruptError{Name: string(d), Path: s.Path(d), Err: cause}
	if isAt(f, e.Path) {
		e.Removal = os.Remove(e.Path)
	}
	return e
}

// onlyReader hides other methods from io.CopyBuffer.
type onlyReader struct{ io.Reader }

type blobReader struct {
	s *Store
	f *os.File
	d Digest
	r io.Reader
}

func (b *blobReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.s.judge(b.f, b.d, err)
	}
	return n, err
}

func (b *blobReader) Close() error { return b.f.Close() }

// createTemp returns a new file that is locked, so that Sweep spares it.
func (s *Store) createTemp() (*os.File, error) {
	for {
		f, err := os.CreateTemp(s.path(tmpDir), "blob-")
		if err != nil {
			return nil, err
		}
		ok, err := tryLock(f, unix.LOCK_EX)
		if err != nil {
			return nil, errors.Join(err, discard(f), f.Close())
		}
		if ok && isAt(f, f.Name()) {
			return f, nil
		}
		// A sweep of another process got between; it removes the file.
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// discard removes the file f if it is still where it was made.
func discard(f *os.File) error {
	if isAt(f, f.Name()) {
		return os.Remove(f.Name())
	}
	return nil
}

// publish makes the whole file f, which has digest d, the blob d.
func (s *Store) publish(f *os.File, d Digest) error {
	if err := f.Sync(); err != nil {
		return err
	}
	path := s.Path(d)
	if err := s.makeShelf(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	// Only now: a partial that is not renamed must stay writable.
	if err := f.Chmod(0o400); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// makeShelf makes the directory of the blobs that begin with the same digits.
func (s *Store) makeShelf(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// copyHashed copies r to w until its end or until ctx is done. It returns the
// digest and the number of the bytes.
func copyHashed(ctx context.Context, w io.Writer, r io.Reader) (Digest, int64, error) {
	h := sha256.New()
	buf := make([]byte, copyBuffer)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return "", n, err
		}
		m, rerr := r.Read(buf)
		h.Write(buf[:m])
		if _, err := w.Write(buf[:m]); err != nil {
			return "", n, err
		}
		n += int64(m)
		if errors.Is(rerr, io.EOF) {
			return sum(h), n, nil
		}
		if rerr != nil {
			return "", n, rerr
		}
	}
}
