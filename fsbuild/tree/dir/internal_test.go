package dir

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestXattrsViaProc: kernels without listxattrat give the same answer.
func TestXattrsViaProc(t *testing.T) {
	root := t.TempDir()
	name := filepath.Join(root, "f")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, x := range []string{"user.a", "user." + strings.Repeat("n", 200), "user." + strings.Repeat("m", 200), "user." + strings.Repeat("o", 200)} {
		if err := unix.Setxattr(name, x, []byte(strings.Repeat("v", len(x)*2)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("f", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeRead(fd)
	all := func(x string) bool { return strings.HasPrefix(x, "user.") }
	var direct, proc xattrReader
	proc.viaProc.Store(true)
	for _, file := range []string{"f", "link", ""} {
		a, err := direct.read(fd, file, all)
		if err != nil {
			t.Fatal(err)
		}
		b, err := proc.read(fd, file, all)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(a, b); diff != "" {
			t.Errorf("%q: xattrs by system call and through /proc differ:\n%s", file, diff)
		}
		if want := map[string]int{"f": 4}[file]; len(a) != want {
			t.Errorf("%q: %d xattrs, want %d", file, len(a), want)
		}
	}
	if _, err := proc.read(fd, "absent", all); err == nil {
		t.Error("reading xattrs of an absent file succeeded")
	}
}

func TestCapability(t *testing.T) {
	const (
		v2   = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		v3   = "\x01\x00\x00\x03\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		root = "\x01\x00\x00\x00"
	)
	s := &scanner{o: Options{RootID: 1}}
	for name, c := range map[string]struct{ in, want, err string }{
		"version 2":            {in: v2, want: v2},
		"version 3 of root":    {in: v3 + root, want: v2},
		"version 1":            {in: "\x01\x00\x00\x01" + strings.Repeat("\x00", 8), want: "\x01\x00\x00\x01" + strings.Repeat("\x00", 8)},
		"version 3 of another": {in: v3 + "\xe9\x03\x00\x00", err: "user 1001, not 1"},
		"version 3, short":     {in: v3, err: "malformed"},
		"version 2, long":      {in: v2 + root, err: "malformed"},
		"version 4":            {in: strings.Replace(v2, "\x02", "\x04", 1), err: "malformed"},
		"three bytes":          {in: "abc", err: "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := s.capability([]byte(c.in))
			if c.err == "" && (err != nil || string(got) != c.want) {
				t.Errorf("%x, %v, want %x", got, err, c.want)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %s", err, c.err)
			}
		})
	}
}

func TestACL(t *testing.T) {
	entry := func(tag, id string) string { return tag + "\x00\x07\x00" + id }
	in := "\x02\x00\x00\x00" + entry("\x01", "\xff\xff\xff\xff") + entry("\x02", "\x05\x00\x00\x00") + entry("\x08", "\x06\x00\x00\x00") + entry("\x20", "\xff\xff\xff\xff")
	want := strings.NewReplacer("\x05\x00", "\x04\x00", "\x06\x00", "\x05\x00").Replace(in)
	minusOne := func(id uint32) (uint32, error) {
		if id == 0 {
			return 0, os.ErrInvalid
		}
		return id - 1, nil
	}
	s := &scanner{o: Options{ID: minusOne}}
	if got, err := s.acl([]byte(in)); err != nil || string(got) != want {
		t.Errorf("acl: %x, %v, want %x", got, err, want)
	}
	bad := strings.Replace(in, "\x05\x00", "\x00\x00", 1)
	if _, err := s.acl([]byte(bad)); err == nil {
		t.Error("an id that has no image id is accepted")
	}
	for _, v := range []string{"", "abc", "\x01\x00\x00\x00", in + "x"} {
		if _, err := s.acl([]byte(v)); err == nil {
			t.Errorf("malformed ACL %x is accepted", v)
		}
	}
	plain := &scanner{}
	if got, err := plain.acl([]byte(in)); err != nil || string(got) != in {
		t.Errorf("acl without ID: %x, %v", got, err)
	}
}

// TestOpenStepwise: without openat2 no link is followed either.
func TestOpenStepwise(t *testing.T) {
	root := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(root, "a/b"), 0o755), os.WriteFile(filepath.Join(root, "a/b/f"), nil, 0o644),
		os.Symlink("a", filepath.Join(root, "link")), os.Symlink("f", filepath.Join(root, "a/b/l")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeRead(fd)
	for path, ok := range map[string]bool{"a/b/f": true, "a": true, ".": true, "link/b/f": false, "a/b/l": false, "a/b/f/x": false, "a/absent": false} {
		n, err := openStepwise(fd, path, unix.O_RDONLY)
		if ok != (err == nil) {
			t.Errorf("openStepwise(%q): %v", path, err)
		}
		if err == nil {
			closeRead(n)
		}
	}
}

// TestMounts checks the rule for files on other mounts, and a real mount where
// the test may make one.
func TestMounts(t *testing.T) {
	for name, c := range map[string]struct {
		one  bool
		typ  uint16
		want error
		same bool
	}{
		"directory":                  {typ: unix.S_IFDIR, same: true},
		"file":                       {typ: unix.S_IFREG, same: true},
		"directory, one file system": {one: true, typ: unix.S_IFDIR},
		"file, one file system":      {one: true, typ: unix.S_IFREG, want: ErrMount},
	} {
		s := &scanner{o: Options{OneFileSystem: c.one}}
		d, k := folder{mount: 1}, &item{mount: 2}
		k.node.Type = modeTypes[c.typ]
		if err := s.checkMount(d, k); err != c.want { //nolint:errorlint // it is returned as it is
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if c.same != (k.mount == d.mount) {
			t.Errorf("%s: mount %d", name, k.mount)
		}
	}
	if os.Geteuid() != 0 {
		t.Log("not root: nothing is mounted")
		return
	}
	root := t.TempDir()
	for _, d := range []string{"m", "n"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "none", filepath.Join(root, "m")).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	defer exec.Command("umount", filepath.Join(root, "m")).Run() //nolint:errcheck // the test is over
	if err := os.WriteFile(filepath.Join(root, "m/f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for one, want := range map[bool]int{false: 4, true: 3} {
		f, err := os.Open(root)
		if err != nil {
			t.Fatal(err)
		}
		tr, err := ReadFrom(t.Context(), f, Options{OneFileSystem: one})
		if err != nil || tr.Len() != want {
			t.Errorf("OneFileSystem %v: %v nodes, %v; want %d", one, tr.Len(), err, want)
		}
		_ = f.Close()
	}
}
