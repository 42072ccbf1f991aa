package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Command is a program to run in a session or a container.
type Command struct {
	// Args are the arguments from argv[0] on. A name without a slash is looked
	// up in Env's PATH.
	Args []string
	Env  []string // the whole environment
	Dir  string   // working directory; "" is "/"
	// The standard streams; nil is /dev/null. They are the caller's to close.
	Stdin, Stdout, Stderr *os.File
}

// What can be asked of an agent.
const (
	opRun       = "run"
	opContainer = "container"
	opClose     = "close container"
	opMounts    = "mounts"
	opUnmount   = "unmount"
)

// request is what an agent is asked. With it comes the socket for the answer
// and, for opRun, the three standard streams.
type request struct {
	Op        string
	Job       job           `json:",omitzero"`
	Container ContainerSpec `json:",omitzero"`
	ID        int           `json:",omitempty"`
	Dir       string        `json:",omitempty"`
}

// response is an agent's answer.
type response struct {
	outcome
	ID     int      `json:",omitempty"`
	Mounts []string `json:",omitempty"`
}

// runner is the near end of an agent's control connection. Its methods may be
// called concurrently.
type runner struct {
	mu   sync.Mutex // one message at a time
	conn *net.UnixConn
	part string
	last *os.File // what the part's own processes said; may be nil
}

// ended is the error of a part that is gone, with its last words.
func (r *runner) ended() error {
	if r.last == nil {
		return fmt.Errorf("%s %w", r.part, ErrEnded)
	}
	words := make([]byte, 4096)
	n, _ := r.last.ReadAt(words, 0)
	if n == 0 {
		return fmt.Errorf("%s %w", r.part, ErrEnded)
	}
	return fmt.Errorf("%s %w: %s", r.part, ErrEnded, bytes.TrimSpace(words[:n]))
}

// cancelPatience is how long an agent may take to kill a cancelled command.
const cancelPatience = killPatience + 5*time.Second

// call asks the agent. When ctx ends, the agent is told to stop, and its answer
// is still waited for.
func (r *runner) call(ctx context.Context, q request, streams ...*os.File) (response, []*os.File, error) {
	if err := ctx.Err(); err != nil {
		return response{}, nil, context.Cause(ctx)
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return response{}, nil, err
	}
	defer ours.Close()
	r.mu.Lock()
	err = sendJSON(r.conn, q, append([]*os.File{theirs}, streams...)...)
	r.mu.Unlock()
	_ = theirs.Close()
	if err != nil {
		return response{}, nil, r.ended()
	}
	stop := context.AfterFunc(ctx, func() {
		_ = ours.CloseWrite()
		_ = ours.SetReadDeadline(time.Now().Add(cancelPatience)) //nolint:forbidigo // a deadline for a process, not an input of an image
	})
	defer stop()
	var a response
	files, err := recvJSON(ours, &a)
	switch {
	case ctx.Err() != nil:
		return a, files, context.Cause(ctx)
	case errors.Is(err, io.EOF):
		return a, nil, r.ended()
	case err != nil:
		return a, nil, fmt.Errorf("%s: %w", r.part, err)
	}
	return a, files, nil
}

// Run runs a command to its end and returns how it ended. The command is the
// leader of a process group of its own, and root. Whatever it leaves running
// is killed. When ctx ends, all of it is killed and the error is ctx's cause.
// A command that cannot be started is a *[StartError]; one that fails is not an
// error. Run may be called concurrently.
func (r *runner) Run(ctx context.Context, c Command) (Status, error) {
	streams, closeNull, err := c.streams()
	if err != nil {
		return Status{}, err
	}
	defer closeNull()
	dir := c.Dir
	if dir == "" {
		dir = "/"
	}
	a, files, err := r.call(ctx, request{Op: opRun, Job: job{Args: c.Args, Env: c.Env, Dir: dir}}, streams...)
	closeAll(files)
	// A container's agent may be in the hands of a hook.
	a.Status.Code &= 0xff
	a.Status.Signal &= 0x7f
	if err != nil {
		return a.Status, err
	}
	return a.Status, a.failure("command")
}

func (a response) failure(part string) error {
	if a.Failure == nil {
		return nil
	}
	return a.Failure.error(part)
}

func (c Command) streams() ([]*os.File, func(), error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	out := []*os.File{null, null, null}
	for i, f := range []*os.File{c.Stdin, c.Stdout, c.Stderr} {
		if f != nil {
			out[i] = f
		}
	}
	return out, func() { _ = null.Close() }, nil
}

// MountsBelow lists the mounts strictly below dir that hooks of the session
// have made, deepest first: those of [SessionSpec.Mounts] are left out.
func (s *Session) MountsBelow(dir string) ([]string, error) {
	a, files, err := s.call(context.Background(), request{Op: opMounts, Dir: dir})
	closeAll(files)
	if err != nil {
		return nil, fmt.Errorf("list mounts below %s: %w", dir, err)
	}
	return a.Mounts, a.failure("list of mounts")
}

// UnmountBelow unmounts what [Session.MountsBelow] lists, even if it is in use.
func (s *Session) UnmountBelow(dir string) error {
	a, files, err := s.call(context.Background(), request{Op: opUnmount, Dir: dir})
	closeAll(files)
	if err != nil {
		return fmt.Errorf("unmount below %s: %w", dir, err)
	}
	return a.failure("unmounting")
}
