package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	newPrefix      = ".new-"
	oldPrefix      = ".old-"
	manifestHeader = "cairn snapshot 1 " // then the digest of what follows the line
)

// A Snapshot is a file tree that was kept. It cannot be removed while it is
// open.
type Snapshot struct {
	Dir      string // root directory of the tree, absolute; to be left unchanged
	Manifest []byte // what its writer said of it

	lock *os.File
}

// Close lets the snapshot be removed.
func (n *Snapshot) Close() error { return n.lock.Close() }

// Snapshot returns the snapshot with the given key: 64 hexadecimal digits, the
// digest of all that decides what is in the tree. The error wraps
// [ErrNotFound] if there is none, and is a [*CorruptError] if its manifest is
// damaged; a next call then does not find it.
func (s *Store) Snapshot(key string) (*Snapshot, error) {
	if !isHex(key) {
		return nil, fmt.Errorf("snapshot %q: %w", key, ErrBadKey)
	}
	dir := s.path(snapshotsDir, key)
	lock, err := openDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("snapshot %s: %w", key, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open snapshot: %w", err)
	}
	ok, err := tryLock(lock, unix.LOCK_SH)
	if err == nil && (!ok || !isAt(lock, dir)) {
		err = fmt.Errorf("snapshot %s: %w", key, ErrNotFound) // being removed
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	manifest, err := readManifest(dir)
	if err != nil {
		return nil, errors.Join(s.corruptSnapshot(key, err), lock.Close())
	}
	return &Snapshot{Dir: filepath.Join(dir, "tree"), Manifest: manifest, lock: lock}, nil
}

func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// corruptSnapshot takes the damaged snapshot out of sight; Sweep deletes it.
func (s *Store) corruptSnapshot(key string, cause error) error {
	path := s.path(snapshotsDir, key)
	return &CorruptError{Name: key, Path: path, Err: cause, Removal: s.setAside(key)}
}

// setAside renames the snapshot to the name that Sweep deletes.
func (s *Store) setAside(key string) error {
	old := s.path(snapshotsDir, oldPrefix+key)
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	return os.Rename(s.path(snapshotsDir, key), old)
}

// readManifest returns the manifest of the snapshot in dir, verified.
func readManifest(dir string) ([]byte, error) {
	fi, err := os.Lstat(filepath.Join(dir, "tree"))
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, errors.New("tree is not a directory")
	}
	b, err := os.ReadFile(filepath.Join(dir, "manifest"))
	if err != nil {
		return nil, err
	}
	head, body, _ := bytes.Cut(b, []byte("\n"))
	if string(head) != manifestHeader+string(Of(body)) {
		return nil, errors.New("manifest does not have the digest in its first line")
	}
	return body, nil
}

// A SnapshotWriter makes a snapshot. End it with Commit or Abort.
type SnapshotWriter struct {
	s    *Store
	key  string
	dir  string
	lock *os.File
}

// NewSnapshot begins a snapshot with the given key. It waits while another
// writes the same one; the error wraps [ErrExists] if it is there by then.
func (s *Store) NewSnapshot(key string) (*SnapshotWriter, error) {
	return s.NewSnapshotContext(context.Background(), key)
}

// NewSnapshotContext is [Store.NewSnapshot], giving up when ctx is done.
func (s *Store) NewSnapshotContext(ctx context.Context, key string) (*SnapshotWriter, error) {
	if !isHex(key) {
		return nil, fmt.Errorf("new snapshot %q: %w", key, ErrBadKey)
	}
	lock, err := lockFile(ctx, s.lockPath(key))
	if err != nil {
		return nil, fmt.Errorf("new snapshot: %w", err)
	}
	w := &SnapshotWriter{s: s, key: key, dir: s.path(snapshotsDir, newPrefix+key), lock: lock}
	if err := w.begin(); err != nil {
		return nil, errors.Join(fmt.Errorf("new snapshot: %w", err), w.unlock())
	}
	return w, nil
}

func (s *Store) lockPath(key string) string { return s.path(locksDir, key) }

func (w *SnapshotWriter) begin() error {
	if _, err := os.Lstat(w.s.path(snapshotsDir, w.key)); err == nil {
		return fmt.Errorf("snapshot %s: %w", w.key, ErrExists)
	}
	if err := os.RemoveAll(w.dir); err != nil { // of a writer that was killed
		return err
	}
	return os.MkdirAll(w.Dir(), 0o700)
}

// Dir returns the empty directory, mode 0700, that is to become the tree's
// root; the writer sets its owner and mode as those of everything in it.
func (w *SnapshotWriter) Dir() string { return filepath.Join(w.dir, "tree") }

// Commit syncs the file system and makes the snapshot visible with the given
// manifest.
func (w *SnapshotWriter) Commit(manifest []byte) error {
	if err := w.commit(manifest); err != nil {
		return errors.Join(fmt.Errorf("keep snapshot %s: %w", w.key, err), w.Abort())
	}
	return w.unlock()
}

func (w *SnapshotWriter) commit(manifest []byte) error {
	head := []byte(manifestHeader + string(Of(manifest)) + "\n")
	err := os.WriteFile(filepath.Join(w.dir, "manifest"), append(head, manifest...), 0o400)
	if err != nil {
		return err
	}
	if err := syncFS(w.dir); err != nil {
		return err
	}
	if err := os.Rename(w.dir, w.s.path(snapshotsDir, w.key)); err != nil {
		return err
	}
	return syncDir(w.s.path(snapshotsDir))
}

// syncFS makes everything on the file system of path durable: one call in
// place of one for each of thousands of files.
func syncFS(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// Abort removes what was written. After Commit it does nothing.
func (w *SnapshotWriter) Abort() error {
	if w.lock == nil {
		return nil
	}
	return errors.Join(os.RemoveAll(w.dir), w.unlock())
}

// unlock ends the lock. Its file is removed while the lock is held, so that
// lock files do not pile up; lockFile knows of that.
func (w *SnapshotWriter) unlock() error {
	err := errors.Join(os.Remove(w.lock.Name()), w.lock.Close())
	w.lock = nil
	return err
}
