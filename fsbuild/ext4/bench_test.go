package ext4_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tar"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
)

// BenchmarkMke2fs writes the same files with this package, from a directory
// and from an archive, and with mke2fs -d, turn and turn about. The last cases
// compare with copies: all files into one by cat, the archive by dd.
func BenchmarkMke2fs(b *testing.B) {
	requireTool(b, "mke2fs", "e2fsprogs")
	scratch := scratchDir(b)
	src, out := fstest.BenchTree(b, scratch), filepath.Join(scratch, "out.img")
	directory := func() *tree.Tree { return readDirectory(b, src) }
	f := writeArchive(b, directory(), filepath.Join(scratch, "archive"))
	archive := func() *tree.Tree { return readArchive(b, f) }
	mke2fs := func(sum ext4.Summary) { mke2fsTree(b, src, out, sum) }
	cat := func(ext4.Summary) { fstest.Cat(b, src, out) }
	dd := func(ext4.Summary) { copyFile(b, f.Name(), out) }
	for _, c := range []struct {
		name, peer string
		read       func() *tree.Tree
		run        func(ext4.Summary)
	}{
		{"directory", "mke2fs", directory, mke2fs},
		{"archive", "mke2fs", archive, mke2fs},
		{"directory", "cat", directory, cat},
		{"archive", "dd", archive, dd},
	} {
		b.Run(c.name+"/"+c.peer, func(b *testing.B) {
			var sum ext4.Summary
			var ours, theirs fstest.Usage
			for b.Loop() {
				_ = os.Remove(out)
				ours.Add(fstest.Measure(b, func() { sum = writeFile(b, c.read(), out) }))
				_ = os.Remove(out)
				theirs.Add(fstest.Measure(b, func() { c.run(sum) }))
			}
			ours.Report(b, theirs, c.peer)
		})
	}
}

func copyFile(b *testing.B, from, to string) {
	b.Helper()
	if msg, err := exec.Command("dd", "if="+from, "of="+to, "bs=256k").CombinedOutput(); err != nil {
		b.Fatalf("dd: %v\n%s", err, msg)
	}
}

func mke2fsTree(b *testing.B, src, out string, sum ext4.Summary) {
	b.Helper()
	args := []string{
		"-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-J", "size=16", "-N", strconv.FormatInt(sum.Inodes, 10),
		"-O", "^resize_inode,meta_bg", "-E", "lazy_itable_init=1", "-d", src, out, strconv.FormatInt(sum.Blocks+sum.Blocks/10, 10),
	}
	if msg, err := exec.Command("mke2fs", args...).CombinedOutput(); err != nil {
		b.Fatalf("mke2fs: %v\n%s", err, msg)
	}
}

func readDirectory(b *testing.B, src string) *tree.Tree {
	b.Helper()
	t, err := dir.Read(b.Context(), src, dir.Options{})
	if err != nil {
		b.Fatal(err)
	}
	return t
}

func writeArchive(b *testing.B, t *tree.Tree, path string) *os.File {
	b.Helper()
	f := createFile(b, path)
	b.Cleanup(func() { _ = f.Close() })
	if _, err := tar.Write(b.Context(), f, t, tar.Params{SkipSockets: true}); err != nil {
		b.Fatal(err)
	}
	return f
}

func readArchive(b *testing.B, f *os.File) *tree.Tree {
	b.Helper()
	info, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	t, err := tar.Read(b.Context(), f, info.Size(), tar.Options{})
	if err != nil {
		b.Fatal(err)
	}
	return t
}

func createFile(b *testing.B, path string) *os.File {
	b.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	return f
}

func writeFile(b *testing.B, t *tree.Tree, out string) ext4.Summary {
	b.Helper()
	f := createFile(b, out)
	defer f.Close()
	s, err := ext4.Write(b.Context(), f, t, params())
	if err != nil {
		b.Fatal(err)
	}
	if err := f.Truncate(s.Size); err != nil {
		b.Fatal(err)
	}
	return s
}

// BenchmarkMillion writes a million small files with this package and with
// mke2fs -d, turn and turn about, and reports what an inode takes of ours over
// what it takes among a quarter of them, which is 1 when time is linear.
func BenchmarkMillion(b *testing.B) {
	requireTool(b, "mke2fs", "e2fsprogs")
	const dirs = 1000
	scratch := scratchDir(b)
	src, out := filepath.Join(scratch, "tree"), filepath.Join(scratch, "out.img")
	part := filepath.Join(src, "first")
	for i := range dirs {
		d := filepath.Join(part, strconv.Itoa(i))
		if i >= dirs/4 {
			d = filepath.Join(src, strconv.Itoa(i))
		}
		smallFiles(b, d, i)
	}
	var sum ext4.Summary
	write := func(src string) func() {
		_ = os.Remove(out)
		return func() { sum = writeFile(b, readDirectory(b, src), out) }
	}
	write(src)() // the first to be measured does not pay for memory that was not in use before
	var ours, quarter, theirs fstest.Usage
	for b.Loop() {
		quarter.Add(fstest.Measure(b, write(part)))
		ours.Add(fstest.Measure(b, write(src)))
		_ = os.Remove(out)
		theirs.Add(fstest.Measure(b, func() { mke2fsTree(b, src, out, sum) }))
	}
	ours.Report(b, theirs, "mke2fs")
	b.ReportMetric(ours.CPU.Seconds()/quarter.CPU.Seconds()/4, "growth")
}

// smallFiles writes a thousand files of 1 to 2000 bytes into a new directory.
func smallFiles(b *testing.B, path string, seed int) {
	b.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 2000)
	for i := range 1000 {
		if err := os.WriteFile(filepath.Join(path, fmt.Sprintf("file-%d", i)), data[:1+(seed*7+i*13)%len(data)], 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMemory plans and writes a million small files from memory, and
// reports the memory that tree and layout take for each.
func BenchmarkMemory(b *testing.B) {
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
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

type discard struct{}

func (discard) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
