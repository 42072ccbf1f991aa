package fstest

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"sync"

	"cairn/fsbuild/tree"
)

// branch is a part of a desktop's /usr: a directory with levels of directories
// below it, and so many files in each of them.
type branch struct {
	dir      string
	width    []int // directories in each directory of a level
	files    int
	name     string // of a file, made from its number
	symlinks int    // percent of the files
	links    int    // percent that are further names of the file before
}

// usr has the proportions of /usr on a Debian desktop: few large directories of
// libraries, programs and manual pages, many small ones of documentation, icons
// that are half symlinks, and deep trees of fonts and modules.
var usr = []branch{
	{dir: "bin", files: 2500, name: "program-%d", symlinks: 10},
	{dir: "include", width: []int{150, 3}, files: 20, name: "header_%d.h"},
	{dir: "lib/git-core", files: 150, name: "git-command-%d", links: 95},
	{dir: "lib/modules/6.1.0-44-amd64/kernel", width: []int{8, 20, 5}, files: 5, name: "driver%d.ko"},
	{dir: "lib/python3/dist-packages", width: []int{300, 3, 2}, files: 8, name: "module%d.py"},
	{dir: "lib/x86_64-linux-gnu", files: 3000, name: "lib%d.so.1.2.3", symlinks: 45},
	{dir: "share/doc", width: []int{2200}, files: 4, name: "changelog.%d.gz", symlinks: 3},
	{dir: "share/icons", width: []int{4, 12, 9}, files: 60, name: "icon with a long-ish name %d.png", symlinks: 45},
	{dir: "share/locale", width: []int{90, 1}, files: 75, name: "program%d.mo"},
	{dir: "share/man", width: []int{9}, files: 1000, name: "page%d.3.gz", symlinks: 12},
	{dir: "share/texmf", width: []int{6, 8, 12, 8}, files: 7, name: "font%d.pfb"},
	{dir: "share/zoneinfo", width: []int{20}, files: 60, name: "City_%d", links: 30},
}

// Desktop returns a tree of the size and shape of a desktop's /usr, always the
// same: about 160,000 nodes with 650 MB of cheap content.
func Desktop() *tree.Tree {
	g := &generator{rng: rand.New(rand.NewPCG(2023, 0x757372)), t: tree.New()}
	*g.t.Lookup(".") = g.installed(tree.Node{Path: ".", Type: tree.Directory, Mode: 0o755})
	for _, b := range usr {
		for i, c := range b.dir {
			if c == '/' {
				g.add(g.installed(tree.Node{Path: b.dir[:i], Type: tree.Directory, Mode: 0o755}))
			}
		}
		g.grow(b, b.dir, b.width)
	}
	g.unlink()
	return g.t
}

// grow adds a directory of a branch with all that is below it.
func (g *generator) grow(b branch, dir string, width []int) {
	g.add(g.installed(tree.Node{Path: dir, Type: tree.Directory, Mode: 0o755}))
	var last tree.Node
	for i := range b.files {
		n := tree.Node{Path: path.Join(dir, fmt.Sprintf(b.name, i))}
		switch percent := g.rng.IntN(100); {
		case i > 0 && percent < b.links:
			last.Path, n = n.Path, last
		case i > 0 && percent < b.symlinks:
			n.Type, n.Mode = tree.Symlink, 0o777
			n.Target = path.Join(pick(g, ".", "../../other", "/usr/share/a/longer/path/than/an/inode/holds/"), path.Base(last.Path))
			n = g.installed(n)
		default:
			n.Type, n.Mode = tree.Regular, pick[uint32](g, 0o644, 0o644, 0o644, 0o755)
			n.Size = g.size()
			g.inode++
			n.Inode, n.Content = g.inode, noise{g.inode, n.Size}
			n = g.installed(n)
			last = n
		}
		g.add(n)
	}
	if len(width) > 0 {
		for i := range width[0] {
			g.grow(b, fmt.Sprintf("%s/directory%d", dir, i), width[1:])
		}
	}
}

// size is that of a file: most are small, few are of megabytes.
func (g *generator) size() int64 {
	if g.rng.IntN(1500) == 0 {
		return g.rng.Int64N(8 << 20)
	}
	return g.rng.Int64N(1 << (4 + g.rng.IntN(12)))
}

// installed gives a node the owner, time and attributes that a package's file
// has: rarely another than the rule.
func (g *generator) installed(n tree.Node) tree.Node {
	n.MTime.Sec = 1_400_000_000 + g.rng.Int64N(300_000_000)
	if g.rng.IntN(8) == 0 {
		n.MTime.Nsec = g.rng.Uint32N(1_000_000_000)
	}
	switch special := g.rng.IntN(400); {
	case n.Type == tree.Symlink:
	case special == 0:
		n.UID, n.GID = pick[uint32](g, 1000, 100_000), pick[uint32](g, 8, 50, 43, 100_000)
	case special == 1:
		n.Mode |= pick[uint32](g, 0o2000, 0o4000)
	case special < 5:
		g.attributes(&n)
	}
	return n
}

// noise is a content of random bytes that is cheap to make and that no other
// has.
type noise struct {
	seed uint64
	size int64
}

// Each block of a noise has its seed, its number, and this behind it.
var (
	noiseBlock  [4096 - 16]byte
	noiseFilled = sync.OnceFunc(func() {
		rng := rand.New(rand.NewPCG(1, 1))
		for i := 0; i < len(noiseBlock); i += 8 {
			binary.LittleEndian.PutUint64(noiseBlock[i:], rng.Uint64())
		}
	})
)

// Open returns a reader over the content.
func (n noise) Open() (io.ReadCloser, error) {
	noiseFilled()
	return io.NopCloser(io.LimitReader(&noiseReader{noise: n}, n.size)), nil
}

type noiseReader struct {
	noise
	number uint64
	left   []byte // of the block
}

func (r *noiseReader) Read(b []byte) (n int, err error) {
	for n < len(b) {
		if len(r.left) == 0 {
			block := binary.LittleEndian.AppendUint64(make([]byte, 0, 4096), r.seed)
			block = binary.LittleEndian.AppendUint64(block, r.number)
			r.left = append(block, noiseBlock[:]...)
			r.number++
		}
		k := copy(b[n:], r.left)
		n, r.left = n+k, r.left[k:]
	}
	return n, nil
}
