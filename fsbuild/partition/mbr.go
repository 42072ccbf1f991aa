package partition

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Layout of the master boot record and of extended boot records. Multi-byte
// numbers are little-endian.
const (
	offSignature = 440 // 4 bytes: disk signature; 2 bytes after it are zero
	offEntries   = 446 // 4 entries of 16 bytes
	entrySize    = 16
	offMagic     = 510 // 0x55 0xaa, in a sector of 4096 bytes too
	statusActive = 0x80
)

// geometry is what CHS addresses are computed with. An address beyond the last
// cylinder is written as overflow, which readers take as "use the LBA".
type geometry struct {
	heads, sectors LBA
	highest        LBA // that has an address
	overflow       [3]byte
}

// geometries of the labels. That of the MBR is diskimage-builder's, whatever
// the size of the disk, so that growing the disk does not change the table.
// That of a GPT is the one of BIOSes and of sgdisk, and section 5.2.3 of the
// UEFI specification gives the overflow.
func (l Label) geometry() geometry {
	if l == GPT {
		return geometry{heads: 255, sectors: 63, highest: 255*63*1024 - 1, overflow: [3]byte{0xff, 0xff, 0xff}}
	}
	return geometry{heads: 254, sectors: 63, highest: 254 * 63 * 1023, overflow: [3]byte{254, 0xff, 0xff}}
}

// put encodes head, sector (bits 0..5) with cylinder bits 8..9 (bits 6..7), and
// cylinder bits 0..7.
func (g geometry) put(b []byte, lba LBA) {
	if lba > g.highest {
		copy(b, g.overflow[:])
		return
	}
	cylinder := lba / (g.heads * g.sectors)
	b[0] = byte(lba / g.sectors % g.heads)
	b[1] = byte(lba%g.sectors+1) | byte(cylinder>>2)&0xc0
	b[2] = byte(cylinder)
}

// entry is one of the four entries of a boot record: 0 status, 1..3 CHS of the
// first sector, 4 type, 5..7 CHS of the last sector, 8..11 first LBA, 12..15
// number of sectors. The LBA counts from base, the CHS from the disk's start.
// Unlike diskimage-builder, whose last CHS is one sector too far.
type entry struct {
	Partition
	base LBA
}

func (e entry) encode(b []byte, g geometry) {
	if e.Active {
		b[0] = statusActive
	}
	g.put(b[1:], e.Start)
	b[4] = e.Type
	g.put(b[5:], e.Start+e.Sectors-1)
	binary.LittleEndian.PutUint32(b[8:], uint32(e.Start-e.base))
	binary.LittleEndian.PutUint32(b[12:], uint32(e.Sectors))
}

// bootRecord encodes a sector with entries; those without sectors stay zero.
func (t Table) bootRecord(entries []entry) []byte {
	b := make([]byte, t.SectorSize)
	for i, e := range entries {
		if e.Sectors > 0 {
			e.encode(b[offEntries+i*entrySize:], t.Label.geometry())
		}
	}
	b[offMagic], b[offMagic+1] = 0x55, 0xaa
	return b
}

// firstSector encodes the first sector of the disk.
func (t Table) firstSector(entries []entry) []byte {
	b := t.bootRecord(entries)
	copy(b, t.BootCode)
	binary.LittleEndian.PutUint32(b[offSignature:], t.Signature)
	return b
}

// logical returns the logical partitions.
func (t Table) logical() []Partition {
	return t.Partitions[min(maxPrimaries, len(t.Partitions)):]
}

// container returns the index of the extended partition, or -1.
func (t Table) container() int {
	return slices.IndexFunc(t.Partitions[:min(maxPrimaries, len(t.Partitions))], func(p Partition) bool {
		return p.Sectors > 0 && isExtended(p.Type)
	})
}

// mbrRegions encodes a complete table. Each extended boot record has an entry
// for its partition, relative to itself, and one that leads to the next record
// and its partition, relative to the extended partition. An extended partition
// that holds nothing has an empty record.
func (t Table) mbrRegions() []Region {
	var primaries []entry
	for _, p := range t.Partitions[:min(maxPrimaries, len(t.Partitions))] {
		primaries = append(primaries, entry{Partition: p})
	}
	regions := []Region{{Offset: 0, Data: t.firstSector(primaries)}}
	logical := t.logical()
	if c := t.container(); c >= 0 && len(logical) == 0 {
		offset := int64(t.Partitions[c].Start) * int64(t.SectorSize)
		regions = append(regions, Region{Offset: offset, Data: t.bootRecord(nil)})
	}
	for i, p := range logical {
		entries := []entry{{Partition: p, base: p.EBR}}
		if i+1 < len(logical) {
			next := logical[i+1]
			link := Partition{Start: next.EBR, Sectors: next.Start + next.Sectors - next.EBR, Type: extended}
			entries = append(entries, entry{Partition: link, base: t.Partitions[t.container()].Start})
		}
		regions = append(regions, Region{Offset: int64(p.EBR) * int64(t.SectorSize), Data: t.bootRecord(entries)})
	}
	slices.SortFunc(regions, func(a, b Region) int { return cmp.Compare(a.Offset, b.Offset) })
	return regions
}

