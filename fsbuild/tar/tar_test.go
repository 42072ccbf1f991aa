package tar_test

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
	"cairn/fsbuild/tar"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
	"cairn/tests/require"
)

// write makes an archive of a tree.
func write(t testing.TB, tr *tree.Tree, p tar.Params) []byte {
	t.Helper()
	var b bytes.Buffer
	s, err := tar.Write(t.Context(), &b, tr, p)
	if err != nil {
		t.Fatal(err)
	}
	if s.Size != int64(b.Len()) {
		t.Errorf("Summary.Size is %d, want %d", s.Size, b.Len())
	}
	return b.Bytes()
}

// read reads an archive with all attributes.
func read(t testing.TB, archive []byte) *tree.Tree {
	t.Helper()
	all := tar.Options{KeepXattr: func(string) bool { return true }}
	tr, err := tar.Read(t.Context(), bytes.NewReader(archive), int64(len(archive)), all)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// generate makes a tree without what an archive cannot hold: sockets, and the
// device that Read refuses.
func generate(seed uint64) *tree.Tree {
	tr := fstest.Generate(seed)
	var sockets []string
	for n := range tr.All() {
		if n.Type == tree.Socket {
			sockets = append(sockets, n.Path)
		}
		if n.Type == tree.CharDevice && n.Major == 0 && n.Minor == 0 {
			n.Minor = 1
		}
	}
	for _, path := range sockets {
		tr.Remove(path)
	}
	return tr
}

// forget takes from a tree what a test does not compare.
func forget(tr *tree.Tree, what func(n *tree.Node)) *tree.Tree {
	for n := range tr.All() {
		what(n)
	}
	return tr
}

// TestRoundTrip: nothing of a tree is lost on the way through an archive.
func TestRoundTrip(t *testing.T) {
	for seed := range uint64(20) {
		want := generate(seed)
		if diff := fstest.Diff(t, want, read(t, write(t, want, tar.Params{}))); diff != "" {
			t.Fatalf("seed %d: read back: %s", seed, diff)
		}
	}
}

func run(t *testing.T, dir string, in []byte, tool string, args ...string) string {
	t.Helper()
	cmd := exec.Command(tool, args...)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(in)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%.2000s", tool, args, err, out)
	}
	return string(out)
}

