package record

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"cairn/reproducibility/store"
)

// A flight is the one response to a URL, on its way or arrived. Who finds it in
// Server.flights waits for done to be closed.
type flight struct {
	done  chan struct{}
	entry Entry
	err   error // there is no response
	fresh bool  // it came in now, in place of being listed
}

// kept reports whether the flight has arrived with a response to keep.
func (f *flight) kept() bool {
	select {
	case <-f.done:
		return f.err == nil && isKept(f.entry.Status)
	default:
		return false
	}
}

// isKept reports whether a response with the status is kept for the build.
func isKept(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	}
	return status < 500
}

// A failure is why there is no response; its status is what the client gets.
type failure struct {
	kind   EventKind
	status int
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(kind EventKind, status int, format string, args ...any) error {
	return &failure{kind, status, fmt.Errorf(format, args...)}
}

// A request is what a client wants: the URL, in full and as recorded, and the
// headers that go upstream.
type request struct {
	url    *url.URL
	key    string // redacted
	header http.Header
	want   store.Digest // what the body must have, "" if that is not known
	// early, if not nil, is told of a response whose body is on its way, and
	// returns where to copy that body to, nil for nowhere.
	early func(e Entry) io.Writer
}

// response returns the response to r, and whether this call brought it in. All
// who ask for one URL get one response.
func (s *Server) response(ctx context.Context, r request) (*flight, bool) {
	s.mu.Lock()
	f, ok := s.flights[r.key]
	if !ok {
		f = &flight{done: make(chan struct{})}
		s.flights[r.key] = f
	}
	s.mu.Unlock()
	if ok {
		select {
		case <-f.done:
			return f, false
		case <-ctx.Done():
			return &flight{done: f.done, err: ctx.Err()}, false
		}
	}
	f.entry, f.fresh, f.err = s.obtain(ctx, r)
	close(f.done)
	if !f.kept() {
		s.forget(r.key, f)
	}
	return f, true
}

// forget lets the next request for the URL try again.
func (s *Server) forget(key string, f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flights[key] == f {
		delete(s.flights, key)
	}
}

// obtain finds the response to r, and reports whether it is a new one.
func (s *Server) obtain(ctx context.Context, r request) (Entry, bool, error) {
	listed, ok := s.listed[r.key]
	if s.o.Replay && !ok {
		return Entry{}, false, fail(Unlisted, http.StatusGatewayTimeout, "not in the lock file")
	}
	if !s.o.Replay {
		e, err := s.live(ctx, r)
		return e, true, err
	}
	missing := s.missing(listed)
	if missing == nil {
		return listed, false, nil
	}
	r.early = nil // nothing is passed on before it is known to be right
	r.want = listed.Digest
	e, err := s.live(ctx, r)
	var mismatch *store.MismatchError
	switch {
	case errors.As(err, &mismatch):
		return Entry{}, false, fail(Changed, http.StatusBadGateway, "not what the lock file has: %w", mismatch)
	case errors.Is(err, errNoNetwork):
		return Entry{}, false, fail(Failed, http.StatusGatewayTimeout, "%w: %w", err, missing)
	case err != nil:
		return Entry{}, false, err
	}
	if e.Status != listed.Status || e.Digest != listed.Digest {
		return Entry{}, false, fail(Changed, http.StatusBadGateway,
			"not what the lock file has: status %d and %s in place of %d and %s", e.Status, e.Digest, listed.Status, listed.Digest)
	}
	return listed, false, nil
}

// missing returns why the store cannot serve the body of e, nil if it can.
func (s *Server) missing(e Entry) error {
	if e.isEmpty() {
		return nil
	}
	f, size, err := s.o.Store.OpenVerified(e.Digest)
	if err != nil {
		return err
	}
	if size != e.Size {
		err = fmt.Errorf("the lock file has %d bytes for %s, which has %d", e.Size, e.Digest, size)
	}
	return errors.Join(err, f.Close())
}

// isEmpty reports whether e has no body, which needs no place in the store.
func (e Entry) isEmpty() bool { return e.Digest == store.Of(nil) }

var errNoNetwork = errors.New("there is no network to fetch it from")

// live gets the response from the resolver or from upstream.
func (s *Server) live(ctx context.Context, r request) (Entry, error) {
	if s.o.Resolver != nil {
		a, handled, err := s.o.Resolver.Resolve(ctx, r.url.String())
		if handled {
			return s.resolved(r, a, err)
		}
	}
	if s.o.Upstream == nil {
		return Entry{}, fail(Failed, http.StatusGatewayTimeout, "%w", errNoNetwork)
	}
	if !s.o.AllowLocal && isLocal(r.url.Host) {
		return Entry{}, fail(Refused, http.StatusForbidden, "%w", ErrLocal)
	}
	return s.fetch(ctx, r)
}

// resolved turns a resolver's answer into an entry.
func (s *Server) resolved(r request, a Answer, err error) (Entry, error) {
	if err != nil {
		return Entry{}, upstreamFailure(err)
	}
	e := Entry{URL: r.key, Status: a.Status, Digest: a.Digest, Header: a.Header}
	if e.Status == 0 {
		e.Status = http.StatusOK
	}
	if e.Digest == "" {
		e.Digest = store.Of(nil)
		return e, nil
	}
	if e.Size, err = s.o.Store.Stat(e.Digest); err != nil {
		return Entry{}, fail(Failed, http.StatusBadGateway, "%w", err)
	}
	return e, nil
}

// upstreamFailure says whose fault err is: 504 for silence, 502 for the rest.
func upstreamFailure(err error) error {
	status := http.StatusBadGateway
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() || errors.Is(err, errStalled) {
		status = http.StatusGatewayTimeout
	}
	return fail(Failed, status, "%w", err)
}

var errStalled = errors.New("upstream stopped sending")

// fetch asks upstream, and puts the body into the store.
func (s *Server) fetch(ctx context.Context, r request) (Entry, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(s.o.Timeout, func() { cancel(errStalled) })
	defer watch.Stop()
	req := (&http.Request{Method: http.MethodGet, URL: r.url, Host: r.url.Host, Header: r.header}).WithContext(ctx)
	resp, err := s.o.Upstream.RoundTrip(req)
	if err != nil {
		return Entry{}, upstreamFailure(causeOf(ctx, err))
	}
	defer resp.Body.Close()
	e, err := s.begin(r, resp)
	if err != nil {
		return Entry{}, err
	}
	body := &body{r: resp.Body, left: s.o.MaxBody, fed: func() { watch.Reset(s.o.Timeout) }}
	if r.early != nil && resp.ContentLength >= 0 && isKept(e.Status) {
		e.Size = resp.ContentLength
		body.copy = r.early(e)
	}
	e.Digest, e.Size, err = s.o.Store.Put(ctx, body, r.want)
	switch {
	case body.err != nil:
		return Entry{}, upstreamFailure(causeOf(ctx, body.err))
	case err != nil:
		return Entry{}, fail(Failed, http.StatusBadGateway, "%w", err)
	}
	return e, nil
}

// causeOf returns why ctx was cancelled, if it was, in place of err.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// begin judges the head of upstream's response.
func (s *Server) begin(r request, resp *http.Response) (Entry, error) {
	switch {
	case resp.StatusCode < 200, resp.StatusCode > 599,
		resp.StatusCode == http.StatusPartialContent, resp.StatusCode == http.StatusNotModified:
		return Entry{}, fail(Failed, http.StatusBadGateway, "upstream answered a plain request with status %d", resp.StatusCode)
	case resp.ContentLength > s.o.MaxBody:
		return Entry{}, fail(Failed, http.StatusBadGateway, "%w", errTooLong)
	}
	e := Entry{URL: r.key, Status: resp.StatusCode, Header: map[string]string{}}
	for _, name := range KeptHeaders {
		v := resp.Header.Get(name)
		if len(v) > maxHeader {
			return Entry{}, fail(Failed, http.StatusBadGateway, "upstream's header %s is too long", name)
		}
		if v != "" {
			e.Header[name] = v
		}
	}
	if l, ok := e.Header["Location"]; ok {
		if err := checkLocation(r.url, l); err != nil {
			return Entry{}, fail(Refused, http.StatusBadGateway, "%w", err)
		}
	}
	return e, nil
}

// maxHeader is the longest value of a header that is kept, in bytes.
const maxHeader = 8 << 10

var errTooLong = errors.New("content is longer than the limit")

// body passes on what upstream sends, within limits.
type body struct {
	r    io.Reader
	left int64     // bytes allowed
	fed  func()    // told that something came
	copy io.Writer // nil for none; a client that has gone does not stop the recording
	err  error     // what upstream did wrong
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if n > 0 {
		b.fed()
	}
	if b.left -= int64(n); b.left < 0 {
		err = errTooLong
	}
	if b.copy != nil && n > 0 {
		if _, cerr := b.copy.Write(p[:n]); cerr != nil {
			b.copy = nil
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

// ErrLocal is wrapped by errors about a request for a service of this machine
// or its link, on behalf of a hook.
var ErrLocal = errors.New("services of the build machine are out of hooks' reach")

// RefuseLocal refuses to connect to an address of this machine or its link. It
// is for the Control field of the net.Dialer under Options.Upstream, where
// names have been resolved.
func RefuseLocal(_, address string, _ syscall.RawConn) error {
	if isLocal(strings.ToLower(address)) {
		return fmt.Errorf("connect to %s: %w", address, ErrLocal)
	}
	return nil
}
