package fsbuild_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"cairn/fsbuild"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree/dir"
	"cairn/tests/require"
)

// BenchmarkOnePass makes a compressed qcow2 of a directory, and does so with
// mke2fs -d and qemu-img convert -c one after the other, turn and turn about.
// CAIRN_BENCH_TREE is another directory than the generated one.
func BenchmarkOnePass(b *testing.B) {
	mke2fs, qemuImg := require.Tool(b, "mke2fs", "e2fsprogs"), require.Tool(b, "qemu-img", "qemu-utils")
	scratch := fstest.ScratchDir(b)
	src := os.Getenv("CAIRN_BENCH_TREE")
	if src == "" {
		src = filepath.Join(scratch, "tree")
		fstest.WriteFiles(b, src, 6_000)
	}
	raw, out := filepath.Join(scratch, "raw"), filepath.Join(scratch, "out")
	var ours, theirs fstest.Usage
	var sizes [2]int64
	for b.Loop() {
		_ = os.Remove(out)
		var fs ext4.Summary
		ours.Add(fstest.Measure(b, func() { fs, sizes[0] = onePass(b, src, out) }))
		_, _ = os.Remove(out), os.Remove(raw)
		theirs.Add(fstest.Measure(b, func() {
			for _, cmd := range []*exec.Cmd{
				exec.Command(mke2fs, "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-J", "size=16", "-N", strconv.FormatInt(fs.Inodes, 10),
					"-O", "^resize_inode,meta_bg", "-E", "lazy_itable_init=1", "-d", src, raw, strconv.FormatInt(fs.Blocks+fs.Blocks/10, 10)),
				exec.Command(qemuImg, "convert", "-c", "-f", "raw", "-O", "qcow2", raw, out),
			} {
				if msg, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%s: %v\n%s", cmd, err, msg)
				}
			}
		}))
		info, err := os.Stat(out)
		if err != nil {
			b.Fatal(err)
		}
		sizes[1] = info.Size()
	}
	ours.Report(b, theirs, "mke2fs+qemu")
	b.ReportMetric(float64(sizes[0])/float64(sizes[1]), "size-ratio")
}

// onePass returns what the file system is like and the size of the image.
func onePass(b *testing.B, src, out string) (ext4.Summary, int64) {
	b.Helper()
	f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	t, err := dir.Read(b.Context(), src, dir.Options{})
	if err != nil {
		b.Fatal(err)
	}
	img := fsbuild.Image{Tree: t, FS: ext4.Params{UUID: [16]byte{1}}}
	results, err := fsbuild.Build(b.Context(), img, []fsbuild.Output{{Format: fsbuild.FormatQCOW2, File: f, Compress: true}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	return results[0].FileSystem, results[0].Size
}
