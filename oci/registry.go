package oci

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"cairn/reproducibility/store"
)

// accepted are the manifests that can be read, or refused with a good reason.
var accepted = []string{
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
}

// registry is a repository reached by the distribution protocol. The first
// request makes the handshake, so that an image in the store needs none.
type registry struct {
	repo name.Repository
	tag  string
	auth authn.Authenticator
	base http.RoundTripper

	mu     sync.Mutex
	client *http.Client // nil before the handshake
}

func newRegistry(repo name.Repository, tag string, o Options) *registry {
	host := repo.RegistryStr()
	if o.Insecure != nil && o.Insecure(host) {
		// The name was parsed before, so making it again cannot fail.
		if insecure, err := name.NewRepository(repo.Name(), name.Insecure); err == nil {
			repo = insecure
		}
	}
	base := o.Transport
	if base == nil {
		base = &http.Transport{ForceAttemptHTTP2: true, MaxIdleConnsPerHost: parallel}
	}
	return &registry{repo: repo, tag: tag, auth: authenticator(host, o.Credentials), base: &guard{inner: base, insecure: o.Insecure}}
}

func authenticator(host string, all map[string]Credential) authn.Authenticator {
	c, ok := all[host]
	if !ok && host == name.DefaultRegistry {
		c, ok = all["docker.io"]
	}
	if !ok {
		return authn.Anonymous
	}
	return authn.FromConfig(authn.AuthConfig{Username: c.Username, Password: c.Password, RegistryToken: c.Token})
}

// guard refuses plain http, to which redirects and token services may lead and
// which ggcr tries on its own for local addresses, unless it is allowed.
type guard struct {
	inner    http.RoundTripper
	insecure func(host string) bool
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && (g.insecure == nil || !g.insecure(r.URL.Host)) {
		return nil, fmt.Errorf("%w: %s", ErrInsecure, r.URL.Host)
	}
	return g.inner.RoundTrip(r)
}

// connect makes the handshake: which scheme, and which token.
func (r *registry) connect(ctx context.Context) (*http.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.client != nil {
		return r.client, nil
	}
	t, err := transport.NewWithContext(ctx, r.repo.Registry, r.auth, r.base, []string{r.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", r.repo.RegistryStr(), err)
	}
	r.client = &http.Client{Transport: t}
	return r.client, nil
}

// get makes a request below the repository, and fails unless the status is one
// of those given.
func (r *registry) get(ctx context.Context, what string, header http.Header, status ...int) (*http.Response, error) {
	client, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	url := fmt.Sprintf("%s://%s/v2/%s/%s", r.repo.Scheme(), r.repo.RegistryStr(), r.repo.RepositoryStr(), what)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, status...); err != nil {
		resp.Body.Close() //nolint:errcheck // the status is the error
		return nil, err
	}
	return resp, nil
}

// manifest implements source.
func (r *registry) manifest(ctx context.Context, d store.Digest) ([]byte, error) {
	what := r.tag
	if d != "" {
		what = string(d)
	}
	resp, err := r.get(ctx, "manifests/"+what, http.Header{"Accept": accepted}, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := readLimited(resp.Body)
	if err != nil {
		return nil, err
	}
	if said := store.Digest(resp.Header.Get("Docker-Content-Digest")); d == "" && said.Valid() && said != store.Of(b) {
		return nil, &store.MismatchError{Want: said, Got: store.Of(b), WantSize: -1, GotSize: int64(len(b))}
	}
	return b, nil
}

// blob implements source. Servers may ignore the range.
func (r *registry) blob(ctx context.Context, d store.Digest, size, offset int64) (io.ReadCloser, int64, error) {
	header := http.Header{}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, size-1))
	}
	resp, err := r.get(ctx, "blobs/"+string(d), header, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, 0, nil
	}
	var start int64
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &start); err != nil || start != offset {
		resp.Body.Close() //nolint:errcheck // nothing was read
		return nil, 0, kind(ErrUnreachable, "the server answers another range: %q", resp.Header.Get("Content-Range"))
	}
	return resp.Body, offset, nil
}
