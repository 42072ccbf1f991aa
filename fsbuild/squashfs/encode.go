package squashfs

import (
	"fmt"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"cairn/fsbuild/compress"
)

const (
	defaultGzipLevel = 7
	defaultZstdLevel = 4
)

// encoder compresses one block at a time. Its output depends on src only,
// never on what it compressed before.
type encoder interface {
	// encode appends src compressed to dst and returns the result.
	encode(dst, src []byte) ([]byte, error)
}

func (p *Params) encoder() (encoder, error) {
	switch p.Compression {
	case Zstd:
		return newZstd(p.Level, p.BlockSize)
	case XZ:
		return xzEncoder(p.BlockSize), nil
	default:
		return newDeflate(p.Level)
	}
}

type deflate struct {
	w   *zlib.Writer
	out buffer
}

func newDeflate(level int) (*deflate, error) {
	if level == 0 {
		level = defaultGzipLevel
	}
	d := &deflate{}
	var err error
	if d.w, err = zlib.NewWriterLevel(&d.out, level); err != nil {
		return nil, fmt.Errorf("start zlib encoder: %w", err)
	}
	return d, nil
}

func (d *deflate) encode(dst, src []byte) ([]byte, error) {
	d.out.b = dst
	d.w.Reset(&d.out)
	if _, err := d.w.Write(src); err != nil {
		return nil, fmt.Errorf("deflate block: %w", err)
	}
	if err := d.w.Close(); err != nil {
		return nil, fmt.Errorf("deflate block: %w", err)
	}
	return d.out.b, nil
}

// buffer is an io.Writer onto a slice.
type buffer struct{ b []byte }

func (b *buffer) Write(p []byte) (int, error) {
	b.b = append(b.b, p...)
	return len(p), nil
}

type zstdEncoder struct{ e *zstd.Encoder }

// newZstd makes frames whose window is not larger than a block, since Linux
// keeps no larger one.
func newZstd(level, blockSize int) (zstdEncoder, error) {
	if level == 0 {
		level = defaultZstdLevel
	}
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.EncoderLevel(level)), // from SpeedFastest, which is 1
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true),
		zstd.WithWindowSize(max(blockSize, metaSize)))
	if err != nil {
		return zstdEncoder{}, fmt.Errorf("start zstd encoder: %w", err)
	}
	return zstdEncoder{e}, nil
}

func (z zstdEncoder) encode(dst, src []byte) ([]byte, error) { return z.e.EncodeAll(src, dst), nil }

// xzEncoder has the dictionary that Linux expects without compressor options:
// of a block, or of a metadata block if that is larger.
type xzEncoder int

func (x xzEncoder) encode(dst, src []byte) ([]byte, error) {
	return compress.AppendXZ(dst, src, max(int(x), metaSize))
}

// pack appends src to dst, compressed unless that does not make it smaller.
func pack(e encoder, dst, src []byte) (out []byte, compressed bool, err error) {
	n := len(dst)
	if out, err = e.encode(dst, src); err != nil {
		return nil, false, err
	}
	if len(out)-n < len(src) {
		return out, true, nil
	}
	return append(out[:n], src...), false, nil
}
