// Package cpio writes cpio archives of the "newc" format, as Linux unpacks
// them for its initramfs and GNU cpio and libarchive read them. The format is
// specified in the Linux kernel's Documentation,
// https://docs.kernel.org/driver-api/early-userspace/buffer-format.html, and
// in cpio(5) of libarchive.
//
// # What is written
//
// One entry for each node of the tree in canonical order, so parents come
// before what is in them, the root as "."; all seven types; the entry
// TRAILER!!!; zeros to a multiple of Params.Align. Inode numbers count from 1
// in that order. Hard links share a number, and the last name carries the
// content, the others none: the kernel and GNU cpio create them so. (All
// readers make copies of a symbolic link with several names.) The archive's
// own device number is 0:0.
//
// # What is not
//
// The format has no extended attributes and no fractions of a second: both
// are left out. What it cannot hold is an error before the first byte is
// written, see [ErrLimit]. There are no checksums (format 070702), and the
// package does not compress and does not read archives.
package cpio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"cairn/fsbuild/internal/contents"
	"cairn/fsbuild/tree"
)

const (
	magic       = "070701"
	trailerName = "TRAILER!!!"
	// maxName is PATH_MAX of Linux: longer names and targets, the NUL of
	// names included, are skipped by its unpacker without a word.
	maxName = 4096

	defaultAlign = 512
	maxAlign     = 1 << 20
)

// ErrLimit is wrapped by the error of a node that the format, or Linux's
// unpacker, cannot hold: a file of 4 GiB or more, a time before 1970 or after
// 2106-02-07, a name above 4095 or a link target above 4096 bytes, more than
// 2^32-2 files, a file called "TRAILER!!!" in the root.
var ErrLimit = errors.New("not possible in a newc archive")

// Params are what decides the bytes besides the tree. The zero value will do.
type Params struct {
	// Align is the multiple of bytes that the archive's size is brought to
	// with zeros: a multiple of 4 up to 1 MiB, so that Linux can read another
	// archive behind it. 0 means 512, as GNU cpio does.
	Align int
	// Time, if not zero, is what later modification times are set to.
	Time time.Time
}

// Summary says what was written.
type Summary struct {
	Size    int64 // of the archive, in bytes
	Entries int64 // without the trailer
}

// Write writes the archive to w, reading each file once. The error names the
// path, and wraps ErrLimit if nothing was written because of it.
func Write(ctx context.Context, w io.Writer, t *tree.Tree, p Params) (Summary, error) {
	if p.Align == 0 {
		p.Align = defaultAlign
	}
	if p.Align < 4 || p.Align > maxAlign || p.Align%4 != 0 {
		return Summary{}, fmt.Errorf("write cpio archive: alignment %d is not a multiple of 4 up to %d", p.Align, maxAlign)
	}
	a := &archive{p: p, groups: map[uint64]*group{}}
	if err := a.plan(t); err != nil {
		return Summary{}, fmt.Errorf("write cpio archive: %w", err)
	}
	a.out = contents.NewOutput(w)
	if err := a.write(ctx, t); err != nil {
		return Summary{}, fmt.Errorf("write cpio archive: %w", err)
	}
	return Summary{Size: a.out.Size, Entries: int64(t.Len())}, nil
}

// group is a file with several names.
type group struct {
	inode uint32 // 0 until the first name is written
	names uint32
	left  uint32 // names that are still to be written
}

type archive struct {
	p      Params
	out    *contents.Output
	head   []byte // for headers
	groups map[uint64]*group
	subs   map[string]uint32 // subdirectories of a directory
	inode  uint32            // that was used last
}

// plan checks every node and counts names and subdirectories.
func (a *archive) plan(t *tree.Tree) error {
	if uint64(t.Len()) >= math.MaxUint32 {
		return fmt.Errorf("%w: %d files", ErrLimit, t.Len())
	}
	a.subs = map[string]uint32{}
	for n := range t.All() {
		if err := a.check(n); err != nil {
			return fmt.Errorf("%q: %w", n.Path, err)
		}
		if n.Type == tree.Directory && n.Path != "." {
			a.subs[n.Parent()]++
		}
		if n.Inode != 0 {
			g := a.groups[n.Inode]
			if g == nil {
				g = &group{}
				a.groups[n.Inode] = g
			}
			g.names++
			g.left++
		}
	}
	return nil
}

