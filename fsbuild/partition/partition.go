// Package partition writes, reads and lays out partition tables. A [Table] is a
// value: [Table.Regions] turns it into the byte ranges that must be on the
// disk, the same for the same table always, and [Read] turns a disk into a
// table. [Table.Layout] decides starts and lengths from wishes such as "8MiB"
// and "100%".
//
// It knows two labels. The master boot record ("UEFI Specification 2.10",
// section 5.2.1) has up to four primary partitions, of which one may be
// extended and then holds a chain of logical ones; its CHS fields are those
// that diskimage-builder computes (diskimage_builder/block_device/level1/mbr.py).
// The GUID partition table (section 5.3) has a protective or hybrid MBR, two
// headers and two copies of its entries, and names, attributes and types, which
// have names of their own, see [ParseType]. Sectors have 512 or 4096 bytes.
//
// Regions are all that is written: never the content of a partition. Every
// identifier is given by the caller. Of a foreign table only the partitions are
// read: reserved fields, entries larger than 128 bytes and other places of the
// table than the usual ones are not kept.
//
// # Stability
//
// The API may change until version 1 of the module. The bytes for the same
// Table are part of it: a release that writes others says so.
package partition

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
)

// LBA is a logical block address, or a count of logical blocks (sectors).
type LBA uint64

// Label is the kind of table.
type Label uint8

// Kinds of table.
const (
	MBR Label = 1 // master boot record, which GRUB and SeaBIOS boot from
	GPT Label = 2 // GUID partition table
)

// String returns the name that sfdisk uses for l.
func (l Label) String() string {
	switch l {
	case MBR:
		return "dos"
	case GPT:
		return "gpt"
	}
	return fmt.Sprintf("label %d", uint8(l))
}

// BootCodeSize is the room, in bytes, for boot code before the disk signature.
const BootCodeSize = 440

// Types of MBR partitions.
const (
	Linux     byte = 0x83 // a Linux file system
	Extended  byte = 0x0f // holds logical partitions; 0x05 and 0x85 are the same
	extended  byte = 0x05 // with CHS addresses, and in the chain of logical partitions
	extLinux  byte = 0x85
	protector byte = 0xee // covers a GPT
)

func isExtended(t byte) bool { return t == Extended || t == extended || t == extLinux }

// Limits of the formats, and one of our own for what is believed of a header.
const (
	maxPrimaries = 4
	maxLBA       = 1<<32 - 1 // start and length have 32 bits in an MBR
	maxLogical   = 256       // the kernel's sd devices have 256 numbers at most
	maxEntries   = 16384     // of a GPT: 2 MiB
	maxDisk      = 1 << 62   // bytes, so that no sum of offsets overflows
)

// ErrUnsupported is returned (wrapped) for tables that the label cannot hold
// or that this package does not write.
var ErrUnsupported = errors.New("not supported by the partition table")

// Attributes are the flags of a GPT partition: bits 0 to 2 of the UEFI
// specification, table 5.8, and bits 48 to 63, which belong to the type. Those
// here are of the Discoverable Partitions Specification.
type Attributes uint64

// Bits of Attributes.
const (
	Required           Attributes = 1 << 0  // the platform needs it; tools leave it alone
	NoBlockIO          Attributes = 1 << 1  // firmware makes no block device of it
	LegacyBIOSBootable Attributes = 1 << 2  // a BIOS boot loader may start from it
	GrowFileSystem     Attributes = 1 << 59 // systemd grows the file system at its first mount
	ReadOnly           Attributes = 1 << 60 // systemd mounts it read-only
	NoAuto             Attributes = 1 << 63 // systemd does not mount it by itself
)

// Table describes one disk.
type Table struct {
	Label      Label
	SectorSize int         // bytes in a sector: 512 or 4096; 0 means 512
	Sectors    LBA         // size of the whole disk
	Signature  uint32      // MBR disk signature (Linux: PARTUUID is %08x-%02x of it and the number); 0 with GPT, as a rule
	BootCode   []byte      // at most BootCodeSize bytes for the first sector; nil means zeros
	Partitions []Partition // the i-th has number i+1; Sectors 0 leaves the number unused

	DiskGUID GUID  // GPT only
	Entries  int   // GPT only: room for so many partitions, at most 16384; 0 means 128
	Hybrid   []int // GPT only: numbers of at most three partitions that the MBR has too; empty: it only protects

	// Damage is what Read found wrong with a copy of the table that it then did
	// not use, or nil. It is never written.
	Damage error
}