// TestGNU extracts and compares archives of generated trees with GNU tar. Its
// --acls would remove the default ACLs, which it expects as text.
func TestGNU(t *testing.T) {
	require.Root(t)
	tool := require.Tool(t, "tar", "tar")
	scratch := fstest.ScratchDir(t)
	for seed := range uint64(8) {
		want := generate(seed)
		archive := write(t, want, tar.Params{})
		out := filepath.Join(scratch, fmt.Sprint(seed))
		if err := os.Mkdir(out, 0o755); err != nil {
			t.Fatal(err)
		}
		flags := []string{"--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*", "--warning=no-timestamp", "--warning=no-unknown-keyword", "-f", "-"}
		if msg := run(t, out, archive, tool, append([]string{"-xp"}, flags...)...); msg != "" {
			t.Errorf("seed %d: tar -x says %.2000s", seed, msg)
		}
		if msg := run(t, out, archive, tool, append([]string{"--compare"}, flags...)...); msg != "" {
			t.Errorf("seed %d: tar --compare says %.2000s", seed, msg)
		}
		got, err := dir.Read(t.Context(), out, dir.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := fstest.Diff(t, want, got); diff != "" {
			t.Fatalf("seed %d: extracted: %s", seed, diff)
		}
	}
}

// TestBsdtar extracts an archive with libarchive, which sets all but ACLs.
func TestBsdtar(t *testing.T) {
	require.Root(t)
	tool := require.Tool(t, "bsdtar", "libarchive-tools")
	noACL := func(n *tree.Node) {
		var kept []tree.Xattr
		for _, x := range n.Xattrs {
			if !strings.HasPrefix(x.Name, "system.posix_acl") {
				kept = append(kept, x)
			}
		}
		n.Xattrs = kept
	}
	scratch := fstest.ScratchDir(t)
	for seed := range uint64(6) {
		tr := forget(generate(seed), func(n *tree.Node) {
			if n.MTime.Sec < 0 {
				n.MTime.Nsec = 0 // which it adds instead of subtracting
			}
		})
		out := filepath.Join(scratch, fmt.Sprint(seed))
		if err := os.Mkdir(out, 0o755); err != nil {
			t.Fatal(err)
		}
		run(t, out, write(t, tr, tar.Params{}), tool, "-xpPf", "-", "--numeric-owner")
		got, err := dir.Read(t.Context(), out, dir.Options{})
		if err != nil {
			t.Fatal(err)
		}
		got.Lookup(".").MTime = tr.Lookup(".").MTime // bsdtar sets it first, and then fills the directory
		if diff := fstest.Diff(t, forget(tr, noACL), forget(got, noACL)); diff != "" {
			t.Fatalf("seed %d: extracted: %s", seed, diff)
		}
	}
}

func add(t testing.TB, tr *tree.Tree, nodes ...tree.Node) {
	t.Helper()
	for _, n := range nodes {
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
}

func small(t testing.TB) *tree.Tree {
	t.Helper()
	tr := tree.New()
	f := tree.Node{Path: "z", Type: tree.Regular, Mode: 0o4755, UID: 1<<21 - 1, Size: 5, Content: tree.Bytes([]byte("hello")), Inode: 7, MTime: tree.Time{Sec: 9}}
	g := f
	g.Path = "d/a"
	add(t, tr, f, tree.Node{Path: "d", Type: tree.Directory, Mode: 0o755}, g)
	return tr
}

// TestHeaders: an extended header is there only when an entry needs it.
func TestHeaders(t *testing.T) {
	const plain = (4 + 1 + 2) * 512 // four headers, content, end
	if got := len(write(t, small(t), tar.Params{})); got != plain {
		t.Errorf("plain archive has %d bytes, want %d", got, plain)
	}
	for name, n := range map[string]tree.Node{
		"nanoseconds": {MTime: tree.Time{Nsec: 1}},
		"before 1970": {MTime: tree.Time{Sec: -1}},
		"uid":         {UID: 1 << 21},
		"gid":         {GID: 1 << 31},
		"name":        {Path: strings.Repeat("n", 101)},
		"not ASCII":   {Path: "ü"},
		"attribute":   {Xattrs: []tree.Xattr{{Name: "user.a", Value: []byte("\x00=\n")}}},
	} {
		tr := small(t)
		n.Type = tree.FIFO
		if n.Path == "" {
			n.Path = "f"
		}
		add(t, tr, n)
		if got := len(write(t, tr, tar.Params{})); got != plain+3*512 {
			t.Errorf("%s: archive has %d bytes, want %d", name, got, plain+3*512)
		}
	}
	clamped := write(t, small(t), tar.Params{Time: time.Unix(8, 0)})
	if got := read(t, clamped).Lookup("z").MTime; got != (tree.Time{Sec: 8}) {
		t.Errorf("time is %v, want 8", got)
	}
}

func TestSockets(t *testing.T) {
	tr := small(t)
	add(t, tr, tree.Node{Path: "d/s", Type: tree.Socket})
	if _, err := tar.Write(t.Context(), io.Discard, tr, tar.Params{}); !errors.Is(err, tar.ErrUnsupported) || !strings.Contains(err.Error(), `"d/s"`) {
		t.Errorf("Write: %v, want ErrUnsupported with the path", err)
	}
	if diff := fstest.Diff(t, small(t), read(t, write(t, tr, tar.Params{SkipSockets: true}))); diff != "" {
		t.Errorf("without the socket: %s", diff)
	}
}

func TestWriteLimits(t *testing.T) {
	for name, n := range map[string]tree.Node{
		"attribute name": {Type: tree.FIFO, Xattrs: []tree.Xattr{{Name: "user.a=b"}}},
		"attributes":     {Type: tree.FIFO, Xattrs: []tree.Xattr{{Name: "user.a", Value: make([]byte, 1<<20)}}},
		"major":          {Type: tree.CharDevice, Major: 1 << 21},
		"minor":          {Type: tree.BlockDevice, Minor: 1 << 21},
		"late":           {Type: tree.FIFO, MTime: tree.Time{Sec: 1<<60 + 1}},
		"early":          {Type: tree.FIFO, MTime: tree.Time{Sec: -1<<60 - 1}},
	} {
		tr := small(t)
		n.Path = "d/x"
		add(t, tr, n)
		var b bytes.Buffer
		if _, err := tar.Write(t.Context(), &b, tr, tar.Params{}); !errors.Is(err, tar.ErrLimit) || !strings.Contains(err.Error(), `"d/x"`) || b.Len() > 0 {
			t.Errorf("%s: %d bytes, then %v, want ErrLimit with the path", name, b.Len(), err)
		}
	}
	for _, ok := range []tree.Node{
		{Path: "m", Type: tree.CharDevice, Major: 1<<21 - 1, Minor: 1<<21 - 1},
		{Path: "m", Type: tree.FIFO, MTime: tree.Time{Sec: 1 << 60}},
		{Path: "m", Type: tree.FIFO, Xattrs: []tree.Xattr{{Name: "user.a", Value: make([]byte, 1<<20-1000)}}},
	} {
		tr := small(t)
		add(t, tr, ok)
		write(t, tr, tar.Params{})
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

// TestWriteErrors: a writer may fail at any byte, a content may be of another
// size than its node says.
func TestWriteErrors(t *testing.T) {
	for room := range write(t, small(t), tar.Params{}) {
		if _, err := tar.Write(t.Context(), &failing{room}, small(t), tar.Params{}); !errors.Is(err, errFull) {
			t.Errorf("room for %d bytes: %v", room, err)
		}
	}
	for _, by := range []int64{-1, 1} {
		tr := small(t)
		tr.Lookup("d/a").Size += by
		if _, err := tar.Write(t.Context(), io.Discard, tr, tar.Params{}); err == nil || !strings.Contains(err.Error(), `"d/a": content changed`) {
			t.Errorf("content of another size: %v", err)
		}
	}
	tr := small(t)
	tr.Lookup("z").Mode = 1 << 20
	if _, err := tar.Write(t.Context(), io.Discard, tr, tar.Params{}); err == nil || !strings.Contains(err.Error(), `"z"`) {
		t.Errorf("invalid node: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tar.Write(ctx, io.Discard, small(t), tar.Params{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
}

// TestDeterministic: a tree that was read from an archive, with other inode
// numbers, gives the same archive, with one processor and with many.
func TestDeterministic(t *testing.T) {
	want := write(t, generate(3), tar.Params{})
	for _, procs := range []int{1, 16} {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		if got := write(t, read(t, want), tar.Params{}); !bytes.Equal(want, got) {
			t.Errorf("GOMAXPROCS=%d: other bytes", procs)
		}
	}
}

// TestList shows names and types as GNU tar prints them.
func TestList(t *testing.T) {
	out := run(t, ".", write(t, small(t), tar.Params{}), require.Tool(t, "tar", "tar"), "-tvf", "-", "--numeric-owner")
	want := `drwxr-xr-x 0/0               0 1970-01-01 00:00 ./
drwxr-xr-x 0/0               0 1970-01-01 00:00 d/
-rwsr-xr-x 2097151/0         5 1970-01-01 00:00 d/a
hrwsr-xr-x 2097151/0         0 1970-01-01 00:00 z link to d/a
`
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("tar -tv (-want +got):\n%s", diff)
	}
}

// BenchmarkGNU packs the same directory with this package and with GNU tar,
// turn and turn about.
func BenchmarkGNU(b *testing.B) {
	tool := require.Tool(b, "tar", "tar")
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
			if _, err := tar.Write(b.Context(), f, t, tar.Params{Time: time.Unix(1e9, 0)}); err != nil {
				b.Fatal(err)
			}
		}))
		_ = os.Remove(out)
		theirs.Add(fstest.Measure(b, func() {
			args := []string{"--sort=name", "--format=pax", "--pax-option=delete=atime,delete=ctime", "--mtime=@1000000000", "--xattrs", "--numeric-owner", "-cf", out, "-C", src, "."}
			if msg, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
				b.Fatalf("tar: %v\n%s", err, msg)
			}
		}))
	}
	ours.Report(b, theirs, "tar")
}
