package build

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cairn/elements/bootstrap"
	"cairn/oci"
	"cairn/reproducibility"
	"cairn/reproducibility/lock"
	"cairn/reproducibility/record"
)

// inputs are what comes in from outside: the parent's side of bases, tools and
// the hooks' network.
type inputs struct {
	p       *parent
	network *http.Transport
	index   *bootstrap.Index
	given   *lock.Lock // nil unless the build is locked
	server  *record.Server
	epoch   time.Time
	seed    reproducibility.Seed

	mu     sync.Mutex
	sets   map[string][]bootstrap.Package // by purpose
	images []*oci.Image
}

// openInputs verifies the package archive's indexes, or takes those that the
// lock names, and settles the epoch and the seed.
func (p *parent) openInputs(ctx context.Context) (err error) {
	in := &inputs{p: p, network: p.req.Network(), sets: make(map[string][]bootstrap.Package)}
	if p.req.Locked != nil {
		if in.given, err = lock.Parse(p.req.Locked); err != nil {
			return refuse("make a new lock by building without --locked", "lock file %s: %v", p.req.LockPath, err)
		}
		if err := in.checkLock(); err != nil {
			return err
		}
	}
	if err := in.openIndex(ctx); err != nil {
		return withHint(err)
	}
	if err := in.openImage(ctx); err != nil {
		return withHint(err)
	}
	if err := in.settle(); err != nil {
		return err
	}
	in.server, err = record.New(in.recorder())
	if err != nil {
		return fail(err, "hooks' network")
	}
	p.inputs = in
	return nil
}

// client fetches for the build. It is nil when nothing may be fetched.
func (in *inputs) client() *http.Client {
	if in.p.req.Offline {
		return nil
	}
	return &http.Client{Transport: in.network}
}

// recorder says how hooks' requests are answered.
func (in *inputs) recorder() record.Options {
	o := record.Options{Store: in.p.store, Resolver: archiveResolver{in}, Events: in.networkEvent}
	if !in.p.req.Offline {
		o.Upstream = in.upstream()
	}
	if in.given != nil {
		o.Replay, o.Listed = true, in.listed()
	}
	return o
}

// upstream is the transport of hooks' own requests. They may not reach
// services of this machine, unless a proxy has to be gone through.
func (in *inputs) upstream() http.RoundTripper {
	t := in.p.req.Network()
	if !in.hasProxy() {
		t.DialContext = (&net.Dialer{Timeout: 30 * time.Second, Control: record.RefuseLocal}).DialContext
	}
	return t
}

func (in *inputs) hasProxy() bool {
	return slices.ContainsFunc(in.p.req.Env, func(kv string) bool {
		name, value, _ := strings.Cut(strings.ToLower(kv), "=")
		return (name == "http_proxy" || name == "https_proxy") && value != ""
	})
}

// networkEvent says what hooks could not get.
func (in *inputs) networkEvent(e record.Event) {
	if e.Err != nil {
		in.p.tell(Event{Kind: Message, Text: fmt.Sprintf("network: %s %s: %v", e.Method, e.URL, e.Err)})
	}
}

// ports are further ports that hooks may connect to: those of the URLs that
// they can know from the caller.
func (in *inputs) ports() []int {
	var ports []int
	for _, text := range append([]string{in.p.req.Debian.Mirror, in.p.req.Debian.SecurityMirror}, proxies(in.p.req.Env)...) {
		u, err := url.Parse(text)
		if err != nil {
			continue
		}
		n, err := strconv.Atoi(u.Port())
		if err == nil && n != 80 && n != 443 && !slices.Contains(ports, n) {
			ports = append(ports, n)
		}
	}
	slices.Sort(ports)
	return ports
}

func proxies(env []string) []string {
	var urls []string
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if strings.HasSuffix(strings.ToLower(name), "_proxy") && strings.Contains(value, "://") {
			urls = append(urls, value)
		}
	}
	return urls
}

// archiveResolver answers hooks' requests for the Debian archive from the
// indexes that were verified at the beginning, under each of its names.
type archiveResolver struct{ in *inputs }

// Resolve implements record.Resolver.
func (a archiveResolver) Resolve(ctx context.Context, asked string) (record.Answer, bool, error) {
	canonical, ours := a.in.canonical(asked)
	if !ours {
		return record.Answer{}, false, nil
	}
	blob, ok := a.in.index.Locate(canonical)
	if !ok {
		return record.Answer{Status: http.StatusNotFound}, true, nil
	}
	if err := a.in.index.Ensure(ctx, blob); err != nil {
		return record.Answer{}, true, err
	}
	return record.Answer{Digest: blob.Digest}, true, nil
}

// debian resolves, and fetches, the packages of a base or the tools root.
func (in *inputs) debian(ctx context.Context, q DebianQuestion) ([]bootstrap.Package, error) {
	if q.Suite != "" && q.Suite != in.p.req.Debian.Suite {
		return nil, refuse("set DIB_RELEASE for the whole build", "suite %s is not the build's", q.Suite)
	}
	r := bootstrap.Minbase()
	r.Include = append(r.Include, q.Include...)
	packages, err := in.index.Resolve(r)
	if err != nil {
		return nil, err
	}
	if q.Fetch {
		if err := in.index.Fetch(ctx, packages); err != nil {
			return nil, err
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.sets[q.Purpose] = packages
	return packages, in.checkSet(q.Purpose, packages)
}

// openImage pulls the base image that the request names: it belongs to what
// the seed is made of.
func (in *inputs) openImage(ctx context.Context) error {
	reference := in.p.variable("DIB_BASE_IMAGE")
	if reference == "" {
		return nil
	}
	_, err := in.image(ctx, reference)
	return err
}

// image pulls a base image, or takes it from the store when the lock or an
// earlier call has it.
func (in *inputs) image(ctx context.Context, reference string) (*oci.Image, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, i := range in.images {
		if i.Reference == reference {
			return i, nil
		}
	}
	o := oci.Options{Arch: in.p.req.Arch, Store: in.p.store, Transport: in.network, Insecure: isLoopback}
	asked := reference
	if in.given != nil {
		pinned, err := in.pinnedImage(reference)
		if err != nil {
			return nil, err
		}
		asked = pinned
	}
	image, err := oci.Pull(ctx, asked, o)
	if err != nil {
		return nil, err
	}
	image.Reference = reference
	in.images = append(in.images, image)
	return image, nil
}

// pinnedImage is the reference by digest of what the lock has for a reference.
func (in *inputs) pinnedImage(reference string) (string, error) {
	b := in.given.Base
	if b.Kind != lock.KindOCI || b.Reference != reference {
		return "", refuse("build without --locked to make a new lock", "the lock has no base image %s", reference)
	}
	name, _, _ := strings.Cut(reference, "@")
	return name + "@" + string(b.Digest), nil
}

// isLoopback says whether plain HTTP may be spoken with a registry: only on
// this machine.
func isLoopback(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}
