package squashfs

import (
	"context"
	"fmt"
	"math"
	"math/bits"

	"cairn/fsbuild/tree"
)

// Flags of the superblock.
const (
	magic            = 0x73717368
	flagAllFragments = 0x20 // tails of large files are in fragments too
	flagDuplicates   = 0x40
	flagExportable   = 0x80
	flagNoXattrs     = 0x200
)

// Types of inodes; the extended ones are seven above.
const (
	typeDir = 1 + iota
	typeFile
	typeSymlink
	typeBlock
	typeChar
	typeFIFO
	typeSocket
	extended = 7
)

// types are the types of inodes by tree.Type.
var types = [...]uint16{
	tree.Directory: typeDir, tree.Regular: typeFile, tree.Symlink: typeSymlink, tree.BlockDevice: typeBlock,
	tree.CharDevice: typeChar, tree.FIFO: typeFIFO, tree.Socket: typeSocket,
}

// super is what the superblock says of the tables.
type super struct {
	root                                          uint64
	ids, xattrs, inodes, dirs, fragments, exports int64
}

// writeTables writes everything behind the data, and the superblock.
func (fs *fileSystem) writeTables(ctx context.Context) error {
	b := &tables{fs: fs, inodes: meta{enc: fs.enc}, dirs: meta{enc: fs.enc}}
	if err := b.directory(ctx, fs.inodes["."]); err != nil {
		return err
	}
	var s super
	for _, t := range []struct {
		at *int64
		m  *meta
	}{{&s.inodes, &b.inodes}, {&s.dirs, &b.dirs}} {
		out, err := t.m.finish()
		if err != nil {
			return err
		}
		*t.at = fs.pos
		if err := fs.write(out); err != nil {
			return err
		}
	}
	s.root = fs.inodes["."].ref
	if err := fs.writeIndexes(&s); err != nil {
		return err
	}
	return fs.writeSuper(&s)
}

func (fs *fileSystem) writeIndexes(s *super) (err error) {
	var b []byte
	for _, f := range fs.fragments {
		b = le.AppendUint64(b, uint64(f.start))
		b = le.AppendUint32(b, f.size)
		b = le.AppendUint32(b, 0)
	}
	if s.fragments, err = fs.writeIndexed(b, nil); err != nil {
		return err
	}
	b = nil
	for _, ref := range fs.refs {
		b = le.AppendUint64(b, ref)
	}
	if s.exports, err = fs.writeIndexed(b, nil); err != nil {
		return err
	}
	b = nil
	for _, id := range fs.ids {
		b = le.AppendUint32(b, id)
	}
	if s.ids, err = fs.writeIndexed(b, nil); err != nil {
		return err
	}
	s.xattrs, err = fs.writeXattrs()
	return err
}

