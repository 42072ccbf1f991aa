package ext4

import (
	"bytes"
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// Features that decide how something is read (section "Super Block").
const (
	featSparseSuper2 = 0x200 // compatible

	featCompression  = 0x1 // incompatible
	featRecover      = 0x4
	featJournalDev   = 0x8
	featMetaBG       = 0x10
	feat64Bit        = 0x80
	featChecksumSeed = 0x2000
	featLargeDir     = 0x4000

	featSparseSuper  = 0x1 // read-only compatible
	featGroupCRC16   = 0x10
	featMetadataCsum = 0x400

	// featReadable are the incompatible features that can be read: filetype,
	// needs_recovery, meta_bg, extent, 64bit, mmp, flex_bg, ea_inode,
	// metadata_csum_seed, large_dir, inline_data, encrypt, casefold.
	featReadable = 0x2 | featRecover | featMetaBG | 0x40 | feat64Bit | 0x100 | 0x200 | 0x400 |
		featChecksumSeed | featLargeDir | 0x8000 | 0x10000 | 0x20000

	ext3Compat   = compatHasJournal
	ext4Incompat = ^uint32(0x2 | featRecover | featJournalDev | featMetaBG)
	ext4RO       = ^uint32(0x1 | 0x2 | 0x4)
)

const (
	maxLogBlockSize = 6 // 1024 << 6 is 64 KiB
	minDescSize     = 32
	stateErrors     = 2
)

// featureNames are the names of e2fsprogs, by bit, for compatible,
// incompatible and read-only compatible features.
var featureNames = [3][]string{
	{
		"dir_prealloc", "imagic_inodes", "has_journal", "ext_attr", "resize_inode", "dir_index", "lazy_bg",
		"snapshot_bitmap", "", "sparse_super2", "fast_commit", "stable_inodes", "orphan_file",
	},
	{
		"compression", "filetype", "needs_recovery", "journal_dev", "meta_bg", "", "extent", "64bit", "mmp", "flex_bg",
		"ea_inode", "", "dirdata", "metadata_csum_seed", "large_dir", "inline_data", "encrypt", "casefold",
	},
	{
		"sparse_super", "large_file", "", "huge_file", "uninit_bg", "dir_nlink", "extra_isize", "snapshot", "quota",
		"bigalloc", "metadata_csum", "replica", "read-only", "project", "shared_blocks", "verity", "orphan_present",
	},
}

// nameFeatures names set bits; those without a name are numbered as e2fsprogs
// does it.
func nameFeatures(kind int, set uint32) (names []string) {
	for ; set != 0; set &= set - 1 {
		bit := bits.TrailingZeros32(set)
		if bit < len(featureNames[kind]) && featureNames[kind][bit] != "" {
			names = append(names, featureNames[kind][bit])
		} else {
			names = append(names, fmt.Sprintf("FEATURE_%c%d", "CIR"[kind], bit))
		}
	}
	return names
}

// super is what the reader needs of the superblock.
type super struct {
	raw            [superSize]byte
	compat         uint32
	incompat       uint32
	ro             uint32
	inodes         uint32
	blocks         uint64
	firstData      uint64 // s_first_data_block
	blocksPerGroup uint32
	inodesPerGroup uint32
	groups         uint64
	inodeSize      int
	firstInode     uint32 // what is below is reserved
	descSize       int
	seed           uint32 // of checksums
}

func (s *super) u16(at int) uint16 { return le.Uint16(s.raw[at:]) }
func (s *super) u32(at int) uint32 { return le.Uint32(s.raw[at:]) }

// readSuper reads and checks the superblock and sets the device's block size.
func (r *Reader) readSuper() error {
	s := &r.sb
	if r.dev.size < superOffset+superSize {
		return fmt.Errorf("%w: %d bytes are too few", ErrFormat, r.dev.size)
	}
	if err := r.dev.read(s.raw[:], superOffset); err != nil {
		return err
	}
	if s.u16(0x38) != superMagic {
		return ErrFormat
	}
	if err := s.parse(); err != nil {
		return fmt.Errorf("superblock: %w", err)
	}
	r.dev.blockSize = 1024 << s.u32(0x18)
	if s.blocks > uint64(r.dev.size/r.dev.blockSize) {
		return corrupt("superblock: %d blocks of %d bytes, but only %d bytes are there", s.blocks, r.dev.blockSize, r.dev.size)
	}
	return nil
}

func (s *super) parse() error {
	s.compat, s.incompat, s.ro = s.u32(0x5c), s.u32(0x60), s.u32(0x64)
	s.inodeSize, s.firstInode = int(s.u16(0x58)), s.u32(0x54)
	switch rev := s.u32(0x4c); {
	case rev == 0:
		s.compat, s.incompat, s.ro = 0, 0, 0
		s.inodeSize, s.firstInode = oldInodeSize, firstInode
	case rev > revDynamic:
		return unsupported("revision %d", rev)
	}
	if unknown := s.incompat &^ uint32(featReadable); unknown != 0 {
		return unsupported("features %v", nameFeatures(1, unknown))
	}
	if err := s.parseChecksum(); err != nil {
		return err
	}
	return s.parseGeometry()
}

// parseChecksum verifies the superblock and finds the seed of all other
// checksums.
func (s *super) parseChecksum() error {
	s.seed = crc32c(math.MaxUint32, s.raw[0x68:0x78])
	if s.incompat&featChecksumSeed != 0 {
		s.seed = s.u32(0x270)
	}
	if s.ro&featMetadataCsum == 0 {
		return nil
	}
	if s.raw[0x175] != checksumCRC32C {
		return unsupported("checksum type %d", s.raw[0x175])
	}
	if crc32c(math.MaxUint32, s.raw[:0x3fc]) != s.u32(0x3fc) {
		return corrupt("checksum is wrong")
	}
	return nil
}

func (s *super) parseGeometry() error {
	if s.u32(0x18) > maxLogBlockSize {
		return corrupt("block size 1024 << %d", s.u32(0x18))
	}
	blockSize := 1024 << s.u32(0x18)
	s.inodes, s.inodesPerGroup = s.u32(0x00), s.u32(0x28)
	s.blocks, s.firstData, s.blocksPerGroup = uint64(s.u32(0x04)), uint64(s.u32(0x14)), s.u32(0x20)
	s.descSize = minDescSize
	if s.incompat&feat64Bit != 0 {
		s.blocks |= uint64(s.u32(0x150)) << 32
		s.descSize = int(s.u16(0xfe))
	}
	switch {
	case s.inodeSize < oldInodeSize || s.inodeSize > blockSize || s.inodeSize&(s.inodeSize-1) != 0:
		return corrupt("inode size %d", s.inodeSize)
	case s.descSize < minDescSize || s.descSize > blockSize || s.descSize&(s.descSize-1) != 0:
		return corrupt("descriptor size %d", s.descSize)
	case s.incompat&feat64Bit != 0 && s.descSize < descSize:
		return corrupt("descriptor size %d with 64bit", s.descSize)
	case s.blocksPerGroup == 0 || s.inodesPerGroup == 0 || s.inodesPerGroup > uint32(8*blockSize):
		return corrupt("%d blocks and %d inodes per group", s.blocksPerGroup, s.inodesPerGroup)
	case s.firstData > 1 || s.firstData >= s.blocks:
		return corrupt("first data block %d of %d blocks", s.firstData, s.blocks)
	case s.blocks > math.MaxInt64/uint64(blockSize):
		return corrupt("%d blocks", s.blocks)
	case s.firstInode <= rootInode || s.firstInode > s.inodes:
		return corrupt("first inode %d of %d", s.firstInode, s.inodes)
	}
	s.groups = (s.blocks-s.firstData-1)/uint64(s.blocksPerGroup) + 1
	if uint64(s.inodes) > s.groups*uint64(s.inodesPerGroup) {
		return corrupt("%d inodes in %d groups of %d", s.inodes, s.groups, s.inodesPerGroup)
	}
	return nil
}

// fillInfo sets what Info returns.
func (r *Reader) fillInfo(replayed int) {
	s := &r.sb
	text := func(at, size int) string {
		b, _, _ := bytes.Cut(s.raw[at:at+size], []byte{0})
		return string(b)
	}
	u, state := s.raw[0x68:0x78], s.u16(0x3a)
	free := uint64(s.u32(0x0c))
	if s.incompat&feat64Bit != 0 {
		free |= uint64(s.u32(0x158)) << 32
	}
	r.info = Info{
		Kind:       s.kind(),
		Label:      text(0x78, maxLabel),
		UUID:       fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]),
		LastMount:  text(0x88, 64),
		BlockSize:  int(r.dev.blockSize),
		Size:       int64(s.blocks) * r.dev.blockSize,
		Blocks:     int64(s.blocks),
		FreeBlocks: int64(free),
		Inodes:     int64(s.inodes),
		FreeInodes: int64(s.u32(0x10)),
		InodeSize:  s.inodeSize,
		Features:   slices.Concat(nameFeatures(0, s.compat), nameFeatures(1, s.incompat), nameFeatures(2, s.ro)),
		Clean:      state&stateClean != 0 && s.incompat&featRecover == 0,
		Errors:     state&stateErrors != 0,
		Replayed:   replayed,
	}
}

