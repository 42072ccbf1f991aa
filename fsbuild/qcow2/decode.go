package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// decoder fills dst with what src decompresses to. Bytes of src behind the
// stream are ignored: its length is known in sectors only. It may be called
// concurrently.
type decoder func(dst, src []byte) error

// maxZstdWindow bounds the memory that a hostile frame may ask for. No encoder
// needs more than a cluster.
const maxZstdWindow = 8 << 20

func newDecoder(g layout) (decoder, error) {
	if g.compression == Zstd {
		return pooled(openZstd, readZstd)
	}
	return pooled(openFlate, readFlate)
}

// pooled makes a decoder from decompressors that serve one call at a time. The
// first one is opened now, to see that it can be.
func pooled[D any](open func() (D, error), read func(d D, dst, src []byte) error) (decoder, error) {
	first, err := open()
	if err != nil {
		return nil, err
	}
	var free sync.Pool
	free.Put(first)
	return func(dst, src []byte) error {
		d, ok := free.Get().(D)
		if !ok {
			var err error
			if d, err = open(); err != nil {
				return err
			}
		}
		defer free.Put(d)
		return read(d, dst, src)
	}, nil
}

// inflater is what the flate package promises of its readers.
type inflater interface {
	io.Reader
	flate.Resetter
}

func openFlate() (inflater, error) {
	r, ok := flate.NewReader(bytes.NewReader(nil)).(inflater)
	if !ok {
		return nil, errors.New("start inflate: the reader cannot be reset")
	}
	return r, nil
}

func readFlate(r inflater, dst, src []byte) error {
	if err := r.Reset(bytes.NewReader(src), nil); err != nil {
		return fmt.Errorf("inflate: %w", err)
	}
	if _, err := io.ReadFull(r, dst); err != nil {
		return fmt.Errorf("inflate: %w", err)
	}
	return nil
}

func openZstd() (*zstd.Decoder, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
	if err != nil {
		return nil, fmt.Errorf("start zstd decoder: %w", err)
	}
	return d, nil
}

func readZstd(d *zstd.Decoder, dst, src []byte) error {
	if err := d.Reset(bytes.NewReader(src)); err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	if _, err := io.ReadFull(d, dst); err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	return nil
}
