package ext4

import (
	"fmt"

	"cairn/fsbuild/tree"
)

// Inode flags (section "Index Nodes").
const (
	inodeCompressed = 0x4
	inodeEncrypted  = 0x800
	inodeVerity     = 0x100000
	inodeEA         = 0x200000
	inodeInline     = 0x10000000
)

const (
	oldInodeEnd  = 128 // where i_extra_isize is
	longestLink  = 4095
	extraMtime   = 12 // i_extra_isize that has room for i_mtime_extra
	extraCsum    = 4  // and for i_checksum_hi
	inlineInRoot = 60 // bytes of inline data that i_block holds
)

// mapping is what leads to the blocks of a file.
type mapping struct {
	number     uint32
	generation uint32
	flags      uint32
	size       int64 // in bytes
	root       [inodeBlockSize]byte
}

// foundInode is an inode as it was found.
type foundInode struct {
	mapping
	mode     uint16
	links    uint16
	uid, gid uint32
	mtime    tree.Time
	xattr    uint64 // block of attributes, or 0
	body     []byte // attributes in the inode, with their header; may be empty
}

// isDir tells whether it is a directory.
func (n *foundInode) isDir() bool { return n.mode&0xf000 == fileModes[tree.Directory] }

// nodeType returns the type, or 0.
func (n *foundInode) nodeType() tree.Type {
	for t, mode := range fileModes {
		if mode != 0 && mode == n.mode&0xf000 {
			return tree.Type(t)
		}
	}
	return 0
}

// inodeOffset returns where an inode is, in bytes.
func (r *Reader) inodeOffset(number uint32, table uint64) (int64, error) {
	s := &r.sb
	size := (int64(s.inodesPerGroup)*int64(s.inodeSize) + r.dev.blockSize - 1) / r.dev.blockSize
	if table == 0 || table >= s.blocks || uint64(size) > s.blocks-table {
		return 0, corrupt("inode table at block %d of %d", table, s.blocks)
	}
	index := int64((number - 1) % s.inodesPerGroup)
	return int64(table)*r.dev.blockSize + index*int64(s.inodeSize), nil
}

// checkNumber refuses numbers that are no inode.
func (r *Reader) checkNumber(number uint32) error {
	if number == 0 || number > r.sb.inodes {
		return corrupt("inode %d of %d", number, r.sb.inodes)
	}
	return nil
}

// inode reads an inode from a table that begins at a block.
func (r *Reader) inode(src source, number uint32, table uint64) (*foundInode, error) {
	off, err := r.inodeOffset(number, table)
	if err != nil {
		return nil, err
	}
	b := make([]byte, r.sb.inodeSize)
	if err := src.read(b, off); err != nil {
		return nil, err
	}
	n := &foundInode{mode: le.Uint16(b), links: le.Uint16(b[0x1a:])}
	if n.mode == 0 || n.links == 0 {
		return nil, corrupt("inode %d is free", number)
	}
	n.number, n.generation, n.flags = number, le.Uint32(b[0x64:]), le.Uint32(b[0x20:])
	if err := r.parseInode(n, b); err != nil {
		return nil, fmt.Errorf("inode %d: %w", number, err)
	}
	return n, nil
}

func (r *Reader) parseInode(n *foundInode, b []byte) error {
	extra := 0
	if len(b) > oldInodeEnd {
		extra = int(le.Uint16(b[oldInodeEnd:]))
		if extra%4 != 0 || extra > len(b)-oldInodeEnd {
			return corrupt("extra size %d", extra)
		}
		n.body = b[oldInodeEnd+extra:]
	}
	if err := r.checkInode(n, b, extra); err != nil {
		return err
	}
	n.size = int64(le.Uint32(b[0x04:]))
	if n.nodeType() == tree.Regular || n.isDir() && r.sb.incompat&featLargeDir != 0 {
		n.size |= int64(le.Uint32(b[0x6c:])) << 32
	}
	if n.size < 0 || n.size > max32*r.dev.blockSize {
		return corrupt("size %d", n.size)
	}
	copy(n.root[:], b[0x28:])
	n.uid = uint32(le.Uint16(b[0x02:])) | uint32(le.Uint16(b[0x78:]))<<16
	n.gid = uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7a:]))<<16
	n.xattr = uint64(le.Uint32(b[0x68:]))
	if r.sb.incompat&feat64Bit != 0 {
		n.xattr |= uint64(le.Uint16(b[0x76:])) << 32
	}
	n.mtime.Sec = int64(int32(le.Uint32(b[0x10:])))
	if extra >= extraMtime {
		more := le.Uint32(b[0x88:])
		n.mtime.Sec += int64(more&3) << 32
		n.mtime.Nsec = more >> 2
	}
	return nil
}

// checkInode verifies the checksum, which b loses.
func (r *Reader) checkInode(n *foundInode, b []byte, extra int) error {
	if r.sb.ro&featMetadataCsum == 0 {
		return nil
	}
	want, mask := uint32(le.Uint16(b[0x7c:])), uint32(0xffff)
	le.PutUint16(b[0x7c:], 0)
	if extra >= extraCsum {
		want |= uint32(le.Uint16(b[0x82:])) << 16
		mask = 0xffffffff
		le.PutUint16(b[0x82:], 0)
	}
	if crc32c(r.checksumSeed(&n.mapping), b)&mask != want {
		return corrupt("checksum is wrong")
	}
	return nil
}

// checksumSeed starts the checksums of what belongs to an inode.
func (r *Reader) checksumSeed(m *mapping) uint32 {
	return crc32c32(crc32c32(r.sb.seed, m.number), m.generation)
}

// device returns the number of a device in either encoding.
func (m *mapping) device() (major, minor uint32) {
	if v := le.Uint32(m.root[0:]); v != 0 {
		return v >> 8 & 0xff, v & 0xff
	}
	v := le.Uint32(m.root[4:])
	return v >> 8 & 0xfff, v&0xff | v>>12&0xfff00
}
