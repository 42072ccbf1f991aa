package build

import (
	"context"
	"net/rpc"
	"sync"

	"cairn/sandbox"
)

// The worker's questions to its parent, as net/rpc methods of "Host".
const (
	askJob       = "Host.Job"
	askBootstrap = "Host.Bootstrap"
	askImage     = "Host.Image"
	askServe     = "Host.Serve"
	askEvents    = "Host.Events"
	askDone      = "Host.Done"
)

// None is an empty question or answer.
type None struct{ Unused bool }

// host is the worker's end of the connection to its parent.
type host struct {
	client *rpc.Client
	conn   *sandbox.WorkerConn

	mu      sync.Mutex
	changed *sync.Cond // of what follows
	queue   []Event
	sending bool // a goroutine empties the queue
}

func newHost(client *rpc.Client, conn *sandbox.WorkerConn) *host {
	h := &host{client: client, conn: conn}
	h.changed = sync.NewCond(&h.mu)
	return h
}

// ask puts a question and waits for the answer. What failed in the parent is
// in the answer's own Failure field: an error here means that it is gone.
func (h *host) ask(ctx context.Context, method string, question, answer any) error {
	call := h.client.Go(method, question, answer, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		return call.Error
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// maxQueue is how many events may wait for the parent.
const maxQueue = 256

// tell passes an event on, after those before it. It waits only when the
// parent is slow to take them.
func (h *host) tell(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.queue) >= maxQueue {
		h.changed.Wait()
	}
	h.queue = append(h.queue, e)
	if !h.sending {
		h.sending = true
		go h.send()
	}
}

// flush waits until the parent has every event.
func (h *host) flush() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.sending {
		h.changed.Wait()
	}
}

// send hands over what waits, in batches as large as the parent is slow, until
// nothing does.
func (h *host) send() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.queue) > 0 {
		events := h.queue
		h.queue = nil
		h.mu.Unlock()
		_ = h.client.Call(askEvents, events, &None{}) // fails when the parent is gone, and the worker with it
		h.mu.Lock()
		h.changed.Broadcast()
	}
	h.sending = false
	h.changed.Broadcast()
}

// Refusal is an answer that says only whether something went wrong.
type Refusal struct{ Failure *Failure }
