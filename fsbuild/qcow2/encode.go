package qcow2

import (
	"fmt"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// deflateWindow is the largest distance in our deflate streams, in bytes: QEMU
// deflates with a window of 12 bits and promises readers no more.
const deflateWindow = 1 << 12

// encoder compresses one cluster at a time. Its output depends on src only,
// never on what it compressed before.
type encoder interface {
	// encode appends src compressed to dst and returns the result.
	encode(dst, src []byte) ([]byte, error)
}

func newEncoder(g geometry) (encoder, error) {
	switch g.compression {
	case Deflate:
		return newDeflater()
	case Zstd:
		return newZstdEncoder(int(g.clusterSize))
	default:
		return storer{}, nil
	}
}

// storer does not compress: the caller sees no gain and keeps the cluster.
type storer struct{}

func (storer) encode(dst, src []byte) ([]byte, error) { return append(dst, src...), nil }

type deflater struct {
	w   *flate.Writer
	out buffer
}

func newDeflater() (*deflater, error) {
	d := &deflater{}
	var err error
	if d.w, err = flate.NewWriterWindow(&d.out, deflateWindow); err != nil {
		return nil, fmt.Errorf("start deflate encoder: %w", err)
	}
	return d, nil
}

func (d *deflater) encode(dst, src []byte) ([]byte, error) {
	d.out.b = dst
	d.w.Reset(&d.out)
	if _, err := d.w.Write(src); err != nil {
		return nil, fmt.Errorf("deflate cluster: %w", err)
	}
	if err := d.w.Close(); err != nil {
		return nil, fmt.Errorf("deflate cluster: %w", err)
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

func newZstdEncoder(clusterSize int) (zstdEncoder, error) {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true),
		zstd.WithWindowSize(max(clusterSize, zstd.MinWindowSize)))
	if err != nil {
		return zstdEncoder{}, fmt.Errorf("start zstd encoder: %w", err)
	}
	return zstdEncoder{e}, nil
}

func (z zstdEncoder) encode(dst, src []byte) ([]byte, error) {
	return z.e.EncodeAll(src, dst), nil
}
