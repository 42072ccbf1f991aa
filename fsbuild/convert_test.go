package fsbuild_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"cairn/fsbuild"
	"cairn/fsbuild/internal/disktest"
)

// TestConvert makes all formats of one disk in one pass, as qemu-img sees them.
func TestConvert(t *testing.T) {
	size := int64(11 << 20)
	raw := disktest.Raw(t, size, disktest.Pattern(3, size, 3<<20))
	source, _ := openDisk(t, raw, "")
	var outs []fsbuild.Output
	for _, format := range fsbuild.Formats() {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk."+format))
		must(t, err)
		defer f.Close()
		outs = append(outs, fsbuild.Output{Format: format, File: f, Compress: true})
	}
	var last int64
	results, err := fsbuild.Convert(t.Context(), source, outs, func(done, _ int64) { last = done })
	must(t, err)
	if last != size {
		t.Errorf("progress ended at %d of %d", last, size)
	}
	for i, o := range outs {
		drivers := map[string]string{"vhd": "vpc", "vhd-fixed": "vpc"}
		driver := o.Format
		if d := drivers[o.Format]; d != "" {
			driver = d
		}
		if out, err := exec.Command("qemu-img", "compare", "-f", "raw", "-F", driver, raw, o.File.Name()).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", o.Format, err, out)
		}
		if got := disktest.Digest(t, o.File.Name()); got != results[i].SHA256 || results[i].VirtualSize != size {
			t.Errorf("%s: result %+v, sha256 is %s", o.Format, results[i], got)
		}
	}
}

// broken is a disk that cannot be read to its end.
type broken struct{ fsbuild.Disk }

var errBroken = errors.New("medium error")

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

func TestConvertFails(t *testing.T) {
	size := int64(1 << 20)
	raw := disktest.Raw(t, size, disktest.Pattern(3, size, 1<<20))
	source, _ := openDisk(t, raw, "")
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.qcow2"))
	must(t, err)
	defer f.Close()
	if _, err := fsbuild.Convert(t.Context(), broken{source}, []fsbuild.Output{{Format: "qcow2", File: f}}, nil); !errors.Is(err, errBroken) || errors.Is(err, io.EOF) {
		t.Errorf("err = %v, want %v", err, errBroken)
	}
}
