package disk

import (
	"context"
	"errors"

	"cairn/cmd/internal/convert"
	"cairn/cmd/internal/mkfs"
	"cairn/elements/blockdevice"
	"cairn/fsbuild"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/vfat"
)

// A Request says what disk to make, and of what. It is what the command "cairn
// disk" does.
type Request struct {
	Config    []byte             // the configuration
	Defaults  blockdevice.Params // what it does not say
	Source    mkfs.Request       // the tree: Source, Stdin, TmpDir, Arch, Partition, Owner, OwnersOf, Epoch and Seed count
	Output    string             // a file
	Format    string             // one of fsbuild.Formats
	Options   map[string]string  // of the format, see convert.Options
	DiskSize  int64              // in bytes, 0 for minimal
	ExtraSize int64              // free bytes in each ext file system beyond its minimal size
}

// A Summary says what was made.
type Summary struct {
	Path        string      `json:"path"`
	Format      string      `json:"format"`
	Size        int64       `json:"size"`         // of the file, in bytes
	VirtualSize int64       `json:"virtual_size"` // of the disk, in bytes
	SHA256      string      `json:"sha256"`
	Manifest    string      `json:"manifest,omitempty"` // digest of the container image that it was made of
	Volumes     []Volume    `json:"file_systems"`       // those that are mounted
	BootsBIOS   bool        `json:"bios"`               // GRUB is in its boot sectors
	Fstab       string      `json:"fstab"`              // the lines that the configuration asks for
	Root        RootSummary `json:"root"`
}

// RootSummary is about the root file system.
type RootSummary struct {
	Size      int64 `json:"size"`
	FreeBytes int64 `json:"free"`
	Inodes    int64 `json:"inodes"`
	MaxSize   int64 `json:"grows_to"` // bytes to which it can be grown
}

// Run makes the disk. The output appears under its name when it is complete.
func Run(ctx context.Context, r Request, progress func(done, total int64)) (Summary, error) {
	plan, err := blockdevice.Parse(r.Config, r.Defaults)
	if err != nil {
		return Summary{}, err
	}
	out, err := convert.Output(r.Format, r.Options)
	if err != nil {
		return Summary{}, err
	}
	r.Source.Type = "disk " + string(r.Config) // another configuration is another disk
	src, err := mkfs.Open(ctx, r.Source)
	if err != nil {
		return Summary{}, err
	}
	defer src.Close()
	grub := NeedsGRUB(plan) && HasGRUB(src.Tree)
	img, err := Image(plan, src.Tree, Params{
		Seed: src.Seed, Time: src.Time, Size: r.DiskSize, Ext: ext4.Params{Slack: r.ExtraSize}, GRUB: grub,
	})
	if err != nil {
		return Summary{}, err
	}
	convert.Identify(&out, src.Seed)
	file, err := fsbuild.CreateOutput(r.Output)
	if err != nil {
		return Summary{}, err
	}
	defer file.Abort() //nolint:errcheck // after Commit it does nothing, and before it another error is on its way
	out.File = file.File()
	results, err := fsbuild.Build(ctx, img, []fsbuild.Output{out}, progress)
	if err != nil {
		return Summary{}, explain(err)
	}
	o, root := results[0], results[0].FileSystem
	return Summary{
		Path: r.Output, Format: o.Format, Size: o.Size, VirtualSize: o.VirtualSize, SHA256: o.SHA256, Manifest: src.Manifest,
		Volumes: Volumes(plan, src.Seed), BootsBIOS: grub, Fstab: plan.Fstab(),
		Root: RootSummary{Size: root.Size, FreeBytes: root.FreeBlocks * root.BlockSize, Inodes: root.Inodes, MaxSize: root.MaxSize},
	}, file.Commit()
}

// explain adds what to do.
func explain(err error) error {
	if errors.Is(err, ext4.ErrTooSmall) || errors.Is(err, vfat.ErrTooSmall) {
		return &mkfs.Error{What: err.Error(), Hint: "give the partition, or the disk, a larger size"}
	}
	return err
}
