package cpio_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/cpio"
	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
	"cairn/tests/require"
)

// write makes an archive of a tree.
func write(t testing.TB, tr *tree.Tree, p cpio.Params) []byte {
	t.Helper()
	var b bytes.Buffer
	s, err := cpio.Write(t.Context(), &b, tr, p)
	if err != nil {
		t.Fatal(err)
	}
	if want := (cpio.Summary{Size: int64(b.Len()), Entries: int64(tr.Len())}); s != want {
		t.Errorf("Summary is %v, want %v", s, want)
	}
	return b.Bytes()
}

// representable makes of a tree what the format can hold.
func representable(tr *tree.Tree) *tree.Tree {
	for n := range tr.All() {
		n.Xattrs, n.MTime.Nsec = nil, 0
		n.MTime.Sec = min(max(n.MTime.Sec, 0), math.MaxUint32)
		if n.Type == tree.Symlink {
			n.Inode = 0
		}
	}
	return tr
}

// judges unpack an archive in a directory and give each file its owner, mode,
// time and links, with two exceptions: GNU cpio 2.13 does not set the times of
// symlinks, nor for good those of directories, and bsdtar makes no sockets.
var judges = []struct {
	name, pkg string
	args      []string
	times     bool
	sockets   bool
}{
	{"cpio", "cpio", []string{"-idm", "--quiet", "--no-absolute-filenames"}, false, true},
	{"bsdtar", "libarchive-tools", []string{"-xpPf", "-"}, true, false},
}

// TestGenerated unpacks archives of generated trees with two other programs.
func TestGenerated(t *testing.T) {
	require.Root(t)
	for _, j := range judges {
		tool := require.Tool(t, j.name, j.pkg)
		scratch := fstest.ScratchDir(t)
		t.Run(j.name, func(t *testing.T) {
			for seed := range uint64(20) {
				want := representable(fstest.Generate(seed))
				if !j.sockets {
					removeSockets(want)
				}
				out := filepath.Join(scratch, fmt.Sprint(seed))
				got := unpack(t, write(t, want, cpio.Params{}), out, tool, j.args...)
				*got.Lookup(".") = *want.Lookup(".") // "." was there before
				if !j.times {
					forgetTimes(want)
					forgetTimes(got)
				}
				if diff := fstest.Diff(t, want, got); diff != "" {
					t.Fatalf("seed %d: unpacked: %s", seed, diff)
				}
			}
		})
	}
}

