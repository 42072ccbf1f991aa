// Package dir reads a directory of the host into a tree.
//
// Metadata is read at once, by directory descriptors; contents are opened
// later, when a writer asks for them, through the descriptor of the root and
// without following symbolic links, so that nothing outside the directory is
// ever read. A file that is not the one that was scanned, by inode, size or
// modification time, is an error. The source is expected to be at rest:
// a change that leaves all three alone is not noticed.
//
// Attributes that belong to the host and not to the image are left out: those
// of overlay and rootless tools, and labels of security modules. See
// [KeepXattr].
//
// Linux only, 5.6 or later (openat2, statx). Extended attributes are read
// through /proc/self/fd where the kernel (before 6.13) has no listxattrat.
package dir

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/internal/contents"
	"cairn/fsbuild/tree"
)

// Options say how to read. The zero value reads everything as it is.
type Options struct {
	// ID turns an id of the host into one of the image, for users and groups
	// and in POSIX ACLs. nil leaves ids as they are.
	ID func(uint32) (uint32, error)
	// Exclude leaves out a path, and what is below it. Paths are relative
	// to the root; the root itself is not asked for. It must be safe for
	// concurrent calls.
	Exclude func(path string) bool
	// OneFileSystem leaves directories empty on which something is mounted.
	// A mount on anything else is an error, since what it covers cannot be
	// read.
	OneFileSystem bool
	// RootID is the user that is root in the image, as a version 3
	// security.capability names it. Such an attribute becomes version 2;
	// with another user it is an error.
	RootID uint32
	// KeepXattr replaces the rule of which attributes to read. It must be
	// safe for concurrent calls. nil means [KeepXattr].
	KeepXattr func(name string) bool
	// DeviceXattr is an extended attribute that makes a device node of a
	// regular file, whatever the file holds: its value is "c MAJOR MINOR" or
	// "b MAJOR MINOR". It is how a node is kept where mknod(2) is refused; ""
	// knows none.
	DeviceXattr string
	// Devices are nodes that could not be made in the directory: each is
	// added where its path is absent and its parent is there. Their ids are
	// those of the image.
	Devices []tree.Node
}

// Errors that a caller may tell apart. They come wrapped, with the path.
var (
	// ErrChanged: a file is not the one that was scanned.
	ErrChanged = errors.New("file changed since it was scanned")
	// ErrMount: with OneFileSystem, something is mounted on a file.
	ErrMount = errors.New("something is mounted on it")
)

// KeepXattr is the rule for attributes: user, trusted, security and POSIX
// ACLs are kept, except user.overlay.*, trusted.overlay.* and
// user.rootlesscontainers, which describe how the host stores the file, and
// security.selinux, security.apparmor, security.SMACK64*, security.ima and
// security.evm, which the host's policy decides.
func KeepXattr(name string) bool {
	for _, p := range []string{"user.overlay.", "trusted.overlay.", "security.SMACK64"} {
		if strings.HasPrefix(name, p) {
			return false
		}
	}
	switch name {
	case "user.rootlesscontainers", "security.selinux", "security.apparmor", "security.ima", "security.evm":
		return false
	case xattrACL, xattrDefaultACL:
		return true
	}
	ns, _, _ := strings.Cut(name, ".")
	return ns == "user" || ns == "trusted" || ns == "security"
}

// Read reads the directory root. The tree keeps a descriptor of root open as
// long as contents refer to it, which keeps the file system of root busy; use
// [ReadFrom] to decide when it is closed. Reading stops early when ctx is
// done.
func Read(ctx context.Context, root string, o Options) (*tree.Tree, error) {
	f, err := os.OpenFile(filepath.Clean(root), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("read directory: %w", err)
	}
	return ReadFrom(ctx, f, o)
}

// ReadFrom reads an open directory, which may be opened with O_PATH. Contents
// are opened through it: after it is closed they return an error.
func ReadFrom(ctx context.Context, root *os.File, o Options) (*tree.Tree, error) {
	s := &scanner{o: o, root: root, xattrs: &xattrReader{}}
	if s.o.KeepXattr == nil {
		s.o.KeepXattr = KeepXattr
	}
	t, err := s.read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read directory %s: %w", root.Name(), err)
	}
	return t, nil
}

func (s *scanner) read(ctx context.Context) (*tree.Tree, error) {
	top := item{}
	if err := (&worker{scanner: s}).stat(int(s.root.Fd()), "", ".", &top); err != nil {
		return nil, err
	}
	t := tree.New()
	*t.Lookup(".") = top.node
	if err := s.scan(ctx, t, folder{".", top.mount}); err != nil {
		return nil, err
	}
	link(t)
	return t, s.addDevices(t)
}

