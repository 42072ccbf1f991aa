package fsbuild

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"syscall"

	"cairn/fsbuild/qcow2"
	"cairn/fsbuild/vhd"
	"cairn/fsbuild/vmdk"
)

var errOrder = errors.New("write out of order")

// zeros is never written to.
var zeros [64 << 10]byte

// sinks returns what the outputs need, two for a raw one: the file and its
// digest. After an error, those made so far are returned with it.
func (d disk) sinks(outs []Output, results []Result) (all []sink, err error) {
	for i, o := range outs {
		results[i].Format = o.Format
		results[i].VirtualSize = d.size
		if o.Format != FormatRaw {
			s, err := newContainerSink(o, d.size, &results[i])
			if err != nil {
				return all, err
			}
			all = append(all, s)
			continue
		}
		if err := o.File.Truncate(d.size); err != nil {
			return all, outputError(o, err)
		}
		all = append(all, &rawSink{out: o}, &hashSink{size: d.size, hash: sha256.New(), result: &results[i]})
	}
	return all, nil
}

// outputError wraps an error of o's file.
func outputError(o Output, err error) error {
	return &OutputError{Op: "write " + o.Format, Path: o.File.Name(), Err: bare(err)}
}

// measure fills in what the host knows about a finished file.
func (r *Result) measure(o Output) error {
	info, err := o.File.Stat()
	if err != nil {
		return outputError(o, err)
	}
	r.Size = info.Size()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		r.Allocated = st.Blocks * 512
	}
	return nil
}

// rawSink writes a sparse file.
type rawSink struct{ out Output }

// holeSize is the unit in which zeros are looked for.
const holeSize = 4096

func (s *rawSink) write(_ context.Context, c *chunk) error {
	if err := writeData(s.out.File, c.data, c.offset); err != nil {
		return outputError(s.out, err)
	}
	return nil
}

// nextData finds the first range of b from at on that is not zero, in units of
// holeSize. At the end both are len(b).
func nextData(b []byte, at int) (start, end int) {
	start = at
	for start < len(b) && isZero(b[start:min(start+holeSize, len(b))]) {
		start = min(start+holeSize, len(b))
	}
	end = start
	for end < len(b) && !isZero(b[end:min(end+holeSize, len(b))]) {
		end = min(end+holeSize, len(b))
	}
	return start, end
}

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

func (*rawSink) finish(context.Context) error { return nil }
func (*rawSink) abort()                       {}

// hashSink computes the digest of a raw disk, holes included.
type hashSink struct {
	size   int64
	done   int64
	hash   hash.Hash
	result *Result
}

func (s *hashSink) write(ctx context.Context, c *chunk) error {
	if err := s.zerosTo(ctx, c.offset); err != nil {
		return err
	}
	s.hash.Write(c.data)
	s.done += int64(len(c.data))
	return nil
}

// zerosTo hashes zeros up to offset.
func (s *hashSink) zerosTo(ctx context.Context, offset int64) error {
	for s.done < offset {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, _ := s.hash.Write(zeros[:min(offset-s.done, int64(len(zeros)))])
		s.done += int64(n)
	}
	return nil
}

func (s *hashSink) finish(ctx context.Context) error {
	if err := s.zerosTo(ctx, s.size); err != nil {
		return err
	}
	s.result.SHA256 = hex.EncodeToString(s.hash.Sum(nil))
	return nil
}

func (*hashSink) abort() {}

// container is a writer of one, from ascending writes.
type container interface {
	io.WriterAt
	Close() error
	Abort()
	Size() int64
}

// newContainer starts a container for a disk of size bytes. It returns the size
// that the disk has in it.
func newContainer(o Output, size int64) (container, int64, error) {
	switch o.Format {
	case FormatVHD, FormatVHDFixed:
		opts := o.VHD
		if opts.Kind = vhd.Dynamic; o.Format == FormatVHDFixed {
			opts.Kind = vhd.Fixed
		}
		w, err := vhd.NewWriter(o.File, (size+mib-1)/mib*mib, opts)
		if err != nil {
			return nil, 0, err
		}
		return w, w.VirtualSize(), nil
	case FormatVMDK:
		opts := o.VMDK
		if opts.Kind = vmdk.StreamOptimized; !o.Compress {
			opts.Kind = vmdk.MonolithicSparse
		}
		w, err := vmdk.NewWriter(o.File, size, opts)
		return w, size, err
	default:
		opts := o.QCOW2
		if !o.Compress {
			opts.Compression = qcow2.None
		}
		w, err := qcow2.NewWriter(o.File, size, opts)
		return w, size, err
	}
}

// containerSink writes a container's file. Its digest needs a second look at
// the file, since the header is written last.
type containerSink struct {
	out    Output
	w      container
	result *Result
}

func newContainerSink(o Output, size int64, r *Result) (*containerSink, error) {
	w, size, err := newContainer(o, size)
	if err != nil {
		return nil, err
	}
	r.VirtualSize = size
	return &containerSink{out: o, w: w, result: r}, nil
}

func (s *containerSink) write(_ context.Context, c *chunk) error {
	_, err := s.w.WriteAt(c.data, c.offset)
	return s.explain(err)
}

func (s *containerSink) finish(ctx context.Context) error {
	if err := s.w.Close(); err != nil {
		return s.explain(err)
	}
	h := sha256.New()
	r := io.NewSectionReader(s.out.File, 0, s.w.Size())
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, contextReader{ctx, r}, make([]byte, chunkSize)); err != nil {
		return s.explain(err)
	}
	s.result.SHA256 = hex.EncodeToString(h.Sum(nil))
	return nil
}

// explain names the file where the operating system refused something.
func (s *containerSink) explain(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return outputError(s.out, err)
	}
	return err
}

func (s *containerSink) abort() { s.w.Abort() }

// contextReader fails when its context has ended.
type contextReader struct {
	ctx context.Context //nolint:containedctx // lives within one io.Copy
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