// unpack runs a program on an archive and reads what it made.
func unpack(t *testing.T, archive []byte, out, tool string, args ...string) *tree.Tree {
	t.Helper()
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool, args...)
	cmd.Dir, cmd.Stdin = out, bytes.NewReader(archive)
	if msg, err := cmd.CombinedOutput(); err != nil || len(msg) > 0 {
		t.Fatalf("%s: %v\n%s", tool, err, msg)
	}
	got, err := dir.Read(t.Context(), out, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func forgetTimes(tr *tree.Tree) {
	for n := range tr.All() {
		if n.Type == tree.Symlink || n.Type == tree.Directory {
			n.MTime = tree.Time{}
		}
	}
}

func removeSockets(tr *tree.Tree) {
	var sockets []string
	for n := range tr.All() {
		if n.Type == tree.Socket {
			sockets = append(sockets, n.Path)
		}
	}
	for _, path := range sockets {
		tr.Remove(path)
	}
}

// small is a tree with a file of two names, given in no order.
func small(t testing.TB) *tree.Tree {
	t.Helper()
	tr := tree.New()
	data := tree.Node{Path: "z", Type: tree.Regular, Mode: 0o644, Size: 5, Content: tree.Bytes([]byte("hello")), Inode: 77, MTime: tree.Time{Sec: 9}}
	again := data
	again.Path = "d/a"
	for _, n := range []tree.Node{
		data,
		{Path: "d", Type: tree.Directory, Mode: 0o755},
		again,
		{Path: "c", Type: tree.CharDevice, Mode: 0o600, Major: 5, Minor: 1},
	} {
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

// TestBytes shows the whole archive: numbers in order, content with the last
// name, trailer and padding.
func TestBytes(t *testing.T) {
	want := "" +
		"070701" + "00000001" + "000041ED" + "00000000" + "00000000" + "00000003" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000002" + "00000000" + ".\x00" +
		"070701" + "00000002" + "00002180" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000005" + "00000001" + "00000002" + "00000000" + "c\x00" +
		"070701" + "00000003" + "000041ED" + "00000000" + "00000000" + "00000002" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000002" + "00000000" + "d\x00" +
		"070701" + "00000004" + "000081A4" + "00000000" + "00000000" + "00000002" + "00000008" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000004" + "00000000" + "d/a\x00\x00\x00" +
		"070701" + "00000004" + "000081A4" + "00000000" + "00000000" + "00000002" + "00000008" + "00000005" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000002" + "00000000" + "z\x00" + "hello\x00\x00\x00" +
		"070701" + strings.Repeat("0", 32) + "00000001" + strings.Repeat("0", 48) + "0000000B" + "00000000" + "TRAILER!!!\x00\x00\x00\x00"
	got := string(write(t, small(t), cpio.Params{Align: 4, Time: time.Unix(8, 0)}))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
	for align, size := range map[int]int{0: 1024, 512: 1024, 4096: 4096, 4: len(want)} {
		if got := write(t, small(t), cpio.Params{Align: align}); len(got) != size {
			t.Errorf("Align %d: %d bytes, want %d", align, len(got), size)
		}
	}
}

// TestList: GNU cpio sees the names in canonical order.
func TestList(t *testing.T) {
	cmd := exec.Command(require.Tool(t, "cpio", "cpio"), "-it", "--quiet")
	cmd.Stdin = bytes.NewReader(write(t, small(t), cpio.Params{}))
	out, err := cmd.CombinedOutput()
	if diff := cmp.Diff(".\nc\nd\nd/a\nz\n", string(out)); diff != "" || err != nil {
		t.Errorf("cpio -t: %v (-want +got):\n%s", err, diff)
	}
}

func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		node tree.Node
		ok   bool
	}{
		"trailer":          {tree.Node{Path: "TRAILER!!!", Type: tree.FIFO}, false},
		"trailer below":    {tree.Node{Path: "d/TRAILER!!!", Type: tree.FIFO}, true},
		"long name":        {tree.Node{Path: "d/" + strings.Repeat("x", 4094), Type: tree.FIFO}, false},
		"longest name":     {tree.Node{Path: "d/" + strings.Repeat("x", 4093), Type: tree.FIFO}, true},
		"long target":      {tree.Node{Path: "l", Type: tree.Symlink, Target: strings.Repeat("x", 4097)}, false},
		"longest target":   {tree.Node{Path: "l", Type: tree.Symlink, Target: strings.Repeat("x", 4096)}, true},
		"large file":       {tree.Node{Path: "f", Type: tree.Regular, Size: 1 << 32, Content: tree.Bytes(nil)}, false},
		"before 1970":      {tree.Node{Path: "f", Type: tree.FIFO, MTime: tree.Time{Sec: -1}}, false},
		"after 2106":       {tree.Node{Path: "f", Type: tree.FIFO, MTime: tree.Time{Sec: 1 << 32}}, false},
		"last second":      {tree.Node{Path: "f", Type: tree.FIFO, MTime: tree.Time{Sec: 1<<32 - 1}}, true},
		"largest id":       {tree.Node{Path: "f", Type: tree.FIFO, UID: 1<<32 - 1, GID: 1<<32 - 1}, true},
		"largest device":   {tree.Node{Path: "f", Type: tree.BlockDevice, Major: 1<<32 - 1, Minor: 1<<32 - 1}, true},
		"attributes, nsec": {tree.Node{Path: "f", Type: tree.FIFO, MTime: tree.Time{Nsec: 1}, Xattrs: []tree.Xattr{{Name: "user.a"}}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			tr := small(t)
			if err := tr.Add(c.node); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			_, err := cpio.Write(t.Context(), &b, tr, cpio.Params{})
			switch {
			case c.ok && err != nil:
				t.Errorf("Write: %v", err)
			case !c.ok && (!errors.Is(err, cpio.ErrLimit) || !strings.Contains(err.Error(), fmt.Sprintf("%q", c.node.Path))):
				t.Errorf("Write: %v, want ErrLimit with the path", err)
			case !c.ok && b.Len() > 0:
				t.Errorf("%d bytes were written", b.Len())
			}
		})
	}
}

// TestLargest: a content just below 4 GiB has its size in the header.
func TestLargest(t *testing.T) {
	tr := tree.New()
	const size = 1<<32 - 1
	if err := tr.Add(tree.Node{Path: "f", Type: tree.Regular, Size: size, Content: &fstest.Holes{Bytes: size}}); err != nil {
		t.Fatal(err)
	}
	s, err := cpio.Write(t.Context(), io.Discard, tr, cpio.Params{Align: 4})
	if want := int64(112 + 112 + 1<<32 + 124); err != nil || s.Size != want {
		t.Errorf("Write: %d bytes, %v, want %d", s.Size, err, want)
	}
}

func TestBadAlign(t *testing.T) {
	for _, align := range []int{-4, 1, 2, 6, 2 << 20} {
		if _, err := cpio.Write(t.Context(), io.Discard, tree.New(), cpio.Params{Align: align}); err == nil {
			t.Errorf("Align %d is accepted", align)
		}
	}
}

// TestInvalidNode: nodes may have been changed since they were added.
func TestInvalidNode(t *testing.T) {
	tr := small(t)
	tr.Lookup("z").Mode = 1 << 20
	if _, err := cpio.Write(t.Context(), io.Discard, tr, cpio.Params{}); err == nil || !strings.Contains(err.Error(), `"z"`) {
		t.Errorf("Write: %v, want an error with the path", err)
	}
}

type failing struct{ left int }

var errFull = errors.New("full")

func (f *failing) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, errFull
	}
	return len(b), nil
}

