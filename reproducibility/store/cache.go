package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Kind says what an Entry is.
type Kind string

// The kinds of entries.
const (
	BlobEntry     Kind = "blob"
	SnapshotEntry Kind = "snapshot"
	PartialEntry  Kind = "partial"
)

// An Entry is something that the store holds.
type Entry struct {
	Kind      Kind
	Name      string // a blob's digest, a snapshot's key, a partial's file name
	Allocated int64  // bytes on disk that could be read, files shared inside counted once
	Unread    bool   // parts of a snapshot could not be read, so Allocated is too low
}

// List returns all entries, blobs first, by name.
func (s *Store) List() ([]Entry, error) {
	var all []Entry
	for _, list := range []func() ([]Entry, error){s.listBlobs, s.listSnapshots, s.listPartials} {
		entries, err := list()
		if err != nil {
			return nil, fmt.Errorf("list store: %w", err)
		}
		slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
		all = append(all, entries...)
	}
	return all, nil
}

// Size returns the bytes on disk that all entries take.
func (s *Store) Size() (int64, error) {
	entries, err := s.List()
	var n int64
	for _, e := range entries {
		n += e.Allocated
	}
	return n, err
}

// Remove removes the entry of the given kind and name. The error wraps
// [ErrBusy] if another process is using a snapshot or partial, and
// [ErrNotFound] if there is no such entry.
func (s *Store) Remove(kind Kind, name string) error {
	var err error
	switch kind {
	case BlobEntry:
		err = s.removeBlob(Digest(name))
	case SnapshotEntry:
		err = s.removeSnapshot(name)
	case PartialEntry:
		err = s.removePartial(name)
	default:
		err = fmt.Errorf("unknown kind %q", kind)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("remove %s %s: %w", kind, name, err)
	}
	return nil
}

// Sweep deletes what killed processes left behind and what is being removed.
// Partials are kept. Snapshots need the rights of who wrote them; what cannot
// be deleted is named in the error and left.
func (s *Store) Sweep() error {
	return errors.Join(s.sweepTemp(), s.sweepSnapshots())
}

func (s *Store) sweepTemp() error {
	entries, err := os.ReadDir(s.path(tmpDir))
	for _, e := range entries {
		err = errors.Join(err, removeUnlocked(s.path(tmpDir, e.Name())))
	}
	return err
}

// removeUnlocked removes the file at path unless somebody has locked it.
func removeUnlocked(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	ok, err := tryLock(f, unix.LOCK_EX)
	if ok {
		err = discard(f)
	}
	return errors.Join(err, f.Close())
}

func (s *Store) sweepSnapshots() error {
	entries, err := os.ReadDir(s.path(snapshotsDir))
	for _, e := range entries {
		if key, ok := strings.CutPrefix(e.Name(), newPrefix); ok && isHex(key) {
			err = errors.Join(err, s.sweepNew(key))
		}
		if key, ok := strings.CutPrefix(e.Name(), oldPrefix); ok && isHex(key) {
			err = errors.Join(err, os.RemoveAll(s.path(snapshotsDir, e.Name())))
		}
	}
	return err
}

// sweepNew deletes an unfinished snapshot unless its writer is alive.
func (s *Store) sweepNew(key string) error {
	lock, ok, err := tryLockFile(s.lockPath(key))
	if !ok {
		return err
	}
	w := &SnapshotWriter{s: s, key: key, dir: s.path(snapshotsDir, newPrefix+key), lock: lock}
	return w.Abort()
}

func (s *Store) removeBlob(d Digest) error {
	if !d.Valid() {
		return ErrBadDigest
	}
	return os.Remove(s.Path(d))
}

func (s *Store) removeSnapshot(key string) error {
	if !isHex(key) {
		return ErrBadKey
	}
	lock, err := openDir(s.path(snapshotsDir, key))
	if err != nil {
		return err
	}
	defer lock.Close()
	ok, err := tryLock(lock, unix.LOCK_EX)
	if err != nil {
		return err
	}
	if !ok {
		return ErrBusy
	}
	if err := s.setAside(key); err != nil {
		return err
	}
	return os.RemoveAll(s.path(snapshotsDir, oldPrefix+key))
}

func (s *Store) removePartial(name string) error {
	if !isHex(name) {
		return ErrBadKey
	}
	path := s.path(partialsDir, name)
	if _, err := os.Lstat(path); err != nil {
		return err
	}
	f, ok, err := tryLockFile(path)
	if err != nil {
		return err
	}
	if !ok {
		return ErrBusy
	}
	return s.DiscardPartial(f)
}

func (s *Store) listBlobs() ([]Entry, error) {
	shelves, err := os.ReadDir(s.path(blobsDir))
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, shelf := range shelves {
		files, err := os.ReadDir(s.path(blobsDir, shelf.Name()))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if d := Digest(digestPrefix + f.Name()); d.Valid() {
				entries = append(entries, Entry{Kind: BlobEntry, Name: string(d), Allocated: allocated(f)})
			}
		}
	}
	return entries, nil
}

func (s *Store) listPartials() ([]Entry, error) {
	files, err := os.ReadDir(s.path(partialsDir))
	var entries []Entry
	for _, f := range files {
		entries = append(entries, Entry{Kind: PartialEntry, Name: f.Name(), Allocated: allocated(f)})
	}
	return entries, err
}

func (s *Store) listSnapshots() ([]Entry, error) {
	dirs, err := os.ReadDir(s.path(snapshotsDir))
	var entries []Entry
	for _, d := range dirs {
		if !isHex(d.Name()) {
			continue
		}
		e := Entry{Kind: SnapshotEntry, Name: d.Name()}
		e.Allocated, e.Unread = measure(s.path(snapshotsDir, d.Name()))
		entries = append(entries, e)
	}
	return entries, err
}

// allocated returns the bytes on disk of a directory entry, 0 if it has gone.
func allocated(e fs.DirEntry) int64 {
	st := stat(e)
	if st == nil {
		return 0
	}
	return st.Blocks * 512
}

func stat(e fs.DirEntry) *syscall.Stat_t {
	fi, err := e.Info()
	if err != nil {
		return nil
	}
	st, _ := fi.Sys().(*syscall.Stat_t)
	return st
}

// measure returns the bytes on disk of everything below dir, and whether there
// was something that it may not read.
func measure(dir string) (total int64, unread bool) {
	seen := map[uint64]bool{} // hard-linked inodes
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			unread = true
			return nil //nolint:nilerr // told by unread
		}
		st := stat(e)
		if st == nil || !e.IsDir() && st.Nlink > 1 && seen[st.Ino] {
			return nil
		}
		seen[st.Ino] = true
		total += st.Blocks * 512
		return nil
	})
	return total, unread || err != nil
}
