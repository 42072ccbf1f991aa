package tree_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
)

func dirNode(path string) tree.Node {
	return tree.Node{Path: path, Type: tree.Directory, Mode: 0o755}
}

func paths(t *tree.Tree) (list []string) {
	for n := range t.All() {
		list = append(list, n.Path)
	}
	return list
}

func text(t testing.TB, tr *tree.Tree) string {
	t.Helper()
	var b strings.Builder
	if err := tr.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestOrder: the order is bytewise by component whatever the order of Add, so
// a directory's content comes before "a-b" although '-' sorts before '/'.
func TestOrder(t *testing.T) {
	want := []string{".", "B", "a", "a/b", "a/b/c", "a/\xff", "a-b", "a.b", "ab", "b"}
	for _, perm := range [][]string{
		{"B", "a", "a/b", "a/b/c", "a/\xff", "a-b", "a.b", "ab", "b"},
		{"b", "ab", "a.b", "a-b", "a", "a/\xff", "a/b", "a/b/c", "B"},
	} {
		tr := tree.New()
		for _, p := range perm {
			if err := tr.Add(dirNode(p)); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(want, paths(tr)); diff != "" {
			t.Errorf("All after adding %q (-want +got):\n%s", perm, diff)
		}
	}
}

func TestAddErrors(t *testing.T) {
	for name, c := range map[string]struct {
		node tree.Node
		want error
	}{
		"exists":           {dirNode("d"), tree.ErrExist},
		"root":             {dirNode("."), tree.ErrExist},
		"no parent":        {dirNode("x/y"), tree.ErrNoParent},
		"file as parent":   {dirNode("f/y"), tree.ErrNotDir},
		"empty path":       {dirNode(""), tree.ErrInvalid},
		"absolute":         {dirNode("/x"), tree.ErrInvalid},
		"dot dot":          {dirNode("d/../x"), tree.ErrInvalid},
		"dot":              {dirNode("./x"), tree.ErrInvalid},
		"double slash":     {dirNode("d//x"), tree.ErrInvalid},
		"final slash":      {dirNode("x/"), tree.ErrInvalid},
		"NUL":              {dirNode("x\x00"), tree.ErrInvalid},
		"no type":          {tree.Node{Path: "x"}, tree.ErrInvalid},
		"bad type":         {tree.Node{Path: "x", Type: tree.Socket + 1}, tree.ErrInvalid},
		"mode":             {tree.Node{Path: "x", Type: tree.FIFO, Mode: 0o10000}, tree.ErrInvalid},
		"nanoseconds":      {tree.Node{Path: "x", Type: tree.FIFO, MTime: tree.Time{Nsec: 1e9}}, tree.ErrInvalid},
		"linked directory": {tree.Node{Path: "x", Type: tree.Directory, Inode: 1}, tree.ErrInvalid},
		"file with device": {tree.Node{Path: "x", Type: tree.FIFO, Minor: 1}, tree.ErrInvalid},
		"no target":        {tree.Node{Path: "x", Type: tree.Symlink}, tree.ErrInvalid},
		"target with NUL":  {tree.Node{Path: "x", Type: tree.Symlink, Target: "\x00"}, tree.ErrInvalid},
		"file with target": {tree.Node{Path: "x", Type: tree.Regular, Target: "y"}, tree.ErrInvalid},
		"FIFO with size":   {tree.Node{Path: "x", Type: tree.FIFO, Size: 1}, tree.ErrInvalid},
		"negative size":    {tree.Node{Path: "x", Type: tree.Regular, Size: -1}, tree.ErrInvalid},
		"no content":       {tree.Node{Path: "x", Type: tree.Regular, Size: 1}, tree.ErrInvalid},
		"xattr twice":      {tree.Node{Path: "x", Type: tree.FIFO, Xattrs: []tree.Xattr{{Name: "a"}, {Name: "a"}}}, tree.ErrInvalid},
		"xattr no name":    {tree.Node{Path: "x", Type: tree.FIFO, Xattrs: []tree.Xattr{{}}}, tree.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			tr := tree.New()
			for _, n := range []tree.Node{dirNode("d"), {Path: "f", Type: tree.FIFO}} {
				if err := tr.Add(n); err != nil {
					t.Fatal(err)
				}
			}
			err := tr.Add(c.node)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), fmt.Sprintf("%q", c.node.Path)) {
				t.Errorf("Add: %v, want %v with the path", err, c.want)
			}
			if tr.Len() != 3 {
				t.Errorf("Len after a failed Add is %d, want 3", tr.Len())
			}
		})
	}
}

