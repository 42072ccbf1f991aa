package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"cairn/sandbox/idmap"
)

// WorkerSpec says how a worker starts.
type WorkerSpec struct {
	Map  idmap.Map // from [Preflight]
	Host Host      // the one that was given to [Preflight]
	Env  []string  // the worker's whole environment
	// Files appear as [WorkerConn.Files] in the worker. The caller may close
	// its own after StartWorker returns.
	Files []*os.File
	// Stderr is the worker's standard error; nil discards it. Its standard
	// input is empty and its standard output goes nowhere.
	Stderr *os.File
}

// Worker is the parent's end of a running worker.
type Worker struct {
	rpc, fds *net.UnixConn
	process  *os.Process

	done chan struct{} // closed when the process has been waited for
	err  error         // valid after done
}

// Descriptors of the outer init and, but for the third, of the worker.
const (
	fdRPC    = 3
	fdFiles  = 4
	fdReport = 5
	fdExtra  = 6
)

// StartWorker starts the worker in the outer namespace: user, mount, process
// id and cgroup namespaces of its own, the host's network, a private mount
// table, a fresh /proc and the cgroup2 file system on /sys/fs/cgroup. It runs
// the function given to [Main].
//
// The worker and everything below it die with this process, however that ends.
// ctx bounds the start only. The error is a *[StartError].
func StartWorker(ctx context.Context, s WorkerSpec) (*Worker, error) {
	return startOuter(ctx, roleWorker, s)
}

func startOuter(ctx context.Context, r role, s WorkerSpec) (_ *Worker, err error) {
	w := &Worker{done: make(chan struct{})}
	var theirs [3]*os.File
	defer func() {
		closeAll(theirs[:])
		if err != nil {
			w.close()
		}
	}()
	var reports *net.UnixConn
	for i, c := range []**net.UnixConn{&w.rpc, &w.fds, &reports} {
		if *c, theirs[i], err = socketpair(); err != nil {
			return nil, &StartError{Part: "worker", Err: err}
		}
	}
	defer reports.Close()
	cmd, closeNull, err := outerCommand(r, s, theirs[:])
	if err != nil {
		return nil, &StartError{Part: "worker", Err: err}
	}
	defer closeNull()
	if err := w.start(cmd, reports); err != nil {
		return nil, err
	}
	closeAll(theirs[:])
	clear(theirs[:])
	if err := w.admit(ctx, s, reports); err != nil {
		_ = w.Kill()
		_ = w.Wait()
		return nil, err
	}
	return w, nil
}

func outerCommand(r role, s WorkerSpec, sockets []*os.File) (*exec.Cmd, func(), error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	cmd := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{string(roleOuter), string(r), strconv.Itoa(len(s.Files))},
		Env:        nonNil(s.Env),
		Dir:        "/",
		Stdin:      null,
		Stdout:     null,
		Stderr:     null,
		ExtraFiles: slices.Concat(sockets, s.Files),
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | unix.CLONE_NEWCGROUP,
			Pdeathsig:  syscall.SIGKILL,
			Setsid:     true,
		},
	}
	if s.Stderr != nil {
		cmd.Stderr = s.Stderr
	}
	return cmd, func() { _ = null.Close() }, nil
}

// start clones the process. The parent-death signal counts the thread that
// cloned as the parent, so that this thread lives as long as the child.
func (w *Worker) start(cmd *exec.Cmd, reports *net.UnixConn) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		w.err = workerError(cmd.Wait(), cmd.ProcessState)
		close(w.done)
	}()
	if err := <-started; err != nil {
		_ = reports.Close()
		var errno syscall.Errno
		errors.As(err, &errno)
		return &StartError{Part: "worker", Step: stepClone, Err: err, Hint: hintFor(stepClone, errno)}
	}
	w.process = cmd.Process
	return nil
}

func workerError(err error, state *os.ProcessState) error {
	if err == nil {
		return nil
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return fmt.Errorf("worker %w: signal: %s", ErrEnded, ws.Signal())
	}
	return fmt.Errorf("worker: %w", err)
}

