package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"cairn/sandbox/idmap"
)

// Kind is what is mounted.
type Kind int

// Kinds of mounts.
const (
	Bind  Kind = iota // Source and what is mounted below it, at Target
	Tmpfs             // an empty file system; Source is not used
)

// Mount is one mount of a session or a container.
type Mount struct {
	// Source is a path as the one who starts it sees it: the worker for a
	// session, the session for a container.
	Source string
	// Target is an absolute path inside. Its symbolic links are resolved
	// inside as well. A missing mount point is created.
	Target   string
	ReadOnly bool // recursively
	Kind     Kind
	Options  string // for Tmpfs, tmpfs(5); "" is "mode=0755"
	// IfExists leaves the mount out when Target does not lead to anything: to
	// shadow a file that an image may have.
	IfExists bool
}

// Network is what hooks can reach.
type Network int

// Networks.
const (
	// NetworkRecorded is an empty network namespace with listening sockets in
	// it that another process, outside, serves: see [Session.Listeners].
	NetworkRecorded Network = iota
	// NetworkNone is an empty network namespace.
	NetworkNone
	// NetworkHost is the caller's network, with its abstract sockets and its
	// loopback services.
	NetworkHost
)

// SessionSpec says how a session starts.
type SessionSpec struct {
	// Root becomes the session's "/", with what is mounted below it. It must be
	// writable (mount points are created in it, owned by image root) and its
	// files should have the image's ids, as an overlay made by [MountOverlay]
	// over a snapshot has.
	Root   string
	Mounts []Mount // in order; hooks cannot undo them
	// Hostname is the host name; "" is DefaultHostname.
	Hostname string
	Network  Network
	// TCPPorts are listened on at 127.0.0.1 besides 80 and 443, with
	// NetworkRecorded.
	TCPPorts []int
	// Binary is where hooks of the session see this program, such as
	// /.cairn/bin/cairn. It is needed.
	Binary string

	at string // where Root is bound for the session, see place
}

// Session is a running session, as the worker sees it.
type Session struct {
	runner
	process   *os.Process
	exited    chan struct{}
	Listening Sockets // sockets of NetworkRecorded
	closeOnce sync.Once
}

// Sockets are the listening sockets inside a session. The one who serves them
// may be in any network namespace.
type Sockets struct {
	TCP map[int]*os.File // stream sockets, listening, by port
	UDP map[int]*os.File // datagram sockets, bound, by port: 53
}

// Close closes the sockets.
func (s Sockets) Close() {
	for _, m := range []map[int]*os.File{s.TCP, s.UDP} {
		for _, f := range m {
			_ = f.Close()
		}
	}
}

// setup is what the worker tells the first process of a session.
type setup struct {
	Root     string // after the worker's own mounts
	Binary   string
	Hostname string
	Network  Network
	TCPPorts []int
}

// listening says which files follow a session's report, in order.
type listening struct {
	report
	TCP, UDP []int
}

