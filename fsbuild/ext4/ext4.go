// Package ext4 writes ext4 file systems from a tree, in one pass and without
// privileges, and reads those that others made, ext2 and ext3 included: see
// [Reader]. What follows is about writing.
//
// [Plan] computes the whole layout from metadata: every inode, every block of
// every file, and the size. [Layout.Write] then emits the image with strictly
// ascending offsets, reading each file once; what it skips is zero. So the
// writer behind it may be a sparse file, a pipe or an encoder of a disk
// format. The bytes are a function of the tree and [Params] alone.
//
// # What is written
//
// Features: has_journal ext_attr dir_index filetype meta_bg extent 64bit
// flex_bg (128 groups) sparse_super large_file huge_file dir_nlink extra_isize
// metadata_csum; blocks of 4 KiB, inodes of 256 bytes, half-MD4 directory
// hashes. There is no resize_inode and no reserved descriptor: with meta_bg
// the file system grows online and offline without either. Directories of
// more than one block are indexed. Extended attributes that fit are kept in
// the inode, others in a block that equal sets share. POSIX ACLs are converted
// to ext4's own form. Modification times are the tree's, not later than
// Params.Time; the other three times of an inode equal Params.Time.
//
// A file is written without holes unless its content implements
// [tree.Sparse], so that the bytes do not depend on how the source file
// system happens to store it.
//
// # What is not
//
// Other block sizes, inline data, large_dir, ea_inode, quotas, encryption and
// verity are not written.
//
// Times from 2310-04-04 to 2378-04-22 are stored as the format defines them,
// but e2fsck before 2242 takes them for damaged times before 1970.
//
// The format is specified in the Linux kernel's documentation,
// https://docs.kernel.org/filesystems/ext4/, cited here by section name.
package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"cairn/fsbuild/tree"
)

// Sizes that the format or this package fixes.
const (
	blockSize        = 4096
	blocksPerGroup   = 8 * blockSize // one bitmap block
	inodeSize        = 256
	inodesPerBlock   = blockSize / inodeSize
	descSize         = 64
	groupsPerMeta    = blockSize / descSize // groups of one meta block group
	logGroupsPerFlex = 7
	groupsPerFlex    = 1 << logGroupsPerFlex
	maxInodesGroup   = 8 * blockSize // one bitmap block
	firstInode       = 11            // lost+found, as mke2fs numbers it
	rootInode        = 2
	journalInode     = 8
	minJournalBlocks = 1024
	maxJournalBlocks = 10_240_000 // the limit of mke2fs
	defaultJournal   = 16 << 20
	defaultInodes    = 2048 // a group at least: one for each 64 KiB
	spareInodes      = 512  // at least, in a file system of minimal size
	maxLinks         = 65000
	maxName          = 255
	maxLabel         = 16
	maxFileBlocks    = math.MaxUint32 // logical blocks have 32 bits, the last is reserved
	minSeconds       = math.MinInt32
	maxSeconds       = minSeconds + 1<<34 - 1 // 2446-05-10: 34 bits in the inode
	lostFoundBlocks  = 4
)

// Params are what decides the bytes besides the tree. The zero value lacks a
// UUID, which is required.
type Params struct {
	UUID     [16]byte // of the file system; required, since roots are found by it
	HashSeed [16]byte // of directory hashes; zero means the format's fixed seed
	Label    string   // at most 16 bytes, no NUL
	// Time is the time of creation, and of every inode's change, access and
	// birth. Modification times later than it are set to it. The zero Time
	// stamps 1970-01-01 and clamps nothing. From 1970 to 2446-05-10.
	Time      time.Time
	BlockSize int // in bytes; 0 or 4096
	// Size in bytes, a multiple of the block size. 0 means minimal: the file
	// system ends with the last block that is needed, plus Slack.
	Size int64
	// Slack is the free space in a file system of minimal size, in bytes,
	// rounded up to blocks.
	Slack int64
	// KernelReserve adds to Slack what Linux keeps for itself when it mounts
	// the file system (see [KernelReserved]), so that Slack is what programs
	// can use.
	KernelReserve bool
	JournalSize   int64 // in bytes, a multiple of the block size, 4 MiB or more; 0 means 16 MiB, negative no journal
	// Inodes is the least number of inodes. 0 means what the tree needs and
	// 512 (or a sixteenth) more, and at least 2048 a group.
	Inodes uint32
}

// Summary says what a layout is like.
type Summary struct {
	Size           int64  // of the image, in bytes
	Blocks         int64  // of the file system, 4 KiB each
	FreeBlocks     int64  // of Blocks
	Groups         int64  // block groups of 128 MiB, the last may be shorter
	Inodes         int64  // in all
	UsedInodes     int64  // the format's reserved ones included
	InodesPerGroup int64  // fixed for life
	MaxSize        int64  // bytes to which it can grow: inode numbers have 32 bits
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

// KernelReserved returns how many bytes of a file system of size bytes Linux
// withholds even from root: 2 % of the blocks, at most 4096 blocks. A file
// system with less free space than that is full from the start.
func KernelReserved(size int64) int64 {
	return int64(reservedBlocks(uint64(max(size, 0))/blockSize)) * blockSize
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

// check refuses parameters that cannot be represented.
func (p *Params) check() error {
	switch {
	case p.UUID == [16]byte{}:
		return errors.New("the UUID is missing")
	case len(p.Label) > maxLabel:
		return fmt.Errorf("label %q has %d bytes, the limit is %d", p.Label, len(p.Label), maxLabel)
	case strings.IndexByte(p.Label, 0) >= 0:
		return fmt.Errorf("label %q has a NUL byte", p.Label)
	case p.BlockSize != 0 && p.BlockSize != blockSize:
		return fmt.Errorf("block size %d is not supported, only %d", p.BlockSize, blockSize)
	case p.Size < 0 || p.Size%blockSize != 0:
		return fmt.Errorf("size %d is not a multiple of %d", p.Size, blockSize)
	case p.Slack < 0:
		return fmt.Errorf("slack %d is negative", p.Slack)
	case !p.Time.IsZero() && (p.Time.Unix() < 0 || p.Time.Unix() > maxSeconds):
		return fmt.Errorf("time %s is not from 1970 to 2446", p.Time.UTC().Format(time.RFC3339))
	case p.Size != 0 && (p.Slack != 0 || p.KernelReserve):
		return errors.New("slack goes with minimal size only")
	}
	return p.checkJournal()
}

func (p *Params) checkJournal() error {
	if p.JournalSize <= 0 {
		return nil
	}
	n := p.JournalSize / blockSize
	if p.JournalSize%blockSize != 0 || n < minJournalBlocks || n > maxJournalBlocks {
		return fmt.Errorf("journal size %d is not a multiple of %d from %d to %d", p.JournalSize,
			blockSize, minJournalBlocks*blockSize, int64(maxJournalBlocks)*blockSize)
	}
	return nil
}

// journalBlocks returns the size of the journal, 0 for none.
func (p *Params) journalBlocks() uint32 {
	switch {
	case p.JournalSize < 0:
		return 0
	case p.JournalSize == 0:
		return defaultJournal / blockSize
	}
	return uint32(p.JournalSize / blockSize)
}

// stamp returns the time for all that has none of its own.
func (p *Params) stamp() tree.Time {
	if p.Time.IsZero() {
		return tree.Time{}
	}
	return tree.Time{Sec: p.Time.Unix(), Nsec: uint32(p.Time.Nanosecond())}
}
