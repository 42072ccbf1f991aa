package ext4_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
)

var benchTree = flag.String("tree", "", "directory for the benchmark against mke2fs; default: a generated one")

// BenchmarkMke2fs writes the same directory with this package and with mke2fs
// -d, turn and turn about, and reports the ratios of wall and CPU time.
func BenchmarkMke2fs(b *testing.B) {
	requireTool(b, "mke2fs", "e2fsprogs")
	scratch := scratchDir(b)
	src := *benchTree
	if src == "" {
		src = filepath.Join(scratch, "tree")
		generateFiles(b, src, 20_000)
	}
	out := filepath.Join(scratch, "out.img")
	var sum ext4.Summary
	var ours, theirs usage
	for b.Loop() {
		ours.add(measure(b, func() { sum = writeDirectory(b, src, out) }))
		args := []string{
			"-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-J", "size=16", "-N", strconv.FormatInt(sum.Inodes, 10),
			"-O", "^resize_inode,meta_bg", "-E", "lazy_itable_init=1", "-d", src, out, strconv.FormatInt(sum.Blocks+sum.Blocks/10, 10),
		}
		theirs.add(measure(b, func() {
			_ = os.Remove(out)
			if msg, err := exec.Command("mke2fs", args...).CombinedOutput(); err != nil {
				b.Fatalf("mke2fs: %v\n%s", err, msg)
			}
		}))
	}
	n := float64(b.N)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ours.wall.Seconds()/n, "wall-s")
	b.ReportMetric(theirs.wall.Seconds()/n, "mke2fs-wall-s")
	b.ReportMetric(ours.wall.Seconds()/theirs.wall.Seconds(), "wall-ratio")
	b.ReportMetric(ours.cpu.Seconds()/theirs.cpu.Seconds(), "cpu-ratio")
	b.ReportMetric(float64(sum.Size)/n/1e6/(ours.wall.Seconds()/n), "MB/s")
	b.Logf("%d inodes, %d MiB; peak RSS of this process %d MiB", sum.UsedInodes, sum.Size>>20, peakRSS(b)>>20)
}

type usage struct{ wall, cpu time.Duration }

func (u *usage) add(v usage) { u.wall += v.wall; u.cpu += v.cpu }

// measure runs f and returns what it took, child processes included.
func measure(b *testing.B, f func()) usage {
	b.Helper()
	c0, w0 := cpuTime(b), time.Now()
	f()
	return usage{time.Since(w0), cpuTime(b) - c0}
}

func cpuTime(b *testing.B) (sum time.Duration) {
	b.Helper()
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var r syscall.Rusage
		if err := syscall.Getrusage(who, &r); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return sum
}

func peakRSS(b *testing.B) int64 {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return r.Maxrss << 10
}

func writeDirectory(b *testing.B, src, out string) ext4.Summary {
	b.Helper()
	_ = os.Remove(out)
	f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	t, err := dir.Read(b.Context(), src, dir.Options{})
	if err != nil {
		b.Fatal(err)
	}
	s, err := ext4.Write(b.Context(), f, t, params())
	if err != nil {
		b.Fatal(err)
	}
	if err := f.Truncate(s.Size); err != nil {
		b.Fatal(err)
	}
	return s
}

// generateFiles makes a tree of small and a few large files.
func generateFiles(b *testing.B, root string, n int) {
	b.Helper()
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(i*7 + i>>9)
	}
	for i := range n {
		d := filepath.Join(root, fmt.Sprintf("d%d", i%40), fmt.Sprintf("e%d", i%400))
		if i < 400 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		size := (i * 7919) % 24_000
		if i%200 == 0 {
			size = len(data)
		}
		if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("file-%d", i)), data[:size], 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMillion plans and writes a million small files from memory, and
// reports the memory that tree and layout take for each.
func BenchmarkMillion(b *testing.B) {
	const files, perDir = 1_000_000, 1000
	content := tree.Bytes(make([]byte, 1000))
	for b.Loop() {
		before := heap()
		t := tree.New()
		for i := range files {
			d := fmt.Sprintf("directory-%d", i/perDir)
			if i%perDir == 0 {
				if err := t.Add(tree.Node{Path: d, Type: tree.Directory, Mode: 0o755}); err != nil {
					b.Fatal(err)
				}
			}
			n := tree.Node{Path: fmt.Sprintf("%s/file-%d", d, i), Type: tree.Regular, Mode: 0o644, Size: 1000, Content: content}
			if err := t.Add(n); err != nil {
				b.Fatal(err)
			}
		}
		l, err := ext4.Plan(t, params())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(heap()-before)/files, "B/inode")
		if _, err := l.Write(b.Context(), discard{}); err != nil {
			b.Fatal(err)
		}
		runtime.KeepAlive(t)
	}
	b.Logf("peak RSS of this process %d MiB", peakRSS(b)>>20)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

type discard struct{}

func (discard) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
