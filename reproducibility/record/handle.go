package record

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// minEarly is the smallest body, in bytes, that is passed on while it comes in:
// clients give up on servers that are silent for long.
const minEarly = 1 << 20

// handle answers one request of a client. What it starts goes on until ctx is
// done, even if the client does not wait.
func (s *Server) handle(ctx context.Context, w http.ResponseWriter, r *http.Request, in *inlet) {
	c, _ := r.Context().Value(connKey{}).(*conn)
	w.Header()["Date"] = nil
	if r.Method == http.MethodConnect {
		s.tunnel(ctx, w, r, in, c)
		return
	}
	u, err := target(r, c)
	if err != nil {
		s.deny(w, r, Redact(r.RequestURI), fail(Refused, http.StatusBadRequest, "%w", err))
		return
	}
	key := redact(u)
	if err := allowed(r); err != nil {
		s.deny(w, r, key, err)
		return
	}
	q := request{url: u, key: key, header: upstreamHeader(r.Header)}
	var early *withholder
	if isWhole(r) {
		q.early = func(e Entry) io.Writer {
			if e.Size < minEarly {
				return nil
			}
			early = &withholder{w: s.sendHead(w, e)}
			return early
		}
	}
	f, first := s.response(ctx, q)
	s.report(r.Method, key, f, first)
	switch {
	case early != nil && f.err == nil:
		early.release()
	case early != nil:
		// The client has got less than the announced length, which makes
		// the HTTP server close the connection.
	case f.err != nil:
		s.sendFailure(w, key, f.err)
	default:
		s.send(w, r, f.entry)
	}
}

// A withholder passes on all but the last byte that it was given, so that
// nobody has the whole content before it is in the store.
type withholder struct {
	w    io.Writer
	last []byte
}

func (h *withholder) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if _, err := h.w.Write(h.last); err != nil {
		return 0, err
	}
	h.last = append(h.last[:0], p[len(p)-1])
	n, err := h.w.Write(p[:len(p)-1])
	if err != nil {
		return n, err
	}
	return len(p), nil
}

func (h *withholder) release() {
	_, _ = h.w.Write(h.last) // the client may have gone
}

// allowed judges the form of a request. Bodies are refused outright, so that
// there is no question of where one ends.
func allowed(r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return fail(Refused, http.StatusMethodNotAllowed, "method %s cannot be recorded and replayed; only GET and HEAD can", r.Method)
	}
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		return fail(Refused, http.StatusBadRequest, "a %s request with a body cannot be recorded", r.Method)
	}
	if r.Header.Get("Upgrade") != "" && strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return fail(Refused, http.StatusBadRequest, "a web socket cannot be recorded")
	}
	return nil
}

// notForwarded are headers that stay between client and server (RFC 9110
// 7.6.1), ask for part of the content, or choose its encoding.
var notForwarded = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"Proxy-Authorization", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since",
	"If-Range", "Range", "Accept-Encoding", "Content-Length", "Cache-Control", "Pragma",
}

// upstreamHeader returns the headers to ask upstream with.
func upstreamHeader(h http.Header) http.Header {
	out := h.Clone()
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			out.Del(textproto.TrimString(name))
		}
	}
	for _, name := range notForwarded {
		out.Del(name)
	}
	out.Set("Accept-Encoding", "identity")
	return out
}

// isWhole reports whether r wants the whole content, unconditionally.
func isWhole(r *http.Request) bool {
	for _, name := range []string{"Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if r.Header.Get(name) != "" {
			return false
		}
	}
	return r.Method == http.MethodGet
}

// tunnel answers CONNECT: what comes through the tunnel is served here.
func (s *Server) tunnel(ctx context.Context, w http.ResponseWriter, r *http.Request, in *inlet, c *conn) {
	_, port, err := net.SplitHostPort(r.RequestURI)
	if err != nil || port == "" || c.tunnel != "" {
		s.deny(w, r, "CONNECT", fail(Refused, http.StatusBadRequest, "CONNECT needs one host and port"))
		return
	}
	raw, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.deny(w, r, "CONNECT", fail(Refused, http.StatusBadRequest, "tunnel: %w", err))
		return
	}
	if _, err := io.WriteString(raw, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		_ = raw.Close()
		return
	}
	// The deadlines of the request that has just ended are not the tunnel's.
	_ = raw.SetDeadline(time.Time{})
	in.sniff(ctx, s, &conn{
		Conn: raw, in: bufio.NewReader(buffered.Reader), tunnel: r.RequestURI, free: func() {},
	})
}