// writeSuper pads the image and writes struct squashfs_super_block.
func (fs *fileSystem) writeSuper(s *super) error {
	used := fs.pos
	if k := used % padding; k != 0 {
		if err := fs.write(make([]byte, padding-k)); err != nil {
			return err
		}
	}
	fs.summary.Used, fs.summary.Size = used, fs.pos
	flags := uint16(flagAllFragments | flagDuplicates | flagExportable)
	if s.xattrs < 0 {
		flags |= flagNoXattrs
	}
	b := le.AppendUint32(nil, magic)
	for _, v := range []uint32{fs.count, fs.p.stamp(), uint32(fs.p.BlockSize), uint32(len(fs.fragments))} {
		b = le.AppendUint32(b, v)
	}
	for _, v := range []uint16{uint16(fs.p.Compression), uint16(bits.TrailingZeros(uint(fs.p.BlockSize))), flags, uint16(len(fs.ids)), 4, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint64(b, s.root)
	for _, v := range []int64{used, s.ids, s.xattrs, s.inodes, s.dirs, s.fragments, s.exports} {
		b = le.AppendUint64(b, uint64(v))
	}
	_, err := fs.w.WriteAt(b, 0)
	return err
}

// tables builds the tables of inodes and directories.
type tables struct {
	fs     *fileSystem
	inodes meta
	dirs   meta
}

// listing is a directory that is being written.
type listing struct {
	size  int // bytes so far
	head  []byte
	count int // entries behind the current header
	base  uint32
	start uint32 // of the inodes' block
	meta  int    // metadata block in which the header is
	index []byte
	marks int // entries of index
}

// directory writes the inodes of a directory's children, those in
// subdirectories first, then its listing and its own inode.
func (b *tables) directory(ctx context.Context, dir *inode) error {
	type frame struct {
		ino  *inode
		subs []*inode
	}
	open := func(d *inode) *frame {
		f := &frame{ino: d}
		for n := range b.fs.tree.Children(d.node.Path) {
			if n.Type == tree.Directory {
				f.subs = append(f.subs, b.fs.inodes[n.Path])
			}
		}
		return f
	}
	for stack := []*frame{open(dir)}; len(stack) > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		top := stack[len(stack)-1]
		if len(top.subs) > 0 {
			stack = append(stack, open(top.subs[0]))
			top.subs = top.subs[1:]
			continue
		}
		stack = stack[:len(stack)-1]
		if err := b.close(top.ino); err != nil {
			return fmt.Errorf("%q: %w", top.ino.node.Path, err)
		}
	}
	return nil
}

// close writes a directory whose subdirectories are written.
func (b *tables) close(dir *inode) error {
	for n := range b.fs.tree.Children(dir.node.Path) {
		if ino := b.fs.inodes[n.Path]; !ino.placed && n.Type != tree.Directory {
			b.inode(ino)
		}
	}
	start, offset := b.dirs.place()
	l := &listing{}
	first := true
	for n := range b.fs.tree.Children(dir.node.Path) {
		b.entry(l, b.fs.inodes[n.Path], n.Name(), first)
		first = false
	}
	b.flush(l)
	if l.marks > math.MaxUint16 || l.size+3 > math.MaxUint32 {
		return fmt.Errorf("%w: a directory of %d bytes", ErrLimit, l.size)
	}
	b.dirInode(dir, l, start, offset)
	return nil
}

// entry adds a squashfs_dir_entry. A new squashfs_dir_header precedes it where
// the inode is in another block, too far from the first, after 256 entries,
// and in each further metadata block, where an index entry points to it.
func (b *tables) entry(l *listing, ino *inode, name string, first bool) {
	start := uint32(ino.ref >> 16)
	diff := int64(ino.number) - int64(l.base)
	at := (len(b.dirs.buf) + len(l.head)) / metaSize
	if first || start != l.start || diff != int64(int16(diff)) || l.count == 256 || at > 0 {
		b.flush(l)
		if !first && len(b.dirs.starts) != l.meta {
			l.mark(len(b.dirs.out), name)
		}
		l.head = append(l.head[:0], make([]byte, 12)...)
		l.count, l.base, l.start, l.meta = 0, ino.number, start, len(b.dirs.starts)
		diff = 0
	}
	l.count++
	l.head = le.AppendUint16(l.head, uint16(ino.ref))
	l.head = le.AppendUint16(l.head, uint16(diff))
	l.head = le.AppendUint16(l.head, types[ino.node.Type])
	l.head = le.AppendUint16(l.head, uint16(len(name)-1))
	l.head = append(l.head, name...)
}

// mark adds a squashfs_dir_index for the header that comes next.
func (l *listing) mark(block int, name string) {
	l.marks++
	l.index = le.AppendUint32(l.index, uint32(l.size))
	l.index = le.AppendUint32(l.index, uint32(block))
	l.index = le.AppendUint32(l.index, uint32(len(name)-1))
	l.index = append(l.index, name...)
}

