package ext4_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
)

// mke2fs makes an image.
func mke2fs(t testing.TB, img string, args ...string) {
	t.Helper()
	requireTool(t, "mke2fs", "e2fsprogs")
	_ = os.Remove(img)
	if out, err := exec.Command("mke2fs", append([]string{"-q", "-F"}, append(args, img, "100M")...)...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs %v: %v\n%s", args, err, out)
	}
}

// TestReadMke2fs reads what mke2fs -d makes of a directory, with many sets of
// options; dumpe2fs judges the facts.
func TestReadMke2fs(t *testing.T) {
	scratch := scratchDir(t)
	img := filepath.Join(scratch, "fs.img")
	wants := map[int]*tree.Tree{}
	for _, room := range []int{0, 700, 3000} {
		src := filepath.Join(scratch, fmt.Sprint("src", room))
		if err := os.Mkdir(src, 0o755); err != nil {
			t.Fatal(err)
		}
		tr := foreignTree(t, 14, room)
		for n := range tr.All() { // mke2fs 1.47.0 stores whole seconds and 31 bits
			n.MTime = tree.Time{Sec: max(0, min(n.MTime.Sec, 1<<31-1))}
			n.Target = n.Target[:min(len(n.Target), 1000)]
			if n.Type == tree.Socket { // which it ignores
				n.Type = tree.FIFO
			}
			if h, ok := n.Content.(*fstest.Holes); ok && len(h.Runs) > 0 { // it loses a hole at the end with inline_data
				last := h.Runs[len(h.Runs)-1]
				h.Bytes = last.Off + int64(len(last.Data))
				n.Size = h.Bytes
			}
			if os.Geteuid() != 0 { // what the judge and mke2fs must be able to open
				n.Mode |= 0o700
			}
			if n.Type != tree.Regular { // of other types it copies each name
				n.Inode = 0
			}
		}
		materialise(t, src, tr)
		wants[room] = describe(t, src)
		wants[room].Remove("lost+found")
	}
	for _, c := range []struct {
		room int
		args string
	}{
		{3000, "-t ext4"},
		{3000, "-t ext4 -O orphan_file,metadata_csum_seed"}, // Debian 13, Ubuntu 24.04
		{3000, "-t ext4 -O ^metadata_csum,^64bit,uninit_bg"},
		{3000, "-t ext4 -O ^metadata_csum,uninit_bg"},
		{3000, "-t ext4 -O ^extents,^64bit,^flex_bg"},
		{3000, "-t ext4 -O inline_data"},
		{3000, "-t ext4 -O inline_data,^metadata_csum -I 1024"},
		{3000, "-t ext4 -O ea_inode,large_dir,quota,project"},
		{3000, "-t ext4 -O meta_bg,^resize_inode,sparse_super2"},
		{3000, "-t ext4 -O casefold,encrypt,verity,stable_inodes"},
		{3000, "-t ext4 -O mmp,bigalloc -C 65536"},
		{3000, "-t ext4 -b 65536"},
		{700, "-t ext4 -b 1024"},
		{700, "-t ext4 -b 1024 -O meta_bg,^resize_inode -g 1024 -G 2"},
		{700, "-t ext4 -b 1024 -O meta_bg,^resize_inode,sparse_super2 -g 1024 -G 2"},
		{700, "-t ext4 -b 1024 -O bigalloc -C 16384"},
		{700, "-t ext4 -b 1024 -O inline_data -I 512"},
		{700, "-t ext4 -b 2048 -O ^has_journal"},
		{700, "-t ext3 -b 1024"},
		{700, "-t ext3 -b 1024 -I 128"},
		{700, "-t ext2 -b 1024 -O ^filetype,^sparse_super,^dir_index,^resize_inode -I 128"},
		{0, "-t ext2 -b 4096 -r 0 -O none"},
	} {
		t.Run(c.args, func(t *testing.T) {
			src := filepath.Join(scratch, fmt.Sprint("src", c.room))
			mke2fs(t, img, append(strings.Fields(c.args), "-N", "4000", "-L", "foreign image", "-d", src)...)
			r := openImage(t, img)
			checkInfo(t, img, r.Info())
			got := readTree(t, r)
			root := got.Lookup(".") // mke2fs 1.47.0 does not take it from the directory
			want := wants[c.room].Lookup(".")
			want.Mode, want.UID, want.GID, want.MTime = root.Mode, root.UID, root.GID, root.MTime
			if diff := firstDiff(text(t, wants[c.room]), text(t, got)); diff != "" {
				t.Errorf("tree: %s", diff)
			}
			checkHoles(t, got)
		})
	}
}

