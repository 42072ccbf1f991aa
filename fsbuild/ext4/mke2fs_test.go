package ext4_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
)

// smallTrees are directories on the host. Only large files have zeros, as
// programs have them between their segments: mke2fs -d leaves them out, and so
// does package dir.
func smallTrees(t *testing.T, root string) map[string]string {
	t.Helper()
	made := map[string]string{}
	add := func(name string, files map[string]string) {
		made[name] = filepath.Join(root, name)
		for path, content := range files {
			full := filepath.Join(made[name], path)
			if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	small, large, deep := map[string]string{}, map[string]string{}, map[string]string{}
	for i := range 400 {
		small[fmt.Sprintf("d%d/file-%d", i%7, i)] = strings.Repeat("x", i*37%9000)
	}
	for i := range 5 {
		large[fmt.Sprint(i)] = strings.Repeat("data", 1024*(20+i*300)) + strings.Repeat("\x00", 40<<10) + strings.Repeat("data", 2000*i)
	}
	for i := range 40 {
		deep[strings.Repeat("d/", i)+"f"] = strings.Repeat("y", i*100)
	}
	add("small", small)
	add("large", large)
	add("deep", deep)
	return made
}

// TestNoLargerThanMke2fs: the minimal size is at most that of the smallest
// file system that mke2fs makes of the same directory, journal and number of
// inodes.
func TestNoLargerThanMke2fs(t *testing.T) {
	requireTool(t, "mke2fs", "e2fsprogs")
	scratch := scratchDir(t)
	trees := smallTrees(t, scratch)
	for _, c := range []struct {
		tree string
		variant
		args []string
	}{
		{"small", variants[0], []string{"-O", "^resize_inode,meta_bg", "-J", "size=4"}},
		{"large", variants[2], []string{"-O", "^resize_inode,meta_bg", "-J", "size=4"}},
		{"large", variants[5], []string{"-O", "^resize_inode", "-J", "size=4"}},
		{"deep", variants[7], []string{"-O", "^resize_inode"}},
		{"small", variants[8], []string{"-O", "^resize_inode"}},
	} {
		t.Run(c.tree+" as "+c.name, func(t *testing.T) {
			tr, err := dir.Read(t.Context(), trees[c.tree], dir.Options{})
			if err != nil {
				t.Fatal(err)
			}
			p := c.params()
			if c.kind != ext4.Ext2 {
				p.JournalSize = 4 << 20
			}
			l, err := ext4.Plan(tr, p)
			if err != nil {
				t.Fatal(err)
			}
			s := l.Summary()
			args := append([]string{
				"-q", "-F", "-t", fmt.Sprint(c.kind), "-b", fmt.Sprint(c.blockSize), "-I", "256", "-m", "0",
				"-N", fmt.Sprint(s.Inodes), "-d", trees[c.tree],
			}, c.args...)
			out := filepath.Join(scratch, "mke2fs.img")
			works := func(blocks int64) bool {
				if err := os.RemoveAll(out); err != nil {
					t.Fatal(err)
				}
				msg, err := exec.Command("mke2fs", append(args, out, fmt.Sprint(blocks))...).CombinedOutput()
				return err == nil && !strings.Contains(string(msg), "too small for a journal") // with which it goes on
			}
			low, high := s.Blocks/2, s.Blocks*2
			if works(low) || !works(high) {
				t.Fatalf("mke2fs does not work for %d blocks, or works for %d", high, low)
			}
			for low+1 < high {
				if mid := (low + high) / 2; works(mid) {
					high = mid
				} else {
					low = mid
				}
			}
			t.Logf("%d blocks, mke2fs %d", s.Blocks, high)
			if s.Blocks > high {
				t.Errorf("%d blocks, mke2fs needs %d", s.Blocks, high)
			}
		})
	}
}

// TestNoLargerThanResize2fs: the minimal size is at most 1.02 times what
// resize2fs -M shrinks a larger file system of the same files to, whoever made
// that.
func TestNoLargerThanResize2fs(t *testing.T) {
	requireTool(t, "mke2fs", "e2fsprogs")
	requireTool(t, "resize2fs", "e2fsprogs")
	scratch := scratchDir(t)
	for name, path := range smallTrees(t, scratch) {
		t.Run(name, func(t *testing.T) {
			tr, err := dir.Read(t.Context(), path, dir.Options{})
			if err != nil {
				t.Fatal(err)
			}
			p := params()
			l, err := ext4.Plan(tr, p)
			if err != nil {
				t.Fatal(err)
			}
			least := l.Summary()
			p.Slack = 300 << 20
			ours, _ := image(t, tr, p)
			theirs := filepath.Join(scratch, "mke2fs.img")
			run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-N", fmt.Sprint(least.Inodes), "-J", "size=16", "-d", path, theirs, "400M")
			for _, img := range []string{ours, theirs} {
				run(t, "resize2fs", "-M", img)
				fsck(t, img)
				shrunk, err := strconv.ParseInt(value(run(t, "dumpe2fs", "-h", img), "Block count:"), 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d blocks, resize2fs -M %d", least.Blocks, shrunk)
				if float64(least.Blocks) > 1.02*float64(shrunk) {
					t.Errorf("%d blocks, resize2fs -M reaches %d", least.Blocks, shrunk)
				}
				if err := os.Remove(img); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestJournalBySize compares the journals that mke2fs chooses.
func TestJournalBySize(t *testing.T) {
	requireTool(t, "mke2fs", "e2fsprogs")
	requireTool(t, "dumpe2fs", "e2fsprogs")
	scratch := scratchDir(t)
	for _, c := range []struct{ blockSize, blocks int64 }{
		{1024, 2047},
		{1024, 2048},
		{1024, 32767},
		{4096, 32768},
		{4096, 262143},
		{4096, 262144},
		{4096, 524288},
		{4096, 4 << 20},
		{4096, 8 << 20},
		{4096, 16<<20 - 1},
		{4096, 16 << 20},
		{2048, 32 << 20},
	} {
		p := params()
		p.JournalBySize, p.BlockSize, p.Size = true, int(c.blockSize), c.blockSize*c.blocks
		l, err := ext4.Plan(tree.New(), p)
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(scratch, "mke2fs.img")
		run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", fmt.Sprint(c.blockSize), "-E", "lazy_journal_init=1", out, fmt.Sprint(c.blocks))
		want := int64(0)
		_, line, ok := strings.Cut(run(t, "dumpe2fs", "-h", out), "Total journal size:")
		if ok {
			var unit byte
			if _, err := fmt.Sscanf(line, "%d%c", &want, &unit); err != nil {
				t.Fatal(err)
			}
			if unit == 'M' {
				want <<= 10
			}
		}
		if got := l.Summary().JournalSize >> 10; got != want {
			t.Errorf("%d blocks of %d bytes: journal of %d KiB, mke2fs has %d", c.blocks, c.blockSize, got, want)
		}
		if err := os.Remove(out); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMke2fsNumbers: inode ratio and reserved blocks mean what they mean to
// mke2fs.
func TestMke2fsNumbers(t *testing.T) {
	requireTool(t, "mke2fs", "e2fsprogs")
	requireTool(t, "dumpe2fs", "e2fsprogs")
	for _, c := range []struct {
		blockSize, ratio, size int64
		reserved               float64
	}{
		{4096, 16384, gib, 5}, {4096, 4 << 20, 3 * gib, 0.5}, {1024, 4096, 64 << 20, 50}, {2048, 8192, 100 << 20, 1.7},
	} {
		p := params()
		p.BlockSize, p.InodeRatio, p.Size, p.ReservedPercent = int(c.blockSize), c.ratio, c.size, c.reserved
		img, s := image(t, tree.New(), p)
		fsck(t, img)
		theirs := filepath.Join(filepath.Dir(img), "mke2fs.img")
		run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", fmt.Sprint(c.blockSize), "-i", fmt.Sprint(c.ratio), "-m", fmt.Sprint(c.reserved),
			theirs, fmt.Sprint(c.size/c.blockSize))
		got, want := run(t, "dumpe2fs", "-h", img), run(t, "dumpe2fs", "-h", theirs)
		for _, key := range []string{"Inode count:", "Inodes per group:", "Reserved block count:", "Block count:"} {
			if g, w := value(got, key), value(want, key); g != w {
				t.Errorf("%+v: %s %s, mke2fs says %s", c, key, g, w)
			}
		}
		if s.Inodes < c.size/c.ratio {
			t.Errorf("%+v: %d inodes", c, s.Inodes)
		}
	}
}

// value is what follows a key of dumpe2fs -h.
func value(out, key string) string {
	_, rest, _ := strings.Cut(out, "\n"+key)
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}
