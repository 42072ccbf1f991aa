package ext4_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
)

// build makes a tree of nodes.
func build(t testing.TB, nodes ...tree.Node) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for _, n := range nodes {
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func file(path, content string) tree.Node {
	return tree.Node{Path: path, Type: tree.Regular, Mode: 0o644, Size: int64(len(content)), Content: tree.Bytes([]byte(content))}
}

func directory(path string) tree.Node {
	return tree.Node{Path: path, Type: tree.Directory, Mode: 0o755}
}

func xattrs(kv ...string) (list []tree.Xattr) {
	for i := 0; i < len(kv); i += 2 {
		list = append(list, tree.Xattr{Name: kv[i], Value: []byte(kv[i+1])})
	}
	return list
}

// TestRefusals: what cannot be represented is an error that names path and
// limit.
func TestRefusals(t *testing.T) {
	links := []tree.Node{}
	for i := range 65001 {
		links = append(links, tree.Node{Path: fmt.Sprintf("n%d", i), Type: tree.FIFO, Inode: 7})
	}
	other := tree.Node{Path: "b", Type: tree.Regular, Mode: 0o600, Inode: 1}
	for name, c := range map[string]struct {
		nodes  []tree.Node
		modify func(*tree.Tree)
		want   []string
	}{
		"long name":      {nodes: []tree.Node{file(strings.Repeat("n", 256), "")}, want: []string{"nnn", "256", "255"}},
		"large file":     {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Size: 1 << 44, Content: tree.Bytes(nil)}}, want: []string{`"a"`, "17592186040320"}},
		"long symlink":   {nodes: []tree.Node{{Path: "a", Type: tree.Symlink, Target: strings.Repeat("t", 4096)}}, want: []string{`"a"`, "4096", "4095"}},
		"device number":  {nodes: []tree.Node{{Path: "a", Type: tree.BlockDevice, Major: 4096}}, want: []string{`"a"`, "4096:0", "4095"}},
		"early time":     {nodes: []tree.Node{{Path: "a", Type: tree.FIFO, MTime: tree.Time{Sec: -1<<31 - 1}}}, want: []string{`"a"`, "-2147483649", "1901"}},
		"late time":      {nodes: []tree.Node{{Path: "a", Type: tree.FIFO, MTime: tree.Time{Sec: 15_032_385_536}}}, want: []string{`"a"`, "2446"}},
		"many links":     {nodes: links, want: []string{"65000"}},
		"link differs":   {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Mode: 0o644, Inode: 1}, other}, want: []string{`"b"`, `"a"`, "mode"}},
		"link xattrs":    {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Mode: 0o600, Inode: 1, Xattrs: xattrs("user.a", "1")}, other}, want: []string{`"b"`, "xattrs"}},
		"link time":      {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Mode: 0o600, Inode: 1, MTime: tree.Time{Sec: 1}}, other}, want: []string{`"b"`, "time"}},
		"xattr space":    {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Xattrs: xattrs("user.a", strings.Repeat("v", 4096))}}, want: []string{`"a"`, "4060"}},
		"xattrs space":   {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Xattrs: xattrs("user.a", strings.Repeat("v", 2500), "user.b", strings.Repeat("v", 2500))}}, want: []string{`"a"`, "4060"}},
		"xattr name":     {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Xattrs: xattrs("user."+strings.Repeat("x", 256), "")}}, want: []string{`"a"`, "256", "255"}},
		"xattr space ns": {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Xattrs: xattrs("os2.x", "")}}, want: []string{`"a"`, "os2.x"}},
		"xattr empty":    {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Xattrs: xattrs("user.", "")}}, want: []string{`"a"`, `"user."`}},
		"bad ACL":        {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Xattrs: xattrs("system.posix_acl_access", "abc")}}, want: []string{`"a"`, "malformed"}},
		"ACL tag":        {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Xattrs: xattrs("system.posix_acl_access", "\x02\x00\x00\x00\x03\x00\x07\x00\x00\x00\x00\x00")}}, want: []string{`"a"`, "0x3"}},
		"default ACL":    {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Xattrs: xattrs("system.posix_acl_default", "\x02\x00\x00\x00")}}, want: []string{`"a"`, "directory"}},
		"symlink ACL":    {nodes: []tree.Node{{Path: "a", Type: tree.Symlink, Target: "x", Xattrs: xattrs("system.posix_acl_access", "\x02\x00\x00\x00")}}, want: []string{`"a"`, "symlink"}},
		"lost+found":     {nodes: []tree.Node{file("lost+found", "")}, want: []string{`"lost+found"`, "directory"}},
		"mode": {
			nodes: []tree.Node{file("a", "")}, want: []string{`"a"`, "mode"},
			modify: func(tr *tree.Tree) { tr.Lookup("a").Mode = 0o10644 },
		},
		"file as parent": {
			nodes: []tree.Node{directory("a"), file("a/b", "")}, want: []string{`"a/b"`, "not a directory"},
			modify: func(tr *tree.Tree) { tr.Lookup("a").Type = tree.FIFO },
		},
		"extents": {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Size: 10, Content: &fstest.Holes{Bytes: 10, Runs: []fstest.Run{{Off: 5, Data: make([]byte, 6)}}}}}, want: []string{`"a"`, "beyond"}},
	} {
		t.Run(name, func(t *testing.T) {
			tr := build(t, c.nodes...)
			if c.modify != nil {
				c.modify(tr)
			}
			_, err := ext4.Plan(tr, params())
			if err == nil {
				t.Fatal("Plan succeeded")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("Plan: %v: does not say %s", err, w)
				}
			}
		})
	}
}

