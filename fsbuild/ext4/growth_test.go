package ext4_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
	"cairn/tests/require"
	"cairn/tests/vm"
)

const (
	gib = 1 << 30
	tib = 1 << 40
	pib = 1 << 50
)

// long tells whether tests may take minutes.
func long() bool { return os.Getenv("CAIRN_TEST_LONG") == "1" }

// grow lets resize2fs grow an image offline, and e2fsck check it.
func grow(t *testing.T, img string, size int64) {
	t.Helper()
	requireTool(t, "resize2fs", "e2fsprogs")
	if err := os.Truncate(img, size); err != nil {
		t.Fatal(err)
	}
	run(t, "resize2fs", img)
}

// checkTree compares what debugfs finds in a grown image with the tree that it
// was made of.
func checkTree(t *testing.T, img string, tr *tree.Tree, s ext4.Summary) {
	t.Helper()
	got := readBack(t, img, s)
	got.Remove("lost+found")
	if diff := firstDiff(text(t, tr), text(t, got)); diff != "" {
		t.Errorf("tree read back after growth: %s", diff)
	}
}

// TestGrowth: resize2fs grows every type offline, and the tree is still there.
func TestGrowth(t *testing.T) {
	for _, c := range []struct {
		variant
		growTo int64
		sizes  []int64
		long   []int64 // up to 37 s each for e2fsck
	}{
		{variants[0], 0, []int64{64 * gib}, nil},
		{variants[0], pib, []int64{64 * gib, tib, 16 * tib}, []int64{64 * tib}},
		{variants[2], tib, []int64{8 * gib}, []int64{256 * gib}},
		{variants[3], tib, []int64{64 * gib}, []int64{tib}},
		{variants[8], 8 * gib, []int64{8 * gib}, nil},
	} {
		t.Run(fmt.Sprint(c.name, " to ", c.growTo), func(t *testing.T) {
			tr, p := c.suit(fstest.Generate(5)), c.params()
			p.GrowTo = c.growTo
			img, s := image(t, tr, p)
			fsck(t, img)
			sizes := c.sizes
			if long() {
				sizes = append(sizes, c.long...)
			}
			for _, size := range sizes {
				if s.MaxSize < size {
					t.Errorf("Summary says that %d bytes are the limit", s.MaxSize)
				}
				grow(t, img, size)
				fsck(t, img)
			}
			checkTree(t, img, tr, s)
		})
	}
}

// TestGrowFull: a full ext2 or ext3 that promises growth can be grown, whatever
// lies behind its descriptors; and a size without room for that is refused.
func TestGrowFull(t *testing.T) {
	for _, v := range variants {
		if v.kind == ext4.Ext4 {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			for _, size := range []int64{2 * gib, 16 * gib, 100 * gib} {
				tr, p := v.suit(bootTree(t)), v.params()
				p.GrowTo = size
				img, s := image(t, tr, p)
				grow(t, img, size)
				fsck(t, img)
				p.Size = s.Size - s.BlockSize
				if _, err := ext4.Plan(tr, p); !errors.Is(err, ext4.ErrTooSmall) {
					t.Errorf("Plan of one block less, to grow to %d bytes: %v", size, err)
				}
			}
		})
	}
}

// TestGrowTo: the promise decides the inodes of a group, and a size is what
// they need.
func TestGrowTo(t *testing.T) {
	few := fstest.Generate(4)
	many := fstest.Generate(3) // some thousand files
	for name, c := range map[string]struct {
		tree   *tree.Tree
		p      ext4.Params
		groups int64
		most   int64 // inodes of a group
	}{
		"few files":       {few, ext4.Params{GrowTo: pib}, 2, 496},
		"many files":      {many, ext4.Params{GrowTo: pib, JournalSize: -1}, 10, 496},
		"by number":       {few, ext4.Params{GrowTo: pib, Inodes: 100_000}, 202, 496},
		"256 TiB":         {few, ext4.Params{GrowTo: 256 * tib}, 1, 2032},
		"16 TiB":          {few, ext4.Params{GrowTo: 16 * tib}, 1, 2048},
		"ratio":           {few, ext4.Params{GrowTo: pib, InodeRatio: 1 << 20, Slack: gib}, 9, 496},
		"exact":           {few, ext4.Params{GrowTo: pib, Size: 8 * gib}, 64, 496},
		"blocks of 2 KiB": {few, ext4.Params{GrowTo: pib, BlockSize: 2048}, 5, 120},
		"blocks of 1 KiB": {few, ext4.Params{GrowTo: pib, BlockSize: 1024}, 24, 24},
		"ext3":            {few, ext4.Params{GrowTo: 16*tib - 128<<20, Type: ext4.Ext3}, 1, 32768},
	} {
		t.Run(name, func(t *testing.T) {
			c.p.UUID = params().UUID
			v := variant{blockSize: max(c.p.BlockSize, 4096), inodeSize: 256}
			if c.p.BlockSize > 0 {
				v.blockSize = c.p.BlockSize
			}
			l, err := ext4.Plan(v.suit(c.tree), c.p)
			if err != nil {
				t.Fatal(err)
			}
			s := l.Summary()
			if s.MaxSize < c.p.GrowTo || s.InodesPerGroup > c.most || s.Groups != c.groups {
				t.Errorf("%d groups of %d inodes, which grow to %d bytes; want %d groups of at most %d inodes",
					s.Groups, s.InodesPerGroup, s.MaxSize, c.groups, c.most)
			}
		})
	}
}

