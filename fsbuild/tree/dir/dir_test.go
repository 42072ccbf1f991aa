package dir_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
)

// must fails the test on an error of a preparation.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, data string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(data), 0o644))
}

func text(t testing.TB, tr *tree.Tree) string {
	t.Helper()
	var b strings.Builder
	must(t, tr.WriteText(&b))
	return b.String()
}

// sampleTimes are access and modification time of every sample file.
var sampleTimes = []unix.Timespec{{Sec: 1, Nsec: 1}, {Sec: 1_700_000_000, Nsec: 123_456_789}}

// sample makes a directory with every type that needs no privilege.
func sample(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	p := func(name string) string { return filepath.Join(root, name) }
	must(t, os.MkdirAll(p("a/b"), 0o755))
	write(t, p("a/file"), "content")
	write(t, p("a-file"), "")
	write(t, p("odd \xff\nname"), "x")
	must(t, os.Link(p("a/file"), p("link")))
	must(t, os.Symlink(strings.Repeat("t", 300), p("symlink")))
	must(t, unix.Mkfifo(p("fifo"), 0o600))
	must(t, unix.Mknod(p("socket"), unix.S_IFSOCK|0o600, 0))
	must(t, unix.Setxattr(p("a/file"), "user.small", []byte("value"), 0))
	must(t, unix.Setxattr(p("a/file"), "user.large", []byte(strings.Repeat("v", 1000)), 0))
	must(t, unix.Setxattr(p("a"), "user.empty", nil, 0))
	must(t, unix.Setxattr(p("a"), "user.rootlesscontainers", []byte("x"), 0))
	must(t, unix.Setxattr(p("a"), "user.overlay.opaque", []byte("y"), 0))
	must(t, os.Chmod(p("a/file"), 0o4751|os.ModeSetuid))
	for _, name := range []string{"a/b", "a/file", "a-file", "odd \xff\nname", "symlink", "fifo", "socket", "a", "."} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p(name), sampleTimes, unix.AT_SYMLINK_NOFOLLOW))
	}
	must(t, os.Chmod(root, 0o750))
	return root
}

// sampleText is the text of sample, with owners.
var sampleText = `cairn-tree 1
d 0750 7:7 1700000000.123456789 .
d 0755 7:7 1700000000.123456789 a xattr:user.empty=
d 0755 7:7 1700000000.123456789 a/b
f 4751 7:7 1700000000.123456789 a/file size=7 sha256=ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73 link=1 xattr:user.large=` + strings.Repeat("v", 1000) + ` xattr:user.small=value
f 0644 7:7 1700000000.123456789 a-file size=0 sha256=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
p 0600 7:7 1700000000.123456789 fifo
f 4751 7:7 1700000000.123456789 link size=7 sha256=ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73 link=1 xattr:user.large=` + strings.Repeat("v", 1000) + ` xattr:user.small=value
f 0644 7:7 1700000000.123456789 odd\x20\xff\x0aname size=1 sha256=2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881
s 0600 7:7 1700000000.123456789 socket
l 0777 7:7 1700000000.123456789 symlink target=` + strings.Repeat("t", 300) + "\n"

// owners maps the ids of whoever runs the test to 7.
func owners() func(uint32) (uint32, error) {
	return func(id uint32) (uint32, error) {
		if int(id) != os.Getuid() && int(id) != os.Getgid() {
			return 0, fmt.Errorf("unexpected id %d", id)
		}
		return 7, nil
	}
}

func TestRead(t *testing.T) {
	tr, err := dir.Read(t.Context(), sample(t), dir.Options{ID: owners()})
	must(t, err)
	if diff := cmp.Diff(sampleText, text(t, tr)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
}

func TestReadThroughSymlinkAndSlash(t *testing.T) {
	root := sample(t)
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(root, link))
	for _, name := range []string{link, root + "/", root + "/./"} {
		if tr, err := dir.Read(t.Context(), name, dir.Options{}); err != nil || tr.Len() != 10 {
			t.Errorf("Read(%q): %v", name, err)
		}
	}
}

