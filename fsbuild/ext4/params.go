package ext4

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"cairn/fsbuild/tree"
)

func (p *Params) blockSize() int {
	if p.BlockSize == 0 {
		return defaultBlockSize
	}
	return p.BlockSize
}

func (p *Params) inodeSize() int {
	if p.InodeSize == 0 {
		return defaultInodeSize
	}
	return p.InodeSize
}

// check refuses parameters that cannot be represented.
func (p *Params) check() error {
	size := p.blockSize()
	switch {
	case p.UUID == [16]byte{}:
		return errors.New("the UUID is missing")
	case len(p.Label) > maxLabel:
		return fmt.Errorf("label %q has %d bytes, the limit is %d", p.Label, len(p.Label), maxLabel)
	case strings.IndexByte(p.Label, 0) >= 0:
		return fmt.Errorf("label %q has a NUL byte", p.Label)
	case p.Type > Ext2:
		return fmt.Errorf("%v is not known", p.Type)
	case size != 1024 && size != 2048 && size != 4096:
		return fmt.Errorf("block size %d is not supported, only 1024, 2048 and 4096", size)
	case p.Size < 0 || p.Size%int64(size) != 0:
		return fmt.Errorf("size %d is not a multiple of %d", p.Size, size)
	case p.Size > maxGrowTo:
		return fmt.Errorf("size %d is above the limit %d", p.Size, int64(maxGrowTo))
	case p.LargeDir && p.Type != Ext4:
		return fmt.Errorf("large_dir is of ext4, not of %v", p.Type)
	case !(p.ReservedPercent >= 0 && p.ReservedPercent <= maxReserved):
		return fmt.Errorf("%g %% of reserved blocks are not from 0 to %d", p.ReservedPercent, maxReserved)
	}
	for _, check := range []func() error{p.checkInodes, p.checkTime, p.checkSpace, p.checkJournal, p.checkGrowth} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (p *Params) checkInodes() error {
	switch n := p.inodeSize(); {
	case n < oldInodeSize || n > p.blockSize() || n&(n-1) != 0:
		return fmt.Errorf("inode size %d is not a power of two from %d to the block size %d", n, oldInodeSize, p.blockSize())
	case p.InodeRatio != 0 && (p.InodeRatio < minInodeRatio || p.InodeRatio > maxInodeRatio):
		return fmt.Errorf("inode ratio %d is not from %d to %d", p.InodeRatio, minInodeRatio, maxInodeRatio)
	case p.InodeRatio != 0 && p.Inodes != 0:
		return errors.New("inode ratio and number of inodes exclude each other")
	}
	return nil
}

func (p *Params) checkTime() error {
	s := newShape(p)
	last := s.maxTime()
	if !p.Time.IsZero() && (p.Time.Unix() < 0 || p.Time.Unix() > last) {
		return fmt.Errorf("time %s is not from 1970 to %d", p.Time.UTC().Format(time.RFC3339), time.Unix(last, 0).UTC().Year())
	}
	return nil
}

func (p *Params) checkSpace() error {
	switch {
	case p.Slack < 0:
		return fmt.Errorf("slack %d is negative", p.Slack)
	case p.Factor != 0 && !(p.Factor >= 1 && p.Factor <= maxFactor):
		return fmt.Errorf("factor %g is not from 1 to %d", p.Factor, maxFactor)
	case p.Size != 0 && (p.Slack != 0 || p.KernelReserve || p.Factor != 0):
		return errors.New("slack and factor go with minimal size only")
	}
	return nil
}

func (p *Params) checkJournal() error {
	switch {
	case p.JournalBySize && p.JournalSize != 0:
		return errors.New("the size of the journal is given, and to be chosen")
	case p.Type == Ext2 && (p.JournalBySize || p.JournalSize > 0):
		return errors.New("ext2 has no journal")
	case p.JournalSize <= 0:
		return nil
	}
	size := int64(p.blockSize())
	n := p.JournalSize / size
	if p.JournalSize%size != 0 || n < minJournalBlocks || n > maxJournalBlocks {
		return fmt.Errorf("journal size %d is not a multiple of %d from %d to %d", p.JournalSize,
			size, minJournalBlocks*size, maxJournalBlocks*size)
	}
	return nil
}

// checkGrowth refuses a promise that no number of inodes would keep.
func (p *Params) checkGrowth() error {
	if p.GrowTo < 0 || p.GrowTo > maxGrowTo {
		return fmt.Errorf("growth to %d bytes is not from 0 to %d", p.GrowTo, int64(maxGrowTo))
	}
	s, size := newShape(p), max(p.GrowTo, p.Size)
	limit, most := s.inodeLimit(size), s.maxGroups(s.inodeStep)*s.groupBytes()
	switch {
	case limit == 0 || uint64(size) > most:
		return fmt.Errorf("%d bytes are above the limit of %v with blocks of %d bytes, %d", size, p.Type, s.blockSize, most)
	case p.InodeRatio != 0 && s.groupBytes()/uint64(p.InodeRatio) > limit:
		return fmt.Errorf("%d bytes allow %d inodes in a group of %d, the inode ratio %d asks for %d",
			size, limit, s.groupBytes(), p.InodeRatio, s.groupBytes()/uint64(p.InodeRatio))
	}
	return nil
}

// journalBlocks returns the size of the journal in a file system of so many
// blocks, 0 for none.
func (p *Params) journalBlocks(blocks uint64) uint32 {
	switch {
	case p.JournalBySize:
		return journalBySize(blocks)
	case p.JournalSize < 0 || p.Type == Ext2:
		return 0
	case p.JournalSize == 0:
		return uint32(defaultJournal / p.blockSize())
	}
	return uint32(p.JournalSize / int64(p.blockSize()))
}

// journalBySize is ext2fs_default_journal_size of e2fsprogs 1.47, in blocks.
func journalBySize(blocks uint64) uint32 {
	for _, c := range []struct {
		below   uint64
		journal uint32
	}{
		{2 << 10, 0},
		{32 << 10, 1 << 10},
		{256 << 10, 4 << 10},
		{512 << 10, 8 << 10},
		{4 << 20, 16 << 10},
		{8 << 20, 32 << 10},
		{16 << 20, 64 << 10},
		{32 << 20, 128 << 10},
	} {
		if blocks < c.below {
			return c.journal
		}
	}
	return 256 << 10
}

// stamp returns the time for all that has none of its own.
func (p *Params) stamp() tree.Time {
	if p.Time.IsZero() {
		return tree.Time{}
	}
	return tree.Time{Sec: p.Time.Unix(), Nsec: uint32(p.Time.Nanosecond())}
}
