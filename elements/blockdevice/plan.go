package blockdevice

import (
	"fmt"
	"slices"
	"strings"

	"cairn/fsbuild/partition"
)

// Fallback is the configuration without any other: a disk that is the root file system.
const Fallback = `- local_loop:
    name: image0
    mkfs:
      name: mkfs_root
      mount:
        mount_point: /
        fstab:
          options: defaults
          fsck-passno: 1
`

// Params are what diskimage-builder's command line and environment add to a configuration.
type Params struct {
	RootType  string // FS_TYPE, for the node mkfs_root without a type; "" means ext4
	RootLabel string // ROOT_LABEL, for mkfs_root without a label; "" means cloudimg-rootfs, or img-rootfs for xfs
	RootOpts  string // options of mkfs, for mkfs_root without opts
	BlockSize int    // DIB_BLOCK_SIZE, which wins over block_size; 0: as the configuration says
}

// A Plan is a whole configuration. Lists are in the order of the configuration, but mounts are in the order of mounting.
type Plan struct {
	Disks       []Disk // the image first: the only one, or image0
	FileSystems []FileSystem
	Mounts      []Mount  // sorted by their points; "/" is always there
	Ignored     []string // keys that mean nothing, each as "NODE: KEY"
}

// A Disk is a node local_loop, with the partitioning node that has it as base.
type Disk struct {
	Name       string
	Size       int64           // in bytes; 0: the size of the image
	BlockSize  int             // bytes in a sector, 512 or 4096
	Label      partition.Label // 0: no partition table
	Align      int64           // of partitions, in bytes
	Partitions []Partition     // in order
}

// A Partition is an entry of a partitioning node.
type Partition struct {
	Name    string
	Number  int // logical ones begin at 5
	Size    partition.Size
	MBRType byte           // with an MBR
	Type    partition.GUID // with a GPT
	Boot    bool           // flag boot; means nothing with a GPT
	Logical bool           // MBR without the flag primary
}

// A FileSystem is a node mkfs.
type FileSystem struct {
	Name  string
	Base  string   // name of a partition, or of a disk without partitions
	Type  string   // "ext4", "vfat", "swap" ...
	Label string   // in capitals for FAT
	UUID  string   // "": to be chosen
	Opts  []string // options of mkfs
}

// A Mount is a node mount, with the fstab node that has it as base.
type Mount struct {
	Name       string
	FileSystem string // name
	Point      string // "none" for swap
	Fstab      *Fstab // nil: no line in /etc/fstab
}

// Fstab is what only fstab says of a mount.
type Fstab struct {
	Options  string // "defaults"
	DumpFreq int
	Passno   int
}

// swap is the type of file system that is never mounted.
const swap = "swap"

// fileSystem returns the file system of that name.
func (p *Plan) fileSystem(name string) FileSystem {
	for _, fs := range p.FileSystems {
		if fs.Name == name {
			return fs
		}
	}
	return FileSystem{}
}

// At returns the file system that is mounted at a point, and whether there is one.
func (p *Plan) At(point string) (FileSystem, bool) {
	for _, m := range p.Mounts {
		if m.Point == point {
			return p.fileSystem(m.FileSystem), true
		}
	}
	return FileSystem{}, false
}

// Place returns the disk on which the base of a file system is, and the partition, as indexes of p.Disks and of the disk's
// Partitions; partition is -1 for the whole disk.
func (p *Plan) Place(base string) (disk, partition int) {
	for i, d := range p.Disks {
		partition = slices.IndexFunc(d.Partitions, func(part Partition) bool { return part.Name == base })
		if partition >= 0 || d.Name == base {
			return i, partition
		}
	}
	return 0, -1
}

// Fstab is the text of /etc/fstab. A device is named by its label, which every file system has.
func (p *Plan) Fstab() string {
	var out strings.Builder
	for _, m := range p.Mounts {
		if m.Fstab == nil {
			continue
		}
		fs, f := p.fileSystem(m.FileSystem), *m.Fstab
		if fs.Type == swap {
			f = Fstab{Options: "sw"}
		}
		fmt.Fprintf(&out, "LABEL=%s %s %s %s %d %d\n", escape(fs.Label), escape(m.Point), fs.Type, f.Options, f.DumpFreq, f.Passno)
	}
	return out.String()
}

// escape writes blanks and backslashes as fstab(5) does.
func escape(field string) string { return strings.NewReplacer(`\`, `\134`, " ", `\040`).Replace(field) }

// Wishes are the partitions as [partition.Table.Layout] takes them, without GUIDs of their own.
func (d Disk) Wishes() []partition.Wish {
	var wishes []partition.Wish
	for _, p := range d.Partitions {
		entry := partition.Partition{Type: p.MBRType, Active: p.Boot}
		if d.Label == partition.GPT {
			entry = partition.Partition{TypeGUID: p.Type, Name: p.Name}
		}
		wishes = append(wishes, partition.Wish{Partition: entry, Size: p.Size, Logical: p.Logical})
	}
	return wishes
}
