// Package tree holds a file-system tree: the one noun that every base produces
// and every image writer consumes.
//
// A [Tree] is a set of [Node] values by path. Ownership, modes and times are
// those of the image, whatever the files have on the host. Order is canonical:
// bytewise by path component, a directory before what is in it; it never
// depends on the order of insertion. File contents stay where they are and are
// opened through [Content] when a writer needs them.
//
// The package knows no file system: limits such as the length of a name or
// the range of a time belong to the writers. It reads no host state; package
// dir reads a directory into a Tree.
//
// # Text form
//
// [Tree.WriteText] writes one line per node, [ParseText] reads it back:
//
//	cairn-tree 1
//	d 0755 0:0 0.000000000 .
//	f 4755 0:0 1700000000.000000000 usr/bin/su size=3 sha256=HEX link=1 xattr:user.a=b
//	l 0777 0:0 1700000000.000000000 bin target=usr/bin
//	c 0620 0:5 1700000000.000000000 dev/tty1 dev=4:1
//
// The fields are type (f d l c b p s), octal mode, uid:gid, modification time
// (seconds, then nine digits of nanoseconds that count upwards also before
// 1970), path, then attributes in the order shown. Bytes outside 0x21 to 0x7e,
// the backslash, and in an attribute's name the equals sign are written \xHH.
// Hard links carry link=N; N counts groups in order of first appearance, so
// the text does not depend on inode numbers of the host. Contents appear as
// size and SHA-256 only.
//
// # Stability
//
// The API may change until version 1 of the module. The canonical order
// and the text form are part of it: a release that changes them says so.
package tree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
)

// Type is the type of a node.
type Type uint8

// The types of a node. The zero Type is invalid.
const (
	Regular Type = iota + 1
	Directory
	Symlink
	CharDevice
	BlockDevice
	FIFO
	Socket
)

// typeLetters are the letters of the text form, by Type.
const typeLetters = "?fdlcbps"

// String returns the letter of the text form: f, d, l, c, b, p or s, and ? for
// an invalid type.
func (t Type) String() string {
	if int(t) >= len(typeLetters) {
		t = 0
	}
	return typeLetters[t : t+1]
}

// Xattr is one extended attribute. Name is the full name with its namespace,
// such as "security.capability"; Value is as the getxattr system call returns
// it (for POSIX ACLs: the kernel's interchange format, ids of the image).
type Xattr struct {
	Name  string
	Value []byte
}

// Time is a moment: seconds since 1970-01-01 UTC, possibly negative, and
// nanoseconds 0 to 999999999 that count upwards from that second.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Compare returns -1, 0 or +1 as t is before, equal to or after u.
func (t Time) Compare(u Time) int {
	switch {
	case t.Sec < u.Sec || t.Sec == u.Sec && t.Nsec < u.Nsec:
		return -1
	case t == u:
		return 0
	}
	return 1
}

// Content is the content of a regular file. Open may be called any number of
// times, also concurrently, and each reader yields the same Size bytes.
//
// A Content may also implement [Sparse] or [Digester].
type Content interface {
	Open() (io.ReadCloser, error)
}

// Extent is a run of bytes of a file.
type Extent struct {
	Off, Len int64
}

// Sparse is implemented by a Content that has holes. The answer must be a
// function of the content alone, not of the file system that happens to store
// it, since it decides bytes of an image.
type Sparse interface {
	// Data returns the runs that hold data, ascending and disjoint, all
	// within the file; what lies between them reads as zeros. The result
	// must not be modified by the caller.
	Data() ([]Extent, error)
}

// Digester is implemented by a Content that knows the SHA-256 of its bytes.
type Digester interface {
	// SHA256 returns the digest, and false when it is not known.
	SHA256() ([32]byte, bool)
}

// Node is one name in a tree with all that a file system keeps about it.
type Node struct {
	Path     string // "." for the root, else clean and relative, such as "usr/bin/env"; any bytes but NUL
	Type     Type
	Mode     uint32 // permission bits with setuid, setgid and sticky: 0 to 07777
	UID, GID uint32
	MTime    Time
	Xattrs   []Xattr // sorted by name, names unique
	Target   string  // of a Symlink: not empty, no NUL
	// Inode is the identity of a hard-linked file: nodes with equal non-zero
	// values are one file and must agree in all but Path. 0 means not shared.
	// Always 0 for a Directory.
	Inode        uint64
	Major, Minor uint32  // of a CharDevice or BlockDevice
	Size         int64   // of a Regular file, in bytes
	Content      Content // of a Regular file; may be nil when Size is 0
}

// Name returns the last component of the path, "." for the root.
func (n *Node) Name() string { return n.Path[strings.LastIndexByte(n.Path, '/')+1:] }

// Parent returns the path of the directory that holds the node, "." for the
// root itself.
func (n *Node) Parent() string { return parentOf(n.Path) }

func parentOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}

