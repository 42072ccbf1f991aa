package squashfs

import (
	"encoding/binary"
	"fmt"
	"math"

	"cairn/fsbuild/tree"
)

var le = binary.LittleEndian

// rawMeta is the flag in the header of a metadata block: it is not compressed.
const rawMeta = 1 << 15

// meta is a stream of metadata blocks: 8 KiB each, compressed, with a header
// of two bytes.
type meta struct {
	enc    encoder
	out    []byte // finished blocks
	buf    []byte // the current one, shorter than 8 KiB
	starts []int  // of the finished blocks, in out
	err    error
}

// place returns where the next byte will be: the start of its block in the
// table, and the offset in the block.
func (m *meta) place() (start, offset int) { return len(m.out), len(m.buf) }

// ref is a place as one number, as inodes and attributes are referred to.
func (m *meta) ref() uint64 { return uint64(len(m.out))<<16 | uint64(len(m.buf)) }

func (m *meta) write(b []byte) {
	for m.buf = append(m.buf, b...); len(m.buf) >= metaSize; {
		m.block(m.buf[:metaSize])
		m.buf = m.buf[:copy(m.buf, m.buf[metaSize:])]
	}
}

func (m *meta) block(b []byte) {
	if m.err != nil {
		return
	}
	at := len(m.out)
	m.starts = append(m.starts, at)
	out, compressed, err := pack(m.enc, append(m.out, 0, 0), b)
	if err != nil {
		m.err = err
		return
	}
	size := uint16(len(out) - at - 2)
	if !compressed {
		size |= rawMeta
	}
	le.PutUint16(out[at:], size)
	m.out = out
}

// finish ends the last block and returns the table.
func (m *meta) finish() ([]byte, error) {
	if len(m.buf) > 0 {
		m.block(m.buf)
		m.buf = nil
	}
	if m.err == nil && len(m.out) > math.MaxUint32 {
		return nil, fmt.Errorf("%w: a table of %d bytes", ErrLimit, len(m.out))
	}
	return m.out, m.err
}

// writeIndexed writes a table of entries in metadata blocks, and behind it
// head and the places of the blocks. It returns where head is.
func (fs *fileSystem) writeIndexed(entries, head []byte) (at int64, err error) {
	m := &meta{enc: fs.enc}
	m.write(entries)
	out, err := m.finish()
	if err != nil {
		return 0, err
	}
	first := fs.pos
	if err := fs.write(out); err != nil {
		return 0, err
	}
	at = fs.pos
	for _, start := range m.starts {
		head = le.AppendUint64(head, uint64(first)+uint64(start))
	}
	return at, fs.write(head)
}

// xattrTable holds the sets of attributes.
type xattrTable struct {
	index map[string]uint32 // encoded set → its number
	sets  []xattrSet
}

type xattrSet struct {
	encoded string
	count   uint32
}

// add returns the number of a set of attributes, none for an empty one.
func (x *xattrTable) add(list []tree.Xattr) uint32 {
	var b []byte
	count := uint32(0)
	for _, a := range list {
		kind, name := splitXattr(a.Name)
		if kind < 0 {
			continue
		}
		count++
		b = le.AppendUint16(b, uint16(kind))
		b = le.AppendUint16(b, uint16(len(name)))
		b = append(b, name...)
		b = le.AppendUint32(b, uint32(len(a.Value)))
		b = append(b, a.Value...)
	}
	if count == 0 {
		return none
	}
	i, ok := x.index[string(b)]
	if !ok {
		i = uint32(len(x.sets))
		x.index[string(b)] = i
		x.sets = append(x.sets, xattrSet{string(b), count})
	}
	return i
}

// writeXattrs writes the attributes and returns where their table is.
func (fs *fileSystem) writeXattrs() (at int64, err error) {
	if len(fs.xattrs.sets) == 0 {
		return -1, nil
	}
	values := &meta{enc: fs.enc}
	var ids []byte
	for _, s := range fs.xattrs.sets {
		ids = le.AppendUint64(ids, values.ref())
		ids = le.AppendUint32(ids, s.count)
		ids = le.AppendUint32(ids, uint32(len(s.encoded)))
		values.write([]byte(s.encoded))
	}
	out, err := values.finish()
	if err != nil {
		return 0, err
	}
	head := le.AppendUint64(nil, uint64(fs.pos))
	head = le.AppendUint32(head, uint32(len(fs.xattrs.sets)))
	head = le.AppendUint32(head, 0)
	if err := fs.write(out); err != nil {
		return 0, err
	}
	return fs.writeIndexed(ids, head)
}
