package oci

import (
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/fsbuild/compress"
	"cairn/oci/layer"
	"cairn/reproducibility/store"
)

// maxTrailer is how many bytes may follow the end of a layer's archive.
const maxTrailer = 64 << 20

// Unpack unpacks all layers of a pulled image into the directory root, which
// must exist and be empty, and returns the device nodes that belong there. It
// sets o.Whiteouts and carries o.Ledger along. No network is needed. After an
// error root holds a part and should be thrown away. A blob that is damaged,
// or an archive that is not what the configuration says, is an error: see
// [store.CorruptError] and [store.MismatchError].
func Unpack(ctx context.Context, s *store.Store, img *Image, root string, o layer.Options) (layer.Ledger, error) {
	o.Whiteouts = true
	for _, l := range img.Layers {
		var err error
		if o.Ledger, err = unpackLayer(ctx, s, l, root, o); err != nil {
			return nil, fmt.Errorf("unpack image %s: layer %s: %w", img.Reference, l.Digest, err)
		}
	}
	return o.Ledger, nil
}

func unpackLayer(ctx context.Context, s *store.Store, l Layer, root string, o layer.Options) (ledger layer.Ledger, err error) {
	blob, _, err := s.Open(l.Digest)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	err = l.read(blob, func(archive io.Reader) (err error) {
		ledger, err = layer.Unpack(ctx, root, archive, o)
		return err
	})
	return ledger, err
}

// read has use read the archive in a layer's blob, and verifies both to their
// ends, the blob through its own reader.
func (l *Layer) read(blob io.Reader, use func(archive io.Reader) error) (err error) {
	// Some tools name the wrong compression, so the data decides.
	archive, _, err := compress.NewDetectingReader(blob)
	if err != nil {
		return err
	}
	ahead := newReadAhead(store.Verify(archive, l.DiffID, -1))
	defer func() {
		ahead.stop() // before the decoder is closed
		err = errors.Join(err, archive.Close())
	}()
	if err := use(ahead); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, io.LimitReader(ahead, maxTrailer+1))
	if err != nil {
		return err
	}
	if n > maxTrailer {
		return fmt.Errorf("%w: more than %d bytes after the archive", layer.ErrLimit, maxTrailer)
	}
	_, err = io.Copy(io.Discard, blob)
	return err
}
