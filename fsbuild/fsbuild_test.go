package fsbuild_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/fsbuild"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/grub"
	"cairn/fsbuild/qcow2"
	"cairn/fsbuild/tree"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, pkg, tool string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Fatalf("%v: install %s", err, pkg)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", tool, args, err, out)
	}
	return string(out)
}

// sample is a small tree with a large file in it.
func sample(t testing.TB) *tree.Tree {
	t.Helper()
	tr := tree.New()
	large := bytes.Repeat([]byte("all work and no play makes a dull image\n"), 200000)
	for _, n := range []tree.Node{
		{Path: "etc", Type: tree.Directory, Mode: 0o755},
		{Path: "etc/hostname", Type: tree.Regular, Mode: 0o644, Size: 6, Content: tree.Bytes([]byte("cairn\n"))},
		{Path: "etc/link", Type: tree.Symlink, Mode: 0o777, Target: "hostname"},
		{Path: "large", Type: tree.Regular, Mode: 0o600, UID: 1000, GID: 1000, Size: int64(len(large)), Content: tree.Bytes(large)},
	} {
		must(t, tr.Add(n))
	}
	return tr
}

func params() ext4.Params {
	return ext4.Params{
		UUID: [16]byte{0: 0xca, 15: 0x1f}, HashSeed: [16]byte{1, 2, 3}, Label: "cloudimg-rootfs",
		Time: time.Unix(1700000000, 0), Slack: 4 << 20, JournalSize: 4 << 20,
	}
}

// grubImages returns Debian's boot.img and a core.img made for it.
func grubImages(t testing.TB) (boot, core []byte) {
	t.Helper()
	const modules = "/usr/lib/grub/i386-pc"
	boot, err := os.ReadFile(filepath.Join(modules, "boot.img"))
	if err != nil {
		t.Fatalf("%v: install grub-pc-bin", err)
	}
	out := filepath.Join(t.TempDir(), "core.img")
	run(t, "grub-common", "grub-mkimage", append([]string{"-O", "i386-pc", "-d", modules, "-p", "/boot/grub", "-o", out}, grub.Modules()...)...)
	core, err = os.ReadFile(out)
	must(t, err)
	return boot, core
}

// build writes img in all formats and returns their paths, the raw one first.
func build(t testing.TB, img fsbuild.Image) (paths []string, results []fsbuild.Result) {
	t.Helper()
	dir := t.TempDir()
	outs := []fsbuild.Output{
		{Format: fsbuild.FormatRaw},
		{Format: fsbuild.FormatQCOW2, Compress: true},
		{Format: fsbuild.FormatQCOW2},
		{Format: fsbuild.FormatQCOW2, Compress: true, QCOW2: qcow2.Options{Version: 2}},
	}
	var files []*fsbuild.OutputFile
	for i := range outs {
		paths = append(paths, filepath.Join(dir, fmt.Sprintf("%d.%s", i, outs[i].Format)))
		o, err := fsbuild.CreateOutput(paths[i])
		must(t, err)
		defer o.Abort()
		files, outs[i].File = append(files, o), o.File()
	}
	results, err := fsbuild.Build(t.Context(), img, outs, nil)
	must(t, err)
	for _, o := range files {
		must(t, o.Commit())
	}
	for _, p := range paths[1:] {
		run(t, "qemu-utils", "qemu-img", "check", "-q", "-f", "qcow2", p)
		run(t, "qemu-utils", "qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", p, paths[0])
	}
	return paths, results
}

// fileSystem cuts the file system out of a raw disk and lets e2fsprogs look.
func checkFileSystem(t *testing.T, disk []byte, offset, size int64) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fs.img")
	must(t, os.WriteFile(path, disk[offset:offset+size], 0o600))
	run(t, "e2fsprogs", "e2fsck", "-fn", path)
	if out := run(t, "e2fsprogs", "debugfs", "-R", "cat /etc/hostname", path); !strings.Contains(out, "cairn\n") {
		t.Errorf("/etc/hostname holds %q", out)
	}
	if out := run(t, "util-linux", "blkid", "-p", "-o", "value", "-s", "LABEL", path); out != "cloudimg-rootfs\n" {
		t.Errorf("label is %q", out)
	}
}