// Errors that Add wraps, with the path in front.
var (
	ErrExist    = errors.New("path exists already")
	ErrNoParent = errors.New("parent directory is missing")
	ErrNotDir   = errors.New("parent is not a directory")
	ErrInvalid  = errors.New("invalid node")
)

// entry is a node in its place. There may be millions, most of them files.
type entry struct {
	Node
	at  int     // its place among the kids of its parent
	dir *folder // of a Directory
}

// folder is what only directories have.
type folder struct{ kids []*entry }

func newEntry(n Node) *entry {
	e := &entry{Node: n}
	if n.Type == Directory {
		e.dir = &folder{}
	}
	return e
}

// kids are what is in a directory; none are in what is no directory.
func (e *entry) kids() []*entry {
	if e.dir == nil {
		return nil
	}
	return e.dir.kids
}

// Tree is a set of nodes. The zero value is not usable; call [New].
//
// Methods that only read may be called concurrently with each other, but not
// with Add, Remove or changes of nodes.
type Tree struct {
	index map[string]*entry

	mu    sync.Mutex
	dirty map[*entry]struct{} // directories whose kids are not in order
}

// New returns a tree that holds only the root directory: mode 0755, owner
// 0:0, time 0.
func New() *Tree {
	root := newEntry(Node{Path: ".", Type: Directory, Mode: 0o755})
	return &Tree{index: map[string]*entry{".": root}, dirty: map[*entry]struct{}{}}
}

// Add adds a copy of n, its xattrs sorted. The parent must be in the tree and
// be a directory, and the path must be new. The error wraps one of the errors
// of this package and names the path.
func (t *Tree) Add(n Node) error {
	n.sortXattrs()
	if err := n.Check(); err != nil {
		return fmt.Errorf("add to tree: %q: %w: %w", n.Path, ErrInvalid, err)
	}
	if _, ok := t.index[n.Path]; ok {
		return fmt.Errorf("add to tree: %q: %w", n.Path, ErrExist)
	}
	parent, ok := t.index[n.Parent()]
	if !ok {
		return fmt.Errorf("add to tree: %q: %w", n.Path, ErrNoParent)
	}
	if parent.Type != Directory {
		return fmt.Errorf("add to tree: %q: %w", n.Path, ErrNotDir)
	}
	e, kids := newEntry(n), parent.dir.kids
	if e.at = len(kids); e.at > 0 && kids[e.at-1].Name() > e.Name() {
		t.dirty[parent] = struct{}{}
	}
	parent.dir.kids = append(kids, e)
	t.index[n.Path] = e
	return nil
}

// Lookup returns the node of a path, or nil. The node may be modified in
// place, except its Path and Type.
func (t *Tree) Lookup(path string) *Node {
	if e, ok := t.index[path]; ok {
		return &e.Node
	}
	return nil
}

// Remove removes a node with everything below it. Removing "." empties the
// tree but keeps the root itself; a path that is not there is ignored.
func (t *Tree) Remove(path string) {
	e, ok := t.index[path]
	if !ok {
		return
	}
	for _, k := range e.kids() {
		t.forget(k)
	}
	if e.dir != nil {
		e.dir.kids = nil
	}
	delete(t.dirty, e)
	if path == "." {
		return
	}
	delete(t.index, path)
	t.removeKid(t.index[e.Parent()], e)
}

// removeKid puts the last kid in the place of one, so that its time does not
// depend on how many there are.
func (t *Tree) removeKid(parent, e *entry) {
	kids := parent.dir.kids
	last := len(kids) - 1
	if e.at != last {
		moved := kids[last]
		kids[e.at], moved.at = moved, e.at
		t.dirty[parent] = struct{}{}
	}
	kids[last] = nil
	parent.dir.kids = kids[:last]
}

func (t *Tree) forget(e *entry) {
	stack := []*entry{e}
	for len(stack) > 0 {
		e = stack[len(stack)-1]
		stack = append(stack[:len(stack)-1], e.kids()...)
		delete(t.index, e.Path)
		delete(t.dirty, e)
	}
}

// Cut takes what is below a directory out of t and returns it as a tree of its
// own, whose root has the directory's metadata. The directory stays, empty: it
// is where the other tree is mounted. The error of a path that is not a
// directory wraps [ErrNotDir], that of one that is absent [ErrInvalid].
func (t *Tree) Cut(path string) (*Tree, error) {
	e, ok := t.index[path]
	switch {
	case !ok:
		return nil, fmt.Errorf("cut tree: %q: it is not there: %w", path, ErrInvalid)
	case e.Type != Directory || path == ".":
		return nil, fmt.Errorf("cut tree: %q: %w", path, ErrNotDir)
	}
	out := New()
	*out.Lookup(".") = e.Node
	out.Lookup(".").Path = "."
	var below []string
	for n := range t.under(e) {
		moved := *n
		moved.Path = strings.TrimPrefix(n.Path, path+"/")
		if err := out.Add(moved); err != nil {
			return nil, err
		}
		if n.Parent() == path {
			below = append(below, n.Path)
		}
	}
	for _, name := range below {
		t.Remove(name)
	}
	return out, nil
}

