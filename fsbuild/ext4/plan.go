package ext4

import (
	"cmp"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"cairn/fsbuild/tree"
)

// kind says what a segment holds.
type kind uint8

const (
	segSuper       kind = iota // owner: group
	segDescriptors             // owner: meta block group
	segBlockBitmap             // owner: first group
	segInodeBitmap             // owner: first group
	segInodeTable              // owner: group
	segDir                     // owner: inode
	segXattr                   // owner: xattr block
	segSymlink                 // owner: inode
	segJournal                 // owner: noIndex
	segData                    // owner: inode
	segIndex                   // owner: inode, or noIndex for the journal; logical counts index blocks
)

// segment is a run of blocks with one purpose.
type segment struct {
	start   uint64 // first block
	count   uint32
	logical uint32 // block of the owner that the first one is
	owner   uint32
	kind    kind
}

// maxExtent is the most blocks that one extent describes.
const maxExtent = 1 << 15

// Layout is a planned file system. It refers to the tree, which must not be
// modified while the layout is in use. A Layout is immutable: it may be written
// any number of times, also concurrently.
type Layout struct {
	params Params
	stamp  tree.Time
	seed   uint32 // of checksums, from the UUID
	hasher dirHasher

	inodes  []inode // numbers 2, 11, 12, 13 …
	journal inode
	names   []name
	dirs    []directory
	xattrs  []xattrBlock
	data    map[uint32][]run // by index of inode: logical blocks of files with holes

	groups     *groupMap
	blocks     uint64
	free       []run
	freeBlocks uint64
	segs       []segment // of files, ascending
	meta       []segment // of groups, ascending
}

// Plan computes the layout of a tree. Errors name the path and the limit; a
// Params.Size that is too small gives a *[SizeError].
func Plan(t *tree.Tree, p Params) (*Layout, error) {
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("plan ext4: %w", err)
	}
	l := &Layout{params: p, stamp: p.stamp(), seed: crc32c(math.MaxUint32, p.UUID[:]), hasher: newDirHasher(p.HashSeed)}
	for _, step := range []func() error{
		func() error { return l.collect(t) },
		l.planXattrs,
		l.planSizes,
		l.planHoles,
		l.fit,
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("plan ext4: %w", err)
		}
	}
	l.listMeta()
	return l, nil
}

// Size returns the size of the image in bytes. Write emits no block after it,
// and none at all for free space, so a file must be extended to it.
func (l *Layout) Size() int64 {
	if l.params.Size != 0 {
		return l.params.Size
	}
	return int64(l.blocks) * blockSize
}

// Summary says what the layout is like.
func (l *Layout) Summary() Summary {
	m, u := l.groups, l.params.UUID
	return Summary{
		Size:           l.Size(),
		Blocks:         int64(l.blocks),
		FreeBlocks:     int64(l.freeBlocks),
		Groups:         int64(m.groups),
		Inodes:         int64(m.groups) * int64(m.inodesPerGroup),
		UsedInodes:     int64(l.usedInodes()),
		InodesPerGroup: int64(m.inodesPerGroup),
		MaxSize:        math.MaxUint32 / int64(m.inodesPerGroup) * blocksPerGroup * blockSize,
		UUID:           fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]),
	}
}

// usedInodes is also the highest inode number in use: there are no gaps.
func (l *Layout) usedInodes() uint32 { return uint32(len(l.inodes)) + firstInode - 2 }

// inode returns the inode with a number, nil when it is all zero on disk.
func (l *Layout) inode(number uint64) *inode {
	switch {
	case number == rootInode:
		return &l.inodes[0]
	case number == journalInode && l.journal.node != nil:
		return &l.journal
	case number >= firstInode && number <= uint64(l.usedInodes()):
		return &l.inodes[number-firstInode+1]
	}
	return nil
}

// planSizes counts the blocks of directories, slow symlinks and the journal.
func (l *Layout) planSizes() error {
	for i := range l.inodes {
		ino := &l.inodes[i]
		switch {
		case ino.dir != noIndex:
			n, err := l.planDir(&l.dirs[ino.dir])
			if err != nil {
				return fmt.Errorf("%q: %w", ino.node.Path, err)
			}
			ino.sizeBlocks = n
		case len(ino.node.Target) >= fastSymlink:
			ino.sizeBlocks = 1
		}
	}
	if n := l.params.journalBlocks(); n > 0 {
		node := &tree.Node{Path: "journal", Type: tree.Regular, Mode: 0o600, MTime: l.stamp, Size: int64(n) * blockSize}
		l.journal = inode{node: node, number: journalInode, links: 1, dir: noIndex, xattr: noIndex, sizeBlocks: n}
	}
	return nil
}

