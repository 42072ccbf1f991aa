package ext4

import (
	"errors"
	"fmt"
	"io"
)

// Errors of the reader that a caller may tell apart. They come wrapped, with
// the path or the structure that is meant.
var (
	// ErrFormat: there is no ext2, ext3 or ext4 superblock.
	ErrFormat = errors.New("not an ext2, ext3 or ext4 file system")
	// ErrUnsupported: the file system, or a file, uses a feature that the
	// reader refuses.
	ErrUnsupported = errors.New("not supported by the ext4 reader")
	// ErrCorrupt: what is there contradicts the format, itself or a checksum.
	ErrCorrupt = errors.New("damaged ext4 file system")
)

func corrupt(format string, a ...any) error {
	return fmt.Errorf("%w: %w", ErrCorrupt, fmt.Errorf(format, a...))
}

func unsupported(format string, a ...any) error {
	return fmt.Errorf("%w: %w", ErrUnsupported, fmt.Errorf(format, a...))
}

// Reader reads a file system of the ext2, ext3 or ext4 kind, whoever made it.
// It is immutable: its methods, and the contents of its trees, may be used
// concurrently if the io.ReaderAt allows it.
//
// # What is read
//
// Blocks of 1 to 64 KiB, inodes of 128 bytes and more, revisions 0 and 1;
// extents and indirect blocks; flex_bg, meta_bg, bigalloc, sparse_super and
// sparse_super2, 64bit; inline data of files, directories and symlinks;
// extended attributes in inodes, in blocks and in inodes of their own
// (ea_inode), POSIX ACLs in the form of the system call; large_dir, dir_index
// (directories are read in a row, the index is only checked), huge_file,
// orphan_file, quota and project, casefold (names as they are stored). Checksums
// (metadata_csum, metadata_csum_seed, uninit_bg) are verified wherever
// something is read; bitmaps are not read, and the hashes of attributes not
// verified. A file whose inline data is shorter than its size goes on with a
// hole.
//
// A journal that needs recovery is replayed in memory: blocks of committed
// transactions hide those of the file system, which is never written. Revoked
// and escaped blocks, 64-bit numbers, wrap-around and the journal's checksums
// of versions 1 to 3 are understood. As in Linux, the journal counts only with
// the flag needs_recovery, and a damaged transaction is an error.
//
// # What is not
//
// Refused, with [ErrUnsupported]: encrypted files and files with fs-verity (by
// path; other files of such a file system are read up to there), compressed
// files, a journal device, a journal on another device or with fast commits
// that need recovery, and features that this package does not know, unless
// they are of the kind that hinders writing only.
//
// A tree has no place for inode flags (chattr), project ids, access, change
// and birth times, quotas and the case folding of a directory: they are left
// out. So is an unlinked file that a program still had open. Preallocated
// blocks that were never written are holes. Labels of security modules are
// ordinary attributes here.
//
// lost+found is left out when it is as [Layout.Write] makes it: an empty
// directory of root in the root directory, mode 0700, without attributes.
//
// # Limits
//
// Damaged or hostile images give errors, never a panic. The memory that a
// [Reader.Tree] takes is at most 64 MiB and about 64 times the metadata read;
// the largest journal is 10,240,000 blocks, a file's map has at most 4,194,304
// runs of blocks, and the value of an attribute 65536 bytes.
type Reader struct {
	dev  device
	sb   super
	info Info
}

// Open reads the superblock of a file system of at most size bytes that begins
// at offset 0 of r, and its journal if that needs recovery. It keeps r, which
// must stay readable as long as the Reader, its trees and their contents are
// in use. A file system that is larger than size is an error. For a partition,
// pass an [io.SectionReader].
func Open(r io.ReaderAt, size int64) (*Reader, error) {
	f := &Reader{dev: device{r: r, size: size, blockSize: 1024}}
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("open ext4: %w", err)
	}
	return f, nil
}

func (r *Reader) open() error {
	if err := r.readSuper(); err != nil {
		return err
	}
	if r.sb.incompat&featRecover == 0 {
		r.fillInfo(0)
		return nil
	}
	n, err := r.replay()
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := r.readSuper(); err != nil { // the journal may hold a newer one
		return fmt.Errorf("after the journal's recovery: %w", err)
	}
	r.fillInfo(n)
	return nil
}

// Info is what the superblock says.
type Info struct {
	Kind       string   // "ext2", "ext3" or "ext4": the oldest that has all its features
	Label      string   // volume name
	UUID       string   // canonical form
	LastMount  string   // directory where it was mounted last; often empty
	BlockSize  int      // in bytes
	Size       int64    // of the file system, in bytes
	Blocks     int64    // of BlockSize
	FreeBlocks int64    // stale if the file system was not unmounted
	Inodes     int64    // in all
	FreeInodes int64    // stale if the file system was not unmounted
	InodeSize  int      // in bytes
	Features   []string // names as dumpe2fs prints them, in its order
	Clean      bool     // unmounted in order, or never mounted
	Errors     bool     // Linux found errors in it
	// Replayed is the number of the journal's transactions that were not yet
	// in place and hide what is.
	Replayed int
}

// Info returns what the superblock says, after the journal's recovery.
func (r *Reader) Info() Info {
	i := r.info
	i.Features = append([]string(nil), i.Features...)
	return i
}
