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
	segDescriptors             // owner: first block of descriptors
	segBlockBitmap             // owner: first group
	segInodeBitmap             // owner: first group
	segInodeTable              // owner: group
	segDir                     // owner: inode
	segXattr                   // owner: xattr block
	segSymlink                 // owner: inode
	segJournal                 // owner: noIndex
	segData                    // owner: inode
	segIndex                   // owner: inode, or noIndex for the journal; logical counts blocks of the extent tree or map
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
	shape
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

	ratioInodes uint64 // by Params.InodeRatio, for the size in blocks
	slack       uint64 // blocks, of the last fitting
	groups      *groupMap
	blocks      uint64
	free        []run
	freeBlocks  uint64
	segs        []segment // of files, ascending
	meta        []segment // of groups, ascending
}

// Plan computes the layout of a tree. Errors name the path and the limit; a
// Params.Size that is too small gives a *[SizeError].
func Plan(t *tree.Tree, p Params) (*Layout, error) {
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("plan %v: %w", p.Type, err)
	}
	l := &Layout{
		shape: newShape(&p), params: p, stamp: p.stamp(),
		seed: crc32c(math.MaxUint32, p.UUID[:]), hasher: newDirHasher(p.HashSeed),
	}
	for _, step := range []func() error{
		func() error { return l.collect(t) },
		l.planXattrs,
		l.planSizes,
		l.planHoles,
		l.fit,
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("plan %v: %w", p.Type, err)
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
	return int64(l.blocks) * int64(l.blockSize)
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
		MaxSize:        int64(l.maxGroups(uint64(m.inodesPerGroup)) * l.groupBytes()),
		BlockSize:      int64(l.blockSize),
		JournalSize:    int64(l.journal.sizeBlocks) * int64(l.blockSize),
		KernelReserved: int64(l.reservedBlocks(l.blocks)) * int64(l.blockSize),
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

// planSizes counts the blocks of directories and slow symlinks.
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
				runs[i], errs[i] = l.dataRuns(l.inodes[sparse[i]].node)
			}
		})
	}
	wg.Wait()
	l.data = map[uint32][]run{}
	for i, index := range sparse {
		if errs[i] != nil {
			return fmt.Errorf("%q: find holes: %w", l.inodes[index].node.Path, errs[i])
		}
		if whole := []run{{0, l.sizeInBlocks(l.inodes[index].node.Size)}}; !slices.Equal(runs[i], whole) {
			l.data[index] = runs[i]
		}
	}
	return nil
}

// dataRuns rounds the data of a sparse content outwards to blocks.
func (s *shape) dataRuns(n *tree.Node) ([]run, error) {
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
		r := run{uint64(e.Off) / uint64(s.blockSize), s.sizeInBlocks(end)}
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

// runsOf returns the logical blocks of a regular file that hold data.
func (l *Layout) runsOf(index uint32) []run {
	if runs, ok := l.data[index]; ok {
		return runs
	}
	return []run{{0, l.sizeInBlocks(l.inodes[index].node.Size)}}
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
	a.take(l.treeBlocks(runs, uint64(ino.dataSegs)), maxExtent, add)
	ino.indexSegs = uint32(len(l.segs)) - ino.segs - ino.dataSegs
}

// listMeta lists what groups keep, but for blocks that are known to be zero.
func (l *Layout) listMeta() {
	m, used := l.groups, uint64(l.usedInodes())
	for g := range m.groups {
		first := l.firstOf(g)
		if hasSuper(g) {
			l.meta = append(l.meta, segment{first, 1, 0, uint32(g), segSuper})
			first++
		}
		if k, n := m.descriptors(g); n > 0 {
			l.meta = append(l.meta, segment{first, uint32(n), 0, uint32(k), segDescriptors})
		}
		if firstNumber := g * uint64(m.inodesPerGroup); firstNumber < used {
			n := min(m.table(), (used-firstNumber+l.inodesPerBlock-1)/l.inodesPerBlock)
			l.meta = append(l.meta,
				segment{m.inodeBitmapOf(g), 1, 0, uint32(g), segInodeBitmap},
				segment{m.inodeTable[g], uint32(n), 0, uint32(g), segInodeTable})
		} else if !l.modern { // without checksums no flag says that the bitmap is not there
			l.meta = append(l.meta, segment{m.inodeBitmapOf(g), 1, 0, uint32(g), segInodeBitmap})
		}
		l.meta = append(l.meta, segment{m.blockBitmapOf(g), 1, 0, uint32(g), segBlockBitmap})
	}
	slices.SortFunc(l.meta, func(a, b segment) int { return cmp.Compare(a.start, b.start) })
}
