package fsbuild

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/grub"
	"cairn/fsbuild/partition"
)

const (
	mib     = 1 << 20
	fsBlock = 4096    // sizes that we choose for a file system are multiples of it
	largest = 1 << 60 // disk that is tried
)

// disk is the plan of one disk: byte ranges of the table and the boot loader,
// where contents go, and where the file system starts.
type disk struct {
	size     int64
	regions  []partition.Region
	contents []placed
	fsOffset int64
}

// placed is a content at its place on the disk.
type placed struct {
	number  int // of the partition; 0 for the whole disk
	offset  int64
	content Content
}

// fail says which content went wrong.
func (p placed) fail(err error) error {
	if p.number == 0 {
		return err
	}
	return fmt.Errorf("partition %d: %w", p.number, err)
}

// fileSystem is what a disk needs of a file-system writer, which issues WriteAt
// calls with ascending, non-overlapping offsets and skips zeros.
type fileSystem interface {
	Write(ctx context.Context, w io.WriterAt) (ext4.Summary, error)
}

var _ fileSystem = (*ext4.Layout)(nil)

func planDisk(img Image) (disk, *ext4.Layout, error) {
	img, err := img.complete()
	if err != nil {
		return disk{}, nil, err
	}
	if img.Table == NoTable {
		return img.bare()
	}
	a := &arrangement{Image: img, least: make([]Content, len(img.Partitions))}
	t, err := a.table()
	if err != nil {
		return disk{}, nil, err
	}
	d := disk{size: int64(t.Sectors) * int64(t.SectorSize)}
	if err := a.fill(t, &d); err != nil {
		return disk{}, nil, err
	}
	return d, a.root, a.addRegions(&t, &d)
}

// complete fills in defaults and checks what the packages below do not.
func (img Image) complete() (Image, error) {
	if img.SectorSize == 0 {
		img.SectorSize = 512
	}
	switch {
	case img.Table > GPT:
		return img, fmt.Errorf("partition table %d: %w", img.Table, ErrImage)
	case (img.Boot == nil) != (img.Core == nil):
		return img, fmt.Errorf("only one of boot.img and core.img is given: %w", ErrImage)
	case img.Table == NoTable && img.Boot != nil:
		return img, fmt.Errorf("a boot loader needs a partition table: %w", ErrImage)
	case img.SectorSize != 512 && img.SectorSize != 4096:
		return img, fmt.Errorf("sectors of %d bytes: %w", img.SectorSize, ErrImage)
	case img.SectorSize != 512 && img.Boot != nil:
		return img, fmt.Errorf("GRUB for BIOS needs sectors of 512 bytes: %w", ErrImage)
	case img.DiskSize < 0 || img.DiskSize%int64(img.SectorSize) != 0:
		return img, fmt.Errorf("disk size %d is not a multiple of %d: %w", img.DiskSize, img.SectorSize, ErrImage)
	}
	return img.completePartitions()
}

func (img Image) completePartitions() (Image, error) {
	switch {
	case img.Table == NoTable && (len(img.Partitions) > 1 || len(img.Partitions) > 0 && img.Tree != nil):
		return img, fmt.Errorf("partitions need a partition table: %w", ErrImage)
	case img.Table != NoTable && len(img.Partitions) == 0 && img.Tree == nil:
		return img, fmt.Errorf("neither a tree nor partitions: %w", ErrImage)
	case img.Table == MBR && len(img.Partitions) == 0:
		img.Partitions = []Partition{{Root: true, Entry: partition.Partition{Type: partition.Linux, Active: true}}}
	default:
		img.Partitions = slices.Clone(img.Partitions)
	}
	roots := 0
	for i := range img.Partitions {
		p := &img.Partitions[i]
		if err := p.complete(int64(img.SectorSize)); err != nil {
			return img, fmt.Errorf("partition %d: %w", i+1, err)
		}
		if p.Root {
			roots++
		}
	}
	switch {
	case img.Tree == nil && roots > 0:
		return img, fmt.Errorf("a root partition without a tree: %w", ErrImage)
	case img.Tree != nil && img.Table != NoTable && roots != 1:
		return img, fmt.Errorf("%d root partitions, not one: %w", roots, ErrImage)
	}
	return img, nil
}

