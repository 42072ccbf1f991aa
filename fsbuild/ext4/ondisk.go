package ext4

import "cairn/fsbuild/tree"

// Feature flags (section "Super Block").
const (
	compatHasJournal = 0x4
	compatExtAttr    = 0x8
	compatDirIndex   = 0x20

	incompatFiletype = 0x2
	incompatMetaBG   = 0x10
	incompatExtents  = 0x40
	incompat64Bit    = 0x80
	incompatFlexBG   = 0x200
	incompatLargeDir = 0x4000

	roSparseSuper  = 0x1
	roLargeFile    = 0x2
	roHugeFile     = 0x8
	roDirNlink     = 0x20
	roExtraIsize   = 0x40
	roMetadataCsum = 0x400
)

const (
	superOffset     = 1024 // of the superblock in the first block
	superSize       = 1024
	superMagic      = 0xef53
	stateClean      = 1
	errorsContinue  = 1
	revDynamic      = 1
	mountXattrACL   = 0x0004 | 0x0008 // user_xattr, acl
	journalBackup   = 1               // s_jnl_backup_type: the journal inode's i_block
	checksumCRC32C  = 1
	groupInodeUnini = 0x1 // bg_flags: no inode in use, bitmap not written
	groupZeroed     = 0x4 // bg_flags: the inode table is zero where unused

	flagExtents = 0x80000 // i_flags
	flagIndex   = 0x1000

	fastSymlink = 60 // targets shorter than i_block live in it
)

// fileModes are the type bits of i_mode, by tree.Type.
var fileModes = [fileTypeCount]uint16{
	tree.Regular: 0x8000, tree.Directory: 0x4000, tree.CharDevice: 0x2000, tree.BlockDevice: 0x6000,
	tree.FIFO: 0x1000, tree.Socket: 0xc000, tree.Symlink: 0xa000,
}

// inodeSeed starts the checksums of what belongs to an inode: its number and
// generation, which is 0.
func (l *Layout) inodeSeed(number uint32) uint32 {
	return crc32c32(crc32c32(l.seed, number), 0)
}

// putDescriptors writes one block of descriptors.
func (l *Layout) putDescriptors(b []byte, block uint64) {
	bitmap := make([]byte, l.blockSize)
	first := block * l.groupsPerMeta
	for g := first; g < min(first+l.groupsPerMeta, l.groups.groups); g++ {
		d := b[(g-first)*uint64(l.descSize):][:l.descSize]
		if l.modern {
			l.putDescriptor(d, g, bitmap)
		} else {
			l.putOldDescriptor(d, g, bitmap)
		}
	}
}

// putOldDescriptor writes struct ext4_group_desc as it was before 64bit and
// checksums.
func (l *Layout) putOldDescriptor(b []byte, g uint64, bitmap []byte) {
	m := l.groups
	le.PutUint32(b[0x00:], uint32(m.blockBitmapOf(g)))                           // bg_block_bitmap
	le.PutUint32(b[0x04:], uint32(m.inodeBitmapOf(g)))                           // bg_inode_bitmap
	le.PutUint32(b[0x08:], uint32(m.inodeTable[g]))                              // bg_inode_table
	le.PutUint16(b[0x0c:], uint16(l.putBlockBitmap(bitmap, g)))                  // bg_free_blocks_count
	le.PutUint16(b[0x0e:], uint16(m.inodesPerGroup-l.putInodeBitmap(bitmap, g))) // bg_free_inodes_count
	le.PutUint16(b[0x10:], uint16(l.directoriesIn(g)))                           // bg_used_dirs_count
}

