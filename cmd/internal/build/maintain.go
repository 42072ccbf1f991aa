package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"cairn/reproducibility/store"
	"cairn/sandbox"
)

// CacheSize is how many bytes the content store takes on disk, as far as the
// caller may look.
func CacheSize(dir string) (int64, error) {
	st, err := store.Open(dir)
	if err != nil {
		return 0, err
	}
	return st.Size()
}

// CacheClean removes the content store, or its snapshots only. Files of other
// ids in it need the sandbox to be removed.
func CacheClean(ctx context.Context, dir string, snapshotsOnly bool, h sandbox.Host) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if snapshotsOnly {
		st, err := store.Open(dir)
		if err != nil {
			return err
		}
		dir = st.SnapshotDir()
	}
	ids, err := sandbox.Preflight(h)
	if err != nil {
		return fail(err, "start the sandbox")
	}
	return fail(sandbox.RemoveOwned(ctx, h, ids, dir), "remove the content store %s", dir)
}

// Doctor says what this machine can do. The error is what a build would fail
// with.
func Doctor(h sandbox.Host) (string, error) {
	var b strings.Builder
	ids, err := sandbox.Preflight(h)
	if err != nil {
		fmt.Fprintf(&b, "sandbox\tno\n")
		return b.String(), withHint(err)
	}
	fmt.Fprintf(&b, "sandbox\tyes, mode subid, ids %s\n", ids.Base())
	return b.String(), nil
}