// TestErrors: a writer may fail at any byte, a content may be shorter than its
// node says.
func TestErrors(t *testing.T) {
	for room := range write(t, small(t), cpio.Params{}) {
		if _, err := cpio.Write(t.Context(), &failing{room}, small(t), cpio.Params{}); !errors.Is(err, errFull) {
			t.Errorf("Write with room for %d: %v", room, err)
		}
	}
	tr := small(t)
	for _, path := range []string{"z", "d/a"} {
		tr.Lookup(path).Size++
	}
	if _, err := cpio.Write(t.Context(), io.Discard, tr, cpio.Params{}); err == nil || !strings.Contains(err.Error(), `"z": content changed`) {
		t.Errorf("Write of a shorter content: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := cpio.Write(ctx, io.Discard, small(t), cpio.Params{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Write after cancel: %v", err)
	}
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
				if err := b.Add(n); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	want := write(t, a, cpio.Params{})
	for _, procs := range []int{1, 16} {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		if !bytes.Equal(want, write(t, b, cpio.Params{})) {
			t.Errorf("GOMAXPROCS=%d: other bytes", procs)
		}
	}
}

// BenchmarkGNU packs the same directory with this package and with GNU cpio,
// turn and turn about.
func BenchmarkGNU(b *testing.B) {
	tool := require.Tool(b, "cpio", "cpio")
	scratch := fstest.ScratchDir(b)
	src := fstest.BenchTree(b, scratch)
	out := filepath.Join(scratch, "out")
	var ours, theirs fstest.Usage
	for b.Loop() {
		_ = os.Remove(out)
		ours.Add(fstest.Measure(b, func() {
			f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			t, err := dir.Read(b.Context(), src, dir.Options{})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := cpio.Write(b.Context(), f, t, cpio.Params{}); err != nil {
				b.Fatal(err)
			}
		}))
		_ = os.Remove(out)
		theirs.Add(fstest.Measure(b, func() {
			script := "cd " + src + " && find . -print0 | LC_ALL=C sort -z | " + tool + " -o -0 -H newc --quiet >" + out
			if msg, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
				b.Fatalf("cpio: %v\n%s", err, msg)
			}
		}))
	}
	ours.Report(b, theirs, "cpio")
}
