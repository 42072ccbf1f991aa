package sandbox

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // its C constructor enters namespaces before the Go runtime starts
	"golang.org/x/sys/unix"
)

// A role is what this program is when the package has started it: the text of
// argv[0]. Ordinary arguments never select one.
type role string

const rolePrefix = "cairn-sandbox: "

const (
	roleOuter     role = rolePrefix + "outer"      // first process of the outer namespace, before it has ids
	roleOuterInit role = rolePrefix + "outer init" // the same, as root there; reaps
	roleWorker    role = rolePrefix + "worker"     // the program's own worker
	roleProbe     role = rolePrefix + "probe"      // a worker that only tries what a worker needs
	roleRemove    role = rolePrefix + "remove"     // a worker that removes trees
	roleSession   role = rolePrefix + "session"    // first process of a session; reaps
	roleContainer role = rolePrefix + "container"  // first process of a container; reaps
	roleAgent     role = rolePrefix + "agent"      // starts commands in a session or container
	roleHook      role = rolePrefix + "hook"       // starts one command, and kills what it leaves
)

// containerSelf is where a container sees this program. libcontainer wants a
// path as argv[0], so that there the role is argv[1].
const containerSelf = "/dev/.cairn-sandbox"

func currentRole(args []string) (role, bool) {
	if len(args) > 1 && args[0] == containerSelf {
		return role(args[1]), true
	}
	if len(args) > 0 && strings.HasPrefix(args[0], rolePrefix) {
		return role(args[0]), true
	}
	return "", false
}

// The main goroutine of a part keeps the main thread for itself. Capabilities,
// filters and the parent-death signal belong to a thread; and a goroutine that
// changes its thread's mount namespace, as ours and libcontainer's do, and ends
// without unlocking the thread, would leave the main thread in that namespace
// for good, since the runtime can end every thread but this one.
func init() {
	if _, ok := currentRole(os.Args); ok {
		runtime.LockOSThread()
	}
}

// Main must be called before anything else in main. When the package started
// this process for one of its own parts, Main does that part's work and does
// not return: it runs libcontainer's initialisation (when _LIBCONTAINER_INITPIPE
// is set), the worker (by calling the function given), a session, a container
// or a hook. Else it returns at once.
//
// worker runs in the outer namespace with the connection to its parent; its
// context ends with SIGTERM or SIGINT (see [Worker.Signal]). Its error is what
// [Worker.Wait] returns, as text.
func Main(worker func(ctx context.Context, conn *WorkerConn) error) {
	if os.Getenv("_LIBCONTAINER_INITPIPE") != "" { //nolint:forbidigo // how libcontainer tells its child
		libcontainer.Init()
	}
	r, ok := currentRole(os.Args)
	if !ok {
		return
	}
	os.Exit(play(r, worker)) //nolint:forbidigo // this is the part's main
}

// play runs a role and returns the exit status of the process.
func play(r role, worker func(context.Context, *WorkerConn) error) int {
	switch r {
	case roleOuter:
		return outerMain()
	case roleOuterInit:
		return outerInitMain()
	case roleWorker:
		return workerMain(worker)
	case roleProbe:
		return workerMain(probeWorker)
	case roleRemove:
		return workerMain(removeWorker)
	case roleSession:
		return sessionMain()
	case roleContainer:
		return containerMain()
	case roleAgent:
		return agentMain()
	case roleHook:
		return hookMain()
	}
	fmt.Fprintf(os.Stderr, "sandbox: unknown part %q\n", string(r))
	return 125
}

// offMain runs f on a goroutine that is free to move between threads.
func offMain[T any](f func() T) T {
	result := make(chan T)
	go func() { result <- f() }()
	return <-result
}

// closeInherited marks every descriptor from first on close-on-exec, so that
// nothing of the caller reaches a child by accident.
func closeInherited(first uint) error {
	if err := unix.CloseRange(first, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close inherited descriptors: %w", err)
	}
	return nil
}

// spawn starts this program in another role. files are its descriptors from 0.
// The caller must have locked its thread when the child is to inherit what
// belongs to a thread.
func spawn(r role, args, env []string, files ...*os.File) (*os.Process, error) {
	return spawnFrom(selfExe, r, args, env, files...)
}

const selfExe = "/proc/self/exe"

// spawnFrom is spawn with this program at another path.
func spawnFrom(program string, r role, args, env []string, files ...*os.File) (*os.Process, error) {
	p, err := os.StartProcess(program, slices.Concat([]string{string(r)}, args),
		&os.ProcAttr{Dir: "/", Env: nonNil(env), Files: files})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", strings.TrimPrefix(string(r), rolePrefix), err)
	}
	return p, nil
}

// nonNil keeps os.StartProcess from passing on the environment of this process.
func nonNil(env []string) []string {
	if env == nil {
		return []string{}
	}
	return env
}

// catchSignals keeps every signal from ending this process, which is to be the
// first of a namespace: an init that dies takes everything with it. It is to
// come before anything else can run in the namespace.
func catchSignals() <-chan os.Signal {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	return signals
}

// reap is the life of the first process of a namespace: it waits for every
// child and returns the exit status of main when that has ended. Of the signals
// caught, those given are passed to main; others do nothing.
func reap(main *os.Process, caught <-chan os.Signal, pass ...os.Signal) int {
	go func() {
		for s := range caught {
			if slices.Contains(pass, s) {
				_ = main.Signal(s)
			}
		}
	}()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 125
		case pid == main.Pid:
			return statusOf(ws).Shell()
		}
	}
}
