package partition

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Layout of a GUID partition table, "UEFI Specification 2.10", tables 5.5 and
// 5.6. Multi-byte numbers are little-endian.
const (
	gptMagic       = "EFI PART"
	gptRevision    = 0x00010000 // bytes 8..11
	offHeaderSize  = 12         // 4 bytes: 92
	offHeaderCRC   = 16         // 4 bytes: CRC-32 of the header with zeros here
	offMyLBA       = 24         // 8 bytes: where this header is
	offAlternate   = 32         // 8 bytes: where the other one is
	offFirstUsable = 40         // 8 bytes
	offLastUsable  = 48         // 8 bytes, inclusive
	offDiskGUID    = 56         // 16 bytes
	offEntriesLBA  = 72         // 8 bytes: where this header's copy of the entries is
	offEntryCount  = 80         // 4 bytes
	offEntrySize   = 84         // 4 bytes: 128
	offEntriesCRC  = 88         // 4 bytes: CRC-32 of all entries
	headerSize     = 92

	gptEntrySize  = 128
	offEntryGUID  = 16 // 16 bytes, behind the type's 16
	offEntryFirst = 32 // 8 bytes: first LBA
	offEntryLast  = 40 // 8 bytes: last LBA, inclusive
	offEntryAttrs = 48 // 8 bytes
	offEntryName  = 56 // UTF-16, little-endian
	nameUnits     = 36

	defaultEntries = 128
	minTableSize   = 16384 // bytes that are kept for the entries, however few there are
	primaryLBA     = 1
	maxHybrid      = 3
)

// Usable returns the first and the last sector that partitions of t may have.
// An MBR disk has its table in sector 0 only.
func (t Table) Usable() (first, last LBA) {
	if t.Label != GPT {
		return 1, t.Sectors - 1
	}
	n := t.tableSectors()
	return 2 + n, t.Sectors - n - 2
}

// tableSectors is the room for one copy of the entries.
func (t Table) tableSectors() LBA {
	size, sector := max(t.entryCount()*gptEntrySize, minTableSize), t.SectorSize
	if sector == 0 {
		sector = 512
	}
	return LBA((size + sector - 1) / sector)
}

func (t Table) entryCount() int {
	if t.Entries == 0 {
		return defaultEntries
	}
	return t.Entries
}

// gptRegions encodes a complete table: the MBR, header and entries at the
// start, entries and header at the end.
func (t Table) gptRegions() []Region {
	entries := t.encodeEntries()
	n, last := t.tableSectors(), t.Sectors-1
	primary := append(t.header(primaryLBA, last, 2, entries), entries...)
	backup := append(make([]byte, 0, (int(n)+1)*t.SectorSize), entries...)
	backup = append(backup[:int(n)*t.SectorSize], t.header(last, primaryLBA, last-n, entries)...)
	return []Region{
		{Offset: 0, Data: t.firstSector(t.protection())},
		{Offset: int64(t.SectorSize), Data: primary},
		{Offset: int64(last-n) * int64(t.SectorSize), Data: backup},
	}
}

// header encodes the header in sector my, in a sector of its own.
func (t Table) header(my, alternate, entriesLBA LBA, entries []byte) []byte {
	b := make([]byte, t.SectorSize)
	le := binary.LittleEndian
	first, last := t.Usable()
	guid := t.DiskGUID.swapped()
	copy(b, gptMagic)
	le.PutUint32(b[8:], gptRevision)
	le.PutUint32(b[offHeaderSize:], headerSize)
	le.PutUint64(b[offMyLBA:], uint64(my))
	le.PutUint64(b[offAlternate:], uint64(alternate))
	le.PutUint64(b[offFirstUsable:], uint64(first))
	le.PutUint64(b[offLastUsable:], uint64(last))
	copy(b[offDiskGUID:], guid[:])
	le.PutUint64(b[offEntriesLBA:], uint64(entriesLBA))
	le.PutUint32(b[offEntryCount:], uint32(t.entryCount()))
	le.PutUint32(b[offEntrySize:], gptEntrySize)
	le.PutUint32(b[offEntriesCRC:], crc32.ChecksumIEEE(entries))
	le.PutUint32(b[offHeaderCRC:], crc32.ChecksumIEEE(b[:headerSize]))
	return b
}

// encodeEntries encodes the array of entries, without the room behind it.
func (t Table) encodeEntries() []byte {
	b := make([]byte, t.entryCount()*gptEntrySize)
	for i, p := range t.Partitions {
		if p.Sectors > 0 {
			p.encode(b[i*gptEntrySize:])
		}
	}
	return b
}

func (p Partition) encode(b []byte) {
	kind, guid := p.TypeGUID.swapped(), p.GUID.swapped()
	copy(b, kind[:])
	copy(b[offEntryGUID:], guid[:])
	binary.LittleEndian.PutUint64(b[offEntryFirst:], uint64(p.Start))
	binary.LittleEndian.PutUint64(b[offEntryLast:], uint64(p.Start+p.Sectors-1))
	binary.LittleEndian.PutUint64(b[offEntryAttrs:], uint64(p.Attributes))
	for i, unit := range utf16.Encode([]rune(p.Name)) {
		binary.LittleEndian.PutUint16(b[offEntryName+2*i:], unit)
	}
}

