package fsbuild

import (
	"context"
	"fmt"
	"io"
	"slices"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/grub"
	"cairn/fsbuild/partition"
)

const (
	mib     = 1 << 20
	fsBlock = 4096 // sizes that we choose for a file system are multiples of it
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
	number  int // of the partition
	offset  int64
	content Content
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
	layout, err := ext4.Plan(img.Tree, img.fsParams())
	if err != nil {
		return disk{}, nil, err
	}
	d, err := img.arrange(layout.Size())
	return d, layout, err
}

// complete fills in defaults and checks what the packages below do not.
func (img Image) complete() (Image, error) {
	if img.SectorSize == 0 {
		img.SectorSize = 512
	}
	switch {
	case img.Tree == nil:
		return img, fmt.Errorf("no tree: %w", ErrImage)
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
	case img.Table == NoTable && len(img.Partitions) > 0:
		return img, fmt.Errorf("partitions need a partition table: %w", ErrImage)
	case img.Table == NoTable:
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
	case img.Table != NoTable && roots != 1:
		return img, fmt.Errorf("%d root partitions, not one: %w", roots, ErrImage)
	case img.DiskSize > 0 && img.room() <= 0:
		return img, fmt.Errorf("disk size %d leaves no room for a file system: %w", img.DiskSize, ErrImage)
	}
	return img, nil
}

// complete checks p and fills in its size, but for a root that takes what is
// left.
func (p *Partition) complete(sector int64) error {
	switch {
	case p.Entry.Start != 0 || p.Entry.Sectors != 0 || p.Entry.EBR != 0:
		return fmt.Errorf("its place is not for the caller to choose: %w", ErrImage)
	case p.Size < 0 || p.Size%sector != 0:
		return fmt.Errorf("size %d is not a multiple of %d: %w", p.Size, sector, ErrImage)
	case p.Root && p.Content != nil:
		return fmt.Errorf("the root partition holds the tree and no other content: %w", ErrImage)
	case p.Root:
		return nil
	case p.Content != nil && p.Content.Size() < 0:
		return fmt.Errorf("content of %d bytes: %w", p.Content.Size(), ErrImage)
	case p.Content != nil && p.Size == 0:
		p.Size = upMiB(p.Content.Size())
	}
	switch {
	case p.Size == 0:
		return fmt.Errorf("has neither a size nor a content: %w", ErrImage)
	case p.Content != nil && p.Content.Size() > p.Size:
		return fmt.Errorf("content of %d bytes does not fit into %d: %w", p.Content.Size(), p.Size, ErrImage)
	}
	return nil
}

func upMiB(n int64) int64 { return (n + mib - 1) / mib * mib }

// room is what a disk of a given size has for the file system.
func (img Image) room() int64 {
	if img.Table == NoTable {
		return img.DiskSize / fsBlock * fsBlock
	}
	room := img.DiskSize - 2*mib
	for _, p := range img.Partitions {
		if p.Root && p.Size > 0 {
			return p.Size
		}
		room -= upMiB(p.Size)
	}
	if img.Table == GPT {
		return room / mib * mib
	}
	return room / fsBlock * fsBlock
}

// rootSize is the size that the caller gives to the root partition, or 0.
func (img Image) rootSize() int64 {
	for _, p := range img.Partitions {
		if p.Root {
			return p.Size
		}
	}
	return 0
}

// fsParams fills in the size of the file system in a place of a given size,
// where slack has no meaning.
func (img Image) fsParams() ext4.Params {
	p := img.FS
	if p.Size != 0 {
		return p
	}
	switch size := img.rootSize(); {
	case size > 0:
		p.Size, p.Slack, p.KernelReserve = size/fsBlock*fsBlock, 0, false
	case img.DiskSize > 0:
		p.Size, p.Slack, p.KernelReserve = img.room(), 0, false
	}
	return p
}

// arrange lays out the disk around a file system of fsSize bytes.
func (img Image) arrange(fsSize int64) (disk, error) {
	length := img.rootSize()
	switch {
	case length > 0:
	case img.DiskSize > 0:
		length = img.room()
	default:
		length = upMiB(fsSize)
	}
	if fsSize > length {
		return disk{}, fmt.Errorf("file system of %d bytes does not fit into %d: %w", fsSize, length, ErrImage)
	}
	d := disk{size: img.DiskSize}
	if img.Table == NoTable {
		d.size = max(d.size, length)
		return d, nil
	}
	t := partition.Table{Label: partition.MBR, SectorSize: img.SectorSize, Signature: img.DiskSignature}
	if img.Table == GPT {
		t.Label, t.DiskGUID = partition.GPT, img.DiskGUID
	}
	end := img.place(&t, &d, length)
	if img.Table == GPT {
		end += mib // for the backup
	}
	if d.size == 0 {
		d.size = end
	}
	t.Sectors = partition.LBA(d.size / int64(img.SectorSize))
	return d, img.addRegions(&t, &d)
}

// place gives each partition its sectors, and what it holds its place on the
// disk; that of the root is so many bytes long. It returns where the last one
// ends, in whole MiB.
func (img Image) place(t *partition.Table, d *disk, rootLength int64) (end int64) {
	end = mib
	for i, p := range img.Partitions {
		length := p.Size
		switch {
		case p.Root:
			length, d.fsOffset = rootLength, end
		case p.Content != nil:
			d.contents = append(d.contents, placed{i + 1, end, p.Content})
		}
		entry := p.Entry
		entry.Start = partition.LBA(end / int64(img.SectorSize))
		entry.Sectors = partition.LBA(length / int64(img.SectorSize))
		t.Partitions = append(t.Partitions, entry)
		end += upMiB(length)
	}
	return end
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
		if img.Partitions[i].Root || img.Partitions[i].Content != nil {
			return 0, 0, fmt.Errorf("partition %d: a BIOS boot partition holds core.img and no other content: %w", i+1, ErrImage)
		}
		return p.Start, p.Start + p.Sectors, nil
	}
	return 0, 0, fmt.Errorf("GRUB for BIOS needs a partition of type bios-boot in a GPT: %w", ErrImage)
}
