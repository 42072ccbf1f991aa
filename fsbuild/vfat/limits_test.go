package vfat_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
)

// TestRefusals: what FAT cannot represent is an error that names path and
// limit.
func TestRefusals(t *testing.T) {
	wide := []tree.Node{directory("wide")}
	for i := range 32768 { // two slots each, with "." and ".." two too many
		wide = append(wide, file(fmt.Sprintf("wide/long%d", 10_000+i), ""))
	}
	var root []tree.Node
	for i := range 512 {
		root = append(root, file(fmt.Sprintf("n%d", i), ""))
	}
	deep := []tree.Node{directory("d")}
	for len(deep[len(deep)-1].Path) < 257 {
		deep = append(deep, directory(deep[len(deep)-1].Path+"/d"))
	}
	for name, c := range map[string]struct {
		nodes []tree.Node
		p     vfat.Params
		want  []string
	}{
		"symlink":        {nodes: []tree.Node{{Path: "a", Type: tree.Symlink, Target: "b"}}, want: []string{`"a"`, "symlinks"}},
		"device":         {nodes: []tree.Node{{Path: "a", Type: tree.BlockDevice}}, want: []string{`"a"`, "devices"}},
		"character":      {nodes: []tree.Node{{Path: "a", Type: tree.CharDevice}}, want: []string{`"a"`, "devices"}},
		"FIFO":           {nodes: []tree.Node{{Path: "a", Type: tree.FIFO}}, want: []string{`"a"`, "FIFOs"}},
		"socket":         {nodes: []tree.Node{{Path: "a", Type: tree.Socket}}, want: []string{`"a"`, "sockets"}},
		"xattr":          {nodes: []tree.Node{{Path: "a", Type: tree.Directory, Xattrs: []tree.Xattr{{Name: "user.x"}}}}, want: []string{`"a"`, "user.x"}},
		"large file":     {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Size: 1 << 32, Content: tree.Bytes(nil)}}, want: []string{`"a"`, "4294967296", "4294967295"}},
		"not UTF-8":      {nodes: []tree.Node{file("a\xff", "")}, want: []string{`"a\xff"`, "UTF-8"}},
		"colon":          {nodes: []tree.Node{directory("d"), file("d/a:b", "")}, want: []string{`"d/a:b"`, "':'"}},
		"control":        {nodes: []tree.Node{file("a\nb", "")}, want: []string{`"a\nb"`, `'\n'`}},
		"no character":   {nodes: []tree.Node{file("a\uffff", "")}, want: []string{`'\uffff'`}},
		"final dot":      {nodes: []tree.Node{file("a.", "")}, want: []string{`"a."`, "'.'"}},
		"final space":    {nodes: []tree.Node{file("a ", "")}, want: []string{`"a "`, "' '"}},
		"long name":      {nodes: []tree.Node{file(strings.Repeat("Ω", 256), "")}, want: []string{"256", "255"}},
		"surrogates":     {nodes: []tree.Node{file(strings.Repeat("😀", 128), "")}, want: []string{"256", "255"}},
		"deep":           {nodes: deep, want: []string{`d/d"`, "257", "256"}},
		"case":           {nodes: []tree.Node{directory("d"), file("d/File", ""), file("d/fILE", "")}, want: []string{`"d/fILE"`, `"d/File"`, "case"}},
		"Unicode case":   {nodes: []tree.Node{file("ä", ""), file("Ä", "")}, want: []string{`"ä"`, `"Ä"`, "case"}},
		"wide":           {nodes: wide, want: []string{`"wide"`, "65538", "65536"}},
		"root is full":   {nodes: root, p: vfat.Params{Label: "X"}, want: []string{`"."`, "513", "512"}},
		"floppy's root":  {nodes: root, p: vfat.Params{Size: 1440 << 10}, want: []string{`"."`, "512", "224"}},
		"changed node":   {nodes: []tree.Node{{Path: "a", Type: tree.Regular, Mode: 0o644, Size: -1}}, want: []string{`"a"`, "negative"}},
		"label, long":    {p: vfat.Params{Label: "twelve bytes"}, want: []string{"12", "11"}},
		"label, char":    {p: vfat.Params{Label: "a.b"}, want: []string{"a.b", "'.'"}},
		"label, control": {p: vfat.Params{Label: "a\x1f"}, want: []string{`'\x1f'`}},
		"label, Unicode": {p: vfat.Params{Label: "ä"}, want: []string{"ä"}},
		"label, space":   {p: vfat.Params{Label: " a"}, want: []string{" a", "space"}},
		"label, NO NAME": {p: vfat.Params{Label: "NO NAME"}, want: []string{"NO NAME"}},
		"type":           {p: vfat.Params{Type: 13}, want: []string{"13"}},
		"sector size":    {p: vfat.Params{SectorSize: 8192}, want: []string{"8192", "4096"}},
		"sector odd":     {p: vfat.Params{SectorSize: 1000}, want: []string{"1000"}},
		"sector < 0":     {p: vfat.Params{SectorSize: -512}, want: []string{"-512"}},
		"cluster size":   {p: vfat.Params{ClusterSize: 131072}, want: []string{"131072", "65536"}},
		"cluster odd":    {p: vfat.Params{ClusterSize: 1536}, want: []string{"1536"}},
		"cluster small":  {p: vfat.Params{ClusterSize: 512, SectorSize: 4096}, want: []string{"512", "4096"}},
		"size":           {p: vfat.Params{Size: 1<<20 + 1}, want: []string{"1048577", "512"}},
		"size < 0":       {p: vfat.Params{Size: -512}, want: []string{"-512"}},
		"slack < 0":      {p: vfat.Params{Slack: -1}, want: []string{"-1"}},
		"size and slack": {p: vfat.Params{Slack: 1, Size: 1 << 20}, want: []string{"slack"}},
		"root entries":   {p: vfat.Params{RootEntries: 32769}, want: []string{"32769", "32768"}},
		"media":          {p: vfat.Params{Media: 0xf1}, want: []string{"0xf1"}},
	} {
		t.Run(name, func(t *testing.T) {
			tr := tree.New()
			for _, n := range c.nodes {
				size := n.Size
				n.Size = max(size, 0)
				if err := tr.Add(n); err != nil {
					t.Fatal(err)
				}
				tr.Lookup(n.Path).Size = size
			}
			_, err := vfat.Plan(tr, c.p)
			if err == nil {
				t.Fatal("Plan succeeds")
			}
			for _, w := range append(c.want, "plan vfat: ") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("Plan: %v, want an error with %s", err, w)
				}
			}
		})
	}
}

