package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	firstWait = 5 * time.Millisecond
	longWait  = 200 * time.Millisecond
)

// Partial opens the unfinished download with the given key, any text that says
// what is downloaded, for reading and writing, at its start. The caller alone
// has it until the file is closed; Partial waits while another has it. The
// bytes in it may be anything. End with [Store.CommitPartial],
// [Store.DiscardPartial], or by closing the file, which keeps it for later.
func (s *Store) Partial(key string) (*os.File, error) {
	return s.PartialContext(context.Background(), key)
}

// PartialContext is [Store.Partial], giving up when ctx is done.
func (s *Store) PartialContext(ctx context.Context, key string) (*os.File, error) {
	name := sha256.Sum256([]byte(key))
	f, err := lockFile(ctx, s.path(partialsDir, hex.EncodeToString(name[:])))
	if err != nil {
		return nil, fmt.Errorf("open partial download: %w", err)
	}
	return f, nil
}

// CommitPartial makes the file f from [Store.Partial] the blob with digest
// want, closes it, and returns its size in bytes. If it has another digest it
// is removed, and the error is a [*MismatchError].
func (s *Store) CommitPartial(ctx context.Context, f *os.File, want Digest) (int64, error) {
	n, err := s.commitPartial(ctx, f, want)
	if err != nil {
		err = fmt.Errorf("keep download: %w", err)
	}
	return n, errors.Join(err, f.Close())
}

func (s *Store) commitPartial(ctx context.Context, f *os.File, want Digest) (int64, error) {
	if !want.Valid() {
		return 0, fmt.Errorf("digest %q: %w", string(want), ErrBadDigest)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	got, n, err := copyHashed(ctx, io.Discard, f)
	if err != nil {
		return n, err
	}
	if got != want {
		err := &MismatchError{Want: want, Got: got, WantSize: -1, GotSize: n}
		return n, errors.Join(err, discard(f))
	}
	return n, s.publish(f, want)
}

// DiscardPartial removes the file f from [Store.Partial] and closes it.
func (s *Store) DiscardPartial(f *os.File) error {
	return errors.Join(discard(f), f.Close())
}

// lockFile opens or makes the file at path and locks it, waiting until it is
// free or ctx is done. Whoever holds the lock may remove or rename the file.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	wait := firstWait
	for {
		f, ok, err := tryLockFile(path)
		if ok || err != nil {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
			wait = min(2*wait, longWait)
		}
	}
}

// tryLockFile is lockFile without the waiting; it reports whether it was free.
func tryLockFile(path string) (*os.File, bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, false, err
	}
	ok, err := tryLock(f, unix.LOCK_EX)
	if ok && isAt(f, path) {
		return f, true, nil
	}
	return nil, false, errors.Join(err, f.Close())
}
