package vmdk

import (
	"encoding/binary"
	"fmt"
	"io"

	"cairn/fsbuild/internal/disk"
)

// committer puts grains into the file, one after another.
type committer struct {
	out   io.WriterAt
	geo   geometry
	next  int64  // first free sector
	table []byte // the table being filled
	index int64  // which one that is, -1 for none
	dir   []byte
}

func newCommitter(out io.WriterAt, g geometry) *committer {
	return &committer{
		out: out, geo: g, next: g.dataAt, index: -1,
		table: make([]byte, tableSectors*sectorSize),
		dir:   make([]byte, g.dirSectors()*sectorSize),
	}
}

// Add implements disk.Container.
func (m *committer) Add(c *disk.Block) error {
	if index := c.Index / tableEntries; index != m.index {
		if err := m.flush(); err != nil {
			return err
		}
		m.index = index
	}
	at, err := m.append(c.Stored)
	binary.LittleEndian.PutUint32(m.table[c.Index%tableEntries*4:], uint32(at))
	return err
}

// append writes whole sectors to the end of the file and returns the first
// one's number.
func (m *committer) append(b []byte) (at int64, err error) {
	at = m.next
	m.next += int64(len(b)) / sectorSize
	if m.next > maxSector {
		return 0, fmt.Errorf("image file above 2 TiB: %w", ErrSize)
	}
	_, err = m.out.WriteAt(b, at*sectorSize)
	return at, err
}

// flush writes the current table, if any: in a stream behind its grains, else
// where both copies belong.
func (m *committer) flush() error {
	if m.index < 0 {
		return nil
	}
	var err error
	if m.geo.kind == StreamOptimized {
		var at int64
		at, err = m.append(append(marker(markTable, tableSectors), m.table...))
		binary.LittleEndian.PutUint32(m.dir[m.index*4:], uint32(at+1))
	} else {
		for _, dirAt := range []int64{m.geo.spareAt, m.geo.dirAt} {
			if _, err = m.out.WriteAt(m.table, m.geo.tableAt(dirAt, m.index)*sectorSize); err != nil {
				break
			}
		}
	}
	clear(m.table)
	m.index = -1
	return err
}

// tableAt is the sector of a table of the directory at sector dirAt, in a
// sparse image, which has room for all of them.
func (g geometry) tableAt(dirAt, index int64) int64 {
	return dirAt + g.dirSectors() + index*tableSectors
}

// Finish writes what is left, and the header last.
func (m *committer) Finish() error {
	if err := m.flush(); err != nil {
		return err
	}
	end, dirAt := m.finishSparse, uint64(m.geo.dirAt)
	if m.geo.kind == StreamOptimized {
		end, dirAt = m.finishStream, directoryAtEnd
	}
	if err := end(); err != nil {
		return err
	}
	_, err := m.out.WriteAt(append(m.geo.header(dirAt), m.geo.descriptor()...), 0)
	return err
}

// finishSparse writes both directories. A file without a grain gets its length
// by a last sector of zeros.
func (m *committer) finishSparse() error {
	for _, dirAt := range []int64{m.geo.spareAt, m.geo.dirAt} {
		for i := range m.geo.tables {
			binary.LittleEndian.PutUint32(m.dir[i*4:], uint32(m.geo.tableAt(dirAt, i)))
		}
		if _, err := m.out.WriteAt(m.dir, dirAt*sectorSize); err != nil {
			return err
		}
	}
	if m.next == m.geo.dataAt {
		_, err := m.out.WriteAt(make([]byte, sectorSize), (m.next-1)*sectorSize)
		return err
	}
	return nil
}

// finishStream writes the directory, the footer and the end.
func (m *committer) finishStream() error {
	at, err := m.append(append(marker(markDirectory, int64(len(m.dir))/sectorSize), m.dir...))
	if err != nil {
		return err
	}
	tail := append(marker(markFooter, 1), m.geo.header(uint64(at+1))...)
	_, err = m.append(append(tail, marker(markEnd, 0)...))
	return err
}
