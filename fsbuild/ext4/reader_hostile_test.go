package ext4_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
)

// TestReadShared: blocks that directories or block maps share, which could
// make the work grow without bounds, are damage.
func TestReadShared(t *testing.T) {
	dir := filepath.Join(scratchDir(t), "fs.img")
	for name, c := range map[string]struct {
		mkfs     string
		commands []string // NUMBER(path) is the first block of a file
		want     string
	}{
		"directories":     {"-t ext2", []string{"set_inode_field /e block[0] NUMBER(/d)"}, "used twice"},
		"one directory":   {"-t ext2", []string{"set_inode_field /e block[1] NUMBER(/e)", "set_inode_field /e size 2048"}, "used twice"},
		"indirect blocks": {"-t ext2", []string{"set_inode_field /f size 1000000", "set_inode_field /f block[DIND] INDIRECT(/f)"}, "used twice"},
		"attributes":      {"-t ext2", []string{"set_inode_field /f file_acl NUMBER(/f)"}, "attribute block"},
		"extents":         {"-t ext4 -O ^metadata_csum", []string{"set_inode_field /f block[0] 0x0002f30a", "set_inode_field /f block[6] 0"}, "logical block"},
	} {
		t.Run(name, func(t *testing.T) {
			src := t.TempDir()
			materialise(t, src, build(t, directory("d"), directory("e"), file("f", strings.Repeat("x", 20_000)), file("d/g", "")))
			mke2fs(t, dir, append(strings.Fields(c.mkfs), "-b", "1024", "-d", src)...)
			for _, command := range c.commands {
				run(t, "debugfs", "-w", "-R", resolve(t, dir, command), dir)
			}
			err := readAll(t, dir)
			if !errors.Is(err, ext4.ErrCorrupt) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

var placeholder = regexp.MustCompile(`(NUMBER|INDIRECT)\(([^)]*)\)`)

// resolve puts the numbers of blocks into a command of debugfs.
func resolve(t testing.TB, img, command string) string {
	t.Helper()
	return placeholder.ReplaceAllStringFunc(command, func(s string) string {
		m := placeholder.FindStringSubmatch(s)
		out, err := exec.Command("debugfs", "-R", "blocks "+m[2], img).Output()
		blocks := strings.Fields(string(out))
		if err != nil || len(blocks) == 0 {
			t.Fatalf("blocks %s: %v", m[2], err)
		}
		if m[1] == "INDIRECT" {
			return blocks[12]
		}
		return blocks[0]
	})
}

// TestReadBudget: very long paths of very many names are refused before they
// fill the memory.
func TestReadBudget(t *testing.T) {
	tr := tree.New()
	path := ""
	for range 100 {
		path += strings.Repeat("n", 255)
		if err := tr.Add(directory(path)); err != nil {
			t.Fatal(err)
		}
		path += "/"
	}
	for i := range 4500 {
		if err := tr.Add(tree.Node{Path: fmt.Sprint(path, i), Type: tree.FIFO, Inode: 1}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := openBytes(t, written(t, tr, params())).Tree(t.Context())
	if !errors.Is(err, ext4.ErrUnsupported) || !strings.Contains(err.Error(), "memory") {
		t.Errorf("Tree: %.200v", err)
	}
}

// TestReadCancel: a context that is done ends reading.
func TestReadCancel(t *testing.T) {
	r := openBytes(t, written(t, build(t, directory("d")), params()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Tree(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Tree: %v", err)
	}
}

// TestReadDevices: numbers in the old and the new encoding.
func TestReadDevices(t *testing.T) {
	var nodes []tree.Node
	for _, major := range []uint32{0, 1, 255, 256, 4095} {
		for _, minor := range []uint32{0, 1, 255, 256, 1<<20 - 1} {
			nodes = append(nodes, tree.Node{Path: fmt.Sprintf("%d:%d", major, minor), Type: tree.CharDevice, Major: major, Minor: minor})
		}
	}
	img := written(t, build(t, nodes...), noClamp())
	got := readTree(t, openBytes(t, img))
	for _, n := range nodes {
		if d := got.Lookup(n.Path); d == nil || d.Major != n.Major || d.Minor != n.Minor {
			t.Errorf("%s: %+v", n.Path, d)
		}
	}
}
