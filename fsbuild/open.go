package fsbuild

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/qcow2"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/vhd"
	"cairn/fsbuild/vmdk"
)

// Disk is a virtual disk that can be read, also concurrently.
type Disk interface {
	io.ReaderAt
	Size() int64 // in bytes

	// Data iterates over the runs of the disk that may hold something other
	// than zeros, ascending and disjoint. The last pair may be an error.
	Data() iter.Seq2[tree.Extent, error]
}

var (
	_ Disk = (*qcow2.Reader)(nil)
	_ Disk = (*vhd.Reader)(nil)
	_ Disk = (*vmdk.Reader)(nil)
)

// ErrFormat is wrapped by errors that say that a file's format is not read.
var ErrFormat = errors.New("disk format not supported")

// OpenDisk opens the disk in a file of size bytes, which must not change
// meanwhile. format is one of Formats, or empty to tell it by the file's magic
// numbers; what has none is a raw disk. It returns the format, where FormatVHD
// stands for both kinds.
//
// A guest can write any magic number to the start of its raw disk: name the
// format where the file comes from one. No format makes OpenDisk read another
// file.
func OpenDisk(file io.ReaderAt, size int64, format string) (Disk, string, error) {
	if format == "" {
		var err error
		if format, err = detect(file, size); err != nil {
			return nil, "", fmt.Errorf("open disk: %w", err)
		}
	}
	var d Disk
	var err error
	switch format {
	case FormatRaw:
		d = rawDisk{file, size}
	case FormatQCOW2:
		d, err = qcow2.Open(file, size)
	case FormatVHD, FormatVHDFixed:
		format = FormatVHD
		d, err = vhd.Open(file, size)
	case FormatVMDK:
		d, err = vmdk.Open(file, size)
	default:
		err = fmt.Errorf("format %q: %w", format, ErrFormat)
	}
	if err != nil {
		return nil, "", fmt.Errorf("open disk: %w", err)
	}
	return d, format, nil
}

// magics are what formats begin with. Those without a name are not read.
var magics = []struct{ magic, format, what string }{
	{"QFI\xfb", FormatQCOW2, ""},
	{"KDMV", FormatVMDK, ""},
	{"COWD", FormatVMDK, ""},
	{"# Disk DescriptorFile", FormatVMDK, ""},
	{"conectix", FormatVHD, ""},
	{"vhdxfile", "", "VHDX"},
	{"<<< ", "", "VirtualBox VDI"},
	{"QED\x00", "", "QED"},
}

// detect tells the format by the first bytes, or by a vhd's footer.
func detect(file io.ReaderAt, size int64) (string, error) {
	const footer = 512
	for _, at := range []int64{0, size - footer} {
		b := make([]byte, 64)
		if at < 0 {
			continue
		}
		n, err := file.ReadAt(b, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		for _, m := range magics {
			if !bytes.HasPrefix(b[:n], []byte(m.magic)) || at > 0 && m.format != FormatVHD {
				continue
			}
			if m.format == "" {
				return "", fmt.Errorf("%s: %w", m.what, ErrFormat)
			}
			return m.format, nil
		}
	}
	return FormatRaw, nil
}

// rawDisk is a disk as it is.
type rawDisk struct {
	file io.ReaderAt
	size int64
}

func (d rawDisk) Size() int64 { return d.size }

func (d rawDisk) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(d.file, 0, d.size).ReadAt(p, off)
}

// Data asks the file system for the holes of a file. Elsewhere, and where it
// cannot tell, all is data.
func (d rawDisk) Data() iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		f, isFile := d.file.(*os.File)
		for off := int64(0); off < d.size; {
			run := tree.Extent{Off: off, Len: d.size - off}
			if isFile {
				start, end, err := nextRun(f, off, d.size)
				if err != nil {
					yield(tree.Extent{}, err)
					return
				}
				run = tree.Extent{Off: start, Len: end - start}
			}
			if run.Len > 0 && !yield(run, nil) {
				return
			}
			off = run.Off + run.Len
		}
	}
}

// nextRun finds the first data of a file from off on, below size. At the end
// both are size.
func nextRun(f *os.File, off, size int64) (start, end int64, err error) {
	start, err = f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, syscall.ENXIO):
		return size, size, nil
	case errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ESPIPE):
		return off, size, nil
	case err != nil:
		return 0, 0, fmt.Errorf("look for holes: %w", err)
	}
	if end, err = f.Seek(start, unix.SEEK_HOLE); err != nil {
		return 0, 0, fmt.Errorf("look for holes: %w", err)
	}
	if end <= start { // a file system that contradicts itself
		end = size
	}
	return min(start, size), min(end, size), nil
}

// CopyDisk writes all of d that is not zeros to w, ascending, as the writers of
// containers want it. Holes are not read. When ctx ends, it stops and returns
// its cause.
func CopyDisk(ctx context.Context, w io.WriterAt, d Disk) error {
	buf := make([]byte, chunkSize)
	for run, err := range d.Data() {
		if err != nil {
			return fmt.Errorf("copy disk: %w", err)
		}
		for off, end := run.Off, run.Off+run.Len; off < end; {
			if ctx.Err() != nil {
				return fmt.Errorf("copy disk: %w", context.Cause(ctx))
			}
			p := buf[:min(end-off, chunkSize-off%chunkSize)]
			if n, err := d.ReadAt(p, off); n < len(p) {
				return fmt.Errorf("copy disk: %w", err)
			}
			if err := writeData(w, p, off); err != nil {
				return fmt.Errorf("copy disk: %w", err)
			}
			off += int64(len(p))
		}
	}
	return nil
}

// writeData writes the ranges of p that are not zeros.
func writeData(w io.WriterAt, p []byte, off int64) error {
	for at := 0; at < len(p); {
		start, end := nextData(p, at)
		if start < end {
			if _, err := w.WriteAt(p[start:end], off+int64(start)); err != nil {
				return err
			}
		}
		at = end
	}
	return nil
}