// TestRefusalsOfVariants: smaller blocks and older types have lower limits, and
// an error says which.
func TestRefusalsOfVariants(t *testing.T) {
	subdirs := []tree.Node{}
	links := []tree.Node{}
	for i := range 32_001 {
		if i < 31_999 {
			subdirs = append(subdirs, directory(fmt.Sprint(i)))
		}
		links = append(links, tree.Node{Path: fmt.Sprintf("n%d", i), Type: tree.FIFO, Inode: 7})
	}
	wide := []tree.Node{directory("d")}
	for i := range 123*126*3 + 3 {
		wide = append(wide, tree.Node{Path: fmt.Sprintf("d/%06d%s", i, strings.Repeat("x", 245)), Type: tree.FIFO})
	}
	v := func(kind ext4.Type, blockSize, inodeSize int) variant { return variant{"", kind, blockSize, inodeSize} }
	for name, c := range map[string]struct {
		variant
		nodes []tree.Node
		want  []string
	}{
		"subdirectories": {v(ext4.Ext3, 4096, 256), subdirs, []string{`"."`, "32000 subdirectories", "ext3 is 31998"}}, // and lost+found
		"links":          {v(ext4.Ext2, 4096, 256), links, []string{`"n9999"`, "32000"}},
		"symlink, 1K":    {v(ext4.Ext4, 1024, 256), []tree.Node{{Path: "a", Type: tree.Symlink, Target: strings.Repeat("t", 1024)}}, []string{`"a"`, "1024", "1023"}},
		"xattr, 1K":      {v(ext4.Ext4, 1024, 256), []tree.Node{{Path: "a", Type: tree.FIFO, Xattrs: xattrs("trusted.a", strings.Repeat("v", 1024))}}, []string{`"a"`, "988 in a block"}},
		"xattr, ext2":    {v(ext4.Ext2, 4096, 256), []tree.Node{{Path: "a", Type: tree.FIFO, Xattrs: xattrs("trusted.a", strings.Repeat("v", 4050))}}, []string{`"a"`, "0 in the inode"}},
		"old inode time": {v(ext4.Ext4, 4096, 128), []tree.Node{{Path: "a", Type: tree.FIFO, MTime: tree.Time{Sec: 1 << 31}}}, []string{`"a"`, "2038-01-19 (2147483647 s)"}},
		"file, 1K":       {v(ext4.Ext4, 1024, 256), []tree.Node{{Path: "a", Type: tree.Regular, Size: 1 << 42, Content: tree.Bytes(nil)}}, []string{`"a"`, "4398046510080"}},
		"directory, 1K":  {v(ext4.Ext4, 1024, 256), wide, []string{`"d"`, "46497 entries", "limit is 15498", "large_dir"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ext4.Plan(build(t, c.nodes...), c.params())
			if err == nil {
				t.Fatal("Plan succeeded")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("Plan: %v: does not say %s", err, w)
				}
			}
		})
	}
	// The same directory with another level of index.
	p := v(ext4.Ext4, 1024, 256).params()
	p.LargeDir = true
	img, _ := image(t, build(t, wide...), p)
	fsck(t, img)
	last := wide[len(wide)-1].Path
	out := debugfs(t, img, []string{"htree_dump d", "stat " + last})
	if !strings.Contains(out[0], "Indirect levels: 2") || !strings.Contains(out[1], "Type: FIFO") {
		t.Errorf("index: %.300s\nlookup: %s", out[0], out[1])
	}
	if !features(t, img)["large_dir"] {
		t.Error("dumpe2fs does not say large_dir")
	}
}

