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
// Without a table the file system, or another content, starts at offset 0. With
// one, [partition.Table.Layout] places the partitions, the first one at 1 MiB. Of an
// MBR without a description of partitions, the file system is the one
// partition, active, of type 0x83. GRUB's core.img lies from sector 1 on, or in
// a GPT's BIOS boot partition.
//
// A minimal disk (DiskSize 0) is the smallest in whole MiB on which each
// partition has its size, and one whose size is a share or not given has room
// for what it holds; with a GPT there is 1 MiB more for its backup. The root
// partition should be the last one: the guest moves its end at the first boot.
// A disk of a given size follows diskimage-builder: there is 1 MiB free before
// and after the partitions, and the file system fills what the others leave.
package fsbuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"cairn/fsbuild/ext4"
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
	MBR                  // by default with one active Linux partition
	GPT                  // with the partitions that are described
)

// Image is what goes onto the disk.
type Image struct {
	Tree          *tree.Tree  // of the root; nil for a disk without it
	FS            ext4.Params // Size 0: as DiskSize and the root partition's Size say
	Table         Table
	DiskSignature uint32         // of the MBR; give each image its own
	DiskGUID      partition.GUID // of the GPT; likewise
	Partitions    []Partition    // numbered from 1, in the order of the disk; needed for a GPT. With neither table nor tree: the whole disk, or none
	SectorSize    int            // 512 or 4096; 0 means 512, which a BIOS and GRUB for it need
	Align         int64          // partitions start at multiples of it, in bytes; 0 means partition.DefaultAlign
	Boot, Core    []byte         // GRUB's boot.img and core.img for BIOS; nil for none; only with a table
	DiskSize      int64          // in bytes, a multiple of the sector size; 0 means minimal
}

// Partition is one of the partitions of an Image. Exactly one is the root where
// there is a Tree.
type Partition struct {
	Root    bool                // holds the Tree in an ext4
	Entry   partition.Partition // what the table says of it; Build fills in Start, Sectors and EBR
	Logical bool                // of an MBR: in the extended partition, behind all that are not
	Size    partition.Size      // zero: what it holds needs, in whole MiB, and for the root what the disk leaves
	Content Content             // what it holds, unless it is the root; nil: what Fit makes, or zeros
	// Fit, if not nil, makes a content of at most so many bytes, a multiple of
	// 4096, or of as few as it needs when size is 0.
	Fit func(size int64) (Content, error)
}

// Content is a file system or anything else that fills the start of a
// partition, such as the ESP. [Reader] and [Layout] make one.
type Content interface {
	// Size is the number of bytes that it takes, and never changes.
	Size() int64
	// WriteTo writes it to w once, with offsets that ascend and ranges that do
	// not overlap. What it leaves out is zero.
	WriteTo(ctx context.Context, w io.WriterAt) error
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
	FileSystem  ext4.Summary // of the root, the same in all results of a build; zero without one
}

// ErrImage is wrapped by errors that say that an Image or Output contradicts
// itself.
var ErrImage = errors.New("invalid image description")

// Build writes all outputs in one pass over the tree. Results are in the order
// of outs. Files are not synced; see OutputFile for that.
//
// progress, if not nil, is called by one goroutine at a time with the bytes of the disk
// that are done, ascending, and its size. Errors of an output are *OutputError.
// When ctx ends, Build stops soon and returns its cause. After an error the
// outputs hold anything.
func Build(ctx context.Context, img Image, outs []Output, progress func(done, total int64)) ([]Result, error) {
	if err := checkOutputs(outs); err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	d, layout, err := planDisk(img)
	if err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	var fs fileSystem
	if layout != nil {
		fs = layout
	}
	results, err := d.write(ctx, fs, outs, progress)
	if err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	if layout != nil {
		for i := range results {
			results[i].FileSystem = layout.Summary()
		}
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
