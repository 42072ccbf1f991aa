// Package fstest helps to test writers of file systems: it generates trees
// from a seed, with everything in them that writers get wrong, and a content
// with holes. It is for tests only.
package fstest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"

	"cairn/fsbuild/tree"
)

// Generate returns a tree that is a function of the seed alone. Every tenth
// seed gives a directory of more than 3000 entries, every tenth a deep chain
// of directories. Nothing in it is beyond the limits of ext4.
func Generate(seed uint64) *tree.Tree {
	g := &generator{
		rng:  rand.New(rand.NewPCG(seed, 0x63616972)),
		t:    tree.New(),
		dirs: []string{"."},
	}
	*g.t.Lookup(".") = g.decorate(tree.Node{Path: ".", Type: tree.Directory})
	for range 20 + g.rng.IntN(150) {
		g.addAny()
	}
	switch seed % 10 {
	case 3:
		g.addWide(3000 + g.rng.IntN(2000))
	case 7:
		g.addDeep(40 + g.rng.IntN(60))
	}
	g.unlink()
	return g.t
}

// unlink takes the identity from files that got no second name.
func (g *generator) unlink() {
	names := map[uint64]int{}
	for n := range g.t.All() {
		names[n.Inode]++
	}
	for n := range g.t.All() {
		if names[n.Inode] == 1 {
			n.Inode = 0
		}
	}
}

type generator struct {
	rng   *rand.Rand
	t     *tree.Tree
	dirs  []string
	links []tree.Node // what may get further names
	inode uint64
}

func pick[T any](g *generator, of ...T) T { return of[g.rng.IntN(len(of))] }

// add adds a node unless its name is taken.
func (g *generator) add(n tree.Node) bool {
	err := g.t.Add(n)
	if err != nil && !errors.Is(err, tree.ErrExist) {
		panic("BUG: generated an invalid node: " + err.Error())
	}
	return err == nil
}

func (g *generator) join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

func (g *generator) addAny() {
	n := tree.Node{Path: g.join(pick(g, g.dirs...), g.name())}
	switch k := g.rng.IntN(20); {
	case k < 5:
		n.Type = tree.Directory
	case k < 12:
		n.Type = tree.Regular
		g.fill(&n)
	case k < 15:
		n.Type = tree.Symlink
		n.Target = strings.Repeat("t", pick(g, 1, 10, 58, 59, 60, 61, 1000, 4095))
	case k == 15:
		n.Type = pick(g, tree.CharDevice, tree.BlockDevice)
		n.Major, n.Minor = pick[uint32](g, 0, 5, 255, 256, 4095), pick[uint32](g, 0, 1, 255, 256, 1<<20-1)
	case k == 16:
		n.Type = pick(g, tree.FIFO, tree.Socket)
	case len(g.links) > 0:
		g.addLinks()
		return
	default:
		n.Type = tree.Regular
	}
	n = g.decorate(n)
	if n.Type != tree.Directory && g.rng.IntN(4) == 0 {
		g.inode++
		n.Inode = g.inode
	}
	switch {
	case !g.add(n):
	case n.Type == tree.Directory:
		g.dirs = append(g.dirs, n.Path)
	case n.Inode != 0:
		g.links = append(g.links, n)
	}
}

// addLinks gives a file more names, sometimes very many.
func (g *generator) addLinks() {
	n := pick(g, g.links...)
	for range pick(g, 1, 1, 2, 300) {
		n.Path = g.join(pick(g, g.dirs...), g.name())
		g.add(n)
	}
}

func (g *generator) addWide(count int) {
	dir := tree.Node{Path: "wide " + g.name(), Type: tree.Directory, Mode: 0o755}
	if len(dir.Path) > 255 {
		dir.Path = "wide"
	}
	g.add(dir)
	long := strings.Repeat("n", g.rng.IntN(200))
	for i := range count {
		g.add(tree.Node{Path: fmt.Sprintf("%s/%d%s", dir.Path, i, long), Type: tree.Regular, Mode: 0o644})
	}
}

func (g *generator) addDeep(depth int) {
	path := "deep"
	for range depth {
		g.add(g.decorate(tree.Node{Path: path, Type: tree.Directory}))
		path += "/" + pick(g, "d", "e", strings.Repeat("x", 30))
	}
}

// name makes names of any bytes that are allowed, most of them harmless.
func (g *generator) name() string {
	switch g.rng.IntN(12) {
	case 0:
		return pick(g, "...", "-rf", " ", "a b", "new\nline", "tab\t", `back\slash`, `quo"te`, "*", "\x7f", "\xff\xfe", "ümlaut", "lost+found ")
	case 1:
		return strings.Repeat(string(rune('a'+g.rng.IntN(26))), 200+g.rng.IntN(56))
	case 2:
		b := make([]byte, 1+g.rng.IntN(40))
		for i := range b {
			for b[i] == 0 || b[i] == '/' {
				b[i] = byte(g.rng.Uint32())
			}
		}
		if s := string(b); s != "." && s != ".." {
			return s
		}
	}
	return fmt.Sprintf("%c%d", 'a'+g.rng.IntN(26), g.rng.IntN(10_000))
}

