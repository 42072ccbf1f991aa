package squashfs_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/squashfs"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
	"cairn/tests/require"
)

// memory is an image that checks the order of writes: ascending, the
// superblock last.
type memory struct {
	t    testing.TB
	b    []byte
	done bool
}

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	switch {
	case m.done, len(b) == 0:
		m.t.Errorf("WriteAt of %d bytes at %d, which should not be", len(b), off)
	case off == 0:
		m.done = true
		copy(m.b, b)
	case len(m.b) == 0 && off == 96:
		m.b = make([]byte, 96)
		fallthrough
	default:
		if off != int64(len(m.b)) {
			m.t.Errorf("WriteAt of %d bytes at %d, but %d was reached", len(b), off, len(m.b))
		}
		m.b = append(m.b, b...)
	}
	return len(b), nil
}

// write makes an image in memory.
func write(t testing.TB, tr *tree.Tree, p squashfs.Params) ([]byte, squashfs.Summary) {
	t.Helper()
	m := &memory{t: t}
	s, err := squashfs.Write(t.Context(), m, tr, p)
	if err != nil {
		t.Fatal(err)
	}
	if s.Size != int64(len(m.b)) || s.Size%4096 != 0 || s.Used > s.Size || s.Size-s.Used >= 4096 || !m.done {
		t.Errorf("image of %d bytes has summary %+v", len(m.b), s)
	}
	return m.b, s
}

// image makes an image in a file.
func image(t testing.TB, tr *tree.Tree, p squashfs.Params) string {
	t.Helper()
	b, _ := write(t, tr, p)
	name := filepath.Join(fstest.ScratchDir(t), "fs.squashfs")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// representable makes of a tree what the format can hold.
func representable(tr *tree.Tree) *tree.Tree {
	for n := range tr.All() {
		n.MTime = tree.Time{Sec: min(max(n.MTime.Sec, 0), math.MaxUint32)}
		var kept []tree.Xattr
		for _, x := range n.Xattrs {
			if !strings.HasPrefix(x.Name, "system.") {
				kept = append(kept, x)
			}
		}
		n.Xattrs = kept
	}
	return tr
}

func run(t testing.TB, tool, pkg string, args ...string) string {
	t.Helper()
	out, err := exec.Command(require.Tool(t, tool, pkg), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%.3000s", tool, args, err, out)
	}
	return string(out)
}

// compare reads a directory and compares it with a tree.
func compare(t *testing.T, what string, want *tree.Tree, root string) {
	t.Helper()
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	// Open, it would keep the file system mounted.
	defer f.Close()
	got, err := dir.ReadFrom(t.Context(), f, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := fstest.Diff(t, want, got); diff != "" {
		t.Fatalf("%s: %s", what, diff)
	}
}

var variants = []squashfs.Params{
	{},
	{Compression: squashfs.Zstd, BlockSize: 1 << 20},
	{Compression: squashfs.XZ, BlockSize: 4096},
	{Compression: squashfs.Zstd, BlockSize: 4096},
	{Compression: squashfs.XZ, BlockSize: 1 << 20},
	{Compression: squashfs.Gzip, Level: 1, BlockSize: 64 << 10},
}

// TestKernel mounts images of generated trees and reads them with Linux.
func TestKernel(t *testing.T) {
	require.Root(t)
	for seed := range uint64(8) {
		want := representable(fstest.Generate(seed))
		p := variants[int(seed)%len(variants)]
		img := image(t, want, p)
		at := t.TempDir()
		run(t, "mount", "mount", "-t", "squashfs", "-o", "loop,ro", img, at)
		func() {
			defer run(t, "umount", "mount", at)
			compare(t, fmt.Sprintf("seed %d, %+v", seed, p), want, at)
			checkLookups(t, want, at)
		}()
	}
}

// checkLookups finds every file by its name, through the directory indexes.
func checkLookups(t *testing.T, tr *tree.Tree, root string) {
	t.Helper()
	for n := range tr.All() {
		if _, err := os.Lstat(filepath.Join(root, n.Path)); err != nil && !errors.Is(err, os.ErrPermission) {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "zzz not there")); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// TestUnsquashfs extracts images of generated trees with squashfs-tools.
func TestUnsquashfs(t *testing.T) {
	require.Root(t)
	for seed := range uint64(8) {
		want := representable(fstest.Generate(seed))
		p := variants[int(seed+3)%len(variants)]
		img := image(t, want, p)
		out := filepath.Join(filepath.Dir(img), "out")
		run(t, "unsquashfs", "squashfs-tools", "-no-progress", "-strict-errors", "-xattrs", "-processors", "1", "-d", out, img)
		compare(t, fmt.Sprintf("seed %d, %+v", seed, p), want, out)
	}
}
