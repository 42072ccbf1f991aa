package partition

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// Size is how large a partition is wished to be: so many bytes or, if Percent
// is not 0, a share of what is free when its turn comes.
type Size struct {
	Bytes   int64
	Percent float64 // above 0, at most 100
}

// sizeUnits are the units of diskimage-builder (block_device/utils.py).
const sizeUnits = "|1 B|1 K|1e3 KB|1e3 KiB|1024 M|1e6 MB|1e6 MiB|1048576 G|1e9 GB|1e9 GiB|1073741824 T|1e12 TB|1e12 TiB|1099511627776"

// ParseSize reads a size as diskimage-builder writes it: a decimal number, an
// optional blank and a unit (TiB, GiB, MiB, KiB, which are powers of 1024; TB,
// GB, MB, KB, T, G, M, K, which are powers of 1000; B or none), or a percentage
// such as "50%". Fractions of a byte are cut off. Unlike diskimage-builder, it
// refuses a unit without a number, and sizes that are not above zero.
func ParseSize(text string) (Size, error) {
	number, unit := text, "%"
	percentage, isPercent := strings.CutSuffix(text, "%")
	if isPercent {
		number = percentage
	} else if m := regexp.MustCompile(`^([0-9.]+) ?([A-Za-z]*)$`).FindStringSubmatch(text); m != nil {
		number, unit = m[1], m[2]
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || strings.Trim(number, "0123456789.") != "" {
		return Size{}, fmt.Errorf("size %q is no number with a unit or percent sign", text)
	}
	if isPercent {
		if value <= 0 || value > 100 {
			return Size{}, fmt.Errorf("size %q is not above 0%% and at most 100%%", text)
		}
		return Size{Percent: value}, nil
	}
	factor, err := unitFactor(unit)
	if err != nil {
		return Size{}, fmt.Errorf("size %q: %w", text, err)
	}
	if bytes := value * factor; bytes >= 1 && bytes <= maxDisk {
		return Size{Bytes: int64(bytes)}, nil
	}
	return Size{}, fmt.Errorf("size %q is not from 1 byte to 4 EiB", text)
}

func unitFactor(unit string) (float64, error) {
	for pair := range strings.FieldsSeq(sizeUnits) {
		name, factor, _ := strings.Cut(pair, "|")
		if name == unit {
			return strconv.ParseFloat(factor, 64)
		}
	}
	return 0, fmt.Errorf("unit %q is not known: use KiB, MiB, GiB or TiB", unit)
}

// Of returns the size in bytes where free bytes are left. A share is computed
// in floating point and cut off, as diskimage-builder does.
func (s Size) Of(free int64) int64 {
	if s.Percent == 0 {
		return s.Bytes
	}
	return int64(math.Trunc(float64(free) * s.Percent / 100))
}

// Wish is a partition whose place is to be decided.
type Wish struct {
	Partition Partition // without Start, Sectors and EBR
	Size      Size
	Logical   bool // MBR only: in the extended partition, behind all primary ones
}

// DefaultAlign is the alignment of partitions, in bytes, that all common tools
// use.
const DefaultAlign = 1 << 20

// Layout returns t, which has no partitions yet, with those that are wished
// for, in order and one behind the other. Each starts at a multiple of align
// bytes (0 means DefaultAlign), and numbers are 1, 2, 3 ... but for logical
// partitions, which begin at 5.
//
// Sizes are rounded as diskimage-builder does
// (diskimage_builder/block_device/level1): in an MBR down to sectors, where
// what is free is the disk without one unit of alignment more than is in use;
// and in a GPT down to align, where 2 MiB of the disk are never free, and a
// share counts before it is rounded. So "100%" leaves the last MiB of the disk
// unused, except for a logical partition. A disk too small is a *SpaceError.
func (t Table) Layout(align int64, wishes []Wish) (Table, error) {
	if align == 0 {
		align = DefaultAlign
	}
	if t.SectorSize == 0 {
		t.SectorSize = 512
	}
	l := &layout{table: t, sector: int64(t.SectorSize), align: align}
	if err := l.run(wishes); err != nil {
		return t, fmt.Errorf("lay out partitions: %w", err)
	}
	return l.table, nil
}

// SpaceError says that a partition does not fit.
type SpaceError struct {
	Number     int   // of the partition, from 1 on
	Need, Free int64 // bytes
}

// Error implements error.
func (e *SpaceError) Error() string {
	return fmt.Sprintf("partition %d needs %d bytes, but only %d are free", e.Number, e.Need, e.Free)
}

// layout is the state of one Layout. Numbers are bytes.
type layout struct {
	table         Table
	sector, align int64
	size          int64 // of the disk
	next          int64 // where the next partition may start, aligned
	free          int64 // GPT only
}

func (l *layout) run(wishes []Wish) error {
	t := &l.table
	if len(t.Partitions) > 0 {
		return errors.New("the table has partitions already")
	}
	if err := t.checkDisk(); err != nil {
		return err
	}
	l.size = int64(t.Sectors) * l.sector
	if l.align <= 0 || l.align%l.sector != 0 || l.align > l.size {
		return fmt.Errorf("alignment of %d bytes is not a multiple of the sectors of %d, or larger than the disk", l.align, l.sector)
	}
	add := l.addMBR
	if t.Label == GPT {
		add = l.addGPT
		l.free = l.size - 2*DefaultAlign
	}
	first, _ := t.Usable()
	l.next = l.up(int64(first) * l.sector)
	for _, w := range wishes {
		if err := add(w); err != nil {
			return err
		}
	}
	return nil
}

// up rounds up to the alignment.
func (l *layout) up(n int64) int64 { return (n + l.align - 1) / l.align * l.align }

// addGPT adds the next partition of a GPT.
func (l *layout) addGPT(w Wish) error {
	number := len(l.table.Partitions) + 1
	if w.Logical {
		return fmt.Errorf("partition %d: a GPT has no logical partitions: %w", number, ErrUnsupported)
	}
	size := w.Size.Of(l.free)
	length := size / l.align * l.align
	if w.Size.Percent == 0 && length < l.align {
		return fmt.Errorf("partition %d: %d bytes are less than the alignment of %d: %w", number, size, l.align, ErrUnsupported)
	}
	if size > l.free || length < l.align {
		return &SpaceError{number, max(size, l.align), l.free}
	}
	l.place(w.Partition, l.next, length)
	l.next += length
	l.free -= size
	return nil
}

// addMBR adds the next partition of an MBR and, before the first logical one,
// the extended partition that takes all that is left.
func (l *layout) addMBR(w Wish) error {
	t := &l.table
	outer := t.container()
	if w.Logical && outer < 0 {
		if len(t.Partitions) >= maxPrimaries {
			return fmt.Errorf("%d primary partitions leave no number for an extended one: %w", maxPrimaries, ErrUnsupported)
		}
		if l.next >= l.size {
			return &SpaceError{maxPrimaries + 1, l.align, 0}
		}
		l.place(Partition{Type: Extended}, l.next, l.size-l.next)
		t.Partitions = append(t.Partitions, make([]Partition, maxPrimaries-len(t.Partitions))...)
	}
	if !w.Logical && outer >= 0 {
		return fmt.Errorf("partition %d: all primary partitions must come before the logical ones: %w", len(t.Partitions)+1, ErrUnsupported)
	}
	number := len(t.Partitions) + 1
	if !w.Logical && number > maxPrimaries {
		return fmt.Errorf("partition %d: there are %d primary partitions at most: %w", number, maxPrimaries, ErrUnsupported)
	}
	free := max(l.size-l.next-l.align, 0)
	size := w.Size.Of(free)
	start := l.next
	if w.Logical {
		w.Partition.EBR = LBA(start / l.sector)
		start += l.align
	}
	length := size / l.sector * l.sector
	if length == 0 || start > l.size || length > l.size-start {
		return &SpaceError{number, max(size, l.sector), free}
	}
	l.place(w.Partition, start, length)
	l.next = l.up(start + length)
	return nil
}

// place appends a partition.
func (l *layout) place(p Partition, start, length int64) {
	p.Start, p.Sectors = LBA(start/l.sector), LBA(length/l.sector)
	l.table.Partitions = append(l.table.Partitions, p)
}
