package build

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"

	"cairn/sandbox"
)

// hostService answers the worker. Its exported methods are what net/rpc calls.
type hostService struct {
	p      *parent
	ctx    context.Context //nolint:containedctx // net/rpc has no other way to hand it to methods
	worker *sandbox.Worker
	done   chan Done

	mu     sync.Mutex
	stop   context.CancelFunc
	served sync.WaitGroup
}

// Job tells the worker what to do.
func (s *hostService) Job(_ None, job *Job) error {
	*job = s.p.job()
	return nil
}

// Events passes on what the worker tells.
func (s *hostService) Events(events []Event, _ *None) error {
	for _, e := range events {
		s.p.tell(e)
	}
	return nil
}

// Done takes the worker's result.
func (s *hostService) Done(d Done, _ *None) error {
	s.done <- d
	return nil
}

// Bootstrap resolves, and fetches, Debian packages.
func (s *hostService) Bootstrap(q DebianQuestion, a *DebianAnswer) error {
	packages, err := s.p.inputs.debian(s.ctx, q)
	a.Packages, a.Failure = packages, asFailure(err)
	return nil
}

// Image pulls a base image.
func (s *hostService) Image(q ImageQuestion, a *ImageAnswer) error {
	image, err := s.p.inputs.image(s.ctx, q.Reference)
	if err != nil {
		a.Failure = asFailure(err)
		return nil
	}
	a.Image = *image
	return nil
}

// Serve takes the session's listening sockets and answers on them until the
// worker ends.
func (s *hostService) Serve(_ None, a *Refusal) error {
	a.Failure = asFailure(s.serve())
	return nil
}

func (s *hostService) serve() error {
	_, files, err := sandbox.RecvFiles(s.worker.FDs())
	if err != nil {
		return fail(err, "take over the hooks' network")
	}
	defer closeAll(files)
	listeners, packets, err := sockets(files)
	if err != nil {
		return fail(err, "take over the hooks' network")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithCancel(s.ctx)
	s.stop = cancel
	s.served.Add(1)
	go func() {
		defer s.served.Done()
		_ = s.p.inputs.server.Serve(ctx, listeners, packets) // ends with ctx
	}()
	return nil
}

// close ends the hooks' network.
func (s *hostService) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil {
		s.stop()
		s.served.Wait()
	}
}

// sockets are what the worker sends: first the datagram socket for DNS, then
// listening stream sockets.
func sockets(files []*os.File) ([]net.Listener, net.PacketConn, error) {
	if len(files) < 2 {
		return nil, nil, fmt.Errorf("%d sockets came", len(files))
	}
	packets, err := net.FilePacketConn(files[0])
	if err != nil {
		return nil, nil, err
	}
	var listeners []net.Listener
	for _, f := range files[1:] {
		l, err := net.FileListener(f)
		if err != nil {
			return nil, nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, packets, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
