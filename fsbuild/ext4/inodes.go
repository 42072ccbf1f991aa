package ext4

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"cairn/fsbuild/tree"
)

// noIndex marks the absence of an index into a slice of the layout.
const noIndex = math.MaxUint32

// inode is one file of the layout. Its number is its index in Layout.inodes
// plus firstInode, except for the root and the journal.
type inode struct {
	node       *tree.Node // the first name of the file in canonical order
	blocks     uint64     // blocks that the file takes, xattr block included
	number     uint32
	links      uint32
	dir        uint32 // index of a directory's entries, else noIndex
	xattr      uint32 // index of an xattr block, else noIndex
	segs       uint32 // index of the first segment; data first, then index blocks
	dataSegs   uint32 // number of segments of data
	indexSegs  uint32 // number of segments of extent index blocks
	sizeBlocks uint32 // of a directory or slow symlink: its blocks
}

// name is one directory entry: a name of the tree and the file behind it.
type name struct {
	node  *tree.Node
	inode uint32 // index in Layout.inodes
}

// directory is the entries of one directory.
type directory struct {
	inode   uint32   // index in Layout.inodes
	parent  uint32   // index in Layout.inodes
	entries []uint32 // indices in Layout.names: by name, or by hash when indexed
	subdirs uint32
	indexed bool
}

// collector turns a tree into inodes, names and directories.
type collector struct {
	l     *Layout
	links map[uint64]uint32 // tree's Inode → index of inode
	stack []uint32          // directories from the root to the current one, by depth
	kids  []uint32          // by name: index of its directory
}

// collect fills the layout's inodes, names and directories and refuses nodes
// that the format cannot hold. Inodes are numbered in canonical order, except
// that the root is 2 and lost+found is 11.
func (l *Layout) collect(t *tree.Tree) error {
	n := t.Len() + 1 // and lost+found: what grew by itself would leave its former selves behind
	l.inodes, l.names = make([]inode, 0, n), make([]name, 0, n)
	c := collector{l: l, links: map[uint64]uint32{}, kids: make([]uint32, 0, n)}
	c.addRoot(t)
	for n := range t.All() {
		if err := c.add(n); err != nil {
			return fmt.Errorf("%q: %w", n.Path, err)
		}
	}
	if len(l.inodes) > math.MaxUint32-firstInode {
		return fmt.Errorf("%d files, the limit is 2^32-1 inodes", len(l.inodes))
	}
	return c.fillDirectories()
}

// addRoot gives the root and lost+found their places: index 0 and 1.
func (c *collector) addRoot(t *tree.Tree) {
	l := c.l
	c.newDirectory(t.Lookup("."), rootInode, 0)
	lost := t.Lookup("lost+found")
	if lost == nil {
		lost = &tree.Node{Path: "lost+found", Type: tree.Directory, Mode: 0o700, MTime: l.stamp}
		c.names(lost, c.newDirectory(lost, firstInode, 0), 0)
	} else if lost.Type == tree.Directory {
		c.newDirectory(lost, firstInode, 0)
	}
}

// newDirectory adds the inode of a directory.
func (c *collector) newDirectory(n *tree.Node, number, parent uint32) uint32 {
	i := c.newInode(n, number)
	c.l.inodes[i].dir = uint32(len(c.l.dirs))
	c.l.dirs = append(c.l.dirs, directory{inode: i, parent: parent})
	return i
}

func (c *collector) newInode(n *tree.Node, number uint32) uint32 {
	c.l.inodes = append(c.l.inodes, inode{node: n, number: number, dir: noIndex, xattr: noIndex})
	return uint32(len(c.l.inodes) - 1)
}

// names adds a directory entry to directory dir.
func (c *collector) names(n *tree.Node, inode, dir uint32) {
	c.l.names = append(c.l.names, name{n, inode})
	c.kids = append(c.kids, dir)
	c.l.inodes[inode].links++
	if n.Type == tree.Directory {
		c.l.dirs[dir].subdirs++
	}
}

// add adds one node. Its parent is the last directory one level up, since the
// order is canonical.
func (c *collector) add(n *tree.Node) error {
	if err := c.l.checkNode(n); err != nil {
		return err
	}
	depth := strings.Count(n.Path, "/")
	if n.Path == "." {
		c.stack = append(c.stack, c.l.inodes[0].dir)
		return nil
	}
	if depth >= len(c.stack) || c.dirPath(c.stack[depth]) != n.Parent() {
		return tree.ErrNotDir
	}
	dir := c.stack[depth]
	i, err := c.file(n, c.l.dirs[dir].inode)
	if err != nil {
		return err
	}
	c.names(n, i, dir)
	if n.Type == tree.Directory {
		c.stack = append(c.stack[:depth+1], c.l.inodes[i].dir)
	}
	return nil
}

