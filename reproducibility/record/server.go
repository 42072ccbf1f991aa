package record

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	maxConns     = 512       // connections served at a time
	maxHead      = 64 << 10  // bytes of a request's head
	writeTimeout = time.Hour // for one response
	tlsHandshake = 0x16      // first byte of a TLS record with a client hello (RFC 8446 5.1)
)

// Serve answers on the given listeners and, if it is not nil, DNS queries on
// pc, until ctx is done; then it closes them all, lets nothing unfinished
// behind, and returns nil. It may be called once.
func (s *Server) Serve(ctx context.Context, listeners []net.Listener, pc net.PacketConn) error {
	group, ctx := errgroup.WithContext(ctx)
	in := &inlet{conns: make(chan net.Conn), closed: make(chan struct{}), slots: make(chan struct{}, maxConns)}
	srv := s.httpServer(ctx, in)
	for _, l := range listeners {
		group.Go(func() error { return s.accept(ctx, l, in) })
	}
	if pc != nil {
		group.Go(func() error { return serveDNS(ctx, pc) })
	}
	group.Go(func() error {
		if err := srv.Serve(in); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve hooks' requests: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		for _, l := range listeners {
			_ = l.Close()
		}
		if pc != nil {
			_ = pc.Close()
		}
		return srv.Close()
	})
	err := group.Wait()
	in.work.wait()
	return err
}

func (s *Server) httpServer(ctx context.Context, in *inlet) *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if in.work.enter() {
				defer in.work.leave()
				s.handle(ctx, w, r, in)
			}
		}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, connOf(c))
		},
		ReadHeaderTimeout: s.o.Timeout,
		IdleTimeout:       s.o.Timeout,
		WriteTimeout:      writeTimeout,
		MaxHeaderBytes:    maxHead,
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
}

type connKey struct{}

// accept takes connections from l until it is closed.
func (s *Server) accept(ctx context.Context, l net.Listener, in *inlet) error {
	for {
		select {
		case in.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := l.Accept()
		if err != nil {
			<-in.slots
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil //nolint:nilerr // how serving ends
			}
			return fmt.Errorf("accept hooks' connection: %w", err)
		}
		in.sniff(ctx, s, &conn{Conn: c, in: bufio.NewReader(c), free: func() { <-in.slots }})
	}
}

// A conn is a connection whose first bytes can be looked at.
type conn struct {
	net.Conn
	in     *bufio.Reader
	tunnel string // host and port that CONNECT named, "" without
	once   sync.Once
	free   func() // called when it is closed
}

func (c *conn) Read(p []byte) (int, error) { return c.in.Read(p) }

func (c *conn) Close() error {
	c.once.Do(c.free)
	return c.Conn.Close()
}

// connOf returns the conn under a connection that the inlet delivered.
func connOf(c net.Conn) *conn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	under, ok := c.(*conn)
	if !ok {
		return &conn{Conn: c}
	}
	return under
}

// An inlet is the net.Listener of the HTTP server: it delivers connections of
// which it is known whether they are TLS.
type inlet struct {
	conns  chan net.Conn
	slots  chan struct{} // one element for each open connection
	work   gate          // requests and sniffers under way
	once   sync.Once
	closed chan struct{}
}

func (in *inlet) Accept() (net.Conn, error) {
	select {
	case c := <-in.conns:
		return c, nil
	case <-in.closed:
		return nil, net.ErrClosed
	}
}

func (in *inlet) Close() error {
	in.once.Do(func() { close(in.closed) })
	return nil
}

// Addr returns no real address: the inlet has many.
func (in *inlet) Addr() net.Addr { return &net.TCPAddr{} }

// sniff looks at the first byte of c and delivers it, in the background.
func (in *inlet) sniff(ctx context.Context, s *Server, c *conn) {
	if !in.work.enter() {
		_ = c.Close()
		return
	}
	go func() {
		defer in.work.leave()
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		defer stop()
		timer := time.AfterFunc(s.o.Timeout, func() { _ = c.Close() })
		first, err := c.in.Peek(1)
		if !timer.Stop() || err != nil {
			_ = c.Close()
			return
		}
		var out net.Conn = c
		if first[0] == tlsHandshake {
			out = tls.Server(c, s.tlsConfig(c))
		}
		select {
		case in.conns <- out:
		case <-in.closed:
			_ = c.Close()
		}
	}()
}

// A gate counts what goes on, until it is shut.
type gate struct {
	mu   sync.Mutex
	shut bool
	wg   sync.WaitGroup
}

// enter reports whether the gate is open; if so, leave must be called.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return false
	}
	g.wg.Add(1)
	return true
}

func (g *gate) leave() { g.wg.Done() }

// wait shuts the gate and waits until all have left.
func (g *gate) wait() {
	g.mu.Lock()
	g.shut = true
	g.mu.Unlock()
	g.wg.Wait()
}

func (s *Server) tlsConfig(c *conn) *tls.Config {
	return &tls.Config{
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			name := strings.TrimSuffix(strings.ToLower(hello.ServerName), ".")
			if name == "" { // an IP address, or a very old client
				name = tunnelHost(c)
			}
			return s.ca.forHost(name)
		},
	}
}

// tunnelHost returns the host that the client believes to be connected to.
func tunnelHost(c *conn) string {
	address := c.tunnel
	if address == "" {
		address = c.LocalAddr().String()
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return strings.ToLower(host)
}
