// Package convert turns a disk image into one of another format. It is what the
// command "cairn convert" does; the formats themselves are fsbuild's.
package convert

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"cairn/cmd/internal/mkfs"
	"cairn/fsbuild"
	"cairn/fsbuild/qcow2"
	"cairn/fsbuild/vhd"
	"cairn/reproducibility"
)

// A Request says what to convert.
type Request struct {
	Source, From string            // a file, and its format, "" to tell it by its first bytes
	Output, To   string            // a file, and one of fsbuild.Formats
	Options      map[string]string // of the format, as qemu-img names them
	Seed         string            // of identifiers, 64 hexadecimal digits; "" for one that follows from the disk
}

// options are those that each format knows.
var options = map[string][]mkfs.Setting{
	fsbuild.FormatRaw: nil,
	fsbuild.FormatQCOW2: {
		{Name: "cluster_size", Help: "bytes: a power of two from 512 to 2M (default: 64K)"},
		{Name: "compat", Help: "0.10 or 1.1 (default: 1.1)"},
		{Name: "compression_type", Help: "zlib, zstd or none (default: zlib)"},
		{Name: "window", Help: "bytes that zlib looks back: a power of two from 256 to 32K (default: 4K, like QEMU)"},
	},
	fsbuild.FormatVHD: {
		forceSize,
		{Name: "subformat", Help: "dynamic or fixed (default: dynamic)"},
	},
	fsbuild.FormatVHDFixed: {forceSize},
	fsbuild.FormatVMDK: {
		{Name: "subformat", Help: "streamOptimized or monolithicSparse (default: streamOptimized)"},
	},
}

var forceSize = mkfs.Setting{Name: "force_size", Help: "off: round the size up to what a geometry can say (default: on)"}

// Options are what Request.Options knows for a format, sorted by name.
func Options(format string) []mkfs.Setting { return options[format] }

// Run converts. The output appears under its name when it is complete.
func Run(ctx context.Context, r Request, progress func(done, total int64)) (fsbuild.Result, error) {
	var none fsbuild.Result
	out, err := Output(r.To, r.Options)
	if err != nil {
		return none, err
	}
	f, err := os.Open(r.Source)
	if err != nil {
		return none, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return none, err
	}
	if !st.Mode().IsRegular() {
		return none, &mkfs.Error{What: r.Source + " is not a file"}
	}
	d, _, err := fsbuild.OpenDisk(f, st.Size(), r.From)
	if errors.Is(err, fsbuild.ErrFormat) {
		return none, &mkfs.Error{What: fmt.Sprintf("%s: %v", r.Source, err), Hint: "formats that are read: qcow2, raw, vhd, vmdk"}
	}
	if err != nil {
		return none, fmt.Errorf("%s: %w", r.Source, err)
	}
	if err := r.identify(&out, d); err != nil {
		return none, err
	}
	file, err := fsbuild.CreateOutput(r.Output)
	if err != nil {
		return none, err
	}
	defer file.Abort() //nolint:errcheck // after Commit it does nothing, and before it another error is on its way
	out.File = file.File()
	results, err := fsbuild.Convert(ctx, d, []fsbuild.Output{out}, progress)
	var output *fsbuild.OutputError
	switch {
	case errors.As(err, &output), ctx.Err() != nil:
		return none, err
	case err != nil:
		return none, fmt.Errorf("%s: %w", r.Source, err)
	}
	return results[0], file.Commit()
}

// Output is an output in a format with some of its [Options]. Its identifiers
// are for the caller to set.
func Output(format string, values map[string]string) (fsbuild.Output, error) {
	known, ok := options[format]
	if !ok {
		return fsbuild.Output{}, &mkfs.Error{What: fmt.Sprintf("option -t: format %q is not one of %s", format, strings.Join(fsbuild.Formats(), ", "))}
	}
	names, chosen := mkfs.Names(known), slices.Sorted(maps.Keys(values))
	for _, name := range chosen {
		if !slices.Contains(names, name) {
			return fsbuild.Output{}, &mkfs.Error{What: fmt.Sprintf("option -o: %s does not know %q", format, name), Hint: "options of " + format + ": " + strings.Join(names, ", ")}
		}
	}
	o := fsbuild.Output{Format: format, Compress: true}
	for _, name := range chosen {
		if err := set(&o, name, values[name]); err != nil {
			return o, err
		}
	}
	return o, nil
}

// identify gives a container its identifiers. They follow from the first MiB of
// the disk, where its own identifiers are, unless there is a seed.
func (r *Request) identify(o *fsbuild.Output, d fsbuild.Disk) error {
	head := make([]byte, min(d.Size(), 1<<20))
	if n, err := d.ReadAt(head, 0); n < len(head) {
		return fmt.Errorf("read %s: %w", r.Source, err)
	}
	seed := reproducibility.NewSeed(fmt.Appendf(head, "%d", d.Size()))
	if r.Seed != "" {
		var err error
		if seed, err = reproducibility.ParseSeed(r.Seed); err != nil {
			return &mkfs.Error{What: fmt.Sprintf("option --seed: %v", err), Hint: "64 hexadecimal digits, as sha256sum prints them"}
		}
	}
	Identify(o, seed, "")
	return nil
}

// Identify gives a container identifiers that follow from a seed, its format
// and the disk in it, "" for the image.
func Identify(o *fsbuild.Output, seed reproducibility.Seed, disk string) {
	name := reproducibility.Container(o.Format, disk)
	o.VHD.UUID, o.VMDK.CID = seed.UUID(name), seed.VolumeSerial(name)
}

// set takes one option.
func set(o *fsbuild.Output, name, value string) error {
	wrong := func(want string) error {
		return &mkfs.Error{What: fmt.Sprintf("option -o: %s=%s: not %s", name, value, want), Hint: name + " is " + want}
	}
	switch name {
	case "cluster_size", "window":
		n, err := mkfs.ParseBytes(value)
		if err != nil || n > 1<<30 {
			return wrong("a number of bytes, like 64K")
		}
		if name == "window" {
			o.QCOW2.Window = int(n)
		} else {
			o.QCOW2.ClusterSize = int(n)
		}
	case "compat":
		version, ok := map[string]int{"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}[value]
		if !ok {
			return wrong("0.10 or 1.1")
		}
		o.QCOW2.Version = version
	case "compression_type":
		method, ok := map[string]qcow2.Compression{"zlib": qcow2.Deflate, "zstd": qcow2.Zstd, "none": qcow2.None}[value]
		if !ok {
			return wrong("zlib, zstd or none")
		}
		o.QCOW2.Compression = method
	case "force_size":
		exact, err := strconv.ParseBool(strings.NewReplacer("on", "true", "off", "false").Replace(value))
		if err != nil {
			return wrong("on or off")
		}
		if o.VHD.Sizing = vhd.Geometry; exact {
			o.VHD.Sizing = vhd.Exact
		}
	case "subformat":
		return setSubformat(o, value, wrong)
	}
	return nil
}

func setSubformat(o *fsbuild.Output, value string, wrong func(string) error) error {
	if o.Format == fsbuild.FormatVMDK {
		compress, ok := map[string]bool{"streamOptimized": true, "monolithicSparse": false}[value]
		if !ok {
			return wrong("streamOptimized or monolithicSparse")
		}
		o.Compress = compress
		return nil
	}
	format, ok := map[string]string{"fixed": fsbuild.FormatVHDFixed, "dynamic": fsbuild.FormatVHD}[value]
	if !ok {
		return wrong("fixed or dynamic")
	}
	o.Format = format
	return nil
}
