package qcow2_test

import (
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/qcow2"
)

// benchDisk returns a raw disk: of QCOW2_BENCH_RAW if set, else of generated
// data that shrinks about as much as a Debian root.
func benchDisk(b *testing.B) string {
	if path := os.Getenv("QCOW2_BENCH_RAW"); path != "" {
		return path
	}
	size := int64(256 << 20)
	return raw(b, size, pattern(rand.New(rand.NewPCG(12, 12)), size, 128<<20))
}

// convert copies a raw disk into a new image.
func convert(b *testing.B, from, to string, o qcow2.Options) {
	in, err := os.Open(from)
	must(b, err)
	defer in.Close()
	info, err := in.Stat()
	must(b, err)
	out := create(b, to)
	w, err := qcow2.NewWriter(out, info.Size(), o)
	must(b, err)
	defer w.Abort()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.NewOffsetWriter(w, 0)}, struct{ io.Reader }{in}, make([]byte, 1<<20))
	must(b, err)
	must(b, w.Close())
	must(b, out.Close())
}

// BenchmarkAgainstQEMU runs both on the same disk in turn, and reports the
// ratios of wall and CPU time and of size, and by how much all processors make
// us faster than one.
func BenchmarkAgainstQEMU(b *testing.B) {
	disk := benchDisk(b)
	for name, tc := range map[string]struct {
		options qcow2.Options
		qemu    string
	}{
		"deflate":         {qcow2.Options{}, "compression_type=zlib"},
		"zstd":            {qcow2.Options{Compression: qcow2.Zstd}, "compression_type=zstd"},
		"zstd256/qemu256": {qcow2.Options{Compression: qcow2.Zstd, ClusterSize: 256 << 10}, "compression_type=zstd,cluster_size=256K"},
		"zstd256/qemu64":  {qcow2.Options{Compression: qcow2.Zstd, ClusterSize: 256 << 10}, "compression_type=zstd"},
	} {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
			var used, alone, qemuUsed fstest.Usage
			single := tc.options
			single.Workers = 1
			for b.Loop() {
				_ = os.Remove(ours)
				alone.Add(fstest.Measure(b, func() { convert(b, disk, ours, single) }))
				_ = os.Remove(ours)
				used.Add(fstest.Measure(b, func() { convert(b, disk, ours, tc.options) }))
				_ = os.Remove(theirs)
				qemuUsed.Add(fstest.Measure(b, func() {
					out, err := exec.Command("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", tc.qemu, disk, theirs).CombinedOutput()
					if err != nil {
						b.Fatalf("qemu-img convert: %v\n%s (install qemu-utils)", err, out)
					}
				}))
			}
			judge(b, ours, disk)
			a, err := os.Stat(ours)
			must(b, err)
			q, err := os.Stat(theirs)
			must(b, err)
			used.Report(b, qemuUsed, "qemu")
			b.ReportMetric(float64(a.Size())/float64(q.Size()), "size-ratio")
			b.ReportMetric(alone.Wall.Seconds()/used.Wall.Seconds(), "speedup")
		})
	}
}
