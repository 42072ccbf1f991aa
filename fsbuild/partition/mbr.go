package partition

import "encoding/binary"

// Layout of the master boot record. Multi-byte numbers are little-endian.
const (
	offSignature = 440 // 4 bytes: disk signature; 2 bytes after it are zero
	offEntries   = 446 // 4 entries of 16 bytes
	entrySize    = 16
	offMagic     = 510 // 0x55 0xaa, in a sector of 4096 bytes too
	statusActive = 0x80
)

// Geometry that diskimage-builder assumes for CHS addresses whatever the size
// of the disk, so that growing the disk does not change them.
const (
	headsPerCylinder = 254
	sectorsPerTrack  = 63
	maxCylinder      = 1023
)

// bootRecord encodes the first sector of a checked table.
func (t Table) bootRecord() []byte {
	b := make([]byte, t.SectorSize)
	copy(b, t.BootCode)
	binary.LittleEndian.PutUint32(b[offSignature:], t.Signature)
	for i, p := range t.Partitions {
		if p.Sectors > 0 {
			p.encode(b[offEntries+i*entrySize:])
		}
	}
	b[offMagic], b[offMagic+1] = 0x55, 0xaa
	return b
}

// encode writes the entry: 0 status, 1..3 CHS of the first sector, 4 type,
// 5..7 CHS of the last sector, 8..11 first LBA, 12..15 number of sectors.
// Unlike diskimage-builder, whose last CHS is one sector too far.
func (p Partition) encode(b []byte) {
	if p.Active {
		b[0] = statusActive
	}
	putCHS(b[1:], p.Start)
	b[4] = p.Type
	putCHS(b[5:], p.Start+p.Sectors-1)
	binary.LittleEndian.PutUint32(b[8:], uint32(p.Start))
	binary.LittleEndian.PutUint32(b[12:], uint32(p.Sectors))
}

// putCHS encodes head, sector (bits 0..5) with cylinder bits 8..9 (bits 6..7),
// and cylinder bits 0..7. What lies beyond the last cylinder is written as the
// highest address, which readers take as "use the LBA".
func putCHS(b []byte, lba LBA) {
	cylinder, head, sector := LBA(maxCylinder), LBA(headsPerCylinder), LBA(sectorsPerTrack)
	if lba <= headsPerCylinder*sectorsPerTrack*maxCylinder {
		cylinder = lba / (headsPerCylinder * sectorsPerTrack)
		head = lba / sectorsPerTrack % headsPerCylinder
		sector = lba%sectorsPerTrack + 1
	}
	b[0] = byte(head)
	b[1] = byte(sector) | byte(cylinder>>2)&0xc0
	b[2] = byte(cylinder)
}
