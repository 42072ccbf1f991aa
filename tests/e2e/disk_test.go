package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const diskConfig = `
- local_loop: {name: image0}
- partitioning:
    base: image0
    label: gpt
    partitions:
      - {name: ESP, type: EF00, size: 40MiB, mkfs: {type: vfat, mount: {mount_point: /boot/efi, fstab: {options: umask=0077, fsck-passno: 2}}}}
      - {name: paging, type: 8200, size: 16MiB, mkfs: {type: swap, label: paging, mount: {mount_point: swap, fstab: {}}}}
      - {name: boot, size: 32MiB, mkfs: {type: ext2, label: bootfs, mount: {mount_point: /boot, fstab: {}}}}
      - {name: root, size: 100%, mkfs: {mount: {mount_point: /, fstab: {fsck-passno: 1}}}}
`

const diskFstab = `LABEL=cloudimg-rootfs / ext3 defaults 0 1
LABEL=bootfs /boot ext2 defaults 0 2
LABEL=MKFS_ESP /boot/efi vfat umask=0077 0 2
LABEL=paging none swap sw 0 0
`

// part copies a partition of a raw disk, by its number, into a file.
func part(t *testing.T, disk string, number int) string {
	t.Helper()
	out, err := exec.Command("sfdisk", "--json", disk).Output()
	if err != nil {
		t.Fatalf("sfdisk --json: %v", err)
	}
	var dump struct {
		PartitionTable struct {
			Partitions []struct{ Start, Size int64 }
		}
	}
	if err := json.Unmarshal(out, &dump); err != nil {
		t.Fatal(err)
	}
	p := dump.PartitionTable.Partitions[number-1]
	file := filepath.Join(t.TempDir(), "part"+strconv.Itoa(number))
	if out, err := exec.Command("dd", "if="+disk, "of="+file, "bs=512", "conv=sparse", "status=none",
		"skip="+strconv.FormatInt(p.Start, 10), "count="+strconv.FormatInt(p.Size, 10)).CombinedOutput(); err != nil {
		t.Fatalf("dd: %v\n%s", err, out)
	}
	return file
}

// checkDisk has others look at the disk of diskConfig.
func checkDisk(t *testing.T, disk string) (root string) {
	t.Helper()
	if out, err := exec.Command("sgdisk", "--verify", disk).CombinedOutput(); err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk --verify: %v\n%s", err, out)
	}
	esp, boot, root := part(t, disk, 1), part(t, disk, 3), part(t, disk, 4)
	if out, err := exec.Command("fsck.vfat", "-n", esp).CombinedOutput(); err != nil {
		t.Errorf("fsck.vfat: %v\n%s", err, out)
	}
	if out, err := exec.Command("mtype", "-i", esp, "::/EFI/BOOT/BOOTX64.EFI").CombinedOutput(); string(out) != "start\n" {
		t.Errorf("BOOTX64.EFI is %q (%v)", out, err)
	}
	checkFS(t, boot)
	checkFS(t, root)
	if got := debugfs(t, boot, "cat /kernel"); got != "kernel\n" {
		t.Errorf("/boot/kernel is %q", got)
	}
	if got := debugfs(t, root, "cat /boot/kernel"); got != "" {
		t.Errorf("the root file system has /boot/kernel too: %q", got)
	}
	return root
}