// flush writes the current header and the entries behind it.
func (b *tables) flush(l *listing) {
	if l.count == 0 {
		return
	}
	le.PutUint32(l.head, uint32(l.count-1))
	le.PutUint32(l.head[4:], l.start)
	le.PutUint32(l.head[8:], l.base)
	b.dirs.write(l.head)
	l.size += len(l.head)
	l.count, l.head = 0, l.head[:0]
}

// header begins an inode: struct squashfs_base_inode. Extended inodes have
// room for attributes and what else is rare.
func (b *tables) header(ino *inode, ext bool) []byte {
	n := ino.node
	kind := types[n.Type]
	if ext {
		kind += extended
	}
	ino.ref, ino.placed = b.inodes.ref(), true
	b.fs.refs[ino.number-1] = ino.ref
	h := le.AppendUint16(nil, kind)
	h = le.AppendUint16(h, uint16(n.Mode))
	h = le.AppendUint16(h, b.fs.idIndex[n.UID])
	h = le.AppendUint16(h, b.fs.idIndex[n.GID])
	h = le.AppendUint32(h, uint32(b.fs.p.seconds(n)))
	return le.AppendUint32(h, ino.number)
}

func (b *tables) dirInode(ino *inode, l *listing, start, offset int) {
	parent := b.fs.count + 1 // of the root: a number that no inode has
	if ino.node.Path != "." {
		parent = b.fs.inodes[ino.node.Parent()].number
	}
	size := l.size + 3 // the format counts . and .. so
	ext := ino.xattr != none || l.marks > 0 || size > math.MaxUint16
	h := b.header(ino, ext)
	if ext {
		for _, v := range []uint32{ino.links, uint32(size), uint32(start), parent} {
			h = le.AppendUint32(h, v)
		}
		h = le.AppendUint16(h, uint16(l.marks))
		h = le.AppendUint16(h, uint16(offset))
		h = le.AppendUint32(h, ino.xattr)
		h = append(h, l.index...)
	} else {
		h = le.AppendUint32(h, uint32(start))
		h = le.AppendUint32(h, ino.links)
		h = le.AppendUint16(h, uint16(size))
		h = le.AppendUint16(h, uint16(offset))
		h = le.AppendUint32(h, parent)
	}
	b.inodes.write(h)
}

// inode writes the inode of what is no directory.
func (b *tables) inode(ino *inode) {
	n := ino.node
	if n.Type == tree.Regular {
		b.fileInode(ino)
		return
	}
	ext := ino.xattr != none
	h := le.AppendUint32(b.header(ino, ext), ino.links)
	switch n.Type {
	case tree.Symlink:
		h = le.AppendUint32(h, uint32(len(n.Target)))
		h = append(h, n.Target...)
	case tree.CharDevice, tree.BlockDevice: // new_encode_dev of linux/kdev_t.h
		h = le.AppendUint32(h, n.Minor&0xff|n.Major<<8|n.Minor&^0xff<<12)
	default: // FIFOs and sockets have nothing more
	}
	if ext {
		h = le.AppendUint32(h, ino.xattr)
	}
	b.inodes.write(h)
}

func (b *tables) fileInode(ino *inode) {
	d, size := ino.data, ino.node.Size
	ext := ino.xattr != none || ino.links > 1 || d.sparse > 0 || d.start > math.MaxUint32 || size > math.MaxUint32
	h := b.header(ino, ext)
	if ext {
		for _, v := range []int64{d.start, size, d.sparse} {
			h = le.AppendUint64(h, uint64(v))
		}
		for _, v := range []uint32{ino.links, d.fragment, d.fragOffset, ino.xattr} {
			h = le.AppendUint32(h, v)
		}
	} else {
		for _, v := range []uint32{uint32(d.start), d.fragment, d.fragOffset, uint32(size)} {
			h = le.AppendUint32(h, v)
		}
	}
	for _, v := range d.blocks {
		h = le.AppendUint32(h, v)
	}
	b.inodes.write(h)
}
