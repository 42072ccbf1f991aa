// Package fsbuild turns a tree into disk images: a file system, a partition
// table and boot loader around it, and one or more containers for the whole,
// all in a single pass over the tree. Build composes the packages below it
// (ext4, partition, grub, qcow2, vhd, vmdk) and writes raw images itself.
// OpenDisk reads disks in all of these containers, and CopyDisk takes them from
// one to another.
//
// The bytes are a function of the Image and of each Output's format options
// alone: the same on every machine and for any number of processors. Raw images
// are written sparse: no block of zeros is ever written.
//
// # Layout of the disk
//
// Without a table the file system starts at offset 0. With an MBR it is the one
// partition, active, type 0x83, from sector 2048 (1 MiB) on, and GRUB's
// core.img lies from sector 1.
//
// A minimal disk (DiskSize 0) is what the file system needs, rounded up to
// whole MiB, and the partition reaches the disk's end: the guest moves that end
// at its first boot. A disk of a given size follows diskimage-builder: the
// partition leaves 1 MiB free before and after it, and the file system fills
// the partition.
package fsbuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/grub"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/qcow2"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/vhd"
	"cairn/fsbuild/vmdk"
)

// Table is the kind of partition table.
type Table uint8

// Kinds of partition table.
const (
	NoTable Table = iota // a bare file system
	MBR                  // one active Linux partition
)

// Image is what goes onto the disk.
type Image struct {
	Tree          *tree.Tree
	FS            ext4.Params // Size 0: as DiskSize says
	Table         Table
	DiskSignature uint32 // of the MBR; give each image its own
	Boot, Core    []byte // GRUB's boot.img and core.img for BIOS; nil for none; only with MBR
	DiskSize      int64  // in bytes, a multiple of 512; 0 means minimal
}

// Formats of outputs.
const (
	FormatRaw      = "raw"
	FormatQCOW2    = "qcow2"
	FormatVHD      = "vhd"       // dynamic
	FormatVHDFixed = "vhd-fixed" // what Azure takes
	FormatVMDK     = "vmdk"
)

// Formats are all formats of outputs.
func Formats() []string {
	return []string{FormatQCOW2, FormatRaw, FormatVHD, FormatVHDFixed, FormatVMDK}
}

// Output is one file to write.
type Output struct {
	Format   string        // one of Formats
	File     *os.File      // empty regular file, open for reading and writing; its name appears in errors
	Compress bool          // compress the clusters of a qcow2; make a vmdk streamOptimized, else monolithicSparse
	QCOW2    qcow2.Options // further options; its Compression counts only with Compress
	VHD      vhd.Options   // further options; its Kind does not count. The disk is made a whole number of MiB
	VMDK     vmdk.Options  // further options; its Kind does not count
}

// Result describes a finished output.
type Result struct {
	Format      string
	Size        int64        // of the file, in bytes
	Allocated   int64        // what the host's file system says it takes, in bytes; not reproducible
	VirtualSize int64        // of the disk, in bytes, which a vhd may have rounded up
	SHA256      string       // of the whole file with its holes, in hexadecimal
	FileSystem  ext4.Summary // the same in all results of a build
}

// ErrImage is wrapped by errors that say that an Image or Output contradicts
// itself.
var ErrImage = errors.New("invalid image description")

// Build writes all outputs in one pass over the tree. Results are in the order
// of outs. Files are not synced; see OutputFile for that.
//
// progress, if not nil, is called from one goroutine with the bytes of the disk
// that are done, ascending, and its size. Errors of an output are *OutputError.
// When ctx ends, Build stops soon and returns its cause. After an error the
// outputs hold anything.
func Build(ctx context.Context, img Image, outs []Output, progress func(done, total int64)) ([]Result, error) {
	if err := checkOutputs(outs); err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	d, fs, err := planDisk(img)
	if err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	results, err := d.write(ctx, fs, outs, progress)
	if err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	for i := range results {
		results[i].FileSystem = fs.Summary()
	}
	return results, nil
}

func checkOutputs(outs []Output) error {
	if len(outs) == 0 {
		return fmt.Errorf("no output is asked for: %w", ErrImage)
	}
	for _, o := range outs {
		if !slices.Contains(Formats(), o.Format) {
			return fmt.Errorf("output format %q is not known: %w", o.Format, ErrImage)
		}
		if o.File == nil {
			return fmt.Errorf("%s output has no file: %w", o.Format, ErrImage)
		}
		info, err := o.File.Stat()
		if err != nil {
			return &OutputError{Op: "write " + o.Format, Path: o.File.Name(), Err: err}
		}
		if !info.Mode().IsRegular() || info.Size() != 0 {
			return fmt.Errorf("output %s is not an empty regular file: %w", o.File.Name(), ErrImage)
		}
	}
	return nil
}

