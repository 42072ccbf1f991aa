package ext4_test

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
)

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestSuperblock compares what tune2fs says with what was asked for.
func TestSuperblock(t *testing.T) {
	requireTool(t, "tune2fs", "e2fsprogs")
	img, s := image(t, fstest.Generate(2), params())
	got := map[string]string{}
	for line := range strings.Lines(run(t, "tune2fs", "-l", img)) {
		key, value, _ := strings.Cut(line, ":")
		got[key] = strings.TrimSpace(value)
	}
	for key, want := range map[string]string{
		"Filesystem volume name":  "cloudimg-rootfs",
		"Filesystem UUID":         "c0ffee00-0001-4002-8003-040506070809",
		"Directory Hash Seed":     "01020304-0506-4708-890a-0b0c0d0e0f10",
		"Filesystem features":     "has_journal ext_attr dir_index filetype meta_bg extent 64bit flex_bg sparse_super large_file huge_file dir_nlink extra_isize metadata_csum",
		"Filesystem flags":        "signed_directory_hash",
		"Default mount options":   "user_xattr acl",
		"Filesystem state":        "clean",
		"Errors behavior":         "Continue",
		"Inode count":             fmt.Sprint(s.Inodes),
		"Free inodes":             fmt.Sprint(s.Inodes - s.UsedInodes),
		"Block count":             fmt.Sprint(s.Blocks),
		"Free blocks":             fmt.Sprint(s.FreeBlocks),
		"Inodes per group":        fmt.Sprint(s.InodesPerGroup),
		"Reserved block count":    "0",
		"Flex block group size":   "128",
		"Inode size":              "256",
		"Journal inode":           "8",
		"Journal backup":          "inode blocks",
		"Default directory hash":  "half_md4",
		"Checksum type":           "crc32c",
		"Maximum mount count":     "-1",
		"Desired extra isize":     "32",
		"Check interval":          "0 (<none>)",
		"Last mounted on":         "<not available>",
		"Group descriptor size":   "64",
		"Reserved GDT blocks":     "", // none
		"Filesystem magic number": "0xEF53",
	} {
		if got[key] != want {
			t.Errorf("%s: %q, want %q", key, got[key], want)
		}
	}
	if s.UUID != got["Filesystem UUID"] {
		t.Errorf("Summary.UUID is %s", s.UUID)
	}
}

// TestSizes: every way to choose a size gives a valid file system of that size.
func TestSizes(t *testing.T) {
	const group = 128 << 20
	for name, c := range map[string]struct {
		p    ext4.Params
		size int64 // 0: any
		free int64 // least, in bytes; exact when minimal, unless -1
	}{
		"minimal":              {},
		"slack":                {p: ext4.Params{Slack: 1<<20 + 1}, free: 1<<20 + 4096},
		"slack over groups":    {p: ext4.Params{Slack: 3 * group}, free: 3 * group},
		"first boot":           {p: ext4.Params{Slack: 32 << 20, KernelReserve: true}, free: 32 << 20},
		"first boot, large":    {p: ext4.Params{Slack: 4 << 30, KernelReserve: true}, free: 4<<30 + 16<<20},
		"factor":               {p: ext4.Params{Factor: 2.5, Slack: 1 << 20}, free: -1},
		"by ratio":             {p: ext4.Params{InodeRatio: 8192, Slack: 200 << 20}, free: 200 << 20},
		"journal by size":      {p: ext4.Params{JournalBySize: true, Slack: 127 << 20}, free: 127 << 20},
		"reserved":             {p: ext4.Params{ReservedPercent: 50, Slack: 50 << 20}, free: 50 << 20},
		"no journal":           {p: ext4.Params{JournalSize: -1}},
		"small journal":        {p: ext4.Params{JournalSize: 4 << 20}},
		"journal over groups":  {p: ext4.Params{JournalSize: 1 << 30}},
		"many inodes":          {p: ext4.Params{Inodes: 1_000_000, Slack: 1}, free: -1},
		"inodes force groups":  {p: ext4.Params{Inodes: 40_000, Size: 2 * group}, size: 2 * group},
		"one group":            {p: ext4.Params{Size: group}, size: group},
		"a block more":         {p: ext4.Params{Size: group + 4096}, size: group + 4096},
		"half a group more":    {p: ext4.Params{Size: group + group/2}, size: group + group/2},
		"last of meta group":   {p: ext4.Params{Size: 63*group + group/2}, size: 63*group + group/2},
		"first of meta group":  {p: ext4.Params{Size: 64*group + group/4}, size: 64*group + group/4},
		"second flex group":    {p: ext4.Params{Size: 128*group + 4<<20}, size: 128*group + 4<<20},
		"flex group, too tiny": {p: ext4.Params{Size: 128*group + 100*4096}, size: 128*group + 100*4096},
		"100 GiB":              {p: ext4.Params{Size: 100 << 30}, size: 100 << 30},
	} {
		t.Run(name, func(t *testing.T) {
			p := c.p
			p.UUID, p.Time = params().UUID, params().Time
			img, s := image(t, fstest.Generate(4), p)
			fsck(t, img)
			if c.size != 0 && s.Size != c.size {
				t.Errorf("size %d, want %d", s.Size, c.size)
			}
			free := s.FreeBlocks * 4096
			if p.KernelReserve {
				free -= ext4.KernelReserved(s.Size)
				c.free = p.Slack
			}
			if p.Size == 0 && free != c.free && c.free >= 0 || free < c.free {
				t.Errorf("%d bytes are free, want %d", free, c.free)
			}
			if p.Factor > 0 {
				p.Factor, p.Slack = 0, 0
				least, err := ext4.Plan(fstest.Generate(4), p)
				if err != nil {
					t.Fatal(err)
				}
				if want := least.Size()*5/2 + 1<<20; s.Size < want || s.Size > want+8192 {
					t.Errorf("size %d, want %d", s.Size, want)
				}
			}
			if p.InodeRatio > 0 && s.Inodes < s.Size/p.InodeRatio {
				t.Errorf("%d inodes for %d bytes", s.Inodes, s.Size)
			}
			if p.JournalBySize && s.JournalSize != 16<<20 {
				t.Errorf("journal of %d bytes", s.JournalSize)
			}
			if uint32(s.Inodes) < p.Inodes {
				t.Errorf("%d inodes, want %d", s.Inodes, p.Inodes)
			}
		})
	}
}

