// Package tar writes tar archives from a tree, and reads one as a tree whose
// contents stay in the archive.
//
// # What is written
//
// POSIX.1-2001 archives ("pax interchange format", the pax utility in
// https://pubs.opengroup.org/onlinepubs/9699919799/), one entry for each node
// in canonical order, the root as "./", names relative, directories with a
// final slash, numeric owners only. An extended header precedes an entry only
// where a ustar header does not do: for fractions of a second and times before
// 1970, ids from 2^21, names that do not fit or are not ASCII, sizes from
// 8 GiB, and attributes. Names that are not UTF-8 have the record
// hdrcharset=BINARY, of which GNU tar says that it is unknown. Attributes are
// SCHILY.xattr.NAME records as star, GNU tar and libarchive have them. POSIX
// ACLs are written as what they are in a tree, the attributes
// system.posix_acl_access and system.posix_acl_default in the kernel's form:
// GNU tar sets those with --xattrs --xattrs-include='*' and without --acls,
// which removes default ACLs, and bsdtar does not. Further names of a file are
// hard links to the first.
//
// # What is read
//
// ustar, pax, GNU and old (V7) archives that are not compressed, GNU's sparse
// files in all their versions, ACLs also as the texts SCHILY.acl.*. Only
// numeric owners count. See [Read], and [ReadLayers] for those of container
// images.
//
// # What is not
//
// Sparse entries are not written, a hole is written as zeros. There are no
// sockets in tar archives. Volumes of a split archive, GNU's incremental
// dumps, and global headers that change entries are refused.
//
// The headers that almost all archives consist of are parsed here, many times
// faster than by the standard library's archive/tar. That parses all others,
// from the entry's own beginning on, and decides what is damaged: nothing is
// accepted that it does not accept, and names, numbers and times are what it
// says, since the readers of layers and packages use it too. A fuzz target
// compares both. archive/tar also encodes all but the simplest headers: what it
// emits in PAX format is canonical (records sorted, only those that are
// needed).
//
// # Stability
//
// The API may change until version 1 of the module. The bytes for the same
// tree and Params are part of it: a release that writes others says so.
package tar

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"cairn/fsbuild/internal/contents"
	"cairn/fsbuild/tar/entry"
	"cairn/fsbuild/tree"
)

// Errors that those of this package wrap, the path or name in front.
var (
	// ErrUnsafe means that the entry is one that only an attacker or a broken
	// program writes, such as a name with "..".
	ErrUnsafe = entry.ErrUnsafe
	// ErrLimit means that the archive exceeds one of the [Limits], or that a
	// node cannot be written: attributes of almost 1 MiB, an attribute whose
	// name has "=", a device number from 2^21.
	ErrLimit = entry.ErrLimit
	// ErrUnsupported means that a tree cannot hold the entry, or an archive
	// the node.
	ErrUnsupported = entry.ErrUnsupported
)

const (
	maxRecords = 1 << 20 // what archive/tar takes from one extended header
	maxDevice  = 1 << 21 // a ustar header has seven octal digits
	maxSeconds = 1 << 60
	xattrKey   = "SCHILY.xattr."
)

// Params are what decides the bytes besides the tree. The zero value will do.
type Params struct {
	// Time, if not zero, is what later modification times are set to.
	Time time.Time
	// SkipSockets leaves sockets out, which are an error otherwise.
	SkipSockets bool
}

// Summary says what was written.
type Summary struct {
	Size    int64 // of the archive, in bytes
	Entries int64
}

// Write writes the archive to w, reading each file once. The error names the
// path; a node that cannot be written is found before the first byte is.
func Write(ctx context.Context, w io.Writer, t *tree.Tree, p Params) (Summary, error) {
	for n := range t.All() {
		if err := p.check(n); err != nil {
			return Summary{}, fmt.Errorf("write tar archive: %q: %w", n.Path, err)
		}
	}
	a := &archive{p: p, out: contents.NewOutput(w), first: map[uint64]string{}}
	err := a.write(ctx, t)
	if err == nil {
		err = a.out.Flush()
	}
	if err != nil {
		return Summary{}, fmt.Errorf("write tar archive: %w", err)
	}
	return Summary{Size: a.out.Size, Entries: a.entries}, nil
}

func (p *Params) check(n *tree.Node) error {
	if err := n.Check(); err != nil {
		return err
	}
	switch {
	case n.Type == tree.Socket && !p.SkipSockets:
		return fmt.Errorf("%w: a socket", ErrUnsupported)
	case n.Major >= maxDevice || n.Minor >= maxDevice:
		return fmt.Errorf("%w: device %d:%d", ErrLimit, n.Major, n.Minor)
	case n.MTime.Sec > maxSeconds || n.MTime.Sec < -maxSeconds:
		return fmt.Errorf("%w: time %d", ErrLimit, n.MTime.Sec)
	}
	size := len(n.Path) + len(n.Target) + 500 // with the numbers
	for _, x := range n.Xattrs {
		if strings.Contains(x.Name, "=") {
			return fmt.Errorf("%w: the name of attribute %q has an equals sign", ErrLimit, x.Name)
		}
		size += len(x.Name) + len(x.Value) + 30
	}
	if size > maxRecords {
		return fmt.Errorf("%w: names and attributes of %d bytes", ErrLimit, size)
	}
	return nil
}

type archive struct {
	p       Params
	out     *contents.Output
	first   map[uint64]string // Inode → the name that has the content
	head    tar.Header
	block   [blockSize]byte // head, encoded
	entries int64
}

func (a *archive) write(ctx context.Context, t *tree.Tree) error {
	for n := range t.All() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if n.Type == tree.Socket {
			continue
		}
		a.entries++
		if err := a.node(n); err != nil {
			return fmt.Errorf("%q: %w", n.Path, err)
		}
	}
	return a.zeros(2 * blockSize)
}

func (a *archive) node(n *tree.Node) error {
	h := a.header(n)
	if err := a.writeHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	if err := a.out.Copy(n); err != nil {
		return err
	}
	return a.zeros(int(-n.Size & (blockSize - 1)))
}

var zeros [2 * blockSize]byte

// zeros writes n bytes, at most two blocks.
func (a *archive) zeros(n int) error {
	_, err := a.out.Write(zeros[:n])
	return err
}
