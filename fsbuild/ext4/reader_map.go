package ext4

import (
	"fmt"

	"cairn/fsbuild/tree"
)

const (
	maxExtentDepth = 5       // of the format
	unwritten      = 1 << 15 // added to the length of an extent that reads as zeros
	maxMapRuns     = 1 << 22 // of one file, so that a hostile map does not fill the memory
)

// mapped is a run of a file's blocks that hold data.
type mapped struct {
	logical uint64
	count   uint64
	block   uint64
}

// mapper collects the runs of one file.
type mapper struct {
	r     *Reader
	m     *mapping
	limit uint64 // no block from here on is wanted
	next  uint64 // after the last logical block that was seen
	seen  map[uint64]struct{}
	runs  []mapped
}

// blockMap returns the runs of a file that hold data, ascending, up to a
// number of logical blocks. The blocks of the map itself are added to seen;
// none may be there before, so that the work for all files that share it is
// bounded by the file system's size.
func (r *Reader) blockMap(m *mapping, limit uint64, seen map[uint64]struct{}) ([]mapped, error) {
	w := mapper{r: r, m: m, limit: limit, seen: seen}
	var err error
	if m.flags&flagExtents != 0 {
		err = w.extents(m.root[:], -1)
	} else {
		err = w.pointers()
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: block map: %w", m.number, err)
	}
	return w.runs, nil
}

// add adds a run of data.
func (w *mapper) add(logical, count, block uint64) error {
	if block == 0 || block >= w.r.sb.blocks || count > w.r.sb.blocks-block {
		return corrupt("%d blocks at %d of %d", count, block, w.r.sb.blocks)
	}
	if logical >= w.limit {
		return nil
	}
	count = min(count, w.limit-logical)
	if k := len(w.runs) - 1; k >= 0 && w.runs[k].logical+w.runs[k].count == logical && w.runs[k].block+w.runs[k].count == block {
		w.runs[k].count += count
		return nil
	}
	if len(w.runs) == maxMapRuns {
		return unsupported("more than %d runs of blocks", maxMapRuns)
	}
	w.runs = append(w.runs, mapped{logical, count, block})
	return nil
}

// metaBlock reads a block of the map.
func (w *mapper) metaBlock(block uint64) ([]byte, error) {
	if _, ok := w.seen[block]; ok {
		return nil, corrupt("block %d is used twice", block)
	}
	w.seen[block] = struct{}{}
	return w.r.metaBlock(block)
}

// metaBlock reads one block of metadata.
func (r *Reader) metaBlock(block uint64) ([]byte, error) {
	if block == 0 || block >= r.sb.blocks {
		return nil, corrupt("block %d of %d", block, r.sb.blocks)
	}
	b := make([]byte, r.dev.blockSize)
	return b, r.dev.read(b, int64(block)*r.dev.blockSize)
}

// extents reads a node of an extent tree (section "Extent Tree"). The depth is
// -1 for the root, whose own counts.
func (w *mapper) extents(b []byte, depth int) error {
	entries, limit := int(le.Uint16(b[2:])), int(le.Uint16(b[4:]))
	found := int(le.Uint16(b[6:]))
	switch {
	case le.Uint16(b) != extentMagic:
		return corrupt("extent node has magic number %#x", le.Uint16(b))
	case entries > limit || limit > (len(b)-extentHead)/extentSize:
		return corrupt("extent node with %d of %d entries", entries, limit)
	case depth >= 0 && found != depth || found > maxExtentDepth:
		return corrupt("extent node of depth %d", found)
	}
	if depth >= 0 {
		if err := w.checkExtents(b, extentHead+limit*extentSize); err != nil {
			return err
		}
	}
	for e := b[extentHead:][:entries*extentSize]; len(e) > 0; e = e[extentSize:] {
		logical := uint64(le.Uint32(e))
		if logical < w.next {
			return corrupt("extent at logical block %d, after %d", logical, w.next)
		}
		if logical >= w.limit {
			return nil
		}
		if err := w.extent(e, logical, found); err != nil {
			return err
		}
	}
	return nil
}

