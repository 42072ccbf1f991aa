package tar

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"cairn/fsbuild/internal/fstest"
	"cairn/tests/require"
)

// BenchmarkRead reads an archive of 100,000 entries, each with an extended
// header for its time, and compares with the lists that GNU tar and archive/tar
// make of it, turn and turn about.
func BenchmarkRead(b *testing.B) {
	tool := require.Tool(b, "tar", "tar")
	in := debianArchive(b)
	info, err := in.Stat()
	if err != nil {
		b.Fatal(err)
	}
	count := &counting{ReaderAt: in}
	for _, c := range []struct {
		name string
		list func()
	}{
		{"tar", func() {
			if msg, err := exec.Command(tool, "-tf", in.Name()).CombinedOutput(); err != nil {
				b.Fatalf("tar: %v\n%.2000s", err, msg)
			}
		}},
		{"std", func() { list(b, io.NewSectionReader(in, 0, info.Size())) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			var ours, theirs fstest.Usage
			b.ReportAllocs()
			for b.Loop() {
				*count = counting{ReaderAt: in}
				ours.Add(fstest.Measure(b, func() {
					if _, err := Read(b.Context(), count, info.Size(), Options{}); err != nil {
						b.Fatal(err)
					}
				}))
				b.StopTimer() // for the allocations
				theirs.Add(fstest.Measure(b, c.list))
				b.StartTimer()
			}
			ours.Report(b, theirs, c.name)
			b.ReportMetric(float64(count.reads), "reads")
			b.ReportMetric(float64(count.bytes)/(1<<20), "read-MiB")
		})
	}
}

// debianArchive makes a file with the archive of fstest.DebianTree.
func debianArchive(b *testing.B) *os.File {
	b.Helper()
	f, err := os.OpenFile(filepath.Join(fstest.ScratchDir(b), "archive"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	t := fstest.DebianTree()
	for n := range t.All() {
		n.MTime.Nsec = 123_456_789
	}
	if _, err := Write(b.Context(), f, t, Params{}); err != nil {
		b.Fatal(err)
	}
	return f
}

// list goes through the headers of an archive.
func list(b *testing.B, r io.Reader) {
	b.Helper()
	for tr := tar.NewReader(r); ; {
		if _, err := tr.Next(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			b.Fatal(err)
		}
	}
}