func TestBuildMBR(t *testing.T) {
	boot, core := grubImages(t)
	for name, diskSize := range map[string]int64{"minimal": 0, "given": 256 << 20} {
		t.Run(name, func(t *testing.T) {
			paths, results := build(t, fsbuild.Image{
				Tree: sample(t), FS: params(), Table: fsbuild.MBR, DiskSignature: 0xdecafbad,
				Boot: boot, Core: core, DiskSize: diskSize,
			})
			disk, err := os.ReadFile(paths[0])
			must(t, err)
			size := results[0].FileSystem.Size
			if diskSize != 0 && (int64(len(disk)) != diskSize || size != diskSize-2<<20) {
				t.Errorf("disk of %d bytes, file system of %d", len(disk), size)
			}
			if len(disk)%(1<<20) != 0 {
				t.Errorf("disk has %d bytes, no whole MiB", len(disk))
			}
			checkFileSystem(t, disk, 1<<20, size)
			if out := run(t, "fdisk", "sfdisk", "--verify", paths[0]); !strings.Contains(out, "No errors detected") {
				t.Errorf("sfdisk --verify: %s", out)
			}
			if out := run(t, "fdisk", "sfdisk", "-d", paths[0]); !strings.Contains(out, "label-id: 0xdecafbad") ||
				!strings.Contains(out, "type=83, bootable") || strings.Count(out, "start=") != 1 {
				t.Errorf("sfdisk -d: %s", out)
			}
			e, err := grub.Embed(boot, core, 1, 2048)
			must(t, err)
			if !bytes.Equal(disk[:440], e.BootCode) || !bytes.Equal(disk[512:512+len(e.Core)], e.Core) {
				t.Error("boot loader is not where it belongs")
			}
		})
	}
}

func TestBuildBareFileSystem(t *testing.T) {
	for name, diskSize := range map[string]int64{"minimal": 0, "given": 200 << 20} {
		t.Run(name, func(t *testing.T) {
			paths, results := build(t, fsbuild.Image{Tree: sample(t), FS: params(), DiskSize: diskSize})
			disk, err := os.ReadFile(paths[0])
			must(t, err)
			checkFileSystem(t, disk, 0, results[0].FileSystem.Size)
			run(t, "e2fsprogs", "e2fsck", "-fn", paths[0])
		})
	}
}

func TestSizeOfTheFileSystemAndOfTheDisk(t *testing.T) {
	p := params()
	p.Size, p.Slack = 64<<20, 0
	_, results := build(t, fsbuild.Image{Tree: sample(t), FS: p, Table: fsbuild.MBR, DiskSize: 128 << 20})
	if r := results[0]; r.FileSystem.Size != 64<<20 || r.VirtualSize != 128<<20 {
		t.Errorf("file system of %d on a disk of %d bytes", r.FileSystem.Size, r.VirtualSize)
	}
}

// zeros is a partition of so many zeros.
func zeros(size int64) fsbuild.Partition {
	return fsbuild.Partition{Content: fsbuild.Reader(bytes.NewReader(make([]byte, size)), size)}
}