// TestParams: parameters that cannot be represented are refused.
func TestParams(t *testing.T) {
	for name, c := range map[string]struct {
		modify func(*ext4.Params)
		want   string
	}{
		"no UUID":        {func(p *ext4.Params) { p.UUID = [16]byte{} }, "UUID"},
		"long label":     {func(p *ext4.Params) { p.Label = "seventeen bytes!!" }, "limit is 16"},
		"label with NUL": {func(p *ext4.Params) { p.Label = "a\x00" }, "NUL"},
		"block size":     {func(p *ext4.Params) { p.BlockSize = 8192 }, "only 1024"},
		"odd size":       {func(p *ext4.Params) { p.Size = 1<<30 + 1 }, "multiple of 4096"},
		"negative size":  {func(p *ext4.Params) { p.Size = -4096 }, "multiple of 4096"},
		"negative slack": {func(p *ext4.Params) { p.Slack = -1 }, "negative"},
		"slack and size": {func(p *ext4.Params) { p.Slack, p.Size = 1, 1<<30 }, "minimal"},
		"small journal":  {func(p *ext4.Params) { p.JournalSize = 1 << 20 }, "4194304"},
		"type":           {func(p *ext4.Params) { p.Type = 3 }, "type 3"},
		"odd block size": {func(p *ext4.Params) { p.BlockSize = 3000 }, "3000"},
		"small inodes":   {func(p *ext4.Params) { p.InodeSize = 64 }, "128"},
		"odd inodes":     {func(p *ext4.Params) { p.InodeSize = 384 }, "power of two"},
		"large inodes":   {func(p *ext4.Params) { p.InodeSize, p.BlockSize = 2048, 1024 }, "block size 1024"},
		"old inode time": {func(p *ext4.Params) { p.InodeSize, p.Time = 128, time.Unix(1<<31, 0) }, "2038"},
		"small ratio":    {func(p *ext4.Params) { p.InodeRatio = 1023 }, "1024"},
		"large ratio":    {func(p *ext4.Params) { p.InodeRatio = 64<<20 + 1 }, "67108864"},
		"ratio, inodes":  {func(p *ext4.Params) { p.InodeRatio, p.Inodes = 4096, 1 }, "exclude"},
		"reserved":       {func(p *ext4.Params) { p.ReservedPercent = 51 }, "50"},
		"not a number":   {func(p *ext4.Params) { p.ReservedPercent = math.NaN() }, "50"},
		"factor":         {func(p *ext4.Params) { p.Factor = 0.5 }, "from 1 to"},
		"factor, size":   {func(p *ext4.Params) { p.Factor, p.Size = 2, 1<<30 }, "minimal"},
		"two journals":   {func(p *ext4.Params) { p.JournalBySize, p.JournalSize = true, 4<<20 }, "given"},
		"ext2 journal":   {func(p *ext4.Params) { p.Type, p.JournalSize = ext4.Ext2, 4<<20 }, "no journal"},
		"ext3 large_dir": {func(p *ext4.Params) { p.Type, p.LargeDir = ext4.Ext3, true }, "large_dir"},
		"1K journal":     {func(p *ext4.Params) { p.BlockSize, p.JournalSize = 1024, 1<<20-1024 }, "1048576"},
		"growth":         {func(p *ext4.Params) { p.GrowTo = 1<<50 + 1 }, "1125899906842624"},
		"no growth":      {func(p *ext4.Params) { p.GrowTo = -1 }, "from 0"},
		"ext3 growth":    {func(p *ext4.Params) { p.Type, p.GrowTo = ext4.Ext3, 16<<40 }, "17592051826688"},
		"ext2 1K growth": {func(p *ext4.Params) { p.Type, p.GrowTo, p.BlockSize = ext4.Ext2, 3<<40, 1024 }, "limit of ext2"},
		"growth, ratio":  {func(p *ext4.Params) { p.GrowTo, p.InodeRatio = 1<<50, 16384 }, "496"},
		"many files, 1P": {func(p *ext4.Params) { p.GrowTo, p.Size, p.Inodes = 1<<50, 1<<30, 4000 }, "missing"},
		"ext2 size":      {func(p *ext4.Params) { p.Type, p.Slack = ext4.Ext2, 17<<40 }, "above the limit of ext2"},
		"early time":     {func(p *ext4.Params) { p.Time = time.Unix(-1, 0) }, "1970"},
		"late time":      {func(p *ext4.Params) { p.Time = time.Unix(1<<34, 0) }, "2446"},
		"many inodes":    {func(p *ext4.Params) { p.Inodes, p.Size = 1<<31, 64<<20 }, "missing"},
	} {
		t.Run(name, func(t *testing.T) {
			p := params()
			c.modify(&p)
			if _, err := ext4.Plan(tree.New(), p); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Plan: %v, want an error that says %q", err, c.want)
			}
		})
	}
}