// putDescriptor writes struct ext4_group_desc, whose fields have low and high
// halves.
func (l *Layout) putDescriptor(b []byte, g uint64, bitmap []byte) {
	m := l.groups
	put32 := func(low, high int, v uint64) {
		le.PutUint32(b[low:], uint32(v))
		le.PutUint32(b[high:], uint32(v>>32))
	}
	put16 := func(low, high int, v uint32) {
		le.PutUint16(b[low:], uint16(v))
		le.PutUint16(b[high:], uint16(v>>16))
	}
	put32(0x00, 0x20, m.blockBitmapOf(g))          // bg_block_bitmap
	put32(0x04, 0x24, m.inodeBitmapOf(g))          // bg_inode_bitmap
	put32(0x08, 0x28, m.inodeTable[g])             // bg_inode_table
	put16(0x0c, 0x2c, l.putBlockBitmap(bitmap, g)) // bg_free_blocks_count
	put16(0x18, 0x38, crc32c(l.seed, bitmap))      // bg_block_bitmap_csum
	used := l.putInodeBitmap(bitmap, g)
	put16(0x0e, 0x2e, m.inodesPerGroup-used)                       // bg_free_inodes_count
	put16(0x10, 0x30, l.directoriesIn(g))                          // bg_used_dirs_count
	put16(0x1c, 0x32, m.inodesPerGroup-used)                       // bg_itable_unused
	put16(0x1a, 0x3a, crc32c(l.seed, bitmap[:m.inodesPerGroup/8])) // bg_inode_bitmap_csum
	flags := uint16(groupZeroed)
	if used == 0 {
		flags |= groupInodeUnini
	}
	le.PutUint16(b[0x12:], flags)                                          // bg_flags
	le.PutUint16(b[0x1e:], uint16(crc32c(crc32c32(l.seed, uint32(g)), b))) // bg_checksum
}

// directoriesIn counts the directories among the inodes of a group.
func (l *Layout) directoriesIn(g uint64) (n uint32) {
	first := g * uint64(l.groups.inodesPerGroup)
	last := min(first+uint64(l.groups.inodesPerGroup), uint64(l.usedInodes()))
	for number := first + 1; number <= last; number++ {
		if ino := l.inode(number); ino != nil && ino.dir != noIndex {
			n++
		}
	}
	return n
}

// putBlockBitmap writes the bitmap of a group, blocks after the end marked as
// used, and returns the number of free blocks.
func (l *Layout) putBlockBitmap(b []byte, g uint64) (free uint32) {
	for i := range b {
		b[i] = 0xff
	}
	first := l.firstOf(g)
	for _, r := range l.freeFrom(first) {
		start, end := max(r.start, first), min(r.end, first+l.blocksPerGroup)
		if start >= end {
			break
		}
		clearBits(b, start-first, end-first)
		free += uint32(end - start)
	}
	return free
}