// complete checks p and fills in the size of a content that has one.
func (p *Partition) complete(sector int64) error {
	size := p.Size.Bytes
	switch {
	case p.Entry.Start != 0 || p.Entry.Sectors != 0 || p.Entry.EBR != 0:
		return fmt.Errorf("its place is not for the caller to choose: %w", ErrImage)
	case size < 0 || size%sector != 0:
		return fmt.Errorf("size %d is not a multiple of %d: %w", size, sector, ErrImage)
	case p.Root && (p.Content != nil || p.Fit != nil):
		return fmt.Errorf("the root partition holds the tree and no other content: %w", ErrImage)
	case p.Content != nil && p.Fit != nil:
		return fmt.Errorf("it has two contents: %w", ErrImage)
	case p.Content != nil && p.Content.Size() < 0:
		return fmt.Errorf("content of %d bytes: %w", p.Content.Size(), ErrImage)
	case p.Size != partition.Size{} || p.Root || p.Fit != nil:
		return nil
	case p.Content == nil || p.Content.Size() == 0:
		return fmt.Errorf("has neither a size nor a content: %w", ErrImage)
	}
	p.Size.Bytes = upMiB(p.Content.Size())
	return nil
}

func upMiB(n int64) int64 { return roundUp(n, mib) }

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// bare is a disk without a partition table.
func (img Image) bare() (disk, *ext4.Layout, error) {
	if img.DiskSize > 0 && img.DiskSize < fsBlock {
		return disk{}, nil, fmt.Errorf("disk size %d leaves no room for a file system: %w", img.DiskSize, ErrImage)
	}
	if img.Tree == nil {
		d, err := img.whole()
		return d, nil, err
	}
	layout, err := ext4.Plan(img.Tree, img.fsParams(img.DiskSize))
	if err != nil {
		return disk{}, nil, err
	}
	d := disk{size: img.DiskSize}
	if d.size == 0 {
		d.size = upMiB(layout.Size())
	}
	if layout.Size() > d.size {
		return disk{}, nil, tooLarge(layout.Size(), d.size)
	}
	return d, layout, nil
}

// whole is a disk that is one content, or nothing.
func (img Image) whole() (d disk, err error) {
	d.size = img.DiskSize
	var c Content
	if len(img.Partitions) > 0 {
		p := img.Partitions[0]
		if c = p.Content; p.Fit != nil {
			c, err = p.Fit(d.size / fsBlock * fsBlock)
		}
	}
	switch {
	case err != nil:
		return d, err
	case c == nil && d.size == 0:
		return d, fmt.Errorf("a disk with neither a size nor a content: %w", ErrImage)
	case c == nil:
		return d, nil
	case d.size == 0:
		d.size = upMiB(c.Size())
	case c.Size() > d.size:
		return d, tooLarge(c.Size(), d.size)
	}
	d.contents = []placed{{content: c}}
	return d, nil
}

func tooLarge(size, room int64) error {
	return fmt.Errorf("content of %d bytes does not fit into %d: %w", size, room, ErrImage)
}

// fsParams fills in the size of the file system in a place of so many bytes,
// where slack has no meaning; 0 is any place.
func (img Image) fsParams(room int64) ext4.Params {
	p := img.FS
	if p.Size == 0 && room > 0 {
		p.Size, p.Slack, p.KernelReserve, p.Factor = room/fsBlock*fsBlock, 0, false, 0
	}
	return p
}

// arrangement is a disk with a partition table on the way.
type arrangement struct {
	Image
	least []Content    // what the partitions of a minimal disk hold at the least, by index; nil: not asked for
	root  *ext4.Layout // once it is planned
}

// table places the partitions.
func (a *arrangement) table() (partition.Table, error) {
	needs, err := a.needs()
	if err != nil {
		return partition.Table{}, err
	}
	wishes := a.wishes(needs)
	if a.DiskSize > 0 {
		return a.layout(a.DiskSize, wishes)
	}
	t, err := a.smallest(wishes, needs)
	if err != nil {
		return t, err
	}
	// Shares of a disk leave a MiB free that a minimal one does not need.
	for i := range wishes {
		wishes[i].Size = partition.Size{Bytes: a.length(t, i)}
	}
	return a.smallest(wishes, needs)
}

