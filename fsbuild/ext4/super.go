package ext4

import (
	"encoding/binary"
	"math"
)

// putSuper writes the superblock as group g keeps it.
func (l *Layout) putSuper(b []byte, g uint64) {
	p, m := &l.params, l.groups
	inodes := uint32(m.groups) * m.inodesPerGroup
	le.PutUint32(b[0x00:], inodes)                   // s_inodes_count
	le.PutUint32(b[0x04:], uint32(l.blocks))         // s_blocks_count_lo
	le.PutUint32(b[0x08:], uint32(l.reserved()))     // s_r_blocks_count_lo
	le.PutUint32(b[0x0c:], uint32(l.freeBlocks))     // s_free_blocks_count_lo
	le.PutUint32(b[0x10:], inodes-l.usedInodes())    // s_free_inodes_count
	le.PutUint32(b[0x14:], uint32(l.firstBlock))     // s_first_data_block
	le.PutUint32(b[0x18:], l.logBlockSize())         // s_log_block_size
	le.PutUint32(b[0x1c:], l.logBlockSize())         // s_log_cluster_size
	le.PutUint32(b[0x20:], uint32(l.blocksPerGroup)) // s_blocks_per_group
	le.PutUint32(b[0x24:], uint32(l.blocksPerGroup)) // s_clusters_per_group
	le.PutUint32(b[0x28:], m.inodesPerGroup)         // s_inodes_per_group
	le.PutUint16(b[0x36:], math.MaxUint16)           // s_max_mnt_count: never
	le.PutUint16(b[0x38:], superMagic)               // s_magic
	le.PutUint16(b[0x3a:], stateClean)               // s_state
	le.PutUint16(b[0x3c:], errorsContinue)           // s_errors
	le.PutUint32(b[0x4c:], revDynamic)               // s_rev_level
	le.PutUint32(b[0x54:], firstInode)               // s_first_ino
	le.PutUint16(b[0x58:], uint16(l.inodeSize))      // s_inode_size
	le.PutUint16(b[0x5a:], uint16(g))                // s_block_group_nr
	le.PutUint32(b[0x5c:], l.compat())               // s_feature_compat
	le.PutUint32(b[0x60:], l.incompat())             // s_feature_incompat
	le.PutUint32(b[0x64:], l.readOnlyCompat())       // s_feature_ro_compat
	copy(b[0x68:0x78], p.UUID[:])                    // s_uuid
	copy(b[0x78:0x88], p.Label)                      // s_volume_name
	copy(b[0xec:0xfc], p.HashSeed[:])                // s_hash_seed
	b[0xfc] = hashHalfMD4                            // s_def_hash_version
	le.PutUint32(b[0x100:], mountXattrACL)           // s_default_mount_opts
	le.PutUint16(b[0x15c:], uint16(l.extraSize()))   // s_min_extra_isize
	le.PutUint16(b[0x15e:], uint16(l.extraSize()))   // s_want_extra_isize
	le.PutUint32(b[0x160:], flagSigned)              // s_flags
	l.putSuperTimes(b)
	l.putSuperJournal(b)
	if l.modern {
		l.putSuperModern(b)
	}
}

// putSuperModern writes what ext2 and ext3 lack.
func (l *Layout) putSuperModern(b []byte) {
	le.PutUint16(b[0xfe:], descSize)                           // s_desc_size
	le.PutUint32(b[0x150:], uint32(l.blocks>>32))              // s_blocks_count_hi
	le.PutUint32(b[0x154:], uint32(l.reserved()>>32))          // s_r_blocks_count_hi
	le.PutUint32(b[0x158:], uint32(l.freeBlocks>>32))          // s_free_blocks_count_hi
	b[0x174] = logGroupsPerFlex                                // s_log_groups_per_flex
	b[0x175] = checksumCRC32C                                  // s_checksum_type
	le.PutUint32(b[0x3fc:], crc32c(math.MaxUint32, b[:0x3fc])) // s_checksum
}

func (l *Layout) compat() uint32 {
	if l.journal.node == nil {
		return compatExtAttr | compatDirIndex
	}
	return compatHasJournal | compatExtAttr | compatDirIndex
}

func (s *shape) incompat() uint32 {
	f := uint32(incompatFiletype)
	if s.modern {
		f |= incompatMetaBG | incompatExtents | incompat64Bit | incompatFlexBG
	}
	if s.largeDir {
		f |= incompatLargeDir
	}
	return f
}

func (s *shape) readOnlyCompat() uint32 {
	if !s.modern {
		return roSparseSuper | roLargeFile
	}
	return roSparseSuper | roLargeFile | roHugeFile | roDirNlink | roExtraIsize | roMetadataCsum
}

// reserved is the number of blocks kept for root.
func (l *Layout) reserved() uint64 {
	return uint64(float64(l.blocks) * l.params.ReservedPercent / 100)
}

// putSuperTimes writes the times, their bits 32 to 39 apart.
func (l *Layout) putSuperTimes(b []byte) {
	for _, at := range []struct{ low, high int }{
		{0x30, 0x274},  // s_wtime
		{0x40, 0x277},  // s_lastcheck
		{0x108, 0x276}, // s_mkfs_time
	} {
		le.PutUint32(b[at.low:], uint32(l.stamp.Sec))
		b[at.high] = byte(l.stamp.Sec >> 32)
	}
}

// putSuperJournal writes the journal's number and the copy of its extents.
func (l *Layout) putSuperJournal(b []byte) {
	if l.journal.node == nil {
		return
	}
	le.PutUint32(b[0xe0:], journalInode) // s_journal_inum
	b[0xfd] = journalBackup              // s_jnl_backup_type
	root := l.treeRoot(&l.journal)
	copy(b[0x10c:], root[:])                                 // s_jnl_blocks: i_block
	le.PutUint32(b[0x148:], uint32(l.journal.node.Size>>32)) // i_size_high
	le.PutUint32(b[0x14c:], uint32(l.journal.node.Size))     // i_size
}

// putJournal writes the journal's superblock, version 2, empty (section
// "Journal (jbd2)"). It is big-endian.
func (l *Layout) putJournal(b []byte) {
	be := binary.BigEndian
	be.PutUint32(b[0x00:], 0xc03b3998)           // h_magic
	be.PutUint32(b[0x04:], 4)                    // h_blocktype: superblock v2
	be.PutUint32(b[0x0c:], uint32(l.blockSize))  // s_blocksize
	be.PutUint32(b[0x10:], l.journal.sizeBlocks) // s_maxlen
	be.PutUint32(b[0x14:], 1)                    // s_first
	be.PutUint32(b[0x18:], 1)                    // s_sequence
	copy(b[0x30:0x40], l.params.UUID[:])         // s_uuid
	be.PutUint32(b[0x40:], 1)                    // s_nr_users
}
