package fsbuild

import (
	"context"
	"fmt"
	"io"
)

// Reader returns size bytes of r, a finished image, as a Content. Blocks of
// zeros are left out.
func Reader(r io.ReaderAt, size int64) Content { return reader{r, size} }

type reader struct {
	r    io.ReaderAt
	size int64
}

func (c reader) Size() int64 { return c.size }

func (c reader) WriteTo(ctx context.Context, w io.WriterAt) error {
	b := make([]byte, min(c.size, int64(len(zeros))))
	for at := int64(0); at < c.size; at += int64(len(b)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		piece := b[:min(int64(len(b)), c.size-at)]
		if n, err := c.r.ReadAt(piece, at); n < len(piece) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read image at %d of %d bytes: %w", at+int64(n), c.size, err)
		}
		if isZero(piece) {
			continue
		}
		if _, err := w.WriteAt(piece, at); err != nil {
			return err
		}
	}
	return nil
}

// planned is what the file systems of the packages below plan: an
// [ext4.Layout] and those like it.
type planned[S any] interface {
	Size() int64
	Write(ctx context.Context, w io.WriterAt) (S, error)
}

// Layout returns a planned file system as a Content, for example an
// *ext4.Layout. S is the summary that it returns, which is dropped.
func Layout[S any](l planned[S]) Content { return layout[S]{l} }

type layout[S any] struct{ planned[S] }

func (c layout[S]) WriteTo(ctx context.Context, w io.WriterAt) error {
	_, err := c.Write(ctx, w)
	return err
}

// window is the range of a disk that a content may write to.
type window struct {
	w          io.WriterAt
	base, size int64
}

func (v window) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || int64(len(p)) > v.size || off > v.size-int64(len(p)) {
		return 0, fmt.Errorf("%d bytes at offset %d leave the %d that were asked for: %w", len(p), off, v.size, ErrImage)
	}
	return v.w.WriteAt(p, v.base+off)
}
