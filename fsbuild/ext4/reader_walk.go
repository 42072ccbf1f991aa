package ext4

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"cairn/fsbuild/tree"
)

// What a tree costs in memory, for the budget.
const (
	budgetStart  = 64 << 20
	budgetFactor = 64 // bytes of memory for a byte of metadata
	nodeCost     = 512
	xattrCost    = 64
)

// budget bounds the memory that hostile metadata can make a tree take: long
// paths of deep directories, large attributes that many files share.
type budget int64

func (b *budget) earn(n int) { *b += budget(n) * budgetFactor }

func (b *budget) spend(n int) error {
	if *b -= budget(n); *b < 0 {
		return unsupported("paths and attributes need more memory than %d MiB and %d times the metadata", budgetStart>>20, budgetFactor)
	}
	return nil
}

// walker reads the metadata of all files.
type walker struct {
	r           *Reader
	t           *tree.Tree
	cache       *chunkCache
	tables      map[uint64]uint64   // by group: its inode table
	seen        map[uint64][]byte   // by group: bits of the inodes that were read
	links       map[uint64]struct{} // inodes with more than one name
	blocks      map[uint64]struct{} // of directories and of block maps
	xattrBlocks map[uint64][]tree.Xattr
	xattrInodes map[uint32][]byte
	budget      budget
	stack       []openDir
}

// openDir is a directory whose names are to be read.
type openDir struct {
	path  string
	inode *foundInode
}

// Tree reads all metadata and returns the tree, whose contents are read when
// they are opened. Each call makes a new tree. Reading stops early when ctx is
// done. The error names the path, and wraps [ErrCorrupt] or [ErrUnsupported]
// unless it is one of the io.ReaderAt or of ctx.
//
// The contents of regular files implement [tree.Sparse], unless the inode
// holds them: holes are the image's.
func (r *Reader) Tree(ctx context.Context) (*tree.Tree, error) {
	w := &walker{
		r: r, t: tree.New(), cache: newChunkCache(&r.dev),
		tables: map[uint64]uint64{}, seen: map[uint64][]byte{}, links: map[uint64]struct{}{}, blocks: map[uint64]struct{}{},
		xattrBlocks: map[uint64][]tree.Xattr{}, xattrInodes: map[uint32][]byte{},
		budget: budgetStart,
	}
	if err := w.walk(ctx); err != nil {
		return nil, fmt.Errorf("read ext4: %w", err)
	}
	return w.t, nil
}

func (w *walker) walk(ctx context.Context) error {
	if err := w.add(".", rootInode); err != nil {
		return fmt.Errorf("%q: %w", ".", err)
	}
	for len(w.stack) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		d := w.stack[len(w.stack)-1]
		w.stack = w.stack[:len(w.stack)-1]
		list, err := w.entries(d.inode)
		if err != nil {
			return fmt.Errorf("%q: %w", d.path, err)
		}
		if err := w.addAll(d.path, list); err != nil {
			return err
		}
	}
	for n := range w.t.All() {
		if _, ok := w.links[n.Inode]; !ok {
			n.Inode = 0
		}
	}
	return nil
}