// TestLastGroup: a minimal file system may end anywhere at the border of a
// group.
func TestLastGroup(t *testing.T) {
	l, err := ext4.Plan(tree.New(), params())
	if err != nil {
		t.Fatal(err)
	}
	for k := range int64(8) {
		p := params()
		p.Slack = 128<<20 - l.Size() - 4*4096 + k*4096
		img, s := image(t, tree.New(), p)
		fsck(t, img)
		if want := p.Slack / 4096; s.FreeBlocks != want {
			t.Errorf("%d blocks: %d free, want %d", s.Blocks, s.FreeBlocks, want)
		}
		if err := os.Remove(img); err != nil {
			t.Fatal(err)
		}
	}
}

// alternating is a content of n blocks of data with a hole behind each.
func alternating(n, blockSize int) *fstest.Holes {
	h := &fstest.Holes{Bytes: int64(2 * n * blockSize), CanSeek: true}
	for i := range n {
		h.Runs = append(h.Runs, fstest.Run{Off: int64(2 * i * blockSize), Data: bytes.Repeat([]byte{byte(i), 1}, blockSize/2)})
	}
	return h
}

func sparse(path string, h *fstest.Holes) tree.Node {
	return tree.Node{Path: path, Type: tree.Regular, Mode: 0o644, Size: h.Bytes, Content: h}
}

// TestManyExtents: extent trees of one and of two levels.
func TestManyExtents(t *testing.T) {
	tr := build(t, sparse("five", alternating(5, 4096)), sparse("leaf", alternating(340, 4096)), sparse("two leaves", alternating(341, 4096)),
		sparse("root full", alternating(4*340, 4096)), sparse("two levels", alternating(4*340+1, 4096)))
	img, s := image(t, tr, params())
	fsck(t, img)
	got := readBack(t, img, s)
	got.Remove("lost+found")
	for n := range tr.All() {
		if m := got.Lookup(n.Path); m == nil || n.Type == tree.Regular && digest(t, n) != digest(t, m) {
			t.Errorf("%s: content differs", n.Path)
		}
	}
}

// TestDeepExtents: the smallest extent tree of three levels, which only small
// blocks make so soon.
func TestDeepExtents(t *testing.T) {
	p := params()
	p.BlockSize = 1024
	tr := build(t, sparse("deep", alternating(4*84*84+1, 1024)))
	img, _ := image(t, tr, p)
	fsck(t, img)
	dump := filepath.Join(t.TempDir(), "dump")
	out := debugfs(t, img, []string{"dump deep " + dump, "dump_extents -n deep"})
	if !strings.Contains(out[1], " 0/ 3 ") {
		t.Errorf("extents: %.300s", out[1])
	}
	if got := (&tree.Node{Content: fileContent(dump)}); digest(t, got) != digest(t, tr.Lookup("deep")) {
		t.Error("debugfs reads another content")
	}
}

