package fstest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/fsbuild/tree"
)

// ScratchDir returns a directory in memory where there is one.
func ScratchDir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("/dev/shm", "fstest-") //nolint:usetesting // in memory
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	return d
}

// Text is the text form of a tree.
func Text(t testing.TB, tr *tree.Tree) string {
	t.Helper()
	var b strings.Builder
	if err := tr.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Diff describes where the text forms of two trees differ first; it is empty
// when they are equal.
func Diff(t testing.TB, want, got *tree.Tree) string {
	t.Helper()
	w, g := strings.Split(Text(t, want), "\n"), strings.Split(Text(t, got), "\n")
	for i := range max(len(w), len(g)) {
		switch {
		case i == len(w) || i == len(g):
			return fmt.Sprintf("%d lines, want %d", len(g), len(w))
		case w[i] != g[i]:
			k := 0
			for k < min(len(w[i]), len(g[i])) && w[i][k] == g[i][k] {
				k++
			}
			from := max(0, k-80)
			return fmt.Sprintf("line %d: got … %.200q\nwant … %.200q", i, g[i][from:], w[i][from:])
		}
	}
	return ""
}

// WriteFiles makes a directory with n small and a few large files, of words
// that compress like a program does.
func WriteFiles(t testing.TB, root string, n int) {
	t.Helper()
	data := words(4 << 20)
	for i := range n {
		d := filepath.Join(root, fmt.Sprintf("d%d", i%40), fmt.Sprintf("e%d", i%400))
		if i < 400 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		size, from := (i*7919)%24_000, i*31%len(data)
		if i%200 == 0 {
			size, from = len(data)-i, i
		}
		from = min(from, len(data)-size)
		if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("file-%d", i)), data[from:from+size], 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