// TestGrowLong grows to the limit of e2fsprogs 1.47.0, 2^21 groups. It takes
// half a minute and is for CAIRN_TEST_LONG=1; otherwise a smaller size shows
// the same.
func TestGrowLong(t *testing.T) {
	size := int64(4 * tib)
	if long() {
		size = 256 * tib
	}
	p := params()
	p.GrowTo = pib
	img, s := image(t, fstest.Generate(4), p)
	grow(t, img, size)
	checkGroups(t, run(t, "dumpe2fs", "-h", img), size, s)
}

// checkGroups looks for the inodes of a grown file system in what dumpe2fs -h
// said.
func checkGroups(t *testing.T, out string, size int64, s ext4.Summary) {
	t.Helper()
	group := 8 * s.BlockSize * s.BlockSize
	if want := fmt.Sprintf("Inode count:              %d\n", size/group*s.InodesPerGroup); !strings.Contains(out, want) {
		t.Errorf("dumpe2fs does not say %s in\n%s", want, out)
	}
}

// newer is where tests/install-tools unpacks e2fsprogs of Debian 13 and its
// libraries.
const newer = "/var/lib/cairn-test/e2fsprogs/usr"

// runNewer runs one of its programs.
func runNewer(t *testing.T, program string, args ...string) string {
	t.Helper()
	loader := newer + "/lib64/ld-linux-x86-64.so.2"
	if _, err := os.Stat(loader); err != nil {
		t.Fatalf("%v: run tests/install-tools as root", err)
	}
	return run(t, loader, append([]string{"--library-path", newer + "/lib/x86_64-linux-gnu", newer + "/sbin/" + program}, args...)...)
}

// TestGrowNewer grows beyond the limit of e2fsprogs 1.47.0 with 1.47.2, and for
// CAIRN_TEST_LONG=1 to 1 PiB, which Linux then mounts and GRUB reads.
func TestGrowNewer(t *testing.T) {
	small, large := params(), params()
	small.BlockSize, small.GrowTo, large.GrowTo = 1024, tib+tib/4, pib
	sets := []ext4.Params{small}
	if long() {
		sets = append(sets, large)
	}
	for _, p := range sets {
		tr := variant{kind: ext4.Ext4, blockSize: 1024, inodeSize: 256}.suit(bootTree(t))
		img, s := image(t, tr, p)
		if err := os.Truncate(img, p.GrowTo); err != nil {
			t.Fatal(err)
		}
		runNewer(t, "resize2fs", img)
		checkGroups(t, runNewer(t, "dumpe2fs", "-h", img), p.GrowTo, s)
		files := t.TempDir()
		materialise(t, files, tr)
		readByGRUB(t, img, files, tr)
		if os.Geteuid() != 0 {
			t.Log("not root: no mount")
			continue
		}
		root, unmount := mount(t, img, "")
		if diff := firstDiff(text(t, tr), text(t, describe(t, root))); diff != "" {
			t.Errorf("tree that the kernel shows: %s", diff)
		}
		if err := os.WriteFile(filepath.Join(root, "new"), make([]byte, 100<<20), 0o600); err != nil {
			t.Error(err)
		}
		run(t, "mount", "-o", "remount,ro", root) // whoever else has a copy of the mount
		unmount()
		if p.GrowTo < pib { // e2fsck takes more than half an hour for 1 PiB
			fsck(t, img)
		}
	}
}

// growthScript grows a mounted file system twice and fills new groups.
const growthScript = `
set -e
mount -t ext4 /dev/nvme0n1 /mnt
resize2fs /dev/nvme0n1 64G >&2
yes growth | head -c 14000000 >/mnt/lost+found/new
resize2fs /dev/nvme0n1 >&2
yes growth | head -c 14000000 >>/mnt/lost+found/new
umount /mnt
`

// TestGrowOnline grows a mounted file system in a virtual machine: many a
// container lacks the right to do it.
func TestGrowOnline(t *testing.T) {
	tr, p := fstest.Generate(5), noClamp()
	p.GrowTo = tib
	img, s := image(t, tr, p)
	if err := os.Truncate(img, tib); err != nil {
		t.Fatal(err)
	}
	programs := []string{require.Tool(t, "resize2fs", "e2fsprogs")}
	vm.Guest{Root: scratchDir(t), Programs: programs, Disk: img, Script: growthScript}.Run(t)
	fsck(t, img)
	checkGroups(t, run(t, "dumpe2fs", "-h", img), tib, s)
	checkTree(t, img, tr, s)
	if out := debugfs(t, img, []string{"cat lost+found/new"})[0]; out != strings.Repeat("growth\n", 4_000_000) {
		t.Errorf("file that Linux wrote has %d bytes", len(out))
	}
}
