package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"cairn/reproducibility/store"
)

// refName is the annotation of an index's entry that holds its tag.
const refName = "org.opencontainers.image.ref.name"

// layout is an image layout,
// https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md.
type layout struct{ dir, tag string }

// manifest implements source.
func (l *layout) manifest(_ context.Context, d store.Digest) ([]byte, error) {
	if d == "" {
		var err error
		if d, err = l.find(); err != nil {
			return nil, err
		}
	}
	b, err := l.read(blobPath(d))
	if err != nil {
		return nil, err
	}
	if got := store.Of(b); got != d {
		return nil, &store.MismatchError{Want: d, Got: got, WantSize: -1, GotSize: int64(len(b))}
	}
	return b, nil
}

func blobPath(d store.Digest) string { return filepath.Join("blobs/sha256", d.Hex()) }

// find returns the digest of the layout's image, by its tag if there is one.
func (l *layout) find() (store.Digest, error) {
	b, err := l.read("oci-layout")
	if err != nil {
		return "", err
	}
	var version struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(b, &version); err != nil || !strings.HasPrefix(version.Version, "1.") {
		return "", kind(ErrUnsupported, "image layout of version %q", version.Version)
	}
	if b, err = l.read("index.json"); err != nil {
		return "", err
	}
	var index document
	if err := json.Unmarshal(b, &index); err != nil {
		return "", kind(ErrUnsupported, "read index.json: %w", err)
	}
	d, err := l.pick(index.Manifests)
	if err != nil {
		return "", err
	}
	return checkDescriptor(d)
}

func (l *layout) pick(manifests []v1.Descriptor) (v1.Descriptor, error) {
	var tags []string
	for _, m := range manifests {
		tag := m.Annotations[refName]
		if l.tag != "" && tag == l.tag {
			return m, nil
		}
		tags = append(tags, fmt.Sprintf("%q", tag))
	}
	switch {
	case l.tag != "":
		return v1.Descriptor{}, kind(ErrNotFound, "the layout has no tag %q but %s", l.tag, strings.Join(tags, ", "))
	case len(manifests) != 1:
		return v1.Descriptor{}, kind(ErrNotFound, "the layout holds %d images, name one by its tag: %s", len(manifests), strings.Join(tags, ", "))
	}
	return manifests[0], nil
}

func (l *layout) read(name string) ([]byte, error) {
	f, err := l.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f)
}

// open opens a regular file of the layout.
func (l *layout) open(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(l.dir, name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, kind(ErrNotFound, "%w", err)
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = kind(ErrUnsupported, "%s is not a regular file", f.Name())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// blob implements source.
func (l *layout) blob(_ context.Context, d store.Digest, _, offset int64) (io.ReadCloser, int64, error) {
	f, err := l.open(blobPath(d))
	if err != nil {
		return nil, 0, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, offset, nil
}
