package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cairn/tests/require"
)

// TestImageFileSystem: what e2fsprogs, dpkg, GRUB and Linux find in the image,
// and that it is still there when the image has grown.
func TestImageFileSystem(t *testing.T) {
	require.Root(t)
	dir := scratch(t, lookup(t, ""))
	raw, fs := image(t, ".raw"), filepath.Join(dir, "fs.raw")
	extractRoot(t, raw, fs)
	checkFS(t, fs)
	checkFeatures(t, fs)
	checkE2image(t, dir, fs)
	checkSize(t, dir, fs)

	boot := filepath.Join(dir, "boot")
	mounted(t, fs, func(root string) {
		if out := tool(t, "dpkg", "--root="+root, "--verify"); out != "" {
			t.Errorf("dpkg --verify says\n%s", out)
		}
		tool(t, "cp", "-a", filepath.Join(root, "boot"), boot)
		readByGRUB(t, raw, "(loop0,msdos1)", boot)
		checkWrittenAgain(t, dir, root)
		tool(t, "sh", "-c", `head -c 8M /dev/urandom >"$0/root/new" && rm -r "$0/usr/share/doc"`, root)
	})
	tool(t, "e2fsck", "-fp", fs) // which resize2fs wants after a mount

	if err := os.Truncate(fs, 64<<30); err != nil {
		t.Fatal(err)
	}
	tool(t, "resize2fs", fs)
	checkFS(t, fs)
	readByGRUB(t, fs, "(loop0)", boot)
}

// tool runs a program that must succeed and returns what it printed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, tail(string(out)))
	}
	return string(out)
}

// extractRoot copies the only partition of a disk to a file.
func extractRoot(t *testing.T, raw, fs string) {
	t.Helper()
	var disk struct {
		PartitionTable struct {
			SectorSize int64
			Partitions []struct{ Start, Size int64 }
		}
	}
	if err := json.Unmarshal([]byte(tool(t, "sfdisk", "--json", raw)), &disk); err != nil {
		t.Fatal(err)
	}
	table := disk.PartitionTable
	if len(table.Partitions) != 1 {
		t.Fatalf("%d partitions, want one", len(table.Partitions))
	}
	p := table.Partitions[0]
	tool(t, "dd", "bs=1M", "conv=sparse", "iflag=skip_bytes,count_bytes", "if="+raw, "of="+fs,
		fmt.Sprintf("skip=%d", p.Start*table.SectorSize), fmt.Sprintf("count=%d", p.Size*table.SectorSize))
}

// checkFeatures compares what tune2fs and dumpe2fs say with what images have.
func checkFeatures(t *testing.T, fs string) {
	t.Helper()
	facts := map[string]string{}
	for line := range strings.Lines(tool(t, "tune2fs", "-l", fs)) {
		key, value, _ := strings.Cut(line, ":")
		facts[key] = strings.TrimSpace(value)
	}
	for key, want := range map[string]string{
		"Filesystem volume name": "cloudimg-rootfs",
		"Filesystem state":       "clean",
		"Filesystem features": "has_journal ext_attr dir_index filetype meta_bg extent 64bit flex_bg sparse_super large_file huge_file " +
			"dir_nlink extra_isize metadata_csum",
		"Default mount options": "user_xattr acl",
		"Block size":            "4096",
		"Inode size":            "256",
	} {
		if facts[key] != want {
			t.Errorf("tune2fs: %s: %q, want %q", key, facts[key], want)
		}
	}
	var blocks int
	if _, err := fmt.Sscan(facts["Block count"], &blocks); err != nil {
		t.Fatal(err)
	}
	const perGroup = 32768
	group := regexp.MustCompile(`(?m)^Group \d+: `)
	if got, want := len(group.FindAllString(tool(t, "dumpe2fs", fs), -1)), (blocks+perGroup-1)/perGroup; got != want {
		t.Errorf("dumpe2fs lists %d groups, want %d", got, want)
	}
}

