package record

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/reproducibility/store"
)

// patience is how long tests wait for what must come. It is no measure of speed:
// a busy machine may stand still for minutes.
const patience = 5 * time.Minute

// A world is a server under test on a free port, what lies upstream of it, and
// what it told.
type world struct {
	t      *testing.T
	s      *Server
	store  *store.Store
	port   string
	dns    string
	cancel func()

	mu     sync.Mutex
	events []Event
}

// upstream returns a transport that finds every host at h.
func upstream(t *testing.T, h http.Handler) http.RoundTripper {
	t.Helper()
	plain := httptest.NewServer(h)
	secure := httptest.NewTLSServer(h)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	tr := &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", plain.Listener.Addr().String())
		},
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
			return d.DialContext(ctx, "tcp", secure.Listener.Addr().String())
		},
	}
	return tr
}

func start(t *testing.T, o Options) *world {
	t.Helper()
	w := &world{t: t}
	if o.Store == nil {
		st, err := store.Open(filepath.Join(t.TempDir(), "store"))
		if err != nil {
			t.Fatal(err)
		}
		o.Store = st
	}
	w.store = o.Store
	o.Events = func(e Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, e)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	w.s = s
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, w.port, _ = net.SplitHostPort(l.Addr().String())
	w.dns = pc.LocalAddr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, []net.Listener{l}, pc) }()
	w.cancel = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("Serve does not end")
		}
	})
	t.Cleanup(w.cancel)
	return w
}

// told returns the events so far, as "kind status URL".
func (w *world) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, e := range w.events {
		all = append(all, fmt.Sprint(e.Kind, " ", e.Status, " ", e.URL))
	}
	return all
}

// get returns status, headers and body of http://host/path.
func (w *world) get(url string, headers ...string) (reply, string) {
	w.t.Helper()
	return w.do(http.MethodGet, url, headers...)
}

func (w *world) do(method, url string, headers ...string) (reply, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, url, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.s.CAPEM())
	tr := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true,
		TLSClientConfig: &tls.Config{RootCAs: pool},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+w.port)
		},
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Errorf("%s %s: %v", method, url, err)
	}
	return reply{resp.StatusCode, resp.Status, resp.Header}, string(b)
}

// A reply is what is left of a response when its body has been read.
type reply struct {
	StatusCode int
	Status     string
	Header     http.Header
}

// raw sends text as it is and returns all that comes back.
func (w *world) raw(text string) string {
	w.t.Helper()
	c, err := net.Dial("tcp", "127.0.0.1:"+w.port)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		w.t.Fatal(err)
	}
	b, _ := io.ReadAll(c)
	return string(b)
}

// echo answers with the URL's host and path, and counts.
func echo(n *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		count := n.Add(1)
		w.Header().Set("Etag", `"tag"`)
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2023 03:04:05 GMT")
		w.Header().Set("Content-Type", "text/x-echo")
		w.Header().Set("Set-Cookie", "dropped=1")
		switch {
		case strings.HasPrefix(r.URL.Path, "/missing"):
			http.NotFound(w, r)
		case strings.HasPrefix(r.URL.Path, "/busy"):
			http.Error(w, "busy", http.StatusServiceUnavailable)
		case r.URL.Path == "/moved":
			w.Header().Set("Location", "https://user:pw@other.test/to?X-Amz-Signature=s3cret&part=1")
			w.WriteHeader(http.StatusFound)
		case r.URL.Path == "/tofile":
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusFound)
		case r.URL.Path == "/cut":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "short")
		case r.URL.Path == "/big":
			w.Header().Set("Content-Length", fmt.Sprint(3<<20))
			_, _ = w.Write(bytes.Repeat([]byte("b"), 3<<20))
		case r.URL.Path == "/bigcut":
			w.Header().Set("Content-Length", fmt.Sprint(3<<20))
			_, _ = w.Write(bytes.Repeat([]byte("b"), 2<<20))
		case r.URL.Path == "/stall":
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "five5")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		default:
			_, _ = fmt.Fprintf(w, "%s%s %d range=%q enc=%q inm=%q", r.Host, r.URL.RequestURI(), count,
				r.Header.Get("Range"), r.Header.Get("Accept-Encoding"), r.Header.Get("If-None-Match"))
		}
	})
}

const plainAnswer = ` 1 range="" enc="identity" inm=""`

