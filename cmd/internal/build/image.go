package build

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cairn/cmd/internal/disk"
	"cairn/fsbuild"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
	"cairn/fsbuild/vhd"
	"cairn/fsbuild/vmdk"
	"cairn/reproducibility"
	"cairn/sandbox"
	"cairn/sandbox/idmap"
	"cairn/sandbox/shim"
)

// firstBootSlack is what a first boot writes before the root file system can
// grow: cloud-init's state, the machine id, a random seed. 8 MiB were measured
// to be too little, 32 MiB to be enough.
const firstBootSlack = 32 << 20

// writeImages reads the tree and writes all disks in one pass over it, each in
// all formats. None gets its name before all are complete.
func (w *worker) writeImages(ctx context.Context) error {
	t, err := w.readTree(ctx)
	if err != nil {
		return err
	}
	images, err := w.describe(t)
	if err != nil {
		return err
	}
	outs, err := w.openOutputs()
	if err != nil {
		return err
	}
	defer func() {
		for _, o := range outs {
			o.file.Abort()
		}
	}()
	each := len(w.req.Formats)
	for i, name := range diskNames(w.plan) {
		what := "image"
		if name != "" {
			what = "disk " + name
		}
		if err := w.writeDisk(ctx, images[i], outs[i*each:][:each]); err != nil {
			return fail(err, "write the %s", what)
		}
	}
	return w.publish(outs)
}

// anOutput is one file on the way.
type anOutput struct {
	disk   string // "" for the image
	format string
	file   *fsbuild.OutputFile
	result fsbuild.Result
}

// writeDisk writes a disk into its outputs.
func (w *worker) writeDisk(ctx context.Context, img fsbuild.Image, outs []*anOutput) error {
	var specs []fsbuild.Output
	for _, o := range outs {
		specs = append(specs, w.output(o))
	}
	results, err := fsbuild.Build(ctx, img, specs, func(done, total int64) {
		w.host.tell(Event{Kind: Progress, Step: w.step, Unit: "bytes", Done: done, Total: total})
	})
	for i := range results {
		outs[i].result = results[i]
	}
	return err
}

// output describes one output. Its identifiers follow from the seed, and differ
// from those of the others.
func (w *worker) output(o *anOutput) fsbuild.Output {
	seed, name := reproducibility.Seed(w.job.Seed), reproducibility.Container(o.format, o.disk)
	return fsbuild.Output{
		Format: o.format, File: o.file.File(), Compress: w.req.Compress,
		VHD:  vhd.Options{UUID: seed.UUID(name), Time: w.job.Epoch},
		VMDK: vmdk.Options{CID: seed.VolumeSerial(name)},
	}
}

// readTree reads what the hooks made, as the image sees it, and makes it the
// same for every build.
func (w *worker) readTree(ctx context.Context) (*tree.Tree, error) {
	t, err := dir.Read(ctx, w.dirs.mnt, dir.Options{ID: idmap.ImageID(sandbox.IDShift), RootID: sandbox.IDShift, OneFileSystem: true, DeviceXattr: shim.DeviceXattr, Devices: w.ledger})
	if err != nil {
		return nil, fail(err, "read the tree")
	}
	report, err := reproducibility.Normalise(t, reproducibility.Params{
		Epoch: w.job.Epoch, Started: w.begun, Ended: time.Now(), Dev: w.devices(), ResolvConf: []byte(resolver),
	})
	if err != nil {
		return nil, fail(err, "normalise the tree")
	}
	if w.req.Trace > 0 {
		for line := range strings.Lines(report.String()) {
			w.host.tell(Event{Kind: Line, Step: w.step, Text: "normalise: " + strings.TrimSpace(line)})
		}
	}
	return t, nil
}

// devices are the device nodes that the base came with.
func (w *worker) devices() []string {
	var paths []string
	for _, n := range w.ledger {
		paths = append(paths, n.Path)
	}
	return paths
}

// describe turns the tree and the request into what is written.
func (w *worker) describe(t *tree.Tree) ([]fsbuild.Image, error) {
	images, err := disk.Images(w.plan, t, disk.Params{
		Seed: w.job.Seed, Time: w.job.Epoch, Size: w.req.DiskSize,
		Ext:  ext4.Params{Slack: firstBootSlack + w.req.ExtraSize, KernelReserve: true},
		GRUB: slices.Contains(w.job.Names, "bootloader") && bootsFromBIOS(w.req.Arch),
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(err, "element bootloader")
	}
	return images, err
}

// bootsFromBIOS tells whether machines of an architecture have a BIOS.
func bootsFromBIOS(arch string) bool {
	return slices.Contains([]string{"amd64", "i386", "x86_64"}, arch)
}

// openOutputs makes the output files beside their final names, disk by disk.
func (w *worker) openOutputs() ([]*anOutput, error) {
	var outs []*anOutput
	for _, name := range diskNames(w.plan) {
		for _, format := range w.req.Formats {
			file, err := fsbuild.CreateOutput(outputPath(w.req, name, format))
			if err != nil {
				for _, made := range outs {
					made.file.Abort()
				}
				return nil, hintFull(fail(err, "make the output"), "-o names another place")
			}
			outs = append(outs, &anOutput{disk: name, format: format, file: file})
		}
	}
	return outs, nil
}

// Formats are those that outputs can have.
func Formats() []string { return fsbuild.Formats() }

// Suffix is what the names of outputs of a format end with.
func Suffix(format string) string {
	if format == fsbuild.FormatVHDFixed {
		return fsbuild.FormatVHD
	}
	return format
}

// outputName is the name of an output as the caller would say it. The disk is ""
// for the image.
func outputName(r *Request, disk, format string) string {
	if disk != "" {
		disk = "-" + disk
	}
	return r.Output + disk + "." + Suffix(format)
}

// outputPath is the final name of an output, absolute.
func outputPath(r *Request, disk, format string) string {
	name := outputName(r, disk, format)
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(r.Cwd, name)
}

// publish gives the outputs their final names, all or none as far as a file
// system can promise.
func (w *worker) publish(outs []*anOutput) error {
	for _, o := range outs {
		path := outputPath(w.req, o.disk, o.format)
		if w.req.KeepOld {
			if err := keepOld(path, Suffix(o.format), w.req.Now, w.host.tell); err != nil {
				return err
			}
		}
		if err := o.file.Commit(); err != nil {
			return fail(err, "finish %s", path)
		}
		if root := o.result.FileSystem; root.Size > 0 {
			w.summary.MinimalSize, w.summary.GrowLimit = root.Size, root.MaxSize
		}
		w.summary.Outputs = append(w.summary.Outputs, Output{
			Path: path, Disk: o.disk, Format: o.format, Size: o.result.Size, Allocated: o.result.Allocated, SHA256: o.result.SHA256,
		})
	}
	return nil
}

// keepOld renames an existing output and its checksums, as diskimage-builder
// does.
func keepOld(path, format string, now time.Time, tell func(Event)) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	to := oldName(path, format, now)
	tell(Event{Kind: Message, Text: "Old image found. Renaming it to " + to})
	if err := os.Rename(path, to); err != nil {
		return fail(err, "keep the old image")
	}
	for _, sum := range []string{".md5", ".sha256"} {
		if err := os.Rename(path+sum, to+sum); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fail(err, "keep the old image's checksum")
		}
	}
	return nil
}