// TestNoRoot writes disks without the root in all formats: one that is a
// content, and one with nothing on it.
func TestNoRoot(t *testing.T) {
	const size = 3 << 20
	text := bytes.Repeat([]byte("content "), 1000)
	whole := fsbuild.Partition{Fit: func(room int64) (fsbuild.Content, error) {
		if room != size {
			t.Errorf("%d bytes for the content", room)
		}
		return fsbuild.Reader(bytes.NewReader(text), int64(len(text))), nil
	}}
	for want, img := range map[string]fsbuild.Image{
		string(text): {DiskSize: size, Partitions: []fsbuild.Partition{whole}}, "": {DiskSize: size},
	} {
		for _, format := range fsbuild.Formats() {
			f, err := os.CreateTemp(t.TempDir(), "")
			must(t, err)
			defer f.Close()
			results, err := fsbuild.Build(t.Context(), img, []fsbuild.Output{{Format: format, File: f}}, nil)
			must(t, err)
			st, err := f.Stat()
			must(t, err)
			d, _, err := fsbuild.OpenDisk(f, st.Size(), format)
			must(t, err)
			b := make([]byte, size)
			if n, err := d.ReadAt(b, 0); n < size {
				t.Fatal(format, err)
			}
			if got := string(bytes.TrimRight(b, "\x00")); got != want || results[0].VirtualSize != size || results[0].FileSystem.Size != 0 {
				t.Errorf("%s: %d bytes of content, disk of %d", format, len(got), results[0].VirtualSize)
			}
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	bad := params()
	bad.Label = "this label is too long"
	fixed := params()
	fixed.Size, fixed.Slack = 64<<20, 0
	for name, tc := range map[string]struct {
		img  fsbuild.Image
		want string
	}{
		"no tree":           {fsbuild.Image{FS: params()}, "neither a size nor a content"},
		"no root":           {fsbuild.Image{Table: fsbuild.MBR}, "neither a tree nor partitions"},
		"root without tree": {fsbuild.Image{Table: fsbuild.GPT, Partitions: []fsbuild.Partition{{Root: true}}}, "without a tree"},
		"two without table": {fsbuild.Image{DiskSize: 1 << 20, Partitions: []fsbuild.Partition{zeros(1), zeros(1)}}, "need a partition table"},
		"tree and another":  {fsbuild.Image{Tree: tree.New(), Partitions: []fsbuild.Partition{zeros(1)}}, "need a partition table"},
		"whole too large":   {fsbuild.Image{DiskSize: 1 << 20, Partitions: []fsbuild.Partition{zeros(2 << 20)}}, "does not fit"},
		"unknown table":     {fsbuild.Image{Tree: tree.New(), FS: params(), Table: 9}, "partition table 9"},
		"boot.img alone":    {fsbuild.Image{Tree: tree.New(), FS: params(), Table: fsbuild.MBR, Boot: []byte("x")}, "only one of"},
		"boot, no table":    {fsbuild.Image{Tree: tree.New(), FS: params(), Boot: []byte("x"), Core: []byte("y")}, "needs a partition table"},
		"odd disk size":     {fsbuild.Image{Tree: tree.New(), FS: params(), DiskSize: 1000}, "not a multiple of 512"},
		"negative size":     {fsbuild.Image{Tree: tree.New(), FS: params(), DiskSize: -512}, "not a multiple of 512"},
		"no room":           {fsbuild.Image{Tree: tree.New(), FS: params(), Table: fsbuild.MBR, DiskSize: 2 << 20}, "no room"},
		"disk too small":    {fsbuild.Image{Tree: sample(t), FS: params(), DiskSize: 6 << 20}, "too small for the tree"},
		"fs beyond disk":    {fsbuild.Image{Tree: sample(t), FS: fixed, DiskSize: 32 << 20}, "does not fit"},
		"parameter of ext4": {fsbuild.Image{Tree: tree.New(), FS: bad}, "this label is too long"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := os.CreateTemp(t.TempDir(), "")
			must(t, err)
			defer f.Close()
			_, err = fsbuild.Build(t.Context(), tc.img, []fsbuild.Output{{Format: fsbuild.FormatRaw, File: f}}, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestUnreadableContent(t *testing.T) {
	tr := sample(t)
	tr.Lookup("large").Content = tree.Bytes([]byte("shorter than it says"))
	f, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	defer f.Close()
	_, err = fsbuild.Build(t.Context(), fsbuild.Image{Tree: tr, FS: params()}, []fsbuild.Output{{Format: fsbuild.FormatQCOW2, File: f}}, nil)
	var oe *fsbuild.OutputError
	if err == nil || !strings.Contains(err.Error(), "large") || errors.As(err, &oe) {
		t.Errorf("error = %v, want one of the tree that names the file", err)
	}
}

func ExampleBuild() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	out, err := fsbuild.CreateOutput(filepath.Join(dir, "disk.qcow2"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer out.Abort()
	img := fsbuild.Image{
		Tree:  tree.New(),
		FS:    ext4.Params{UUID: [16]byte{1}, Label: "root", Time: time.Unix(1700000000, 0), Slack: 32 << 20},
		Table: fsbuild.MBR,
	}
	results, err := fsbuild.Build(context.Background(), img, []fsbuild.Output{{Format: fsbuild.FormatQCOW2, File: out.File(), Compress: true}}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := out.Commit(); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(results[0].Format, "of", results[0].VirtualSize>>20, "MiB")
	// Output:
	// qcow2 of 50 MiB
}