// TestTooSmall: the error says how much is missing, and that much suffices.
func TestTooSmall(t *testing.T) {
	tr := fstest.Generate(3)
	p := params()
	p.Size = 8 << 20
	_, err := ext4.Plan(tr, p)
	var small *ext4.SizeError
	if !errors.As(err, &small) || !errors.Is(err, ext4.ErrTooSmall) {
		t.Fatalf("Plan: %v, want a SizeError", err)
	}
	if small.Size != p.Size || small.Missing <= 0 {
		t.Fatalf("SizeError %+v", small)
	}
	p.Size += small.Missing - 4096
	if _, err := ext4.Plan(tr, p); !errors.Is(err, ext4.ErrTooSmall) {
		t.Errorf("Plan with one block less than enough: %v", err)
	}
	p.Size += 4096
	img, s := image(t, tr, p)
	fsck(t, img)
	if s.FreeBlocks != 0 {
		t.Errorf("%d blocks are free at the least size", s.FreeBlocks)
	}
}

// badContent is a content that is not what its node says.
type badContent struct {
	data string
	err  error
	open error
}

func (c badContent) Open() (io.ReadCloser, error) {
	if c.open != nil {
		return nil, c.open
	}
	r := io.Reader(strings.NewReader(c.data))
	if c.err != nil {
		r = io.MultiReader(r, errReader{c.err})
	}
	return io.NopCloser(r), nil
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

type idleReader struct{}

func (idleReader) Read([]byte) (int, error) { return 0, nil }
func (idleReader) Close() error             { return nil }

type idleContent struct{}

func (idleContent) Open() (io.ReadCloser, error) { return idleReader{}, nil }

// TestContentErrors: a content that cannot be read, or has changed, is an
// error that names the file.
func TestContentErrors(t *testing.T) {
	fault := errors.New("bad sector")
	for name, c := range map[string]struct {
		content tree.Content
		size    int64
		want    string
		is      error
	}{
		"short":          {badContent{data: "abc"}, 4, "has 3 bytes, not 4", nil},
		"short block":    {badContent{data: strings.Repeat("a", 4096)}, 8192, "has 4096 bytes, not 8192", nil},
		"long":           {badContent{data: "abcde"}, 4, "more than 4 bytes", nil},
		"long block":     {badContent{data: strings.Repeat("a", 4097)}, 4096, "more than 4096 bytes", nil},
		"long, large":    {badContent{data: strings.Repeat("a", 1<<20+1)}, 1 << 20, "more than 1048576 bytes", nil},
		"read error":     {badContent{data: "abc", err: fault}, 4, "bad sector", fault},
		"open error":     {badContent{open: fault}, 4, "bad sector", fault},
		"no progress":    {idleContent{}, 4, "Read", io.ErrNoProgress},
		"unexpected EOF": {badContent{data: "abc", err: io.ErrUnexpectedEOF}, 4, "unexpected EOF", io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			tr := build(t, directory("d"), tree.Node{Path: "d/f", Type: tree.Regular, Size: c.size, Content: c.content})
			_, err := ext4.Write(t.Context(), &memory{}, tr, params())
			if err == nil || !strings.Contains(err.Error(), `"d/f"`) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Write: %v, want an error that says %q", err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("Write: %v is not %v", err, c.is)
			}
		})
	}
}

