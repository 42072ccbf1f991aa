package ext4_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BenchmarkReader reads all files of an image, turn and turn about with
// debugfs rdump, which also writes them to a directory in memory.
func BenchmarkReader(b *testing.B) {
	requireTool(b, "debugfs", "e2fsprogs")
	scratch := scratchDir(b)
	src := *benchTree
	if src == "" {
		src = filepath.Join(scratch, "tree")
		generateFiles(b, src, 20_000)
	}
	img := filepath.Join(scratch, "fs.img")
	size := writeDirectory(b, src, img).Size
	out := filepath.Join(scratch, "out")
	var metadata, all, theirs usage
	for b.Loop() {
		metadata.add(measure(b, func() { readTree(b, openImage(b, img)) }))
		all.add(measure(b, func() {
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
		theirs.add(measure(b, func() {
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
	b.ReportMetric(metadata.cpu.Seconds()/n, "tree-cpu-s")
	b.ReportMetric(all.cpu.Seconds()/n, "all-cpu-s")
	b.ReportMetric(theirs.cpu.Seconds()/n, "rdump-cpu-s")
	b.ReportMetric(float64(size)/1e6/(all.wall.Seconds()/n), "MB/s")
}
