package oci

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"cairn/reproducibility/store"
)

// layoutScheme begins a reference to an image layout in a directory.
const layoutScheme = "oci:"

// Reference names an image: in a registry, "[HOST/]REPOSITORY[:TAG][@DIGEST]",
// or in an OCI image layout, "oci:DIR[:TAG][@DIGEST]". A digest decides alone.
type Reference struct {
	dir    string // of a layout; "" for a registry
	repo   name.Repository
	tag    string       // "" for none, in a layout
	digest store.Digest // "" for none
}

// ParseReference reads a reference. Without a tag and a digest, a registry is
// asked for "latest", and a layout must hold a single image. A name without a
// host belongs to Docker Hub. The error is an [*Error] of kind ErrReference.
func ParseReference(s string) (Reference, error) {
	r, err := parseReference(s)
	if err != nil {
		return Reference{}, &Error{Reference: s, Kind: ErrReference, Err: err}
	}
	return r, nil
}

func parseReference(s string) (Reference, error) {
	var r Reference
	base := s
	if i := strings.LastIndex(s, "@"); i >= 0 && (!strings.HasPrefix(s, layoutScheme) || strings.HasPrefix(s[i:], "@sha256:")) {
		d, err := store.ParseDigest(s[i+1:])
		if err != nil {
			return r, err
		}
		base, r.digest = s[:i], d
	}
	if rest, ok := strings.CutPrefix(base, layoutScheme); ok {
		r.dir = rest
		if i := strings.LastIndex(rest, ":"); i >= 0 && !strings.Contains(rest[i:], "/") {
			r.dir, r.tag = rest[:i], rest[i+1:]
		}
		if r.dir == "" {
			return r, fmt.Errorf("%q has no directory", s)
		}
		return r, nil
	}
	tag, err := name.NewTag(base)
	if err != nil {
		return r, err
	}
	r.repo, r.tag = tag.Repository, tag.TagStr()
	// ggcr lets pass what would change the path of a request.
	if !hostForm.MatchString(r.repo.RegistryStr()) || !repositoryForm.MatchString(r.repo.RepositoryStr()) {
		return r, fmt.Errorf("host %q or repository %q is malformed", r.repo.RegistryStr(), r.repo.RepositoryStr())
	}
	return r, nil
}

// The form of a repository's name is that of the distribution specification,
// "Pulling manifests".
var (
	hostForm       = regexp.MustCompile(`^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]+)?$`)
	repositoryForm = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
)

// String returns the reference in full.
func (r Reference) String() string {
	s := layoutScheme + r.dir
	if r.dir == "" {
		s = r.repo.Name()
	}
	if r.tag != "" && (r.digest == "" || r.dir != "") {
		s += ":" + r.tag
	}
	if r.digest != "" {
		s += "@" + string(r.digest)
	}
	return s
}

// IsLayout reports whether the image is in a directory, not in a registry.
func (r Reference) IsLayout() bool { return r.dir != "" }

// Digest returns the digest that the reference gives, or "".
func (r Reference) Digest() store.Digest { return r.digest }

// WithDigest returns the reference with digest d.
func (r Reference) WithDigest(d store.Digest) Reference {
	r.digest = d
	return r
}

func (r Reference) source(o Options) source {
	if r.dir != "" {
		return &layout{dir: r.dir, tag: r.tag}
	}
	return newRegistry(r.repo, r.tag, o)
}