// checkMBREntry checks one partition by itself.
func (t Table) checkMBREntry(p Partition) error {
	switch {
	case p.Sectors == 0:
		return errors.New("has no sectors")
	case p.Type == 0:
		return errors.New("type 0 marks an unused entry")
	case p.Start == 0:
		return errors.New("starts at sector 0, which holds the table")
	case p.Start > maxLBA || p.Sectors > maxLBA:
		return fmt.Errorf("sectors %d+%d need more than 32 bits: %w", p.Start, p.Sectors, ErrUnsupported)
	case !p.TypeGUID.IsZero() || !p.GUID.IsZero() || p.Name != "" || p.Attributes != 0:
		return fmt.Errorf("GUIDs, names and attributes need a GPT: %w", ErrUnsupported)
	}
	return t.checkRange(p)
}

// completeMBR checks the table as a whole and finds places for the extended
// boot records.
func (t Table) completeMBR() (Table, error) {
	active, containers := 0, 0
	for _, p := range t.Partitions {
		if p.Active {
			active++
		}
		if p.Sectors > 0 && isExtended(p.Type) {
			containers++
		}
	}
	logical := t.logical()
	switch {
	case active > 1:
		return t, fmt.Errorf("%d active partitions, more than one", active)
	case containers > 1:
		return t, fmt.Errorf("%d extended partitions, more than one: %w", containers, ErrUnsupported)
	case len(logical) > maxLogical:
		return t, fmt.Errorf("%d logical partitions, more than %d: %w", len(logical), maxLogical, ErrUnsupported)
	case len(logical) > 0 && t.container() < 0:
		return t, fmt.Errorf("%d partitions, more than %d, and none of these is extended: %w", len(t.Partitions), maxPrimaries, ErrUnsupported)
	case !t.DiskGUID.IsZero() || t.Entries != 0 || len(t.Hybrid) > 0:
		return t, fmt.Errorf("a disk GUID, a number of entries and a hybrid MBR need a GPT: %w", ErrUnsupported)
	}
	for _, p := range t.Partitions[:len(t.Partitions)-len(logical)] {
		if p.EBR != 0 {
			return t, errors.New("only a logical partition has an extended boot record")
		}
	}
	if len(logical) == 0 {
		return t, nil
	}
	return t.placeRecords()
}

// placeRecords gives all logical partitions their extended boot records.
func (t Table) placeRecords() (Table, error) {
	t.Partitions = slices.Clone(t.Partitions)
	logical := t.logical()
	outer := t.Partitions[t.container()]
	free := outer.Start
	for i := range logical {
		p := &logical[i]
		if p.EBR == 0 {
			p.EBR = free
		}
		free = p.Start + p.Sectors
		if err := checkLogical(*p, outer, i == 0); err != nil {
			return t, fmt.Errorf("partition %d: %w", maxPrimaries+i+1, err)
		}
	}
	return t, checkRecords(logical)
}

func checkLogical(p, outer Partition, first bool) error {
	switch {
	case p.Sectors == 0:
		return errors.New("a logical number cannot be left unused")
	case isExtended(p.Type):
		return fmt.Errorf("extended partition (type 0x%02x) in another one: %w", p.Type, ErrUnsupported)
	case first && p.EBR != outer.Start:
		return fmt.Errorf("the first extended boot record is in sector %d, not in the first one of the extended partition, %d", p.EBR, outer.Start)
	case p.EBR < outer.Start || p.Start+p.Sectors > outer.Start+outer.Sectors:
		return fmt.Errorf("sectors %d+%d with the boot record in %d leave the extended partition %d+%d", p.Start, p.Sectors, p.EBR, outer.Start, outer.Sectors)
	case p.EBR >= p.Start:
		return fmt.Errorf("starts at sector %d, which is not behind its extended boot record in sector %d", p.Start, p.EBR)
	}
	return nil
}

// checkRecords checks that no two extended boot records share a sector and none
// lies in a partition.
func checkRecords(logical []Partition) error {
	for i, p := range logical {
		for j, q := range logical {
			if p.EBR >= q.Start && p.EBR < q.Start+q.Sectors || i != j && p.EBR == q.EBR {
				return fmt.Errorf("partition %d: its extended boot record in sector %d overlaps partition %d", maxPrimaries+i+1, p.EBR, maxPrimaries+j+1)
			}
		}
	}
	return nil
}