// item is one scanned file.
type item struct {
	node  tree.Node
	id    fileID
	nlink uint32
	mount uint64 // id of the mount that it is on, 0 when unknown
}

// fileID identifies a file on the host.
type fileID struct{ dev, ino uint64 }

// folder is a directory that is to be read.
type folder struct {
	path  string
	mount uint64
}

// scanner reads metadata, several directories at a time.
type scanner struct {
	o      Options
	root   *os.File
	xattrs *xattrReader
}

// queue hands directories to workers and adds what they find to the tree; it
// is finished when none is waiting or being read.
type queue struct {
	mu      sync.Mutex
	cond    sync.Cond
	waiting []folder
	busy    int
	err     error
	tree    *tree.Tree
	links   map[fileID]uint64 // files with several names
}

// scan reads everything below top.
func (s *scanner) scan(ctx context.Context, t *tree.Tree, top folder) error {
	q := &queue{waiting: []folder{top}, tree: t, links: map[fileID]uint64{}}
	q.cond.L = &q.mu
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 8) {
		wg.Go(func() {
			w := &worker{scanner: s, dirents: make([]byte, 64<<10)}
			for d, ok := q.next(); ok; d, ok = q.next() {
				err := ctx.Err()
				if err == nil {
					err = w.readDir(d)
				}
				q.done(d, w.found, err)
			}
		})
	}
	wg.Wait()
	return q.err
}

// next waits for a directory; false means the end.
func (q *queue) next() (folder, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) == 0 && q.busy > 0 && q.err == nil {
		q.cond.Wait()
	}
	if len(q.waiting) == 0 || q.err != nil {
		return folder{}, false
	}
	d := q.waiting[len(q.waiting)-1]
	q.waiting = q.waiting[:len(q.waiting)-1]
	q.busy++
	return d, true
}

// done adds what was found in d, whose reading ended with err.
func (q *queue) done(d folder, found []item, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy--
	for i := 0; i < len(found) && err == nil; i++ {
		err = q.add(d, &found[i])
	}
	if q.err == nil {
		q.err = err
	}
	q.cond.Broadcast()
}

func (q *queue) add(d folder, k *item) error {
	switch {
	case k.node.Type == tree.Directory && k.mount == d.mount:
		q.waiting = append(q.waiting, folder{k.node.Path, k.mount})
	case k.node.Type != tree.Directory && k.nlink > 1:
		if q.links[k.id] == 0 {
			q.links[k.id] = uint64(len(q.links)) + 1
		}
		k.node.Inode = q.links[k.id]
	}
	return q.tree.Add(k.node)
}

// link numbers files with several names in canonical order, and gives all names
// the metadata of the first.
func link(t *tree.Tree) {
	first := map[uint64]*tree.Node{}
	for n := range t.All() {
		if n.Inode == 0 {
			continue
		}
		if f, ok := first[n.Inode]; ok {
			path := n.Path
			*n = *f
			n.Path = path
		} else {
			first[n.Inode] = n
			n.Inode = uint64(len(first))
		}
	}
}

// worker reads one directory after the other.
type worker struct {
	*scanner
	from    *origin // of the last file
	dirents []byte
	names   []string
	found   []item // in the last directory, by name
}

// readDir finds what is in d.
func (w *worker) readDir(d folder) error {
	fd, err := openBeneath(w.root, d.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("%q: open: %w", d.path, err)
	}
	defer closeRead(fd)
	w.names, w.found = w.names[:0], w.found[:0]
	for {
		n, err := unix.ReadDirent(fd, w.dirents)
		if err != nil {
			return fmt.Errorf("%q: read directory: %w", d.path, err)
		}
		if n == 0 {
			break
		}
		_, _, w.names = unix.ParseDirent(w.dirents[:n], -1, w.names)
	}
	slices.Sort(w.names)
	for _, name := range w.names {
		path := name
		if d.path != "." {
			path = d.path + "/" + name
		}
		if w.o.Exclude != nil && w.o.Exclude(path) {
			continue
		}
		w.found = append(w.found, item{})
		k := &w.found[len(w.found)-1]
		if err := w.stat(fd, name, path, k); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		if err := w.checkMount(d, k); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
	}
	return nil
}

// checkMount decides about a file on another mount than its directory. Without
// OneFileSystem it is read like any other.
func (s *scanner) checkMount(d folder, k *item) error {
	switch {
	case k.mount == d.mount:
	case k.mount == 0:
		k.mount = d.mount
	case !s.o.OneFileSystem:
		k.mount = d.mount
	case k.node.Type != tree.Directory:
		return ErrMount
	}
	return nil
}

