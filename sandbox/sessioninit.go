package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// fdControl is the descriptor on which the parts below a worker talk to it.
const fdControl = 3

// controlConn takes over the control descriptor.
func controlConn() (*net.UnixConn, error) {
	if err := closeInherited(fdControl); err != nil {
		return nil, err
	}
	return connOf(os.NewFile(fdControl, "control"))
}

// sessionMain is the first process of a session: it makes the session's world,
// starts the agent and reaps.
func sessionMain() int {
	caught := catchSignals()
	conn, err := controlConn()
	if err != nil {
		return 125
	}
	var s setup
	if _, err := recvJSON(conn, &s); err != nil {
		return 125
	}
	var sockets []*os.File
	var l listening
	r, ok := runSteps(append(sessionSteps(s), step{"listen", func() (err error) {
		l, sockets, err = listen(s)
		return err
	}}))
	var agent *os.Process
	if ok {
		agent, r = startAgent(conn, s.Binary)
	}
	l.report = r
	if err := sendJSON(conn, l, sockets...); err != nil || !r.Ready {
		return 125
	}
	closeAll(sockets)
	_ = conn.Close()
	return reap(agent, caught)
}

// startAgent starts the agent, from this program's file at binary, with the
// control connection.
func startAgent(conn *net.UnixConn, binary string, args ...string) (*os.Process, report) {
	f, err := conn.File()
	if err != nil {
		return nil, failed("start agent", err)
	}
	defer f.Close()
	p, err := spawnFrom(binary, roleAgent, args, nil, os.Stdin, os.Stdout, os.Stderr, f)
	runtime.KeepAlive(conn)
	if err != nil {
		return nil, failed("start agent", err)
	}
	return p, report{Ready: true}
}

func sessionSteps(s setup) []step {
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	steps := []step{
		{stepPropagation, func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		// The copy is not locked, so that it can become the root.
		{"bind the root", func() error { return unix.Mount(s.Root, s.Root, "", unix.MS_BIND|unix.MS_REC, "") }},
		{stepProc, func() error {
			return onMountPoint(s.Root, "/proc", func(t string) error { return unix.Mount("proc", t, "proc", plain, "") })
		}},
		{"mount /sys", func() error { return mountSys(s.Root, s.Network) }},
		{"mount /dev", func() error { return mountDev(s.Root) }},
		{"enter the root", func() error { return pivot(s.Root) }},
		{"forbid user namespaces", func() error {
			return os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0)
		}},
		{"set the host name", func() error { return setHostname(s.Hostname) }},
	}
	if s.Network != NetworkHost {
		steps = append(steps, step{"set up the loopback interface", loopbackUp})
	}
	return steps
}

// onMountPoint calls do with a path that leads to a directory inside root,
// whatever links are in it.
func onMountPoint(root, name string, do func(target string) error) error {
	r, err := openRooted(root)
	if err != nil {
		return err
	}
	defer r.close()
	f, err := r.open(name, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close()
	return do(fdPath(int(f.Fd())))
}

// mountSys mounts a read-only /sys with the cgroup2 file system on it. A fresh
// one needs a network namespace of our own, and is refused where the one we
// have is partly masked; then it is the outer one, made read-only.
func mountSys(root string, n Network) error {
	if n != NetworkHost && mountReadOnly(root, "/sys", "sysfs") == nil {
		return mountReadOnly(root, "/sys/fs/cgroup", "cgroup2")
	}
	tree, _, err := Mount{Source: "/sys", ReadOnly: true}.tree()
	if err != nil {
		return err
	}
	defer tree.Close()
	r, err := openRooted(root)
	if err != nil {
		return err
	}
	defer r.close()
	at, err := r.open("/sys", unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer at.Close()
	return attach(tree, at)
}

// mountReadOnly mounts a file system of the kernel's. It is the mount that is
// read-only: were it the file system, the kernel would refuse hooks another
// mount of it that is not.
func mountReadOnly(root, name, fs string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := onMountPoint(root, name, func(t string) error { return unix.Mount(fs, t, fs, flags, "") }); err != nil {
		return err
	}
	return onMountPoint(root, name, func(t string) error {
		return unix.Mount("", t, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, "")
	})
}

// pivot makes root the root directory and leaves the old one.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return &os.PathError{Op: "chdir", Path: root, Err: err}
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Chdir("/")
}

func setHostname(name string) error {
	if name == "" {
		name = DefaultHostname
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return err
	}
	return unix.Setdomainname([]byte("(none)"))
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

// listen opens the sockets of NetworkRecorded.
func listen(s setup) (listening, []*os.File, error) {
	var l listening
	var files []*os.File
	if s.Network != NetworkRecorded {
		return l, nil, nil
	}
	seen := map[int]bool{}
	for _, port := range append([]int{80, 443}, s.TCPPorts...) {
		if seen[port] {
			continue
		}
		seen[port] = true
		f, err := listenTCP(port)
		if err != nil {
			closeAll(files)
			return l, nil, err
		}
		l.TCP, files = append(l.TCP, port), append(files, f)
	}
	f, err := listenUDP(53)
	if err != nil {
		closeAll(files)
		return l, nil, err
	}
	l.UDP = []int{53}
	return l, append(files, f), nil
}

func listenTCP(port int) (*os.File, error) {
	var c net.ListenConfig
	n, err := c.Listen(context.Background(), "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	defer n.Close()
	return n.(*net.TCPListener).File() //nolint:forcetypeassert,errcheck // of "tcp4"
}

func listenUDP(port int) (*os.File, error) {
	n, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return nil, err
	}
	defer n.Close()
	return n.File()
}
