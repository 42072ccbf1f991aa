package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cairn/sandbox/idmap"
)

// Host is what the caller knows of the machine and of itself. The package
// reads none of it on its own.
type Host struct {
	UID, GID int    // effective ids of this process
	User     string // login name of UID, "" if it has none
	// SubUID and SubGID are the contents of /etc/subuid and /etc/subgid.
	SubUID, SubGID []byte
	// NewUIDMap and NewGIDMap are the paths of the programs; "" if missing.
	// Root does not need them.
	NewUIDMap, NewGIDMap string
	// UIDMap and GIDMap are the contents of /proc/self/uid_map and gid_map.
	// They matter for root only; empty means the whole range.
	UIDMap, GIDMap []byte
}

// wholeMap is the uid_map of the host's own namespace.
const wholeMap = "0 0 4294967295"

// Problem says why a sandbox cannot be had.
type Problem int

// The problems that a caller may want to tell apart.
const (
	ProblemOther     Problem = iota
	ProblemNoRange           // no subordinate ids
	ProblemNoTool            // newuidmap or newgidmap is missing
	ProblemTool              // newuidmap or newgidmap refused or could not work
	ProblemLimit             // user.max_user_namespaces is 0 or used up
	ProblemForbidden         // seccomp, a sysctl or a chroot forbids user namespaces
	ProblemAppArmor          // AppArmor takes the capabilities away
	ProblemMasked            // a fresh /proc is refused, as in containers with a masked one
	ProblemKernel            // the kernel is too old or was built without something
)

// PreflightError says why this machine does not let the caller have a sandbox,
// and what can be done.
type PreflightError struct {
	Problem Problem
	Hint    string // one or two sentences: what to do
	Err     error
}

func (e *PreflightError) Error() string { return fmt.Sprintf("no sandbox: %v", e.Err) }

// Unwrap returns the cause.
func (e *PreflightError) Unwrap() error { return e.Err }

const (
	hintUIDMap  = "install the package uidmap (newuidmap and newgidmap)"
	hintMapTool = "newuidmap and newgidmap must be setuid root or have file capabilities, their file system must not be nosuid, and no_new_privs must be off"
	hintLimit   = "raise the limit: sysctl -w user.max_user_namespaces=15000"
	hintForbid  = "user namespaces are forbidden here: set the sysctl kernel.unprivileged_userns_clone=1; in a container run it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined; in a chroot leave it"
	hintArmor   = "AppArmor restricts user namespaces: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or install a profile with the rule \"userns,\" for this program"
	hintMasked  = "the container's /proc is masked: run it with --security-opt systempaths=unconfined (Kubernetes: procMount: Unmasked)"
	hintKernel  = "Linux 5.12 or newer with user namespaces, overlayfs and seccomp filters is needed"
)

func hintRange(h Host, file string) string {
	name := h.User
	if name == "" {
		name = strconv.Itoa(h.UID)
	}
	return fmt.Sprintf("add a line such as %q to %s (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s)",
		name+":100000:65536", file, name)
}

// Steps of a start that hints depend on.
const (
	stepClone       = "make namespaces"
	stepMap         = "write "
	stepIdentity    = "become root"
	stepPropagation = "make mounts private"
	stepProc        = "mount /proc"
	stepProbe       = "mount a tmpfs"
)

// diagnose names the problem behind a failed step of a worker's start.
func diagnose(step string, errno syscall.Errno) (Problem, string) {
	switch {
	case strings.HasPrefix(step, stepMap):
		return ProblemTool, hintMapTool
	case step == stepClone && (errno == unix.ENOSPC || errno == unix.EUSERS):
		return ProblemLimit, hintLimit
	case step == stepClone && errno == unix.EPERM:
		return ProblemForbidden, hintForbid
	case errno == unix.EACCES:
		return ProblemAppArmor, hintArmor
	case step == stepProc && errno == unix.EPERM:
		return ProblemMasked, hintMasked
	case errno == unix.EPERM:
		return ProblemForbidden, hintForbid
	case errno == unix.EINVAL || errno == unix.ENOSYS || errno == unix.ENODEV:
		return ProblemKernel, hintKernel
	}
	return ProblemOther, ""
}

func hintFor(step string, errno syscall.Errno) string {
	_, hint := diagnose(step, errno)
	return hint
}

// probeTimeout bounds what preflight tries. It takes some 30 ms, but a busy
// machine may stand still for minutes.
const probeTimeout = 5 * time.Minute

// Preflight finds the id map for the caller and tries it: it starts a worker
// that mounts a tmpfs. The error is a *[PreflightError].
//
// The mode is "subid": real root, or an ordinary user with subordinate ids.
// There is no other mode yet.
func Preflight(h Host) (idmap.Map, error) {
	m, err := mapFor(h)
	if err != nil {
		return idmap.Map{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	if err := probe(ctx, h, m); err != nil {
		return idmap.Map{}, err
	}
	return m, nil
}

func mapFor(h Host) (idmap.Map, error) {
	if h.UID == 0 {
		return rootMap(h)
	}
	names := []string{strconv.Itoa(h.UID)}
	if h.User != "" {
		names = append(names, h.User)
	}
	uids, gids := idmap.Ranges(h.SubUID, names...), idmap.Ranges(h.SubGID, names...)
	m, err := idmap.ForUser(uint32(h.UID), uint32(h.GID), uids, gids)
	if err != nil {
		file := "/etc/subuid and /etc/subgid"
		return m, &PreflightError{ProblemNoRange, hintRange(h, file), err}
	}
	if h.NewUIDMap == "" || h.NewGIDMap == "" {
		return m, &PreflightError{ProblemNoTool, hintUIDMap, errors.New("find newuidmap and newgidmap: not installed")}
	}
	return m, nil
}

func rootMap(h Host) (idmap.Map, error) {
	whole := func(b []byte) []byte {
		if len(bytes.TrimSpace(b)) == 0 {
			return []byte(wholeMap)
		}
		return b
	}
	m, err := idmap.ForRoot(whole(h.UIDMap), whole(h.GIDMap))
	if err != nil {
		return m, &PreflightError{ProblemNoRange, "this root is in a user namespace with fewer than 65536 ids: give it more", err}
	}
	return m, nil
}

// probe starts a worker that tries what a worker needs.
func probe(ctx context.Context, h Host, m idmap.Map) error {
	w, err := startOuter(ctx, roleProbe, WorkerSpec{Map: m, Host: h})
	var start *StartError
	if errors.As(err, &start) {
		return preflightError(start)
	}
	if err != nil {
		return &PreflightError{Err: err}
	}
	stop := context.AfterFunc(ctx, func() { _ = w.Kill() })
	defer stop()
	r := recvReport(w.Conn())
	_ = w.Wait()
	if err := r.error("worker"); errors.As(err, &start) {
		return preflightError(start)
	}
	return nil
}

func preflightError(s *StartError) *PreflightError {
	var errno syscall.Errno
	errors.As(s.Err, &errno)
	p, hint := diagnose(s.Step, errno)
	return &PreflightError{p, hint, s}
}

// probeWorker is the worker of a probe.
func probeWorker(_ context.Context, conn *WorkerConn) error {
	r, _ := runSteps([]step{
		// /proc is this namespace's own, and a place that is always there.
		{stepProbe, func() error { return unix.Mount("tmpfs", "/proc", "tmpfs", 0, "mode=755") }},
		{"make a file of the image's", func() error {
			if err := os.Mkdir("/proc/probe", 0o755); err != nil {
				return err
			}
			return os.Chown("/proc/probe", IDShift, IDShift)
		}},
	})
	return sendJSON(conn.RPC, r)
}