func TestFirstResponseWins(t *testing.T) {
	var n atomic.Int64
	w := start(t, Options{Upstream: upstream(t, echo(&n))})
	for i, c := range []struct{ method, url string }{
		{"GET", "http://a.test/x?q=1"},
		{"GET", "http://A.test:80/x?q=1"},
		{"HEAD", "http://a.test/x?q=1"},
	} {
		resp, body := w.do(c.method, c.url)
		want := "a.test/x?q=1" + plainAnswer
		if c.method == "HEAD" {
			want = ""
		}
		if resp.StatusCode != 200 || body != want {
			t.Errorf("%d: %d %q, want %q", i, resp.StatusCode, body, want)
		}
		header := http.Header{
			"Content-Type": {"text/x-echo"}, "Etag": {`"tag"`}, "Last-Modified": {"Mon, 02 Jan 2023 03:04:05 GMT"},
			"Accept-Ranges": {"bytes"}, "Content-Length": {"45"},
		}
		resp.Header.Del("Connection")
		if diff := cmp.Diff(header, resp.Header); diff != "" {
			t.Errorf("%d: headers: %s", i, diff)
		}
	}
	if n.Load() != 1 {
		t.Errorf("upstream was asked %d times", n.Load())
	}
	body := "a.test/x?q=1" + plainAnswer
	want := []Entry{{
		URL: "http://a.test/x?q=1", Status: 200, Digest: store.Of([]byte(body)), Size: int64(len(body)),
		Header: map[string]string{"Content-Type": "text/x-echo", "Etag": `"tag"`, "Last-Modified": "Mon, 02 Jan 2023 03:04:05 GMT"},
	}}
	if diff := cmp.Diff(want, w.s.Entries()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"0 200 http://a.test/x?q=1"}, w.told()); diff != "" {
		t.Error(diff)
	}
}

func TestConditionsAndRanges(t *testing.T) {
	var n atomic.Int64
	w := start(t, Options{Upstream: upstream(t, echo(&n))})
	whole := "a.test/x" + plainAnswer
	for _, c := range []struct {
		header string
		status int
		body   string
	}{
		{"Range: bytes=7-", 206, whole[7:]}, // the first: must not reach upstream as a range
		{"If-None-Match: \"tag\"", 304, ""},
		{"If-None-Match: \"other\"", 200, whole},
		{"If-Modified-Since: Mon, 02 Jan 2023 03:04:05 GMT", 304, ""},
		{"If-Modified-Since: Sun, 01 Jan 2023 03:04:05 GMT", 200, whole},
		{"Range: bytes=0-5", 206, "a.test"},
		{"Range: bytes=1000-", 416, "invalid range: failed to overlap\n"},
		{"Accept-Encoding: gzip", 200, whole},
	} {
		resp, body := w.get("http://a.test/x", c.header)
		if resp.StatusCode != c.status || body != c.body {
			t.Errorf("%s: %d %q, want %d %q", c.header, resp.StatusCode, body, c.status, c.body)
		}
	}
	resp, body := w.get("http://a.test/x", "Range: bytes=2-3", "If-Range: Sun, 01 Jan 2023 03:04:05 GMT")
	if resp.StatusCode != 200 || body != whole {
		t.Errorf("changed If-Range: %d %q", resp.StatusCode, body)
	}
}

