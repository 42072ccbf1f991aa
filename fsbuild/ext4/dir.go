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
	dotSize       = 12   // of "." and of "..", as entries
	rootCountAt   = 32   // of limit and count in the root of a hash tree
	nodeCountAt   = 8    // in an inner node
	tailType      = 0xde // file type of the checksum "entry"
	fileTypeDir   = 2
	fileTypeCount = 8
)

// dirSpace is what a block has for entries: all but the checksum.
func (s *shape) dirSpace() int {
	if s.modern {
		return s.blockSize - dirTailSize
	}
	return s.blockSize
}

// indexLimit is the number of entries of a node of the hash tree that begin at
// an offset; one makes room for the checksum.
func (s *shape) indexLimit(at int) int {
	if s.modern {
		return (s.blockSize-at)/8 - 1
	}
	return (s.blockSize - at) / 8
}

// maxLeaves is the most leaves of an indexed directory: one level of inner
// nodes, two with large_dir.
func (s *shape) maxLeaves() int {
	root, node := s.indexLimit(rootCountAt), s.indexLimit(nodeCountAt)
	if s.largeDir {
		return root * node * node
	}
	return root * node
}

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
		if size > l.dirSpace() {
			d.indexed = true
			break
		}
	}
	if !d.indexed {
		if l.inodes[d.inode].number == firstInode {
			return l.lostFoundBlocks(), nil
		}
		return 1, nil
	}
	l.sortByHash(d)
	leaves := len(l.leaves(d))
	if most := l.maxLeaves(); leaves > most {
		return 0, fmt.Errorf("%d entries need %d directory blocks, the limit is %d%s", len(d.entries), leaves, most, l.hint())
	}
	blocks := 1 + leaves
	for _, n := range l.indexLevels(leaves) {
		blocks += n
	}
	return uint32(blocks), nil
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
	used, space := 0, l.dirSpace()
	for i, e := range d.entries {
		size := entrySize(len(l.names[e].node.Name()))
		if used+size > space {
			starts = append(starts, i)
			used = 0
		}
		used += size
	}
	return starts
}

// hint says what would raise the limit.
func (s *shape) hint() string {
	switch {
	case s.largeDir:
		return ""
	case s.modern:
		return "; large_dir raises it"
	}
	return "; larger blocks raise it, and so does ext4's large_dir"
}

// indexLevels returns the number of nodes of each level between the root and
// so many leaves, from the root downwards.
func (s *shape) indexLevels(leaves int) (levels []int) {
	node := s.indexLimit(nodeCountAt)
	for n := leaves; n > s.indexLimit(rootCountAt); {
		n = (n + node - 1) / node
		levels = append([]int{n}, levels...)
	}
	return levels
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
	i := int(logical)
	switch {
	case !w.d.indexed && i > 0:
		w.leaf(b, nil, 0)
	case !w.d.indexed:
		w.leaf(b, w.d.entries, w.putDots(b, dotSize))
	default:
		w.indexed(b, i)
	}
}

// indexed makes the i-th block of an indexed directory: the root, the inner
// nodes by level, the leaves.
func (w *dirWriter) indexed(b []byte, i int) {
	levels := w.l.indexLevels(len(w.leaves))
	node := w.l.indexLimit(nodeCountAt)
	span := 1 // leaves below an entry of the current level
	for range levels {
		span *= node
	}
	if i == 0 {
		w.root(b, len(levels), span)
		return
	}
	first := 1 // block of the current level
	for _, n := range levels {
		next := first + n
		if i < next {
			from := (i - first) * span
			le.PutUint16(b[4:], uint16(w.l.blockSize))
			w.index(b, nodeCountAt, w.hashes[from:min(from+span, len(w.leaves))], span/node, uint32(next+from/(span/node)))
			return
		}
		first, span = next, span/node
	}
	i -= first
	last := len(w.d.entries)
	if i+1 < len(w.leaves) {
		last = w.leaves[i+1]
	}
	w.leaf(b, w.d.entries[w.leaves[i]:last], 0)
}

// putDots writes "." and ".." and returns where the next entry goes.
func (w *dirWriter) putDots(b []byte, parentSize int) int {
	putEntry(b, dotSize, w.l.inodes[w.d.inode].number, fileTypeDir, ".")
	putEntry(b[dotSize:], parentSize, w.l.inodes[w.d.parent].number, fileTypeDir, "..")
	return 2 * dotSize
}

// leaf writes entries from offset at, the last one stretched to the checksum
// or, without one, to the end.
func (w *dirWriter) leaf(b []byte, entries []uint32, at int) {
	space := w.l.dirSpace()
	last := at - dotSize // of "..", when nothing follows
	for _, e := range entries {
		n := w.l.names[e]
		size := entrySize(len(n.node.Name()))
		putEntry(b[at:], size, w.l.inodes[n.inode].number, fileTypes[n.node.Type], n.node.Name())
		last = at
		at += size
	}
	le.PutUint16(b[max(last, 0)+4:], uint16(space-max(last, 0)))
	if !w.l.modern {
		return
	}
	tail := b[space:]
	le.PutUint16(tail[4:], dirTailSize)
	tail[7] = tailType
	le.PutUint32(tail[8:], crc32c(w.seed, b[:space]))
}

// putEntry writes struct ext4_dir_entry_2.
func putEntry(b []byte, size int, number uint32, fileType byte, name string) {
	le.PutUint32(b[0:], number)       // inode
	le.PutUint16(b[4:], uint16(size)) // rec_len
	b[6] = byte(len(name))            // name_len
	b[7] = fileType                   // file_type
	copy(b[8:], name)
}

// root writes struct dx_root, with so many leaves below each entry.
func (w *dirWriter) root(b []byte, levels, span int) {
	w.putDots(b, w.l.blockSize-dotSize)
	b[0x1c] = hashHalfMD4  // hash_version
	b[0x1d] = 8            // info_length
	b[0x1e] = byte(levels) // indirect_levels
	w.index(b, rootCountAt, w.hashes, span, 1)
}

// index writes the entries of a root or inner node: of every step-th hash,
// with blocks counted from first. The first entry's hash is where limit and
// count are kept. The checksum covers what is before and the entries in use.
func (w *dirWriter) index(b []byte, at int, hashes []uint32, step int, first uint32) {
	limit := w.l.indexLimit(at)
	count := 0
	for i := 0; i < len(hashes); i += step {
		le.PutUint32(b[at+8*count:], hashes[i])
		le.PutUint32(b[at+8*count+4:], first+uint32(count))
		count++
	}
	le.PutUint16(b[at:], uint16(limit))
	le.PutUint16(b[at+2:], uint16(count))
	if !w.l.modern {
		return
	}
	tail := b[at+8*limit:]
	sum := crc32c(w.seed, b[:at+8*count])
	sum = crc32c(sum, tail[:4])
	le.PutUint32(tail[4:], crc32c32(sum, 0))
}