// needs are the least sizes of the partitions. On a disk of a given size, the
// root's is all that the others leave, and one that is a share is not asked.
func (a *arrangement) needs() ([]int64, error) {
	sizes := make([]int64, len(a.Partitions))
	room := a.DiskSize - a.align() - mib
	for i, p := range a.Partitions {
		switch {
		case p.Size.Bytes > 0:
			sizes[i] = p.Size.Bytes
		case a.DiskSize > 0 && (p.Root || p.Size.Percent > 0):
			continue
		default:
			var err error
			if sizes[i], err = a.need(i); err != nil {
				return nil, err
			}
		}
		room -= roundUp(sizes[i], a.align())
	}
	if root := a.rootIndex(); root >= 0 && a.DiskSize > 0 && a.Partitions[root].Size == (partition.Size{}) {
		unit := int64(fsBlock)
		if a.Table == GPT {
			unit = mib
		}
		if sizes[root] = room / unit * unit; room < unit {
			return nil, fmt.Errorf("disk size %d leaves no room for a file system: %w", a.DiskSize, ErrImage)
		}
	}
	return sizes, nil
}

// need is the least size for what a partition holds.
func (a *arrangement) need(i int) (int64, error) {
	p := a.Partitions[i]
	var err error
	switch {
	case p.Root:
		if a.root, err = ext4.Plan(a.Tree, a.FS); err != nil {
			return 0, err
		}
		return upMiB(a.root.Size()), nil
	case p.Fit != nil:
		if a.least[i], err = p.Fit(0); err != nil {
			return 0, fmt.Errorf("partition %d: %w", i+1, err)
		}
		return upMiB(a.least[i].Size()), nil
	case p.Content != nil:
		return upMiB(p.Content.Size()), nil
	}
	return mib, nil
}

func (a *arrangement) rootIndex() int {
	return slices.IndexFunc(a.Partitions, func(p Partition) bool { return p.Root })
}

func (a *arrangement) align() int64 { return cmp.Or(a.Align, partition.DefaultAlign) }

// wishes are the partitions for [partition.Table.Layout]. Those without a size
// have that of the list.
func (a *arrangement) wishes(sizes []int64) []partition.Wish {
	var wishes []partition.Wish
	for i, p := range a.Partitions {
		w := partition.Wish{Partition: p.Entry, Size: p.Size, Logical: p.Logical}
		if w.Size == (partition.Size{}) {
			w.Size.Bytes = sizes[i]
		}
		wishes = append(wishes, w)
	}
	return wishes
}

// layout places partitions on a disk of so many bytes.
func (a *arrangement) layout(size int64, wishes []partition.Wish) (partition.Table, error) {
	t := partition.Table{
		Label: partition.MBR, SectorSize: a.SectorSize, Signature: a.DiskSignature, Sectors: partition.LBA(size / int64(a.SectorSize)),
	}
	if a.Table == GPT {
		t.Label, t.Signature, t.DiskGUID = partition.GPT, 0, a.DiskGUID
	}
	return t.Layout(a.Align, wishes)
}

// smallest places partitions on the smallest disk on which none is below its
// need.
func (a *arrangement) smallest(wishes []partition.Wish, needs []int64) (partition.Table, error) {
	fits := func(size int64) (partition.Table, error) {
		t, err := a.layout(size, wishes)
		for i := range wishes {
			if err == nil && a.length(t, i) < needs[i] {
				err = &partition.SpaceError{Number: a.number(i), Need: needs[i], Free: a.length(t, i)}
			}
		}
		return t, err
	}
	high := 2 * a.align()
	for _, n := range needs {
		high += roundUp(n, a.align()) + a.align()
	}
	var space *partition.SpaceError // of a smaller disk
	for high = upMiB(high); ; high *= 2 {
		_, err := fits(high)
		switch tooSmall := errors.As(err, &space); {
		case err == nil:
			steps := sort.Search(int(high/mib), func(n int) bool {
				_, err := fits(int64(n) * mib)
				return err == nil
			})
			return fits(int64(steps) * mib)
		case tooSmall && high < largest:
			continue
		case space != nil: // whatever the label says of so large a disk
			err = fmt.Errorf("no disk is large enough: %w", space)
		}
		return partition.Table{}, err
	}
}

