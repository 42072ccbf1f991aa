package ext4

// Extent trees (section "Extent Tree").
const (
	extentMagic    = 0xf30a
	extentHead     = 12 // bytes of struct ext4_extent_header
	extentSize     = 12 // bytes of an entry
	rootExtents    = 4  // entries that fit into an inode
	inodeBlockSize = 60 // bytes of i_block
)

// nodeExtents is the number of entries of a block, which ends with a checksum.
func (s *shape) nodeExtents() int { return (s.blockSize - extentHead - 4) / extentSize }

// indexBlocks is the number of blocks that a tree over n extents takes beside
// the root in the inode.
func (s *shape) indexBlocks(n uint64) (blocks uint64) {
	for node := uint64(s.nodeExtents()); n > rootExtents; {
		n = (n + node - 1) / node
		blocks += n
	}
	return blocks
}

// extentEntry is an entry of a leaf, or of an inner node when count is 0.
type extentEntry struct {
	logical uint32
	count   uint16
	block   uint64
}

func (e extentEntry) put(b []byte) {
	le.PutUint32(b[0:], e.logical) // ee_block, ei_block
	if e.count == 0 {
		le.PutUint32(b[4:], uint32(e.block))     // ei_leaf_lo
		le.PutUint16(b[8:], uint16(e.block>>32)) // ei_leaf_hi
		return
	}
	le.PutUint16(b[4:], e.count)             // ee_len
	le.PutUint16(b[6:], uint16(e.block>>32)) // ee_start_hi
	le.PutUint32(b[8:], uint32(e.block))     // ee_start_lo
}

// putNode writes a node with its header.
func putNode(b []byte, entries []extentEntry, limit, depth int) {
	le.PutUint16(b[0:], extentMagic)          // eh_magic
	le.PutUint16(b[2:], uint16(len(entries))) // eh_entries
	le.PutUint16(b[4:], uint16(limit))        // eh_max
	le.PutUint16(b[6:], uint16(depth))        // eh_depth
	for i, e := range entries {
		e.put(b[extentHead+i*extentSize:])
	}
}

// extentTree builds the tree of a file: the root for the inode, and the blocks
// below it from the leaves upwards, in the order in which they were placed.
func (l *Layout) extentTree(ino *inode) (root [inodeBlockSize]byte, blocks [][]byte) {
	data := l.segs[ino.segs : ino.segs+ino.dataSegs]
	entries := make([]extentEntry, len(data))
	for i, s := range data {
		entries[i] = extentEntry{s.logical, uint16(s.count), s.start}
	}
	seed := l.inodeSeed(ino.number)
	depth, node := 0, l.nodeExtents()
	for ; len(entries) > rootExtents; depth++ {
		var above []extentEntry
		for len(entries) > 0 {
			n := min(node, len(entries))
			b := make([]byte, l.blockSize)
			putNode(b, entries[:n], node, depth)
			tail := extentHead + node*extentSize
			le.PutUint32(b[tail:], crc32c(seed, b[:tail])) // et_checksum
			above = append(above, extentEntry{logical: entries[0].logical, block: l.indexBlock(ino, uint32(len(blocks)))})
			blocks = append(blocks, b)
			entries = entries[n:]
		}
		entries = above
	}
	putNode(root[:], entries, rootExtents, depth)
	return root, blocks
}

// treeBlocks is the number of blocks that the extent tree, or block map, of a
// placed file takes beside the inode.
func (s *shape) treeBlocks(runs []run, segs uint64) uint64 {
	if s.modern {
		return s.indexBlocks(segs)
	}
	return uint64(len(s.mapNodes(runs)))
}

// treeRoot makes i_block of a file with blocks.
func (l *Layout) treeRoot(ino *inode) (root [inodeBlockSize]byte) {
	if !l.modern {
		return l.newBlockMap(ino).root()
	}
	root, _ = l.extentTree(ino)
	return root
}

// indexBlock returns where the n-th block of a file's extent tree or map is.
func (l *Layout) indexBlock(ino *inode, n uint32) uint64 {
	first := ino.segs + ino.dataSegs
	for _, s := range l.segs[first : first+ino.indexSegs] {
		if n < s.logical+s.count {
			return s.start + uint64(n-s.logical)
		}
	}
	panic("BUG: the tree of a file is larger than planned")
}

// fileOf returns the file that a segment of data or index blocks belongs to.
func (l *Layout) fileOf(s segment) *inode {
	if s.owner == noIndex {
		return &l.journal
	}
	return &l.inodes[s.owner]
}