// modeTypes are the types of nodes by the type bits of a mode.
var modeTypes = map[uint16]tree.Type{
	unix.S_IFREG: tree.Regular, unix.S_IFDIR: tree.Directory, unix.S_IFLNK: tree.Symlink,
	unix.S_IFCHR: tree.CharDevice, unix.S_IFBLK: tree.BlockDevice, unix.S_IFIFO: tree.FIFO, unix.S_IFSOCK: tree.Socket,
}

// stat reads the metadata of name in the directory fd; an empty name means fd.
func (w *worker) stat(fd int, name, path string, k *item) error {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_EMPTY_PATH
	if err := statx(fd, name, flags, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	dev := unix.Mkdev(st.Dev_major, st.Dev_minor)
	k.id, k.nlink, k.mount = fileID{dev, st.Ino}, st.Nlink, st.Mnt_id
	if st.Mask&unix.STATX_MNT_ID == 0 { // before Linux 5.8
		k.mount = 0
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			k.mount = dev
		}
	}
	n := &k.node
	*n = tree.Node{
		Path: path, Type: modeTypes[st.Mode&unix.S_IFMT], Mode: uint32(st.Mode & 0o7777),
		UID: st.Uid, GID: st.Gid,
		MTime: tree.Time{Sec: st.Mtime.Sec, Nsec: st.Mtime.Nsec},
	}
	switch n.Type {
	case tree.Regular:
		n.Size = int64(st.Size)
		if w.from == nil || w.from.dev != dev {
			w.from = &origin{w.root, dev}
		}
		c := content{from: w.from, path: path, ino: st.Ino, size: n.Size, mtime: nanoseconds(st.Mtime.Sec, int64(st.Mtime.Nsec))}
		if n.Content = &c; n.Size >= contents.HolesFrom {
			n.Content = &large{c}
		}
	case tree.CharDevice, tree.BlockDevice:
		n.Major, n.Minor = st.Rdev_major, st.Rdev_minor
	case tree.Symlink:
		target, err := readlink(fd, name, int(st.Size))
		if err != nil {
			return fmt.Errorf("read link: %w", err)
		}
		n.Target = target
	default: // nothing more
	}
	return w.complete(fd, name, n)
}

// complete translates ids and reads extended attributes.
func (s *scanner) complete(fd int, name string, n *tree.Node) (err error) {
	if s.o.ID != nil {
		if n.UID, err = s.o.ID(n.UID); err != nil {
			return fmt.Errorf("owner: %w", err)
		}
		if n.GID, err = s.o.ID(n.GID); err != nil {
			return fmt.Errorf("group: %w", err)
		}
	}
	list, err := s.xattrs.read(fd, name, s.o.KeepXattr)
	if err != nil {
		return err
	}
	for i := range list {
		if list[i].Value, err = s.translate(list[i]); err != nil {
			return fmt.Errorf("xattr %q: %w", list[i].Name, err)
		}
	}
	slices.SortFunc(list, func(a, b tree.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	n.Xattrs = list
	return s.device(n)
}

// device makes the node of a file that stands for one.
func (s *scanner) device(n *tree.Node) error {
	i := slices.IndexFunc(n.Xattrs, func(x tree.Xattr) bool { return x.Name == s.o.DeviceXattr })
	if i < 0 || n.Type != tree.Regular {
		return nil
	}
	var kind string
	value := string(n.Xattrs[i].Value)
	if _, err := fmt.Sscanf(value, "%1s %d %d", &kind, &n.Major, &n.Minor); err != nil {
		return fmt.Errorf("xattr %q: %q is no device: %w", s.o.DeviceXattr, value, err)
	}
	switch kind {
	case "c":
		n.Type = tree.CharDevice
	case "b":
		n.Type = tree.BlockDevice
	default:
		return fmt.Errorf("xattr %q: %q is no type of device", s.o.DeviceXattr, kind)
	}
	n.Size, n.Content = 0, nil
	n.Xattrs = slices.Delete(n.Xattrs, i, i+1)
	return nil
}

// addDevices adds the ledger, parents before what is in them.
func (s *scanner) addDevices(t *tree.Tree) error {
	for _, n := range s.o.Devices {
		if t.Lookup(n.Path) != nil || t.Lookup(n.Parent()) == nil || s.o.Exclude != nil && s.o.Exclude(n.Path) {
			continue
		}
		if err := t.Add(n); err != nil {
			return fmt.Errorf("device ledger: %w", err)
		}
	}
	return nil
}
