package squashfs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/squashfs"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
	"cairn/tests/require"
)

func add(t testing.TB, tr *tree.Tree, nodes ...tree.Node) {
	t.Helper()
	for _, n := range nodes {
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
}

// noise is data that does not compress.
func noise(size int, seed uint32) []byte {
	b := make([]byte, size)
	for i := range b {
		seed = seed*1664525 + 1013904223
		b[i] = byte(seed >> 24)
	}
	return b
}

func regular(path string, data []byte) tree.Node {
	return tree.Node{Path: path, Type: tree.Regular, Mode: 0o644, Size: int64(len(data)), Content: tree.Bytes(data)}
}

// TestDeterministic: the bytes depend neither on processors nor on the order
// in which the tree was made.
func TestDeterministic(t *testing.T) {
	a := representable(fstest.Generate(3))
	b := tree.New()
	*b.Lookup(".") = *a.Lookup(".")
	var nodes []tree.Node
	for n := range a.All() {
		nodes = append(nodes, *n)
	}
	for depth := range 200 {
		for i := range nodes {
			n := nodes[len(nodes)-1-i]
			if n.Inode != 0 {
				n.Inode = 1<<40 - n.Inode
			}
			if n.Path != "." && strings.Count(n.Path, "/") == depth {
				add(t, b, n)
			}
		}
	}
	p := squashfs.Params{Compression: squashfs.Zstd, BlockSize: 4096, Time: time.Unix(1e9, 0)}
	var want []byte
	for _, procs := range []int{1, 16} {
		old := runtime.GOMAXPROCS(procs)
		first, _ := write(t, a, p)
		second, _ := write(t, b, p)
		runtime.GOMAXPROCS(old)
		if want == nil {
			want = first
		}
		if !bytes.Equal(want, first) || !bytes.Equal(want, second) {
			t.Errorf("GOMAXPROCS=%d: other bytes", procs)
		}
	}
}

// TestSuperblock shows what unsquashfs says of an image.
func TestSuperblock(t *testing.T) {
	tr := tree.New()
	x := tree.Node{Path: "fifo", Type: tree.FIFO, UID: 1000, Xattrs: []tree.Xattr{{Name: "user.a", Value: []byte("1")}}}
	add(t, tr, regular("a", noise(5000, 1)), regular("b", noise(10, 2)), x)
	img := image(t, tr, squashfs.Params{Compression: squashfs.Zstd, BlockSize: 4096, Time: time.Unix(1e9, 0)})
	out := run(t, "unsquashfs", "squashfs-tools", "-s", img)
	for _, want := range []string{
		"valid SQUASHFS 4:0 superblock", "Sun Sep  9 01:46:40 2001", "Compression zstd", "Block size 4096",
		"Filesystem is exportable via NFS", "Inodes are compressed", "Xattrs are compressed", "Duplicates are removed",
		"Number of fragments 1", "Number of inodes 4", "Number of ids 2", "Number of xattr ids 1",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("unsquashfs -s does not say %q:\n%s", want, out)
		}
	}
	list := run(t, "unsquashfs", "squashfs-tools", "-lln", "-UTC", img)
	want := `drwxr-xr-x 0/0                      45 1970-01-01 00:00 squashfs-root
-rw-r--r-- 0/0                    5000 1970-01-01 00:00 squashfs-root/a
-rw-r--r-- 0/0                      10 1970-01-01 00:00 squashfs-root/b
p--------- 1000/0                    0 1970-01-01 00:00 squashfs-root/fifo
`
	if diff := cmp.Diff(want, list); diff != "" {
		t.Errorf("unsquashfs -ll (-want +got):\n%s", diff)
	}
}

// TestDuplicates: equal contents are stored once, whether small, large, or
// known by digest only when read; zeros are not stored.
func TestDuplicates(t *testing.T) {
	large, small := noise(500_000, 1), noise(20_000, 2)
	one := tree.New()
	add(t, one, regular("a", large), regular("b", small))
	_, single := write(t, one, squashfs.Params{})
	two := tree.New()
	other := bytes.Clone(large)
	add(t, two, regular("a", large), regular("b", small), regular("c", large), regular("d", small), regular("e", bytes.Clone(small)),
		tree.Node{Path: "z", Type: tree.Regular, Size: 100 << 20, Content: &fstest.Holes{Bytes: 100 << 20}})
	_, got := write(t, two, squashfs.Params{})
	if got.Duplicates != 3 || got.Used > single.Used+300 {
		t.Errorf("summary with duplicates is %+v, without %+v", got, single)
	}
	other[len(other)-1]++
	add(t, two, regular("f", other))
	_, got = write(t, two, squashfs.Params{})
	if got.Duplicates != 3 || got.Used < single.Used+int64(len(other)) {
		t.Errorf("summary with a different file is %+v", got)
	}
}

