package ext4

import (
	"fmt"
	"math"
	"math/bits"
)

// Type is the member of the family of file systems.
type Type uint8

// The types that are written. The zero Type is Ext4.
const (
	Ext4 Type = iota
	Ext3      // a journal, block maps instead of extents
	Ext2      // block maps, no journal
)

// String returns "ext4", "ext3" or "ext2".
func (t Type) String() string {
	if t > Ext2 {
		return fmt.Sprintf("type %d", t)
	}
	return [...]string{"ext4", "ext3", "ext2"}[t]
}

const (
	oldInodeSize     = 128 // of revision 0; larger inodes have extra fields
	minInodes        = 8   // a group's number of inodes is a multiple of it: whole bytes of bitmap
	bytesPerInode    = 64 << 10
	bitmapMaxLinks   = 32000 // of ext2 and ext3
	lostFoundSize    = 16 << 10
	directBlocks     = 12
	mapLevels        = 3
	max32            = math.MaxUint32
	logGroupsPerFlex = 7
)

// shape is what the type, the block size and the inode size decide.
type shape struct {
	kind           Type
	modern         bool   // ext4's features: extents, checksums, 64bit, flex_bg, meta_bg, huge_file, dir_nlink
	largeDir       bool   // large_dir
	blockSize      int    // bytes
	inodeSize      int    // bytes
	descSize       int    // bytes of a group descriptor
	firstBlock     uint64 // of group 0: 1 when the boot block is a block of its own
	blocksPerGroup uint64 // as one bitmap block has bits
	inodesPerBlock uint64
	inodeStep      uint64 // the inodes of a group are a multiple of it
	groupsPerMeta  uint64 // descriptors in a block
	groupsPerFlex  uint64 // groups that keep their bitmaps and tables together
}

// newShape takes checked parameters.
func newShape(p *Params) shape {
	s := shape{kind: p.Type, modern: p.Type == Ext4, largeDir: p.LargeDir, blockSize: p.blockSize(), inodeSize: p.inodeSize()}
	s.descSize, s.groupsPerFlex = 32, 1
	if s.modern {
		s.descSize, s.groupsPerFlex = descSize, 1<<logGroupsPerFlex
	}
	if s.blockSize == superOffset {
		s.firstBlock = 1
	}
	s.blocksPerGroup = 8 * uint64(s.blockSize)
	s.inodesPerBlock = uint64(s.blockSize / s.inodeSize)
	s.inodeStep = max(s.inodesPerBlock, minInodes)
	s.groupsPerMeta = uint64(s.blockSize / s.descSize)
	return s
}

// firstOf returns the first block of a group.
func (s *shape) firstOf(g uint64) uint64 { return s.firstBlock + g*s.blocksPerGroup }

func (s *shape) groupBytes() uint64 { return s.blocksPerGroup * uint64(s.blockSize) }

// maxInodesGroup is as many as one bitmap block has bits, and as fill half a
// group.
func (s *shape) maxInodesGroup() uint64 {
	return min(s.blocksPerGroup, s.blocksPerGroup/2*s.inodesPerBlock)
}

func (s *shape) sizeInBlocks(size int64) uint64 {
	return (uint64(size) + uint64(s.blockSize) - 1) / uint64(s.blockSize)
}

// tableBlocks is the size of the inode table of a group.
func (s *shape) tableBlocks(perGroup uint64) uint64 { return perGroup / s.inodesPerBlock }

// maxGroups is the number of groups to which a file system can grow: inode
// numbers have 32 bits; without 64bit so have block numbers, and without
// meta_bg all descriptors are in one group.
func (s *shape) maxGroups(perGroup uint64) uint64 {
	n := max32 / perGroup
	if !s.modern {
		perGroup = min(perGroup, s.maxInodesGroup())
		n = min(n, (max32-s.firstBlock)/s.blocksPerGroup, (s.blocksPerGroup-3-s.tableBlocks(perGroup))*s.groupsPerMeta)
	}
	return n
}

// inodeLimit is the most inodes a group can have so that a file system can
// grow to so many bytes.
func (s *shape) inodeLimit(growTo int64) uint64 {
	groups := (uint64(growTo) + s.groupBytes() - 1) / s.groupBytes()
	most := min(s.maxInodesGroup(), max32/max(groups, 1))
	if !s.modern { // the inode table shares a group with all descriptors
		used := min(s.blocksPerGroup, 3+(groups+s.groupsPerMeta-1)/s.groupsPerMeta)
		most = min(most, (s.blocksPerGroup-used)*s.inodesPerBlock)
	}
	return most / s.inodeStep * s.inodeStep
}

// maxFileSize is the limit of i_size. Logical blocks have 32 bits, the last is
// reserved. A block map reaches as far as its three levels, and without
// huge_file i_blocks counts 512-byte units in 32 bits, those of the map
// included (ext4_max_bitmap_size of Linux 5.10).
func (s *shape) maxFileSize() int64 {
	if s.modern {
		return max32 * int64(s.blockSize)
	}
	p := int64(s.blockSize / 4)
	reach := directBlocks + p + p*p + p*p*p
	mapped := int64(max32)/int64(s.blockSize/512) - (1 + 1 + p + 1 + p + p*p)
	return min(reach, mapped) * int64(s.blockSize)
}

// maxLinks is the most names of a file, and of a directory its own, "." and
// the ".." of subdirectories.
func (s *shape) maxLinks() uint32 {
	if s.modern {
		return maxLinks
	}
	return bitmapMaxLinks
}

// maxTime is the last second that an inode can hold, 2446-05-10 or, without
// the extra fields, 2038-01-19.
func (s *shape) maxTime() int64 {
	if s.inodeSize == oldInodeSize {
		return math.MaxInt32
	}
	return maxSeconds
}

// extraSize is i_extra_isize.
func (s *shape) extraSize() int {
	if s.inodeSize == oldInodeSize {
		return 0
	}
	return extraSize
}

// lostFoundBlocks is the size of lost+found, as mke2fs makes it: room for
// e2fsck, which cannot allocate there.
func (s *shape) lostFoundBlocks() uint32 {
	return uint32(min(lostFoundSize/s.blockSize, directBlocks))
}

// logBlockSize is s_log_block_size.
func (s *shape) logBlockSize() uint32 { return uint32(bits.Len(uint(s.blockSize)) - 11) }

// reservedBlocks is what Linux withholds, in blocks: ext4_calculate_resv_clusters
// of Linux 6.1.
func (s *shape) reservedBlocks(blocks uint64) uint64 {
	if !s.modern {
		return 0
	}
	return reservedBlocks(blocks)
}