// TestBlockDevice: a configuration of the caller, with file systems of several
// kinds, and the same disk from the tree alone.
func TestBlockDevice(t *testing.T) {
	who := ordinary(t)
	dir := scratch(t, who)
	config := filepath.Join(dir, "disk.yaml")
	write(t, config, diskConfig)
	r := build(t, who, dir, "test-os", "seen-disk", "--image-extra-size", "40")
	r.env = append(r.env, "DIB_BLOCK_DEVICE_CONFIG=file://"+config, "FS_TYPE=ext3")
	r.ok()
	disk := filepath.Join(dir, "x.raw")
	root := checkDisk(t, disk)
	checkFree(t, root, (40+32)<<20) // beside what the first boot needs
	if got := debugfs(t, root, "cat /etc/fstab"); got != diskFstab {
		t.Errorf("/etc/fstab is\n%swant\n%s", got, diskFstab)
	}
	want := "/dev/cairn0 [image0]=/dev/cairn0 [ESP]=/dev/cairn0p1 [paging]=/dev/cairn0p2 [boot]=/dev/cairn0p3 [root]=/dev/cairn0p4 \n" +
		"/|/boot|/boot/efi|none cloudimg-rootfs ext3 bootfs\n"
	if got := debugfs(t, root, "cat /seen-disk"); got != want {
		t.Errorf("hooks saw\n%swant\n%s", got, want)
	}
	lock, err := os.ReadFile(filepath.Join(dir, "x.lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(lock), "bootfs") {
		t.Error("the lock does not hold the configuration")
	}
	write(t, config, strings.Replace(diskConfig, "40MiB", "50MiB", 1))
	again := build(t, who, dir, "test-os", "seen-disk", "--locked", "--image-extra-size", "40")
	again.env = r.env
	again.refused(1, []string{"block-device", "hint:"})
	nothingLeft(t, dir)
}

// TestDisk: the command that lays a tree out on a disk.
func TestDisk(t *testing.T) {
	who := ordinary(t)
	dir := scratch(t, who)
	write(t, filepath.Join(dir, "disk.yaml"), diskConfig)
	for name, content := range map[string]string{"etc/hostname": "demo\n", "boot/kernel": "kernel\n", "boot/efi/EFI/BOOT/BOOTX64.EFI": "start\n"} {
		write(t, filepath.Join(dir, "tree", name), content)
	}
	run := func(args ...string) *run {
		return &run{t: t, who: who, dir: dir, env: []string{"TMPDIR=" + dir}, args: append([]string{"disk", "--config", "disk.yaml"}, args...)}
	}
	var summary struct {
		SHA256, Fstab string
		VirtualSize   int64 `json:"virtual_size"`
		FileSystems   []struct {
			MountPoint string `json:"mount_point"`
		} `json:"file_systems"`
	}
	r := run("-t", "raw", "--root-type", "ext3", "--owner", "0:0", "--size", "+1M", "--json", "tree", "x.raw")
	if err := json.Unmarshal([]byte(r.ok().stdout), &summary); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "x.raw")
	root := checkDisk(t, disk)
	if got := debugfs(t, root, "cat /etc/hostname"); got != "demo\n" {
		t.Errorf("/etc/hostname is %q", got)
	}
	if digest(t, disk) != summary.SHA256 || summary.Fstab != diskFstab || len(summary.FileSystems) != 3 {
		t.Errorf("summary %+v", summary)
	}
	run("-t", "qcow2", "-o", "compression_type=zstd", "--root-type", "ext3", "--owner", "0:0", "--size", "+1M", "tree", "x.qcow2").ok()
	if out, err := exec.Command("qemu-img", "compare", disk, filepath.Join(dir, "x.qcow2")).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	run("--size", "64M", "tree", "y").refused(1, []string{"partition"}, filepath.Join(dir, "y"))
	run("--root-type", "btrfs", "tree", "y").refused(1, []string{"mkfs mkfs_root: type: btrfs"}, filepath.Join(dir, "y"))
	nothingLeft(t, dir)
}

// checkFree checks that a file system that is otherwise of minimal size has so
// many bytes free, and not a MiB more.
func checkFree(t *testing.T, fs string, want int64) {
	t.Helper()
	var blocks, size int64
	for line := range strings.Lines(tool(t, "dumpe2fs", "-h", fs)) {
		_, _ = fmt.Sscanf(line, "Free blocks: %d", &blocks)
		_, _ = fmt.Sscanf(line, "Block size: %d", &size)
	}
	if free := blocks * size; free < want || free > want+1<<20 {
		t.Errorf("%d bytes are free, want %d", free, want)
	}
}
