package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/qcow2"
	"cairn/fsbuild/squashfs"
	"cairn/fsbuild/tar"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
)

// run starts a judge, which must be there.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// inputs are an archive, and GRUB's images as Debian has them.
func inputs(t *testing.T) (rootfs, boot, core string) {
	t.Helper()
	const grubDir = "/usr/lib/grub/i386-pc"
	dir := t.TempDir()
	rootfs, core = filepath.Join(dir, "rootfs.tar"), filepath.Join(dir, "core.img")
	run(t, "tar", "-C", "/etc", "--sort=name", "--format=posix", "--pax-option=delete=atime,delete=ctime", "-cf", rootfs, "debian_version", "passwd", "default")
	run(t, "grub-mkimage", "-O", "i386-pc", "-d", grubDir, "-p", "/boot/grub", "-o", core, "biosdisk", "part_gpt", "ext2")
	return rootfs, grubDir + "/boot.img", core
}

// TestDisk: other programs find the disk sound, and it reads back as the tree
// that went in.
func TestDisk(t *testing.T) {
	rootfs, boot, core := inputs(t)
	dir := t.TempDir()
	disk, raw := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "disk.raw")
	must(t, build(t.Context(), rootfs, boot, core, disk))
	run(t, "qemu-img", "check", disk)
	run(t, "qemu-img", "convert", "-O", "raw", disk, raw)
	if said := run(t, "sgdisk", "-v", raw); !strings.Contains(said, "No problems found") {
		t.Errorf("sgdisk -v:\n%s", said)
	}
	f, err := os.Open(disk)
	must(t, err)
	defer f.Close()
	st, err := f.Stat()
	must(t, err)
	image, err := qcow2.Open(f, st.Size())
	must(t, err)
	table, err := partition.Read(image, image.Size())
	must(t, err)
	if len(table.Partitions) != 3 || table.Damage != nil {
		t.Fatalf("table: %+v", table)
	}
	parts := map[string]*io.SectionReader{}
	for i, p := range table.Partitions {
		parts[p.Name] = io.NewSectionReader(image, int64(p.Start)*sector, int64(p.Sectors)*sector)
		run(t, "dd", "if="+raw, "of="+raw+p.Name, "bs=512", fmt.Sprint("skip=", p.Start), fmt.Sprint("count=", p.Sectors), "status=none")
		if i == 0 {
			continue
		}
		run(t, map[string]string{"ESP": "/usr/sbin/fsck.vfat", "root": "/usr/sbin/e2fsck"}[p.Name], "-n", raw+p.Name)
	}

	esp, err := vfat.Open(parts["ESP"], parts["ESP"].Size())
	must(t, err)
	if n := esp.Tree.Lookup("EFI/BOOT/BOOTX64.EFI"); n == nil || esp.Label != "ESP" {
		t.Errorf("ESP %q has the loader %v", esp.Label, n)
	}
	root, err := ext4.Open(parts["root"], parts["root"].Size())
	must(t, err)
	got, err := root.Tree(t.Context())
	must(t, err)
	if want, got := text(t, archived(t, rootfs)), text(t, got); want != got {
		t.Errorf("the root file system is\n%s\nnot\n%s", got, want)
	}

	again := filepath.Join(dir, "again.qcow2")
	must(t, build(t.Context(), rootfs, boot, core, again))
	if digest(t, disk) != digest(t, again) {
		t.Error("made again it has other bytes")
	}
}

// TestSquashfs: the same tree in another format, which another program reads.
func TestSquashfs(t *testing.T) {
	rootfs, _, _ := inputs(t)
	out := filepath.Join(t.TempDir(), "root.squashfs")
	f, err := os.Create(out)
	must(t, err)
	_, err = squashfs.Write(t.Context(), f, archived(t, rootfs), squashfs.Params{Time: stamp, Compression: squashfs.Zstd})
	must(t, err)
	must(t, f.Close())
	want, err := os.ReadFile("/etc/debian_version")
	must(t, err)
	if got := run(t, "unsquashfs", "-cat", out, "debian_version"); got != string(want) {
		t.Errorf("debian_version is %q, want %q", got, want)
	}
}

// TestREADME: the README shows a program that works.
func TestREADME(t *testing.T) {
	program, err := os.ReadFile("readme/main.go")
	must(t, err)
	readme, err := os.ReadFile("../../README.md")
	must(t, err)
	if !strings.Contains(string(readme), "```go\n"+string(program)+"```\n") {
		t.Error("README.md does not show readme/main.go as it is")
	}
	dir := t.TempDir()
	binary := filepath.Join(dir, "readme")
	run(t, "go", "build", "-o", binary, "./readme")
	cmd := exec.Command(binary)
	cmd.Dir = dir
	out, err := cmd.Output()
	must(t, err)
	if want := "ca120000-0000-0000-0000-000000000001 134230016 <nil>\n"; string(out) != want {
		t.Errorf("it prints %q, want %q", out, want)
	}
	run(t, "/usr/sbin/e2fsck", "-fn", filepath.Join(dir, "root.img"))
}

func archived(t *testing.T, path string) *tree.Tree {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	tr, err := tar.Read(t.Context(), bytes.NewReader(b), int64(len(b)), tar.Options{})
	must(t, err)
	return tr
}

// text describes a tree, with times no later than the file system has them.
func text(t *testing.T, tr *tree.Tree) string {
	t.Helper()
	latest := tree.Time{Sec: stamp.Unix()}
	for n := range tr.All() {
		if n.MTime.Compare(latest) > 0 {
			n.MTime = latest
		}
	}
	var b strings.Builder
	must(t, tr.WriteText(&b))
	return b.String()
}

func digest(t *testing.T, path string) [32]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return sha256.Sum256(b)
}
