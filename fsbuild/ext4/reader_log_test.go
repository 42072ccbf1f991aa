package ext4_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"testing"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
)

const (
	blockBytes    = 4096
	journalLength = 1040 // blocks
)

// sum32c continues a CRC-32C without the inversions of hash/crc32.
func sum32c(seed uint32, b []byte) uint32 {
	return ^crc32.Update(^seed, crc32.MakeTable(crc32.Castagnoli), b)
}

// sum32 is the checksum of version 1, bit by bit.
func sum32(c uint32, b []byte) uint32 {
	for _, v := range b {
		for i := 7; i >= 0; i-- {
			bit := c>>31 ^ uint32(v)>>i&1
			c = c<<1 ^ 0x04c11db7*bit
		}
	}
	return c
}

// logWriter writes transactions into the journal of an image in memory.
type logWriter struct {
	img     []byte
	super   []byte // of the journal
	base    int    // offset of the journal
	version int    // of its checksums, 0 to 3
	wide    bool   // 64-bit numbers
	at      int    // next block of the log
	id      uint32
	seed    uint32
	v1      uint32
	time    uint64
}

var magic = []byte{0xc0, 0x3b, 0x39, 0x98}

// newLog turns an empty journal into one that needs recovery, whose log begins
// at a block.
func newLog(t testing.TB, img []byte, version int, wide bool, start int) *logWriter {
	t.Helper()
	l := &logWriter{img: img, version: version, wide: wide, at: start, id: 0xffffffff, base: -1, time: 1000}
	for off := 0; off < len(img); off += blockBytes {
		if bytes.Equal(img[off:off+8], append(bytes.Clone(magic), 0, 0, 0, 4)) {
			l.base = off
		}
	}
	if l.base < 0 {
		t.Fatal("image has no journal")
	}
	l.super = img[l.base:][:1024]
	compat, incompat := uint32(0), uint32(1)
	switch version {
	case 1:
		compat = 1
	case 2:
		incompat |= 8
	case 3:
		incompat |= 0x10
	}
	if wide {
		incompat |= 2
	}
	be := binary.BigEndian
	be.PutUint32(l.super[0x18:], l.id) // sequence numbers run over
	be.PutUint32(l.super[0x1c:], uint32(start))
	be.PutUint32(l.super[0x24:], compat)
	be.PutUint32(l.super[0x28:], incompat)
	if version > 1 {
		l.super[0x50] = 4 // CRC-32C
		l.seed = sum32c(1<<32-1, l.super[0x30:0x40])
	}
	l.sealSuper()
	sb := img[1024:2048]
	sb[0x60] |= 4 // needs_recovery
	binary.LittleEndian.PutUint32(sb[0x3fc:], sum32c(1<<32-1, sb[:0x3fc]))
	return l
}

func (l *logWriter) sealSuper() {
	if l.version > 1 {
		clear(l.super[0xfc:0x100])
		binary.BigEndian.PutUint32(l.super[0xfc:], sum32c(1<<32-1, l.super))
	}
}

// next returns the next block of the log, zeroed, with a head unless kind is 0.
func (l *logWriter) next(kind uint32) []byte {
	b := l.img[l.base+l.at*blockBytes:][:blockBytes]
	if l.at++; l.at == journalLength {
		l.at = 1
	}
	clear(b)
	if kind != 0 {
		copy(b, magic)
		binary.BigEndian.PutUint32(b[4:], kind)
		binary.BigEndian.PutUint32(b[8:], l.id)
	}
	return b
}

func (l *logWriter) sealTail(b []byte) {
	if l.version > 1 {
		binary.BigEndian.PutUint32(b[blockBytes-4:], sum32c(l.seed, b))
	}
}