// freeFrom returns the free runs that end after a block.
func (l *Layout) freeFrom(block uint64) []run {
	low, high := 0, len(l.free)
	for low < high {
		if mid := (low + high) / 2; l.free[mid].end > block {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return l.free[low:]
}

func clearBits(b []byte, from, to uint64) {
	for ; from < to && from%8 != 0; from++ {
		b[from/8] &^= 1 << (from % 8)
	}
	if from < to {
		clear(b[from/8 : to/8])
		from = max(from, to&^7)
	}
	for ; from < to; from++ {
		b[from/8] &^= 1 << (from % 8)
	}
}

// putInodeBitmap writes the inode bitmap of a group and returns the number of
// inodes in use, which are the first ones.
func (l *Layout) putInodeBitmap(b []byte, g uint64) (used uint32) {
	perGroup := uint64(l.groups.inodesPerGroup)
	if n := uint64(l.usedInodes()); n > g*perGroup {
		used = uint32(min(perGroup, n-g*perGroup))
	}
	for i := range b {
		b[i] = 0xff
	}
	clearBits(b, uint64(used), perGroup)
	return used
}

// putInodes writes the k-th block of a group's inode table.
func (l *Layout) putInodes(b []byte, g, k uint64) error {
	first := g*uint64(l.groups.inodesPerGroup) + k*l.inodesPerBlock + 1
	for i := range l.inodesPerBlock {
		if ino := l.inode(first + i); ino != nil {
			if err := l.putInode(b[i*uint64(l.inodeSize):][:l.inodeSize], ino); err != nil {
				return err
			}
		}
	}
	return nil
}

// putInode writes struct ext4_inode (section "Index Nodes").
func (l *Layout) putInode(b []byte, ino *inode) error {
	n := ino.node
	size := uint64(n.Size) + uint64(len(n.Target))
	if ino.dir != noIndex {
		size = uint64(ino.sizeBlocks) * uint64(l.blockSize)
	}
	sectors := ino.blocks * uint64(l.blockSize/512)
	le.PutUint16(b[0x00:], fileModes[n.Type]|uint16(n.Mode)) // i_mode
	le.PutUint16(b[0x02:], uint16(n.UID))                    // i_uid
	le.PutUint32(b[0x04:], uint32(size))                     // i_size_lo
	le.PutUint16(b[0x18:], uint16(n.GID))                    // i_gid
	le.PutUint16(b[0x1a:], uint16(ino.links))                // i_links_count
	le.PutUint32(b[0x1c:], uint32(sectors))                  // i_blocks_lo
	le.PutUint32(b[0x20:], l.putBlockField(b[0x28:], ino))   // i_flags; i_block
	le.PutUint32(b[0x6c:], uint32(size>>32))                 // i_size_high
	le.PutUint16(b[0x74:], uint16(sectors>>32))              // l_i_blocks_high
	le.PutUint16(b[0x78:], uint16(n.UID>>16))                // l_i_uid_high
	le.PutUint16(b[0x7a:], uint16(n.GID>>16))                // l_i_gid_high
	l.putTimes(b, n.MTime)
	if ino.xattr != noIndex {
		block := l.xattrs[ino.xattr].block
		le.PutUint32(b[0x68:], uint32(block))     // i_file_acl_lo
		le.PutUint16(b[0x76:], uint16(block>>32)) // l_i_file_acl_high
	}
	inline, _, err := l.splitXattrs(n)
	if err != nil {
		return err
	}
	if l.extraSize() > 0 {
		le.PutUint16(b[0x80:], extraSize) // i_extra_isize
		putInodeXattrs(b[oldInodeSize+extraSize:], inline)
	}
	if !l.modern {
		return nil
	}
	sum := crc32c(l.inodeSeed(ino.number), b)
	le.PutUint16(b[0x7c:], uint16(sum)) // l_i_checksum_lo
	if l.extraSize() > 0 {
		le.PutUint16(b[0x82:], uint16(sum>>16)) // i_checksum_hi
	}
	return nil
}

// putTimes writes the four times of an inode: seconds with two more bits, and
// nanoseconds, in the extra field. An old inode has only seconds, and no time of
// birth.
func (l *Layout) putTimes(b []byte, mtime tree.Time) {
	if !l.params.Time.IsZero() && mtime.Compare(l.stamp) > 0 {
		mtime = l.stamp
	}
	for _, f := range []struct {
		low, extra int
		time       tree.Time
	}{
		{0x08, 0x8c, l.stamp}, // i_atime
		{0x0c, 0x84, l.stamp}, // i_ctime
		{0x10, 0x88, mtime},   // i_mtime
		{0x90, 0x94, l.stamp}, // i_crtime
	} {
		low := int32(f.time.Sec)
		if l.extraSize() == 0 {
			if f.low < oldInodeSize {
				le.PutUint32(b[f.low:], uint32(low))
			}
			continue
		}
		le.PutUint32(b[f.low:], uint32(low))
		le.PutUint32(b[f.extra:], uint32((f.time.Sec-int64(low))>>32)|f.time.Nsec<<2)
	}
}

// putBlockField writes i_block and returns i_flags.
func (l *Layout) putBlockField(b []byte, ino *inode) uint32 {
	n := ino.node
	switch n.Type {
	case tree.CharDevice, tree.BlockDevice:
		if n.Major < 256 && n.Minor < 256 {
			le.PutUint32(b, n.Major<<8|n.Minor)
		} else {
			le.PutUint32(b[4:], n.Minor&0xff|n.Major<<8|n.Minor&^0xff<<12)
		}
		return 0
	case tree.FIFO, tree.Socket:
		return 0
	case tree.Symlink:
		if len(n.Target) < fastSymlink {
			copy(b, n.Target)
			return 0
		}
	default: // blocks
	}
	root := l.treeRoot(ino)
	copy(b, root[:])
	flags := uint32(0)
	if l.modern {
		flags = flagExtents
	}
	if ino.dir != noIndex && l.dirs[ino.dir].indexed {
		flags |= flagIndex
	}
	return flags
}
