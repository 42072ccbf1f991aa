// Package oci brings container images here: it resolves a reference in a
// registry or an image layout to one image of one platform, keeps manifests,
// configuration and layers in the content store by digest, and unpacks the
// layers through package layer. [OpenLayout] reads an image layout as a tree
// instead, without either.
//
// Specifications: https://github.com/opencontainers/image-spec/blob/v1.1.1 and
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md;
// Docker's manifest lists and schema 2 manifests are read too.
//
// Nothing is trusted before its digest was verified: a manifest is what its
// reference or its index says, a configuration and the layers are what the
// manifest says, and an unpacked layer is what the configuration says
// (DiffID). What the store has is not fetched again, so that an image named by
// digest whose parts are all there needs no network.
//
// The package does not push, does not verify signatures, reads no credential
// files and no environment, and runs nothing. Foreign layers, schema 1 and
// digests other than SHA-256 are refused.
package oci

import (
	"context"
	"net/http"
	"time"

	"cairn/reproducibility/store"
)

// Options say how Pull works.
type Options struct {
	// Arch is the architecture wanted: Go's name, as OCI has it ("amd64",
	// "arm64"), or Debian's ("armhf", "i386"). A variant may follow a slash.
	Arch string
	// Store keeps what is fetched.
	Store *store.Store
	// Transport carries requests to registries; nil connects directly. It
	// decides about proxies and certificate authorities.
	Transport http.RoundTripper
	// Credentials are those of registries, by host as the reference spells
	// it; "docker.io" for Docker Hub.
	Credentials map[string]Credential
	// Insecure reports whether plain HTTP may be spoken with a host (with its
	// port, if it has one). Nil means with none.
	Insecure func(host string) bool
	// Progress, if set, is told the bytes of layers that are here and those
	// there are. Calls do not overlap.
	Progress func(done, total int64)
	// RetryDelay is the pause before the first of three more attempts; it
	// doubles. 0 stands for 500 ms.
	RetryDelay time.Duration
	// Stall is how long a registry may send nothing. 0 stands for 60 s.
	Stall time.Duration
}

// Credential authenticates to a registry. Token, if set, is used alone, as a
// bearer token.
type Credential struct {
	Username, Password string
	Token              string
}

// Image is an image of which the store has all parts.
type Image struct {
	Reference      string            `json:"reference"`      // as it was given
	ResolvedDigest store.Digest      `json:"resolvedDigest"` // of the index or manifest that it names
	ManifestDigest store.Digest      `json:"manifestDigest"` // of the image for this platform
	ConfigDigest   store.Digest      `json:"configDigest"`
	Platform       string            `json:"platform"` // such as "linux/arm/v7"
	Created        time.Time         `json:"created"`  // see Pull; zero if unknown
	Labels         map[string]string `json:"labels,omitempty"`
	Annotations    map[string]string `json:"annotations,omitempty"` // of the manifest
	Layers         []Layer           `json:"layers"`                // the lowest first
}

// Layer is one layer of an Image.
type Layer struct {
	Digest    store.Digest `json:"digest"` // of the blob
	DiffID    store.Digest `json:"diffID"` // of the tar archive in it
	MediaType string       `json:"mediaType"`
	Size      int64        `json:"size"` // of the blob in bytes
}

// Pinned returns the reference with the digest that it resolved to. Pulling it
// gives this image again, from the store alone while that has it.
func (i *Image) Pinned() (string, error) {
	ref, err := ParseReference(i.Reference)
	if err != nil {
		return "", err
	}
	return ref.WithDigest(i.ResolvedDigest).String(), nil
}

// Pull resolves a reference and brings all parts of the image into the store.
//
// The time that Image.Created tells is the configuration's, or else that of
// the annotation or label org.opencontainers.image.created. Errors about what
// the reference led to are an [*Error], which has a hint; those that concern
// the store or the context are plain.
func Pull(ctx context.Context, reference string, o Options) (*Image, error) {
	ref, err := ParseReference(reference)
	if err != nil {
		return nil, err
	}
	want, err := parsePlatform(o.Arch)
	if err != nil {
		return nil, err
	}
	if o.RetryDelay == 0 {
		o.RetryDelay = 500 * time.Millisecond
	}
	if o.Stall == 0 {
		o.Stall = time.Minute
	}
	p := &puller{o: o, ref: ref, want: want}
	p.src = ref.source(o)
	img, err := p.pull(ctx)
	if err != nil {
		return nil, explain(ctx, ref, err)
	}
	return img, nil
}