func TestIDError(t *testing.T) {
	fault := errors.New("id is not in the map")
	_, err := dir.Read(t.Context(), sample(t), dir.Options{ID: func(uint32) (uint32, error) { return 0, fault }})
	if !errors.Is(err, fault) {
		t.Errorf("Read: %v, want the error of ID", err)
	}
}

func TestExcludeAndXattrRule(t *testing.T) {
	o := dir.Options{
		Exclude:   func(p string) bool { return p == "a" || p == "fifo" },
		KeepXattr: func(name string) bool { return name == "user.small" },
	}
	tr, err := dir.Read(t.Context(), sample(t), o)
	must(t, err)
	for _, p := range []string{"a", "a/file", "fifo"} {
		if tr.Lookup(p) != nil {
			t.Errorf("%s was not excluded", p)
		}
	}
	if x := tr.Lookup("link").Xattrs; len(x) != 1 || x[0].Name != "user.small" {
		t.Errorf("xattrs %v", x)
	}
}

func TestKeepXattr(t *testing.T) {
	for name, want := range map[string]bool{
		"user.a": true, "trusted.a": true, "security.capability": true, "system.posix_acl_access": true, "system.posix_acl_default": true,
		"user.overlay.opaque": false, "trusted.overlay.origin": false, "user.rootlesscontainers": false, "security.selinux": false,
		"security.ima": false, "security.evm": false, "security.SMACK64EXEC": false, "security.apparmor": false,
		"system.nfs4_acl": false, "btrfs.compression": false, "user": true,
	} {
		if got := dir.KeepXattr(name); got != want {
			t.Errorf("KeepXattr(%q) = %v", name, got)
		}
	}
}

func TestDevices(t *testing.T) {
	o := dir.Options{Devices: []tree.Node{
		{Path: "a/null", Type: tree.CharDevice, Mode: 0o666, Major: 1, Minor: 3},
		{Path: "fifo", Type: tree.CharDevice, Major: 1, Minor: 5},      // the path is taken
		{Path: "gone/zero", Type: tree.CharDevice, Major: 1, Minor: 5}, // the parent was removed
	}}
	tr, err := dir.Read(t.Context(), sample(t), o)
	must(t, err)
	if n := tr.Lookup("a/null"); n == nil || n.Type != tree.CharDevice || n.Major != 1 || n.Minor != 3 {
		t.Errorf("a/null is %+v", n)
	}
	if n := tr.Lookup("fifo"); n.Type != tree.FIFO {
		t.Errorf("fifo is %+v", n)
	}
	if tr.Lookup("gone") != nil || tr.Lookup("gone/zero") != nil {
		t.Error("a device was added whose parent is not there")
	}
}

// TestDeviceXattr: a file stands for a device node by an attribute that names
// it; one that names nothing known is an error with the path.
func TestDeviceXattr(t *testing.T) {
	const name = "user.device"
	for value, want := range map[string]tree.Node{
		"c 1 3":    {Type: tree.CharDevice, Major: 1, Minor: 3},
		"b 259 70": {Type: tree.BlockDevice, Major: 259, Minor: 70},
		"x 1 3":    {},
		"c 1":      {},
	} {
		root := t.TempDir()
		must(t, os.WriteFile(filepath.Join(root, "node"), []byte("written to it"), 0o640))
		must(t, unix.Setxattr(filepath.Join(root, "node"), name, []byte(value), 0))
		must(t, unix.Setxattr(filepath.Join(root, "node"), "user.kept", []byte("x"), 0))
		tr, err := dir.Read(t.Context(), root, dir.Options{DeviceXattr: name})
		if want.Type == 0 {
			if err == nil || !strings.Contains(err.Error(), "node") || !strings.Contains(err.Error(), name) {
				t.Errorf("%q: %v", value, err)
			}
			continue
		}
		must(t, err)
		n := tr.Lookup("node")
		if n.Type != want.Type || n.Major != want.Major || n.Minor != want.Minor || n.Mode != 0o640 || n.Size != 0 || n.Content != nil || len(n.Xattrs) != 1 {
			t.Errorf("%q: %+v", value, n)
		}
		plain, err := dir.Read(t.Context(), root, dir.Options{})
		must(t, err)
		if n := plain.Lookup("node"); n.Type != tree.Regular || len(n.Xattrs) != 2 {
			t.Errorf("%q without the option: %+v", value, n)
		}
	}
}

