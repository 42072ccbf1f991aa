package ext4

import (
	"bytes"
	"strings"
)

// dirEntry is a name that a directory holds.
type dirEntry struct {
	number uint32
	name   string
}

const (
	entryHead    = 8
	inlineParent = 4 // the parent's number, where an inline directory begins
	indexInfo    = 8 // info_length of an index root
)

// entries reads all names of a directory but "." and "..".
func (w *walker) entries(n *foundInode) ([]dirEntry, error) {
	if n.flags&inodeInline != 0 {
		return w.inlineEntries(n)
	}
	size := w.r.dev.blockSize
	if n.size%size != 0 || n.size/size > int64(w.r.sb.blocks) {
		return nil, corrupt("directory of %d bytes", n.size)
	}
	runs, err := w.r.blockMap(&n.mapping, uint64(n.size/size), w.blocks)
	if err != nil {
		return nil, err
	}
	var list []dirEntry
	next := uint64(0)
	b := make([]byte, size)
	for _, m := range runs {
		if m.logical != next {
			return nil, corrupt("directory block %d is a hole", next)
		}
		next += m.count
		for i := range m.count {
			if err := w.dirBlock(b, m.block+i); err != nil {
				return nil, err
			}
			if w.r.sb.ro&featMetadataCsum != 0 && !dirChecksumOK(b, w.r.checksumSeed(&n.mapping)) {
				return nil, corrupt("directory block %d has a wrong checksum", m.logical+i)
			}
			if list, err = parseEntries(list, b); err != nil {
				return nil, err
			}
		}
	}
	if next != uint64(n.size/size) {
		return nil, corrupt("directory block %d is a hole", next)
	}
	return list, nil
}

// dirBlock reads a block of a directory. No two directories share one, so the
// work is bounded by the file system's size.
func (w *walker) dirBlock(b []byte, block uint64) error {
	if _, ok := w.blocks[block]; ok {
		return corrupt("block %d is used twice", block)
	}
	w.blocks[block] = struct{}{}
	w.budget.earn(len(b))
	return w.r.dev.read(b, int64(block)*w.r.dev.blockSize)
}

// inlineEntries reads a directory in an inode (section "Inline Data").
func (w *walker) inlineEntries(n *foundInode) ([]dirEntry, error) {
	more, err := w.inlineRest(n)
	if err != nil {
		return nil, err
	}
	list, err := parseEntries(nil, n.root[inlineParent:])
	if err != nil {
		return nil, err
	}
	return parseEntries(list, more)
}

// parseEntries adds the entries of a block (section "Directory Entries").
func parseEntries(list []dirEntry, b []byte) ([]dirEntry, error) {
	for at := 0; at < len(b); {
		e := b[at:]
		if len(e) < entryHead {
			return nil, corrupt("directory entry at %d is cut off", at)
		}
		size, nameLen := entryLength(e, len(b)), int(e[6])
		if size < entryHead || size%4 != 0 || size > len(e) || entryHead+nameLen > size {
			return nil, corrupt("directory entry at %d has length %d and a name of %d bytes", at, size, nameLen)
		}
		if number := le.Uint32(e); number != 0 {
			name := string(e[entryHead:][:nameLen])
			if name == "" || strings.ContainsAny(name, "/\x00") {
				return nil, corrupt("directory has the name %q", name)
			}
			if name != "." && name != ".." {
				list = append(list, dirEntry{number, name})
			}
		}
		at += size
	}
	return list, nil
}

// entryLength decodes rec_len, which has 16 bits for up to 64 KiB.
func entryLength(e []byte, blockSize int) int {
	n := int(le.Uint16(e[4:]))
	switch {
	case blockSize < 1<<16:
		return n
	case n == 0 || n == 1<<16-1:
		return blockSize
	}
	return n&^3 | n&3<<16
}

// dirChecksumOK verifies a block of entries or of the index. The index is
// looked for first, since it may have kept the tail of entries.
func dirChecksumOK(b []byte, seed uint32) bool {
	switch first := entryLength(b, len(b)); {
	case first == len(b):
		return indexChecksumOK(b, seed, nodeCountAt)
	case first == dotSize && entryLength(b[dotSize:], len(b)) == len(b)-dotSize && b[0x1d] == indexInfo:
		return indexChecksumOK(b, seed, rootCountAt)
	}
	body, tail := b[:len(b)-dirTailSize], b[len(b)-dirTailSize:]
	return bytes.Equal(tail[:8], []byte{0, 0, 0, 0, dirTailSize, 0, 0, tailType}) && crc32c(seed, body) == le.Uint32(tail[8:])
}

// indexChecksumOK verifies a block of the index, whose limit and count are at
// an offset.
func indexChecksumOK(b []byte, seed uint32, at int) bool {
	limit, count := int(le.Uint16(b[at:])), int(le.Uint16(b[at+2:]))
	if count > limit || at+8*limit+8 > len(b) {
		return false
	}
	tail := b[at+8*limit:]
	return crc32c32(crc32c(crc32c(seed, b[:at+8*count]), tail[:4]), 0) == le.Uint32(tail[4:])
}