// fileContent is the content of a file of the host.
type fileContent string

func (f fileContent) Open() (io.ReadCloser, error) { return os.Open(string(f)) }

// TestLargestFile: a file of 2^32-1 blocks, with data in its last one.
func TestLargestFile(t *testing.T) {
	for _, size := range []int64{1024, 2048, 4096} {
		limit := (1<<32 - 1) * size
		huge := &fstest.Holes{Bytes: limit, CanSeek: true, Runs: []fstest.Run{{Off: 1 << 40, Data: []byte("middle")}, {Off: limit - 3, Data: []byte("end")}}}
		p := params()
		p.BlockSize = int(size)
		img, _ := image(t, build(t, sparse("huge", huge)), p)
		fsck(t, img)
		out := debugfs(t, img, []string{"stat huge", fmt.Sprintf("bmap huge %d", uint32(1<<32-2))})
		if !strings.Contains(out[0], fmt.Sprint("Size: ", limit)) || !strings.Contains(out[0], fmt.Sprintf("Blockcount: %d\n", 2*size/512)) {
			t.Errorf("file at the limit: %s", out[0])
		}
		block, err := strconv.ParseInt(strings.TrimSpace(out[1]), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		checkBytes(t, img, block*size+size-3, huge.Runs[1])
	}
}

// TestTimes: each border of what 34 bits of seconds hold, as Linux reads them.
// e2fsck takes some of them for damage.
func TestTimes(t *testing.T) {
	tr := tree.New()
	for _, sec := range []int64{-1 << 31, -1, 1<<31 - 1, 1 << 31, 1<<32 + 1<<31 - 1, 10_737_418_240, 12_884_901_887, 12_884_901_888, 15_032_385_535} {
		n := tree.Node{Path: fmt.Sprint("at ", sec), Type: tree.FIFO, MTime: tree.Time{Sec: sec, Nsec: 999_999_999}}
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	img, s := image(t, tr, noClamp())
	got := readBack(t, img, s)
	got.Remove("lost+found")
	if diff := firstDiff(text(t, tr), text(t, got)); diff != "" {
		t.Errorf("tree that debugfs shows: %s", diff)
	}
	if os.Geteuid() != 0 {
		t.Log("not root: no mount")
		return
	}
	root, _ := mount(t, img, ",ro")
	if diff := firstDiff(text(t, tr), text(t, describe(t, root))); diff != "" {
		t.Errorf("tree that the kernel shows: %s", diff)
	}
}

func digest(t testing.TB, n *tree.Node) [32]byte {
	t.Helper()
	r, err := n.Content.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// TestLargeDirectory: an index with inner nodes, and more subdirectories than
// links.
func TestLargeDirectory(t *testing.T) {
	tr := build(t, directory("names"), directory("dirs"))
	long := strings.Repeat("x", 240)
	for i := range 12_000 {
		if err := tr.Add(tree.Node{Path: fmt.Sprintf("names/%05d%s", i, long), Type: tree.FIFO, Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 65_000 {
		if err := tr.Add(directory(fmt.Sprintf("dirs/%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	img, _ := image(t, tr, params())
	fsck(t, img)
	out := debugfs(t, img, []string{"stat dirs", "htree_dump names", fmt.Sprintf("stat names/%05d%s", 7777, long)})
	if !strings.Contains(out[0], "Links: 1 ") {
		t.Errorf("directory with 65000 subdirectories: %s", out[0])
	}
	if !strings.Contains(out[1], "Indirect levels: 1") {
		t.Errorf("index: %.500s", out[1])
	}
	if !strings.Contains(out[2], "Type: FIFO") {
		t.Errorf("lookup by name: %s", out[2])
	}
}

// TestMillionEntries: one directory of a million names, with the index that
// its names need. It has a tenth of them unless CAIRN_TEST_LONG=1.
func TestMillionEntries(t *testing.T) {
	count := 100_000
	if long() {
		count = 1_000_000
	}
	tr := build(t, directory("d"))
	for i := range count {
		if err := tr.Add(tree.Node{Path: fmt.Sprintf("d/name %d of a file", i), Type: tree.FIFO}); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range []variant{variants[0], variants[5]} {
		p := v.params()
		if v.kind == ext4.Ext4 && long() {
			p.LargeDir = true
		}
		if v.kind != ext4.Ext4 && long() {
			p.BlockSize = 4096 // the index of ext3 is not deep enough for small blocks
		}
		img, _ := image(t, tr, p)
		fsck(t, img)
		for _, i := range []int{0, count / 2, count - 1} {
			name := fmt.Sprintf("d/name %d of a file", i)
			if out := debugfs(t, img, []string{`stat "` + name + `"`})[0]; !strings.Contains(out, "Type: FIFO") {
				t.Errorf("%s: %s: %s", v.name, name, out)
			}
		}
	}
}

// TestSharedXattrs: a block of attributes has at most 1024 sharers.
func TestSharedXattrs(t *testing.T) {
	tr := tree.New()
	for i := range 2500 {
		n := tree.Node{Path: fmt.Sprint(i), Type: tree.FIFO, Xattrs: xattrs("trusted.x", strings.Repeat("shared", 40))}
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	img, s := image(t, tr, params())
	fsck(t, img)
	bare, err := ext4.Plan(func() *tree.Tree {
		for n := range tr.All() {
			n.Xattrs = nil
		}
		return tr
	}(), params())
	if err != nil {
		t.Fatal(err)
	}
	if blocks := s.Blocks - bare.Summary().Blocks; blocks != 3 {
		t.Errorf("attributes of 2500 files take %d blocks, want 3", blocks)
	}
}

// TestSameBytes: the number of processors and the order of insertion do not
// matter, in any variant.
func TestSameBytes(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for i, v := range variants {
		sum := func(tr *tree.Tree) [32]byte {
			w := &hashWriter{Hash: sha256.New()}
			p := v.params()
			p.JournalSize = -1 // a large hole
			if _, err := ext4.Write(t.Context(), w, v.suit(tr), p); err != nil {
				t.Fatal(err)
			}
			return [32]byte(w.Sum(nil))
		}
		seed := uint64(i % 4)
		runtime.GOMAXPROCS(1)
		want := sum(fstest.Generate(seed))
		runtime.GOMAXPROCS(16)
		for range 2 {
			if got := sum(fstest.Generate(seed)); got != want {
				t.Fatalf("%s, tree %d: 16 processors give other bytes than one", v.name, seed)
			}
		}
		reversed := tree.New()
		*reversed.Lookup(".") = *fstest.Generate(seed).Lookup(".")
		addReversed(t, reversed, fstest.Generate(seed), ".")
		if got := sum(reversed); got != want {
			t.Fatalf("%s, tree %d: another order of insertion gives other bytes", v.name, seed)
		}
	}
}

// hashWriter hashes what is written in ascending order, and zeros between.
type hashWriter struct {
	hash.Hash
	end int64
}

func (w *hashWriter) WriteAt(b []byte, off int64) (int, error) {
	var zeros [4096]byte
	for w.end < off {
		n := min(off-w.end, int64(len(zeros)))
		w.Write(zeros[:n])
		w.end += n
	}
	w.end += int64(len(b))
	return w.Write(b)
}

func addReversed(t *testing.T, to, from *tree.Tree, path string) {
	t.Helper()
	var kids []*tree.Node
	for n := range from.Children(path) {
		kids = append(kids, n)
	}
	for i := range kids {
		n := *kids[len(kids)-1-i]
		if err := to.Add(n); err != nil {
			t.Fatal(err)
		}
		addReversed(t, to, from, n.Path)
	}
}

var update = flag.Bool("update", false, "write testdata/golden.sha256 anew")

// TestGolden: the bytes for a tree and parameters are fixed. A change here
// changes every image. To accept one, run
//
//	go test ./fsbuild/ext4 -run '^TestGolden$' -update
func TestGolden(t *testing.T) {
	const name = "testdata/golden.sha256"
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for seed := range uint64(4) {
		m := &memory{}
		if _, err := ext4.Write(t.Context(), m, fstest.Generate(seed), params()); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%x generated %d\n", sha256.Sum256(m.data), seed)
	}
	for i, v := range variants[1:] {
		m := &memory{}
		if _, err := ext4.Write(t.Context(), m, v.suit(fstest.Generate(uint64(i%3))), v.params()); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%x generated %d as %s\n", sha256.Sum256(m.data), i%3, v.name)
	}
	if *update {
		want = []byte(got.String())
		if err := os.WriteFile(name, want, 0o644); err != nil { //nolint:gosec // for everybody
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("other bytes:\n%s", diff)
	}
}
