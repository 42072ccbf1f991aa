package build

import (
	"fmt"
	"slices"

	"cairn/fsbuild"
	"cairn/fsbuild/partition"
	"cairn/reproducibility"
	"cairn/sandbox/shim"
)

// table is the kind of partition table that the selected elements ask for.
func table(names []string) fsbuild.Table {
	switch {
	case slices.Contains(names, "block-device-mbr"):
		return fsbuild.MBR
	case slices.Contains(names, "block-device-gpt"):
		return fsbuild.GPT
	}
	return fsbuild.NoTable
}

// biosBootSize is the size of the BIOS boot partition, in bytes.
const biosBootSize = 8 << 20

// rootNumber is the root partition's in a GPT.
const rootNumber = 2

// gptPartitions are those of the element block-device-gpt, under its names.
func gptPartitions(seed reproducibility.Seed) ([]fsbuild.Partition, error) {
	list := []fsbuild.Partition{{Size: biosBootSize}, {Root: true}}
	for i, of := range []struct{ name, kind string }{{"BSP", "bios-boot"}, {"root", "linux-data"}} {
		kind, err := partition.ParseType(of.kind)
		if err != nil {
			return nil, err
		}
		list[i].Entry = partition.Partition{TypeGUID: kind, GUID: seed.UUID(reproducibility.Partition(of.name)), Name: of.name}
	}
	return list, nil
}

// addTable describes the partition table of img.
func addTable(img *fsbuild.Image, kind fsbuild.Table, seed reproducibility.Seed) error {
	var err error
	switch img.Table = kind; kind {
	case fsbuild.MBR:
		img.DiskSignature = seed.DiskSignature(reproducibility.Disk)
	case fsbuild.GPT:
		img.DiskGUID = seed.UUID(reproducibility.Disk)
		img.Partitions, err = gptPartitions(seed)
	}
	return err
}

// disk is what grub-probe says of a disk to be, whose root file system has a
// label.
func disk(kind fsbuild.Table, seed reproducibility.Seed, label string) shim.Disk {
	d := shim.Disk{Label: label, UUID: uuidText(seed.UUID(reproducibility.Root)), FS: "ext4"}
	switch kind {
	case fsbuild.MBR:
		d.PartMap, d.Partition = "msdos", 1
		d.PartUUID = fmt.Sprintf("%08x-01", seed.DiskSignature(reproducibility.Disk))
	case fsbuild.GPT:
		d.PartMap, d.Partition = "gpt", rootNumber
		d.PartUUID = uuidText(seed.UUID(reproducibility.Partition("root")))
	}
	return d
}