// TestChanged: a file that is not the one that was scanned cannot be opened,
// or read to its end.
func TestChanged(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"grown": func(p string) error { return os.WriteFile(p, []byte("content+"), 0o644) },
		"grown secretly": func(p string) error {
			return errors.Join(os.WriteFile(p, []byte("content+"), 0o644), unix.UtimesNanoAt(unix.AT_FDCWD, p, sampleTimes, 0))
		},
		"shrunk":   func(p string) error { return os.Truncate(p, 3) },
		"touched":  func(p string) error { return unix.Utimes(p, make([]unix.Timeval, 2)) },
		"replaced": func(p string) error { return errors.Join(os.Remove(p), os.WriteFile(p, []byte("content"), 0o644)) },
		"a FIFO":   func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) },
		"gone":     os.Remove,
		"a link": func(p string) error {
			return errors.Join(os.Rename(p, p+".moved"), os.Symlink("file.moved", p))
		},
		"parent a link": func(p string) error {
			d := filepath.Dir(p)
			return errors.Join(os.Rename(d, d+".moved"), os.Symlink("a.moved", d))
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := sample(t)
			tr, err := dir.Read(t.Context(), root, dir.Options{})
			must(t, err)
			must(t, change(filepath.Join(root, "a/file")))
			if r, err := tr.Lookup("a/file").Content.Open(); err == nil {
				_ = r.Close()
				t.Error("Open succeeded")
			}
		})
	}
	root := sample(t)
	tr, err := dir.Read(t.Context(), root, dir.Options{})
	must(t, err)
	for name, change := range map[string]string{"a/file": "content and more", "odd \xff\nname": ""} {
		r, err := tr.Lookup(name).Content.Open()
		must(t, err)
		must(t, os.WriteFile(filepath.Join(root, name), []byte(change), 0o644))
		if _, err := io.ReadAll(r); !errors.Is(err, dir.ErrChanged) {
			t.Errorf("reading %q while it changes: %v, want ErrChanged", name, err)
		}
		must(t, r.Close())
		if r.Close() == nil {
			t.Error("second Close succeeded")
		}
	}
}

// TestClosedRoot: contents cannot be opened once the caller's root is closed.
func TestClosedRoot(t *testing.T) {
	f, err := os.Open(sample(t))
	must(t, err)
	tr, err := dir.ReadFrom(t.Context(), f, dir.Options{})
	must(t, err)
	r, err := tr.Lookup("a/file").Content.Open()
	must(t, err)
	must(t, f.Close())
	if b, err := io.ReadAll(r); err != nil || string(b) != "content" {
		t.Errorf("open reader after Close of the root: %q, %v", b, err)
	}
	must(t, r.Close())
	if _, err := tr.Lookup("a/file").Content.Open(); err == nil {
		t.Error("Open succeeded after Close of the root")
	}
}

