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
	pending *rpc.Call
	queue   []Event
}

func newHost(conn *sandbox.WorkerConn) *host {
	return &host{client: rpc.NewClient(conn.RPC), conn: conn}
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

// tell passes an event on. It waits only when the parent is slow to take them,
// and never loses the order.
func (h *host) tell(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.queue = append(h.queue, e)
	if h.pending != nil && len(h.queue) < 256 {
		select {
		case <-h.pending.Done:
			h.pending = nil
		default:
			return
		}
	}
	h.send()
}

// flush waits until the parent has every event.
func (h *host) flush() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.send()
	if h.pending != nil {
		<-h.pending.Done
		h.pending = nil
	}
}

// send hands the queue over, after the batch before it was taken.
func (h *host) send() {
	if h.pending != nil {
		<-h.pending.Done
		h.pending = nil
	}
	if len(h.queue) == 0 {
		return
	}
	h.pending = h.client.Go(askEvents, h.queue, &None{}, make(chan *rpc.Call, 1))
	h.queue = nil
}

// Refusal is an answer that says only whether something went wrong.
type Refusal struct{ Failure *Failure }