// TestSizes: block size and level matter; the compressions are what they say.
func TestSizes(t *testing.T) {
	tr := tree.New()
	var text []byte
	words := noise(4096, 1)
	for _, at := range noise(100_000, 2) {
		text = append(text, words[int(at)*16:int(at)*16+3+int(at)%13]...)
	}
	add(t, tr, regular("a", text))
	size := func(p squashfs.Params) int64 {
		_, s := write(t, tr, p)
		return s.Used
	}
	for _, c := range []squashfs.Compression{squashfs.Gzip, squashfs.XZ, squashfs.Zstd} {
		if small, big := size(squashfs.Params{Compression: c, BlockSize: 4096}), size(squashfs.Params{Compression: c, BlockSize: 1 << 20}); big >= small {
			t.Errorf("compression %d: %d bytes with blocks of 4 KiB, %d with 1 MiB", c, small, big)
		}
	}
	if fast, good := size(squashfs.Params{Level: 1}), size(squashfs.Params{Level: 9}); fast <= good {
		t.Errorf("level 1 gives %d bytes, 9 %d", fast, good)
	}
}

func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		node tree.Node
		p    squashfs.Params
		ok   bool
	}{
		"longest name":    {node: tree.Node{Path: strings.Repeat("x", 255)}, ok: true},
		"long name":       {node: tree.Node{Path: strings.Repeat("x", 256)}},
		"longest target":  {node: tree.Node{Path: "x", Type: tree.Symlink, Target: strings.Repeat("x", 4095)}, ok: true},
		"long target":     {node: tree.Node{Path: "x", Type: tree.Symlink, Target: strings.Repeat("x", 4096)}},
		"largest device":  {node: tree.Node{Path: "x", Type: tree.CharDevice, Major: 4095, Minor: 1<<20 - 1}, ok: true},
		"major":           {node: tree.Node{Path: "x", Type: tree.CharDevice, Major: 4096}},
		"minor":           {node: tree.Node{Path: "x", Type: tree.BlockDevice, Minor: 1 << 20}},
		"before 1970":     {node: tree.Node{Path: "x", MTime: tree.Time{Sec: -1}}},
		"after 2106":      {node: tree.Node{Path: "x", MTime: tree.Time{Sec: 1 << 32}}},
		"clamped":         {node: tree.Node{Path: "x", MTime: tree.Time{Sec: 1 << 32}}, p: squashfs.Params{Time: time.Unix(5, 0)}, ok: true},
		"ACL":             {node: tree.Node{Path: "x", Xattrs: []tree.Xattr{{Name: "system.posix_acl_access"}}}},
		"ACL left out":    {node: tree.Node{Path: "x", Xattrs: []tree.Xattr{{Name: "system.posix_acl_access"}}}, p: squashfs.Params{SkipXattrs: true}, ok: true},
		"long attribute":  {node: tree.Node{Path: "x", Xattrs: []tree.Xattr{{Name: "user.a", Value: make([]byte, 64<<10+1)}}}},
		"attribute":       {node: tree.Node{Path: "x", Xattrs: []tree.Xattr{{Name: "user.a", Value: make([]byte, 64<<10)}}}, ok: true},
		"long name of it": {node: tree.Node{Path: "x", Xattrs: []tree.Xattr{{Name: "user." + strings.Repeat("x", 1<<16)}}}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.node.Type == 0 {
				c.node.Type = tree.FIFO
			}
			tr := tree.New()
			add(t, tr, c.node)
			m := &memory{t: t}
			_, err := squashfs.Write(t.Context(), m, tr, c.p)
			switch {
			case c.ok && err != nil:
				t.Errorf("Write: %v", err)
			case !c.ok && (!errors.Is(err, squashfs.ErrLimit) || !strings.Contains(err.Error(), fmt.Sprintf("%q", c.node.Path))):
				t.Errorf("Write: %v, want ErrLimit with the path", err)
			case !c.ok && len(m.b) > 0:
				t.Errorf("%d bytes were written", len(m.b))
			}
		})
	}
}

// TestOwners: 65535 owners and groups fit, one more does not.
func TestOwners(t *testing.T) {
	tr := tree.New()
	for i := range uint32(65534) {
		add(t, tr, tree.Node{Path: fmt.Sprint(i), Type: tree.FIFO, UID: i + 1})
	}
	p := squashfs.Params{Compression: squashfs.Zstd}
	img := image(t, tr, p)
	if out := run(t, "unsquashfs", "squashfs-tools", "-s", img); !strings.Contains(out, "Number of ids 65535\n") {
		t.Errorf("unsquashfs -s says:\n%s", out)
	}
	add(t, tr, tree.Node{Path: "more", Type: tree.FIFO, GID: 70_000})
	if _, err := squashfs.Write(t.Context(), &memory{t: t}, tr, p); !errors.Is(err, squashfs.ErrLimit) {
		t.Errorf("Write: %v, want ErrLimit", err)
	}
}