func (a *archive) check(n *tree.Node) error {
	if err := n.Check(); err != nil {
		return err
	}
	sec := a.seconds(n)
	switch {
	case n.Path == trailerName:
		return fmt.Errorf("%w: the name ends an archive", ErrLimit)
	case len(n.Path)+1 > maxName:
		return fmt.Errorf("%w: a name of %d bytes, the limit is %d", ErrLimit, len(n.Path), maxName-1)
	case len(n.Target) > maxName:
		return fmt.Errorf("%w: a link target of %d bytes, the limit is %d", ErrLimit, len(n.Target), maxName)
	case n.Size > math.MaxUint32:
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrLimit, n.Size, math.MaxUint32)
	case sec < 0 || sec > math.MaxUint32:
		return fmt.Errorf("%w: time %d is not from 0 to %d", ErrLimit, sec, math.MaxUint32)
	}
	return nil
}

// seconds is the time of a node as the archive has it.
func (a *archive) seconds(n *tree.Node) int64 {
	if a.p.Time.IsZero() {
		return n.MTime.Sec
	}
	return min(n.MTime.Sec, a.p.Time.Unix())
}

func (a *archive) write(ctx context.Context, t *tree.Tree) error {
	for n := range t.All() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.entry(n); err != nil {
			return fmt.Errorf("%q: %w", n.Path, err)
		}
	}
	if err := a.header(header{nlink: 1}, trailerName); err != nil {
		return err
	}
	if err := a.pad(int64(a.p.Align)); err != nil {
		return err
	}
	return a.out.Flush()
}

// typeBits are the file types of stat(2) by tree.Type.
var typeBits = [...]uint32{
	tree.Regular: 0o100000, tree.Directory: 0o040000, tree.Symlink: 0o120000, tree.CharDevice: 0o020000,
	tree.BlockDevice: 0o060000, tree.FIFO: 0o010000, tree.Socket: 0o140000,
}

func (a *archive) entry(n *tree.Node) error {
	h := header{
		mode: typeBits[n.Type] | n.Mode, uid: n.UID, gid: n.GID, mtime: uint32(a.seconds(n)),
		major: n.Major, minor: n.Minor,
	}
	last := a.identify(&h, n)
	switch {
	case n.Type == tree.Symlink:
		h.size = uint32(len(n.Target))
	case n.Type == tree.Regular && last:
		h.size = uint32(n.Size)
	}
	if err := a.header(h, n.Path); err != nil {
		return err
	}
	if h.size == 0 {
		return nil
	}
	if n.Type == tree.Symlink {
		if err := a.bytes([]byte(n.Target)); err != nil {
			return err
		}
	} else {
		if err := a.out.Copy(n); err != nil {
			return err
		}
	}
	return a.pad(4)
}

// identify sets inode number and link count, and tells whether this is the
// last name of its file.
func (a *archive) identify(h *header, n *tree.Node) (last bool) {
	g := &group{names: 1, left: 1}
	if n.Inode != 0 {
		g = a.groups[n.Inode]
	}
	if g.inode == 0 {
		a.inode++
		g.inode = a.inode
	}
	g.left--
	h.inode, h.nlink = g.inode, g.names
	if n.Type == tree.Directory {
		h.nlink = 2 + a.subs[n.Path]
	}
	return g.left == 0
}

// header is what an entry begins with, in the format's order.
type header struct {
	inode, mode, uid, gid, nlink, mtime, size uint32
	major, minor                              uint32 // of the device that the node is
}

// header writes a header and a name, padded to four bytes.
func (a *archive) header(h header, name string) error {
	b := append(a.head[:0], magic...)
	for _, v := range [...]uint32{
		h.inode, h.mode, h.uid, h.gid, h.nlink, h.mtime, h.size,
		0, 0, h.major, h.minor, uint32(len(name) + 1), 0,
	} {
		for shift := 28; shift >= 0; shift -= 4 {
			b = append(b, "0123456789ABCDEF"[v>>shift&15])
		}
	}
	a.head = append(append(b, name...), 0)
	if err := a.bytes(a.head); err != nil {
		return err
	}
	return a.pad(4)
}

func (a *archive) bytes(b []byte) error {
	_, err := a.out.Write(b)
	return err
}

// pad writes zeros up to a multiple of align bytes.
func (a *archive) pad(align int64) error {
	if k := a.out.Size % align; k != 0 {
		return a.bytes(make([]byte, align-k))
	}
	return nil
}