// protection returns the entries of the MBR: one that covers the whole disk as
// far as 32 bits reach or, in a hybrid MBR, one that covers what lies before
// the partitions that it shows.
func (t Table) protection() []entry {
	cover := Partition{Start: primaryLBA, Sectors: min(t.Sectors-1, maxLBA), Type: protector}
	entries := []entry{{Partition: cover}}
	for _, number := range t.Hybrid {
		p := t.Partitions[number-1]
		entries[0].Sectors = min(entries[0].Sectors, p.Start-1)
		entries = append(entries, entry{Partition: p})
	}
	return entries
}

// checkGPTEntry checks one partition by itself.
func (t Table) checkGPTEntry(p Partition) error {
	first, last := t.Usable()
	switch {
	case p.Sectors == 0:
		return errors.New("has no sectors")
	case p.TypeGUID.IsZero():
		return errors.New("a type of zeros marks an unused entry")
	case p.GUID.IsZero():
		return errors.New("has no GUID of its own")
	case p.EBR != 0:
		return errors.New("a GPT has no extended boot records")
	}
	if err := checkName(p.Name); err != nil {
		return err
	}
	if err := t.checkRange(p); err != nil {
		return err
	}
	if p.Start < first || p.Start+p.Sectors-1 > last {
		return fmt.Errorf("sectors %d+%d overlap the partition table, which leaves sectors %d to %d", p.Start, p.Sectors, first, last)
	}
	return nil
}

func checkName(name string) error {
	n := len(utf16.Encode([]rune(name)))
	switch {
	case !utf8.ValidString(name):
		return fmt.Errorf("name %q is not UTF-8", name)
	case strings.ContainsRune(name, 0):
		return fmt.Errorf("name %q has a NUL", name)
	case n > nameUnits:
		return fmt.Errorf("name %q has %d UTF-16 code units, more than %d: %w", name, n, nameUnits, ErrUnsupported)
	}
	return nil
}

// completeGPT checks the table as a whole.
func (t Table) completeGPT() (Table, error) {
	switch {
	case t.Entries < 0 || t.Entries > maxEntries:
		return t, fmt.Errorf("room for %d partitions is not 1 to %d: %w", t.Entries, maxEntries, ErrUnsupported)
	case len(t.Partitions) > t.entryCount():
		return t, fmt.Errorf("%d partitions, more than %d: %w", len(t.Partitions), t.entryCount(), ErrUnsupported)
	case t.Sectors < 2*t.tableSectors()+4:
		return t, fmt.Errorf("disk of %d sectors has no room for a GPT and a partition", t.Sectors)
	case t.DiskGUID.IsZero():
		return t, errors.New("the disk has no GUID")
	}
	numbers := map[GUID]int{}
	for i, p := range t.Partitions {
		other, taken := numbers[p.GUID]
		if p.Sectors > 0 && taken {
			return t, fmt.Errorf("partition %d: its GUID %v is that of partition %d, too", i+1, p.GUID, other)
		}
		if p.Sectors > 0 {
			numbers[p.GUID] = i + 1
		}
	}
	return t, t.checkHybrid()
}

// checkHybrid checks the numbers of a hybrid MBR, and that only its partitions
// have what only an MBR can say.
func (t Table) checkHybrid() error {
	if len(t.Hybrid) > maxHybrid {
		return fmt.Errorf("%d partitions in the hybrid MBR, more than %d: %w", len(t.Hybrid), maxHybrid, ErrUnsupported)
	}
	active := 0
	for k, number := range t.Hybrid {
		if number < 1 || number > len(t.Partitions) || t.Partitions[number-1].Sectors == 0 || slices.Contains(t.Hybrid[:k], number) {
			return fmt.Errorf("partition %d of the hybrid MBR does not exist, or twice", number)
		}
		p := t.Partitions[number-1]
		switch {
		case p.Type == 0 || p.Type == protector || isExtended(p.Type):
			return fmt.Errorf("partition %d: type 0x%02x cannot be in a hybrid MBR", number, p.Type)
		case p.Start > maxLBA || p.Sectors > maxLBA:
			return fmt.Errorf("partition %d: sectors %d+%d need more than 32 bits in the hybrid MBR: %w", number, p.Start, p.Sectors, ErrUnsupported)
		}
		if p.Active {
			active++
		}
	}
	if active > 1 {
		return fmt.Errorf("%d active partitions, more than one", active)
	}
	for i, p := range t.Partitions {
		if (p.Type != 0 || p.Active) && !slices.Contains(t.Hybrid, i+1) {
			return fmt.Errorf("partition %d: an MBR type and a boot flag need a hybrid MBR: %w", i+1, ErrUnsupported)
		}
	}
	return nil
}