func TestParams(t *testing.T) {
	for name, p := range map[string]squashfs.Params{
		"compression":    {Compression: 2},
		"level":          {Level: 10},
		"negative level": {Level: -1},
		"zstd level":     {Compression: squashfs.Zstd, Level: 5},
		"xz level":       {Compression: squashfs.XZ, Level: 1},
		"small block":    {BlockSize: 2048},
		"large block":    {BlockSize: 2 << 20},
		"odd block":      {BlockSize: 5000},
		"early":          {Time: time.Unix(-1, 0)},
		"late":           {Time: time.Unix(1<<32, 0)},
	} {
		if _, err := squashfs.Write(t.Context(), &memory{t: t}, tree.New(), p); err == nil {
			t.Errorf("%s: %+v is accepted", name, p)
		}
	}
}

type failing struct{ left int }

var errFull = errors.New("full")

func (f *failing) WriteAt(b []byte, _ int64) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, errFull
	}
	return len(b), nil
}

type faulty struct{}

func (faulty) Open() (io.ReadCloser, error) { return nil, errFull }

// TestErrors: every error ends Write, with many blocks under way.
func TestErrors(t *testing.T) {
	full := func() *tree.Tree {
		tr := tree.New()
		add(t, tr, regular("a", noise(300_000, 1)), regular("b", noise(9000, 2)), regular("c", noise(1000, 3)), regular("d", noise(1000, 4)))
		return tr
	}
	p := squashfs.Params{BlockSize: 4096}
	_, s := write(t, full(), p)
	rooms := []int{int(s.Size) - 96, int(s.Size) - 1} // all but the superblock, which is the last, and all but a byte
	for room := 0; room < int(s.Size); room += 7_000 {
		rooms = append(rooms, room)
	}
	for _, room := range rooms {
		if _, err := squashfs.Write(t.Context(), &failing{room}, full(), p); !errors.Is(err, errFull) {
			t.Errorf("room for %d bytes: %v", room, err)
		}
	}
	for _, path := range []string{"a", "b", "c"} {
		for _, by := range []int64{-1, 1, 4096} {
			tr := full()
			if n := tr.Lookup(path); n.Size > -by {
				n.Size += by
			}
			if _, err := squashfs.Write(t.Context(), &failing{1 << 30}, tr, p); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q: content changed", path)) {
				t.Errorf("%s with %d bytes more: %v", path, by, err)
			}
		}
		tr := full()
		tr.Lookup(path).Content = faulty{}
		if _, err := squashfs.Write(t.Context(), &failing{1 << 30}, tr, p); !errors.Is(err, errFull) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s cannot be opened: %v", path, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tr := range []*tree.Tree{full(), tree.New()} {
		if _, err := squashfs.Write(ctx, &failing{1 << 30}, tr, p); !errors.Is(err, context.Canceled) {
			t.Errorf("after cancel: %v", err)
		}
	}
}

// BenchmarkMksquashfs writes the same directory with this package and with
// mksquashfs, turn and turn about, and reports the ratios of time and size.
func BenchmarkMksquashfs(b *testing.B) {
	tool := require.Tool(b, "mksquashfs", "squashfs-tools")
	scratch := fstest.ScratchDir(b)
	src := os.Getenv("CAIRN_BENCH_TREE")
	if src == "" {
		src = filepath.Join(scratch, "tree")
		fstest.WriteFiles(b, src, 3_000)
	}
	out := filepath.Join(scratch, "out")
	for name, c := range map[string]squashfs.Compression{"gzip": squashfs.Gzip, "xz": squashfs.XZ, "zstd": squashfs.Zstd} {
		b.Run(name, func(b *testing.B) {
			var ours, theirs fstest.Usage
			var sizes [2]int64
			for b.Loop() {
				ours.Add(fstest.Measure(b, func() { sizes[0] = writeDirectory(b, src, out, c) }))
				theirs.Add(fstest.Measure(b, func() {
					_ = os.Remove(out)
					if msg, err := exec.Command(tool, src, out, "-comp", name, "-always-use-fragments", "-quiet", "-no-progress").CombinedOutput(); err != nil {
						b.Fatalf("mksquashfs: %v\n%s", err, msg)
					}
				}))
				info, err := os.Stat(out)
				if err != nil {
					b.Fatal(err)
				}
				sizes[1] = info.Size()
			}
			ours.Report(b, theirs, "mksquashfs")
			b.ReportMetric(float64(sizes[0])/float64(sizes[1]), "size-ratio")
		})
	}
}

func writeDirectory(b *testing.B, src, out string, c squashfs.Compression) int64 {
	b.Helper()
	_ = os.Remove(out)
	f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	t, err := dir.Read(b.Context(), src, dir.Options{})
	if err != nil {
		b.Fatal(err)
	}
	s, err := squashfs.Write(b.Context(), f, t, squashfs.Params{Compression: c, Time: time.Unix(1_700_000_000, 0), SkipXattrs: true})
	if err != nil {
		b.Fatal(err)
	}
	return s.Size
}