func TestAddSortsXattrs(t *testing.T) {
	given := []tree.Xattr{{Name: "user.b"}, {Name: "user.a"}}
	tr := tree.New()
	if err := tr.Add(tree.Node{Path: "x", Type: tree.FIFO, Xattrs: given}); err != nil {
		t.Fatal(err)
	}
	if got := tr.Lookup("x").Xattrs; got[0].Name != "user.a" || given[0].Name != "user.b" {
		t.Errorf("tree has %v, caller's slice is %v", got, given)
	}
}

func TestRemove(t *testing.T) {
	tr := fstest.Generate(7)
	before := tr.Len()
	below := 0
	for n := range tr.All() {
		if n.Path == "deep" || strings.HasPrefix(n.Path, "deep/") {
			below++
		}
	}
	tr.Remove("deep")
	tr.Remove("deep")
	tr.Remove("not there")
	if got := tr.Len(); got != before-below || got != len(paths(tr)) {
		t.Errorf("Len is %d, All yields %d, want %d", got, len(paths(tr)), before-below)
	}
	if err := tr.Add(dirNode("deep")); err != nil {
		t.Errorf("Add after Remove: %v", err)
	}
	tr.Remove(".")
	if diff := cmp.Diff([]string{"."}, paths(tr)); diff != "" {
		t.Errorf("All after Remove of the root (-want +got):\n%s", diff)
	}
}

// TestRemoveSome: what is left after nodes went in any order is in order, and
// more can be added and removed.
func TestRemoveSome(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	tr, want := tree.New(), map[string]bool{".": true}
	for range 5000 {
		p := fmt.Sprintf("%03d", rng.IntN(200))
		if want[p] {
			tr.Remove(p)
			delete(want, p)
		} else {
			if err := tr.Add(dirNode(p)); err != nil {
				t.Fatal(err)
			}
			want[p] = true
		}
		if rng.IntN(20) > 0 {
			continue
		}
		var children []string
		for n := range tr.Children(".") {
			children = append(children, n.Path)
		}
		sorted := slices.Sorted(maps.Keys(want))
		if !slices.Equal(sorted, append([]string{"."}, children...)) || !slices.Equal(sorted, paths(tr)) {
			t.Fatalf("Children yields %q, All %q, want %q", children, paths(tr), sorted)
		}
	}
}

// TestCut: what is below a mount point becomes a tree of its own, with the
// directory's metadata at both ends.
func TestCut(t *testing.T) {
	tr := tree.New()
	hello := tree.Node{Type: tree.Regular, Mode: 0o640, Size: 6, Content: tree.Bytes([]byte("hello\n")), Inode: 3}
	for _, n := range []tree.Node{dirNode("a"), {Path: "a/b", Type: tree.Directory, Mode: 0o700, UID: 7}, dirNode("a/b/c"), dirNode("a/b-d"), {Path: "l", Type: tree.Symlink, Target: "a"}} {
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"a/b/c/f", "a/f"} {
		n := hello
		n.Path = p
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	cut, err := tr.Cut("a/b")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{".", "c", "c/f"}, paths(cut)); diff != "" {
		t.Errorf("what was cut out (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{".", "a", "a/b", "a/b-d", "a/f", "l"}, paths(tr)); diff != "" {
		t.Errorf("what is left (-want +got):\n%s", diff)
	}
	for name, n := range map[string]*tree.Node{"the new root": cut.Lookup("."), "the mount point": tr.Lookup("a/b")} {
		if n.Mode != 0o700 || n.UID != 7 {
			t.Errorf("%s has mode %o and owner %d", name, n.Mode, n.UID)
		}
	}
	if got := cut.Lookup("c/f"); got.Size != 6 || got.Inode != 3 {
		t.Errorf("c/f is %+v", got)
	}
	for path, want := range map[string]error{"none": tree.ErrInvalid, "l": tree.ErrNotDir, "a/f": tree.ErrNotDir, ".": tree.ErrNotDir} {
		if _, err := tr.Cut(path); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("cut %q: %v, want %v", path, err, want)
		}
	}
}

