package fsbuild

import (
	"context"
	"io"

	"cairn/fsbuild/ext4"
)

// Convert writes the disk d into all outs, in one pass and without a temporary
// image: what Build is for a tree, it is for a disk that exists already. Ranges
// of zeros become holes. No more than a few MiB of the disk are in memory.
func Convert(ctx context.Context, d Disk, outs []Output, progress func(done, total int64)) ([]Result, error) {
	return disk{size: d.Size()}.write(ctx, existing{d}, outs, progress)
}

// existing is a disk as the source of a stream.
type existing struct{ Disk }

func (e existing) Write(ctx context.Context, w io.WriterAt) (ext4.Summary, error) {
	return ext4.Summary{}, CopyDisk(ctx, w, e.Disk)
}
