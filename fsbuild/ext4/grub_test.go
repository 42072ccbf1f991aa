package ext4_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
)

// bootTree is a /boot with all that GRUB's reader has to understand: files of
// one, many and very many extents, holes, an indexed directory, symlinks in
// inodes and in blocks, and attributes in both.
func bootTree(t testing.TB) *tree.Tree {
	t.Helper()
	kernel := strings.Repeat("kernel", 400_000)
	marked := file("boot/marked", "attributes in the inode")
	marked.Xattrs = xattrs("security.selinux", "system_u:object_r:boot_t:s0\x00")
	heavy := file("boot/heavy", "attributes in a block")
	heavy.Xattrs = xattrs("trusted.large", strings.Repeat("x", 3000))
	pieces := &fstest.Holes{Bytes: 1500 * 8192}
	for i := range int64(1500) { // more extents than one block of them holds
		pieces.Runs = append(pieces.Runs, fstest.Run{Off: i * 8192, Data: bytes.Repeat([]byte{byte(i), 1}, 2048)})
	}
	link := func(path, target string) tree.Node {
		return tree.Node{Path: path, Type: tree.Symlink, Mode: 0o777, Target: target}
	}
	tr := build(t, directory("boot"), directory("boot/grub"), directory("boot/many"), directory("boot/none"),
		file("boot/vmlinuz", kernel), file("boot/empty", ""), file("boot/grub/grub.cfg", "set timeout=1\n"), marked, heavy,
		tree.Node{Path: "boot/pieces", Type: tree.Regular, Mode: 0o644, Size: pieces.Bytes, Content: pieces},
		link("boot/fast", "vmlinuz"), link("boot/up", "../boot/grub/grub.cfg"), link("boot/slow", strings.Repeat("./", 40)+"vmlinuz"))
	for i := range 150 {
		if err := tr.Add(file(fmt.Sprintf("boot/many/%d%s", i, strings.Repeat("n", 100)), fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

// TestGRUB lets GRUB's own reader list and read all of /boot in every variant,
// also after growth.
func TestGRUB(t *testing.T) {
	requireTool(t, "grub-fstest", "grub-common")
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			tr := v.suit(bootTree(t))
			files := t.TempDir()
			materialise(t, files, tr)
			p := v.params()
			p.GrowTo = 8 * gib
			img, _ := image(t, tr, p)
			readByGRUB(t, img, files, tr)
			grow(t, img, 8*gib)
			readByGRUB(t, img, files, tr)
		})
	}
}

// readByGRUB compares what GRUB lists and reads below /boot of an image with a
// tree and with the same tree in a folder.
func readByGRUB(t *testing.T, img, files string, tr *tree.Tree) {
	t.Helper()
	run(t, "grub-fstest", img, "cmp", "/boot", filepath.Join(files, "boot"))
	for dir := range tr.All() { // since cmp sees only the names that GRUB lists
		if dir.Type != tree.Directory || dir.Path == "." {
			continue
		}
		var want []string
		for n := range tr.Children(dir.Path) {
			name := n.Name()
			if n.Type == tree.Directory {
				name += "/"
			}
			want = append(want, name)
		}
		slices.Sort(want)
		got := strings.Fields(run(t, "grub-fstest", img, "ls", "/"+dir.Path+"/"))
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: GRUB lists %q, want %q", dir.Path, got, want)
		}
	}
}