func TestChildrenAndNames(t *testing.T) {
	tr := tree.New()
	for _, p := range []string{"b", "a", "b/z", "b/y", "b/y/x"} {
		if err := tr.Add(dirNode(p)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for n := range tr.Children("b") {
		got = append(got, n.Parent()+" "+n.Name())
	}
	if diff := cmp.Diff([]string{"b y", "b z"}, got); diff != "" {
		t.Errorf("Children (-want +got):\n%s", diff)
	}
	for range tr.Children("absent") {
		t.Error("Children of an absent path")
	}
	if n := tr.Lookup("."); n.Name() != "." || n.Parent() != "." {
		t.Errorf("root has name %q and parent %q", n.Name(), n.Parent())
	}
	for n := range tr.All() { // a loop may stop early
		if n.Path == "a" {
			break
		}
	}
}

// TestConcurrentReaders is for the race detector: sorting is lazy.
func TestConcurrentReaders(t *testing.T) {
	tr := tree.New()
	for i := range 1000 {
		if err := tr.Add(dirNode(fmt.Sprint(i * 7919 % 1000))); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if !slices.IsSorted(paths(tr)[1:]) {
				t.Error("All is not in order")
			}
		})
	}
	wg.Wait()
}

const golden = `cairn-tree 1
d 0755 0:0 0.000000000 .
c 0620 0:5 1700000000.000000000 dev\x20node dev=4:1
f 4755 1000:4294967295 -1.500000000 su size=3 sha256=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad link=1 xattr:user.a\x3db\x20c=\x00\xff=
f 4755 1000:4294967295 -1.500000000 su2 size=3 sha256=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad link=1 xattr:user.a\x3db\x20c=\x00\xff=
l 0777 0:0 0.000000000 \xc3\xa4\x5c target=usr/\x0abin
`