// StartSession starts a session in the inner namespaces: user, mount, process
// id, host name, IPC, cgroup and (but for NetworkHost) network. It must be
// called in the worker. The session ends with [Session.Close] or with the
// worker. ctx bounds the start only. The error is a *[StartError].
//
// /proc, /sys and /dev are made in the session: /dev is a small tmpfs, /sys is
// read-only. User namespaces cannot be made below it.
func StartSession(ctx context.Context, spec SessionSpec) (*Session, error) {
	outer, err := ownMap()
	if err != nil {
		return nil, &StartError{Part: "session", Err: err}
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, &StartError{Part: "session", Err: err}
	}
	defer theirs.Close()
	last, err := memfile("session stderr")
	if err != nil {
		_ = ours.Close()
		return nil, &StartError{Part: "session", Err: err}
	}
	spec.at = place(spec)
	s := &Session{runner: runner{conn: ours, part: "session", last: last}, exited: make(chan struct{})}
	if err := s.start(spec, outer, theirs); err != nil {
		_ = ours.Close()
		_ = last.Close()
		return nil, err
	}
	_ = theirs.Close()
	if err := s.handshake(ctx, spec); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// ownMap reads the worker's id map. Its parent's ids do not matter here.
func ownMap() (idmap.Map, error) {
	var m idmap.Map
	for _, f := range []struct {
		name string
		to   *[]idmap.Extent
	}{{"uid_map", &m.UID}, {"gid_map", &m.GID}} {
		text, err := os.ReadFile("/proc/self/" + f.name)
		if err != nil {
			return m, err
		}
		if *f.to, err = idmap.ParseExtents(text); err != nil {
			return m, err
		}
	}
	return m, nil
}

// start makes the session's mounts and clones its first process, on a thread
// with a mount namespace of its own. The clone gets a copy of these mounts,
// which the kernel locks, since its user namespace is less privileged; the
// worker's own mount table is not touched.
func (s *Session) start(spec SessionSpec, outer idmap.Map, theirs *os.File) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		result <- s.startOnThread(spec, outer, theirs)
	}()
	if err := <-result; err != nil {
		return err
	}
	go func() {
		_, _ = s.process.Wait()
		close(s.exited)
	}()
	return nil
}

func (s *Session) startOnThread(spec SessionSpec, outer idmap.Map, theirs *os.File) error {
	var binary string
	if r, ok := runSteps(stageSteps(spec, &binary)); !ok {
		return r.error("session")
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return &StartError{Part: "session", Err: err}
	}
	defer null.Close()
	p, err := os.StartProcess(binary, []string{string(roleSession)}, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: []*os.File{null, null, s.last, theirs}, Sys: innerAttr(spec, outer),
	})
	if err != nil {
		var errno syscall.Errno
		errors.As(err, &errno)
		return &StartError{Part: "session", Step: stepClone, Err: err, Hint: hintFor(stepClone, errno)}
	}
	s.process = p
	return nil
}

func innerAttr(spec SessionSpec, outer idmap.Map) *syscall.SysProcAttr {
	m := outer.Inner(IDShift)
	a := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS |
			syscall.CLONE_NEWIPC | unix.CLONE_NEWCGROUP,
		UidMappings:                sysMap(m.UID),
		GidMappings:                sysMap(m.GID),
		GidMappingsEnableSetgroups: true,
		Credential:                 &syscall.Credential{Uid: 0, Gid: 0, Groups: []uint32{}},
		Setsid:                     true,
	}
	if spec.Network != NetworkHost {
		a.Cloneflags |= syscall.CLONE_NEWNET
	}
	return a
}

func sysMap(extents []idmap.Extent) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, e := range extents {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(e.Inside), HostID: int(e.Outside), Size: int(e.Count)})
	}
	return out
}

// stageSteps prepare a thread's mount table for a session. They leave in
// binary where this program is found there.
func stageSteps(spec SessionSpec, binary *string) []step {
	steps := []step{
		{"leave the worker's mount table", func() error { return unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS) }},
		{stepPropagation, func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"bind the root " + spec.Root, func() error {
			return unix.Mount(spec.Root, spec.at, "", unix.MS_BIND|unix.MS_REC, "")
		}},
		{"make mount points", func() error { return stageMountPoints(spec.at) }},
	}
	for _, m := range spec.Mounts {
		steps = append(steps, step{"mount " + m.Target, func() error { return stageMount(spec.at, m) }})
	}
	return append(steps, step{"bind this program to " + spec.Binary, func() (err error) {
		*binary, err = stageBinary(spec.at, spec.Binary)
		return err
	}})
}

// place chooses the directory on which a session's root is bound, in a mount
// table of its own: one that every id can reach. Root itself may lie below a
// directory that only the caller may pass, such as a home with mode 0700.
func place(spec SessionSpec) string {
	hides := func(dir string) bool {
		self, err := os.Readlink("/proc/self/exe")
		return err != nil || strings.HasPrefix(self, dir+"/") ||
			slices.ContainsFunc(spec.Mounts, func(m Mount) bool { return strings.HasPrefix(m.Source+"/", dir+"/") })
	}
	for _, dir := range []string{"/mnt", "/media", "/srv", "/opt", "/tmp", "/var/tmp"} {
		var st unix.Stat_t
		if unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && !hides(dir) {
			return dir
		}
	}
	return spec.Root
}

