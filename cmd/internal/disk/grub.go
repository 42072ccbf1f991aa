package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"

	"cairn/elements/blockdevice"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/tree"
	"cairn/reproducibility"
)

// grubDirs are where GRUB's boot sector images are in the tree, once the element
// bootloader has made them: Debian's place and that of Red Hat and SUSE.
var grubDirs = []string{"boot/grub/i386-pc", "boot/grub2/i386-pc"}

const (
	bootImg = "boot.img"
	coreImg = "core.img"
)

// grubDir is the one that has them, or where they are missed.
func grubDir(t *tree.Tree) (dir string, ok bool) {
	for _, dir := range grubDirs {
		if t.Lookup(path.Join(dir, bootImg)) != nil && t.Lookup(path.Join(dir, coreImg)) != nil {
			return dir, true
		}
	}
	return grubDirs[0], false
}

// BootDisk returns the index of the disk that a BIOS can boot from with GRUB's
// images in its sectors, or -1. Such a disk has an MBR, or in a GPT a BIOS boot
// partition, and sectors of 512 bytes. Of several, it is one with an active
// partition or a BIOS boot partition, else that of the root, else that of /boot.
func BootDisk(plan *blockdevice.Plan) int {
	best, most := -1, 0
	for i, d := range plan.Disks {
		if n := bootRank(plan, i, d); n > most {
			best, most = i, n
		}
	}
	return best
}

// bootRank tells how likely a BIOS is to boot from a disk; 0 is not at all.
func bootRank(plan *blockdevice.Plan, i int, d blockdevice.Disk) int {
	marked := slices.ContainsFunc(d.Partitions, func(p blockdevice.Partition) bool {
		return p.Type == biosBoot || p.Boot && d.Label == partition.MBR
	})
	switch {
	case d.BlockSize != 512 || d.Label != partition.MBR && !marked:
		return 0
	case marked:
		return 3
	case holds(plan, i, "/"):
		return 2
	case holds(plan, i, "/boot"):
		return 1
	}
	return 0
}

// holds tells whether the file system of a mount point is on a disk.
func holds(plan *blockdevice.Plan, disk int, point string) bool {
	fs, ok := plan.At(point)
	i, _ := plan.Place(fs.Base)
	return ok && i == disk
}

// biosBoot is the type of the partition in which a GPT has core.img: "Hah!
// IdontNeedEFI" on the disk.
var biosBoot = func() partition.GUID {
	g, err := partition.ParseType("bios-boot")
	if err != nil {
		panic(err)
	}
	return g
}()

// HasGRUB tells whether both images are in the tree.
func HasGRUB(t *tree.Tree) bool {
	_, ok := grubDir(t)
	return ok
}

// grubImages reads them.
func grubImages(t *tree.Tree) (boot, core []byte, err error) {
	dir, _ := grubDir(t)
	if boot, err = content(t, path.Join(dir, bootImg)); err != nil {
		return nil, nil, fmt.Errorf("boot sector: %w", err)
	}
	if core, err = content(t, path.Join(dir, coreImg)); err != nil {
		return nil, nil, fmt.Errorf("boot sector: %w", err)
	}
	return boot, core, nil
}

// content reads a small file of the tree.
func content(t *tree.Tree, name string) ([]byte, error) {
	n := t.Lookup(name)
	if n == nil || n.Type != tree.Regular {
		return nil, &fs.PathError{Op: "read", Path: "/" + name, Err: fs.ErrNotExist}
	}
	const limit = 4 << 20
	if n.Size > limit {
		return nil, &fs.PathError{Op: "read", Path: "/" + name, Err: errors.New("too large")}
	}
	f, err := n.Content.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n.Size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, err
	}
	return b, nil
}

// A Volume is what is known of a mounted file system before it is there.
type Volume struct {
	Point     string `json:"mount_point"`
	Type      string `json:"type"` // as in fstab
	Label     string `json:"label"`
	UUID      string `json:"uuid"`                // as blkid prints it
	Disk      string `json:"disk"`                // name
	Partition int    `json:"partition,omitempty"` // number, 0 without a partition table
	PartUUID  string `json:"partuuid,omitempty"`  // as the kernel names it
}

// Volumes are the mounted file systems of a plan, in order of their points.
func Volumes(plan *blockdevice.Plan, seed reproducibility.Seed) []Volume {
	var list []Volume
	for _, m := range plan.Mounts {
		fs, ok := plan.At(m.Point)
		if !ok || m.Point == "none" {
			continue
		}
		v := Volume{Point: m.Point, Type: fs.Type, Label: fs.Label, UUID: fs.UUID}
		switch name := nameOf(plan, fs); {
		case fs.Type == "vfat" || fs.Type == "fat":
			n := seed.VolumeSerial(name)
			v.UUID = fmt.Sprintf("%04X-%04X", n>>16, n&0xffff)
		case fs.UUID == "":
			v.UUID = partition.GUID(seed.UUID(name)).String()
		}
		disk, part := plan.Place(fs.Base)
		d := plan.Disks[disk]
		v.Disk = d.Name
		if part >= 0 {
			v.Partition = d.Partitions[part].Number
			v.PartUUID = fmt.Sprintf("%08x-%02x", seed.DiskSignature(diskName(plan, disk)), v.Partition)
		}
		if d.Label == partition.GPT {
			v.PartUUID = partition.GUID(seed.UUID(reproducibility.Partition(fs.Base))).String()
		}
		list = append(list, v)
	}
	return list
}