// addAll adds what a directory holds, in the order of inodes, which are then
// read in a row.
func (w *walker) addAll(dir string, list []dirEntry) error {
	if dir == "lost+found" && len(list) == 0 && isLostFound(w.t.Lookup(dir)) {
		w.t.Remove(dir)
		return nil
	}
	slices.SortFunc(list, func(a, b dirEntry) int {
		return cmp.Or(cmp.Compare(a.number, b.number), strings.Compare(a.name, b.name))
	})
	for _, e := range list {
		path := e.name
		if dir != "." {
			path = dir + "/" + e.name
		}
		var err error
		if e.number < w.r.sb.firstInode {
			err = corrupt("inode %d is reserved", e.number)
		} else {
			err = w.add(path, e.number)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
	}
	return nil
}

// isLostFound tells whether an empty directory is as every writer makes it;
// the time is the writer's own.
func isLostFound(n *tree.Node) bool {
	return n.Mode == 0o700 && n.UID == 0 && n.GID == 0 && len(n.Xattrs) == 0
}

// inode reads an inode through the cache.
func (w *walker) inode(number uint32) (*foundInode, error) {
	if err := w.r.checkNumber(number); err != nil {
		return nil, err
	}
	g := uint64(number-1) / uint64(w.r.sb.inodesPerGroup)
	table, ok := w.tables[g]
	if !ok {
		var err error
		if table, err = w.r.inodeTable(w.cache, g); err != nil {
			return nil, err
		}
		w.tables[g] = table
	}
	return w.r.inode(w.cache, number, table)
}

// first tells whether an inode is read for the first time.
func (w *walker) first(number uint32) bool {
	g, i := uint64(number-1)/uint64(w.r.sb.inodesPerGroup), (number-1)%w.r.sb.inodesPerGroup
	bits := w.seen[g]
	if bits == nil {
		bits = make([]byte, (w.r.sb.inodesPerGroup+7)/8)
		w.seen[g] = bits
	}
	if bits[i/8]>>(i%8)&1 != 0 {
		return false
	}
	bits[i/8] |= 1 << (i % 8)
	return true
}

// add adds one name to the tree, and a directory to the stack.
func (w *walker) add(path string, number uint32) error {
	n, err := w.inode(number)
	if err != nil {
		return err
	}
	first := w.first(number)
	switch {
	case first:
		w.budget.earn(w.r.sb.inodeSize)
	case n.isDir():
		return corrupt("directory has two names, inode %d", number)
	default:
		w.links[uint64(number)] = struct{}{}
	}
	if err := w.budget.spend(nodeCost + len(path)); err != nil {
		return err
	}
	node, err := w.node(path, n)
	if err != nil {
		return err
	}
	if node.Type == tree.Directory {
		w.stack = append(w.stack, openDir{path, n})
	}
	if path == "." {
		*w.t.Lookup(".") = node
		err = node.Check()
		if err == nil && node.Type != tree.Directory {
			err = tree.ErrNotDir
		}
	} else {
		err = w.t.Add(node)
	}
	if err != nil {
		return corrupt("%w", err)
	}
	return nil
}

// node makes a node of an inode.
func (w *walker) node(path string, n *foundInode) (tree.Node, error) {
	node := tree.Node{
		Path: path, Type: n.nodeType(), Mode: uint32(n.mode & 0o7777),
		UID: n.uid, GID: n.gid, MTime: n.mtime,
	}
	switch {
	case n.flags&inodeEncrypted != 0:
		return node, unsupported("encrypted file")
	case n.flags&inodeVerity != 0:
		return node, unsupported("file with fs-verity")
	case n.flags&inodeCompressed != 0:
		return node, unsupported("compressed file")
	case n.flags&inodeEA != 0:
		return node, corrupt("inode %d holds the value of an attribute", n.number)
	}
	if node.Type != tree.Directory {
		node.Inode = uint64(n.number)
	}
	var err error
	if node.Xattrs, err = w.xattrs(n); err != nil {
		return node, err
	}
	switch node.Type {
	case tree.Regular:
		node.Size = n.size
		node.Content, err = w.content(n)
	case tree.Symlink:
		node.Target, err = w.target(n)
	case tree.CharDevice, tree.BlockDevice:
		node.Major, node.Minor = n.device()
	default: // nothing more; Add refuses an unknown type
	}
	return node, err
}

// content returns the content of a regular file.
func (w *walker) content(n *foundInode) (tree.Content, error) {
	if n.flags&inodeInline == 0 {
		return &storedContent{r: w.r, m: n.mapping}, nil
	}
	b, err := w.inlineData(n)
	if int64(len(b)) < n.size {
		return &inlineContent{b, n.size}, err
	}
	return tree.Bytes(b), err
}

// target returns the target of a symlink (section "Symbolic Links").
func (w *walker) target(n *foundInode) (string, error) {
	if n.size > longestLink {
		return "", corrupt("symlink target has %d bytes, the limit is %d", n.size, longestLink)
	}
	var b []byte
	var err error
	switch {
	case n.flags&inodeInline != 0:
		b, err = w.inlineData(n)
	case n.flags&flagExtents == 0 && n.size < fastSymlink:
		b = n.root[:n.size]
	default:
		b, err = w.r.whole(&n.mapping, longestLink, w.blocks)
	}
	switch {
	case err != nil:
		return "", err
	case int64(len(b)) != n.size:
		return "", corrupt("symlink target has %d bytes, not %d", len(b), n.size)
	}
	return string(b), w.budget.spend(len(b))
}
