// Package ext4 writes ext4, ext3 and ext2 file systems from a tree, in one pass
// and without privileges, and reads those that others made: see [Reader]. What
// follows is about writing.
//
// [Plan] computes the whole layout from metadata: every inode, every block of
// every file, and the size. [Layout.Write] then emits the image with strictly
// ascending offsets, reading each file once; what it skips is zero. So the
// writer behind it may be a sparse file, a pipe or an encoder of a disk
// format. The bytes are a function of the tree and [Params] alone.
//
// # What is written
//
// Blocks of 1, 2 or 4 KiB, inodes of 128 bytes up to a block, half-MD4
// directory hashes, and by type:
//
//	Ext4  has_journal ext_attr dir_index filetype meta_bg extent 64bit flex_bg
//	      sparse_super large_file huge_file dir_nlink extra_isize
//	      metadata_csum, and large_dir on request; 128 groups a flex group
//	Ext3  has_journal ext_attr dir_index filetype sparse_super large_file
//	Ext2  the same without has_journal
//
// These are mke2fs's features without resize_inode, and with meta_bg in ext4:
// so the file system grows online and offline without reserved descriptors.
// Ext2 and ext3 have block maps where ext4 has extents, and grow offline, to
// what Params.GrowTo says: resize2fs needs some free blocks for that, and leaves
// a broken file system when a full one has none.
//
// Directories of more than one block are indexed. Extended attributes that fit
// are kept in the inode, others in a block that equal sets share; in ext2 all
// are in blocks, since Linux's own ext2 driver looks nowhere else. POSIX ACLs
// are converted to ext4's own form. Modification times are the tree's, not
// later than Params.Time; the other three times of an inode equal Params.Time.
// Inodes of 128 bytes keep whole seconds, to 2038, and no time of birth.
//
// A file is written without holes unless its content implements
// [tree.Sparse], so that the bytes do not depend on how the source file
// system happens to store it.
//
// # Sizes and growth
//
// A file system of minimal size ends with the last block that is needed. It is
// as large as the smallest that mke2fs -d makes of the same files, journal and
// number of inodes, but for blocks of zeros that a content does not say are a
// hole, which mke2fs leaves out, as it does the index of large directories.
// Params.KernelReserve adds what Linux withholds when it mounts an ext4.
//
// The inodes of a group are fixed for life and inode numbers have 32 bits, so
// the number of inodes that a small file system starts with limits its growth:
// Summary.MaxSize says to what. Params.GrowTo turns that round: for 1 PiB a
// group of 128 MiB has at most 496 inodes, and the file system starts with as
// many groups as its files then need, 4.6 GiB for 18,000 of them. Most of that
// is a hole.
//
// Tools have limits of their own. resize2fs of e2fsprogs 1.47.0 refuses to
// grow beyond as many blocks of descriptors as a group has blocks: 256 TiB with
// blocks of 4 KiB, 16 TiB with 2 KiB, less than 1 TiB with 1 KiB. That of 1.47.2
// goes on to 1 PiB.
//
// # Limits
//
//	                      Ext4                    Ext3 and Ext2
//	file size, 4 KiB      2^32-1 blocks: 16 TiB   2194719883264 bytes: 2 TiB
//	           2 KiB      8 TiB                   275415851008 bytes: 256 GiB
//	           1 KiB      4 TiB                   17247252480 bytes: 16 GiB
//	names of a file       65000                   32000
//	subdirectories        no limit                31998
//	blocks                64 bits                 2^32-1
//	directory, 4 KiB      258570 blocks           259588 blocks
//	           1 KiB      15498 blocks            15748 blocks
//
// and a symlink's target is shorter than a block, a file's attributes fit into
// its inode and one block. large_dir multiplies the size of a directory by the
// entries of an index block. What is beyond a limit is an error of [Plan] that
// names the path and the limit.
//
// # What is not
//
// Inline data, ea_inode, resize_inode, bigalloc, quotas, encryption and verity
// are not written.
//
// Times from 2310-04-04 to 2378-04-22 are stored as the format defines them,
// but e2fsck before 2242 takes them for damaged times before 1970.
//
// The format is specified in the Linux kernel's documentation,
// https://docs.kernel.org/filesystems/ext4/, cited here by section name.
//
// # Stability
//
// The API may change until version 1 of the module. The bytes for the same
// tree and Params are part of it: a release that writes others says so.
package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"cairn/fsbuild/tree"
)

// Sizes that the format or this package fixes.
const (
	defaultBlockSize = 4096
	maxBlockSize     = 4096
	defaultInodeSize = 256
	descSize         = 64
	firstInode       = 11 // lost+found, as mke2fs numbers it
	rootInode        = 2
	journalInode     = 8
	minJournalBlocks = 1024
	maxJournalBlocks = 10_240_000 // the limit of mke2fs
	defaultJournal   = 16 << 20
	spareInodes      = 512 // at least, in a file system of minimal size
	maxLinks         = 65000
	maxName          = 255
	maxLabel         = 16
	minSeconds       = math.MinInt32
	maxSeconds       = minSeconds + 1<<34 - 1 // 2446-05-10: 34 bits in the inode
	minInodeRatio    = 1 << 10
	maxInodeRatio    = 64 << 20
	maxGrowTo        = 1 << 50
	maxReserved      = 50
	maxFactor        = 1000
)

