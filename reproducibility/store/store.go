package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Errors that a caller can decide by; those returned wrap them.
var (
	ErrNotFound = errors.New("not in the store")
	ErrExists   = errors.New("already in the store")
	ErrBusy     = errors.New("in use by another process")
	ErrBadKey   = errors.New("not a key of 64 hexadecimal digits")
)

// A CorruptError tells that an entry of the store was damaged. By then it has
// been taken out of the store, unless Removal says why it could not be.
type CorruptError struct {
	Name    string // digest of the blob or key of the snapshot
	Path    string
	Err     error // what is wrong with it
	Removal error // why it is still there, nil if it is not
}

func (e *CorruptError) Error() string {
	s := fmt.Sprintf("store entry %s is damaged: %v", e.Path, e.Err)
	if e.Removal != nil {
		s += fmt.Sprintf("; and could not be removed: %v", e.Removal)
	}
	return s
}

// Unwrap returns what is wrong with the entry.
func (e *CorruptError) Unwrap() error { return e.Err }

// A Store is a directory of blobs and snapshots. Its methods may be called from
// any number of goroutines.
type Store struct {
	dir string // absolute
}

const (
	blobsDir     = "blobs/sha256"
	tmpDir       = "tmp"
	partialsDir  = "partials"
	snapshotsDir = "snapshots"
	locksDir     = "locks"
)

// Open returns the store in the directory dir, which it makes if need be.
func Open(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	for _, sub := range []string{blobsDir, tmpDir, partialsDir, snapshotsDir, locksDir} {
		if err := os.MkdirAll(filepath.Join(abs, sub), 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	return &Store{dir: abs}, nil
}

// Dir returns the absolute path of the store's directory.
func (s *Store) Dir() string { return s.dir }

// SnapshotDir returns the absolute path of the directory that holds the
// snapshots and nothing else.
func (s *Store) SnapshotDir() string { return s.path(snapshotsDir) }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// syncDir makes the entries of directory path durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// tryLock takes a lock of kind how (LOCK_SH or LOCK_EX) on f and reports
// whether it has it.
func tryLock(f *os.File, how int) (bool, error) {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case errors.Is(err, unix.EINTR):
			continue
		}
		return false, fmt.Errorf("lock: %w", &fs.PathError{Op: "flock", Path: f.Name(), Err: err})
	}
}

// isAt reports whether path still names the file that f is.
func isAt(f *os.File, path string) bool {
	have, err := f.Stat()
	if err != nil {
		return false
	}
	want, err := os.Lstat(path)
	return err == nil && os.SameFile(have, want)
}
