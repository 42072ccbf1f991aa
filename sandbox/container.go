package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// ContainerSpec says how a container starts.
type ContainerSpec struct {
	// Rootfs is the path of the container's "/" inside the session. What is
	// mounted below it is seen in the container.
	Rootfs   string
	Mounts   []Mount // in order; those at and below /dev, /proc and /sys too
	Hostname string  // "" is DefaultHostname
}

// Container is a running container, as the worker sees it.
type Container struct {
	runner
	session *Session
	id      int
	once    sync.Once
	err     error
}

// Container starts a container: mount, process id, host name and IPC
// namespaces of its own in the session's user and network namespaces, Docker's
// capabilities, a seccomp deny-list, a prepared /dev, /proc and read-only /sys.
// ctx bounds the start only. The error is a *[StartError], or [ErrEnded].
func (s *Session) Container(ctx context.Context, spec ContainerSpec) (*Container, error) {
	a, files, err := s.call(ctx, request{Op: opContainer, Container: spec})
	if err == nil {
		err = a.failure("container")
	}
	if err == nil && len(files) != 1 {
		err = errors.New("start container: wrong number of sockets")
	}
	if err != nil {
		closeAll(files)
		if a.ID != 0 {
			_ = s.closeContainer(a.ID)
		}
		return nil, err
	}
	conn, err := connOf(files[0])
	if err != nil {
		return nil, errors.Join(err, s.closeContainer(a.ID))
	}
	return &Container{runner: runner{conn: conn, part: "container"}, session: s, id: a.ID}, nil
}

// Close kills everything in the container and removes the mount points that
// were made for it in Rootfs. It may be called more than once.
func (c *Container) Close() error {
	c.once.Do(func() {
		_ = c.conn.Close()
		c.err = c.session.closeContainer(c.id)
	})
	return c.err
}

func (s *Session) closeContainer(id int) error {
	a, files, err := s.call(context.Background(), request{Op: opClose, ID: id})
	closeAll(files)
	if errors.Is(err, ErrEnded) {
		return nil
	}
	if err != nil {
		return err
	}
	return a.failure("end of container")
}

// contained is a container as the session's agent has it.
type contained struct {
	container *libcontainer.Container
	process   *libcontainer.Process
	rootfs    string
	made      []created
}

// startContainer starts a container and returns its number and the socket of
// the agent inside.
func (a *agent) startContainer(spec ContainerSpec) (int, []*os.File, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lastID++
	c := &contained{rootfs: spec.Rootfs}
	socket, err := c.start(a.lastID, spec)
	if err != nil {
		return 0, nil, errors.Join(err, c.end())
	}
	a.containers[a.lastID] = c
	return a.lastID, []*os.File{socket}, nil
}

func (a *agent) closeContainer(id int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[id]
	if c == nil {
		return nil
	}
	delete(a.containers, id)
	return c.end()
}

func (c *contained) start(id int, spec ContainerSpec) (*os.File, error) {
	mounts, err := c.mountPoints(spec)
	if err != nil {
		return nil, &StartError{Step: "make mount points", Err: err}
	}
	binary, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, &StartError{Step: "find this program", Err: err}
	}
	c.container, err = libcontainer.Create("/dev/"+stateName, strconv.Itoa(id), containerConfig(spec, mounts, binary))
	if err != nil {
		return nil, &StartError{Step: "create", Err: err}
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	err = c.run(theirs)
	_ = theirs.Close()
	if err != nil {
		return nil, &StartError{Step: "run", Err: err}
	}
	if r := recvReport(ours); !r.Ready {
		return nil, &StartError{Step: r.Step, Err: &remoteError{r.Text, 0}}
	}
	return ours.File()
}

// run starts the container's first process with the control socket.
func (c *contained) run(control *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	allow := false
	p := &libcontainer.Process{
		Args: []string{containerSelf, string(roleContainer)},
		// Given, so that the image's passwd file is not read for it.
		Env:  []string{"HOME=/"},
		Cwd:  "/",
		Init: true, Stdin: null, Stdout: null, Stderr: null,
		ExtraFiles:      []*os.File{control},
		NoNewPrivileges: &allow,
	}
	if err := c.container.Run(p); err != nil {
		return err
	}
	c.process = p
	return nil
}

// end kills the container and removes what was made for it.
func (c *contained) end() error {
	var errs []error
	if c.process != nil {
		_ = c.container.Signal(unix.SIGKILL)
		_, _ = c.process.Wait()
	}
	if c.container != nil {
		errs = append(errs, c.container.Destroy())
	}
	if len(c.made) > 0 {
		r, err := openRooted(c.rootfs)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		defer r.close()
		errs = append(errs, r.remove(c.made))
	}
	return errors.Join(errs...)
}

