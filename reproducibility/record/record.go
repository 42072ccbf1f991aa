package record

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"cairn/reproducibility/store"
)

// KeptHeaders are the response headers that are kept and served, in their
// canonical spelling.
var KeptHeaders = []string{"Content-Encoding", "Content-Type", "Etag", "Last-Modified", "Location"}

// An Entry is the response to a URL.
type Entry struct {
	URL    string            // see [Redact]; unique in a list
	Status int               // 200..499
	Digest store.Digest      // of the body
	Size   int64             // of the body, bytes
	Header map[string]string // some of KeptHeaders
}

// An Answer is what a [Resolver] says of a URL.
type Answer struct {
	Status int               // 0 means 200
	Digest store.Digest      // of a body that is in the store by now; "" for an empty body
	Header map[string]string // some of KeptHeaders
}

// A Resolver answers for URLs whose content is known by other means. It is
// called from several goroutines, once for a URL while a response is wanted.
type Resolver interface {
	// Resolve reports whether the URL is its to answer for; if so, upstream
	// is not asked, whatever the answer or error is.
	Resolve(ctx context.Context, url string) (a Answer, handled bool, err error)
}

// EventKind says what an [Event] is about.
type EventKind uint8

// The kinds of events.
const (
	Recorded EventKind = iota // a response came in and was kept
	Served                    // a listed response was served for the first time
	Refused                   // a request was against the rules
	Unlisted                  // a URL is not in the list being replayed
	Failed                    // there is no response, or one that is not kept
	Changed                   // a listed URL has other content now
)

// An Event tells what happened to a request.
type Event struct {
	Kind   EventKind
	Method string
	URL    string // redacted
	Status int    // as sent to the client
	Size   int64  // of Recorded and Served: bytes of the body
	Err    error  // of the other kinds
}

// Options say how a [Server] works. Store is required.
type Options struct {
	Store *store.Store

	// Upstream makes requests on behalf of hooks. It must not follow
	// redirects. With nil nothing is fetched. Whether a host name leads to
	// this machine is for its dialer to judge: see [RefuseLocal].
	Upstream http.RoundTripper

	Resolver Resolver    // asked first, nil for none
	Events   func(Event) // told one at a time, nil for nobody

	Replay bool    // answer with Listed only
	Listed []Entry // unique URLs

	MaxBody    int64         // bytes of a body at most, 0 for 16 GiB
	Timeout    time.Duration // for a client's header, and for upstream's next byte; 0 for 2 minutes
	AllowLocal bool          // let hooks name this machine (localhost, 127.0.0.0/8, 169.254.0.0/16 …)
}

const (
	defaultMaxBody = 16 << 30
	defaultTimeout = 2 * time.Minute
)

// A Server answers hooks' requests. See the package's comment.
type Server struct {
	o  Options
	ca *authority

	events sync.Mutex // held while Options.Events runs

	mu      sync.Mutex
	flights map[string]*flight // by redacted URL
	listed  map[string]Entry   // by redacted URL
}

// New returns a server that is to be started with [Server.Serve].
func New(o Options) (*Server, error) {
	if o.Store == nil {
		return nil, errors.New("new recording server: no store")
	}
	o.MaxBody = cmp.Or(o.MaxBody, defaultMaxBody)
	o.Timeout = cmp.Or(o.Timeout, defaultTimeout)
	ca, err := newAuthority()
	if err != nil {
		return nil, fmt.Errorf("new recording server: %w", err)
	}
	s := &Server{o: o, ca: ca, flights: map[string]*flight{}, listed: map[string]Entry{}}
	for _, e := range o.Listed {
		if _, twice := s.listed[e.URL]; twice {
			return nil, fmt.Errorf("new recording server: %s is listed twice", e.URL)
		}
		if !e.Digest.Valid() || e.Status < 200 || e.Status > 499 || e.isEmpty() != (e.Size == 0) {
			return nil, fmt.Errorf("new recording server: entry of %s is not valid", e.URL)
		}
		s.listed[e.URL] = e
	}
	return s, nil
}

// CAPEM returns the certificate, in PEM form, that clients must trust. It is
// another one for every server.
func (s *Server) CAPEM() []byte { return s.ca.pem() }

// Entries returns the responses that were served, sorted by URL.
func (s *Server) Entries() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Entry
	for _, f := range s.flights {
		if f.kept() {
			all = append(all, f.entry.recorded())
		}
	}
	slices.SortFunc(all, func(a, b Entry) int { return cmp.Compare(a.URL, b.URL) })
	return all
}

// recorded returns the entry in the form that may be written down.
func (e Entry) recorded() Entry {
	e.Header = maps.Clone(e.Header)
	if l, ok := e.Header["Location"]; ok {
		e.Header["Location"] = Redact(l)
	}
	return e
}

func (s *Server) tell(e Event) {
	if s.o.Events == nil {
		return
	}
	s.events.Lock()
	defer s.events.Unlock()
	s.o.Events(e)
}