// Len returns the number of nodes, the root included.
func (t *Tree) Len() int { return len(t.index) }

// All yields every node in canonical order: bytewise by path component,
// parents first. Nodes may be modified in place, but the tree must not be
// changed during the iteration.
func (t *Tree) All() iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		t.sort()
		walk([]*entry{t.index["."]}, yield)
	}
}

// under yields every node below e, in canonical order.
func (t *Tree) under(e *entry) iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		t.sort()
		stack := slices.Clone(e.kids())
		slices.Reverse(stack)
		walk(stack, yield)
	}
}

// walk yields the entries of a stack, each followed by what is below it.
func walk(stack []*entry, yield func(*Node) bool) {
	for len(stack) > 0 {
		e := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if !yield(&e.Node) {
			return
		}
		for _, k := range slices.Backward(e.kids()) {
			stack = append(stack, k)
		}
	}
}

// Children yields the nodes directly in the directory path, by name. It
// yields nothing for a path that is absent or not a directory.
func (t *Tree) Children(path string) iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		e := t.index[path]
		if e == nil {
			return
		}
		t.sortKids(e)
		for _, k := range e.kids() {
			if !yield(&k.Node) {
				return
			}
		}
	}
}

// sort puts the children of every changed directory in order. It is guarded so
// that concurrent readers may cause it.
func (t *Tree) sort() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for e := range t.dirty {
		e.sort()
	}
	clear(t.dirty)
}

// sortKids does the same for one directory.
func (t *Tree) sortKids(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.dirty[e]; ok {
		e.sort()
		delete(t.dirty, e)
	}
}

func (e *entry) sort() {
	slices.SortFunc(e.dir.kids, func(a, b *entry) int { return strings.Compare(a.Name(), b.Name()) })
	for i, k := range e.dir.kids {
		k.at = i
	}
}

// Check reports what makes a node invalid by itself, apart from its place in a
// tree. Add calls it; a writer calls it again, since nodes may be modified.
func (n *Node) Check() error {
	if err := checkPath(n.Path); err != nil {
		return err
	}
	switch {
	case n.Type < Regular || n.Type > Socket:
		return fmt.Errorf("type %d is unknown", n.Type)
	case n.Mode > 0o7777:
		return fmt.Errorf("mode %#o is above 07777", n.Mode)
	case n.MTime.Nsec > 999_999_999:
		return fmt.Errorf("nanoseconds %d are above 999999999", n.MTime.Nsec)
	case n.Type == Directory && n.Inode != 0:
		return errors.New("a directory cannot be hard-linked")
	case n.Type != CharDevice && n.Type != BlockDevice && (n.Major != 0 || n.Minor != 0):
		return errors.New("only a device has a device number")
	}
	if err := n.checkContent(); err != nil {
		return err
	}
	return n.checkXattrs()
}

func (n *Node) checkContent() error {
	switch {
	case n.Type == Symlink && n.Target == "":
		return errors.New("symlink target is empty")
	case n.Type == Symlink && strings.IndexByte(n.Target, 0) >= 0:
		return errors.New("symlink target has a NUL byte")
	case n.Type != Symlink && n.Target != "":
		return errors.New("only a symlink has a target")
	case n.Type != Regular && (n.Size != 0 || n.Content != nil):
		return errors.New("only a regular file has content")
	case n.Size < 0:
		return fmt.Errorf("size %d is negative", n.Size)
	case n.Size > 0 && n.Content == nil:
		return errors.New("content is missing")
	}
	return nil
}

func compareXattrs(a, b Xattr) int { return strings.Compare(a.Name, b.Name) }

func (n *Node) sortXattrs() {
	if !slices.IsSortedFunc(n.Xattrs, compareXattrs) {
		n.Xattrs = slices.Clone(n.Xattrs)
		slices.SortFunc(n.Xattrs, compareXattrs)
	}
}

func (n *Node) checkXattrs() error {
	for i, x := range n.Xattrs {
		if x.Name == "" || strings.IndexByte(x.Name, 0) >= 0 {
			return fmt.Errorf("xattr name %q is not valid", x.Name)
		}
		if i > 0 && n.Xattrs[i-1].Name >= x.Name {
			return fmt.Errorf("xattr %q is there twice or out of order", x.Name)
		}
	}
	return nil
}

// checkPath accepts "." and clean relative paths.
func checkPath(p string) error {
	if p == "" || p[0] == '/' {
		return errors.New("path is not relative")
	}
	if strings.IndexByte(p, 0) >= 0 {
		return errors.New("path has a NUL byte")
	}
	if p == "." {
		return nil
	}
	for rest, more := p, true; more; {
		var c string
		c, rest, more = strings.Cut(rest, "/")
		if c == "" || c == "." || c == ".." {
			return errors.New("path is not clean")
		}
	}
	return nil
}

type memory []byte

// Bytes returns a Content that reads b, which must not be modified afterwards.
func Bytes(b []byte) Content { return memory(b) }

func (m memory) Open() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(m)), nil
}