// number is that of a partition in the table, by its index in the description.
func (a *arrangement) number(i int) int {
	if !a.Partitions[i].Logical {
		return i + 1
	}
	primary := slices.IndexFunc(a.Partitions, func(p Partition) bool { return p.Logical })
	return firstLogical + i - primary
}

// firstLogical is the number of the first logical partition, whatever there is
// before it.
const firstLogical = 5

// length is the size of a partition in bytes.
func (a *arrangement) length(t partition.Table, i int) int64 {
	return int64(t.Partitions[a.number(i)-1].Sectors) * int64(t.SectorSize)
}

// fill gives what the partitions hold its place and size.
func (a *arrangement) fill(t partition.Table, d *disk) error {
	for i, p := range a.Partitions {
		length, offset := a.length(t, i), int64(t.Partitions[a.number(i)-1].Start)*int64(t.SectorSize)
		if p.Root {
			d.fsOffset = offset
			if err := a.fillRoot(length); err != nil {
				return err
			}
			continue
		}
		c, err := a.content(i, length)
		if err != nil {
			return fmt.Errorf("partition %d: %w", a.number(i), err)
		}
		if c != nil {
			d.contents = append(d.contents, placed{a.number(i), offset, c})
		}
	}
	return nil
}

// nearly tells that nothing is to be gained by another size than the least.
func nearly(size, room int64) bool { return size <= room && room-size < mib }

func (a *arrangement) fillRoot(length int64) (err error) {
	if a.root == nil || !nearly(a.root.Size(), length) {
		if a.root, err = ext4.Plan(a.Tree, a.fsParams(length)); err != nil {
			return err
		}
	}
	if a.root.Size() > length {
		return tooLarge(a.root.Size(), length)
	}
	return nil
}

// content is what a partition of so many bytes holds, nil for zeros.
func (a *arrangement) content(i int, length int64) (c Content, err error) {
	switch p := a.Partitions[i]; {
	case p.Fit == nil:
		c = p.Content
	case a.least[i] != nil && nearly(a.least[i].Size(), length):
		c = a.least[i]
	default:
		if c, err = p.Fit(length / fsBlock * fsBlock); err != nil {
			return nil, err
		}
	}
	if c != nil && c.Size() > length {
		return nil, tooLarge(c.Size(), length)
	}
	return c, nil
}

// addRegions adds the partition table and the boot loader.
func (img Image) addRegions(t *partition.Table, d *disk) error {
	var core []partition.Region
	if img.Boot != nil {
		start, end, err := img.corePlace(t)
		if err != nil {
			return err
		}
		e, err := grub.Embed(img.Boot, img.Core, uint64(start), uint64(end))
		if err != nil {
			return err
		}
		t.BootCode = e.BootCode
		core = []partition.Region{{Offset: int64(e.CoreLBA) * int64(img.SectorSize), Data: e.Core}}
	}
	regions, err := t.Regions()
	d.regions = append(regions, core...)
	return err
}

// corePlace returns the sectors that core.img may use: those before the first
// partition, or those of a GPT's BIOS boot partition.
func (img Image) corePlace(t *partition.Table) (start, end partition.LBA, err error) {
	if t.Label == partition.MBR {
		return 1, t.Partitions[0].Start, nil
	}
	bios, err := partition.ParseType("bios-boot")
	if err != nil {
		return 0, 0, err
	}
	for i, p := range t.Partitions {
		if p.TypeGUID != bios {
			continue
		}
		if q := img.Partitions[i]; q.Root || q.Content != nil || q.Fit != nil {
			return 0, 0, fmt.Errorf("partition %d: a BIOS boot partition holds core.img and no other content: %w", i+1, ErrImage)
		}
		return p.Start, p.Start + p.Sectors, nil
	}
	return 0, 0, fmt.Errorf("GRUB for BIOS needs a partition of type bios-boot in a GPT: %w", ErrImage)
}
