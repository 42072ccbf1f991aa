package ext4_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
)

// features is what dumpe2fs says.
func features(t *testing.T, img string) map[string]bool {
	t.Helper()
	requireTool(t, "dumpe2fs", "e2fsprogs")
	_, list, ok := strings.Cut(run(t, "dumpe2fs", "-h", img), "Filesystem features:")
	if !ok {
		t.Fatal("dumpe2fs says no features")
	}
	list, _, _ = strings.Cut(list, "\n")
	set := map[string]bool{}
	for _, f := range strings.Fields(list) {
		set[f] = true
	}
	return set
}

var groupLine = regexp.MustCompile(`(?m)^Group \d+: `)

// TestFeatures: each type has the features that mke2fs gives it, but for
// resize_inode, and meta_bg in ext4. All of dumpe2fs and e2image accept it.
func TestFeatures(t *testing.T) {
	requireTool(t, "mke2fs", "e2fsprogs")
	requireTool(t, "e2image", "e2fsprogs")
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			img, s := image(t, v.suit(fstest.Generate(2)), v.params())
			theirs := filepath.Join(filepath.Dir(img), "mke2fs.img")
			run(t, "mke2fs", "-q", "-F", "-t", fmt.Sprint(v.kind), "-b", fmt.Sprint(v.blockSize), "-I", fmt.Sprint(v.inodeSize), theirs, "64M")
			got, want := features(t, img), features(t, theirs)
			delete(want, "resize_inode")
			if v.kind == ext4.Ext4 {
				want["meta_bg"] = true
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("features %v, want %v", got, want)
			}
			out := run(t, "dumpe2fs", img)
			if n := len(groupLine.FindAllString(out, -1)); n != int(s.Groups) {
				t.Errorf("dumpe2fs lists %d groups, want %d", n, s.Groups)
			}
			raw := filepath.Join(filepath.Dir(img), "raw.img")
			run(t, "e2image", "-r", img, raw)
			fsck(t, raw)
		})
	}
}

// TestKernel lets Linux read each variant and write to it, where the test may
// mount; debugfs judges everywhere.
func TestKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: no mount")
		return
	}
	seeds := []uint64{0, 3, 7, 12, 25}
	for i, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			tr, p := v.suit(fstest.Generate(seeds[i%len(seeds)])), v.params()
			p.Slack = 8 << 20
			img, _ := image(t, tr, p)
			mnt := t.TempDir()
			run(t, "mount", "-t", fmt.Sprint(v.kind), "-o", "loop,noatime", img, mnt)
			func() { // whatever happens, it must not stay mounted
				defer func() {
					// Another process may have copied the mount into a namespace of
					// its own, so that umount alone does not end it.
					run(t, "mount", "-o", "remount,ro", mnt)
					run(t, "umount", mnt)
				}()
				useMounted(t, tr, mnt)
			}()
			fsck(t, img)
			if out := debugfs(t, img, []string{"cat new/dir/file"})[0]; out != strings.Repeat("new data\n", 200_000) {
				t.Errorf("file that the kernel wrote has %d bytes", len(out))
			}
		})
	}
}

// useMounted compares what the kernel shows with a tree, and changes it.
func useMounted(t *testing.T, want *tree.Tree, mnt string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	root, err := os.Open(mnt)
	if err != nil {
		t.Error(err)
		return
	}
	defer root.Close()
	got, err := dir.ReadFrom(t.Context(), root, dir.Options{})
	if err != nil {
		t.Error(err)
		return
	}
	got.Remove("lost+found")
	if diff := firstDiff(text(t, want), text(t, got)); diff != "" {
		t.Errorf("tree that the kernel shows: %s", diff)
	}
	check(os.MkdirAll(filepath.Join(mnt, "new", "dir"), 0o755))
	for n := range want.Children(".") { // new names in old directories, and blocks freed
		path := filepath.Join(mnt, n.Path)
		if n.Type == tree.Directory {
			check(os.WriteFile(filepath.Join(path, "new name"), []byte("x"), 0o600))
		} else {
			check(os.Remove(path))
		}
	}
	data := []byte(strings.Repeat("new data\n", 200_000))
	check(os.WriteFile(filepath.Join(mnt, "new", "dir", "file"), data, 0o600))
}