func (s *super) kind() string {
	switch {
	case s.incompat&ext4Incompat != 0 || s.ro&ext4RO != 0:
		return "ext4"
	case s.compat&ext3Compat != 0:
		return "ext3"
	}
	return "ext2"
}

// descriptorOffset returns where the descriptor of a group is, in bytes
// (sections "Block Group Descriptors", "Meta Block Groups").
func (r *Reader) descriptorOffset(g uint64) int64 {
	s := &r.sb
	perBlock := uint64(r.dev.blockSize) / uint64(s.descSize)
	n, at := g/perBlock, int64(g%perBlock)*int64(s.descSize)
	primary := uint64(superOffset / r.dev.blockSize) // block of the superblock
	block := primary + 1 + n
	if s.incompat&featMetaBG != 0 && n >= uint64(s.u32(0x104)) { // s_first_meta_bg
		first := n * perBlock
		block = s.firstData + first*uint64(s.blocksPerGroup)
		if s.groupHasSuper(first) {
			block++
		}
		if first == 0 && primary > s.firstData { // bigalloc with 1 KiB blocks
			block++
		}
	}
	if block >= s.blocks {
		return math.MaxInt64 // beyond the end
	}
	return int64(block)*r.dev.blockSize + at
}

func (s *super) groupHasSuper(g uint64) bool {
	switch {
	case g == 0:
		return true
	case s.compat&featSparseSuper2 != 0:
		return g == uint64(s.u32(0x24c)) || g == uint64(s.u32(0x250)) // s_backup_bgs
	case s.ro&featSparseSuper != 0:
		return hasSuper(g)
	}
	return true
}

