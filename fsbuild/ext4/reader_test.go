package ext4_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
)

// openImage opens an image for reading.
func openImage(t testing.TB, name string) *ext4.Reader {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, err := ext4.Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// readTree returns the tree of an image.
func readTree(t testing.TB, r *ext4.Reader) *tree.Tree {
	t.Helper()
	tr, err := r.Tree(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// written returns the bytes of a tree's file system.
func written(t testing.TB, tr *tree.Tree, p ext4.Params) []byte {
	t.Helper()
	l, err := ext4.Plan(tr, p)
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{data: make([]byte, l.Size())}
	if _, err := l.Write(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return m.data
}

// openBytes opens an image in memory.
func openBytes(t testing.TB, b []byte) *ext4.Reader {
	t.Helper()
	r, err := ext4.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestReadWritten: what was written is read, and a copy of it, holes included,
// has the same bytes.
func TestReadWritten(t *testing.T) {
	for seed := range uint64(20) {
		tr, p := fstest.Generate(seed), noClamp()
		if seed%3 == 0 {
			p.JournalSize = -1
		}
		want := written(t, tr, p)
		r := openBytes(t, want)
		got := readTree(t, r)
		if diff := firstDiff(text(t, tr), text(t, got)); diff != "" {
			t.Fatalf("seed %d: tree: %s", seed, diff)
		}
		if !bytes.Equal(want, written(t, got, p)) {
			t.Fatalf("seed %d: the copy of an image has other bytes", seed)
		}
	}
}

func TestReadInfo(t *testing.T) {
	b := written(t, fstest.Generate(1), params())
	got := openBytes(t, b).Info()
	want := ext4.Info{
		Kind: "ext4", Label: "cloudimg-rootfs", UUID: "c0ffee00-0001-4002-8003-040506070809", BlockSize: 4096,
		Size: int64(len(b)), Blocks: int64(len(b)) / 4096, FreeBlocks: got.FreeBlocks, Inodes: 2048, FreeInodes: got.FreeInodes, InodeSize: 256,
		Features: strings.Fields("has_journal ext_attr dir_index filetype meta_bg extent 64bit flex_bg " +
			"sparse_super large_file huge_file dir_nlink extra_isize metadata_csum"),
		Clean: true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	l, err := ext4.Plan(fstest.Generate(1), params())
	if err != nil {
		t.Fatal(err)
	}
	if s := l.Summary(); got.FreeBlocks != s.FreeBlocks || got.FreeInodes != s.Inodes-s.UsedInodes {
		t.Errorf("free: %d blocks, %d inodes; the writer says %+v", got.FreeBlocks, got.FreeInodes, s)
	}
}

// TestReadLostFound: only a lost+found that is like the writer's is left out.
func TestReadLostFound(t *testing.T) {
	lost := tree.Node{Path: "lost+found", Type: tree.Directory, Mode: 0o700}
	for name, c := range map[string]struct {
		nodes  []tree.Node
		modify func(*tree.Node)
		want   bool
	}{
		"absent":  {nil, nil, false},
		"same":    {[]tree.Node{lost}, func(*tree.Node) {}, false},
		"mode":    {[]tree.Node{lost}, func(n *tree.Node) { n.Mode = 0o755 }, true},
		"owner":   {[]tree.Node{lost}, func(n *tree.Node) { n.UID = 1 }, true},
		"group":   {[]tree.Node{lost}, func(n *tree.Node) { n.GID = 1 }, true},
		"xattr":   {[]tree.Node{lost}, func(n *tree.Node) { n.Xattrs = xattrs("user.a", "") }, true},
		"content": {[]tree.Node{lost, file("lost+found/#12", "x")}, func(*tree.Node) {}, true},
		"deeper":  {[]tree.Node{directory("a"), {Path: "a/lost+found", Type: tree.Directory, Mode: 0o700}}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			tr := build(t, c.nodes...)
			if c.modify != nil {
				c.modify(tr.Lookup("lost+found"))
			}
			got := readTree(t, openBytes(t, written(t, tr, params())))
			if found := got.Lookup("lost+found") != nil; found != c.want {
				t.Errorf("lost+found in the tree: %v", found)
			}
			if name == "deeper" && got.Lookup("a/lost+found") == nil {
				t.Error("a/lost+found is missing")
			}
		})
	}
}

// TestReadSeek: readers seek, read in pieces of any size, and end.
func TestReadSeek(t *testing.T) {
	h := &fstest.Holes{Bytes: 100_000, Runs: []fstest.Run{{Off: 10_000, Data: bytes.Repeat([]byte("a"), 20_000)}, {Off: 70_000, Data: []byte("end")}}}
	tr := build(t, tree.Node{Path: "f", Type: tree.Regular, Size: h.Bytes, Content: h})
	f := readTree(t, openBytes(t, written(t, tr, params()))).Lookup("f")
	sparse, ok := f.Content.(tree.Sparse)
	if !ok {
		t.Fatal("content is not Sparse")
	}
	data, err := sparse.Data()
	if want := []tree.Extent{{Off: 8192, Len: 24576}, {Off: 69632, Len: 4096}}; err != nil || !slices.Equal(data, want) {
		t.Errorf("Data: %v, %v, want %v", data, err, want)
	}
	whole := read(t, h)
	c, err := f.Content.Open()
	if err != nil {
		t.Fatal(err)
	}
	s, ok := c.(io.ReadSeeker)
	if !ok {
		t.Fatal("reader does not seek")
	}
	for _, off := range []int64{0, 99_999, 70_001, 8191, 8192, 32_767, 32_768, 100_000} {
		for _, size := range []int{1, 4096, 100_001} {
			if at, err := s.Seek(off, io.SeekStart); at != off || err != nil {
				t.Fatalf("Seek(%d): %d, %v", off, at, err)
			}
			b := make([]byte, size)
			n, err := io.ReadFull(s, b)
			if want := whole[off:min(off+int64(size), h.Bytes)]; !bytes.Equal(b[:n], want) || (err == nil) != (n == size) {
				t.Errorf("%d bytes at %d: %d bytes, equal %v, %v", size, off, n, bytes.Equal(b[:n], want), err)
			}
		}
	}
	for _, bad := range []struct {
		off    int64
		whence int
	}{{-1, io.SeekStart}, {1, io.SeekEnd}, {0, 3}} {
		if _, err := s.Seek(bad.off, bad.whence); err == nil {
			t.Errorf("Seek(%d, %d) succeeded", bad.off, bad.whence)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
}

func read(t testing.TB, c tree.Content) []byte {
	t.Helper()
	r, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// faulty fails from some call on.
type faulty struct {
	*bytes.Reader
	calls, good int
}

var errSector = errors.New("bad sector")

func (f *faulty) ReadAt(b []byte, off int64) (int, error) {
	if f.calls++; f.calls > f.good {
		return 0, errSector
	}
	return f.Reader.ReadAt(b, off)
}

// TestReadFaults: whatever read fails, its error comes back.
func TestReadFaults(t *testing.T) {
	img := written(t, fstest.Generate(7), params())
	for good := 0; ; good += 1 + good/8 {
		f := &faulty{Reader: bytes.NewReader(img), good: good}
		r, err := ext4.Open(f, int64(len(img)))
		var tr *tree.Tree
		if err == nil {
			tr, err = r.Tree(t.Context())
		}
		if err == nil {
			err = tr.WriteText(io.Discard)
		}
		if f.calls <= good {
			if err != nil || good < 10 {
				t.Fatalf("%d reads, error %v", f.calls, err)
			}
			return
		}
		if !errors.Is(err, errSector) {
			t.Fatalf("read %d fails: %v", good, err)
		}
	}
}

// TestReadTruncated: an image that lacks its end is refused.
func TestReadTruncated(t *testing.T) {
	img := written(t, fstest.Generate(1), params())
	for _, size := range []int{0, 1024, 2047} {
		if _, err := ext4.Open(bytes.NewReader(img), int64(size)); !errors.Is(err, ext4.ErrFormat) {
			t.Errorf("Open of %d bytes: %v", size, err)
		}
	}
	for _, size := range []int{2048, 4096, len(img) - 1} {
		if _, err := ext4.Open(bytes.NewReader(img), int64(size)); !errors.Is(err, ext4.ErrCorrupt) {
			t.Errorf("Open of %d bytes: %v", size, err)
		}
	}
	if _, err := ext4.Open(bytes.NewReader(img[:2048]), int64(len(img))); err != nil {
		t.Fatal(err)
	}
	if _, err := openShort(img[:2048], len(img)).Tree(t.Context()); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Tree of a file that is shorter than told: %v", err)
	}
	if _, err := ext4.Open(bytes.NewReader(make([]byte, 1<<20)), 1<<20); !errors.Is(err, ext4.ErrFormat) {
		t.Errorf("Open of zeros: %v", err)
	}
}

func openShort(b []byte, size int) *ext4.Reader {
	r, err := ext4.Open(bytes.NewReader(b), int64(size))
	if err != nil {
		panic(fmt.Sprintf("BUG: %v", err))
	}
	return r
}

// TestReadManyWorkers: contents are read by several goroutines at a time.
func TestReadManyWorkers(t *testing.T) {
	tr := fstest.Generate(5)
	img := written(t, tr, noClamp())
	got := readTree(t, openBytes(t, img))
	done := make(chan bool)
	for range 8 {
		go func() { done <- text(t, got) == text(t, tr) }()
	}
	for range 8 {
		if !<-done {
			t.Error("a concurrent reader got something else")
		}
	}
}
