// Package disk describes the disks that a block-device configuration asks for,
// with a tree on their file systems, for fsbuild to write.
//
// File systems are ext2, ext3, ext4, vfat and swap; the root is one of the
// first three. What lies below a mount point goes to the file system that is
// mounted there, on whatever disk, where names of one hard-linked file become
// files of their own, as with cp -a. Options of mkfs are those that decide bytes
// and that the writers have.
package disk

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"cairn/elements/blockdevice"
	"cairn/fsbuild"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/swap"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
	"cairn/reproducibility"
)

// Params are what a configuration does not say.
type Params struct {
	Seed reproducibility.Seed // of all identifiers that are not given
	Time time.Time            // latest time of anything
	Size int64                // of a disk without a size, in bytes; 0: as small as its content allows
	// Ext is what ext file systems begin with: Slack and KernelReserve count
	// for those of minimal size.
	Ext ext4.Params
	// GRUB says that boot.img and core.img are in the tree and go where a BIOS
	// finds them, see [BootDisk].
	GRUB bool
}

// Images describes the disks, in the order of the plan. It takes what goes to
// other file systems than the root out of the tree.
func Images(plan *blockdevice.Plan, t *tree.Tree, p Params) ([]fsbuild.Image, error) {
	b := &builder{Params: p, plan: plan, trees: make(map[string]*tree.Tree)}
	b.root, _ = plan.At("/")
	images := make([]fsbuild.Image, len(plan.Disks))
	var err error
	if i := BootDisk(plan); p.GRUB && i >= 0 {
		if images[i].Boot, images[i].Core, err = grubImages(t); err != nil {
			return nil, err
		}
	}
	if err := b.split(t); err != nil {
		return nil, err
	}
	rootDisk, _ := plan.Place(b.root.Base)
	root := &images[rootDisk]
	root.Tree = t
	if root.FS, err = b.ext(b.root); err != nil {
		return nil, err
	}
	for i, d := range plan.Disks {
		if err := b.describe(&images[i], d, diskName(plan, i)); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// diskName is what identifiers of a disk derive from.
func diskName(plan *blockdevice.Plan, i int) reproducibility.Name {
	if i == 0 {
		return reproducibility.Disk
	}
	return reproducibility.OtherDisk(plan.Disks[i].Name)
}

// describe fills in all of a disk but its boot loader.
func (b *builder) describe(img *fsbuild.Image, d blockdevice.Disk, name reproducibility.Name) error {
	sector := int64(d.BlockSize)
	img.SectorSize, img.Align, img.DiskSize = d.BlockSize, d.Align, cmp.Or(d.Size, b.Size)/sector*sector
	if d.Label == 0 {
		whole, err := b.partition(d.Name, d.BlockSize)
		if whole.Fit != nil {
			img.Partitions = []fsbuild.Partition{whole}
		} else if err == nil && img.Tree == nil && img.DiskSize == 0 {
			err = wrong("local_loop "+d.Name, "size", errors.New("is missing, and nothing lies on the disk"))
		}
		return err
	}
	if d.Label == partition.MBR {
		img.Table, img.DiskSignature = fsbuild.MBR, b.Seed.DiskSignature(name)
	} else {
		img.Table, img.DiskGUID = fsbuild.GPT, b.Seed.UUID(name)
	}
	for i, w := range d.Wishes() {
		q, err := b.partition(d.Partitions[i].Name, d.BlockSize)
		if err != nil {
			return err
		}
		q.Entry, q.Logical, q.Size = w.Partition, w.Logical, w.Size
		q.Size.Bytes = q.Size.Bytes / sector * sector
		if d.Label == partition.GPT {
			q.Entry.GUID = b.Seed.UUID(reproducibility.Partition(d.Partitions[i].Name))
		}
		img.Partitions = append(img.Partitions, q)
	}
	return nil
}

func wrong(node, key string, err error) error {
	return &blockdevice.ConfigError{Node: node, Key: key, Err: err}
}

// builder is a description on the way.
type builder struct {
	Params
	plan  *blockdevice.Plan
	root  blockdevice.FileSystem
	trees map[string]*tree.Tree // of file systems other than the root, by their names
}

// split takes the trees of the other file systems out of that of the root, from
// the innermost mount point outwards.
func (b *builder) split(t *tree.Tree) error {
	for _, m := range slices.Backward(b.plan.Mounts) {
		point := strings.Trim(path.Clean(m.Point), "/")
		if !strings.HasPrefix(m.Point, "/") || point == "" {
			continue // swap, and the root
		}
		if err := makeDirs(t, point, b.Time); err != nil {
			return wrong("mount "+m.Name, "mount_point", err)
		}
		sub, err := t.Cut(point)
		if err != nil {
			return wrong("mount "+m.Name, "mount_point", err)
		}
		b.trees[m.FileSystem] = sub
	}
	return nil
}

// makeDirs makes the directories of a path that are not there.
func makeDirs(t *tree.Tree, name string, at time.Time) error {
	if name == "." || t.Lookup(name) != nil {
		return nil
	}
	if err := makeDirs(t, path.Dir(name), at); err != nil {
		return err
	}
	return t.Add(tree.Node{Path: name, Type: tree.Directory, Mode: 0o755, MTime: tree.Time{Sec: at.Unix()}})
}

// partition is what lies in a partition, or on a disk without any, which has
// sectors of so many bytes. It is empty when nothing does.
func (b *builder) partition(name string, sector int) (fsbuild.Partition, error) {
	i := slices.IndexFunc(b.plan.FileSystems, func(fs blockdevice.FileSystem) bool { return fs.Base == name })
	switch {
	case name == b.root.Base:
		return fsbuild.Partition{Root: true}, nil
	case i < 0:
		return fsbuild.Partition{}, nil
	}
	fs := b.plan.FileSystems[i]
	t := b.trees[fs.Name]
	if t == nil {
		t = tree.New()
	}
	switch fs.Type {
	case "vfat", "fat":
		return b.fat(fs, t, sector)
	case "swap":
		return b.swap(fs)
	}
	p, err := b.ext(fs)
	return fsbuild.Partition{Fit: func(size int64) (fsbuild.Content, error) {
		p := p
		if size > 0 {
			p.Size, p.Slack, p.KernelReserve = size, 0, false
		}
		l, err := ext4.Plan(t, p)
		if err != nil {
			return nil, wrong("mkfs "+fs.Name, "", err)
		}
		return fsbuild.Layout(l), nil
	}}, err
}

var extTypes = map[string]ext4.Type{"ext2": ext4.Ext2, "ext3": ext4.Ext3, "ext4": ext4.Ext4}

// ext are the parameters of an ext file system.
func (b *builder) ext(fs blockdevice.FileSystem) (ext4.Params, error) {
	p := b.Ext
	kind, ok := extTypes[fs.Type]
	if !ok {
		return p, wrong("mkfs "+fs.Name, "type", fmt.Errorf("%s: ext2, ext3 and ext4 are written, and vfat and swap if it is not the root: %w", fs.Type, blockdevice.ErrUnsupported))
	}
	name := b.name(fs)
	p.Type, p.Label, p.Time, p.UUID, p.HashSeed = kind, fs.Label, b.Time, b.Seed.UUID(name), b.Seed.HashSeed(name)
	if name != reproducibility.Root && kind != ext4.Ext2 && p.JournalSize == 0 {
		p.JournalBySize = true
	}
	if fs.UUID != "" {
		id, err := parseUUID(fs.UUID)
		if err != nil {
			return p, wrong("mkfs "+fs.Name, "uuid", err)
		}
		p.UUID = id
	}
	if err := extOptions(fs.Opts, &p); err != nil {
		return p, wrong("mkfs "+fs.Name, "opts", err)
	}
	return p, nil
}

// name is what identifiers of a file system derive from.
func (b *builder) name(fs blockdevice.FileSystem) reproducibility.Name { return nameOf(b.plan, fs) }

func nameOf(plan *blockdevice.Plan, fs blockdevice.FileSystem) reproducibility.Name {
	if root, _ := plan.At("/"); root.Name == fs.Name {
		return reproducibility.Root
	}
	return reproducibility.FileSystem(fs.Label)
}

func (b *builder) fat(fs blockdevice.FileSystem, t *tree.Tree, sector int) (fsbuild.Partition, error) {
	p := vfat.Params{Label: fs.Label, Serial: b.Seed.VolumeSerial(b.name(fs)), Time: b.Time, SectorSize: sector}
	if err := fatOptions(fs.Opts, &p); err != nil {
		return fsbuild.Partition{}, wrong("mkfs "+fs.Name, "opts", err)
	}
	return fsbuild.Partition{Fit: func(size int64) (fsbuild.Content, error) {
		p := p
		p.Size = size
		l, err := vfat.Plan(t, p)
		if err != nil {
			return nil, wrong("mkfs "+fs.Name, "", err)
		}
		return fsbuild.Layout(l), nil
	}}, nil
}

// leastSwap is the smallest area that mkswap makes, in bytes.
const leastSwap = 10 * swap.DefaultPageSize

func (b *builder) swap(fs blockdevice.FileSystem) (fsbuild.Partition, error) {
	p := swap.Params{Label: fs.Label, UUID: b.Seed.UUID(b.name(fs))}
	if fs.UUID != "" {
		id, err := parseUUID(fs.UUID)
		if err != nil {
			return fsbuild.Partition{}, wrong("mkfs "+fs.Name, "uuid", err)
		}
		p.UUID = id
	}
	if len(fs.Opts) > 0 {
		return fsbuild.Partition{}, wrong("mkfs "+fs.Name, "opts", errors.New("swap has no options"))
	}
	return fsbuild.Partition{Fit: func(size int64) (fsbuild.Content, error) {
		p := p
		p.Size = cmp.Or(size, leastSwap)
		head, err := swap.Header(p)
		if err != nil {
			return nil, wrong("mkfs "+fs.Name, "", err)
		}
		return fsbuild.Reader(bytes.NewReader(head), int64(len(head))), nil
	}}, nil
}
