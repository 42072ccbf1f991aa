package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"cairn/reproducibility/store"
)

const (
	maxDocument = 4 << 20 // bytes of a manifest or configuration; what registries accept
	maxLayers   = 1024
	parallel    = 3 // layers fetched at once
)

// source is where an image comes from.
type source interface {
	// manifest returns the bytes of the manifest or index with digest d, or of
	// the one that the reference names if d is "". They are not verified.
	manifest(ctx context.Context, d store.Digest) ([]byte, error)
	// blob opens a blob of the given size from an offset on. The second result
	// is the offset where it really begins, which may be 0 instead.
	blob(ctx context.Context, d store.Digest, size, offset int64) (io.ReadCloser, int64, error)
}

// puller is the state of one Pull.
type puller struct {
	o    Options // without a Store nothing is kept, and layers cannot be fetched
	ref  Reference
	want platform
	src  source
}

func (p *puller) pull(ctx context.Context) (*Image, error) {
	img, err := p.image(ctx)
	if err != nil {
		return nil, err
	}
	return img, p.layers(ctx, img.Layers)
}

// image finds the image, without its layers.
func (p *puller) image(ctx context.Context) (*Image, error) {
	resolved, doc, err := p.resolve(ctx)
	if err != nil {
		return nil, err
	}
	img := &Image{Reference: p.ref.String(), ResolvedDigest: resolved, ManifestDigest: resolved}
	if doc.Manifests != nil {
		d, err := choose(doc.Manifests, p.want)
		if err != nil {
			return nil, err
		}
		if img.ManifestDigest, doc, err = p.child(ctx, d); err != nil {
			return nil, err
		}
	}
	if err := p.manifest(img, doc); err != nil {
		return nil, err
	}
	config, err := p.config(ctx, doc)
	if err != nil {
		return nil, err
	}
	if err := p.describe(img, doc, config); err != nil {
		return nil, err
	}
	return img, nil
}

// document is a manifest or an index, whichever its fields make it.
type document struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Manifests     []v1.Descriptor   `json:"manifests"`
	Config        *v1.Descriptor    `json:"config"`
	Layers        []v1.Descriptor   `json:"layers"`
	FSLayers      json.RawMessage   `json:"fsLayers"`
	Annotations   map[string]string `json:"annotations"`
}

// parseDocument reads a manifest or an index. A document that could be taken
// for both is refused (CVE-2021-41190).
func parseDocument(b []byte) (*document, error) {
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, kind(ErrUnsupported, "read manifest: %w", err)
	}
	isIndex, isImage := d.Manifests != nil, d.Config != nil || d.Layers != nil
	switch {
	case d.SchemaVersion != 2:
		return nil, kind(ErrUnsupported, "manifest of schema version %d", d.SchemaVersion)
	case isIndex == isImage || d.FSLayers != nil:
		return nil, kind(ErrUnsupported, "the manifest is neither clearly an image nor an index")
	case d.MediaType != "" && isIndex != isIndexType(d.MediaType):
		return nil, kind(ErrUnsupported, "the manifest contradicts its media type %q", d.MediaType)
	}
	return &d, nil
}

func isIndexType(mediaType string) bool {
	return strings.Contains(mediaType, ".index.") || strings.Contains(mediaType, ".manifest.list.")
}

// resolve returns what the reference names, with its digest.
func (p *puller) resolve(ctx context.Context) (store.Digest, *document, error) {
	if d := p.ref.digest; d != "" {
		doc, err := p.document(ctx, d, -1)
		return d, doc, err
	}
	b, err := p.fetch(ctx, func(ctx context.Context) ([]byte, error) { return p.src.manifest(ctx, "") })
	if err != nil {
		return "", nil, err
	}
	doc, err := parseDocument(b)
	if err != nil {
		return "", nil, err
	}
	if p.o.Store == nil {
		return store.Of(b), doc, nil
	}
	d, err := p.o.Store.PutBytes(ctx, b)
	return d, doc, err
}

