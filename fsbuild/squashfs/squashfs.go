// Package squashfs writes squashfs 4.0 file systems from a tree, without
// privileges. The format is described in the Linux kernel's documentation,
// https://docs.kernel.org/filesystems/squashfs.html, and field by field in
// fs/squashfs/squashfs_fs.h; structures are cited here by their names there.
//
// # What is written
//
// Data, then the tables of inodes, directories, fragments, export (inode
// numbers, for NFS), ids and attributes, all compressed where that makes them
// smaller, padded to 4 KiB. All types of nodes, hard links, directory indexes.
// Tail ends of files and small files are packed into fragment blocks. Files of
// equal content are stored once. Blocks that are all zero are not stored.
// Attributes of the namespaces user, trusted and security; equal sets are
// stored once.
//
// Blocks are compressed by as many goroutines as there are processors, and
// written in the order of the tree, so that the bytes are a function of the
// tree and [Params] alone. Memory is a few blocks for each processor, and the
// metadata.
//
// # What is not
//
// Times have whole seconds. There are no POSIX ACLs in the format, see
// Params.SkipXattrs. Compressor options, lzo, lz4, lzma and values of
// attributes that are stored out of line are not written, and the package does
// not read file systems.
//
// # Stability
//
// The API may change until version 1 of the module. The bytes for the same
// tree and Params are part of it: a release that writes others says so.
package squashfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"strings"
	"time"

	"cairn/fsbuild/tree"
)

// Compression is an algorithm. Linux needs the matching option in its
// configuration to mount the file system.
type Compression uint16

// The algorithms, numbered as in the superblock.
const (
	Gzip Compression = 1 // zlib streams
	XZ   Compression = 4 // smallest, slow
	Zstd Compression = 6 // fastest to read
)

// Sizes that the format or this package fixes.
const (
	metaSize     = 8192 // of a metadata block, uncompressed
	superSize    = 96
	defaultBlock = 128 << 10
	minBlock     = 4 << 10
	maxBlock     = 1 << 20
	padding      = 4096
	maxName      = 255
	maxTarget    = 4095
	maxIDs       = math.MaxUint16 // the count has 16 bits
	none         = math.MaxUint32 // no fragment, no attributes
)

// Params are what decides the bytes besides the tree. The zero value will do.
type Params struct {
	Compression Compression // 0 means Gzip
	// Level is 1 (fast) to 9 for Gzip, 1 to 4 for Zstd, 0 for XZ. 0 means 7
	// for Gzip and 4 for Zstd. They are not those of other programs: measured,
	// 4 makes images 7 % larger than mksquashfs -comp zstd in half its time.
	Level int
	// BlockSize in bytes: a power of two from 4 KiB to 1 MiB. 0 means 128 KiB.
	BlockSize int
	// Time is the time of creation, and what later modification times are set
	// to. The zero Time stamps 1970-01-01 and clamps nothing.
	Time time.Time
	// SkipXattrs leaves out attributes of namespaces that the format does not
	// have, which are an error otherwise. POSIX ACLs are such.
	SkipXattrs bool
}

// Summary says what was written.
type Summary struct {
	Size       int64 // of the image, in bytes, a multiple of 4096
	Used       int64 // of Size, without the padding
	Inodes     int64
	Fragments  int64 // fragment blocks
	Duplicates int64 // files whose content was there already
}

// ErrLimit is wrapped by the error of a tree that the format cannot hold: a
// time before 1970 or after 2106-02-07, a name above 255 or a link target
// above 4095 bytes, a device beyond 12 bits of major or 20 of minor, more than
// 65535 owners and groups, attributes of other namespaces or too large.
var ErrLimit = errors.New("not possible in squashfs")