// checkHoles: a file with holes has them in the image, so that a copy keeps
// them.
func checkHoles(t *testing.T, tr *tree.Tree) {
	t.Helper()
	for path, most := range map[string]int64{"foreign/sparse": 12 << 17, "foreign/hole": 0} {
		s, ok := tr.Lookup(path).Content.(tree.Sparse)
		if !ok {
			t.Errorf("%s: content is not Sparse", path)
			continue
		}
		data, err := s.Data()
		sum := int64(0)
		for _, e := range data {
			sum += e.Len
		}
		if err != nil || sum > most || len(data) > 12 {
			t.Errorf("%s: %d bytes in %d runs are data, error %v", path, sum, len(data), err)
		}
	}
}

var dumpField = regexp.MustCompile(`(?m)^([A-Z][^:]*):\s*(.*?)\s*$`)

// checkInfo compares the facts with what dumpe2fs prints.
func checkInfo(t *testing.T, img string, got ext4.Info) {
	t.Helper()
	dump := map[string]string{}
	for _, m := range dumpField.FindAllStringSubmatch(run(t, "dumpe2fs", "-h", img), -1) {
		dump[m[1]] = m[2]
	}
	kind := strings.TrimSpace(run(t, "blkid", "-p", "-s", "TYPE", "-o", "value", img))
	want := map[string]string{
		"kind": kind, "label": dump["Filesystem volume name"], "uuid": dump["Filesystem UUID"], "blocks": dump["Block count"],
		"free": dump["Free blocks"], "inodes": dump["Inode count"], "free inodes": dump["Free inodes"],
		"block size": dump["Block size"], "state": dump["Filesystem state"], "features": dump["Filesystem features"],
	}
	if want["uuid"] == "<none>" {
		want["uuid"] = "00000000-0000-0000-0000-000000000000"
	}
	if want["features"] == "(none)" {
		want["features"] = ""
	}
	if want["label"] == "<none>" {
		want["label"] = ""
	}
	state := "not clean"
	if got.Clean {
		state = "clean"
	}
	if got.Errors {
		state += " with errors"
	}
	have := map[string]string{
		"kind": got.Kind, "label": got.Label, "uuid": got.UUID, "blocks": fmt.Sprint(got.Blocks),
		"free": fmt.Sprint(got.FreeBlocks), "inodes": fmt.Sprint(got.Inodes), "free inodes": fmt.Sprint(got.FreeInodes),
		"block size": fmt.Sprint(got.BlockSize), "state": state, "features": strings.Join(got.Features, " "),
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("facts: %s", diff)
	}
	if got.Size != got.Blocks*int64(got.BlockSize) || got.Replayed != 0 {
		t.Errorf("facts: %+v", got)
	}
}

// mount mounts an image and returns where; unmount ends it.
func mount(t testing.TB, img, options string) (root string, unmount func()) {
	t.Helper()
	root = t.TempDir()
	run(t, "mount", "-o", "loop,noatime"+options, img, root)
	mounted := true
	unmount = func() {
		if mounted {
			mounted = false
			// Another process may have copied the mount into a namespace of its
			// own, so that umount alone does not end it.
			if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Error("remount:", err)
			}
			run(t, "umount", root)
		}
	}
	t.Cleanup(unmount)
	return root, unmount
}

// TestReadKernelWritten reads what Linux wrote, where the test may mount, as
// Linux reads it.
func TestReadKernelWritten(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: no mount")
		return
	}
	img := filepath.Join(scratchDir(t), "fs.img")
	for seed, args := range []string{
		"-t ext4", "-t ext4 -O inline_data", "-t ext4 -b 1024 -O ^extents,^64bit", "-t ext4 -b 1024 -O ea_inode,inline_data",
		"-t ext2 -I 128", "-t ext3 -b 2048", "-t ext4 -O ^metadata_csum,uninit_bg -I 512", "-t ext4 -O orphan_file,metadata_csum_seed",
	} {
		t.Run(args, func(t *testing.T) {
			mke2fs(t, img, append(strings.Fields(args), "-N", "9000")...)
			root, unmount := mount(t, img, "")
			materialise(t, root, foreignTree(t, uint64(seed)+3, 1<<20))
			fragment(t, filepath.Join(root, "fragments"))
			want := describe(t, root)
			unmount()
			got := readTree(t, openImage(t, img))
			if diff := firstDiff(text(t, want), text(t, got)); diff != "" {
				t.Errorf("tree: %s", diff)
			}
			f := filepath.Join(t.TempDir(), "dump")
			debugfs(t, img, []string{"dump /fragments " + f})
			if b, err := os.ReadFile(f); err != nil || string(b) != string(read(t, got.Lookup("fragments").Content)) {
				t.Errorf("debugfs reads another content, error %v", err)
			}
		})
	}
}