// checkSize: the file system is as small as resize2fs makes it, but for 2 % and
// what the first boot needs, and can be grown to 64 TiB: inode numbers have 32
// bits.
func checkSize(t *testing.T, dir, fs string) {
	t.Helper()
	facts := func(img string) (blocks, perGroup int64) {
		t.Helper()
		for line := range strings.Lines(tool(t, "dumpe2fs", "-h", img)) {
			_, _ = fmt.Sscanf(line, "Block count: %d", &blocks)
			_, _ = fmt.Sscanf(line, "Inodes per group: %d", &perGroup)
		}
		return blocks, perGroup
	}
	blocks, perGroup := facts(fs)
	small := filepath.Join(dir, "small.raw")
	tool(t, "cp", "--sparse=always", fs, small)
	tool(t, "resize2fs", "-M", small)
	checkFS(t, small)
	least, _ := facts(small)
	const blockSize, group = 4096, 128 << 20
	if slack := min(blocks/50, 4096) + 32<<20/blockSize; blocks > least*102/100+slack {
		t.Errorf("%d blocks, resize2fs -M reaches %d, and the first boot needs %d", blocks, least, slack)
	}
	if most := (1<<32 - 1) / perGroup * group; most < 64<<40 {
		t.Errorf("%d inodes in a group let it grow to %d bytes only", perGroup, most)
	}
	if err := os.Remove(small); err != nil {
		t.Fatal(err)
	}
}

// checkE2image lets e2image take the metadata away and bring it back, raw and
// as qcow2.
func checkE2image(t *testing.T, dir, fs string) {
	t.Helper()
	raw, qcow2, back := filepath.Join(dir, "meta.raw"), filepath.Join(dir, "meta.qcow2"), filepath.Join(dir, "back.raw")
	tool(t, "e2image", "-r", fs, raw)
	checkFS(t, raw)
	tool(t, "e2image", "-Q", fs, qcow2)
	tool(t, "e2image", "-r", qcow2, back)
	checkFS(t, back)
}

// mounted mounts a file system for as long as f runs.
func mounted(t *testing.T, fs string, f func(root string)) {
	t.Helper()
	root := t.TempDir()
	tool(t, "mount", "-t", "ext4", "-o", "loop", fs, root)
	defer func() {
		// Another process may have copied the mount into a namespace of its own,
		// so that umount alone does not end it.
		tool(t, "mount", "-o", "remount,ro", root)
		tool(t, "umount", root)
	}()
	f(root)
}

// readByGRUB compares what GRUB reads below /boot with a folder.
func readByGRUB(t *testing.T, img, device, boot string) {
	t.Helper()
	tool(t, "grub-fstest", img, "cmp", device+"/boot", boot)
	entries, err := os.ReadDir(boot)
	if err != nil {
		t.Fatal(err)
	}
	listed := strings.Fields(tool(t, "grub-fstest", img, "ls", device+"/boot/"))
	if len(entries) < 5 || len(listed) != len(entries) { // cmp sees only what GRUB lists
		t.Errorf("GRUB lists %q, %d of %d", listed, len(listed), len(entries))
	}
}

// checkWrittenAgain makes another file system of a directory and lets rsync
// compare what Linux shows of both: contents, owners, modes, times, links,
// attributes.
func checkWrittenAgain(t *testing.T, dir, root string) {
	t.Helper()
	fs := filepath.Join(dir, "again.raw")
	(&run{t: t, who: lookup(t, ""), dir: dir, args: []string{"mkfs", "-t", "ext4", "--size", "+32M", root, fs}}).ok()
	mounted(t, fs, func(again string) {
		out := tool(t, "rsync", "-naHAX", "--itemize-changes", "--numeric-ids", "--checksum", "--modify-window=-1", "--delete", root+"/", again+"/")
		if out != "" {
			t.Errorf("rsync finds differences:\n%s", tail(out))
		}
	})
}