func TestRefusals(t *testing.T) {
	var n atomic.Int64
	w := start(t, Options{Upstream: upstream(t, echo(&n)), Timeout: 3 * time.Second})
	for name, c := range map[string]struct{ send, status, text string }{
		"POST":           {"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc", "405", "method POST cannot be recorded"},
		"DELETE":         {"DELETE / HTTP/1.1\r\nHost: a.test\r\n\r\n", "405", "only GET and HEAD"},
		"GET with body":  {"GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc", "400", "with a body"},
		"TE and CL":      {"GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "with a body"},
		"two CL":         {"GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nabcde", "400", ""},
		"odd TE":         {"GET / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: xchunked\r\n\r\n", "501", ""},
		"no host":        {"GET / HTTP/1.0\r\n\r\n", "400", "names no host"},
		"two hosts":      {"GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", "400", ""},
		"bad host":       {"GET / HTTP/1.1\r\nHost: a$b\r\n\r\n", "400", "neither a name nor an address"},
		"scheme":         {"GET ftp://a.test/x HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "neither http nor https"},
		"file":           {"GET file:///etc/passwd HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "neither http nor https"},
		"localhost":      {"GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n", "403", "out of hooks' reach"},
		"loopback":       {"GET http://127.1.2.3/x HTTP/1.1\r\nHost: a.test\r\n\r\n", "403", "out of hooks' reach"},
		"metadata":       {"GET http://169.254.169.254/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "403", "out of hooks' reach"},
		"mapped address": {"GET http://[::ffff:127.0.0.1]/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "403", "out of hooks' reach"},
		"large head":     {"GET / HTTP/1.1\r\nHost: a.test\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n", "431", ""},
		"no HTTP":        {"EHLO mail.test\r\n\r\n", "400", ""},
		"slow client":    {"GET / HT", "", ""},
		"CONNECT form":   {"CONNECT a.test HTTP/1.1\r\nHost: a.test\r\n\r\n", "400", "one host and port"},
		"file redirect":  {"GET http://a.test/tofile HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", "502", "file:///etc/passwd refused"},
	} {
		t.Run(name, func(t *testing.T) {
			got := w.raw(c.send)
			version := "HTTP/1.1 "
			if strings.Contains(c.send, "HTTP/1.0") {
				version = "HTTP/1.0 "
			}
			if c.status == "" {
				// net/http says 400 or 408 to what it cannot wait for.
				if strings.Contains(got, "200 OK") {
					t.Errorf("got %q", got)
				}
				return
			}
			if !strings.HasPrefix(got, version+c.status+" ") || !strings.Contains(got, c.text) {
				t.Errorf("got %q, want status %s and %q", got, c.status, c.text)
			}
			if strings.Count(got, version) != 1 {
				t.Errorf("more than one response: %q", got)
			}
		})
	}
	if got := n.Load(); got != 1 { // the redirect's
		t.Errorf("upstream was asked %d times", got)
	}
	if got := w.s.Entries(); got != nil {
		t.Errorf("recorded %v", got)
	}
}

func TestUpstreamFailures(t *testing.T) {
	var n atomic.Int64
	tr := upstream(t, echo(&n))
	for path, want := range map[string]struct {
		timeout time.Duration
		status  int
		text    string
	}{
		"/cut":   {0, 502, "http://a.test/cut: unexpected EOF"},
		"/stall": {3 * time.Second, 504, "http://a.test/stall: upstream stopped sending"},
		"/busy":  {0, 503, "busy"},
	} {
		w := start(t, Options{Upstream: tr, MaxBody: 4 << 20, Timeout: want.timeout})
		for range 2 { // none of them is remembered
			resp, body := w.get("http://a.test" + path)
			if resp.StatusCode != want.status || !strings.Contains(body, want.text) {
				t.Errorf("%s: %d %q", path, resp.StatusCode, body)
			}
		}
		if got := w.s.Entries(); got != nil {
			t.Errorf("%s: recorded %v", path, got)
		}
		for _, e := range w.events {
			if e.Kind != Failed || e.Err == nil {
				t.Errorf("%s: event %+v", path, e)
			}
		}
		for _, e := range must(w.store.List()) {
			if e.Allocated > 4096 {
				t.Errorf("%s: store keeps %+v", path, e)
			}
		}
	}
	if n.Load() != 6 {
		t.Errorf("upstream was asked %d times, want 6", n.Load())
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestBodyLimit(t *testing.T) {
	var n atomic.Int64
	w := start(t, Options{Upstream: upstream(t, echo(&n)), MaxBody: 20})
	if resp, body := w.get("http://a.test/x"); resp.StatusCode != 502 || !strings.Contains(body, "longer than the limit") {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	w = start(t, Options{Upstream: upstream(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 100 { // without a length
			_, _ = io.WriteString(w, "xx")
			_ = http.NewResponseController(w).Flush()
		}
	})), MaxBody: 20})
	if resp, body := w.get("http://a.test/x"); resp.StatusCode != 502 || !strings.Contains(body, "longer than the limit") {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}

// A large body is passed on while it comes in; its end only once it is kept.
func TestEarly(t *testing.T) {
	var n atomic.Int64
	w := start(t, Options{Upstream: upstream(t, echo(&n))})
	resp, body := w.get("http://a.test/big")
	if resp.StatusCode != 200 || body != strings.Repeat("b", 3<<20) {
		t.Errorf("%d, %d bytes", resp.StatusCode, len(body))
	}
	if got := w.raw("GET /bigcut HTTP/1.1\r\nHost: a.test\r\n\r\n"); len(got) > 2<<20+500 {
		t.Errorf("got %d bytes of a cut body", len(got))
	}
	if got := w.s.Entries(); len(got) != 1 || got[0].Size != 3<<20 {
		t.Errorf("recorded %v", got)
	}

	tr := upstream(t, echo(&n))
	w = start(t, Options{Upstream: tr})
	if err := os.RemoveAll(filepath.Join(w.store.Dir(), "blobs")); err != nil { // a store that fails at the end
		t.Fatal(err)
	}
	got := w.raw("GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n")
	_, got, _ = strings.Cut(got, "\r\n\r\n")
	if len(got) != 3<<20-1 {
		t.Errorf("got %d bytes of what could not be kept", len(got))
	}
}

func TestConcurrentRequestsShareOneResponse(t *testing.T) {
	var n atomic.Int64
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(50 * time.Millisecond)
		echo(&n).ServeHTTP(w, r)
	})
	w := start(t, Options{Upstream: upstream(t, slow)})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, body := w.get("http://a.test/x"); body != "a.test/x"+plainAnswer {
				t.Errorf("got %q", body)
			}
		})
	}
	wg.Wait()
	if n.Load() != 1 {
		t.Errorf("upstream was asked %d times", n.Load())
	}
}

func TestPipelining(t *testing.T) {
	var n atomic.Int64
	w := start(t, Options{Upstream: upstream(t, echo(&n))})
	got := w.raw("GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: b.test\r\n\r\n" +
		"GET http://c.test/3 HTTP/1.1\r\nHost: ignored\r\nConnection: close\r\n\r\n")
	r := bufio.NewReader(strings.NewReader(got))
	for _, want := range []string{"a.test/1 1", "b.test/2 2", "c.test/3 3"} {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || !strings.HasPrefix(string(body), want) {
			t.Errorf("got %q, %v, want %q", body, err, want)
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestRedirect(t *testing.T) {
	var n atomic.Int64
	w := start(t, Options{Upstream: upstream(t, echo(&n))})
	for range 2 {
		resp, _ := w.get("http://a.test/moved")
		want := "https://user:pw@other.test/to?X-Amz-Signature=s3cret&part=1"
		if resp.StatusCode != 302 || resp.Header.Get("Location") != want {
			t.Errorf("%d to %q", resp.StatusCode, resp.Header.Get("Location"))
		}
	}
	_, body := w.get("https://other.test/to?X-Amz-Signature=s3cret&part=1")
	if !strings.HasPrefix(body, "other.test/to?X-Amz-Signature=s3cret&part=1 2") {
		t.Errorf("got %q", body)
	}
	var urls []string
	for _, e := range w.s.Entries() {
		urls = append(urls, e.URL, e.Header["Location"])
	}
	want := []string{
		"http://a.test/moved", "https://other.test/to?X-Amz-Signature=REDACTED&part=1",
		"https://other.test/to?X-Amz-Signature=REDACTED&part=1", "",
	}
	if diff := cmp.Diff(want, urls); diff != "" {
		t.Error(diff)
	}
	if text := fmt.Sprint(w.told()); strings.Contains(text, "s3cret") {
		t.Errorf("events tell the secret: %s", text)
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"http://a.test/":                               "http://a.test/",
		"http://user:pw@a.test/x#frag":                 "http://a.test/x",
		"http://a.test/?token=abc&x=1":                 "http://a.test/?token=REDACTED&x=1",
		"http://a.test/?Access_Token=abc":              "http://a.test/?Access_Token=REDACTED",
		"http://a.test/?x-amz-credential=a%2Fb&sig=%2": "http://a.test/?x-amz-credential=REDACTED&sig=REDACTED",
		"http://a.test/?t%6Fken=abc":                   "http://a.test/?t%6Fken=REDACTED",
		"http://a.test/?a=1&&tokens=2":                 "http://a.test/?a=1&&tokens=2",
		"http://a.test/%2b~%2F":                        "http://a.test/%2b~%2F",
		"http://[bad":                                  "invalid URL",
	} {
		if got := Redact(in); got != want {
			t.Errorf("Redact(%q) = %q, want %q", in, got, want)
		}
	}
}

// replayOf records what visit fetches, then returns a replaying server with
// the same store and no network.
func replayOf(t *testing.T, h http.Handler, visit func(*world)) *world {
	t.Helper()
	w := start(t, Options{Upstream: upstream(t, h)})
	visit(w)
	return start(t, Options{Store: w.store, Replay: true, Listed: w.s.Entries()})
}

func TestReplay(t *testing.T) {
	var n atomic.Int64
	urls := []string{"http://a.test/x?token=1", "https://a.test/x", "http://a.test/moved", "http://a.test/missing", "http://a.test/big"}
	answers := map[string]string{}
	w := replayOf(t, echo(&n), func(w *world) {
		for _, u := range urls {
			resp, body := w.get(u)
			answers[u] = resp.Status + body
		}
	})
	fetched := n.Load()
	for _, u := range append(urls, urls...) {
		if resp, body := w.get(u); answers[u] != resp.Status+body {
			t.Errorf("%s: %s %q, want %q", u, resp.Status, body, answers[u])
		}
	}
	if resp, _ := w.get("http://a.test/moved"); resp.Header.Get("Location") != "https://other.test/to?X-Amz-Signature=REDACTED&part=1" {
		t.Errorf("redirect to %s", resp.Header.Get("Location"))
	}
	if n.Load() != fetched {
		t.Error("upstream was asked")
	}
	if diff := cmp.Diff(5, len(w.s.Entries())); diff != "" {
		t.Error(diff)
	}
	resp, body := w.get("http://a.test/other?token=x")
	if resp.StatusCode != 504 || body != "cairn: http://a.test/other?token=REDACTED: not in the lock file\n" {
		t.Errorf("unlisted: %d %q", resp.StatusCode, body)
	}
	told := w.told()
	if !slices.Contains(told, fmt.Sprint(Unlisted, " 504 http://a.test/other?token=REDACTED")) || len(told) != 6 {
		t.Errorf("told %v", told)
	}
}

func TestReplayOfDamagedBlob(t *testing.T) {
	var n atomic.Int64
	w := replayOf(t, echo(&n), func(w *world) { w.get("http://a.test/x") })
	listed := w.s.listed["http://a.test/x"]
	damage := func() {
		path := w.store.Path(listed.Digest)
		if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, []byte(strings.Repeat("x", int(listed.Size))), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	damage()
	resp, body := w.get("http://a.test/x")
	if resp.StatusCode != 504 || !strings.Contains(body, "there is no network") || !strings.Contains(body, "damaged") {
		t.Errorf("offline: %d %q", resp.StatusCode, body)
	}
	if w.store.Has(listed.Digest) {
		t.Error("damaged blob is still there")
	}

	// With a network it is fetched again, and must be the same.
	want := "a.test/x" + plainAnswer
	n.Store(0)
	w = start(t, Options{Store: w.store, Replay: true, Listed: []Entry{listed}, Upstream: upstream(t, echo(&n))})
	if resp, body = w.get("http://a.test/x"); resp.StatusCode != 200 || body != want {
		t.Errorf("healed: %d %q", resp.StatusCode, body)
	}
	damage() // after it was served: found before a byte is sent
	if resp, body = w.get("http://a.test/x"); resp.StatusCode != 502 || !strings.Contains(body, "damaged") {
		t.Errorf("damaged meanwhile: %d %q", resp.StatusCode, body)
	}
	// By now upstream counts 2: other content.
	resp, body = w.get("http://a.test/x")
	if resp.StatusCode != 502 || !strings.Contains(body, "not what the lock file has") {
		t.Errorf("changed: %d %q", resp.StatusCode, body)
	}
	if got := w.events[len(w.events)-1]; got.Kind != Changed {
		t.Errorf("event %+v", got)
	}
	if len(must(w.store.List())) != 0 {
		t.Error("the changed content was kept")
	}
}

// pinned answers for http://pinned.test/ only.
type pinned struct {
	st *store.Store
	n  atomic.Int64
}

func (p *pinned) Resolve(ctx context.Context, url string) (Answer, bool, error) {
	path, ok := strings.CutPrefix(url, "http://pinned.test/")
	if !ok {
		return Answer{}, false, nil
	}
	p.n.Add(1)
	switch path {
	case "gone":
		return Answer{Status: 404}, true, nil
	case "down":
		return Answer{}, true, errors.New("fetch package: mirror is down")
	}
	d, err := p.st.PutBytes(ctx, []byte("pinned "+path))
	return Answer{Digest: d, Header: map[string]string{"Last-Modified": "Mon, 02 Jan 2023 03:04:05 GMT"}}, true, err
}

func TestResolver(t *testing.T) {
	var n atomic.Int64
	st := must(store.Open(t.TempDir()))
	p := &pinned{st: st}
	w := start(t, Options{Store: st, Upstream: upstream(t, echo(&n)), Resolver: p})
	for range 2 {
		for path, want := range map[string]string{
			"file%2b~": "200 pinned file%2b~",
			"gone":     "404 ",
			"down":     "502 cairn: http://pinned.test/down: fetch package: mirror is down\n",
		} {
			if resp, body := w.get("http://pinned.test/" + path); fmt.Sprint(resp.StatusCode, " ", body) != want {
				t.Errorf("%s: %d %q", path, resp.StatusCode, body)
			}
		}
	}
	if n.Load() != 0 || p.n.Load() != 4 { // "down" twice
		t.Errorf("upstream asked %d times, resolver %d times", n.Load(), p.n.Load())
	}
	w.get("http://a.test/x")
	if n.Load() != 1 || len(w.s.Entries()) != 3 {
		t.Errorf("upstream asked %d times, recorded %v", n.Load(), w.s.Entries())
	}
	replay := start(t, Options{Store: st, Replay: true, Listed: w.s.Entries()})
	if resp, body := replay.get("http://pinned.test/gone"); resp.StatusCode != 404 || body != "" {
		t.Errorf("replayed: %d %q", resp.StatusCode, body)
	}
	// Locked but online, with an empty store: the resolver brings it back.
	st2 := must(store.Open(t.TempDir()))
	online := start(t, Options{Store: st2, Replay: true, Listed: w.s.Entries(), Resolver: &pinned{st: st2}})
	if resp, body := online.get("http://pinned.test/file%2b~"); resp.StatusCode != 200 || body != "pinned file%2b~" {
		t.Errorf("locked online: %d %q", resp.StatusCode, body)
	}
}

func TestNewRefusesBadLists(t *testing.T) {
	st := must(store.Open(t.TempDir()))
	good := Entry{URL: "http://a.test/", Status: 200, Digest: store.Of([]byte("x")), Size: 1}
	for name, listed := range map[string][]Entry{
		"twice":         {good, good},
		"bad digest":    {{URL: "u", Status: 200, Digest: "sha256:../../etc", Size: 1}},
		"bad status":    {{URL: "u", Status: 503, Digest: good.Digest, Size: 1}},
		"size of empty": {{URL: "u", Status: 200, Digest: store.Of(nil), Size: 1}},
	} {
		if _, err := New(Options{Store: st, Replay: true, Listed: listed}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(Options{}); err == nil {
		t.Error("accepted without a store")
	}
}

func TestDNS(t *testing.T) {
	w := start(t, Options{})
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", w.dns)
	}}
	got, err := r.LookupHost(t.Context(), "some.name.test")
	if diff := cmp.Diff([]string{"127.0.0.1"}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if ips, err := r.LookupIP(t.Context(), "ip6", "some.name.test"); err == nil {
		t.Errorf("IPv6 lookup = %v", ips)
	}
	if mx, err := r.LookupMX(t.Context(), "some.name.test"); err == nil {
		t.Errorf("MX lookup = %v", mx)
	}
	for name, q := range map[string]string{
		"empty": "", "short": "\x00\x01\x00", "a response": "\x00\x01\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01",
	} {
		if a := answerDNS([]byte(q)); a != nil {
			t.Errorf("%s: answered %q", name, a)
		}
	}
	if a := answerDNS([]byte("\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")); a == nil || a[3]&15 != 1 {
		t.Errorf("no question: %q, want FORMERR", a)
	}
	if a := answerDNS([]byte("\x00\x01\x10\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01")); a == nil || a[3]&15 != 4 {
		t.Errorf("status query: %q, want NOTIMP", a)
	}
}

func FuzzDNS(f *testing.F) {
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, q []byte) {
		if a := answerDNS(q); a != nil && (len(a) < 12 || a[0] != q[0] || a[1] != q[1] || a[2]&0x80 == 0) {
			t.Errorf("answer %q to %q", a, q)
		}
	})
}

// Serve must end and leave nothing behind whatever its clients are doing.
func TestStop(t *testing.T) {
	block := make(chan struct{})
	entered := make(chan struct{})
	w := start(t, Options{Upstream: upstream(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(entered)
		<-block
	}))})
	defer close(block)
	for _, text := range []string{"", "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n", "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", "\x16\x03"} {
		c, err := net.Dial("tcp", "127.0.0.1:"+w.port)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	<-entered
	w.cancel()
	if _, err := net.Dial("tcp", "127.0.0.1:"+w.port); err == nil {
		t.Error("still listening")
	}
}

func tool(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: install %s", name, pkg)
	}
	return path
}