// decorate gives a node owner, mode, time and attributes.
func (g *generator) decorate(n tree.Node) tree.Node {
	n.Mode = pick[uint32](g, 0, 0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0o7777)
	if n.Type == tree.Symlink {
		n.Mode = 0o777
	}
	n.UID = pick[uint32](g, 0, 1, 1000, 65534, 65535, 65536, 1<<31, 1<<32-2)
	n.GID = pick[uint32](g, 0, 1, 1000, 65534, 65535, 65536, 1<<31, 1<<32-2)
	// not 2310 to 2378, which e2fsck takes for damage
	n.MTime.Sec = pick[int64](g, -1<<31, -1, 0, 1, 1_700_000_000, 1<<31-1, 1<<31, 1<<32-1, 1<<32, 1<<33, 10_737_418_239, 15_032_385_535)
	n.MTime.Nsec = pick[uint32](g, 0, 1, 123_456_789, 999_999_999)
	g.attributes(&n)
	return n
}

func (g *generator) attributes(n *tree.Node) {
	set := func(name string, value []byte) { n.Xattrs = append(n.Xattrs, tree.Xattr{Name: name, Value: value}) }
	isFile := n.Type == tree.Regular
	userOK := isFile || n.Type == tree.Directory
	switch g.rng.IntN(12) {
	case 0:
		set("security.test", g.bytes(pick(g, 1, 20, 60)))
	case 1:
		set("trusted.large", g.bytes(pick(g, 200, 3000)))
	case 2: // equal for many files, so that they share a block
		set("trusted.shared", bytes.Repeat([]byte("shared"), 30))
	case 3:
		if isFile {
			set("security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
		}
	case 4:
		if n.Type != tree.Symlink {
			set("system.posix_acl_access", acl(n.Mode, g.rng.IntN(12)))
		}
	case 5:
		if n.Type == tree.Directory {
			set("system.posix_acl_default", acl(n.Mode, 2))
		}
	case 6:
		if userOK {
			for i := range 1 + g.rng.IntN(12) {
				set(fmt.Sprintf("user.attr%02d", i), g.bytes(g.rng.IntN(120)))
			}
		}
	case 7: // more than a block holds: inode and block are used
		if userOK {
			set("user.big", g.bytes(3990))
			set("user.small", g.bytes(60))
		}
	}
}

func (g *generator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.rng.Uint32())
	}
	return b
}

// acl makes a valid ACL in the form of the system call, for a mode, with named
// users.
func acl(mode uint32, users int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	entry := func(tag uint16, perm, id uint32) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, uint16(perm&7))
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	const none = 1<<32 - 1
	entry(0x01, mode>>6, none)
	for i := range users {
		entry(0x02, uint32(i), uint32(1000+i*100_000))
	}
	entry(0x04, 5, none)
	entry(0x08, 4, 70_000)
	entry(0x10, mode>>3, none)
	entry(0x20, mode, none)
	return b
}

// fill gives a regular file a content, sometimes with holes.
func (g *generator) fill(n *tree.Node) {
	n.Size = pick[int64](g, 0, 1, 100, 4095, 4096, 4097, 10_000, 65_536, 300_000)
	if g.rng.IntN(60) == 0 {
		n.Size = 3_000_000
	}
	b := g.bytes(int(min(n.Size, 8192)))
	data := bytes.Repeat(b, int(n.Size)/max(len(b), 1)+1)[:n.Size]
	if n.Size < 10_000 || g.rng.IntN(3) > 0 {
		n.Content = tree.Bytes(data)
		return
	}
	h := &Holes{Bytes: n.Size, CanSeek: g.rng.IntN(2) == 0}
	for off := int64(g.rng.IntN(9000)); off < n.Size; {
		size := min(int64(1+g.rng.IntN(9000)), n.Size-off)
		h.Runs = append(h.Runs, Run{off, data[off : off+size]})
		off += size + int64(g.rng.IntN(20_000))
	}
	n.Content = h
}

// Run is some data of a content with holes.
type Run struct {
	Off  int64
	Data []byte
}

// Holes is a content of so many bytes that is zero except for its runs, which
// are ascending and disjoint.
type Holes struct {
	Bytes   int64
	Runs    []Run
	CanSeek bool // readers implement io.Seeker
}

var _ tree.Sparse = (*Holes)(nil)

// Data returns the runs.
func (h *Holes) Data() ([]tree.Extent, error) {
	e := make([]tree.Extent, len(h.Runs))
	for i, r := range h.Runs {
		e[i] = tree.Extent{Off: r.Off, Len: int64(len(r.Data))}
	}
	return e, nil
}

// Open returns a reader over data and holes.
func (h *Holes) Open() (io.ReadCloser, error) {
	r := &holeReader{h: h}
	if h.CanSeek {
		return seekReader{r}, nil
	}
	return r, nil
}

type holeReader struct {
	h   *Holes
	off int64
}

func (r *holeReader) Close() error { return nil }

func (r *holeReader) Read(b []byte) (int, error) {
	if r.off >= r.h.Bytes {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), r.h.Bytes-r.off))
	clear(b[:n])
	for _, run := range r.h.Runs {
		start, end := max(run.Off, r.off), min(run.Off+int64(len(run.Data)), r.off+int64(n))
		if start < end {
			copy(b[start-r.off:end-r.off], run.Data[start-run.Off:])
		}
	}
	r.off += int64(n)
	return n, nil
}

type seekReader struct{ *holeReader }

func (r seekReader) Seek(off int64, _ int) (int64, error) {
	r.off = off
	return off, nil
}
