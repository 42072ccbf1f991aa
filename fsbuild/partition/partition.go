// Package partition encodes partition tables. A Table is a value; Regions
// turns it into the byte ranges that must be written to the disk, the same for
// the same table always. It decides no sizes and no alignment, writes nothing
// outside its regions, and reads no tables.
//
// Today it knows the master boot record with up to four primary partitions, as
// described in "UEFI Specification 2.10", section 5.2.1 (Legacy Master Boot
// Record), with the CHS fields that diskimage-builder computes
// (diskimage_builder/block_device/level1/mbr.py). Extended partitions and GPT
// are refused; they need more regions, which is why Regions returns a list.
package partition

import (
	"errors"
	"fmt"
	"io"
)

// LBA is a logical block address, or a count of logical blocks (sectors).
type LBA uint64

// Label is the kind of table.
type Label uint8

// MBR is the master boot record, which GRUB and SeaBIOS boot from.
const MBR Label = 1

// String returns the name that sfdisk uses for l.
func (l Label) String() string {
	if l == MBR {
		return "dos"
	}
	return fmt.Sprintf("label %d", uint8(l))
}

// BootCodeSize is the room, in bytes, for boot code before the disk signature.
const BootCodeSize = 440

// Linux is the MBR type of a Linux file system.
const Linux byte = 0x83

// Limits of the master boot record.
const (
	maxPrimaries = 4
	maxLBA       = 1<<32 - 1 // start and length have 32 bits
)

// ErrUnsupported is returned (wrapped) for tables that the label cannot hold
// or that this package does not write yet.
var ErrUnsupported = errors.New("not supported by the partition table")

// Table describes one disk.
type Table struct {
	Label      Label
	SectorSize int         // bytes in a sector: 512 or 4096; 0 means 512
	Sectors    LBA         // size of the whole disk
	Signature  uint32      // MBR disk signature (Linux: PARTUUID is %08x-%02x of it and the number)
	BootCode   []byte      // at most BootCodeSize bytes for the first sector; nil means zeros
	Partitions []Partition // the i-th has number i+1; Sectors 0 leaves the number unused
}

// Partition is one entry of a table. Entries may be in any order on the disk.
type Partition struct {
	Start   LBA  // first sector
	Sectors LBA  // length; 0 means an unused number
	Type    byte // MBR type, 1..255, but no extended partition
	Active  bool // boot flag; one partition at most
}

// Region is a range of bytes of the disk.
type Region struct {
	Offset int64
	Data   []byte
}

// Regions returns what must be on the disk, ascending and not overlapping. It
// refuses, with an error that says which partition is wrong, entries that
// overlap each other or the table, or leave the disk.
func (t Table) Regions() ([]Region, error) {
	if t.Label != MBR {
		return nil, fmt.Errorf("encode partition table: %v: %w", t.Label, ErrUnsupported)
	}
	if t.SectorSize == 0 {
		t.SectorSize = 512
	}
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("encode partition table: %w", err)
	}
	return []Region{{Offset: 0, Data: t.bootRecord()}}, nil
}

// Write writes the regions to w.
func (t Table) Write(w io.WriterAt) error {
	regions, err := t.Regions()
	if err != nil {
		return err
	}
	for _, r := range regions {
		if _, err := w.WriteAt(r.Data, r.Offset); err != nil {
			return fmt.Errorf("write partition table: %w", err)
		}
	}
	return nil
}

func (t Table) check() error {
	switch {
	case t.SectorSize != 512 && t.SectorSize != 4096:
		return fmt.Errorf("sector size %d: %w", t.SectorSize, ErrUnsupported)
	case len(t.BootCode) > BootCodeSize:
		return fmt.Errorf("boot code has %d bytes, more than %d", len(t.BootCode), BootCodeSize)
	case len(t.Partitions) > maxPrimaries:
		return fmt.Errorf("%d partitions, more than %d: %w", len(t.Partitions), maxPrimaries, ErrUnsupported)
	case t.Sectors == 0:
		return errors.New("disk has no sectors")
	}
	active := 0
	for i, p := range t.Partitions {
		if p == (Partition{}) {
			continue
		}
		if err := t.checkEntry(i); err != nil {
			return fmt.Errorf("partition %d: %w", i+1, err)
		}
		if p.Active {
			active++
		}
	}
	if active > 1 {
		return fmt.Errorf("%d active partitions, more than one", active)
	}
	return nil
}

// checkEntry checks partition i against the disk and those before it.
func (t Table) checkEntry(i int) error {
	p := t.Partitions[i]
	switch {
	case p.Sectors == 0:
		return errors.New("has no sectors")
	case p.Type == 0:
		return errors.New("type 0 marks an unused entry")
	case p.Type == 0x05 || p.Type == 0x0f || p.Type == 0x85:
		return fmt.Errorf("extended partition (type 0x%02x): %w", p.Type, ErrUnsupported)
	case p.Start == 0:
		return errors.New("starts at sector 0, which holds the table")
	case p.Start > maxLBA || p.Sectors > maxLBA:
		return fmt.Errorf("sectors %d+%d need more than 32 bits: %w", p.Start, p.Sectors, ErrUnsupported)
	case p.Start+p.Sectors > t.Sectors:
		return fmt.Errorf("sectors %d+%d leave the disk of %d sectors", p.Start, p.Sectors, t.Sectors)
	}
	for j, q := range t.Partitions[:i] {
		if q.Sectors != 0 && p.Start < q.Start+q.Sectors && q.Start < p.Start+p.Sectors {
			return fmt.Errorf("sectors %d+%d overlap partition %d", p.Start, p.Sectors, j+1)
		}
	}
	return nil
}
