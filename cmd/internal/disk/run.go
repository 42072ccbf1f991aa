package disk

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"cairn/cmd/internal/convert"
	"cairn/cmd/internal/mkfs"
	"cairn/elements/blockdevice"
	"cairn/fsbuild"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/vfat"
	"cairn/reproducibility"
)

// A Request says what disk to make, and of what. It is what the command "cairn
// disk" does.
type Request struct {
	Config    []byte             // the configuration
	Defaults  blockdevice.Params // what it does not say
	Source    mkfs.Request       // the tree: Source, Stdin, TmpDir, Arch, Partition, Owner, OwnersOf, Epoch and Seed count
	Output    string             // a file, for the image
	Format    string             // one of fsbuild.Formats
	Options   map[string]string  // of the format, see convert.Options
	DiskSize  int64              // in bytes, 0 for minimal
	ExtraSize int64              // free bytes in each ext file system beyond its minimal size
}

// A Summary says what was made.
type Summary struct {
	File
	Others    []File      `json:"other_disks,omitempty"` // the disks that are not the image
	Manifest  string      `json:"manifest,omitempty"`    // digest of the container image that they were made of
	Volumes   []Volume    `json:"file_systems"`          // those that are mounted
	BootsBIOS bool        `json:"bios"`                  // GRUB is in the boot sectors of a disk
	Fstab     string      `json:"fstab"`                 // the lines that the configuration asks for
	Root      RootSummary `json:"root"`
}

// A File is one disk.
type File struct {
	Disk        string `json:"disk"` // name
	Path        string `json:"path"`
	Format      string `json:"format"`
	Size        int64  `json:"size"`         // of the file, in bytes
	VirtualSize int64  `json:"virtual_size"` // of the disk, in bytes
	SHA256      string `json:"sha256"`
}

// RootSummary is about the root file system.
type RootSummary struct {
	Size      int64 `json:"size"`
	FreeBytes int64 `json:"free"`
	Inodes    int64 `json:"inodes"`
	MaxSize   int64 `json:"grows_to"` // bytes to which it can be grown
}

// Run makes the disks. The outputs appear under their names when all are
// complete: the image under its own, each other disk beside it with "-" and the
// disk's name in front of the suffix.
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
	s := Summary{
		Manifest: src.Manifest, Volumes: Volumes(plan, src.Seed), BootsBIOS: BootDisk(plan) >= 0 && HasGRUB(src.Tree), Fstab: plan.Fstab(),
	}
	images, err := Images(plan, src.Tree, Params{
		Seed: src.Seed, Time: src.Time, Size: r.DiskSize, Ext: ext4.Params{Slack: r.ExtraSize}, GRUB: s.BootsBIOS,
	})
	if err != nil {
		return Summary{}, err
	}
	w := writer{Summary: s, out: out, seed: src.Seed, progress: progress}
	defer w.abort()
	for i, img := range images {
		if err := w.write(ctx, img, plan.Disks[i].Name, r.Output); err != nil {
			return Summary{}, explain(err)
		}
	}
	return w.Summary, w.commit()
}

// writer writes one disk after the other.
type writer struct {
	Summary
	out      fsbuild.Output
	seed     reproducibility.Seed
	files    []*fsbuild.OutputFile
	progress func(done, total int64)
}

// write writes a disk, the image first.
func (w *writer) write(ctx context.Context, img fsbuild.Image, name, path string) error {
	other := ""
	if len(w.files) > 0 {
		other, path = name, beside(path, name)
	}
	convert.Identify(&w.out, w.seed, other)
	file, err := fsbuild.CreateOutput(path)
	if err != nil {
		return err
	}
	w.files = append(w.files, file)
	w.out.File = file.File()
	results, err := fsbuild.Build(ctx, img, []fsbuild.Output{w.out}, w.progress)
	if err != nil {
		return err
	}
	r := results[0]
	f := File{Disk: name, Path: path, Format: r.Format, Size: r.Size, VirtualSize: r.VirtualSize, SHA256: r.SHA256}
	if len(w.files) == 1 {
		w.File = f
	} else {
		w.Others = append(w.Others, f)
	}
	if img.Tree != nil {
		root := r.FileSystem
		w.Root = RootSummary{Size: root.Size, FreeBytes: root.FreeBlocks * root.BlockSize, Inodes: root.Inodes, MaxSize: root.MaxSize}
	}
	return nil
}

// commit gives all files their names.
func (w *writer) commit() error {
	for _, f := range w.files {
		if err := f.Commit(); err != nil {
			return err
		}
	}
	return nil
}

// abort removes the files that have no names.
func (w *writer) abort() {
	for _, f := range w.files {
		f.Abort() //nolint:errcheck // after Commit it does nothing, and before it another error is on its way
	}
}

// beside is the path of another disk than the image.
func beside(output, disk string) string {
	suffix := filepath.Ext(output)
	return strings.TrimSuffix(output, suffix) + "-" + disk + suffix
}

// explain adds what to do.
func explain(err error) error {
	if errors.Is(err, ext4.ErrTooSmall) || errors.Is(err, vfat.ErrTooSmall) {
		return &mkfs.Error{What: err.Error(), Hint: "give the partition, or the disk, a larger size"}
	}
	return err
}
