package build

import (
	"net"
	"net/rpc"
	"slices"
	"sync"
	"testing"
	"time"
)

// slowParent takes events one call at a time, when it is let.
type slowParent struct {
	begun, let chan struct{}

	mu   sync.Mutex
	text []string
}

// Events is what the worker calls.
func (p *slowParent) Events(events []Event, _ *None) error {
	p.begun <- struct{}{}
	<-p.let
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range events {
		p.text = append(p.text, e.Text)
	}
	return nil
}

// TestEventsArrive: what is told while the parent is busy reaches it without
// anything further being told, in order; flush waits for that.
func TestEventsArrive(t *testing.T) {
	near, far := net.Pipe()
	parent := &slowParent{begun: make(chan struct{}), let: make(chan struct{})}
	server := rpc.NewServer()
	if err := server.RegisterName("Host", parent); err != nil {
		t.Fatal(err)
	}
	go server.ServeConn(far)
	h := newHost(rpc.NewClient(near), nil)
	defer h.client.Close()

	h.tell(Event{Text: "a"})
	<-parent.begun
	h.tell(Event{Text: "b"})
	h.tell(Event{Text: "c"})
	parent.let <- struct{}{}
	select {
	case <-parent.begun:
	case <-time.After(5 * time.Minute):
		t.Fatal("what was told while the parent was busy never came")
	}
	parent.let <- struct{}{}
	h.flush()
	parent.mu.Lock()
	defer parent.mu.Unlock()
	if want := []string{"a", "b", "c"}; !slices.Equal(parent.text, want) {
		t.Errorf("the parent has %q, want %q", parent.text, want)
	}
}
