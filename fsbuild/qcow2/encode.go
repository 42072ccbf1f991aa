package qcow2

import (
	"fmt"

	"github.com/klauspost/compress/zstd"

	"cairn/fsbuild/internal/deflate"
)

// encoder compresses one cluster at a time. Its output depends on src only,
// never on what it compressed before.
type encoder interface {
	// encode appends src compressed to dst and returns the result.
	encode(dst, src []byte) ([]byte, error)
}

func newEncoder(g geometry) (encoder, error) {
	switch g.compression {
	case Deflate:
		return newDeflater(g.window)
	case Zstd:
		return newZstdEncoder(int(g.clusterSize))
	default:
		return storer{}, nil
	}
}

// storer does not compress: the caller sees no gain and keeps the cluster.
type storer struct{}

func (storer) encode(dst, src []byte) ([]byte, error) { return append(dst, src...), nil }

type deflater struct{ e *deflate.Encoder }

func newDeflater(window int) (deflater, error) {
	e, err := deflate.NewEncoder(window)
	if err != nil {
		return deflater{}, fmt.Errorf("start deflate encoder: %w", err)
	}
	return deflater{e}, nil
}

func (d deflater) encode(dst, src []byte) ([]byte, error) { return d.e.Encode(dst, src), nil }

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