// TestHoles: data is found by content, in units of 4 KiB, whether or not the
// file system keeps holes.
func TestHoles(t *testing.T) {
	const unit = 4 << 10
	root := t.TempDir()
	bytes := make([]byte, 40*unit+100)
	for _, at := range []int{3*unit + 900, 20 * unit, 21*unit - 1, 21 * unit} {
		bytes[at] = 1
	}
	write(t, filepath.Join(root, "dense"), string(bytes))
	f, err := os.OpenFile(filepath.Join(root, "sparse"), os.O_CREATE|os.O_RDWR, 0o644)
	must(t, err)
	for at, b := range bytes {
		if b != 0 {
			_, err = f.WriteAt([]byte{b}, int64(at))
			must(t, err)
		}
	}
	must(t, f.Truncate(int64(len(bytes))))
	must(t, f.Close())
	write(t, filepath.Join(root, "tail"), strings.Repeat("\x00", 20*unit)+"x")
	write(t, filepath.Join(root, "small"), strings.Repeat("\x00", 10*unit))
	tr, err := dir.Read(t.Context(), root, dir.Options{})
	must(t, err)
	for name, want := range map[string][]tree.Extent{
		"dense":  {{Off: 3 * unit, Len: unit}, {Off: 20 * unit, Len: 2 * unit}},
		"sparse": {{Off: 3 * unit, Len: unit}, {Off: 20 * unit, Len: 2 * unit}},
		"tail":   {{Off: 20 * unit, Len: 1}},
	} {
		s, ok := tr.Lookup(name).Content.(tree.Sparse)
		if !ok {
			t.Fatalf("%s is not Sparse", name)
		}
		var got []tree.Extent
		got, err = s.Data()
		must(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("data of %s (-want +got):\n%s", name, diff)
		}
	}
	if _, ok := tr.Lookup("small").Content.(tree.Sparse); ok {
		t.Error("a file of 40 KiB is searched for holes")
	}
	r, err := tr.Lookup("dense").Content.Open()
	must(t, err)
	defer r.Close()
	s, ok := r.(io.Seeker)
	if !ok {
		t.Fatal("reader cannot seek")
	}
	if _, err := s.Seek(20*unit, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(r, b); err != nil || b[0] != 1 {
		t.Errorf("read after Seek: %v, %v", b, err)
	}
	for _, bad := range []struct {
		off    int64
		whence int
	}{{-1, io.SeekStart}, {1 << 40, io.SeekStart}, {0, io.SeekEnd}} {
		if _, err := s.Seek(bad.off, bad.whence); err == nil {
			t.Errorf("Seek(%d, %d) succeeded", bad.off, bad.whence)
		}
	}
}

// TestDeep: paths longer than the kernel takes at once.
func TestDeep(t *testing.T) {
	root := t.TempDir()
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	name := strings.Repeat("d", 200)
	const depth = 30
	for range depth {
		must(t, unix.Mkdirat(fd, name, 0o755))
		var next int
		next, err = unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	file, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o644)
	must(t, err)
	_, err = unix.Write(file, []byte("deep"))
	must(t, errors.Join(err, unix.Close(file), unix.Close(fd)))
	tr, err := dir.Read(t.Context(), root, dir.Options{})
	must(t, err)
	n := tr.Lookup(strings.Repeat(name+"/", depth) + "f")
	if tr.Len() != depth+2 || n == nil {
		t.Fatalf("%d nodes, file %v", tr.Len(), n)
	}
	r, err := n.Content.Open()
	must(t, err)
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "deep" {
		t.Errorf("content %q, %v", b, err)
	}
}

func TestReadErrors(t *testing.T) {
	root := sample(t)
	for _, name := range []string{filepath.Join(root, "absent"), filepath.Join(root, "a-file")} {
		if _, err := dir.Read(t.Context(), name, dir.Options{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Read(%q): %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dir.Read(ctx, root, dir.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Read with a cancelled context: %v", err)
	}
}

// TestLinkNumbers: files with several names are numbered in canonical order,
// whatever the order of reading.
func TestLinkNumbers(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"a", "b", "c", "c/d", "e"} {
		must(t, os.Mkdir(filepath.Join(root, d), 0o755))
		write(t, filepath.Join(root, d, "x"), d)
		must(t, os.Link(filepath.Join(root, d, "x"), filepath.Join(root, d, "y")))
	}
	must(t, os.Link(filepath.Join(root, "e/x"), filepath.Join(root, "a/from-e")))
	tr, err := dir.Read(t.Context(), root, dir.Options{})
	must(t, err)
	got := map[string]uint64{}
	for n := range tr.All() {
		if n.Type == tree.Regular {
			got[n.Path] = n.Inode
		}
	}
	want := map[string]uint64{
		"a/from-e": 1, "a/x": 2, "a/y": 2, "b/x": 3, "b/y": 3, "c/d/x": 4, "c/d/y": 4, "c/x": 5, "c/y": 5, "e/x": 1, "e/y": 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("identities (-want +got):\n%s", diff)
	}
}