// stageMountPoints makes the places that the session itself mounts on.
func stageMountPoints(root string) error {
	r, err := openRooted(root)
	if err != nil {
		return err
	}
	defer r.close()
	for _, name := range []string{"/proc", "/sys", "/dev"} {
		f, _, err := r.mountPoint(name, true, IDShift)
		if err != nil {
			return err
		}
		_ = f.Close()
	}
	return nil
}

func stageMount(root string, m Mount) error {
	r, err := openRooted(root)
	if err != nil {
		return err
	}
	defer r.close()
	if m.IfExists && !r.exists(m.Target) {
		return nil
	}
	tree, isDir, err := m.tree()
	if err != nil {
		return err
	}
	defer tree.Close()
	at, _, err := r.mountPoint(m.Target, isDir, IDShift)
	if err != nil {
		return err
	}
	defer at.Close()
	return attach(tree, at)
}

// tree makes what is to be mounted, not attached to anything yet.
func (m Mount) tree() (_ *os.File, isDir bool, err error) {
	if m.Kind == Tmpfs {
		f, err := tmpfsTree(m.Options)
		return f, true, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, false, &os.PathError{Op: "open", Path: m.Source, Err: err}
	}
	f := os.NewFile(uintptr(fd), m.Source)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && m.ReadOnly {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	if err != nil {
		_ = f.Close()
		return nil, false, &os.PathError{Op: "bind", Path: m.Source, Err: err}
	}
	return f, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// attach mounts a tree made by tree.
func attach(tree, at *os.File) error {
	err := unix.MoveMount(int(tree.Fd()), "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return &os.PathError{Op: "mount", Path: at.Name(), Err: err}
	}
	return nil
}

// handshake tells the new process what to do and waits until it is ready.
func (s *Session) handshake(ctx context.Context, spec SessionSpec) error {
	stop := context.AfterFunc(ctx, func() { _ = s.process.Kill() })
	defer stop()
	l, files, err := s.setUp(spec)
	if ctx.Err() != nil { // whatever the killed process made fail
		err = &StartError{Part: "session", Err: context.Cause(ctx)}
	}
	if err != nil {
		closeAll(files)
		return err
	}
	s.Listening = Sockets{TCP: map[int]*os.File{}, UDP: map[int]*os.File{}}
	for i, port := range l.TCP {
		s.Listening.TCP[port] = files[i]
	}
	for i, port := range l.UDP {
		s.Listening.UDP[port] = files[len(l.TCP)+i]
	}
	return nil
}

func (s *Session) setUp(spec SessionSpec) (listening, []*os.File, error) {
	if err := sendJSON(s.conn, setup{spec.at, spec.Binary, spec.Hostname, spec.Network, spec.TCPPorts}); err != nil {
		return listening{}, nil, &StartError{Part: "session", Err: err}
	}
	l, files := recvListening(s.conn)
	return l, files, l.error("session")
}

func recvListening(c *net.UnixConn) (listening, []*os.File) {
	note, files, err := RecvFiles(c)
	var l listening
	if err == nil {
		err = json.Unmarshal(note, &l)
	}
	if err == nil && len(files) != len(l.TCP)+len(l.UDP) {
		err = errors.New("wrong number of sockets")
	}
	if err != nil {
		return listening{report: failed("read its report", err)}, files
	}
	return l, files
}

// Close kills everything in the session and waits until it is gone; its mounts
// and sockets go with it. It may be called more than once.
func (s *Session) Close() error {
	s.closeOnce.Do(func() {
		_ = s.process.Kill()
		<-s.exited
		_ = s.conn.Close()
		_ = s.last.Close()
		s.Listening.Close()
	})
	return nil
}

// Done is closed when the session has ended, for whatever reason.
func (s *Session) Done() <-chan struct{} { return s.exited }