// write logs blocks: number of the block and data, in turn.
func (l *logWriter) write(blocks []int, data []byte) {
	be := binary.BigEndian
	l.v1 = 1<<32 - 1
	d := l.next(1)
	var logged [][]byte
	tags := d[12:]
	for i, block := range blocks {
		b := l.next(0)
		copy(b, data)
		flags := uint32(0)
		if bytes.HasPrefix(data, magic) {
			flags |= 1
			clear(b[:4])
		}
		if i > 0 {
			flags |= 2
		}
		if i == len(blocks)-1 {
			flags |= 8
		}
		logged = append(logged, b)
		var id [4]byte
		be.PutUint32(id[:], l.id)
		sum := sum32c(sum32c(l.seed, id[:]), b)
		size := 8
		be.PutUint32(tags, uint32(block))
		switch l.version {
		case 3:
			be.PutUint32(tags[4:], flags)
			be.PutUint32(tags[12:], sum)
			size = 16
		default:
			be.PutUint16(tags[6:], uint16(flags))
			if l.version == 2 {
				be.PutUint16(tags[4:], uint16(sum))
				size = 10
			}
			if l.wide {
				size += 4
			}
		}
		tags = tags[size:]
		if i == 0 {
			copy(tags, "uuid of the file")
			tags = tags[16:]
		}
	}
	l.sealTail(d)
	for _, b := range append([][]byte{d}, logged...) {
		l.v1 = sum32(l.v1, b)
	}
}

// revoke logs that a block is revoked.
func (l *logWriter) revoke(block int) {
	b := l.next(5)
	if l.wide {
		binary.BigEndian.PutUint32(b[12:], 24)
		binary.BigEndian.PutUint64(b[16:], uint64(block))
	} else {
		binary.BigEndian.PutUint32(b[12:], 20)
		binary.BigEndian.PutUint32(b[16:], uint32(block))
	}
	l.sealTail(b)
}

func (l *logWriter) commit() []byte {
	b := l.next(2)
	l.time++
	binary.BigEndian.PutUint64(b[0x30:], l.time)
	switch l.version {
	case 1:
		b[12], b[13] = 1, 4
		binary.BigEndian.PutUint32(b[16:], l.v1)
	case 2, 3:
		binary.BigEndian.PutUint32(b[16:], sum32c(l.seed, b))
	}
	l.id++
	l.v1 = 1<<32 - 1
	return b
}

// patterned is a file of blocks that each begin with a mark of their own.
func patterned(path string, blocks int) tree.Node {
	var b []byte
	for i := range blocks {
		b = append(b, fmt.Sprintf("%-4095s\n", fmt.Sprintf("mark of %s %d", path, i))...)
	}
	return file(path, string(b))
}

// marked returns the number of the block with a mark.
func marked(t testing.TB, img []byte, path string, i int) int {
	t.Helper()
	at := bytes.Index(img, fmt.Appendf(nil, "mark of %s %d ", path, i))
	if at < 0 || at%blockBytes != 0 {
		t.Fatalf("mark %d of %s is at %d", i, path, at)
	}
	return at / blockBytes
}

// blockOf is a block of data.
func blockOf(s string) []byte { return []byte(fmt.Sprintf("%-4095s\n", s)) }

// journaled makes an image whose log has five transactions and one that was
// not committed.
func journaled(t testing.TB, version int, wide bool, start int) []byte {
	t.Helper()
	img := written(t, build(t, patterned("f", 8)), func() ext4.Params { p := params(); p.JournalSize = journalLength * blockBytes; return p }())
	f := func(i int) int { return marked(t, img, "f", i) }
	at := [8]int{f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)}
	l := newLog(t, img, version, wide, start)
	l.write([]int{at[0], at[1], at[2], at[3]}, blockOf("first"))
	l.commit()
	l.write([]int{at[1], at[4]}, append(bytes.Clone(magic), blockOf(" escaped")[4:]...))
	l.commit()
	l.revoke(at[2])
	l.revoke(at[5])
	l.commit()
	l.write([]int{at[5]}, blockOf("after its revocation"))
	l.commit()
	l.write([]int{at[6]}, blockOf("last"))
	l.revoke(at[6])
	l.commit()
	l.write([]int{at[7]}, blockOf("not committed"))
	return img
}

// block returns a block of the journal.
func (l *logWriter) block(i int) []byte { return l.img[l.base+i*blockBytes:][:blockBytes] }