// admit gives the new process its ids, lets it go on and waits until it is
// ready. Whatever goes wrong, it is the caller that kills it.
func (w *Worker) admit(ctx context.Context, s WorkerSpec, reports *net.UnixConn) error {
	stop := context.AfterFunc(ctx, func() { _ = w.process.Kill() })
	defer stop()
	err := w.letIn(ctx, s, reports)
	if ctx.Err() != nil { // whatever the killed process made fail
		return &StartError{Part: "worker", Err: context.Cause(ctx)}
	}
	return err
}

func (w *Worker) letIn(ctx context.Context, s WorkerSpec, reports *net.UnixConn) error {
	if err := writeMaps(ctx, w.process.Pid, s); err != nil {
		return err
	}
	if err := sendJSON(reports, struct{}{}); err != nil {
		return &StartError{Part: "worker", Err: err}
	}
	return recvReport(reports).error("worker")
}

// writeMaps sets the ids of a new user namespace: root by writing them, others
// with newuidmap(1) and newgidmap(1).
func writeMaps(ctx context.Context, pid int, s WorkerSpec) error {
	for _, m := range []struct {
		file, tool string
		extents    []idmap.Extent
	}{
		{"uid_map", s.Host.NewUIDMap, s.Map.UID},
		{"gid_map", s.Host.NewGIDMap, s.Map.GID},
	} {
		var err error
		if s.Host.UID == 0 {
			err = os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), m.file), []byte(idmap.Text(m.extents)), 0)
		} else {
			err = runMapTool(ctx, m.tool, pid, m.extents)
		}
		if err != nil {
			return &StartError{Part: "worker", Step: stepMap + m.file, Err: err, Hint: hintFor(stepMap, 0)}
		}
	}
	return nil
}

