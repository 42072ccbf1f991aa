// Consumer is a program of somebody else: it makes a bootable disk of a tar
// archive with Cairn's packages alone, without Cairn's program, privileges or
// temporary files.
//
//	consumer ROOTFS.tar BOOT.img CORE.img DISK.qcow2
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/grub"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/qcow2"
	"cairn/fsbuild/tar"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
)

const (
	sector = 512
	mib    = 1 << 20
)

// stamp is the latest time of anything.
var stamp = time.Unix(1_700_000_000, 0)

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: consumer ROOTFS.tar BOOT.img CORE.img DISK.qcow2")
		os.Exit(2)
	}
	if err := build(context.Background(), os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, "consumer:", err)
		os.Exit(1)
	}
}

// id derives an identifier from a name.
func id(name string) [16]byte {
	sum := sha256.Sum256([]byte("consumer " + name))
	return [16]byte(sum[:])
}

// build makes the disk.
func build(ctx context.Context, rootfs, boot, core, out string) error {
	in, err := os.Open(rootfs)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	t, err := tar.Read(ctx, in, st.Size(), tar.Options{})
	if err != nil {
		return err
	}
	d, err := plan(t)
	if err != nil {
		return err
	}
	if err := d.embed(boot, core); err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	return errors.Join(d.write(ctx, f), f.Close())
}

// disk is what will be on it.
type disk struct {
	table     partition.Table
	esp       *vfat.Layout
	root      *ext4.Layout
	embedding grub.Embedding
}

// plan decides where everything goes: a BIOS boot partition, an ESP, and a root
// file system with 64 MiB of free space that can grow to 1 PiB.
func plan(t *tree.Tree) (*disk, error) {
	root, err := ext4.Plan(t, ext4.Params{
		Label: "root", UUID: id("root file system"), HashSeed: id("hashes"), Time: stamp, Slack: 64 * mib, GrowTo: 1 << 50,
	})
	if err != nil {
		return nil, err
	}
	d := &disk{root: root}
	var wishes []partition.Wish
	for _, w := range []struct {
		name, kind string
		size       int64
	}{{"bios", "bios-boot", mib}, {"ESP", "esp", 64 * mib}, {"root", "root-x86-64", (root.Size() + mib - 1) / mib * mib}} {
		kind, err := partition.ParseType(w.kind)
		if err != nil {
			return nil, err
		}
		wishes = append(wishes, partition.Wish{
			Partition: partition.Partition{Name: w.name, TypeGUID: kind, GUID: id(w.name)},
			Size:      partition.Size{Bytes: w.size},
		})
	}
	size := int64(2 * mib) // for the table and its backup
	for _, w := range wishes {
		size += w.Size.Bytes
	}
	d.table, err = partition.Table{Label: partition.GPT, Sectors: partition.LBA(size / sector), DiskGUID: id("disk")}.Layout(0, wishes)
	if err != nil {
		return nil, err
	}
	d.esp, err = planESP(uint32(d.table.Partitions[1].Start))
	return d, err
}

// planESP makes the ESP, at a sector of the disk.
func planESP(start uint32) (*vfat.Layout, error) {
	t := tree.New()
	loader := []byte("MZ, some loader\n")
	for _, n := range []tree.Node{
		{Path: "EFI", Type: tree.Directory, Mode: 0o755},
		{Path: "EFI/BOOT", Type: tree.Directory, Mode: 0o755},
		{Path: "EFI/BOOT/BOOTX64.EFI", Type: tree.Regular, Mode: 0o644, Size: int64(len(loader)), Content: tree.Bytes(loader)},
	} {
		if err := t.Add(n); err != nil {
			return nil, err
		}
	}
	return vfat.Plan(t, vfat.Params{Label: "ESP", Serial: 0xC0FFEE01, Time: stamp, Type: vfat.FAT32, Size: 64 * mib, HiddenSectors: start})
}

// embed puts GRUB for BIOS into its partition.
func (d *disk) embed(bootImg, coreImg string) error {
	boot, err := os.ReadFile(bootImg)
	if err != nil {
		return err
	}
	core, err := os.ReadFile(coreImg)
	if err != nil {
		return err
	}
	p := d.table.Partitions[0]
	d.embedding, err = grub.Embed(boot, core, uint64(p.Start), uint64(p.Start+p.Sectors))
	d.table.BootCode = d.embedding.BootCode
	return err
}

// write writes a qcow2, from its start to its end.
func (d *disk) write(ctx context.Context, out io.WriterAt) error {
	regions, err := d.table.Regions()
	if err != nil {
		return err
	}
	w, err := qcow2.NewWriter(out, int64(d.table.Sectors)*sector, qcow2.Options{Compression: qcow2.Zstd})
	if err != nil {
		return err
	}
	defer w.Abort()
	regions = append(regions, partition.Region{Offset: int64(d.embedding.CoreLBA) * sector, Data: d.embedding.Core})
	backup := regions[2] // the last one of the table is behind the partitions
	for _, r := range []partition.Region{regions[0], regions[1], regions[3]} {
		if _, err := w.WriteAt(r.Data, r.Offset); err != nil {
			return err
		}
	}
	if _, err := d.esp.Write(ctx, io.NewOffsetWriter(w, int64(d.table.Partitions[1].Start)*sector)); err != nil {
		return err
	}
	if _, err := d.root.Write(ctx, io.NewOffsetWriter(w, int64(d.table.Partitions[2].Start)*sector)); err != nil {
		return err
	}
	if _, err := w.WriteAt(backup.Data, backup.Offset); err != nil {
		return err
	}
	return w.Close()
}
