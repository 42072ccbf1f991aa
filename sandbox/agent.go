package sandbox

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// agent serves the requests of one control connection. It runs in a session,
// where it also starts containers, or in a container.
type agent struct {
	inContainer bool
	own         map[int]bool // ids of the mounts that were there at the start

	mu         sync.Mutex
	containers map[int]*contained
	lastID     int
}

const argInContainer = "in container"

func agentMain() int {
	// A hook of the same uid must not read or change this process.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 125
	}
	conn, err := controlConn()
	if err != nil {
		return 125
	}
	a := &agent{inContainer: len(os.Args) > 1 && os.Args[len(os.Args)-1] == argInContainer, containers: map[int]*contained{}}
	if mounts, err := mountTable(); err == nil {
		a.own = map[int]bool{}
		for _, m := range mounts {
			a.own[m.id] = true
		}
	}
	return offMain(func() int {
		a.serve(conn)
		return 0
	})
}

// serve answers until the other side is gone, which is the end of the session
// or container.
func (a *agent) serve(conn *net.UnixConn) {
	for {
		var q request
		files, err := recvJSON(conn, &q)
		if err != nil {
			return
		}
		go a.answer(q, files)
	}
}

func (a *agent) answer(q request, files []*os.File) {
	defer func() { closeAll(files) }()
	if len(files) == 0 {
		return
	}
	reply, err := connOf(files[0])
	if err != nil {
		return
	}
	defer reply.Close()
	files = files[1:]
	r, out := a.do(q, reply, files)
	_ = sendJSON(reply, r, out...)
	closeAll(out)
}

// do carries out one request. Files in its answer are closed after sending.
func (a *agent) do(q request, reply *net.UnixConn, files []*os.File) (response, []*os.File) {
	var r response
	var out []*os.File
	var err error
	switch {
	case q.Op == opRun && len(files) == 3:
		q.Job.Filter = !a.inContainer
		r.outcome, err = runHook(q.Job, reply, files)
	case q.Op == opContainer && !a.inContainer:
		r.ID, out, err = a.startContainer(q.Container)
	case q.Op == opClose && !a.inContainer:
		err = a.closeContainer(q.ID)
	case q.Op == opMounts && !a.inContainer:
		r.Mounts, err = a.mountsBelow(q.Dir)
	case q.Op == opUnmount && !a.inContainer:
		err = a.unmountBelow(q.Dir)
	default:
		err = fmt.Errorf("unknown request %q", q.Op)
	}
	if err != nil {
		var s *StartError
		f := failed("", err)
		if errors.As(err, &s) {
			f = failed(s.Step, s.Err)
		}
		r.Failure = &f
	}
	return r, out
}

// runHook starts the process that runs the command, and passes on the
// caller's hanging up.
func runHook(j job, reply *net.UnixConn, streams []*os.File) (outcome, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return outcome{}, err
	}
	defer ours.Close()
	p, err := spawn(roleHook, nil, nil, streams[0], streams[1], streams[2], theirs)
	_ = theirs.Close()
	if err != nil {
		return outcome{}, err
	}
	if err := sendJSON(ours, j); err != nil {
		_ = p.Kill()
		_, _ = p.Wait()
		return outcome{}, err
	}
	go func() {
		var none struct{}
		_, _ = recvJSON(reply, &none) // never comes: it is the hanging up
		_ = ours.CloseWrite()
	}()
	var o outcome
	files, err := recvJSON(ours, &o)
	closeAll(files)
	state, _ := p.Wait()
	if err != nil {
		return outcome{Status: Status{Signal: unix.SIGKILL}}, fmt.Errorf("the process that watched over it was killed (%s)", state)
	}
	return o, nil
}