// memory is a WriterAt that keeps what it gets, and fails at a byte.
type memory struct {
	data   []byte
	failAt int64 // 0 = never
}

var errFull = errors.New("no space left on device")

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	if m.failAt > 0 && off+int64(len(b)) > m.failAt {
		return 0, errFull
	}
	if need := off + int64(len(b)) - int64(len(m.data)); need > 0 {
		m.data = append(m.data, make([]byte, need)...)
	}
	return copy(m.data[off:], b), nil
}

// TestFailingWriter: whatever the byte at which the writer fails, its error
// comes back.
func TestFailingWriter(t *testing.T) {
	tr := fstest.Generate(1)
	l, err := ext4.Plan(tr, params())
	if err != nil {
		t.Fatal(err)
	}
	full := &memory{}
	if _, err := l.Write(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	for at := int64(1); at < int64(len(full.data)); at += at/3 + 1 {
		if _, err := l.Write(t.Context(), &memory{failAt: at}); !errors.Is(err, errFull) {
			t.Fatalf("writer fails at byte %d: Write: %v", at, err)
		}
	}
	again := &memory{failAt: int64(len(full.data))}
	if _, err := l.Write(t.Context(), again); err != nil || !bytes.Equal(again.data, full.data) {
		t.Fatalf("second Write of the same layout: error %v, equal bytes %v", err, bytes.Equal(again.data, full.data))
	}
}

// shortWriter breaks the contract of io.WriterAt.
type shortWriter struct{}

func (shortWriter) WriteAt(b []byte, _ int64) (int, error) { return len(b) - 1, nil }

func TestShortWriter(t *testing.T) {
	if _, err := ext4.Write(t.Context(), shortWriter{}, tree.New(), params()); !errors.Is(err, io.ErrShortWrite) {
		t.Fatalf("Write: %v, want ErrShortWrite", err)
	}
}

// cancelWriter cancels at its first call.
type cancelWriter struct {
	memory
	cancel context.CancelFunc
}

func (c *cancelWriter) WriteAt(b []byte, off int64) (int, error) {
	c.cancel()
	return c.memory.WriteAt(b, off)
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tr := build(t, file("a", strings.Repeat("x", 20<<20)))
	if _, err := ext4.Write(ctx, &cancelWriter{cancel: cancel}, tr, params()); !errors.Is(err, context.Canceled) {
		t.Fatalf("Write: %v, want context.Canceled", err)
	}
}

// TestFirstFailure: the error is that of the content that comes first, even if
// another one failed before.
func TestFirstFailure(t *testing.T) {
	first, second := errors.New("first"), errors.New("second")
	later := make(chan struct{})
	const size = 4 << 20 // too large for both to be made by one worker
	tr := build(t,
		tree.Node{Path: "a", Type: tree.Regular, Size: size, Content: openFunc(func() error { <-later; return first })},
		tree.Node{Path: "b", Type: tree.Regular, Size: size, Content: openFunc(func() error { close(later); return second })},
	)
	if _, err := ext4.Write(t.Context(), &memory{}, tr, params()); !errors.Is(err, first) {
		t.Fatalf("Write: %v, want %v", err, first)
	}
}

// openFunc is a content that cannot be opened.
type openFunc func() error

func (f openFunc) Open() (io.ReadCloser, error) { return nil, f() }