// TestAtLimits: what is just within the limits is sound.
func TestAtLimits(t *testing.T) {
	t.Parallel()
	nodes := []tree.Node{file(strings.Repeat("Ω", 255), "x"), file(strings.Repeat("😀", 127), "y"), directory("wide"), directory("EFI"), directory("d")}
	for i := range 32767 {
		nodes = append(nodes, file(fmt.Sprintf("wide/long%d", 10_000+i), ""))
	}
	for last := "d"; len(last) < 255; {
		last += "/d"
		nodes = append(nodes, directory(last))
	}
	for i := range 460 {
		nodes = append(nodes, file(fmt.Sprintf("n%d", i), ""))
	}
	tr := build(t, nodes...)
	p := params()
	p.Label = "EFI" // as a directory is called
	img, s := image(t, tr, p)
	if s.Type != vfat.FAT12 {
		t.Errorf("%+v", s)
	}
	fsck(t, img)
	if diff := firstDiff(text(t, asFAT(t, tr, stamp)), text(t, open(t, img).Tree)); diff != "" {
		t.Error(diff)
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

type idleContent struct{}

func (idleContent) Open() (io.ReadCloser, error) { return io.NopCloser(errReader{}), nil }

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
		"empty":          {badContent{}, 4, "has 0 bytes, not 4", nil},
		"short, large":   {badContent{data: strings.Repeat("a", 3<<20)}, 4 << 20, "has 3145728 bytes, not 4194304", nil},
		"long":           {badContent{data: "abcde"}, 4, "more than 4 bytes", nil},
		"long, large":    {badContent{data: strings.Repeat("a", 2<<20+1)}, 2 << 20, "more than 2097152 bytes", nil},
		"read error":     {badContent{data: "abc", err: fault}, 4, "bad sector", fault},
		"error at end":   {badContent{data: "abcd", err: fault}, 4, "bad sector", fault},
		"open error":     {badContent{open: fault}, 4, "bad sector", fault},
		"no progress":    {idleContent{}, 4, "Read", io.ErrNoProgress},
		"unexpected EOF": {badContent{data: "abc", err: io.ErrUnexpectedEOF}, 4, "unexpected EOF", io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			tr := build(t, directory("d"), tree.Node{Path: "d/f", Type: tree.Regular, Size: c.size, Content: c.content})
			_, err := vfat.Write(t.Context(), &memory{}, tr, params())
			if err == nil || !strings.Contains(err.Error(), `write vfat: "d/f"`) || !strings.Contains(err.Error(), c.want) {
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
	tr := build(t, directory("d"), file("d/large", strings.Repeat("x", 3<<20)), file("small", "y"))
	l, err := vfat.Plan(tr, params())
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
	if _, err := vfat.Write(t.Context(), shortWriter{}, tree.New(), params()); !errors.Is(err, io.ErrShortWrite) {
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
	w := &cancelWriter{cancel: cancel}
	if _, err := vfat.Write(ctx, w, tr, params()); !errors.Is(err, context.Canceled) {
		t.Fatalf("Write: %v, want context.Canceled", err)
	}
	if len(w.data) > 2<<20 {
		t.Errorf("%d bytes were written", len(w.data))
	}
}
