package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
- local_loop: {name: data, size: 64MiB, mkfs: {type: ext4, label: datafs, mount: {mount_point: /srv, fstab: {options: nodev}}}}
`

const diskFstab = `LABEL=cloudimg-rootfs / ext3 defaults 0 1
LABEL=bootfs /boot ext2 defaults 0 2
LABEL=MKFS_ESP /boot/efi vfat umask=0077 0 2
LABEL=datafs /srv ext4 nodev 0 2
LABEL=paging none swap sw 0 0
`

// diskParts are the partitions of diskConfig: the type and name in the table,
// the type and label of the file system.
var diskParts = []string{
	"C12A7328-F81F-11D2-BA4B-00A0C93EC93B ESP: vfat MKFS_ESP",
	"0657FD6D-A4AB-43C4-84E5-0933C84B4F4F paging: swap paging",
	"0FC63DAF-8483-4772-8E79-3D69D8477DE4 boot: ext2 bootfs",
	"0FC63DAF-8483-4772-8E79-3D69D8477DE4 root: ext3 cloudimg-rootfs",
}

// fileSystem is what blkid says of one: its type and label.
func fileSystem(t *testing.T, file string) string {
	t.Helper()
	var words []string
	for _, tag := range []string{"TYPE", "LABEL"} {
		out, err := exec.Command("blkid", "-p", "-o", "value", "-s", tag, file).Output()
		if err != nil {
			t.Errorf("blkid %s: %v", file, err)
		}
		words = append(words, strings.TrimSpace(string(out)))
	}
	return strings.Join(words, " ")
}

// parts copies the partitions of a raw disk into files, and says what type and
// name the table gives them.
func parts(t *testing.T, disk string) (files, kinds []string) {
	t.Helper()
	out, err := exec.Command("sfdisk", "--json", disk).Output()
	if err != nil {
		t.Fatalf("sfdisk --json: %v", err)
	}
	var dump struct {
		PartitionTable struct {
			Partitions []struct {
				Start, Size int64
				Type, Name  string
			}
		}
	}
	if err := json.Unmarshal(out, &dump); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for i, p := range dump.PartitionTable.Partitions {
		file := filepath.Join(dir, "part"+strconv.Itoa(i+1))
		if out, err := exec.Command("dd", "if="+disk, "of="+file, "bs=512", "conv=sparse", "status=none",
			"skip="+strconv.FormatInt(p.Start, 10), "count="+strconv.FormatInt(p.Size, 10)).CombinedOutput(); err != nil {
			t.Fatalf("dd: %v\n%s", err, out)
		}
		files = append(files, file)
		kinds = append(kinds, p.Type+" "+p.Name)
	}
	return files, kinds
}

// checkDisk has others look at the disks of diskConfig.
func checkDisk(t *testing.T, disk string) (root string) {
	t.Helper()
	if out, err := exec.Command("sgdisk", "--verify", disk).CombinedOutput(); err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk --verify: %v\n%s", err, out)
	}
	files, kinds := parts(t, disk)
	for i, file := range files {
		kinds[i] += ": " + fileSystem(t, file)
	}
	if !slices.Equal(kinds, diskParts) {
		t.Fatalf("partitions %q, want %q", kinds, diskParts)
	}
	esp, boot, root, data := files[0], files[2], files[3], dataOf(disk)
	if out, err := exec.Command("fsck.vfat", "-n", esp).CombinedOutput(); err != nil {
		t.Errorf("fsck.vfat: %v\n%s", err, out)
	}
	if out, err := exec.Command("mtype", "-i", esp, "::/EFI/BOOT/BOOTX64.EFI").CombinedOutput(); string(out) != "start\n" {
		t.Errorf("BOOTX64.EFI is %q (%v)", out, err)
	}
	for file, content := range map[string][2]string{boot: {"/kernel", "kernel\n"}, data: {"/file", "data\n"}} {
		checkFS(t, file)
		if got := debugfs(t, file, "cat "+content[0]); got != content[1] {
			t.Errorf("%s of %s is %q", content[0], file, got)
		}
	}
	if got, size := fileSystem(t, data), fileSize(t, data); got != "ext4 datafs" || size != 64<<20 {
		t.Errorf("the other disk is %s of %d bytes", got, size)
	}
	checkFS(t, root)
	for _, name := range []string{"/boot/kernel", "/srv/file"} {
		if got := debugfs(t, root, "cat "+name); got != "" {
			t.Errorf("the root file system has %s too: %q", name, got)
		}
	}
	return root
}

// dataOf is the disk "data" beside the image.
func dataOf(image string) string { return strings.TrimSuffix(image, ".raw") + "-data.raw" }

func fileSize(t *testing.T, name string) int64 {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
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
	want := "/dev/cairn0 [image0]=/dev/cairn0 [ESP]=/dev/cairn0p1 [paging]=/dev/cairn0p2 [boot]=/dev/cairn0p3 [root]=/dev/cairn0p4 [data]=/dev/cairn1 \n" +
		"/|/boot|/boot/efi|/srv|none cloudimg-rootfs ext3 bootfs\n"
	if got := debugfs(t, root, "cat /seen-disk"); got != want {
		t.Errorf("hooks saw\n%swant\n%s", got, want)
	}
	lock, err := os.ReadFile(filepath.Join(dir, "x.lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"bootfs", `"disk": "data"`, digest(t, disk), digest(t, dataOf(disk))} {
		if !strings.Contains(string(lock), want) {
			t.Errorf("the lock lacks %s", want)
		}
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
	for name, content := range map[string]string{"etc/hostname": "demo\n", "boot/kernel": "kernel\n", "boot/efi/EFI/BOOT/BOOTX64.EFI": "start\n", "srv/file": "data\n"} {
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
			Disk       string
		} `json:"file_systems"`
		OtherDisks []struct{ Path, SHA256 string } `json:"other_disks"`
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
	if digest(t, disk) != summary.SHA256 || summary.Fstab != diskFstab || len(summary.FileSystems) != 4 ||
		summary.FileSystems[3].Disk != "data" || summary.FileSystems[3].MountPoint != "/srv" {
		t.Errorf("summary %+v", summary)
	}
	if o := summary.OtherDisks; len(o) != 1 || o[0].Path != dataOf(disk) || o[0].SHA256 != digest(t, dataOf(disk)) {
		t.Errorf("the other disk is %+v", o)
	}
	run("-t", "qcow2", "-o", "compression_type=zstd", "--root-type", "ext3", "--owner", "0:0", "--size", "+1M", "tree", "x.qcow2").ok()
	if out, err := exec.Command("qemu-img", "compare", disk, filepath.Join(dir, "x.qcow2")).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := exec.Command("qemu-img", "compare", dataOf(disk), filepath.Join(dir, "x-data.qcow2")).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	run("--size", "64M", "tree", "y").refused(1, []string{"partition"}, filepath.Join(dir, "y"))
	run("--root-type", "btrfs", "tree", "y").refused(1, []string{"mkfs mkfs_root: type: btrfs"}, filepath.Join(dir, "y"))
	// No disk appears when another one fails.
	write(t, filepath.Join(dir, "disk.yaml"), strings.Replace(diskConfig, "size: 64MiB", "size: 16KiB", 1))
	run("-t", "raw", "--size", "256M", "tree", "y.raw").refused(1, []string{"mkfs_data"}, filepath.Join(dir, "y.raw"), filepath.Join(dir, "y-data.raw"))
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
