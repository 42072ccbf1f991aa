package ext4_test

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"cairn/fsbuild/ext4"
)

// requireTool fails a test that needs a program which is not installed.
func requireTool(t testing.TB, name, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is missing: install %s", name, pkg)
	}
}

// scratchDir returns a directory in memory where there is one.
func scratchDir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("/dev/shm", "ext4-test-") //nolint:usetesting // in memory
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(d) })
	return d
}

// params are complete parameters for a file system of minimal size.
func params() ext4.Params {
	return ext4.Params{
		UUID:     [16]byte{0xc0, 0xff, 0xee, 0, 0, 1, 0x40, 2, 0x80, 3, 4, 5, 6, 7, 8, 9},
		HashSeed: [16]byte{1, 2, 3, 4, 5, 6, 0x47, 8, 0x89, 10, 11, 12, 13, 14, 15, 16},
		Label:    "cloudimg-rootfs",
		Time:     time.Unix(1_700_000_000, 0),
	}
}
