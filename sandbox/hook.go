package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// job is what an agent tells the process that starts one command.
type job struct {
	Args, Env []string
	Dir       string
	// Filter loads the filter of host hooks. In a container the filter is
	// inherited.
	Filter bool
}

// outcome is that process's answer.
type outcome struct {
	Status  Status
	Failure *report // the command could not be started
}

// Resource limits are the same everywhere, as far as the caller's own hard
// limits allow. They are the kernel's defaults.
var hookLimits = []struct {
	resource   int
	soft, hard uint64
}{
	{unix.RLIMIT_NOFILE, 1024, 4096},
	{unix.RLIMIT_CORE, 0, 0},
	{unix.RLIMIT_STACK, 8 << 20, unix.RLIM_INFINITY},
}

// hookMain runs one command. It stays as the command's parent and as the
// subreaper of everything that the command starts, and kills what is left when
// the command has ended, or everything when the agent hangs up.
func hookMain() int {
	conn, err := controlConn()
	if err != nil {
		return 125
	}
	var j job
	if _, err := recvJSON(conn, &j); err != nil {
		return 125
	}
	var h hook
	go func() {
		var none struct{}
		_, _ = recvJSON(conn, &none) // never comes: it is the hanging up
		h.cancel()
	}()
	o := h.run(j)
	if sendJSON(conn, o) != nil {
		return 125
	}
	return 0
}

type hook struct {
	cancelled atomic.Bool
	group     atomic.Int64 // process group of the command, once it runs
}

func (h *hook) cancel() {
	h.cancelled.Store(true)
	if g := h.group.Load(); g != 0 {
		_ = unix.Kill(-int(g), unix.SIGKILL)
	}
}

func (h *hook) run(j job) outcome {
	r, ok := runSteps(hookSteps(j))
	if !ok {
		return outcome{Failure: &r}
	}
	program, err := lookPath(j)
	if err != nil {
		r := failed("", err)
		return outcome{Failure: &r}
	}
	p, err := os.StartProcess(program, j.Args, &os.ProcAttr{
		Dir: j.Dir, Env: nonNil(j.Env), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		r := failed("", err)
		return outcome{Failure: &r}
	}
	h.group.Store(int64(p.Pid))
	if h.cancelled.Load() {
		h.cancel()
	}
	status := waitFor(p.Pid)
	_ = unix.Kill(-p.Pid, unix.SIGKILL)
	if err := killChildren(); err != nil {
		r := failed("kill what the command left", err)
		return outcome{Status: status, Failure: &r}
	}
	return outcome{Status: status}
}

func hookSteps(j job) []step {
	return []step{
		{"become subreaper", func() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }},
		{"set resource limits", setLimits},
		{"set signals", resetSignals},
		{"set standard streams", blockingStreams},
		{"change to the working directory", func() error { return os.Chdir(j.Dir) }},
		{"load filter", func() error {
			if !j.Filter {
				return nil
			}
			return hookFilter().install()
		}},
	}
}

func setLimits() error {
	unix.Umask(0o022)
	for _, l := range hookLimits {
		var have unix.Rlimit
		if err := unix.Prlimit(0, l.resource, nil, &have); err != nil {
			return err
		}
		want := unix.Rlimit{Cur: min(l.soft, have.Max), Max: min(l.hard, have.Max)}
		if err := unix.Prlimit(0, l.resource, &want, nil); err != nil {
			return err
		}
	}
	return nil
}

// resetSignals gives the command every signal with its default action and
// unblocked, whatever the caller ignored: the runtime catches them here, and a
// caught signal has its default action after execve(2). Those that the runtime
// leaves to the C library stay as they came, and are set by hand.
func resetSignals() error {
	ignore := make(chan os.Signal, 16)
	signal.Notify(ignore)
	go func() {
		for range ignore { // a hook may signal its parent
		}
	}()
	for n := unix.Signal(1); n <= lastSignal; n++ {
		if err := stopIgnoring(n); err != nil {
			return fmt.Errorf("signal %d: %w", n, err)
		}
	}
	return unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil)
}

// lastSignal is the kernel's _NSIG on the architectures that we run on.
const lastSignal = 64

// stopIgnoring gives an ignored signal its default action, and leaves others.
func stopIgnoring(n unix.Signal) error {
	action, err := sigaction(n, nil)
	if err != nil || action.handler != sigIgn {
		return err
	}
	_, err = sigaction(n, &kernelSigaction{})
	return err
}

// kernelSigaction is struct sigaction as rt_sigaction(2) has it, on amd64 and
// arm64 alike.
type kernelSigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

const sigIgn = 1 // SIG_IGN

// sigaction sets a signal's action, unless it is nil, and returns the one
// before.
func sigaction(n unix.Signal, action *kernelSigaction) (kernelSigaction, error) {
	var before kernelSigaction
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n),
		uintptr(unsafe.Pointer(action)), uintptr(unsafe.Pointer(&before)), unsafe.Sizeof(before.mask), 0, 0)
	if errno != 0 {
		return before, errno
	}
	return before, nil
}

// blockingStreams undoes what a Go program in the worker did to its end of the
// command's streams.
func blockingStreams() error {
	for fd := range 3 {
		if err := unix.SetNonblock(fd, false); err != nil {
			return err
		}
	}
	return nil
}

// lookPath finds the command in the PATH of its own environment.
func lookPath(j job) (string, error) {
	if len(j.Args) == 0 || j.Args[0] == "" {
		return "", errors.New("no command")
	}
	name := j.Args[0]
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(pathOf(j.Env)) {
		full := filepath.Join("/", dir, name)
		if st, err := os.Stat(full); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

func pathOf(env []string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(env[i], "PATH="); ok {
			return v
		}
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// waitFor reaps until pid has ended.
func waitFor(pid int) Status {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case got == pid:
			return statusOf(ws)
		case err != nil && !errors.Is(err, unix.EINTR):
			return Status{Code: 255}
		}
	}
}

// killPatience bounds the fight with a command that forks faster than it can
// be killed. The end of the session or container wins it.
const killPatience = 10 * time.Second

// killChildren kills the children of this process until there are none. The
// children of a killed child become ours, so that in the end all are gone.
func killChildren() error {
	for wait := time.Duration(0); wait < killPatience; wait += time.Millisecond {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if errors.Is(err, unix.ECHILD) {
				return nil
			}
			if pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
		pids, err := children(os.Getpid())
		if err != nil {
			return err
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("processes multiply faster than they die")
}

// children lists the processes whose parent is pid.
func children(pid int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []int
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err == nil && parentOf(string(stat)) == pid {
			out = append(out, n)
		}
	}
	return out, nil
}

// parentOf reads the fourth field of proc_pid_stat(5). The second, the name,
// may hold blanks and parentheses.
func parentOf(stat string) int {
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 2 {
		return -1
	}
	n, err := strconv.Atoi(f[1])
	if err != nil {
		return -1
	}
	return n
}
