package ext4

import (
	"cmp"
	"slices"
)

// Block maps of ext2 and ext3 (section "Direct/Indirect Block Addressing"):
// twelve blocks in the inode, then trees of one, two and three levels whose
// blocks are arrays of block numbers. A hole has the number 0, and a map block
// of holes alone is left out.

// mapNode is one block of a map.
type mapNode struct {
	tree    uint8  // 1 to 3: its levels
	level   uint8  // 1: its entries are blocks of the file
	logical uint64 // block of the file that the first entry leads to
}

// order is that in which map blocks are placed: by tree, from the root of it
// downwards.
func (n mapNode) order(m mapNode) int {
	return cmp.Or(cmp.Compare(n.tree, m.tree), cmp.Compare(m.level, n.level), cmp.Compare(n.logical, m.logical))
}

// mapNodes lists the blocks of the map of a file with such data.
func (s *shape) mapNodes(runs []run) (nodes []mapNode) {
	base, span := uint64(directBlocks), uint64(1)
	for tree := uint8(1); tree <= mapLevels; tree++ {
		span *= s.pointers()
		unit := span
		for level := tree; level > 0; level-- {
			for _, r := range runs {
				start, end := max(r.start, base), min(r.end, base+span)
				for at := base + (start-base)/unit*unit; start < end && at < end; at += unit {
					n := mapNode{tree, level, at}
					if len(nodes) == 0 || nodes[len(nodes)-1] != n {
						nodes = append(nodes, n)
					}
				}
			}
			unit /= s.pointers()
		}
		base += span
	}
	return nodes
}

// pointers is the number of entries of a map block.
func (s *shape) pointers() uint64 { return uint64(s.blockSize / 4) }

// blockMap makes the map of one placed file.
type blockMap struct {
	l     *Layout
	ino   *inode
	segs  []segment // of data
	nodes []mapNode
}

func (l *Layout) newBlockMap(ino *inode) *blockMap {
	m := &blockMap{l: l, ino: ino, segs: l.segs[ino.segs : ino.segs+ino.dataSegs]}
	runs := make([]run, len(m.segs))
	for i, s := range m.segs {
		runs[i] = run{uint64(s.logical), uint64(s.logical) + uint64(s.count)}
	}
	m.nodes = l.mapNodes(runs)
	return m
}

// root makes i_block.
func (m *blockMap) root() (b [inodeBlockSize]byte) {
	m.putData(b[:4*directBlocks], 0)
	for tree := uint8(1); tree <= mapLevels; tree++ {
		i := slices.IndexFunc(m.nodes, func(n mapNode) bool { return n.tree == tree })
		if i >= 0 {
			le.PutUint32(b[4*(directBlocks+int(tree)-1):], uint32(m.l.indexBlock(m.ino, uint32(i))))
		}
	}
	return b
}

// block fills b, which is zero, with the k-th block of the map.
func (m *blockMap) block(b []byte, k uint32) {
	n := m.nodes[k]
	if n.level == 1 {
		m.putData(b, n.logical)
		return
	}
	unit := uint64(1)
	for range n.level - 1 {
		unit *= m.l.pointers()
	}
	child := mapNode{n.tree, n.level - 1, n.logical}
	i, _ := slices.BinarySearchFunc(m.nodes, child, mapNode.order)
	for ; i < len(m.nodes) && m.nodes[i].level == child.level && m.nodes[i].tree == n.tree; i++ {
		at := (m.nodes[i].logical - n.logical) / unit
		if at >= m.l.pointers() {
			break
		}
		le.PutUint32(b[4*at:], uint32(m.l.indexBlock(m.ino, uint32(i))))
	}
}

// putData writes the numbers of the file's blocks from logical on.
func (m *blockMap) putData(b []byte, logical uint64) {
	i, _ := slices.BinarySearchFunc(m.segs, logical, func(s segment, at uint64) int {
		return cmp.Compare(uint64(s.logical)+uint64(s.count), at+1)
	})
	end := logical + uint64(len(b)/4)
	for ; i < len(m.segs) && uint64(m.segs[i].logical) < end; i++ {
		s := m.segs[i]
		first := max(uint64(s.logical), logical)
		for at := first; at < min(uint64(s.logical)+uint64(s.count), end); at++ {
			le.PutUint32(b[4*(at-logical):], uint32(s.start+at-uint64(s.logical)))
		}
	}
}