// planHoles asks contents for their holes, several at a time since an answer
// may mean reading a file.
func (l *Layout) planHoles() error {
	var sparse []uint32
	for i := range l.inodes {
		if _, ok := l.inodes[i].node.Content.(tree.Sparse); ok {
			sparse = append(sparse, uint32(i))
		}
	}
	runs := make([][]run, len(sparse))
	errs := make([]error, len(sparse))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(sparse)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(sparse)); i = next.Add(1) - 1 {
				runs[i], errs[i] = dataRuns(l.inodes[sparse[i]].node)
			}
		})
	}
	wg.Wait()
	l.data = map[uint32][]run{}
	for i, index := range sparse {
		if errs[i] != nil {
			return fmt.Errorf("%q: find holes: %w", l.inodes[index].node.Path, errs[i])
		}
		if whole := []run{{0, sizeInBlocks(l.inodes[index].node.Size)}}; !slices.Equal(runs[i], whole) {
			l.data[index] = runs[i]
		}
	}
	return nil
}

// dataRuns rounds the data of a sparse content outwards to blocks.
func dataRuns(n *tree.Node) ([]run, error) {
	sparse, ok := n.Content.(tree.Sparse)
	if !ok {
		return nil, nil
	}
	extents, err := sparse.Data()
	if err != nil {
		return nil, err
	}
	var runs []run
	end := int64(0)
	for _, e := range extents {
		if e.Off < end || e.Len < 0 || e.Len > n.Size-e.Off {
			return nil, fmt.Errorf("data at %d, %d bytes, is out of order or beyond the size %d", e.Off, e.Len, n.Size)
		}
		end = e.Off + e.Len
		r := run{uint64(e.Off) / blockSize, sizeInBlocks(end)}
		switch k := len(runs) - 1; {
		case e.Len == 0:
		case k >= 0 && runs[k].end >= r.start:
			runs[k].end = r.end
		default:
			runs = append(runs, r)
		}
	}
	return runs, nil
}

func sizeInBlocks(size int64) uint64 { return (uint64(size) + blockSize - 1) / blockSize }

// runsOf returns the logical blocks of a regular file that hold data.
func (l *Layout) runsOf(index uint32) []run {
	if runs, ok := l.data[index]; ok {
		return runs
	}
	return []run{{0, sizeInBlocks(l.inodes[index].node.Size)}}
}

// neededBlocks counts what files take, extent index blocks left out.
func (l *Layout) neededBlocks() uint64 {
	n := uint64(l.journal.sizeBlocks) + uint64(len(l.xattrs))
	for i := range l.inodes {
		n += uint64(l.inodes[i].sizeBlocks)
		if l.inodes[i].node.Type == tree.Regular {
			for _, r := range l.runsOf(uint32(i)) {
				n += r.end - r.start
			}
		}
	}
	return n
}

// inodesPerGroup spreads the inodes over groups, whole blocks of them.
func (l *Layout) inodesPerGroup(groups uint64) uint64 {
	used, atLeast := uint64(l.usedInodes()), uint64(0)
	want := max(used, uint64(l.params.Inodes))
	if l.params.Inodes == 0 {
		want, atLeast = used+max(spareInodes, used/16), defaultInodes
	}
	n := max((want+groups-1)/groups, atLeast)
	return (n + inodesPerBlock - 1) / inodesPerBlock * inodesPerBlock
}

// fit chooses the number of groups and blocks and places everything.
func (l *Layout) fit() error {
	if l.params.Size == 0 {
		return l.fitMinimal(sizeInBlocks(l.params.Slack))
	}
	if l.fitExact(uint64(l.params.Size) / blockSize) {
		return nil
	}
	size := l.params.Size
	if err := l.fitMinimal(0); err != nil {
		return err
	}
	return &SizeError{Size: size, Missing: max(int64(l.blocks)*blockSize-size, blockSize)}
}

// fitMinimal tries numbers of groups, beginning with one that is hardly too
// large.
func (l *Layout) fitMinimal(slack uint64) error {
	need := l.neededBlocks() + slack
	groups := max(1, need/(blocksPerGroup-2), uint64(l.usedInodes())/maxInodesGroup)
	for ; l.inodesPerGroup(groups)*groups <= math.MaxUint32; groups++ {
		perGroup := l.inodesPerGroup(groups)
		if perGroup > maxInodesGroup || groups*(2+perGroup/inodesPerBlock)+need > groups*blocksPerGroup {
			continue
		}
		m, ok := newGroupMap(groups, uint32(perGroup), groups*blocksPerGroup)
		if !ok {
			continue
		}
		a, ok := l.place(m)
		if !ok {
			continue
		}
		if end, ok := l.endWith(a, slack); ok {
			l.settle(m, a, end)
			return nil
		}
	}
	return fmt.Errorf("%d blocks and %d inodes need more inode numbers than there are", need, l.usedInodes())
}

// endWith returns the end at which slack is free, and what the kernel reserves
// if that is asked for.
func (l *Layout) endWith(a *arena, slack uint64) (end uint64, ok bool) {
	want := slack
	for {
		end, ok = a.endWith(want)
		if !ok || !l.params.KernelReserve || slack+reservedBlocks(end) <= want {
			return end, ok
		}
		want = slack + reservedBlocks(end)
	}
}