// TestBlockMaps: maps of one, two and three levels with holes at their borders,
// and a file at the limit.
func TestBlockMaps(t *testing.T) {
	for _, v := range variants {
		if v.kind == ext4.Ext4 || v.inodeSize != 256 {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			size, p := int64(v.blockSize), int64(v.blockSize/4)
			single, double, triple := 12*size, (12+p)*size, (12+p+p*p)*size
			limits := map[int]int64{1024: 17_247_252_480, 2048: 275_415_851_008, 4096: 2_194_719_883_264}
			h := &fstest.Holes{Bytes: limits[v.blockSize], CanSeek: true}
			for _, at := range []int64{
				0, single - 1, double - size, double + size, double + p*size - 1, triple - 1,
				triple + p*p*size - 1, triple + 5*p*p*size - size, h.Bytes - 3,
			} {
				h.Runs = append(h.Runs, fstest.Run{Off: at, Data: []byte("abc")})
			}
			whole := bytes.Repeat([]byte("0123456789abcdef"), int(double+3*p*size)/16)
			tr := build(t, tree.Node{Path: "holes", Type: tree.Regular, Size: h.Bytes, Content: h},
				tree.Node{Path: "whole", Type: tree.Regular, Size: int64(len(whole)) - 5, Content: tree.Bytes(whole[:len(whole)-5])})
			img, _ := image(t, tr, v.params())
			fsck(t, img)
			var ask []string
			for _, r := range h.Runs {
				ask = append(ask, fmt.Sprintf("bmap holes %d", r.Off/size))
			}
			outs := debugfs(t, img, append(ask, "bmap holes 1", "cat whole", "stat holes"))
			for i, r := range h.Runs {
				block, err := strconv.ParseInt(strings.TrimSpace(outs[i]), 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				checkBytes(t, img, block*size+r.Off%size, r)
			}
			if outs[len(ask)] != "0\n" || outs[len(ask)+1] != string(whole[:len(whole)-5]) {
				t.Errorf("hole is at block %s, file has %d bytes", outs[len(ask)], len(outs[len(ask)+1]))
			}
			if !strings.Contains(outs[len(ask)+2], fmt.Sprint("Size: ", h.Bytes)) {
				t.Errorf("file at the limit: %s", outs[len(ask)+2])
			}
			h.Bytes++
			tr = build(t, tree.Node{Path: "holes", Type: tree.Regular, Size: h.Bytes, Content: h})
			if _, err := ext4.Plan(tr, v.params()); err == nil || !strings.Contains(err.Error(), fmt.Sprintf(`"holes": size %d is above the limit %d`, h.Bytes, h.Bytes-1)) {
				t.Errorf("Plan of a larger file: %v", err)
			}
		})
	}
}

// checkBytes compares the first bytes of a run, up to the end of its block,
// with an image.
func checkBytes(t *testing.T, img string, at int64, r fstest.Run) {
	t.Helper()
	f, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil || b[0] != r.Data[0] {
		t.Errorf("byte %d of the file is %q, error %v, want %q", r.Off, b, err, r.Data[:1])
	}
}

// TestSizesOfVariants: the least size of every variant ends with a used block,
// and one block less is refused by an error that says what is missing.
func TestSizesOfVariants(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			tr, p := v.suit(fstest.Generate(6)), v.params()
			l, err := ext4.Plan(tr, p)
			if err != nil {
				t.Fatal(err)
			}
			size := l.Size()
			if l.Summary().FreeBlocks != 0 {
				t.Errorf("%d blocks are free", l.Summary().FreeBlocks)
			}
			p.Size = size - int64(v.blockSize)
			var small *ext4.SizeError
			if _, err := ext4.Plan(tr, p); !errors.As(err, &small) || small.Missing != int64(v.blockSize) {
				t.Errorf("Plan of one block less: %v", err)
			}
			for _, p.Size = range []int64{size, size + int64(v.blockSize), size + 100<<20, 3 << 30} {
				img, s := image(t, tr, p)
				fsck(t, img)
				if s.Size != p.Size || s.BlockSize != int64(v.blockSize) {
					t.Errorf("%d bytes in blocks of %d, want %d in blocks of %d", s.Size, s.BlockSize, p.Size, v.blockSize)
				}
				if err := os.Remove(img); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
