package ext4

import (
	"fmt"
	"math"
	"slices"

	"cairn/fsbuild/tree"
)

// neededBlocks counts what files take, blocks of extent trees left out.
func (l *Layout) neededBlocks() uint64 {
	n := uint64(l.journal.sizeBlocks) + uint64(len(l.xattrs))
	for i := range l.inodes {
		n += uint64(l.inodes[i].sizeBlocks)
		if l.inodes[i].node.Type == tree.Regular {
			runs := l.runsOf(uint32(i))
			for _, r := range runs {
				n += r.end - r.start
			}
			if !l.modern {
				n += uint64(len(l.mapNodes(runs)))
			}
		}
	}
	return n
}

// wantedInodes returns the least number of inodes in all, and of a group.
func (l *Layout) wantedInodes() (total, perGroup uint64) {
	used := uint64(l.usedInodes())
	switch {
	case l.params.Inodes > 0:
		return max(used, uint64(l.params.Inodes)), 0
	case l.params.InodeRatio > 0:
		return max(used, l.ratioInodes), 0
	}
	return used + max(spareInodes, used/16), min(l.groupBytes()/bytesPerInode, l.perGroupLimit())
}

// perGroupLimit is the most inodes of a group.
func (l *Layout) perGroupLimit() uint64 { return l.inodeLimit(max(l.params.GrowTo, l.params.Size)) }

// inodesPerGroup spreads the inodes over groups, whole blocks of them.
func (l *Layout) inodesPerGroup(groups uint64) uint64 {
	total, atLeast := l.wantedInodes()
	n := max((total+groups-1)/groups, atLeast)
	return (n + l.inodeStep - 1) / l.inodeStep * l.inodeStep
}

// fit chooses the number of groups and blocks and places everything.
func (l *Layout) fit() error {
	p := &l.params
	if p.Size == 0 {
		if p.Factor > 1 {
			if err := l.fitGrowing(0); err != nil {
				return err
			}
			return l.fitGrowing(l.sizeInBlocks(p.Slack) + uint64(math.Ceil(float64(l.blocks)*(p.Factor-1))))
		}
		return l.fitGrowing(l.sizeInBlocks(p.Slack))
	}
	blocks := uint64(p.Size) / uint64(l.blockSize)
	l.setJournal(p.journalBlocks(blocks))
	l.ratioInodes = l.inodesByRatio(blocks)
	if l.fitExact(blocks) {
		return nil
	}
	if err := l.fitGrowing(0); err != nil {
		return err
	}
	return &SizeError{Size: p.Size, Missing: max(int64(l.blocks)*int64(l.blockSize)-p.Size, int64(l.blockSize))}
}

// setJournal makes the journal so many blocks long, none for 0.
func (l *Layout) setJournal(blocks uint32) {
	if blocks == 0 {
		l.journal = inode{}
		return
	}
	size := int64(blocks) * int64(l.blockSize)
	node := &tree.Node{Path: "journal", Type: tree.Regular, Mode: 0o600, MTime: l.stamp, Size: size}
	l.journal = inode{node: node, number: journalInode, links: 1, dir: noIndex, xattr: noIndex, sizeBlocks: blocks}
}

// inodesByRatio is the number of inodes that Params.InodeRatio gives so many
// blocks.
func (l *Layout) inodesByRatio(blocks uint64) uint64 {
	if l.params.InodeRatio == 0 {
		return 0
	}
	return blocks * uint64(l.blockSize) / uint64(l.params.InodeRatio)
}

// fitGrowing is fitMinimal, repeated until the journal and the number of
// inodes suit the size. Both only grow.
func (l *Layout) fitGrowing(slack uint64) error {
	for {
		journal := max(l.journal.sizeBlocks, l.params.journalBlocks(l.blocks))
		inodes := max(l.ratioInodes, l.inodesByRatio(l.blocks))
		if l.groups != nil && journal == l.journal.sizeBlocks && inodes == l.ratioInodes && slack == l.slack {
			return nil
		}
		l.setJournal(journal)
		l.ratioInodes, l.slack = inodes, slack
		if err := l.fitMinimal(slack); err != nil {
			return err
		}
	}
}

// fitMinimal tries numbers of groups, beginning with one that is hardly too
// large.
func (l *Layout) fitMinimal(slack uint64) error {
	need, limit := l.neededBlocks()+slack, l.perGroupLimit()
	inodes, _ := l.wantedInodes()
	groups := max(1, need/(l.blocksPerGroup-2), (inodes+limit-1)/limit)
	for ; groups <= l.maxGroups(l.inodesPerGroup(groups)); groups++ {
		perGroup := l.inodesPerGroup(groups)
		if perGroup > limit || groups*(2+l.tableBlocks(perGroup))+need > groups*l.blocksPerGroup {
			continue
		}
		m, ok := newGroupMap(&l.shape, groups, uint32(perGroup), l.firstOf(groups))
		if !ok {
			continue
		}
		a, ok := l.place(m)
		if !ok {
			continue
		}
		if end, ok := l.endWith(a, max(slack, m.growthRoom(uint64(l.params.GrowTo)))); ok {
			l.settle(m, a, end)
			return nil
		}
	}
	return fmt.Errorf("%d blocks of %d bytes and %d inodes are above the limit of %v: %d groups of %d bytes",
		need, l.blockSize, inodes, l.kind, l.maxGroups(l.inodesPerGroup(groups)), l.groupBytes())
}

// endWith returns the end at which slack is free, and what the kernel reserves
// if that is asked for.
func (l *Layout) endWith(a *arena, slack uint64) (end uint64, ok bool) {
	want := slack
	for {
		end, ok = a.endWith(want)
		if !ok || !l.params.KernelReserve || slack+l.reservedBlocks(end) <= want {
			return end, ok
		}
		want = slack + l.reservedBlocks(end)
	}
}

// fitExact fills a given number of blocks. Like mke2fs it leaves a last group
// unused that has hardly room for its own bookkeeping.
func (l *Layout) fitExact(blocks uint64) bool {
	if blocks <= l.firstBlock {
		return false
	}
	inGroups := blocks - l.firstBlock
	groups := (inGroups + l.blocksPerGroup - 1) / l.blocksPerGroup
	if rest := inGroups % l.blocksPerGroup; groups > 1 && rest > 0 {
		m := groupMap{shape: &l.shape, groups: groups}
		if rest < m.headBlocks(groups-1)+2+l.tableBlocks(l.inodesPerGroup(groups))+50 {
			groups--
			blocks -= rest
		}
	}
	perGroup := l.inodesPerGroup(groups)
	if perGroup > l.perGroupLimit() || groups > l.maxGroups(perGroup) {
		return false
	}
	m, ok := newGroupMap(&l.shape, groups, uint32(perGroup), blocks)
	if !ok {
		return false
	}
	a, ok := l.place(m)
	if !ok {
		return false
	}
	if end, ok := a.endWith(m.growthRoom(uint64(l.params.GrowTo))); !ok || end > blocks {
		return false
	}
	l.settle(m, a, blocks)
	return true
}

// settle fixes the result of a successful placement.
func (l *Layout) settle(m *groupMap, a *arena, blocks uint64) {
	l.groups, l.blocks = m, blocks
	l.free, l.freeBlocks = nil, 0
	for _, r := range a.free {
		if r.end = min(r.end, blocks); r.start < r.end {
			l.free = append(l.free, r)
			l.freeBlocks += r.end - r.start
		}
	}
	l.free = slices.Clip(l.free)
	m.free = nil
}
