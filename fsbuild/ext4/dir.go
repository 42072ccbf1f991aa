package ext4

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"cairn/fsbuild/tree"
)

// Sizes of directory blocks (section "Directory Entries").
const (
	dirTailSize   = 12
	dirSpace      = blockSize - dirTailSize
	dotSize       = 12                            // of "." and of "..", as entries
	rootCountAt   = 32                            // of limit and count in the root of a hash tree
	nodeCountAt   = 8                             // in an inner node
	rootLimit     = (blockSize-rootCountAt)/8 - 1 // entries; one makes room for the checksum
	nodeLimit     = (blockSize-nodeCountAt)/8 - 1 // entries
	maxLeaves     = rootLimit * nodeLimit         // with one inner level, the most without large_dir
	tailType      = 0xde                          // file type of the checksum "entry"
	fileTypeDir   = 2
	fileTypeCount = 8
)

// fileTypes are the type codes of directory entries, by tree.Type.
var fileTypes = [fileTypeCount]byte{
	tree.Regular: 1, tree.Directory: fileTypeDir, tree.CharDevice: 3, tree.BlockDevice: 4,
	tree.FIFO: 5, tree.Socket: 6, tree.Symlink: 7,
}

// entrySize is the space of an entry with a name of n bytes.
func entrySize(n int) int { return (8 + n + 3) &^ 3 }

// planDir decides the form of a directory and returns its number of blocks. A
// directory that needs more than one block is indexed: its entries are sorted
// by hash and the leaves filled in that order.
func (l *Layout) planDir(d *directory) (uint32, error) {
	size := 2 * dotSize
	for _, e := range d.entries {
		size += entrySize(len(l.names[e].node.Name()))
		if size > dirSpace {
			d.indexed = true
			break
		}
	}
	if !d.indexed {
		if l.inodes[d.inode].number == firstInode {
			return lostFoundBlocks, nil // room for e2fsck, as mke2fs makes it
		}
		return 1, nil
	}
	l.sortByHash(d)
	leaves := len(l.leaves(d))
	if leaves > maxLeaves {
		return 0, fmt.Errorf("%d entries need %d directory blocks, the limit is %d", len(d.entries), leaves, maxLeaves)
	}
	return uint32(1 + innerNodes(leaves) + leaves), nil
}

func (l *Layout) sortByHash(d *directory) {
	type keyed struct {
		hash  uint32
		entry uint32
	}
	keys := make([]keyed, len(d.entries))
	for i, e := range d.entries {
		keys[i] = keyed{l.hasher.hash(l.names[e].node.Name()), e}
	}
	slices.SortFunc(keys, func(a, b keyed) int {
		if a.hash != b.hash {
			return cmp.Compare(a.hash, b.hash)
		}
		return strings.Compare(l.names[a.entry].node.Name(), l.names[b.entry].node.Name())
	})
	for i, k := range keys {
		d.entries[i] = k.entry
	}
}

// leaves returns the index of the first entry of each leaf of an indexed
// directory.
func (l *Layout) leaves(d *directory) []int {
	starts := []int{0}
	used := 0
	for i, e := range d.entries {
		size := entrySize(len(l.names[e].node.Name()))
		if used+size > dirSpace {
			starts = append(starts, i)
			used = 0
		}
		used += size
	}
	return starts
}

// innerNodes is the number of nodes between the root and so many leaves.
func innerNodes(leaves int) int {
	if leaves <= rootLimit {
		return 0
	}
	return (leaves + nodeLimit - 1) / nodeLimit
}

// dirWriter makes the blocks of one directory.
type dirWriter struct {
	l      *Layout
	d      *directory
	seed   uint32 // checksum of the inode's number and generation
	leaves []int
	hashes []uint32 // of each leaf, as its index entry has it
}

func (l *Layout) newDirWriter(d *directory) *dirWriter {
	w := &dirWriter{l: l, d: d, seed: l.inodeSeed(l.inodes[d.inode].number)}
	if !d.indexed {
		return w
	}
	w.leaves = l.leaves(d)
	w.hashes = make([]uint32, len(w.leaves))
	for i, start := range w.leaves[1:] {
		h := l.hasher.hash(l.names[d.entries[start]].node.Name())
		if h == l.hasher.hash(l.names[d.entries[start-1]].node.Name()) {
			h |= 1 // the hash began in the leaf before
		}
		w.hashes[i+1] = h
	}
	return w
}

