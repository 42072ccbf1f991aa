package ext4_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"cairn/fsbuild/internal/fstest"
)

// BenchmarkReader reads all files of an image, turn and turn about with
// debugfs rdump, which also writes them to a directory in memory.
func BenchmarkReader(b *testing.B) {
	requireTool(b, "debugfs", "e2fsprogs")
	scratch := scratchDir(b)
	img := filepath.Join(scratch, "fs.img")
	size := writeFile(b, readDirectory(b, fstest.BenchTree(b, scratch)), img).Size
	out := filepath.Join(scratch, "out")
	var metadata, all, theirs fstest.Usage
	for b.Loop() {
		metadata.Add(fstest.Measure(b, func() { readTree(b, openImage(b, img)) }))
		all.Add(fstest.Measure(b, func() {
			for n := range readTree(b, openImage(b, img)).All() {
				if n.Content == nil {
					continue
				}
				c, err := n.Content.Open()
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, c); err != nil {
					b.Fatal(err)
				}
			}
		}))
		if err := os.Mkdir(out, 0o755); err != nil {
			b.Fatal(err)
		}
		theirs.Add(fstest.Measure(b, func() {
			if msg, err := exec.Command("debugfs", "-R", "rdump / "+out, img).CombinedOutput(); err != nil {
				b.Fatalf("debugfs: %v\n%s", err, msg)
			}
		}))
		if err := os.RemoveAll(out); err != nil {
			b.Fatal(err)
		}
	}
	n := float64(b.N)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(metadata.CPU.Seconds()/n, "tree-cpu-s")
	b.ReportMetric(all.CPU.Seconds()/n, "all-cpu-s")
	b.ReportMetric(theirs.CPU.Seconds()/n, "rdump-cpu-s")
	b.ReportMetric(float64(size)/1e6/(all.Wall.Seconds()/n), "MB/s")
}
