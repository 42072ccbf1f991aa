package squashfs

import (
	"fmt"
	"io"
	"math"

	"cairn/fsbuild/tree"
)

// fileSystem is the state of one Write.
type fileSystem struct {
	p       Params
	w       io.WriterAt
	pos     int64 // where the next write goes
	enc     encoder
	summary Summary

	tree      *tree.Tree
	files     []*inode          // regular ones with content, in order
	inodes    map[string]*inode // by path
	count     uint32            // of inodes
	ids       []uint32
	idIndex   map[uint32]uint16
	fragments []fragment
	refs      []uint64 // of inodes, by number less one
	xattrs    xattrTable
}

// inode is a file with one or more names.
type inode struct {
	node   *tree.Node
	number uint32 // from 1
	links  uint32
	xattr  uint32 // index of its set of attributes
	ref    uint64 // its place in the inode table
	placed bool   // ref is set
	data   *data  // of a regular file
}

// data is where the content of a file is.
type data struct {
	start      int64    // of the blocks
	blocks     []uint32 // stored sizes, 0 for a block of zeros
	sparse     int64    // bytes in blocks of zeros
	fragment   uint32
	fragOffset uint32
}

// fragment is a squashfs_fragment_entry.
type fragment struct {
	start int64
	size  uint32
}

// plan checks the nodes and numbers the inodes: the children of a directory
// one after the other, so that the differences in its listing are small.
func (fs *fileSystem) plan(t *tree.Tree) (err error) {
	if fs.enc, err = fs.p.encoder(); err != nil {
		return err
	}
	if uint64(t.Len()) >= math.MaxUint32 {
		return fmt.Errorf("%w: %d files", ErrLimit, t.Len())
	}
	fs.tree = t
	fs.inodes = make(map[string]*inode, t.Len())
	fs.idIndex = map[uint32]uint16{}
	fs.xattrs.index = map[string]uint32{}
	linked := map[uint64]*inode{}
	if err := fs.add(t.Lookup("."), linked); err != nil {
		return err
	}
	for dir := range t.All() {
		if dir.Type != tree.Directory {
			continue
		}
		for n := range t.Children(dir.Path) {
			if err := fs.add(n, linked); err != nil {
				return err
			}
		}
	}
	for n := range t.All() { // contents go to the image in the tree's order
		ino := fs.inodes[n.Path]
		if ino.node == n && n.Type == tree.Regular {
			fs.files = append(fs.files, ino)
		}
	}
	fs.refs = make([]uint64, fs.count)
	fs.summary.Inodes = int64(fs.count)
	return nil
}

// add gives a node an inode, its own or one that another name has.
func (fs *fileSystem) add(n *tree.Node, linked map[uint64]*inode) error {
	if ino, ok := linked[n.Inode]; ok {
		ino.links++
		fs.inodes[n.Path] = ino
		return nil
	}
	if err := fs.p.check(n); err != nil {
		return fmt.Errorf("%q: %w", n.Path, err)
	}
	fs.count++
	ino := &inode{node: n, number: fs.count, links: 1}
	if n.Type == tree.Directory {
		ino.links = 2
		if n.Path != "." {
			fs.inodes[n.Parent()].links++
		}
	}
	for _, id := range []uint32{n.UID, n.GID} {
		if err := fs.addID(id); err != nil {
			return fmt.Errorf("%q: %w", n.Path, err)
		}
	}
	ino.xattr = fs.xattrs.add(n.Xattrs)
	if n.Inode != 0 {
		linked[n.Inode] = ino
	}
	fs.inodes[n.Path] = ino
	return nil
}

func (fs *fileSystem) addID(id uint32) error {
	if _, ok := fs.idIndex[id]; ok {
		return nil
	}
	if len(fs.ids) == maxIDs {
		return fmt.Errorf("%w: more than %d owners and groups", ErrLimit, len(fs.ids))
	}
	fs.idIndex[id] = uint16(len(fs.ids))
	fs.ids = append(fs.ids, id)
	return nil
}

// write writes b at the current place.
func (fs *fileSystem) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if _, err := fs.w.WriteAt(b, fs.pos); err != nil {
		return err
	}
	fs.pos += int64(len(b))
	return nil
}