// child returns the image manifest that an index has chosen.
func (p *puller) child(ctx context.Context, desc v1.Descriptor) (store.Digest, *document, error) {
	d, err := checkDescriptor(desc)
	if err != nil {
		return "", nil, err
	}
	doc, err := p.document(ctx, d, desc.Size)
	if err == nil && doc.Manifests != nil {
		err = kind(ErrUnsupported, "index in an index: %s", d)
	}
	return d, doc, err
}

// document returns the manifest or index d, of size bytes unless that is -1.
func (p *puller) document(ctx context.Context, d store.Digest, size int64) (*document, error) {
	b, err := p.small(ctx, d, size, func(ctx context.Context) ([]byte, error) { return p.src.manifest(ctx, d) })
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d, err)
	}
	return parseDocument(b)
}

// small returns the content of d, of size bytes unless that is -1.
func (p *puller) small(ctx context.Context, d store.Digest, size int64, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	b, err := p.stored(ctx, d, fetch)
	if err != nil {
		return nil, err
	}
	if got := store.Of(b); got != d || size >= 0 && int64(len(b)) != size {
		return nil, &store.MismatchError{Want: d, Got: got, WantSize: size, GotSize: int64(len(b))}
	}
	return b, nil
}

// stored returns the content of d from the store, or fetches and keeps it.
func (p *puller) stored(ctx context.Context, d store.Digest, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	if p.o.Store == nil {
		return p.fetch(ctx, fetch)
	}
	b, err := p.o.Store.ReadAll(d, maxDocument)
	var damaged *store.CorruptError
	if errors.Is(err, store.ErrNotFound) || errors.As(err, &damaged) {
		if b, err = p.fetch(ctx, fetch); err == nil {
			_, _, err = p.o.Store.Put(ctx, bytes.NewReader(b), d)
		}
	}
	return b, err
}

// fetch gets a document, in several attempts if need be.
func (p *puller) fetch(ctx context.Context, get func(context.Context) ([]byte, error)) ([]byte, error) {
	return retrying(ctx, p.o.RetryDelay, func() ([]byte, error) {
		limited, cancel := context.WithTimeoutCause(ctx, p.o.Stall, errStalled)
		defer cancel()
		b, err := get(limited)
		if err != nil && errors.Is(context.Cause(limited), errStalled) {
			err = errStalled
		}
		return b, err
	})
}

// checkDescriptor returns the digest of a descriptor that can be used.
func checkDescriptor(d v1.Descriptor) (store.Digest, error) {
	digest, err := store.ParseDigest(d.Digest.String())
	if err != nil {
		return "", kind(ErrUnsupported, "descriptor: %w", err)
	}
	if d.Size < 0 {
		return "", kind(ErrUnsupported, "descriptor of %s: size %d", digest, d.Size)
	}
	return digest, nil
}

// manifest takes what an image's manifest says.
func (p *puller) manifest(img *Image, doc *document) error {
	if doc.Config == nil || len(doc.Layers) > maxLayers {
		return kind(ErrUnsupported, "manifest with no configuration or with %d layers", len(doc.Layers))
	}
	switch t := string(doc.Config.MediaType); t {
	case "application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json":
	default:
		return kind(ErrUnsupported, "it is no container image but has the configuration type %q", t)
	}
	var err error
	if img.ConfigDigest, err = checkDescriptor(*doc.Config); err != nil {
		return err
	}
	img.Annotations = doc.Annotations
	for _, d := range doc.Layers {
		l := Layer{MediaType: string(d.MediaType), Size: d.Size}
		if !isLayerType(l.MediaType) || len(d.URLs) > 0 {
			return kind(ErrUnsupported, "layer of type %q with %d foreign addresses", l.MediaType, len(d.URLs))
		}
		if l.Digest, err = checkDescriptor(d); err != nil {
			return err
		}
		img.Layers = append(img.Layers, l)
	}
	return nil
}