func runMapTool(ctx context.Context, tool string, pid int, extents []idmap.Extent) error {
	if tool == "" {
		return exec.ErrNotFound
	}
	cmd := exec.CommandContext(ctx, tool, slices.Concat([]string{strconv.Itoa(pid)}, idmap.Args(extents))...)
	cmd.Env = []string{"LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(tool), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Conn is the stream to the worker's [WorkerConn.RPC].
func (w *Worker) Conn() *net.UnixConn { return w.rpc }

// FDs is the stream to the worker's [WorkerConn.FDs], for [SendFiles] and
// [RecvFiles].
func (w *Worker) FDs() *net.UnixConn { return w.fds }

// Signal sends SIGTERM or SIGINT to the worker alone, whose context then ends;
// other signals, but for SIGKILL, do nothing.
func (w *Worker) Signal(s os.Signal) error { return w.process.Signal(s) }

// Kill kills the worker and everything below it.
func (w *Worker) Kill() error { return w.process.Kill() }

// Wait waits until the worker and everything below it has ended, closes the
// connections and returns how the worker ended. It may be called more than once.
func (w *Worker) Wait() error {
	<-w.done
	w.close()
	return w.err
}

func (w *Worker) close() {
	for _, c := range []*net.UnixConn{w.rpc, w.fds} {
		if c != nil {
			_ = c.Close()
		}
	}
}

// WorkerConn is the worker's end.
type WorkerConn struct {
	RPC, FDs *net.UnixConn
	Files    []*os.File // WorkerSpec.Files
}

// outerMain is the first process of the outer namespace while it has no ids
// yet. When the parent has written them it executes itself again, which makes
// it root there with every capability. Its arguments are the worker's role and
// the number of the worker's extra files.
func outerMain() int {
	extra, reports, err := outerArgs()
	if err != nil {
		return 125
	}
	var admitted struct{}
	if _, err := recvJSON(reports, &admitted); err != nil {
		return 125 // the parent is gone
	}
	if err = closeInherited(fdExtra + extra); err == nil {
		args := slices.Concat([]string{string(roleOuterInit)}, os.Args[1:])
		err = unix.Exec("/proc/self/exe", args, os.Environ())
	}
	_ = sendJSON(reports, failed("become root", err))
	return 125
}

// outerArgs returns the number of extra files, and the reports' connection on
// a descriptor of its own, so that the inherited one survives execve(2).
func outerArgs() (uint, *net.UnixConn, error) {
	if len(os.Args) != 3 {
		return 0, nil, errors.New("wrong number of arguments")
	}
	extra, err := strconv.ParseUint(os.Args[2], 10, 16)
	if err != nil {
		return 0, nil, err
	}
	fd, err := unix.FcntlInt(fdReport, unix.F_DUPFD_CLOEXEC, fdExtra+int(extra))
	if err != nil {
		return 0, nil, err
	}
	reports, err := connOf(os.NewFile(uintptr(fd), "reports"))
	return uint(extra), reports, err
}

// outerInitMain sets up the outer namespace as its root, starts the worker and
// reaps.
func outerInitMain() int {
	caught := catchSignals()
	extra, reports, err := outerArgs()
	if err != nil {
		return 125
	}
	worker, r := startInOuter(extra)
	if sendJSON(reports, r) != nil || !r.Ready {
		return 125
	}
	_ = reports.Close()
	// The worker's sockets are the worker's alone, so that the parent sees
	// their end when it ends.
	for fd := fdRPC; fd < fdExtra+int(extra); fd++ {
		_ = unix.Close(fd)
	}
	return reap(worker, caught, syscall.SIGTERM, syscall.SIGINT)
}

func startInOuter(extra uint) (*os.Process, report) {
	r, ok := runSteps(outerSteps())
	if !ok {
		return nil, r
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, failed("open "+os.DevNull, err)
	}
	defer null.Close()
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr, os.NewFile(fdRPC, ""), os.NewFile(fdFiles, ""), null}
	for fd := uint(fdExtra); fd < fdExtra+extra; fd++ {
		files = append(files, os.NewFile(uintptr(fd), ""))
	}
	worker, err := spawn(role(os.Args[1]), os.Args[2:], os.Environ(), files...)
	runtime.KeepAlive(files)
	if err != nil {
		return nil, failed("", err)
	}
	return worker, r
}

func outerSteps() []step {
	return []step{
		{"tie to the parent", tieToParent},
		{stepIdentity, becomeRoot},
		{"leave the caller's keyring", joinKeyring},
		{stepPropagation, func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{stepProc, func() error {
			return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		}},
		{"mount /sys/fs/cgroup", func() error {
			return unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		}},
	}
}

// tieToParent arms the parent-death signal again, which gaining capabilities
// by execve(2) has disarmed, and makes sure that it is not too late.
func tieToParent() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	n, _, err := unix.Recvfrom(fdFiles, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err == nil && n == 0 {
		return io.EOF
	}
	return nil
}

// becomeRoot drops the caller's groups and takes uid and gid 0.
func becomeRoot() error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setresgid(0, 0, 0); err != nil {
		return fmt.Errorf("setresgid: %w", err)
	}
	if err := syscall.Setresuid(0, 0, 0); err != nil {
		return fmt.Errorf("setresuid: %w", err)
	}
	unix.Umask(0o022)
	return nil
}

// joinKeyring replaces the session keyring, which would give hooks the
// caller's keys whatever their uid. Where keyctl is forbidden or missing, it is
// so for the hooks as well.
func joinKeyring() error {
	_, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0) // a new one without a name
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

// workerMain runs f as the worker.
func workerMain(f func(context.Context, *WorkerConn) error) int {
	conn, err := workerConn()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 125
	}
	ctx, stop := signalContext()
	defer stop()
	if err := offMain(func() error { return f(ctx, conn) }); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox: worker:", err)
		return 1
	}
	return 0
}

func workerConn() (*WorkerConn, error) {
	var c WorkerConn
	if len(os.Args) != 2 {
		return nil, errors.New("wrong number of arguments")
	}
	extra, err := strconv.ParseUint(os.Args[1], 10, 16)
	if err != nil {
		return nil, err
	}
	for i := range uintptr(extra) {
		c.Files = append(c.Files, os.NewFile(fdExtra+i, "from the parent"))
	}
	if err := closeInherited(fdRPC); err != nil {
		return nil, err
	}
	if c.RPC, err = connOf(os.NewFile(fdRPC, "rpc")); err != nil {
		return nil, err
	}
	if c.FDs, err = connOf(os.NewFile(fdFiles, "files")); err != nil {
		return nil, err
	}
	return &c, nil
}

// signalContext ends with SIGTERM or SIGINT.
func signalContext() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
}
