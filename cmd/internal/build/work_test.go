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