// mountPoints makes the mount points that the container needs in its tree, so
// that they can be removed again, and returns the mounts that apply.
func (c *contained) mountPoints(spec ContainerSpec) ([]Mount, error) {
	r, err := openRooted(spec.Rootfs)
	if err != nil {
		return nil, err
	}
	defer r.close()
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := c.mountPoint(r, dir, true); err != nil {
			return nil, err
		}
	}
	var out []Mount
	for _, m := range spec.Mounts {
		if m.IfExists && !r.exists(m.Target) {
			continue
		}
		out = append(out, m)
		if covered(m.Target) {
			continue // libcontainer makes it, in what it has mounted itself
		}
		dir := m.Kind == Tmpfs
		if m.Kind == Bind {
			st, err := os.Stat(m.Source)
			if err != nil {
				return nil, err
			}
			dir = st.IsDir()
		}
		if err := c.mountPoint(r, m.Target, dir); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (c *contained) mountPoint(r *rooted, name string, dir bool) error {
	f, made, err := r.mountPoint(name, dir, 0)
	c.made = append(c.made, made...)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if got := st.Mode&unix.S_IFMT == unix.S_IFDIR; got != dir {
		return fmt.Errorf("mount point %s: a directory on a file, or the other way round", name)
	}
	return nil
}

// covered reports whether a path is below what every container mounts.
func covered(name string) bool {
	name = path.Clean("/" + name)
	for _, dir := range []string{"/dev/", "/proc/", "/sys/"} {
		if strings.HasPrefix(name+"/", dir) {
			return true
		}
	}
	return false
}

// containerCaps are the capabilities of hooks in containers: Docker's.
var containerCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// What a container cannot write, and cannot read.
var (
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	maskPaths     = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
)

// containerConfig is libcontainer's configuration. There is no user namespace
// in it: the session's is the container's.
func containerConfig(spec ContainerSpec, mounts []Mount, binary string) *configs.Config {
	// CAP_SYS_ADMIN is for loading the filter; the first process drops it.
	caps := append([]string{"CAP_SYS_ADMIN"}, containerCaps...)
	hostname := spec.Hostname
	if hostname == "" {
		hostname = DefaultHostname
	}
	umask := uint32(0o022)
	c := &configs.Config{
		Rootfs:       spec.Rootfs,
		Umask:        &umask,
		Hostname:     hostname,
		Capabilities: &configs.Capabilities{Bounding: caps, Effective: caps, Permitted: caps},
		Namespaces:   configs.Namespaces{{Type: configs.NEWNS}, {Type: configs.NEWUTS}, {Type: configs.NEWIPC}, {Type: configs.NEWPID}},
		Cgroups:      &cgroups.Cgroup{Name: "cairn", Rootless: true, Resources: &cgroups.Resources{}},
		// The cgroup file system is read-only: nothing can be made there.
		RootlessCgroups: true,
		NoNewKeyring:    true,
		ReadonlyPaths:   readonlyPaths,
		MaskPaths:       maskPaths,
	}
	c.Mounts = baseMounts()
	for _, m := range mounts {
		c.Mounts = append(c.Mounts, m.config())
	}
	self := Mount{Source: binary, Target: containerSelf, ReadOnly: true}
	c.Mounts = append(c.Mounts, self.config())
	return c
}

func baseMounts() []*configs.Mount {
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	mounts := []*configs.Mount{
		{Source: "proc", Destination: "/proc", Device: "proc", Flags: plain},
		{Source: "tmpfs", Destination: "/dev", Device: "tmpfs", Flags: unix.MS_NOSUID, Data: devOptions},
		{Source: "devpts", Destination: "/dev/pts", Device: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: devptsOptions},
		{Source: "shm", Destination: "/dev/shm", Device: "tmpfs", Flags: plain, Data: shmOptions},
		Mount{Source: "/sys", Target: "/sys", ReadOnly: true}.config(),
	}
	for _, n := range devNodes {
		mounts = append(mounts, Mount{Source: "/dev/" + n, Target: "/dev/" + n}.config())
	}
	return mounts
}

func (m Mount) config() *configs.Mount {
	if m.Kind == Tmpfs {
		options := m.Options
		if options == "" {
			options = "mode=0755"
		}
		return &configs.Mount{Source: "tmpfs", Destination: m.Target, Device: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: options}
	}
	c := &configs.Mount{Source: m.Source, Destination: m.Target, Device: "bind", Flags: unix.MS_BIND | unix.MS_REC}
	if m.ReadOnly {
		c.RecAttr = &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	}
	return c
}

// containerMain is the first process of a container. It gives up what hooks
// must not have, starts the agent and reaps.
func containerMain() int {
	caught := catchSignals()
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 125
	}
	conn, err := controlConn()
	if err != nil {
		return 125
	}
	r, ok := runSteps([]step{
		{"load filter", containerFilter().install},
		{"drop capabilities", dropAdmin},
	})
	var agent *os.Process
	if ok {
		agent, r = startAgent(conn, selfExe, argInContainer)
	}
	if sendJSON(conn, r) != nil || !r.Ready {
		return 125
	}
	_ = conn.Close()
	return reap(agent, caught)
}

// dropAdmin takes CAP_SYS_ADMIN out of every set of this thread, from which
// the agent is started. Other threads of this process keep it, which the
// filter and the process not being dumpable make harmless.
func dropAdmin() error {
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
		return fmt.Errorf("bounding set: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient set: %w", err)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return err
	}
	const bit = 1 << unix.CAP_SYS_ADMIN // below 32
	data[0].Effective &^= bit
	data[0].Permitted &^= bit
	data[0].Inheritable &^= bit
	return unix.Capset(&head, &data[0])
}