// block fills b, which is zero, with a block of the directory.
func (w *dirWriter) block(b []byte, logical uint32) {
	inner := innerNodes(len(w.leaves))
	switch i := int(logical); {
	case !w.d.indexed && i > 0:
		w.leaf(b, nil, 0)
	case !w.d.indexed:
		w.leaf(b, w.d.entries, w.putDots(b, dotSize))
	case i == 0:
		w.root(b, inner)
	case i <= inner:
		first := (i - 1) * nodeLimit
		last := min(first+nodeLimit, len(w.leaves))
		le.PutUint16(b[4:], blockSize)
		w.index(b, nodeCountAt, nodeLimit, w.hashes[first:last], 1, uint32(1+inner+first))
	default:
		i -= 1 + inner
		last := len(w.d.entries)
		if i+1 < len(w.leaves) {
			last = w.leaves[i+1]
		}
		w.leaf(b, w.d.entries[w.leaves[i]:last], 0)
	}
}

// putDots writes "." and ".." and returns where the next entry goes.
func (w *dirWriter) putDots(b []byte, parentSize int) int {
	putEntry(b, dotSize, w.l.inodes[w.d.inode].number, fileTypeDir, ".")
	putEntry(b[dotSize:], parentSize, w.l.inodes[w.d.parent].number, fileTypeDir, "..")
	return 2 * dotSize
}

// leaf writes entries from offset at, the last one stretched to the checksum.
func (w *dirWriter) leaf(b []byte, entries []uint32, at int) {
	last := at - dotSize // of "..", when nothing follows
	for _, e := range entries {
		n := w.l.names[e]
		size := entrySize(len(n.node.Name()))
		putEntry(b[at:], size, w.l.inodes[n.inode].number, fileTypes[n.node.Type], n.node.Name())
		last = at
		at += size
	}
	le.PutUint16(b[max(last, 0)+4:], uint16(dirSpace-max(last, 0)))
	tail := b[dirSpace:]
	le.PutUint16(tail[4:], dirTailSize)
	tail[7] = tailType
	le.PutUint32(tail[8:], crc32c(w.seed, b[:dirSpace]))
}

// putEntry writes struct ext4_dir_entry_2.
func putEntry(b []byte, size int, number uint32, fileType byte, name string) {
	le.PutUint32(b[0:], number)       // inode
	le.PutUint16(b[4:], uint16(size)) // rec_len
	b[6] = byte(len(name))            // name_len
	b[7] = fileType                   // file_type
	copy(b[8:], name)
}

// root writes struct dx_root.
func (w *dirWriter) root(b []byte, inner int) {
	w.putDots(b, blockSize-dotSize)
	b[0x1c] = hashHalfMD4 // hash_version
	b[0x1d] = 8           // info_length
	if inner == 0 {
		w.index(b, rootCountAt, rootLimit, w.hashes, 1, 1)
		return
	}
	b[0x1e] = 1 // indirect_levels
	w.index(b, rootCountAt, rootLimit, w.hashes, nodeLimit, 1)
}

// index writes the entries of a root or inner node: of every step-th hash,
// with blocks counted from first. The first entry's hash is where limit and
// count are kept. The checksum covers what is before and the entries in use.
func (w *dirWriter) index(b []byte, at, limit int, hashes []uint32, step int, first uint32) {
	count := 0
	for i := 0; i < len(hashes); i += step {
		le.PutUint32(b[at+8*count:], hashes[i])
		le.PutUint32(b[at+8*count+4:], first+uint32(count))
		count++
	}
	le.PutUint16(b[at:], uint16(limit))
	le.PutUint16(b[at+2:], uint16(count))
	tail := b[at+8*limit:]
	sum := crc32c(w.seed, b[:at+8*count])
	sum = crc32c(sum, tail[:4])
	le.PutUint32(tail[4:], crc32c32(sum, 0))
}