// fitExact fills a given number of blocks. Like mke2fs it leaves a last group
// unused that has hardly room for its own bookkeeping.
func (l *Layout) fitExact(blocks uint64) bool {
	groups := (blocks + blocksPerGroup - 1) / blocksPerGroup
	if rest := blocks % blocksPerGroup; groups > 1 && rest > 0 {
		if rest < headBlocks(groups-1)+2+l.inodesPerGroup(groups)/inodesPerBlock+50 {
			groups--
			blocks -= rest
		}
	}
	perGroup := l.inodesPerGroup(groups)
	if perGroup > maxInodesGroup || perGroup*groups > math.MaxUint32 {
		return false
	}
	m, ok := newGroupMap(groups, uint32(perGroup), blocks)
	if !ok {
		return false
	}
	a, ok := l.place(m)
	if ok {
		l.settle(m, a, blocks)
	}
	return ok
}

// settle fixes the result of a successful placement.
func (l *Layout) settle(m *groupMap, a *arena, blocks uint64) {
	l.groups, l.blocks = m, blocks
	for _, r := range a.free {
		if r.end = min(r.end, blocks); r.start < r.end {
			l.free = append(l.free, r)
			l.freeBlocks += r.end - r.start
		}
	}
	l.free = slices.Clip(l.free)
	m.free = nil
}

// place gives every file its blocks: directories, xattrs and symlinks first,
// then the journal, then contents in canonical order. It reports whether there
// was room.
func (l *Layout) place(m *groupMap) (*arena, bool) {
	a := &arena{free: slices.Clone(m.free), end: m.end}
	l.segs = slices.Grow(l.segs[:0], len(l.inodes))
	for i := range l.inodes {
		if l.inodes[i].dir != noIndex {
			l.placeFile(a, &l.inodes[i], uint32(i), segDir, []run{{0, uint64(l.inodes[i].sizeBlocks)}})
		}
	}
	for i := range l.xattrs {
		a.take(1, 1, func(start, _ uint64) {
			l.xattrs[i].block = start
			l.segs = append(l.segs, segment{start, 1, 0, uint32(i), segXattr})
		})
	}
	for i := range l.inodes {
		if t := l.inodes[i].node.Type; t != tree.Directory && t != tree.Regular {
			l.placeFile(a, &l.inodes[i], uint32(i), segSymlink, []run{{0, uint64(l.inodes[i].sizeBlocks)}})
		}
	}
	if l.journal.node != nil {
		l.placeFile(a, &l.journal, noIndex, segJournal, []run{{0, uint64(l.journal.sizeBlocks)}})
	}
	for i := range l.inodes {
		if l.inodes[i].node.Type == tree.Regular && !a.full {
			l.placeFile(a, &l.inodes[i], uint32(i), segData, l.runsOf(uint32(i)))
		}
	}
	return a, !a.full
}

// placeFile places the data of one file and, after it, the blocks of its
// extent tree.
func (l *Layout) placeFile(a *arena, ino *inode, owner uint32, k kind, runs []run) {
	ino.segs = uint32(len(l.segs))
	ino.blocks = 0
	if ino.xattr != noIndex {
		ino.blocks++
	}
	logical := uint64(0)
	add := func(start, count uint64) {
		l.segs = append(l.segs, segment{start, uint32(count), uint32(logical), owner, k})
		logical += count
		ino.blocks += count
	}
	for _, r := range runs {
		logical = r.start
		a.take(r.end-r.start, maxExtent, add)
	}
	ino.dataSegs = uint32(len(l.segs)) - ino.segs
	logical, k = 0, segIndex
	a.take(indexBlocks(uint64(ino.dataSegs)), maxExtent, add)
	ino.indexSegs = uint32(len(l.segs)) - ino.segs - ino.dataSegs
}

// listMeta lists what groups keep, but for blocks that are known to be zero.
func (l *Layout) listMeta() {
	m, used := l.groups, uint64(l.usedInodes())
	for g := range m.groups {
		first := g * blocksPerGroup
		if hasSuper(g) {
			l.meta = append(l.meta, segment{first, 1, 0, uint32(g), segSuper})
			first++
		}
		if hasDescriptors(g) {
			l.meta = append(l.meta, segment{first, 1, 0, uint32(g / groupsPerMeta), segDescriptors})
		}
		if firstNumber := g * uint64(m.inodesPerGroup); firstNumber < used {
			n := min(m.tableBlocks(), (used-firstNumber+inodesPerBlock-1)/inodesPerBlock)
			l.meta = append(l.meta,
				segment{m.inodeBitmapOf(g), 1, 0, uint32(g), segInodeBitmap},
				segment{m.inodeTable[g], uint32(n), 0, uint32(g), segInodeTable})
		}
		l.meta = append(l.meta, segment{m.blockBitmapOf(g), 1, 0, uint32(g), segBlockBitmap})
	}
	slices.SortFunc(l.meta, func(a, b segment) int { return cmp.Compare(a.start, b.start) })
}