// Partition is one entry of a table. Entries may be in any order on the disk.
type Partition struct {
	Start   LBA // first sector
	Sectors LBA // length; 0 means an unused number

	// For an MBR, and for the partitions of a hybrid one.
	Type   byte // 1..255
	Active bool // boot flag; one partition at most

	// EBR is, for a logical partition (number 5 and higher of an MBR), the
	// sector of the extended boot record that describes it. 0 means the first
	// sector behind the logical partition with the number before it, and for
	// number 5 always the first sector of the extended partition.
	EBR LBA

	// For a GPT.
	TypeGUID   GUID
	GUID       GUID   // its own; on Linux the PARTUUID
	Name       string // at most 36 UTF-16 code units
	Attributes Attributes
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
	t, err := t.complete()
	if err != nil {
		return nil, fmt.Errorf("encode partition table: %w", err)
	}
	if t.Label == GPT {
		return t.gptRegions(), nil
	}
	return t.mbrRegions(), nil
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

// complete fills in defaults and checks all that Regions needs.
func (t Table) complete() (Table, error) {
	if t.Label != MBR && t.Label != GPT {
		return t, fmt.Errorf("%v: %w", t.Label, ErrUnsupported)
	}
	if t.SectorSize == 0 {
		t.SectorSize = 512
	}
	if err := t.checkDisk(); err != nil {
		return t, err
	}
	check, complete := t.checkMBREntry, t.completeMBR
	if t.Label == GPT {
		check, complete = t.checkGPTEntry, t.completeGPT
	}
	for i, p := range t.Partitions {
		if p == (Partition{}) {
			continue
		}
		if err := check(p); err != nil {
			return t, fmt.Errorf("partition %d: %w", i+1, err)
		}
	}
	t, err := complete()
	if err != nil {
		return t, err
	}
	return t, t.checkOverlap()
}

func (t Table) checkDisk() error {
	switch {
	case t.SectorSize != 512 && t.SectorSize != 4096:
		return fmt.Errorf("sector size %d: %w", t.SectorSize, ErrUnsupported)
	case len(t.BootCode) > BootCodeSize:
		return fmt.Errorf("boot code has %d bytes, more than %d", len(t.BootCode), BootCodeSize)
	case t.Sectors == 0:
		return errors.New("disk has no sectors")
	case t.Sectors > maxDisk/LBA(t.SectorSize):
		return fmt.Errorf("disk of %d sectors: %w", t.Sectors, ErrUnsupported)
	}
	return nil
}

// checkOverlap checks the partitions against each other. Logical ones lie in an
// extended one, so these are looked at by themselves.
func (t Table) checkOverlap() error {
	primaries := len(t.Partitions)
	if t.Label == MBR {
		primaries = min(primaries, maxPrimaries)
	}
	if err := t.checkRanges(0, primaries); err != nil {
		return err
	}
	return t.checkRanges(primaries, len(t.Partitions))
}

// checkRanges checks the partitions from index first to before end.
func (t Table) checkRanges(first, end int) error {
	var order []int // by place on the disk
	for i := first; i < end; i++ {
		if t.Partitions[i].Sectors > 0 {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(i, j int) int {
		return cmp.Or(cmp.Compare(t.Partitions[i].Start, t.Partitions[j].Start), cmp.Compare(i, j))
	})
	for k := 1; k < len(order); k++ {
		i, j := max(order[k-1], order[k]), min(order[k-1], order[k])
		p, q := t.Partitions[i], t.Partitions[j]
		if p.Start < q.Start+q.Sectors && q.Start < p.Start+p.Sectors {
			return fmt.Errorf("partition %d: sectors %d+%d overlap partition %d", i+1, p.Start, p.Sectors, j+1)
		}
	}
	return nil
}

// checkRange checks that p lies on the disk.
func (t Table) checkRange(p Partition) error {
	if p.Sectors > t.Sectors || p.Start > t.Sectors-p.Sectors {
		return fmt.Errorf("sectors %d+%d leave the disk of %d sectors", p.Start, p.Sectors, t.Sectors)
	}
	return nil
}
