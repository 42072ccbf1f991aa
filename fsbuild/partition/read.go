package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrNoTable is returned (wrapped) by Read for a disk without a partition
// table, for example one with a file system that begins in the first sector.
var ErrNoTable = errors.New("no partition table")

// ErrDamaged is returned (wrapped) by Read for a table that contradicts itself
// or the disk, and wrapped in Table.Damage.
var ErrDamaged = errors.New("damaged partition table")

// Read reads the table of a disk of size bytes. SectorSize and the defaults of
// the result are filled in; of a GPT that has no usable primary header, the
// backup is taken and Damage says why. An MBR does not say how large sectors
// are: 512 bytes are assumed. Partitions that overlap or leave the disk make an
// error that wraps ErrDamaged; whatever the disk holds, no more than some MiB
// are read.
func Read(r io.ReaderAt, size int64) (Table, error) {
	t, err := read(reader{r, size})
	if err != nil {
		return Table{}, fmt.Errorf("read partition table: %w", err)
	}
	return t, nil
}

// reader reads whole ranges of a disk of size bytes.
type reader struct {
	r    io.ReaderAt
	size int64
}

// at returns n bytes from offset on, which must be on the disk.
func (r reader) at(offset, n int64) ([]byte, error) {
	if offset < 0 || n > r.size || offset > r.size-n {
		return nil, fmt.Errorf("%d bytes at offset %d leave the disk of %d: %w", n, offset, r.size, ErrDamaged)
	}
	b := make([]byte, n)
	if got, err := r.r.ReadAt(b, offset); got < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("%d bytes at offset %d: %w", n, offset, err)
	}
	return b, nil
}

func read(r reader) (Table, error) {
	if r.size < 512 || r.size > maxDisk {
		return Table{}, fmt.Errorf("disk of %d bytes: %w", r.size, ErrNoTable)
	}
	first, err := r.at(0, 512)
	if err != nil {
		return Table{}, err
	}
	records, ok := bootRecord(first)
	if !ok || isFileSystem(first) {
		return readStray(r)
	}
	for _, p := range records {
		if p.Type == protector {
			return readGPT(r, first, records[:])
		}
	}
	return readMBR(r, first, records)
}

// readStray reads a GPT without an MBR, which the specification does not allow
// but tools repair.
func readStray(r reader) (Table, error) {
	t, err := readGPT(r, make([]byte, 512), nil)
	if errors.Is(err, ErrDamaged) {
		return t, ErrNoTable
	}
	if err == nil && t.Damage == nil {
		t.Damage = fmt.Errorf("no protective MBR: %w", ErrDamaged)
	}
	return t, err
}

// bootRecord decodes the entries of a boot record, and reports whether b is
// one: it has the magic number, and each status is 0 or 0x80.
func bootRecord(b []byte) (entries [4]Partition, ok bool) {
	if b[offMagic] != 0x55 || b[offMagic+1] != 0xaa {
		return entries, false
	}
	for i := range entries {
		e := b[offEntries+i*entrySize:]
		if e[0]&^statusActive != 0 {
			return entries, false
		}
		p := Partition{
			Start:   LBA(binary.LittleEndian.Uint32(e[8:])),
			Sectors: LBA(binary.LittleEndian.Uint32(e[12:])),
			Type:    e[4],
			Active:  e[0] == statusActive,
		}
		if p.Type != 0 && p.Sectors != 0 {
			entries[i] = p
		}
	}
	return entries, true
}

// isFileSystem reports whether the first sector is that of FAT, exFAT or NTFS,
// which ends in the same magic number.
func isFileSystem(b []byte) bool {
	jump := b[0] == 0xeb || b[0] == 0xe9
	return jump && (bytes.HasPrefix(b[0x36:], []byte("FAT")) || bytes.HasPrefix(b[0x52:], []byte("FAT32")) ||
		bytes.HasPrefix(b[3:], []byte("NTFS")) || bytes.HasPrefix(b[3:], []byte("EXFAT")))
}

// readMBR reads what the first sector's entries lead to.
func readMBR(r reader, first []byte, records [4]Partition) (Table, error) {
	t := Table{Label: MBR, SectorSize: 512, Sectors: LBA(r.size / 512)}
	t.readFirst(first)
	n := maxPrimaries
	for n > 0 && records[n-1] == (Partition{}) {
		n--
	}
	t.Partitions = append(t.Partitions, records[:n]...)
	if c := t.container(); c >= 0 {
		logical, err := readLogical(r, t.Partitions[c])
		if err != nil {
			return t, err
		}
		for len(logical) > 0 && len(t.Partitions) < maxPrimaries {
			t.Partitions = append(t.Partitions, Partition{})
		}
		t.Partitions = append(t.Partitions, logical...)
	}
	complete, err := t.complete()
	if err != nil {
		return t, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return complete, nil
}

// readFirst keeps what the first sector has besides entries. Boot code that is
// all zeros is none.
func (t *Table) readFirst(first []byte) {
	t.Signature = binary.LittleEndian.Uint32(first[offSignature:])
	if code := first[:BootCodeSize]; !bytes.Equal(code, make([]byte, BootCodeSize)) {
		t.BootCode = bytes.Clone(code)
	}
}

// readLogical follows the chain of extended boot records in outer. A sector
// without the magic number ends it; more records than there are numbers, or a
// chain that comes back, are an error.
func readLogical(r reader, outer Partition) ([]Partition, error) {
	var logical []Partition
	seen := map[LBA]bool{}
	for record := outer.Start; ; {
		if seen[record] || len(seen) >= maxLogical {
			return nil, fmt.Errorf("the chain of extended boot records has no end at sector %d: %w", record, ErrDamaged)
		}
		seen[record] = true
		b, err := r.at(int64(record)*512, 512)
		if err != nil {
			return nil, err
		}
		entries, ok := bootRecord(b)
		if !ok {
			return logical, nil
		}
		var next LBA
		for _, p := range entries {
			switch {
			case p == (Partition{}):
			case isExtended(p.Type) && next == 0:
				next = outer.Start + p.Start
			case !isExtended(p.Type):
				p.EBR, p.Start = record, record+p.Start
				logical = append(logical, p)
			}
		}
		if next == 0 {
			return logical, nil
		}
		record = next
	}
}
