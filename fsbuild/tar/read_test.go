package tar_test

import (
	stdtar "archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tar"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
	"cairn/tests/require"
)

type header = stdtar.Header

// archive makes an archive of entries; the content of a file is its Uname.
func archive(t testing.TB, entries ...header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := stdtar.NewWriter(&b)
	for _, h := range entries {
		data := h.Uname
		h.Uname = ""
		if h.Typeflag == stdtar.TypeReg {
			h.Size = int64(len(data))
		}
		if h.Mode == 0 && h.Typeflag != stdtar.TypeXGlobalHeader {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, data string) header {
	return header{Typeflag: stdtar.TypeReg, Name: name, Uname: data}
}
func folder(name string) header { return header{Typeflag: stdtar.TypeDir, Name: name, Mode: 0o700} }
func symlink(name, to string) header {
	return header{Typeflag: stdtar.TypeSymlink, Name: name, Linkname: to}
}

func hardlink(name, to string) header {
	return header{Typeflag: stdtar.TypeLink, Name: name, Linkname: to}
}

func device(name string, major, minor int64) header {
	return header{Typeflag: stdtar.TypeChar, Name: name, Devmajor: major, Devminor: minor}
}

func records(h header, pairs ...string) header {
	h.PAXRecords = map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		h.PAXRecords[pairs[i]] = pairs[i+1]
	}
	return h
}

// describe lists a tree: type and mode, path, and content or target.
func describe(t testing.TB, tr *tree.Tree) (list []string) {
	t.Helper()
	groups := map[uint64]int{}
	for n := range tr.All() {
		s := fmt.Sprintf("%v %o %s", n.Type, n.Mode, n.Path)
		switch {
		case n.Type == tree.Symlink:
			s += " > " + n.Target
		case n.Content != nil:
			r, err := n.Content.Open()
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			if err = errors.Join(err, r.Close()); err != nil {
				t.Fatal(err)
			}
			s += " = " + string(data)
		}
		if n.Inode != 0 {
			if groups[n.Inode] == 0 {
				groups[n.Inode] = len(groups) + 1
			}
			s += fmt.Sprint(" #", groups[n.Inode])
		}
		for _, x := range n.Xattrs {
			s += fmt.Sprintf(" %s=%q", x.Name, x.Value)
		}
		list = append(list, s)
	}
	return list[1:]
}

// TestRules: what odd archives mean.
func TestRules(t *testing.T) {
	for name, c := range map[string]struct {
		entries []header
		want    []string
	}{
		"missing parents":         {[]header{file("a/b/c", "x")}, []string{"d 755 a", "d 755 a/b", "f 644 a/b/c = x"}},
		"late parent":             {[]header{file("a/b", "x"), folder("a")}, []string{"d 700 a", "f 644 a/b = x"}},
		"absolute":                {[]header{file("/a", "x"), file("//./b", "")}, []string{"f 644 a = x", "f 644 b = "}},
		"last wins":               {[]header{file("a", "x"), file("a", "yy")}, []string{"f 644 a = yy"}},
		"other type wins":         {[]header{file("a", "x"), symlink("a", "b"), folder("c"), file("c", "z")}, []string{"l 777 a > b", "f 644 c = z"}},
		"directory over file":     {[]header{file("a", "x"), folder("a"), file("a/b", "y")}, []string{"d 700 a", "f 644 a/b = y"}},
		"directory over link":     {[]header{folder("d"), symlink("l", "d"), folder("l"), file("l/x", "")}, []string{"d 700 d", "d 700 l", "f 644 l/x = "}},
		"through a link":          {[]header{folder("d"), symlink("l", "d"), file("l/x", "y")}, []string{"d 700 d", "f 644 d/x = y", "l 777 l > d"}},
		"through absolute link":   {[]header{folder("d"), folder("e"), symlink("e/l", "/d"), file("e/l/x", "y")}, []string{"d 700 d", "f 644 d/x = y", "d 700 e", "l 777 e/l > /d"}},
		"through link above root": {[]header{symlink("l", "../../etc"), file("l/x", "y")}, []string{"d 755 etc", "f 644 etc/x = y", "l 777 l > ../../etc"}},
		"through two links":       {[]header{symlink("a", "b/c"), symlink("b", "d"), file("a/x", "y")}, []string{"l 777 a > b/c", "l 777 b > d", "d 755 d", "d 755 d/c", "f 644 d/c/x = y"}},
		"hard links":              {[]header{file("a", "x"), hardlink("b", "a"), hardlink("c", "/b")}, []string{"f 644 a = x #1", "f 644 b = x #1", "f 644 c = x #1"}},
		"link keeps old content":  {[]header{file("a", "x"), hardlink("b", "a"), file("a", "y")}, []string{"f 644 a = y", "f 644 b = x"}},
		"hard link to itself":     {[]header{file("a", "x"), hardlink("a", "a")}, []string{"f 644 a = x"}},
		"hard link to symlink":    {[]header{symlink("l", "/etc/passwd"), hardlink("h", "l")}, []string{"l 777 h > /etc/passwd #1", "l 777 l > /etc/passwd #1"}},
		"hard link through link":  {[]header{folder("d"), file("d/a", "x"), symlink("l", "d"), hardlink("h", "l/a")}, []string{"d 700 d", "f 644 d/a = x #1", "f 644 h = x #1", "l 777 l > d"}},
		"whiteouts are files":     {[]header{file(".wh.a", "")}, []string{"f 644 .wh.a = "}},
		"attributes": {
			[]header{records(file("a", ""), "SCHILY.xattr.user.a", "1", "SCHILY.xattr.user.overlay.opaque", "y", "SCHILY.xattr.security.selinux", "s", "SCHILY.xattr.trusted.x", "t")},
			[]string{`f 644 a =  user.a="1"`},
		},
		"ACL as text": {
			[]header{records(file("a", ""), "SCHILY.acl.access", "user::rw-,user:joe:r--:7,group::r--,mask::r--,other::---")},
			[]string{`f 644 a =  system.posix_acl_access="\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\a\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff \x00\x00\x00\xff\xff\xff\xff"`},
		},
		"global comment": {[]header{{Typeflag: stdtar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}, file("a", "")}, []string{"f 644 a = "}},
	} {
		t.Run(name, func(t *testing.T) {
			b := archive(t, c.entries...)
			tr, err := tar.Read(t.Context(), bytes.NewReader(b), int64(len(b)), tar.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, describe(t, tr)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRoot(t *testing.T) {
	root := folder("./")
	root.Uid, root.Mode = 7, 0o1777
	if n := read(t, archive(t, root)).Lookup("."); n.UID != 7 || n.Mode != 0o1777 {
		t.Errorf("root is %+v", n)
	}
}

// TestHostile: what must be refused is refused, with the entry's name.
func TestHostile(t *testing.T) {
	few := tar.Limits{Entries: 2, NameBytes: 20, Depth: 3, XattrBytes: 4, Devices: 1, TotalBytes: 5}
	id := func(h header, uid int) header { h.Uid = uid; return h }
	for name, c := range map[string]struct {
		entries []header
		limits  tar.Limits
		want    error
	}{
		"dot dot":               {[]header{file("a/../../x", "")}, tar.Limits{}, tar.ErrUnsafe},
		"hard link out":         {[]header{hardlink("x", "../x")}, tar.Limits{}, tar.ErrUnsafe},
		"hard link to nothing":  {[]header{hardlink("x", "y")}, tar.Limits{}, fs.ErrNotExist},
		"hard link to folder":   {[]header{folder("d"), hardlink("x", "d")}, tar.Limits{}, tar.ErrUnsafe},
		"hard link to root":     {[]header{hardlink("x", ".")}, tar.Limits{}, tar.ErrUnsafe},
		"link loop":             {[]header{symlink("a", "b"), symlink("b", "a"), file("a/x", "")}, tar.Limits{}, tar.ErrUnsafe},
		"file as directory":     {[]header{file("x", ""), file("x/y", "")}, tar.Limits{}, tree.ErrNotDir},
		"file over full folder": {[]header{file("d/x", ""), file("d", "")}, tar.Limits{}, tar.ErrUnsupported},
		"link over full folder": {[]header{file("d/x", ""), file("f", ""), hardlink("d", "f")}, tar.Limits{}, tar.ErrUnsupported},
		"root as file":          {[]header{file(".", "")}, tar.Limits{}, tar.ErrUnsafe},
		"root as symlink":       {[]header{symlink("./", "/etc")}, tar.Limits{}, tar.ErrUnsafe},
		"empty target":          {[]header{symlink("l", "")}, tar.Limits{}, tar.ErrUnsafe},
		"uid -1":                {[]header{id(file("x", ""), 1<<32-1)}, tar.Limits{}, tar.ErrUnsafe},
		"uid 2^40":              {[]header{id(file("x", ""), 1<<40)}, tar.Limits{}, tar.ErrUnsafe},
		"whiteout device":       {[]header{device("x", 0, 0)}, tar.Limits{}, tar.ErrUnsafe},
		"large device":          {[]header{device("x", 4096, 0)}, tar.Limits{}, tar.ErrUnsupported},
		"volume label":          {[]header{{Typeflag: 'V', Name: "x", Format: stdtar.FormatGNU}}, tar.Limits{}, tar.ErrUnsupported},
		"global path":           {[]header{{Typeflag: stdtar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "x"}}}, tar.Limits{}, tar.ErrUnsupported},
		"bad ACL":               {[]header{records(file("x", ""), "SCHILY.acl.access", "user:joe:rwx")}, tar.Limits{}, tar.ErrUnsafe},
		"bad capability":        {[]header{records(file("x", ""), "SCHILY.xattr.security.capability", "\x00\x00\x02")}, tar.Limits{}, tar.ErrUnsafe},
		"entries":               {[]header{file("a", ""), file("b", ""), file("c", "")}, few, tar.ErrLimit},
		"long name":             {[]header{file(strings.Repeat("n", 21), "")}, few, tar.ErrLimit},
		"long by links":         {[]header{symlink("l", "0123456789"), file("l/01234567890", "")}, few, tar.ErrLimit},
		"deep":                  {[]header{file("a/b/c/d", "")}, few, tar.ErrLimit},
		"long target":           {[]header{symlink("l", strings.Repeat("n", 21))}, few, tar.ErrUnsafe},
		"attribute":             {[]header{records(file("a", ""), "SCHILY.xattr.user.a", "12345")}, few, tar.ErrLimit},
		"devices":               {[]header{device("a", 1, 3), device("b", 1, 3)}, few, tar.ErrLimit},
		"bytes":                 {[]header{file("a", "123"), file("b", "123")}, few, tar.ErrLimit},
	} {
		t.Run(name, func(t *testing.T) {
			b := archive(t, c.entries...)
			_, err := tar.Read(t.Context(), bytes.NewReader(b), int64(len(b)), tar.Options{Limits: c.limits})
			var e *tar.EntryError
			if !errors.Is(err, c.want) || !errors.As(err, &e) {
				t.Errorf("Read: %v, want %v for an entry", err, c.want)
			}
		})
	}
}

// TestDamaged: a cut archive is an error unless it is cut between entries, as
// is a bad checksum.
func TestDamaged(t *testing.T) {
	whole := archive(t, file("a", strings.Repeat("x", 700)), file("b", "y"))
	for _, size := range []int{1, 511, 700, 1024, 1535, 1600, 2048} {
		if _, err := tar.Read(t.Context(), bytes.NewReader(whole), int64(size), tar.Options{}); err == nil {
			t.Errorf("the first %d bytes are accepted", size)
		}
	}
	one := archive(t, file("a", strings.Repeat("x", 700)))
	for size, ok := range map[int64]bool{512 + 699: false, 512 + 700: true, 512 + 701: true, 1535: true} {
		if _, err := tar.ReadLayers(t.Context(), []*io.SectionReader{io.NewSectionReader(bytes.NewReader(one), 0, size)}, tar.Options{}); (err == nil) != ok {
			t.Errorf("the first %d bytes as a layer: %v", size, err)
		}
	}
	endless := bytes.Clone(whole)
	endless = append(archive(t, records(file("e", ""), "SCHILY.xattr.user.a", "12345678901234567890"))[:1024], endless...)
	copy(endless[512:], "28 size=9223372036854775807\n16 comment=1234\n")
	if _, err := tar.Read(t.Context(), bytes.NewReader(endless), int64(len(endless)), tar.Options{Limits: tar.Limits{TotalBytes: math.MaxInt64}}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a size of 1<<63-1 bytes: %v", err)
	}
	whole[0]++
	if _, err := tar.Read(t.Context(), bytes.NewReader(whole), int64(len(whole)), tar.Options{}); !errors.Is(err, stdtar.ErrHeader) {
		t.Errorf("bad checksum: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	good := archive(t, file("a", ""))
	if _, err := tar.Read(ctx, bytes.NewReader(good), int64(len(good)), tar.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
}

// TestFormats reads what GNU tar and bsdtar write of the same directory, with
// a sparse file between others, in every format.
func TestFormats(t *testing.T) {
	src := t.TempDir()
	for name, data := range map[string]string{
		"a": "first", "plain": "x", strings.Repeat("long", 40): "y", "z": "last", "sub": "",
	} {
		if err := os.WriteFile(filepath.Join(src, name), []byte(data), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sparse", "sparser"} {
		f, err := os.OpenFile(filepath.Join(src, name), os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			t.Fatal(err)
		}
		for i := range int64(30) {
			if _, err := f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 5000), i*100_000); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Truncate(4<<20+1), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(src, "sparse"), filepath.Join(src, "t")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a", filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	whole := func(n *tree.Node) { n.MTime.Nsec = 0 }
	want, err := dir.Read(t.Context(), src, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantText := fstest.Text(t, want) // before the times are cut: contents check them
	gnu, bsd := require.Tool(t, "tar", "tar"), require.Tool(t, "bsdtar", "libarchive-tools")
	for _, args := range [][]string{
		{gnu, "--format=gnu"},
		{gnu, "--format=gnu", "-S"},
		{gnu, "--format=pax"},
		{gnu, "--format=pax", "-S", "--sparse-version=0.0"},
		{gnu, "--format=pax", "-S", "--sparse-version=0.1"},
		{gnu, "--format=pax", "-S", "--sparse-version=1.0"},
		{bsd, "--format=pax"},
		{bsd, "--format=gnutar"},
	} {
		b := []byte(run(t, src, nil, args[0], append(args[1:], "-cf", "-", ".")...))
		got := read(t, b)
		parsed, err := tree.ParseText(strings.NewReader(wantText))
		if err != nil {
			t.Fatal(err)
		}
		if diff := fstest.Diff(t, forget(parsed, whole), forget(got, whole)); diff != "" {
			t.Errorf("%q: %s", args, diff)
		}
		checkHoles(t, want.Lookup("sparser").Content, got.Lookup("sparser").Content)
	}
	for _, format := range []string{"ustar", "v7"} {
		b := []byte(run(t, src, nil, gnu, "--format="+format, "-cf", "-", "a", "link", "plain"))
		if got := describe(t, read(t, b)); !cmp.Equal(got, []string{"f 640 a = first", "l 777 link > a", "f 640 plain = x"}) {
			t.Errorf("%s: %q", format, got)
		}
	}
}

// checkHoles: a file has the same holes whether it comes from a directory or
// an archive.
func checkHoles(t *testing.T, want, got tree.Content) {
	t.Helper()
	var data [2][]tree.Extent
	for i, c := range []tree.Content{want, got} {
		s, ok := c.(tree.Sparse)
		if !ok {
			t.Fatalf("%T is not Sparse", c)
		}
		var err error
		if data[i], err = s.Data(); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(data[0], data[1]); diff != "" || len(data[0]) == 0 {
		t.Errorf("holes (-directory +archive):\n%s", diff)
	}
}

// TestChanged: a sparse file whose archive was changed is an error.
func TestChanged(t *testing.T) {
	src := t.TempDir()
	f := filepath.Join(src, "f")
	if err := errors.Join(os.WriteFile(f, []byte("x"), 0o600), os.Truncate(f, 2<<20)); err != nil {
		t.Fatal(err)
	}
	b := []byte(run(t, src, nil, require.Tool(t, "tar", "tar"), "--format=gnu", "-S", "-cf", "-", "f"))
	c := read(t, b).Lookup("f").Content
	clear(b)
	if _, err := c.Open(); err == nil {
		t.Error("Open of a changed archive")
	}
	if s, ok := c.(tree.Sparse); !ok {
		t.Error("content is not Sparse")
	} else if _, err := s.Data(); err == nil {
		t.Error("Data of a changed archive")
	}
}

// TestConcurrent is for the race detector: contents may be read at a time.
func TestConcurrent(t *testing.T) {
	c := read(t, archive(t, file("a", strings.Repeat("0", 2<<20)))).Lookup("a").Content
	done := make(chan error)
	for range 4 {
		go func() {
			s, ok := c.(tree.Sparse)
			if !ok {
				done <- errors.New("not sparse")
				return
			}
			_, err := s.Data()
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// FuzzRead: no input panics; a tree that is read can be written, and reading
// that gives the same tree.
func FuzzRead(f *testing.F) {
	f.Add(archive(f, folder("d"), file("d/a", "x"), hardlink("h", "d/a"), symlink("l", "d"), file("l/y", ""), device("c", 1, 3)))
	f.Add(archive(f, records(file("a", ""), "SCHILY.xattr.user.a", "1", "SCHILY.acl.access", "user::rw-,group::r--,other::---")))
	f.Add(archive(f, file("a", "x"), hardlink("b", "a"), file("a", "y"), folder("/q")))
	f.Add(archive(f, file("a", "x"))[:1024])
	f.Add(append(archive(f, file("d/a", "x"), hardlink("h", "d/a"))[:2560], archive(f, file("d/.wh.a", ""), file(".wh..wh..opq", ""))...))
	limits := tar.Limits{Entries: 1000, TotalBytes: 10 << 20}
	f.Fuzz(func(t *testing.T, in []byte) {
		layers, half := bytes.NewReader(in), int64(len(in)/1024*512)
		if tr, err := tar.ReadLayers(t.Context(), []*io.SectionReader{
			io.NewSectionReader(layers, 0, half), io.NewSectionReader(layers, half, int64(len(in))-half),
		}, tar.Options{Limits: limits}); err == nil {
			for n := range tr.All() {
				if err := n.Check(); err != nil {
					t.Fatalf("node of layers: %q: %v", n.Path, err)
				}
			}
		}
		tr, err := tar.Read(t.Context(), bytes.NewReader(in), int64(len(in)), tar.Options{Limits: limits})
		if err != nil {
			return
		}
		var b bytes.Buffer
		if _, err := tar.Write(t.Context(), &b, tr, tar.Params{}); err != nil {
			if errors.Is(err, tar.ErrLimit) {
				return // times beyond 2^60
			}
			t.Fatalf("write what was read: %v", err)
		}
		if diff := fstest.Diff(t, tr, read(t, b.Bytes())); diff != "" {
			t.Fatalf("read again: %s", diff)
		}
	})
}