// Params are what decides the bytes besides the tree. The zero value lacks a
// UUID, which is required. [Plan] refuses what contradicts itself or cannot be
// represented.
type Params struct {
	Type     Type     // Ext4, Ext3 or Ext2
	UUID     [16]byte // of the file system; required, since roots are found by it
	HashSeed [16]byte // of directory hashes; zero means the format's fixed seed
	Label    string   // at most 16 bytes, no NUL
	// Time is the time of creation, and of every inode's change, access and
	// birth. Modification times later than it are set to it. The zero Time
	// stamps 1970-01-01 and clamps nothing. From 1970 to 2446-05-10.
	Time      time.Time
	BlockSize int // in bytes: 1024, 2048 or 4096; 0 means 4096
	// InodeSize in bytes: a power of two from 128 to the block size; 0 means
	// 256. Inodes of 128 bytes have times in whole seconds to 2038, and no
	// room for xattrs.
	InodeSize int
	// Size in bytes, a multiple of the block size, up to 1 PiB. 0 means
	// minimal: the file system ends with the last block that is needed, times
	// Factor, plus Slack.
	Size int64
	// Slack is the free space in a file system of minimal size, in bytes,
	// rounded up to blocks.
	Slack int64
	// KernelReserve adds to Slack what Linux keeps for itself when it mounts
	// the file system (see [KernelReserved]), so that Slack is what programs
	// can use.
	KernelReserve bool
	// Factor multiplies a minimal size, before Slack is added: what it adds is
	// free space. 0 means 1; from 1 to 1000.
	Factor float64
	// GrowTo is a size in bytes to which the file system can be grown later,
	// up to 1 PiB: it limits the inodes of a group, so that inode numbers
	// suffice, and may need more groups, hence a larger size, for the same
	// number of inodes. In ext2 and ext3 it also keeps the blocks free that
	// resize2fs needs. 0 promises nothing; Summary.MaxSize says what follows.
	GrowTo int64
	// JournalSize is in bytes, a multiple of the block size, 1024 blocks or
	// more; 0 means 16 MiB (none for Ext2), negative no journal.
	JournalSize int64
	// JournalBySize chooses the journal as mke2fs does: none below 2048
	// blocks, then from 1024 to 262144 blocks.
	JournalBySize bool
	// Inodes is the least number of inodes. 0 means what InodeRatio says.
	Inodes uint32
	// InodeRatio is the bytes of the file system for each inode, from 1 KiB
	// to 64 MiB, as of mke2fs -i. 0 means what the tree needs and 512 (or a
	// sixteenth) more, and at least one for each 64 KiB of the groups.
	InodeRatio int64
	// ReservedPercent of the blocks are for root alone, 0 to 50. They are
	// among the free ones.
	ReservedPercent float64
	// LargeDir allows directories with three levels of index (see Limits).
	// Ext4 only; GRUB 2.06 as published does not read such a file system.
	LargeDir bool
}

// Summary says what a layout is like.
type Summary struct {
	Size           int64  // of the image, in bytes
	BlockSize      int64  // in bytes
	Blocks         int64  // of the file system
	FreeBlocks     int64  // of Blocks
	Groups         int64  // block groups of 8 × BlockSize blocks, the last may be shorter
	Inodes         int64  // in all
	UsedInodes     int64  // the format's reserved ones included
	InodesPerGroup int64  // fixed for life
	MaxSize        int64  // bytes to which it can grow: inode numbers have 32 bits
	JournalSize    int64  // in bytes, 0 for none
	KernelReserved int64  // bytes of the free blocks that Linux withholds even from root
	UUID           string // canonical form
}

// ErrTooSmall is wrapped by the error of a Params.Size below what the tree
// needs; the error is a *[SizeError].
var ErrTooSmall = errors.New("size is too small for the tree")

// SizeError says how much space is missing.
type SizeError struct {
	Size    int64 // asked for, in bytes
	Missing int64 // in bytes
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("%v: %d bytes are missing to %d", ErrTooSmall, e.Missing, e.Size)
}

// Unwrap returns ErrTooSmall.
func (e *SizeError) Unwrap() error { return ErrTooSmall }

// KernelReserved returns how many bytes of an ext4 file system of size bytes,
// with blocks of 4 KiB, Linux withholds even from root: 2 % of the blocks, at
// most 4096 blocks. A file system with less free space than that is full from
// the start.
func KernelReserved(size int64) int64 {
	return int64(reservedBlocks(uint64(max(size, 0))/defaultBlockSize)) * defaultBlockSize
}

// reservedBlocks is ext4_calculate_resv_clusters of Linux 6.1, in blocks.
func reservedBlocks(blocks uint64) uint64 { return min(blocks/50, 4096) }

// Write plans and writes in one call.
func Write(ctx context.Context, w io.WriterAt, t *tree.Tree, p Params) (Summary, error) {
	l, err := Plan(t, p)
	if err != nil {
		return Summary{}, err
	}
	return l.Write(ctx, w)
}
