package sandbox

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Status is how a command ended: by exiting with Code (0..255), or by Signal
// when that is not 0.
type Status struct {
	Code   int
	Signal syscall.Signal
}

// OK reports whether the command exited with status 0.
func (s Status) OK() bool { return s == Status{} }

// Shell is the status as a shell has it in $?: 128+n for signal n.
func (s Status) Shell() int {
	if s.Signal != 0 {
		return 128 + int(s.Signal)
	}
	return s.Code
}

// String is "exit status 1" or "signal: killed".
func (s Status) String() string {
	if s.Signal != 0 {
		return "signal: " + s.Signal.String()
	}
	return fmt.Sprintf("exit status %d", s.Code)
}

func statusOf(ws unix.WaitStatus) Status {
	if ws.Signaled() {
		return Status{Signal: ws.Signal()}
	}
	return Status{Code: ws.ExitStatus()}
}

// ErrEnded reports that a worker, session or container has ended, or was
// closed, so that nothing can run in it any more.
var ErrEnded = errors.New("has ended")

// StartError reports that a part of the sandbox could not be started.
type StartError struct {
	Part string // "worker", "session", "container", "command"
	Step string // what it was doing, such as "mount /proc"
	Err  error
	Hint string // what the user can do; may be empty
}

func (e *StartError) Error() string {
	if e.Step == "" {
		return fmt.Sprintf("start %s: %v", e.Part, e.Err)
	}
	return fmt.Sprintf("start %s: %s: %v", e.Part, e.Step, e.Err)
}

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }

// report is what a part tells the one who started it, once: that it is ready,
// or why not. It is JSON, since the two are different processes.
type report struct {
	Ready bool   `json:",omitempty"`
	Step  string `json:",omitempty"`
	Text  string `json:",omitempty"`
	Errno int    `json:",omitempty"` // so that errors.Is works on the other side
}

// A step is one named action of a start.
type step struct {
	name string
	do   func() error
}

// runSteps does the steps in order and returns the first failure as a report.
func runSteps(steps []step) (report, bool) {
	for _, s := range steps {
		if err := s.do(); err != nil {
			return failed(s.name, err), false
		}
	}
	return report{Ready: true}, true
}

func failed(step string, err error) report {
	r := report{Step: step, Text: err.Error()}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		r.Errno = int(errno)
	}
	return r
}

// error returns the report as an error, or nil when the part is ready.
func (r report) error(part string) error {
	if r.Ready {
		return nil
	}
	err := error(&remoteError{r.Text, syscall.Errno(r.Errno)})
	return &StartError{Part: part, Step: r.Step, Err: err, Hint: hintFor(r.Step, syscall.Errno(r.Errno))}
}

// remoteError is an error of another process.
type remoteError struct {
	text  string
	errno syscall.Errno
}

func (e *remoteError) Error() string { return e.text }

// Unwrap returns the system call's error, if it was one.
func (e *remoteError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}