const (
	mib        = 1 << 20
	sectorSize = 512
	firstLBA   = 2048 // of the partition: 1 MiB
	fsBlock    = 4096 // sizes that we choose for a file system are multiples of it
)

// disk is the plan of one disk: byte ranges to write before the file system,
// ascending, and where that starts.
type disk struct {
	size     int64
	before   []partition.Region
	fsOffset int64
}

// fileSystem is what a disk needs of a file-system writer, which issues WriteAt
// calls with ascending, non-overlapping offsets and skips zeros.
type fileSystem interface {
	Write(ctx context.Context, w io.WriterAt) (ext4.Summary, error)
}

var _ fileSystem = (*ext4.Layout)(nil)

func planDisk(img Image) (disk, *ext4.Layout, error) {
	if err := img.check(); err != nil {
		return disk{}, nil, err
	}
	params := img.fsParams()
	layout, err := ext4.Plan(img.Tree, params)
	if err != nil {
		return disk{}, nil, err
	}
	d, err := img.arrange(layout.Size())
	return d, layout, err
}

func (img Image) check() error {
	switch {
	case img.Tree == nil:
		return fmt.Errorf("no tree: %w", ErrImage)
	case img.Table > MBR:
		return fmt.Errorf("partition table %d: %w", img.Table, ErrImage)
	case (img.Boot == nil) != (img.Core == nil):
		return fmt.Errorf("only one of boot.img and core.img is given: %w", ErrImage)
	case img.Table == NoTable && img.Boot != nil:
		return fmt.Errorf("a boot loader needs a partition table: %w", ErrImage)
	case img.DiskSize < 0 || img.DiskSize%sectorSize != 0:
		return fmt.Errorf("disk size %d is not a multiple of %d: %w", img.DiskSize, sectorSize, ErrImage)
	case img.DiskSize > 0 && img.room() <= 0:
		return fmt.Errorf("disk size %d leaves no room for a file system: %w", img.DiskSize, ErrImage)
	}
	return nil
}

// room is what a disk of a given size has for the file system.
func (img Image) room() int64 {
	if img.Table == NoTable {
		return img.DiskSize / fsBlock * fsBlock
	}
	return (img.DiskSize - 2*mib) / fsBlock * fsBlock
}

// fsParams fills in the size of the file system on a disk of a given size,
// where slack has no meaning.
func (img Image) fsParams() ext4.Params {
	p := img.FS
	if img.DiskSize > 0 && p.Size == 0 {
		p.Size, p.Slack, p.KernelReserve = img.room(), 0, false
	}
	return p
}

// arrange lays out the disk around a file system of fsSize bytes.
func (img Image) arrange(fsSize int64) (disk, error) {
	length := img.room()
	if img.DiskSize == 0 {
		length = (fsSize + mib - 1) / mib * mib
	}
	if fsSize > length {
		return disk{}, fmt.Errorf("file system of %d bytes does not fit into %d: %w", fsSize, length, ErrImage)
	}
	d := disk{size: img.DiskSize}
	if img.Table == NoTable {
		d.size = max(d.size, length)
		return d, nil
	}
	d.fsOffset = firstLBA * sectorSize
	d.size = max(d.size, d.fsOffset+length)
	return d, img.addTable(&d, length)
}

// addTable adds the partition table and boot loader for a partition of length
// bytes.
func (img Image) addTable(d *disk, length int64) error {
	t := partition.Table{
		Label:     partition.MBR,
		Sectors:   partition.LBA(d.size / sectorSize),
		Signature: img.DiskSignature,
		Partitions: []partition.Partition{{
			Start: firstLBA, Sectors: partition.LBA(length / sectorSize), Type: partition.Linux, Active: true,
		}},
	}
	var core []partition.Region
	if img.Boot != nil {
		e, err := grub.Embed(img.Boot, img.Core, 1, firstLBA)
		if err != nil {
			return err
		}
		t.BootCode = e.BootCode
		core = []partition.Region{{Offset: int64(e.CoreLBA) * sectorSize, Data: e.Core}}
	}
	regions, err := t.Regions()
	d.before = append(regions, core...)
	return err
}
