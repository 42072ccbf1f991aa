package ext4

// run is the blocks from start to before end.
type run struct{ start, end uint64 }

// groupMap says where the parts of each block group are (section "Layout",
// "Flexible Block Groups", "Meta Block Groups").
type groupMap struct {
	*shape
	groups         uint64
	inodesPerGroup uint32
	blockBitmap    []uint64 // by flex group: bitmaps of its groups, in a row
	inodeBitmap    []uint64 // by flex group
	inodeTable     []uint64 // by group
	free           []run    // what remains for files, ascending
	end            uint64   // after the last block that the groups need
}

func (m *groupMap) table() uint64 { return m.tableBlocks(uint64(m.inodesPerGroup)) }

func (m *groupMap) blockBitmapOf(g uint64) uint64 {
	return m.blockBitmap[g/m.groupsPerFlex] + g%m.groupsPerFlex
}

func (m *groupMap) inodeBitmapOf(g uint64) uint64 {
	return m.inodeBitmap[g/m.groupsPerFlex] + g%m.groupsPerFlex
}

// hasSuper tells whether a group keeps a copy of the superblock: groups 0, 1
// and powers of 3, 5 and 7 (sparse_super).
func hasSuper(g uint64) bool {
	if g <= 1 {
		return true
	}
	for _, p := range []uint64{3, 5, 7} {
		x := p
		for x < g {
			x *= p
		}
		if x == g {
			return true
		}
	}
	return false
}

// descriptors returns which blocks of descriptors a group keeps, first and
// count. With meta_bg it is the one of its meta block group, in the first,
// second and last group of it; else all of them, beside each superblock.
func (m *groupMap) descriptors(g uint64) (first, count uint64) {
	if !m.modern {
		if hasSuper(g) {
			count = (m.groups + m.groupsPerMeta - 1) / m.groupsPerMeta
		}
		return 0, count
	}
	if k := g % m.groupsPerMeta; k == 0 || k == 1 || k == m.groupsPerMeta-1 {
		count = 1
	}
	return g / m.groupsPerMeta, count
}

// headBlocks is the number of blocks at the start of a group that the
// superblock and descriptors take.
func (m *groupMap) headBlocks(g uint64) uint64 {
	_, n := m.descriptors(g)
	if hasSuper(g) {
		n++
	}
	return n
}

// growthRoom is the number of free blocks with which resize2fs can grow the file
// system to so many bytes. Without meta_bg the descriptors then take more blocks
// beside each superblock, and the group's bitmaps and inode table move, as does
// what files have in their new place. resize2fs, up to 1.47.2 at least, breaks
// off when a block of a block map has to move beyond the old end.
func (m *groupMap) growthRoom(size uint64) (n uint64) {
	blocks := func(groups uint64) uint64 { return (groups + m.groupsPerMeta - 1) / m.groupsPerMeta }
	before, after := blocks(m.groups), blocks((size+m.groupBytes()-1)/m.groupBytes())
	if m.modern || after <= before {
		return 0
	}
	for g := range m.groups {
		if hasSuper(g) {
			n += after - before + 2 + m.table()
		}
	}
	return n
}

// newGroupMap places bitmaps and inode tables of each flex group together at
// its beginning. It reports false when they do not fit before limit.
func newGroupMap(s *shape, groups uint64, inodesPerGroup uint32, limit uint64) (*groupMap, bool) {
	m := &groupMap{shape: s, groups: groups, inodesPerGroup: inodesPerGroup}
	for first := uint64(0); first < groups; first += m.groupsPerFlex {
		n := min(m.groupsPerFlex, groups-first)
		a := arena{free: m.freeRuns(first, n, limit)}
		m.blockBitmap = append(m.blockBitmap, a.contiguous(n))
		m.inodeBitmap = append(m.inodeBitmap, a.contiguous(n))
		for range n {
			m.inodeTable = append(m.inodeTable, a.contiguous(m.table()))
		}
		if a.full {
			return nil, false
		}
		m.free = append(m.free, a.free...)
		m.end = max(a.end, m.firstOf(first+n-1)+m.headBlocks(first+n-1)+1)
	}
	return m, m.end <= limit
}

// freeRuns lists the blocks of n groups without the heads of groups.
func (m *groupMap) freeRuns(first, n, limit uint64) []run {
	var free []run
	for g := first; g < first+n; g++ {
		r := run{m.firstOf(g) + m.headBlocks(g), min(m.firstOf(g+1), limit)}
		switch k := len(free) - 1; {
		case r.start >= r.end:
		case k >= 0 && free[k].end == r.start:
			free[k].end = r.end
		default:
			free = append(free, r)
		}
	}
	return free
}

// arena hands out blocks of a list of free runs.
type arena struct {
	free []run
	end  uint64 // after the highest block handed out
	full bool   // a request failed
}

// contiguous takes the first n free blocks in a row and returns the first.
func (a *arena) contiguous(n uint64) uint64 {
	for i, r := range a.free {
		if r.end-r.start >= n {
			a.free[i].start += n
			a.end = max(a.end, r.start+n)
			if a.free[i].start == r.end {
				a.free = append(a.free[:i], a.free[i+1:]...)
			}
			return r.start
		}
	}
	a.full = true
	return 0
}

// take calls f for the lowest n free blocks, in pieces of at most most. Calls
// of take in succession hand out ascending blocks.
func (a *arena) take(n, most uint64, f func(start, count uint64)) {
	for n > 0 {
		if len(a.free) == 0 {
			a.full = true
			return
		}
		r := &a.free[0]
		k := min(n, most, r.end-r.start)
		f(r.start, k)
		r.start += k
		n -= k
		a.end = max(a.end, r.start)
		if r.start == r.end {
			a.free = a.free[1:]
		}
	}
}

// endWith returns the lowest end, not before that of the blocks handed out, at
// which at least want blocks are free.
func (a *arena) endWith(want uint64) (end uint64, ok bool) {
	end = a.end
	for _, r := range a.free {
		if r.start < end { // a gap, or what follows the last block
			want -= min(want, min(r.end, end)-r.start)
			r.start = min(r.end, end)
		}
		if k := min(want, r.end-r.start); k > 0 {
			end, want = r.start+k, want-k
		}
	}
	return end, want == 0
}