func isLayerType(mediaType string) bool {
	switch mediaType {
	case "application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.v1.tar+gzip",
		"application/vnd.oci.image.layer.v1.tar+zstd",
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.diff.tar.zstd":
		return true
	}
	return false
}

// config is the part of an image's configuration that matters here.
type config struct {
	Created      string `json:"created"`
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
	Config       struct {
		Labels map[string]string `json:"Labels"`
	} `json:"config"`
	RootFS struct {
		Type    string         `json:"type"`
		DiffIDs []store.Digest `json:"diff_ids"`
	} `json:"rootfs"`
}

func (p *puller) config(ctx context.Context, doc *document) (*config, error) {
	d, size := store.Digest(doc.Config.Digest.String()), doc.Config.Size
	if size > maxDocument {
		return nil, kind(ErrUnsupported, "configuration of %d bytes", size)
	}
	b, err := p.small(ctx, d, size, func(ctx context.Context) ([]byte, error) {
		r, _, err := p.src.blob(ctx, d, size, 0)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return readLimited(r)
	})
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", d, err)
	}
	var c config
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, kind(ErrUnsupported, "read configuration %s: %w", d, err)
	}
	return &c, nil
}

// readLimited reads a document, and fails if it is longer than those may be.
func readLimited(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err == nil && len(b) > maxDocument {
		err = kind(ErrUnsupported, "a document of more than %d bytes", maxDocument)
	}
	return b, err
}

// describe takes what the configuration says.
func (p *puller) describe(img *Image, doc *document, c *config) error {
	have := platform{c.OS, c.Architecture, c.Variant}.canonical()
	if !p.want.runs(have) {
		return &PlatformError{Want: p.want.String(), Offered: []string{have.String()}}
	}
	img.Platform = have.String()
	img.Labels = c.Config.Labels
	if c.RootFS.Type != "layers" || len(c.RootFS.DiffIDs) != len(img.Layers) {
		return kind(ErrUnsupported, "the configuration has %d layers of type %q, the manifest %d",
			len(c.RootFS.DiffIDs), c.RootFS.Type, len(img.Layers))
	}
	for i, d := range c.RootFS.DiffIDs {
		if !d.Valid() {
			return kind(ErrUnsupported, "diff id %q", d)
		}
		img.Layers[i].DiffID = d
	}
	const key = "org.opencontainers.image.created"
	for _, s := range []string{c.Created, doc.Annotations[key], img.Labels[key]} {
		// Years before 1971 are what tools write that want to say nothing.
		if t, err := time.Parse(time.RFC3339Nano, s); err == nil && t.Year() > 1970 {
			img.Created = t.UTC()
			break
		}
	}
	return nil
}

// layers fetches the layers that the store has not.
func (p *puller) layers(ctx context.Context, layers []Layer) error {
	progress := newProgress(p.o.Progress)
	distinct := map[store.Digest]Layer{}
	for _, l := range layers {
		if have, ok := distinct[l.Digest]; ok && have.Size != l.Size {
			return kind(ErrUnsupported, "layer %s has two sizes", l.Digest)
		} else if !ok {
			progress.total += l.Size
		}
		distinct[l.Digest] = l
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, l := range layers { // in the order of the image, each once
		if _, ok := distinct[l.Digest]; !ok {
			continue
		}
		delete(distinct, l.Digest)
		group.Go(func() error {
			if err := p.layer(ctx, l, progress); err != nil {
				return fmt.Errorf("layer %s: %w", l.Digest, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// progress adds up what the transfers report.
type progress struct {
	report func(done, total int64)
	total  int64

	mu   sync.Mutex
	done int64
	each map[store.Digest]int64
}

func newProgress(report func(done, total int64)) *progress {
	return &progress{report: report, each: map[store.Digest]int64{}}
}

// at notes how many bytes of a layer are here.
func (p *progress) at(d store.Digest, n int64) {
	if p.report == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n - p.each[d]
	p.each[d] = n
	p.report(p.done, p.total)
}