// Write writes the file system to w, reading each file once, and twice if it
// has a block or more and another one has the same size. Offsets ascend from
// the first block on; the superblock at offset 0 is written last. Errors of
// nodes name the path; what the format cannot hold is found before anything is
// written.
func Write(ctx context.Context, w io.WriterAt, t *tree.Tree, p Params) (Summary, error) {
	if err := p.complete(); err != nil {
		return Summary{}, fmt.Errorf("write squashfs: %w", err)
	}
	fs := &fileSystem{p: p, w: w, pos: superSize}
	if err := fs.plan(t); err != nil {
		return Summary{}, fmt.Errorf("write squashfs: %w", err)
	}
	if err := fs.writeData(ctx); err != nil {
		return Summary{}, fmt.Errorf("write squashfs: %w", err)
	}
	if err := fs.writeTables(ctx); err != nil {
		return Summary{}, fmt.Errorf("write squashfs: %w", err)
	}
	return fs.summary, nil
}

// complete fills in the defaults and refuses what cannot be.
func (p *Params) complete() error {
	if p.Compression == 0 {
		p.Compression = Gzip
	}
	limit := map[Compression]int{Gzip: 9, Zstd: 4, XZ: 0}
	levels, ok := limit[p.Compression]
	if p.BlockSize == 0 {
		p.BlockSize = defaultBlock
	}
	switch {
	case !ok:
		return fmt.Errorf("compression %d is not supported", p.Compression)
	case p.Level < 0 || p.Level > levels:
		return fmt.Errorf("compression level %d is not from 0 to %d", p.Level, levels)
	case p.BlockSize < minBlock || p.BlockSize > maxBlock || bits.OnesCount(uint(p.BlockSize)) != 1:
		return fmt.Errorf("block size %d is not a power of two from %d to %d", p.BlockSize, minBlock, maxBlock)
	case !p.Time.IsZero() && (p.Time.Unix() < 0 || p.Time.Unix() > math.MaxUint32):
		return fmt.Errorf("time %s is not from 1970 to 2106", p.Time.UTC().Format(time.RFC3339))
	}
	return nil
}

// stamp returns the time of creation.
func (p *Params) stamp() uint32 {
	if p.Time.IsZero() {
		return 0
	}
	return uint32(p.Time.Unix())
}

// seconds is the time of a node as the file system has it.
func (p *Params) seconds(n *tree.Node) int64 {
	if p.Time.IsZero() {
		return n.MTime.Sec
	}
	return min(n.MTime.Sec, p.Time.Unix())
}

func (p *Params) check(n *tree.Node) error {
	if err := n.Check(); err != nil {
		return err
	}
	sec := p.seconds(n)
	switch {
	case len(n.Name()) > maxName:
		return fmt.Errorf("%w: a name of %d bytes, the limit is %d", ErrLimit, len(n.Name()), maxName)
	case len(n.Target) > maxTarget:
		return fmt.Errorf("%w: a link target of %d bytes, the limit is %d", ErrLimit, len(n.Target), maxTarget)
	case n.Major >= 1<<12 || n.Minor >= 1<<20:
		return fmt.Errorf("%w: device %d:%d", ErrLimit, n.Major, n.Minor)
	case sec < 0 || sec > math.MaxUint32:
		return fmt.Errorf("%w: time %d is not from 0 to %d", ErrLimit, sec, math.MaxUint32)
	}
	for _, x := range n.Xattrs {
		kind, name := splitXattr(x.Name)
		switch {
		case kind < 0 && p.SkipXattrs:
		case kind < 0:
			return fmt.Errorf("%w: attribute %q", ErrLimit, x.Name)
		case len(name) > math.MaxUint16 || len(x.Value) > 64<<10: // XATTR_SIZE_MAX
			return fmt.Errorf("%w: attribute %q of %d bytes", ErrLimit, x.Name, len(x.Value))
		}
	}
	return nil
}

// splitXattr returns the number of a name's namespace, -1 if it has none, and
// the rest of the name.
func splitXattr(name string) (kind int, rest string) {
	for i, prefix := range []string{"user.", "trusted.", "security."} {
		if after, ok := strings.CutPrefix(name, prefix); ok {
			return i, after
		}
	}
	return -1, name
}