func (c *collector) dirPath(dir uint32) string { return c.l.inodes[c.l.dirs[dir].inode].node.Path }

// file returns the inode of a node, a new one unless it is a further link.
func (c *collector) file(n *tree.Node, parent uint32) (uint32, error) {
	l := c.l
	if n.Path == "lost+found" {
		if n.Type != tree.Directory {
			return 0, fmt.Errorf("type is %s, but lost+found must be a directory", n.Type)
		}
		return 1, nil
	}
	if i, ok := c.links[n.Inode]; ok && n.Inode != 0 {
		first := &l.inodes[i]
		if most := l.maxLinks(); first.links == most {
			return 0, fmt.Errorf("more than %d hard links", most)
		}
		return i, sameFile(first.node, n)
	}
	number := uint32(len(l.inodes)) + firstInode - 1
	if n.Type == tree.Directory {
		return c.newDirectory(n, number, parent), nil
	}
	i := c.newInode(n, number)
	if n.Inode != 0 {
		c.links[n.Inode] = i
	}
	return i, nil
}

// sameFile checks that two names of one file agree.
func sameFile(a, b *tree.Node) error {
	differ := ""
	switch {
	case a.Type != b.Type:
		differ = "type"
	case a.Mode != b.Mode:
		differ = "mode"
	case a.UID != b.UID || a.GID != b.GID:
		differ = "owner"
	case a.MTime != b.MTime:
		differ = "time"
	case a.Size != b.Size || a.Target != b.Target || a.Major != b.Major || a.Minor != b.Minor:
		differ = "content"
	case !slices.EqualFunc(a.Xattrs, b.Xattrs, func(x, y tree.Xattr) bool {
		return x.Name == y.Name && string(x.Value) == string(y.Value)
	}):
		differ = "xattrs"
	default:
		return nil
	}
	return fmt.Errorf("hard link of %q differs from it in %s", a.Path, differ)
}

// checkNode refuses what the format cannot hold, apart from xattrs.
func (s *shape) checkNode(n *tree.Node) error {
	if err := n.Check(); err != nil {
		return err
	}
	switch {
	case len(n.Name()) > maxName:
		return fmt.Errorf("name has %d bytes, the limit is %d", len(n.Name()), maxName)
	case n.Size > s.maxFileSize():
		return fmt.Errorf("size %d is above the limit %d", n.Size, s.maxFileSize())
	case len(n.Target) >= s.blockSize:
		return fmt.Errorf("symlink target has %d bytes, the limit is %d", len(n.Target), s.blockSize-1)
	case n.Major > 0xfff || n.Minor > 0xfffff:
		return fmt.Errorf("device %d:%d is above the limit 4095:1048575", n.Major, n.Minor)
	case n.MTime.Sec < minSeconds || n.MTime.Sec > s.maxTime():
		return fmt.Errorf("time %d s is not from 1901-12-13 (%d s) to %s (%d s)", n.MTime.Sec, int64(minSeconds),
			time.Unix(s.maxTime(), 0).UTC().Format(time.DateOnly), s.maxTime())
	}
	return nil
}

// fillDirectories hands each directory its entries, by name, all cut from one
// array.
func (c *collector) fillDirectories() error {
	l := c.l
	counts := make([]uint32, len(l.dirs))
	for _, d := range c.kids {
		counts[d]++
	}
	all := make([]uint32, len(c.kids))
	for i := range l.dirs {
		l.dirs[i].entries, all = all[:0:counts[i]], all[counts[i]:]
	}
	for i, d := range c.kids {
		l.dirs[d].entries = append(l.dirs[d].entries, uint32(i))
	}
	for i := range l.dirs {
		d := &l.dirs[i]
		links, err := l.dirLinks(d)
		if err != nil {
			return fmt.Errorf("%q: %w", l.inodes[d.inode].node.Path, err)
		}
		l.inodes[d.inode].links = links
		l.sortEntries(d)
	}
	return nil
}

// dirLinks is the link count of a directory: its name, its own "." and the
// ".." of each subdirectory; 1 when that is too many (dir_nlink).
func (s *shape) dirLinks(d *directory) (uint32, error) {
	switch most := s.maxLinks(); {
	case d.subdirs+2 <= most:
		return d.subdirs + 2, nil
	case !s.modern:
		return 0, fmt.Errorf("%d subdirectories, the limit of %v is %d", d.subdirs, s.kind, most-2)
	}
	return 1, nil
}

// sortEntries brings entries into the order of names: a lost+found that the
// tree lacks was added first.
func (l *Layout) sortEntries(d *directory) {
	slices.SortFunc(d.entries, func(a, b uint32) int {
		return strings.Compare(l.names[a].node.Name(), l.names[b].node.Name())
	})
}