// report tells of a response that nobody has asked for before.
func (s *Server) report(method, key string, f *flight, first bool) {
	if !first {
		return
	}
	e := Event{Kind: Served, Method: method, URL: key, Status: f.entry.Status, Size: f.entry.Size, Err: f.err}
	var why *failure
	switch {
	case errors.As(f.err, &why):
		e.Kind, e.Status = why.kind, why.status
	case f.err != nil:
		e.Kind, e.Status = Failed, http.StatusBadGateway
	case !isKept(f.entry.Status):
		e.Kind, e.Err = Failed, fmt.Errorf("upstream answered with status %d", f.entry.Status)
	case f.fresh:
		e.Kind = Recorded
	}
	s.tell(e)
}

// deny reports and sends a refusal, and closes the connection, of which the
// next bytes may belong to what was refused.
func (s *Server) deny(w http.ResponseWriter, r *http.Request, key string, err error) {
	w.Header().Set("Connection", "close")
	status := s.sendFailure(w, key, err)
	s.tell(Event{Kind: Refused, Method: r.Method, URL: key, Status: status, Err: err})
}

// sendFailure sends why there is no response, and returns the status.
func (s *Server) sendFailure(w http.ResponseWriter, key string, err error) int {
	status := http.StatusBadGateway
	var f *failure
	if errors.As(err, &f) {
		status = f.status
	}
	text := fmt.Sprintf("cairn: %s: %v\n", key, err)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // the client may have gone
	return status
}

// setHeaders sets the headers of e as the response's, and no others.
func setHeaders(w http.ResponseWriter, e Entry) {
	h := w.Header()
	h["Content-Type"] = nil // not to be guessed
	for _, name := range KeptHeaders {
		if v, ok := e.Header[name]; ok {
			h.Set(name, v)
		}
	}
}

// sendHead sends all of a response but its body, for which it returns a writer.
func (s *Server) sendHead(w http.ResponseWriter, e Entry) io.Writer {
	setHeaders(w, e)
	w.Header().Set("Content-Length", strconv.FormatInt(e.Size, 10))
	w.WriteHeader(e.Status)
	return w
}

// send sends the response e, or what r wants of it.
func (s *Server) send(w http.ResponseWriter, r *http.Request, e Entry) {
	if e.isEmpty() {
		s.sendContent(w, r, e, strings.NewReader(""))
		return
	}
	f, _, err := s.o.Store.OpenVerified(e.Digest)
	if err != nil {
		// Nothing of it was sent. It has left the store; so that a next
		// request may bring it back, it is not remembered either.
		s.forgetDamaged(e)
		s.sendFailure(w, e.URL, fail(Failed, http.StatusBadGateway, "%w", err))
		s.tell(Event{Kind: Failed, Method: r.Method, URL: e.URL, Status: http.StatusBadGateway, Err: err})
		return
	}
	defer f.Close()
	s.sendContent(w, r, e, f)
}

// forgetDamaged lets a replayed response be obtained again. A recorded one has
// been promised for the build and cannot be had a second time.
func (s *Server) forgetDamaged(e Entry) {
	if !s.o.Replay {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.flights, e.URL)
}

func (s *Server) sendContent(w http.ResponseWriter, r *http.Request, e Entry, content io.ReadSeeker) {
	if e.Status == http.StatusOK {
		setHeaders(w, e)
		modified, err := http.ParseTime(e.Header["Last-Modified"])
		if err != nil {
			modified = time.Time{}
		}
		http.ServeContent(w, r, "", modified, content)
		return
	}
	body := s.sendHead(w, e)
	if r.Method != http.MethodHead {
		_, _ = io.Copy(body, content) // the client may have gone
	}
}
