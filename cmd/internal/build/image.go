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

// writeImages reads the tree and writes all outputs in one pass over it.
func (w *worker) writeImages(ctx context.Context) error {
	t, err := w.readTree(ctx)
	if err != nil {
		return err
	}
	img, err := w.describe(t)
	if err != nil {
		return err
	}
	outs, err := w.openOutputs()
	if err != nil {
		return err
	}
	defer func() {
		for _, o := range outs {
			o.Abort()
		}
	}()
	var specs []fsbuild.Output
	for i, o := range outs {
		specs = append(specs, w.output(w.req.Formats[i], o.File()))
	}
	results, err := fsbuild.Build(ctx, img, specs, func(done, total int64) {
		w.host.tell(Event{Kind: Progress, Step: w.step, Unit: "bytes", Done: done, Total: total})
	})
	if err != nil {
		return fail(err, "write the image")
	}
	return w.publish(outs, results)
}

// output describes one output. Its identifiers follow from the seed, and differ
// from those of the other formats.
func (w *worker) output(format string, file *os.File) fsbuild.Output {
	seed, name := reproducibility.Seed(w.job.Seed), reproducibility.Name("container "+format)
	return fsbuild.Output{
		Format: format, File: file, Compress: w.req.Compress,
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
func (w *worker) describe(t *tree.Tree) (fsbuild.Image, error) {
	img, err := disk.Image(w.plan, t, disk.Params{
		Seed: w.job.Seed, Time: w.job.Epoch, Size: w.req.DiskSize,
		Ext:  ext4.Params{Slack: firstBootSlack + w.req.ExtraSize, KernelReserve: true},
		GRUB: slices.Contains(w.job.Names, "bootloader") && disk.NeedsGRUB(w.plan) && bootsFromBIOS(w.req.Arch),
	})
	if errors.Is(err, fs.ErrNotExist) {
		return img, fail(err, "element bootloader")
	}
	return img, err
}

// bootsFromBIOS tells whether machines of an architecture have a BIOS.
func bootsFromBIOS(arch string) bool {
	return slices.Contains([]string{"amd64", "i386", "x86_64"}, arch)
}

// openOutputs makes the output files beside their final names.
func (w *worker) openOutputs() ([]*fsbuild.OutputFile, error) {
	var outs []*fsbuild.OutputFile
	for _, format := range w.req.Formats {
		o, err := fsbuild.CreateOutput(w.outputPath(format))
		if err != nil {
			for _, made := range outs {
				made.Abort()
			}
			return nil, hintFull(fail(err, "make the output"), "-o names another place")
		}
		outs = append(outs, o)
	}
	return outs, nil
}

// outputPath is the final name of an output, absolute.
func (w *worker) outputPath(format string) string { return outputPath(w.req, format) }

// Formats are those that outputs can have.
func Formats() []string { return fsbuild.Formats() }

// Suffix is what the names of outputs of a format end with.
func Suffix(format string) string {
	if format == fsbuild.FormatVHDFixed {
		return fsbuild.FormatVHD
	}
	return format
}

func outputPath(r *Request, format string) string {
	name := r.Output + "." + Suffix(format)
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(r.Cwd, name)
}

// publish gives the outputs their final names, all or none as far as a file
// system can promise.
func (w *worker) publish(outs []*fsbuild.OutputFile, results []fsbuild.Result) error {
	for i, o := range outs {
		path := w.outputPath(w.req.Formats[i])
		if w.req.KeepOld {
			if err := keepOld(path, Suffix(w.req.Formats[i]), w.req.Now, w.host.tell); err != nil {
				return err
			}
		}
		if err := o.Commit(); err != nil {
			return fail(err, "finish %s", path)
		}
		w.summary.MinimalSize, w.summary.GrowLimit = results[i].FileSystem.Size, results[i].FileSystem.MaxSize
		w.summary.Outputs = append(w.summary.Outputs, Output{
			Path: path, Format: results[i].Format, Size: results[i].Size, Allocated: results[i].Allocated, SHA256: results[i].SHA256,
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
