package build

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestNewWork makes work directories while others look for those of dead
// builds, as sweep does: each is there and locked, and nobody else's.
func TestNewWork(t *testing.T) {
	parent := t.TempDir()
	var made atomic.Int64
	var sweepers, builds sync.WaitGroup
	for range 2 {
		sweepers.Go(func() {
			for made.Load() < 400 {
				found, _ := filepath.Glob(filepath.Join(parent, workPrefix+"*"))
				for _, dir := range found {
					if lock, err := lockDir(dir); err == nil {
						os.RemoveAll(dir) //nolint:errcheck // a build may be removing it, too
						lock.Close()      //nolint:errcheck // only read
					}
				}
			}
		})
		builds.Go(func() {
			for made.Add(1) < 400 {
				dir, lock, err := newWork(parent)
				if err != nil {
					t.Error(err)
					continue
				}
				if _, err := lockDir(dir); !errors.Is(err, syscall.EWOULDBLOCK) {
					t.Errorf("%s can be taken: %v", dir, err)
				}
				if err := errors.Join(os.Remove(dir), lock.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	builds.Wait()
	made.Store(400)
	sweepers.Wait()
}

// TestNewWorkFails: a directory that cannot be locked does not stay.
func TestNewWorkFails(t *testing.T) {
	parent := t.TempDir()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	_, _, err := newWork(parent)
	if restored := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); restored != nil {
		t.Fatal(restored)
	}
	if !errors.Is(err, syscall.EMFILE) {
		t.Errorf("without descriptors: %v, want EMFILE", err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
