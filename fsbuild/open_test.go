package fsbuild_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild"
	"cairn/fsbuild/internal/disktest"
	"cairn/fsbuild/qcow2"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/vhd"
	"cairn/fsbuild/vmdk"
)

// writers are what a disk can be copied to. The raw one is the file itself.
var writers = map[string]func(f *os.File, size int64) (disktest.Writer, error){
	"raw": func(f *os.File, size int64) (disktest.Writer, error) {
		return struct {
			io.WriterAt
			io.Closer
		}{f, io.NopCloser(nil)}, f.Truncate(size)
	},
	"qcow2": func(f *os.File, size int64) (disktest.Writer, error) {
		return qcow2.NewWriter(f, size, qcow2.Options{Compression: qcow2.Zstd})
	},
	"vhd": func(f *os.File, size int64) (disktest.Writer, error) { return vhd.NewWriter(f, size, vhd.Options{}) },
	"vhd-fixed": func(f *os.File, size int64) (disktest.Writer, error) {
		return vhd.NewWriter(f, size, vhd.Options{Kind: vhd.Fixed})
	},
	"vmdk": func(f *os.File, size int64) (disktest.Writer, error) { return vmdk.NewWriter(f, size, vmdk.Options{}) },
}

// copyOf copies a disk into a new file and returns its path.
func copyFileOf(t *testing.T, d fsbuild.Disk, format string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk."+format)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	must(t, err)
	defer f.Close()
	w, err := writers[format](f, d.Size())
	must(t, err)
	must(t, fsbuild.CopyDisk(t.Context(), w, d))
	must(t, w.Close())
	return path
}

func openDisk(t *testing.T, path, format string) (fsbuild.Disk, string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	must(t, err)
	d, found, err := fsbuild.OpenDisk(f, info.Size(), format)
	must(t, err)
	return d, found
}

// TestAnyToAny copies a disk from each format to each other one.
func TestAnyToAny(t *testing.T) {
	size := int64(11 << 20)
	raw := disktest.Raw(t, size, disktest.Pattern(1, size, 3<<20))
	want, err := os.ReadFile(raw)
	must(t, err)
	source, format := openDisk(t, raw, "")
	if format != fsbuild.FormatRaw {
		t.Errorf("raw disk is taken for %s", format)
	}
	direct := map[string]string{}
	for to := range writers {
		direct[to] = disktest.Digest(t, copyFileOf(t, source, to))
	}
	for from := range writers {
		d, found := openDisk(t, copyFileOf(t, source, from), "")
		if found != map[string]string{"vhd-fixed": "vhd"}[from] && found != from {
			t.Errorf("%s is taken for %s", from, found)
		}
		disktest.CheckDisk(t, d, want)
		for to := range writers {
			if got := disktest.Digest(t, copyFileOf(t, d, to)); got != direct[to] {
				t.Errorf("%s made from %s is not the one made from raw", to, from)
			}
		}
	}
}

func TestHolesAreNotRead(t *testing.T) {
	raw := disktest.Raw(t, 1<<40, []disktest.Write{{Off: 1 << 39, Data: []byte("x")}})
	d, _ := openDisk(t, raw, fsbuild.FormatRaw)
	path := copyFileOf(t, d, "qcow2")
	back, _ := openDisk(t, path, "")
	if diff := cmp.Diff([]tree.Extent{{Off: 1 << 39, Len: 64 << 10}}, disktest.Extents(t, back)); diff != "" {
		t.Errorf("runs of data (-want +got):\n%s", diff)
	}
}

func TestOpenDiskByFormat(t *testing.T) {
	qcow := append([]byte("QFI\xfb"), make([]byte, 2000)...)
	for _, tc := range []struct {
		content, format, want string
		err                   error
	}{
		{string(qcow), "raw", "raw", nil},
		{string(qcow), "", "", qcow2.ErrUnsupported},
		{"", "", "raw", nil},
		{"x", "", "raw", nil},
		{"x", "vhd", "", vhd.ErrCorrupt},
		{"x", "vmdk", "", vmdk.ErrCorrupt},
		{"# Disk DescriptorFile\n" + string(qcow), "", "", vmdk.ErrUnsupported},
		{"COWD" + string(qcow), "", "", vmdk.ErrUnsupported},
		{"vhdxfile", "", "", fsbuild.ErrFormat},
		{"<<< Oracle VM VirtualBox Disk Image >>>", "", "", fsbuild.ErrFormat},
		{"x", "vdi", "", fsbuild.ErrFormat},
	} {
		d, format, err := fsbuild.OpenDisk(bytes.NewReader([]byte(tc.content)), int64(len(tc.content)), tc.format)
		if format != tc.want || !errors.Is(err, tc.err) || err == nil && d.Size() != int64(len(tc.content)) {
			t.Errorf("%.20q as %q: format %q, error %v; want %q, %v", tc.content, tc.format, format, err, tc.want, tc.err)
		}
	}
}

func TestCopyDiskStops(t *testing.T) {
	d, _, err := fsbuild.OpenDisk(bytes.NewReader(bytes.Repeat([]byte{1}, 1<<20)), 1<<20, "raw")
	must(t, err)
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if err := fsbuild.CopyDisk(ctx, nil, d); !errors.Is(err, gone) {
		t.Errorf("error = %v, want %v", err, gone)
	}
	f, err := os.Open(os.DevNull) // not open for writing
	must(t, err)
	defer f.Close()
	if err := fsbuild.CopyDisk(t.Context(), f, d); err == nil {
		t.Error("no error from a file that cannot be written")
	}
	short, _, err := fsbuild.OpenDisk(bytes.NewReader(nil), 1<<20, "raw")
	must(t, err)
	if err := fsbuild.CopyDisk(t.Context(), f, short); !errors.Is(err, io.EOF) {
		t.Errorf("file shorter than its size: error = %v", err)
	}
}

func ExampleCopyDisk() {
	raw := bytes.Repeat([]byte("disk"), 1<<18)
	d, format, err := fsbuild.OpenDisk(bytes.NewReader(raw), int64(len(raw)), "")
	if err != nil {
		fmt.Println(err)
		return
	}
	f, err := os.CreateTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(f.Name())
	defer f.Close()

	w, err := vmdk.NewWriter(f, d.Size(), vmdk.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer w.Abort()
	if err = fsbuild.CopyDisk(context.Background(), w, d); err == nil {
		err = w.Close()
	}
	fmt.Println(format, "to vmdk:", err)
	// Output:
	// raw to vmdk: <nil>
}
