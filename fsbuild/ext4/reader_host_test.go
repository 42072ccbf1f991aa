package ext4_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
)

// materialise makes a tree below a directory of the host as far as the user
// may and the file system can.
func materialise(t testing.TB, root string, tr *tree.Tree) {
	t.Helper()
	made := map[uint64]string{}
	var dirs []*tree.Node
	for n := range tr.All() {
		path := filepath.Join(root, n.Path)
		if first := made[n.Inode]; first != "" {
			tolerate(t, os.Link(first, path))
			continue
		}
		if n.Path != "." {
			makeNode(t, path, n)
		}
		if n.Inode != 0 {
			made[n.Inode] = path
		}
		if n.Type == tree.Directory {
			dirs = append(dirs, n) // their times change when names are added
			continue
		}
		setMetadata(t, path, n)
	}
	for i := range dirs {
		n := dirs[len(dirs)-1-i]
		setMetadata(t, filepath.Join(root, n.Path), n)
	}
}

// tolerate fails the test unless the error is what a user, or a file system
// without room for attributes, may see.
func tolerate(t testing.TB, err error) {
	t.Helper()
	for _, ok := range []error{unix.EPERM, unix.EACCES, unix.ENOSPC, unix.EOPNOTSUPP, unix.ENOENT, unix.E2BIG, unix.EINVAL, unix.ERANGE, unix.ENAMETOOLONG} {
		if errors.Is(err, ok) {
			return
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func makeNode(t testing.TB, path string, n *tree.Node) {
	t.Helper()
	dev := int(unix.Mkdev(n.Major, n.Minor))
	switch n.Type {
	case tree.Directory:
		tolerate(t, os.Mkdir(path, 0o755))
	case tree.Symlink:
		tolerate(t, os.Symlink(n.Target, path))
	case tree.CharDevice:
		tolerate(t, unix.Mknod(path, unix.S_IFCHR, dev))
	case tree.BlockDevice:
		tolerate(t, unix.Mknod(path, unix.S_IFBLK, dev))
	case tree.FIFO:
		tolerate(t, unix.Mknod(path, unix.S_IFIFO, 0))
	case tree.Socket:
		tolerate(t, unix.Mknod(path, unix.S_IFSOCK, 0))
	case tree.Regular:
		makeFile(t, path, n)
	}
}

func makeFile(t testing.TB, path string, n *tree.Node) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	runs := []tree.Extent{{Len: n.Size}}
	if s, ok := n.Content.(tree.Sparse); ok {
		if runs, err = s.Data(); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(n.Size); err != nil || n.Size == 0 {
		tolerate(t, err)
		return
	}
	b := read(t, n.Content)
	for _, r := range runs {
		if _, err := f.WriteAt(b[r.Off:r.Off+r.Len], r.Off); err != nil {
			t.Fatal(err)
		}
	}
}

func setMetadata(t testing.TB, path string, n *tree.Node) {
	t.Helper()
	tolerate(t, os.Lchown(path, int(n.UID), int(n.GID)))
	if n.Type != tree.Symlink {
		tolerate(t, unix.Chmod(path, n.Mode))
	}
	for _, x := range n.Xattrs {
		tolerate(t, unix.Lsetxattr(path, x.Name, x.Value, 0))
	}
	at := unix.Timespec{Sec: n.MTime.Sec, Nsec: int64(n.MTime.Nsec)}
	tolerate(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
}

// foreignTree is a generated tree with more that foreign images have, and no
// more attributes for a file than room bytes.
func foreignTree(t testing.TB, seed uint64, room int) *tree.Tree {
	t.Helper()
	tr := fstest.Generate(seed)
	rest := func(n tree.Node) {
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	rest(directory("foreign"))
	rest(file("foreign/tiny", "fits into the inode"))
	rest(file("foreign/small", strings.Repeat("inline, with a rest. ", 6)))
	rest(directory("foreign/empty"))
	rest(directory("foreign/few"))
	rest(directory("foreign/many"))
	for i := range 200 {
		rest(file(fmt.Sprintf("foreign/many/%d%s", i, strings.Repeat("m", 60)), ""))
	}
	for i := range 9 {
		rest(file(fmt.Sprintf("foreign/few/%d", i), ""))
	}
	// through all levels of indirect blocks of 1 KiB, and extents beyond the inode
	h := &fstest.Holes{Bytes: 80 << 20}
	for i := range int64(12) {
		h.Runs = append(h.Runs, fstest.Run{Off: i * 6_500_000 &^ 65535, Data: []byte(strings.Repeat(fmt.Sprint(i), 5000))})
	}
	rest(tree.Node{Path: "foreign/sparse", Type: tree.Regular, Mode: 0o640, Size: h.Bytes, Content: h})
	rest(tree.Node{Path: "foreign/hole", Type: tree.Regular, Size: 1 << 20, Content: &fstest.Holes{Bytes: 1 << 20}})
	for n := range tr.All() {
		size := 0
		for _, x := range n.Xattrs {
			size += len(x.Name) + len(x.Value) + 20
		}
		if size > room {
			n.Xattrs = nil
		}
	}
	return tr
}

// describe reads a directory of the host as the judge of a reader.
func describe(t testing.TB, root string) *tree.Tree {
	t.Helper()
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tr, err := dir.ReadFrom(t.Context(), f, dir.Options{KeepXattr: func(string) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	if n := tr.Lookup("lost+found"); n != nil && n.Mode == 0o700 {
		tr.Remove("lost+found")
	}
	var b strings.Builder
	if err := tr.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	if tr, err = tree.ParseText(strings.NewReader(b.String())); err != nil { // contents go with the mount
		t.Fatal(err)
	}
	return tr
}
