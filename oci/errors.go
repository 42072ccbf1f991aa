package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"cairn/reproducibility/store"
)

// Kinds of an [Error], for errors.Is.
var (
	ErrReference    = errors.New("invalid image reference")
	ErrUnauthorized = errors.New("registry refuses access")
	ErrNotFound     = errors.New("no such image")
	ErrUnreachable  = errors.New("registry cannot be reached")
	ErrInsecure     = errors.New("registry speaks plain http")
	ErrMismatch     = errors.New("content is not what its digest or size says")
	ErrPlatform     = errors.New("image is not for this platform")
	ErrUnsupported  = errors.New("image cannot be used")
)

var hints = map[error]string{
	ErrReference:    "write [HOST/]REPOSITORY[:TAG][@sha256:DIGEST], or oci:DIRECTORY[:TAG] for an image layout",
	ErrUnauthorized: "give credentials for the registry, or check the name: some registries say this of repositories that do not exist",
	ErrNotFound:     "check the repository's name and the tag or digest",
	ErrUnreachable:  "check the registry's name, the network and the proxy; what was fetched is kept, so that a new attempt goes on from there",
	ErrInsecure:     "use a registry with TLS, or allow plain http for this host",
	ErrMismatch:     "the registry or something on the way is damaged or hostile: do not use this image; try again or another mirror",
	ErrPlatform:     "choose one of the platforms that are offered, or another image",
	ErrUnsupported:  "use a container image with ordinary layers (OCI, or Docker schema 2)",
}

// Error is the error of a reference: what is wrong, as one of the kinds, and
// why.
type Error struct {
	Reference string
	Kind      error
	Err       error
}

// Error returns reference, kind and cause.
func (e *Error) Error() string { return fmt.Sprintf("image %s: %v: %v", e.Reference, e.Kind, e.Err) }

// Unwrap returns kind and cause.
func (e *Error) Unwrap() []error { return []error{e.Kind, e.Err} }

// Hint says what the user can do.
func (e *Error) Hint() string { return hints[e.Kind] }

// PlatformError is the cause of an [Error] of kind ErrPlatform.
type PlatformError struct {
	Want    string
	Offered []string // in the order of the index
}

// Error lists the platforms that are offered.
func (e *PlatformError) Error() string {
	return fmt.Sprintf("%s is wanted, %s offered", e.Want, strings.Join(e.Offered, ", "))
}

// kinded is a cause whose kind is known where it arises.
type kinded struct{ kind, err error }

func (e *kinded) Error() string { return e.err.Error() }
func (e *kinded) Unwrap() error { return e.err }

func kind(k error, format string, args ...any) error {
	return &kinded{k, fmt.Errorf(format, args...)}
}

// explain finds the kind of an error. Those of the context and the store stay.
func explain(ctx context.Context, ref Reference, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("image %s: %w", ref, context.Cause(ctx))
	}
	if k := kindOf(err); k != nil {
		return &Error{Reference: ref.String(), Kind: k, Err: err}
	}
	return fmt.Errorf("image %s: %w", ref, err)
}

func kindOf(err error) error {
	var known *kinded
	var mismatch *store.MismatchError
	var status *transport.Error
	var platform *PlatformError
	var network net.Error
	var request *url.Error
	var dial *net.OpError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &known):
		return known.kind
	case errors.Is(err, http.ErrSchemeMismatch): // plain http was answered to TLS
		return ErrInsecure
	case errors.As(err, &dial), errors.As(err, &cert): // also if plain http was refused then
		return ErrUnreachable
	case errors.Is(err, ErrInsecure):
		return ErrInsecure
	case errors.As(err, &mismatch):
		return ErrMismatch
	case errors.As(err, &platform):
		return ErrPlatform
	case errors.As(err, &status):
		return kindOfStatus(status.StatusCode)
	case errors.As(err, &network), errors.As(err, &request), errors.Is(err, errStalled):
		return ErrUnreachable
	}
	return nil
}

func kindOfStatus(code int) error {
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden:
		return ErrUnauthorized
	case http.StatusNotFound:
		return ErrNotFound
	}
	return ErrUnreachable
}