func TestText(t *testing.T) {
	tr := tree.New()
	su := tree.Node{
		Path: "su", Type: tree.Regular, Mode: 0o4755, UID: 1000, GID: 1<<32 - 1, MTime: tree.Time{Sec: -1, Nsec: 5e8},
		Inode: 99, Size: 3, Content: tree.Bytes([]byte("abc")), Xattrs: []tree.Xattr{{Name: "user.a=b c", Value: []byte("\x00\xff=")}},
	}
	su2 := su
	su2.Path = "su2"
	for _, n := range []tree.Node{
		{Path: "ä\\", Type: tree.Symlink, Mode: 0o777, Target: "usr/\nbin"},
		su2, su,
		{Path: "dev node", Type: tree.CharDevice, Mode: 0o620, GID: 5, Major: 4, Minor: 1, MTime: tree.Time{Sec: 1_700_000_000}},
	} {
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(golden, text(t, tr)); diff != "" {
		t.Errorf("WriteText (-want +got):\n%s", diff)
	}
}

// TestTextRoundTrip: parsing gives back a tree with the same text.
func TestTextRoundTrip(t *testing.T) {
	for seed := range uint64(10) {
		want := text(t, fstest.Generate(seed))
		tr, err := tree.ParseText(strings.NewReader(want))
		if err != nil {
			t.Fatalf("seed %d: ParseText: %v", seed, err)
		}
		if diff := cmp.Diff(want, text(t, tr)); diff != "" {
			t.Fatalf("seed %d: text of the parsed text (-want +got):\n%s", seed, diff)
		}
		for n := range tr.All() {
			if n.Size > 0 {
				if _, err := n.Content.Open(); !errors.Is(err, tree.ErrNoContent) {
					t.Fatalf("Open of a parsed content: %v", err)
				}
			}
		}
	}
}

func TestParseTextErrors(t *testing.T) {
	const digest = "sha256=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for name, line := range map[string]string{
		"few fields":      "d 0755 0:0 0.000000000",
		"type":            "x 0755 0:0 0.000000000 a",
		"no type":         " 0755 0:0 0.000000000 a",
		"question mark":   "? 0755 0:0 0.000000000 a",
		"mode":            "d 0758 0:0 0.000000000 a",
		"large mode":      "d 17777 0:0 0.000000000 a",
		"owner":           "d 0755 0 0.000000000 a",
		"large owner":     "d 0755 0:4294967296 0.000000000 a",
		"time":            "d 0755 0:0 0.5 a",
		"nanoseconds":     "d 0755 0:0 0.-00000001 a",
		"path":            "d 0755 0:0 0.000000000 /a",
		"escape":          `d 0755 0:0 0.000000000 a\`,
		"escape digits":   `d 0755 0:0 0.000000000 a\xg0`,
		"no parent":       "d 0755 0:0 0.000000000 a/b",
		"root twice":      "d 0755 0:0 0.000000000 .\nd 0755 0:0 0.000000000 .",
		"root a file":     "p 0755 0:0 0.000000000 .",
		"unknown key":     "d 0755 0:0 0.000000000 a color=red",
		"no value":        "d 0755 0:0 0.000000000 a target",
		"no content":      "f 0644 0:0 0.000000000 a size=1",
		"no size":         "f 0644 0:0 0.000000000 a sha256=" + strings.Repeat("0", 64),
		"short digest":    "f 0644 0:0 0.000000000 a size=1 sha256=00",
		"digest":          "f 0644 0:0 0.000000000 a size=1 sha256=" + strings.Repeat("g", 64),
		"FIFO with size":  "p 0644 0:0 0.000000000 a size=1 " + digest,
		"size":            "f 0644 0:0 0.000000000 a size=-1 " + digest,
		"xattr name":      `p 0644 0:0 0.000000000 a xattr:=1`,
		"xattr twice":     `p 0644 0:0 0.000000000 a xattr:a=1 xattr:a=1`,
		"device":          "b 0644 0:0 0.000000000 a dev=x",
		"trailing space":  "p 0644 0:0 0.000000000 a ",
		"symlink nothing": "l 0777 0:0 0.000000000 a",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := tree.ParseText(strings.NewReader("cairn-tree 1\n" + line + "\n")); err == nil || !strings.Contains(err.Error(), "line ") {
				t.Errorf("ParseText: %v, want an error with the line", err)
			}
		})
	}
	for _, head := range []string{"", "cairn-tree 2\n", "d 0755 0:0 0.000000000 .\n"} {
		if _, err := tree.ParseText(strings.NewReader(head)); err == nil {
			t.Errorf("ParseText accepts %q", head)
		}
	}
}

type faulty struct{ err error }

func (f faulty) Open() (io.ReadCloser, error) { return nil, f.err }

type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestWriteTextErrors(t *testing.T) {
	fault := errors.New("fault")
	for name, c := range map[string]struct {
		content tree.Content
		want    string
	}{
		"open":  {faulty{fault}, "fault"},
		"short": {tree.Bytes([]byte("abc")), "has 3 bytes, not 4"},
		"long":  {tree.Bytes([]byte("abcde")), "has 5 bytes, not 4"},
	} {
		tr := tree.New()
		if err := tr.Add(tree.Node{Path: "x", Type: tree.Regular, Size: 4, Content: c.content}); err != nil {
			t.Fatal(err)
		}
		if err := tr.WriteText(&bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), `"x"`) {
			t.Errorf("%s: WriteText: %v, want an error that says %q", name, err, c.want)
		}
	}
	if err := tree.New().WriteText(full{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("WriteText to a closed pipe: %v", err)
	}
}

// FuzzParseText: no input panics, and what is accepted has a text that parses
// to the same text.
func FuzzParseText(f *testing.F) {
	f.Add(golden)
	f.Add(text(f, fstest.Generate(5)))
	f.Add("cairn-tree 1\nd 0755 0:0 0.000000000 .\nf 0644 0:0 0.000000000 a\\x00 size=0\n")
	f.Fuzz(func(t *testing.T, in string) {
		tr, err := tree.ParseText(strings.NewReader(in))
		if err != nil {
			return
		}
		once := text(t, tr)
		again, err := tree.ParseText(strings.NewReader(once))
		if err != nil {
			t.Fatalf("text does not parse: %v\n%s", err, once)
		}
		if twice := text(t, again); twice != once {
			t.Fatalf("text changes: %q and %q", once, twice)
		}
	})
}
