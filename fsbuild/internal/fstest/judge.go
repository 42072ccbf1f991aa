package fstest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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

// Usage is what something took.
type Usage struct{ Wall, CPU time.Duration }

// Add adds what something else took.
func (u *Usage) Add(v Usage) { u.Wall += v.Wall; u.CPU += v.CPU }

// Report gives a benchmark the ratios of our use to theirs, who are named.
func (u *Usage) Report(b *testing.B, theirs Usage, who string) {
	b.Helper()
	n := float64(b.N)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(u.Wall.Seconds()/n, "wall-s")
	b.ReportMetric(theirs.Wall.Seconds()/n, who+"-wall-s")
	b.ReportMetric(u.Wall.Seconds()/theirs.Wall.Seconds(), "wall-ratio")
	b.ReportMetric(u.CPU.Seconds()/theirs.CPU.Seconds(), "cpu-ratio")
}

// Measure runs f and returns what it took, child processes included.
func Measure(t testing.TB, f func()) Usage {
	t.Helper()
	c0, w0 := cpuTime(t), time.Now() //nolint:forbidigo // measures a test
	f()
	return Usage{time.Since(w0), cpuTime(t) - c0} //nolint:forbidigo // measures a test
}

func cpuTime(t testing.TB) (sum time.Duration) {
	t.Helper()
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var r syscall.Rusage
		if err := syscall.Getrusage(who, &r); err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return sum
}

// WriteFiles makes a directory with n small and a few large files, of words
// that compress like a program does.
func WriteFiles(t testing.TB, root string, n int) {
	t.Helper()
	data := make([]byte, 4<<20)
	state := uint32(1)
	for i := range data {
		state = state*1664525 + 1013904223
		if data[i] = byte(state >> 24); i > 64 && state>>8&3 != 0 {
			data[i] = data[i-1-int(data[i-1]&63)]
		}
	}
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
