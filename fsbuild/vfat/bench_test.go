package vfat_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree/dir"
	"cairn/fsbuild/vfat"
	"cairn/tests/require"
)

// BenchmarkMkfs writes the same directory with this package and with mkfs.fat
// and mcopy, turn and turn about, and reports the ratios of wall and CPU time.
func BenchmarkMkfs(b *testing.B) {
	mkfs, mcopy := require.Tool(b, "mkfs.fat", "dosfstools"), require.Tool(b, "mcopy", "mtools")
	scratch := scratchDir(b)
	for _, c := range []struct {
		name         string
		files, large int
	}{{"seed", 3, 0}, {"esp", 40, 8}, {"files", 4000, 20}} {
		b.Run(c.name, func(b *testing.B) {
			src, out := filepath.Join(scratch, c.name), filepath.Join(scratch, "out.img")
			generateFiles(b, src, c.files, c.large)
			top, err := filepath.Glob(src + "/*")
			if err != nil {
				b.Fatal(err)
			}
			var size int64
			var ours, theirs fstest.Usage
			for b.Loop() {
				ours.Add(fstest.Measure(b, func() { size = writeDirectory(b, src, out) }))
				theirs.Add(fstest.Measure(b, func() {
					_ = os.Remove(out)
					for _, cmd := range []*exec.Cmd{
						exec.Command(mkfs, "-C", out, fmt.Sprint((size+size/10)>>10)),
						exec.Command(mcopy, append([]string{"-s", "-m", "-Q", "-i", out}, append(top, "::")...)...),
					} {
						if msg, err := cmd.CombinedOutput(); err != nil {
							b.Fatalf("%s: %v\n%s", cmd, err, msg)
						}
					}
				}))
			}
			n := float64(b.N)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ours.Wall.Seconds()/n*1000, "wall-ms")
			b.ReportMetric(theirs.Wall.Seconds()/n*1000, "mkfs-wall-ms")
			b.ReportMetric(ours.Wall.Seconds()/theirs.Wall.Seconds(), "wall-ratio")
			b.ReportMetric(ours.CPU.Seconds()/theirs.CPU.Seconds(), "cpu-ratio")
			b.ReportMetric(float64(size)/1e6/(ours.Wall.Seconds()/n), "MB/s")
		})
	}
}

func writeDirectory(b *testing.B, src, out string) int64 {
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
	s, err := vfat.Write(b.Context(), f, t, params())
	if err != nil {
		b.Fatal(err)
	}
	if err := f.Truncate(s.Size); err != nil {
		b.Fatal(err)
	}
	return s.Size
}

// generateFiles makes a directory of small files and some of 4 MiB.
func generateFiles(b *testing.B, root string, files, large int) {
	b.Helper()
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(i*7 + i>>9)
	}
	for i := range files + large {
		name := filepath.Join(root, fmt.Sprintf("directory %d", i%10), fmt.Sprintf("file-%d.text", i))
		size := i * 7919 % 24_000
		if i < large {
			size = len(data)
		}
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		if err == nil {
			err = os.WriteFile(name, data[:size], 0o644)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
