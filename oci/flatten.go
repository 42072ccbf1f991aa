package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"cairn/fsbuild/compress"
	"cairn/fsbuild/tar"
	"cairn/fsbuild/tree"
	"cairn/reproducibility/store"
)

// A Flat is an image whose layers are one tree. Contents of the tree can be
// opened until it is closed.
type Flat struct {
	Image *Image
	Tree  *tree.Tree
	files []*os.File
}

// Close closes what the contents are read from.
func (f *Flat) Close() error {
	var errs []error
	for _, file := range f.files {
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}

// OpenLayout reads the image for an architecture (see [Options]) that a
// reference "oci:DIR[:TAG][@DIGEST]" names as a tree, without a store, a
// directory to unpack into, or privileges: owners and device nodes are what the
// archives say. All digests are verified first, and the layout must stay as it
// is meanwhile.
//
// Contents are read from the blobs where they lie. Those of a compressed layer
// cannot be: its archive is kept in a file that scratch makes, empty and open
// for reading and writing, and Close closes. Errors are like those of [Pull].
func OpenLayout(ctx context.Context, reference, arch string, scratch func() (*os.File, error)) (*Flat, error) {
	ref, err := ParseReference(reference)
	if err != nil {
		return nil, err
	}
	if !ref.IsLayout() {
		return nil, &Error{Reference: reference, Kind: ErrReference, Err: errors.New("it names no image layout")}
	}
	want, err := parsePlatform(arch)
	if err != nil {
		return nil, err
	}
	dir := &layout{dir: ref.dir, tag: ref.tag}
	f := &Flat{}
	if f.Image, err = (&puller{ref: ref, want: want, src: dir, o: Options{Stall: 1 << 62}}).image(ctx); err == nil {
		err = f.flatten(ctx, dir, scratch)
	}
	if err != nil {
		return nil, errors.Join(explain(ctx, ref, err), f.Close())
	}
	return f, nil
}

func (f *Flat) flatten(ctx context.Context, dir *layout, scratch func() (*os.File, error)) error {
	var archives []*io.SectionReader
	for _, l := range f.Image.Layers {
		file, err := dir.archive(ctx, l, scratch)
		if file != nil {
			f.files = append(f.files, file)
		}
		if err != nil {
			return fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		end, err := file.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		archives = append(archives, io.NewSectionReader(file, 0, end))
	}
	var err error
	f.Tree, err = tar.ReadLayers(ctx, archives, tar.Options{})
	return err
}

// archive returns a layer's archive, verified: the blob itself, or what it
// decompresses to.
func (l *layout) archive(ctx context.Context, layer Layer, scratch func() (*os.File, error)) (*os.File, error) {
	blob, err := l.open(blobPath(layer.Digest))
	if err != nil {
		return nil, err
	}
	magic := make([]byte, compress.MagicLen)
	n, err := blob.ReadAt(magic, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return blob, err
	}
	file, to := blob, io.Discard
	if compress.Detect(magic[:n]) != compress.None {
		defer blob.Close()
		if file, err = scratch(); err != nil {
			return nil, err
		}
		to = file
	}
	return file, layer.read(store.Verify(blob, layer.Digest, layer.Size), func(archive io.Reader) error {
		_, err := io.Copy(to, &stoppable{ctx, archive})
		return err
	})
}

// stoppable ends with its context.
type stoppable struct {
	ctx context.Context //nolint:containedctx // io.Reader has no room for it
	r   io.Reader
}

// Read implements io.Reader.
func (s *stoppable) Read(b []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(b)
}
