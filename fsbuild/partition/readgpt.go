package partition

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"unicode/utf16"
)

// copyOf is one of the two copies of a GPT.
type copyOf struct {
	table                   Table
	alternate               LBA // where its header says that the other one is
	entries                 []byte
	firstUsable, lastUsable LBA
}

// readGPT reads the primary copy, or else the backup. A disk says nothing about
// its sectors, so both sizes are tried.
func readGPT(r reader, first []byte, records []Partition) (Table, error) {
	var reasons []error
	for _, sector := range []int{512, 4096} {
		c, err := readCopy(r, sector, primaryLBA)
		if err == nil {
			c.table.Damage = c.checkBackup(r)
			return c.finish(first, records), nil
		}
		reasons = append(reasons, err)
	}
	for i, sector := range []int{512, 4096} {
		last := LBA(r.size/int64(sector)) - 1
		if c, err := readCopy(r, sector, last); err == nil {
			c.table.Damage = fmt.Errorf("primary header: %w", reasons[i])
			return c.finish(first, records), nil
		}
	}
	return Table{}, fmt.Errorf("neither the primary nor the backup header can be used: %w", reasons[0])
}

// checkBackup looks whether the backup says the same as c.
func (c copyOf) checkBackup(r reader) error {
	b, err := readCopy(r, c.table.SectorSize, c.alternate)
	switch {
	case err != nil:
		return fmt.Errorf("backup header: %w", err)
	case !bytes.Equal(b.entries, c.entries) || b.table.DiskGUID != c.table.DiskGUID:
		return fmt.Errorf("backup header: its table is another one: %w", ErrDamaged)
	case c.alternate != c.table.Sectors-1:
		return fmt.Errorf("backup header: it is in sector %d, not in the disk's last one, %d: %w", c.alternate, c.table.Sectors-1, ErrDamaged)
	}
	return nil
}

// readCopy reads and checks the header in sector lba, and its entries.
func readCopy(r reader, sector int, lba LBA) (*copyOf, error) {
	if lba > maxDisk/LBA(sector) {
		return nil, fmt.Errorf("header in sector %d: %w", lba, ErrDamaged)
	}
	h, err := r.at(int64(lba)*int64(sector), int64(sector))
	if err != nil {
		return nil, err
	}
	if err := checkHeader(h, lba); err != nil {
		return nil, fmt.Errorf("header in sector %d: %w: %w", lba, ErrDamaged, err)
	}
	le := binary.LittleEndian
	c := &copyOf{
		table: Table{
			Label: GPT, SectorSize: sector, Sectors: LBA(r.size / int64(sector)),
			DiskGUID: GUID(h[offDiskGUID:]).swapped(), Entries: int(le.Uint32(h[offEntryCount:])),
		},
		alternate:   LBA(le.Uint64(h[offAlternate:])),
		firstUsable: LBA(le.Uint64(h[offFirstUsable:])),
		lastUsable:  LBA(le.Uint64(h[offLastUsable:])),
	}
	at, size := le.Uint64(h[offEntriesLBA:]), int64(le.Uint32(h[offEntrySize:]))
	if at < 2 || at > uint64(maxDisk/sector) {
		return nil, fmt.Errorf("entries in sector %d: %w", at, ErrDamaged)
	}
	if c.entries, err = r.at(int64(at)*int64(sector), int64(c.table.Entries)*size); err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(c.entries) != le.Uint32(h[offEntriesCRC:]) {
		return nil, fmt.Errorf("entries in sector %d: wrong checksum: %w", at, ErrDamaged)
	}
	return c, c.decode(int(size))
}

// checkHeader checks a header by itself.
func checkHeader(h []byte, lba LBA) error {
	le := binary.LittleEndian
	length := le.Uint32(h[offHeaderSize:])
	switch {
	case !bytes.HasPrefix(h, []byte(gptMagic)):
		return fmt.Errorf("begins with % x, not %q", h[:8], gptMagic)
	case le.Uint32(h[8:])>>16 != gptRevision>>16:
		return fmt.Errorf("revision %#x is not 1", le.Uint32(h[8:]))
	case length < headerSize || length > uint32(len(h)):
		return fmt.Errorf("says that it has %d bytes", length)
	}
	b := bytes.Clone(h[:length])
	clear(b[offHeaderCRC : offHeaderCRC+4])
	count, size := le.Uint32(h[offEntryCount:]), le.Uint32(h[offEntrySize:])
	switch {
	case crc32.ChecksumIEEE(b) != le.Uint32(h[offHeaderCRC:]):
		return fmt.Errorf("wrong checksum")
	case LBA(le.Uint64(h[offMyLBA:])) != lba:
		return fmt.Errorf("says that it is in sector %d", le.Uint64(h[offMyLBA:]))
	case count == 0 || count > maxEntries:
		return fmt.Errorf("%d entries, not 1 to %d", count, maxEntries)
	case size < gptEntrySize || size > 8*gptEntrySize || size&(size-1) != 0:
		return fmt.Errorf("entries of %d bytes", size)
	}
	return nil
}

// decode decodes the entries, of size bytes each.
func (c *copyOf) decode(size int) error {
	t := &c.table
	for i := range t.Entries {
		p := decodeEntry(c.entries[i*size:])
		if p.TypeGUID.IsZero() {
			continue
		}
		if p.Start < c.firstUsable || p.Sectors == 0 || p.Sectors > maxDisk || p.Start+p.Sectors-1 > c.lastUsable {
			return fmt.Errorf("partition %d: sectors %d+%d are not within %d to %d: %w", i+1, p.Start, p.Sectors, c.firstUsable, c.lastUsable, ErrDamaged)
		}
		if err := t.checkRange(p); err != nil {
			return fmt.Errorf("partition %d: %w: %w", i+1, ErrDamaged, err)
		}
		t.Partitions = append(t.Partitions, make([]Partition, i-len(t.Partitions))...)
		t.Partitions = append(t.Partitions, p)
	}
	if err := t.checkOverlap(); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

func decodeEntry(b []byte) Partition {
	le := binary.LittleEndian
	first, last := le.Uint64(b[offEntryFirst:]), le.Uint64(b[offEntryLast:])
	p := Partition{
		TypeGUID:   GUID(b).swapped(),
		GUID:       GUID(b[offEntryGUID:]).swapped(),
		Start:      LBA(first),
		Attributes: Attributes(le.Uint64(b[offEntryAttrs:])),
	}
	if last >= first {
		p.Sectors = LBA(last - first + 1)
	}
	var units []uint16
	for i := range nameUnits {
		unit := le.Uint16(b[offEntryName+2*i:])
		if unit == 0 {
			break
		}
		units = append(units, unit)
	}
	p.Name = string(utf16.Decode(units))
	return p
}

// finish adds what the MBR says: boot code, and the partitions of a hybrid one.
func (c *copyOf) finish(first []byte, records []Partition) Table {
	t := c.table
	t.readFirst(first)
	for i, m := range records {
		if m.Sectors == 0 || m.Type == protector {
			continue
		}
		found := false
		for j := range t.Partitions {
			p := &t.Partitions[j]
			if p.Sectors == m.Sectors && p.Start == m.Start && p.Type == 0 {
				p.Type, p.Active, found = m.Type, m.Active, true
				t.Hybrid = append(t.Hybrid, j+1)
				break
			}
		}
		if !found && t.Damage == nil {
			t.Damage = fmt.Errorf("hybrid MBR: its entry %d is no partition of the GPT: %w", i+1, ErrDamaged)
		}
	}
	return t
}