// fragment makes a file of very many extents, preallocated in part.
func fragment(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range int64(3000) {
		if _, err := f.WriteAt([]byte(fmt.Sprintf("fragment %d", i)), i*8192); err != nil {
			t.Fatal(err)
		}
	}
	tolerate(t, unix.Fallocate(int(f.Fd()), 0, 3000*8192, 1<<20))
	tolerate(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 4000*8192, 1<<20))
	if _, err := f.WriteAt([]byte("last"), 3000*8192+500_000); err != nil {
		t.Fatal(err)
	}
}

// TestReadRefusals: encrypted, verified and unknown things are refused by
// path or by name.
func TestReadRefusals(t *testing.T) {
	img := filepath.Join(scratchDir(t), "fs.img")
	for name, c := range map[string]struct {
		commands []string
		is       error
		want     []string
	}{
		"encrypted":     {[]string{"set_inode_field /d/f flags 0x80800"}, ext4.ErrUnsupported, []string{`"d/f"`, "encrypted"}},
		"verity":        {[]string{"set_inode_field /d/f flags 0x180000"}, ext4.ErrUnsupported, []string{`"d/f"`, "fs-verity"}},
		"compressed":    {[]string{"set_inode_field /d/f flags 0x80004"}, ext4.ErrUnsupported, []string{`"d/f"`, "compressed"}},
		"value's inode": {[]string{"set_inode_field /d/f flags 0x280000"}, ext4.ErrCorrupt, []string{`"d/f"`, "attribute"}},
		"journal dev":   {[]string{"feature journal_dev"}, ext4.ErrUnsupported, []string{"journal_dev"}},
		"features":      {[]string{"set_super_value feature_incompat 0x800802c2"}, ext4.ErrUnsupported, []string{"FEATURE_I19", "FEATURE_I31"}},
		"external log":  {[]string{"feature needs_recovery", "set_super_value journal_inum 0"}, ext4.ErrUnsupported, []string{"another device"}},
		"free inode":    {[]string{"set_inode_field /d/f links_count 0"}, ext4.ErrCorrupt, []string{`"d/f"`, "free"}},
		"no type":       {[]string{"set_inode_field /d/f mode 07777"}, ext4.ErrCorrupt, []string{`"d/f"`, "type"}},
		"a loop":        {[]string{"link /d /d/f2"}, ext4.ErrCorrupt, []string{"two names"}},
		"reserved":      {[]string{"link <8> /d/journal"}, ext4.ErrCorrupt, []string{`"d/journal"`, "inode 8"}},
		"extents":       {[]string{"set_inode_field /d/f block[IND] 0", "set_inode_field /d/f block[0] 0"}, nil, []string{"extent node"}},
		"block":         {[]string{"set_inode_field /d/f block[5] 123456789"}, nil, []string{"123456789"}},
		"nanoseconds":   {[]string{"set_inode_field /d/f mtime_extra 0xffffffff"}, ext4.ErrCorrupt, []string{`"d/f"`, "nanoseconds"}},
		"long symlink":  {[]string{"set_inode_field /link size 5000"}, ext4.ErrCorrupt, []string{`"link"`, "5000"}},
		"directory":     {[]string{"set_inode_field /d size 5000"}, ext4.ErrCorrupt, []string{`"d"`, "5000"}},
		"sparse dir":    {[]string{"set_inode_field /d size 40960"}, ext4.ErrCorrupt, []string{`"d"`, "hole"}},
		"size":          {[]string{"set_inode_field /d/f size 0x7fffffffffffff"}, ext4.ErrCorrupt, []string{`"d/f"`, "size"}},
	} {
		t.Run(name, func(t *testing.T) {
			src := t.TempDir()
			materialise(t, src, build(t, directory("d"), file("d/f", strings.Repeat("x", 5000)), tree.Node{Path: "link", Type: tree.Symlink, Target: strings.Repeat("l", 100)}))
			mke2fs(t, img, "-t", "ext4", "-d", src, "-E", "lazy_itable_init=1")
			if out, err := exec.Command("debugfs", "-w", "-R", c.commands[0], img).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, more := range c.commands[1:] {
				run(t, "debugfs", "-w", "-R", more, img)
			}
			err := readAll(t, img)
			if c.is != nil && !errors.Is(err, c.is) || c.is == nil && !errors.Is(err, ext4.ErrCorrupt) {
				t.Fatalf("error %v is not %v", err, c.is)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %s", err, w)
				}
			}
		})
	}
}

// readAll reads an image with all contents.
func readAll(t testing.TB, img string) error {
	t.Helper()
	f, err := os.Open(img)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	r, err := ext4.Open(f, st.Size())
	if err != nil {
		return err
	}
	tr, err := r.Tree(t.Context())
	if err != nil {
		return err
	}
	return tr.WriteText(io.Discard)
}
