package qcow2

import "encoding/binary"

// allocator hands out host clusters in ascending order and counts the
// references to them. Refcounts are 16 bits wide, so a refcount block covers
// clusterSize/2 clusters: a group. Groups are kept in memory only while their
// counts can still change.
type allocator struct {
	clusterSize int64
	next        int64      // first cluster never handed out
	perGroup    int64      // clusters in a group
	first       int64      // group that open[0] is
	open        [][]uint16 // counts of group first and later ones
	blocks      []int64    // offsets of the blocks of the groups before first
	packed      int64      // offset behind the last compressed cluster, 0 when that ends a cluster
}

func newAllocator(clusterSize int64) *allocator {
	return &allocator{clusterSize: clusterSize, perGroup: clusterSize / 2}
}

// alloc takes n clusters in a row and returns the first one's number.
func (a *allocator) alloc(n int64) int64 {
	c := a.next
	a.next += n
	for i := range n {
		a.reference(c + i)
	}
	return c
}

// reference counts one more reference to cluster c, whose group is open.
func (a *allocator) reference(c int64) {
	group := c/a.perGroup - a.first
	for int64(len(a.open)) <= group {
		a.open = append(a.open, make([]uint16, a.perGroup))
	}
	a.open[group][c%a.perGroup]++
}

// pack finds room for size bytes (below a cluster) of compressed data as QEMU
// does: behind the data before, if it ends in the same cluster or the cluster
// after that is free, else at the start of a new cluster.
func (a *allocator) pack(size int64) (offset int64) {
	if used := a.packed % a.clusterSize; used != 0 && used+size <= a.clusterSize {
		offset = a.packed
		a.reference(offset / a.clusterSize)
	} else {
		c := a.alloc(1)
		offset = c * a.clusterSize
		if used != 0 && a.packed/a.clusterSize == c-1 {
			offset = a.packed
			a.reference(c - 1)
		}
	}
	a.packed = offset + size
	if a.packed%a.clusterSize == 0 {
		a.packed = 0
	}
	return offset
}

// block is a refcount block to be written.
type block struct {
	offset int64
	data   []byte
}

// settle closes all groups but the last, which gives a block for each.
func (a *allocator) settle() (done []block) {
	for len(a.open) > 1 {
		offset := a.alloc(1) * a.clusterSize
		done = append(done, a.closeGroup(offset))
	}
	return done
}

// closeGroup ends counting in the first open group, whose block is at offset.
func (a *allocator) closeGroup(offset int64) block {
	b := block{offset: offset, data: make([]byte, a.clusterSize)}
	for i, n := range a.open[0] {
		binary.BigEndian.PutUint16(b.data[2*i:], n)
	}
	a.open = a.open[1:]
	a.first++
	a.blocks = append(a.blocks, offset)
	if a.packed/a.clusterSize/a.perGroup < a.first {
		a.packed = 0
	}
	return b
}

// finish allocates the refcount table, which is in its first clusters, and the
// blocks of all open groups behind it. Nothing can be allocated afterwards.
func (a *allocator) finish() (table []byte, offset int64, last []block) {
	clusters, blocks := a.tail()
	offset = a.alloc(clusters+blocks) * a.clusterSize
	for i := range blocks {
		last = append(last, a.closeGroup(offset+(clusters+i)*a.clusterSize))
	}
	table = make([]byte, clusters*a.clusterSize)
	for i, at := range a.blocks {
		binary.BigEndian.PutUint64(table[8*i:], uint64(at))
	}
	return table, offset, last
}

// tail computes how many clusters the refcount table and the blocks of the
// groups from first on take, themselves included in what they count.
func (a *allocator) tail() (table, blocks int64) {
	for {
		end := a.next + table + blocks
		groups := (end + a.perGroup - 1) / a.perGroup
		b := groups - a.first
		t := (groups*8 + a.clusterSize - 1) / a.clusterSize
		if b == blocks && t == table {
			return table, blocks
		}
		table, blocks = max(t, table), max(b, blocks)
	}
}