// inodeTable returns the first block of a group's inode table.
func (r *Reader) inodeTable(src source, g uint64) (uint64, error) {
	s := &r.sb
	b := make([]byte, s.descSize)
	if err := src.read(b, r.descriptorOffset(g)); err != nil {
		return 0, fmt.Errorf("group %d: %w", g, err)
	}
	sum, ok := le.Uint16(b[0x1e:]), true
	switch {
	case s.ro&featMetadataCsum != 0:
		le.PutUint16(b[0x1e:], 0)
		ok = uint16(crc32c(crc32c32(s.seed, uint32(g)), b)) == sum
	case s.ro&featGroupCRC16 != 0:
		var number [4]byte
		le.PutUint32(number[:], uint32(g))
		c := crc16(crc16(math.MaxUint16, s.raw[0x68:0x78]), number[:])
		if c = crc16(c, b[:0x1e]); s.incompat&feat64Bit != 0 {
			c = crc16(c, b[0x20:])
		}
		ok = c == sum
	}
	if !ok {
		return 0, corrupt("group %d: checksum of the descriptor is wrong", g)
	}
	table := uint64(le.Uint32(b[0x08:]))
	if s.descSize >= descSize {
		table |= uint64(le.Uint32(b[0x28:])) << 32
	}
	return table, nil
}

// crc16 continues a CRC-16 with the polynomial 0x8005, bits reflected.
func crc16(c uint16, b []byte) uint16 {
	for _, v := range b {
		c ^= uint16(v)
		for range 8 {
			c = c>>1 ^ 0xa001*(c&1)
		}
	}
	return c
}