// extent follows one entry of a node.
func (w *mapper) extent(e []byte, logical uint64, depth int) error {
	if depth > 0 {
		b, err := w.metaBlock(uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32)
		if err != nil {
			return err
		}
		return w.extents(b, depth-1)
	}
	count, block := uint64(le.Uint16(e[4:])), uint64(le.Uint32(e[8:]))|uint64(le.Uint16(e[6:]))<<32
	if count == 0 {
		return corrupt("extent at logical block %d is empty", logical)
	}
	if count > unwritten {
		w.next = logical + count - unwritten
		return nil
	}
	w.next = logical + count
	return w.add(logical, count, block)
}

// checkExtents verifies the checksum of a node outside the inode.
func (w *mapper) checkExtents(b []byte, tail int) error {
	if w.r.sb.ro&featMetadataCsum == 0 {
		return nil
	}
	if tail+4 > len(b) || crc32c(w.r.checksumSeed(w.m), b[:tail]) != le.Uint32(b[tail:]) {
		return corrupt("extent node has a wrong checksum")
	}
	return nil
}

// pointers reads a block map of the old kind (section "Direct/Indirect Block
// Addressing").
func (w *mapper) pointers() error {
	for i := range uint64(directBlocks) {
		if err := w.pointer(le.Uint32(w.m.root[4*i:]), i, 0); err != nil {
			return err
		}
	}
	perBlock := uint64(w.r.dev.blockSize / 4)
	logical, span := uint64(directBlocks), perBlock
	for i := range 3 {
		if err := w.pointer(le.Uint32(w.m.root[4*(directBlocks+i):]), logical, span); err != nil {
			return err
		}
		logical, span = logical+span, span*perBlock
	}
	return nil
}

// pointer follows a pointer to span blocks, or to one when span is 0.
func (w *mapper) pointer(block uint32, logical, span uint64) error {
	if block == 0 || logical >= w.limit {
		return nil
	}
	if span == 0 {
		return w.add(logical, 1, uint64(block))
	}
	b, err := w.metaBlock(uint64(block))
	if err != nil {
		return err
	}
	span /= uint64(w.r.dev.blockSize / 4)
	below := span
	if span == 1 {
		below = 0
	}
	for ; len(b) > 0; b = b[4:] {
		if err := w.pointer(le.Uint32(b), logical, below); err != nil {
			return err
		}
		logical += span
	}
	return nil
}

// whole returns all of a file's content, which must have no holes and not be
// longer than most bytes.
func (r *Reader) whole(m *mapping, most int64, seen map[uint64]struct{}) ([]byte, error) {
	if m.size > most {
		return nil, corrupt("inode %d: size %d is above %d", m.number, m.size, most)
	}
	blocks := (m.size + r.dev.blockSize - 1) / r.dev.blockSize
	runs, err := r.blockMap(m, uint64(blocks), seen)
	if err != nil {
		return nil, err
	}
	b := make([]byte, m.size)
	for rest, next := b, uint64(0); len(rest) > 0; runs = runs[1:] {
		if len(runs) == 0 || runs[0].logical != next {
			return nil, corrupt("inode %d: block %d is a hole", m.number, next)
		}
		n := min(int64(len(rest)), int64(runs[0].count)*r.dev.blockSize)
		if err := r.dev.read(rest[:n], int64(runs[0].block)*r.dev.blockSize); err != nil {
			return nil, err
		}
		rest, next = rest[n:], next+runs[0].count
	}
	return b, nil
}

// dataExtents turns runs of blocks into runs of bytes, adjacent ones joined.
func dataExtents(runs []mapped, blockSize, size int64) (list []tree.Extent) {
	for _, m := range runs {
		off := int64(m.logical) * blockSize
		end := min(off+int64(m.count)*blockSize, size)
		if k := len(list) - 1; k >= 0 && list[k].Off+list[k].Len == off {
			list[k].Len = end - list[k].Off
		} else {
			list = append(list, tree.Extent{Off: off, Len: end - off})
		}
	}
	return list
}
