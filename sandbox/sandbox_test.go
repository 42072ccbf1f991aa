package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/sandbox"
)

// conformance holds the checks that do not depend on how sessions and
// containers are made: what a hook sees and may do. host is where host hooks
// run, with the image at /image; target is where target hooks run.
var conformance = []struct {
	name  string
	check func(l *lab, host, target runnable) error
}{
	{"ids", func(l *lab, host, target runnable) error {
		const script = "id -u; id -g; id -G; cat /proc/self/uid_map | wc -l"
		return all(l.want(host, script, "0\n0\n0\n1"), l.want(target, script, "0\n0\n0\n1"))
	}},
	{"environment", func(l *lab, host, target runnable) error {
		env := "MARK=" + l.dir + "\nPATH=/bin\nPWD=/\nSHLVL=1"
		return all(l.want(host, "env | sort", env), l.want(target, "env | sort", env))
	}},
	{"descriptors", func(l *lab, host, target runnable) error {
		const script = "cd /proc/self/fd; echo *"
		return all(l.want(host, script, "0 1 2 3"), l.want(target, script, "0 1 2 3")) // 3 is the listing itself
	}},
	{"umask, host name, limits, signals", func(l *lab, host, target runnable) error {
		const script = "umask; hostname; ulimit -n; ulimit -Hn; ulimit -c; ulimit -s; grep -E 'SigIgn|SigBlk' /proc/self/status | sort | tr -d '\t'; cat /proc/sys/kernel/domainname"
		const want = "0022\nlocalhost\n1024\n4096\n0\n8192\nSigBlk:0000000000000000\nSigIgn:0000000000000000\n(none)"
		return all(l.want(host, script, want), l.want(target, script, want))
	}},
	{"capabilities", func(l *lab, host, target runnable) error {
		const script = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d '\t'"
		const caps = "CapInh:0000000000000000\nCapPrm:00000000a80425fb\nCapEff:00000000a80425fb\nCapBnd:00000000a80425fb\nCapAmb:0000000000000000"
		if err := l.want(target, script, caps); err != nil {
			return err
		}
		return l.want(host, "grep -c 'CapEff.*1ffffffffff' /proc/self/status", "1")
	}},
	{"devices", func(l *lab, host, target runnable) error {
		const script = "echo x >/dev/null && head -c3 /dev/zero | wc -c && head -c3 /dev/urandom | wc -c && echo y | cat /dev/stdin && " +
			"touch /dev/shm/a && ls -d /dev/pts/ptmx /dev/ptmx && ! (echo x >/dev/full) 2>/dev/null; ls /dev/vda /dev/sda /dev/kmsg /dev/mem 2>/dev/null; true"
		const want = "3\n3\ny\n/dev/ptmx\n/dev/pts/ptmx"
		return all(l.want(host, script, want), l.want(target, script, want))
	}},
	{"sys and cgroup are read-only", func(l *lab, host, target runnable) error {
		const script = "mkdir /sys/fs/cgroup/x 2>&1 | grep -c Read-only; (echo 1 > /sys/kernel/uevent_seqnum) 2>&1 | grep -c Read-only; ls /sys/class/net"
		return all(l.want(host, script, "1\n1\nlo"), l.want(target, script, "1\n1\nlo"))
	}},
	{"status", func(l *lab, host, target runnable) error {
		var errs []error
		for _, in := range []runnable{host, target} {
			for script, want := range map[string]sandbox.Status{
				"exit 3": {Code: 3}, "true": {}, "kill -9 $$": {Signal: syscall.SIGKILL}, "kill -TERM $$": {Signal: syscall.SIGTERM},
			} {
				if _, got, err := l.sh(in, script); err != nil || got != want {
					errs = append(errs, fmt.Errorf("%s: got %v, %v, want %v", script, got, err, want))
				}
			}
		}
		return errors.Join(errs...)
	}},
	{"commands that cannot start", func(l *lab, host, target runnable) error {
		var errs []error
		for _, in := range []runnable{host, target} {
			for _, c := range []sandbox.Command{
				{},
				{Args: []string{""}},
				{Args: []string{"no-such-program"}},
				{Args: []string{"/etc/passwd"}},
				{Args: []string{"true"}, Dir: "/no/such"},
				{Args: []string{"/bin"}},
			} {
				c.Env = l.env()
				_, err := in.Run(l.ctx, c)
				var start *sandbox.StartError
				if !errors.As(err, &start) {
					errs = append(errs, fmt.Errorf("Run(%q in %q): got %v, want a StartError", c.Args, c.Dir, err))
				}
			}
		}
		return errors.Join(errs...)
	}},
	{"what a hook leaves running dies", func(l *lab, host, target runnable) error {
		var errs []error
		for _, in := range []runnable{host, target} {
			// A daemon: its own session, its parent gone, the streams closed.
			const script = "(setsid sh -c 'setsid sleep 987 & sleep 987 & exec sleep 987' >/dev/null 2>&1 </dev/null &) ; sleep 0.05"
			if _, _, err := l.sh(in, script); err != nil {
				errs = append(errs, err)
			}
			errs = append(errs, l.want(in, "ps | grep -c 'sleep 98[7]' || true", "0"))
		}
		return errors.Join(errs...)
	}},
	{"cancelling kills at once", func(l *lab, host, target runnable) error {
		var errs []error
		for _, in := range []runnable{host, target} {
			ctx, cancel := context.WithTimeout(l.ctx, 100*time.Millisecond)
			start := time.Now()
			_, err := in.Run(ctx, sandbox.Command{Args: []string{"sh", "-c", "trap '' TERM INT; (setsid sleep 986 &); sleep 986"}, Env: l.env()})
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > patience {
				errs = append(errs, fmt.Errorf("cancelled: %v after %v", err, time.Since(start)))
			}
			errs = append(errs, l.want(in, "ps | grep -c 'sleep 98[6]' || true", "0"))
		}
		return errors.Join(errs...)
	}},
	{"commands side by side", func(l *lab, host, target runnable) error {
		done := make(chan error)
		for range 4 {
			go func() { done <- errors.Join(l.want(host, "sleep 0.1; echo h", "h"), l.want(target, "echo t", "t")) }()
		}
		return all(<-done, <-done, <-done, <-done)
	}},
	{"fsync is free", func(l *lab, host, target runnable) error {
		return all(l.probe(host, "fsync", "ok"), l.probe(target, "fsync", "ok"))
	}},
	{"forbidden calls", func(l *lab, host, target runnable) error {
		return all(l.probe(target, "forbidden", "ok"), l.probe(host, "vsock", "ok"), l.probe(host, "userns", "ok"))
	}},
	{"a container's first process survives signals", func(l *lab, _, target runnable) error {
		return l.want(target, "for s in HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM STOP; do kill -$s 1; done; sleep 0.05; echo alive", "alive")
	}},
	{"large environment and arguments", func(l *lab, host, target runnable) error {
		big := strings.Repeat("x", 100_000)
		for _, in := range []runnable{host, target} {
			st, err := in.Run(l.ctx, sandbox.Command{Args: []string{"sh", "-c", `test ${#BIG} = 100000 && test ${#1} = 100000`, "sh", big}, Env: append(l.env(), "BIG="+big)})
			if err != nil || !st.OK() {
				return fmt.Errorf("100 kB: %v, %v", st, err)
			}
		}
		return nil
	}},
}

// probePath is where the test binary is found in sessions and containers.
const probePath = "/dev/.cairn/probe"

// probe runs a check of the test binary's own inside.
func (l *lab) probe(in runnable, name, want string) error {
	bin := probePath
	if in == runnable(l.session) {
		bin = binaryInside
	}
	return l.want(in, envCase+"="+name+" "+bin, want)
}

func init() {
	cases["conformance"] = func(l *lab) error {
		// A descriptor that a careless caller left open must not get in.
		if _, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0); err != nil {
			return err
		}
		if err := l.world(nil); err != nil {
			return err
		}
		defer l.session.Close()
		c, err := l.session.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image", Mounts: []sandbox.Mount{{Source: binaryInside, Target: probePath, ReadOnly: true}}})
		if err != nil {
			return err
		}
		defer c.Close()
		var errs []error
		for _, k := range conformance {
			if err := k.check(l, l.session, c); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", k.name, err))
			}
		}
		return errors.Join(errs...)
	}
	callers["fsync"] = func(string) error {
		for name, nr := range map[string]uintptr{
			"fsync": unix.SYS_FSYNC, "fdatasync": unix.SYS_FDATASYNC, "syncfs": unix.SYS_SYNCFS,
			"sync_file_range": unix.SYS_SYNC_FILE_RANGE, "msync": unix.SYS_MSYNC,
		} {
			// Without the filter a bad descriptor, or address, is an error.
			if _, _, e := unix.Syscall6(nr, 12345, 1, 0x7fffffff, 0, 0, 0); e != 0 {
				return fmt.Errorf("%s: %w", name, e)
			}
		}
		return say("ok")
	}
	callers["forbidden"] = func(string) error { return errors.Join(forbidden(), vsock(), say("ok")) }
	callers["vsock"] = func(string) error { return errors.Join(vsock(), say("ok")) }
	callers["userns"] = func(string) error {
		if err := unix.Unshare(unix.CLONE_NEWUSER); err == nil {
			return errors.New("a nested user namespace was allowed")
		}
		return say("ok")
	}
}

func say(s string) error { _, err := fmt.Println(s); return err }

func vsock() error {
	if _, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0); !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("AF_VSOCK: %v", err)
	}
	return nil
}

// forbidden makes the calls that a target hook must not: research §6, 39 and 40.
func forbidden() error {
	calls := map[string]uintptr{
		"mount": unix.SYS_MOUNT, "umount2": unix.SYS_UMOUNT2, "setns": unix.SYS_SETNS, "bpf": unix.SYS_BPF, "ptrace": unix.SYS_PTRACE,
		"pivot_root": unix.SYS_PIVOT_ROOT, "keyctl": unix.SYS_KEYCTL, "add_key": unix.SYS_ADD_KEY, "request_key": unix.SYS_REQUEST_KEY,
		"io_uring_setup": unix.SYS_IO_URING_SETUP, "userfaultfd": unix.SYS_USERFAULTFD, "perf_event_open": unix.SYS_PERF_EVENT_OPEN,
		"open_by_handle_at": unix.SYS_OPEN_BY_HANDLE_AT, "fsopen": unix.SYS_FSOPEN, "open_tree": unix.SYS_OPEN_TREE,
		"move_mount": unix.SYS_MOVE_MOUNT, "mount_setattr": unix.SYS_MOUNT_SETATTR, "process_vm_readv": unix.SYS_PROCESS_VM_READV,
		"process_vm_writev": unix.SYS_PROCESS_VM_WRITEV, "init_module": unix.SYS_INIT_MODULE, "kexec_load": unix.SYS_KEXEC_LOAD,
		"reboot": unix.SYS_REBOOT, "swapon": unix.SYS_SWAPON, "pidfd_getfd": unix.SYS_PIDFD_GETFD, "kcmp": unix.SYS_KCMP,
		"quotactl": unix.SYS_QUOTACTL, "settimeofday": unix.SYS_SETTIMEOFDAY, "syslog": unix.SYS_SYSLOG,
	}
	var errs []error
	for name, nr := range calls {
		if _, _, e := unix.Syscall6(nr, 0, 0, 0, 0, 0, 0); e != unix.EPERM {
			errs = append(errs, fmt.Errorf("%s: got %v, want EPERM", name, e))
		}
	}
	for _, flag := range []int{unix.CLONE_NEWNS, unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET, unix.CLONE_NEWCGROUP, unix.CLONE_NEWTIME} {
		if err := unix.Unshare(flag); !errors.Is(err, unix.EPERM) {
			errs = append(errs, fmt.Errorf("unshare(%#x): got %v, want EPERM", flag, err))
		}
	}
	if _, _, e := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0); e == 0 {
		errs = append(errs, errors.New("clone(CLONE_NEWUSER) was allowed"))
	}
	for _, name := range []string{"/dev/.cairn-sandbox", "/proc/1/exe", "/proc/1/mem"} {
		if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
			f.Close()
			errs = append(errs, fmt.Errorf("%s can be written", name))
		}
	}
	if err := unix.Mknod("/tmp/device", unix.S_IFBLK|0o600, int(unix.Mkdev(254, 0))); err == nil {
		errs = append(errs, errors.New("a device node could be made"))
	}
	for _, name := range []string{"/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/sys/user/max_user_namespaces", "/sys/kernel/mm/ksm/run"} {
		if err := os.WriteFile(name, []byte("1"), 0); err == nil {
			errs = append(errs, fmt.Errorf("%s can be written", name))
		}
	}
	return errors.Join(errs...)
}

func TestConformance(t *testing.T) { runCase(t, "conformance", nil) }

// TestOwners looks from the host at who owns what hooks make.
func TestOwners(t *testing.T) {
	runCase(t, "owners", func(t *testing.T, _, out string) {
		var dir string
		var base int
		if _, err := fmt.Sscanf(out, "%d %s", &base, &dir); err != nil {
			t.Fatalf("%v: %q", err, out)
		}
		for name, want := range map[string]int{"host": base, "host42": base + 42, "target": base, "target65534": base + 65534} {
			var st syscall.Stat_t
			if err := syscall.Lstat(filepath.Join(dir, "image", name), &st); err != nil {
				t.Fatal(err)
			}
			if int(st.Uid) != want || int(st.Gid) != want {
				t.Errorf("%s: owned by %d:%d on the host, want %d", name, st.Uid, st.Gid, want)
			}
		}
	})
}

func init() {
	cases["owners"] = func(l *lab) error {
		if err := l.world(nil); err != nil {
			return err
		}
		defer l.session.Close()
		c, err := l.session.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image"})
		if err != nil {
			return err
		}
		defer c.Close()
		if err := all(
			l.want(l.session, "cd /image; touch host host42; chown 42:42 host42", ""),
			l.want(c, "touch target target65534; chown 65534:65534 target65534; stat -c %u:%g host42 target65534", "42:42\n65534:65534"),
		); err != nil {
			return err
		}
		m, err := os.ReadFile("/proc/self/uid_map")
		if err != nil {
			return err
		}
		var base int
		if base, err = strconv.Atoi(strings.Fields(string(m))[4]); err != nil {
			return err
		}
		for name, want := range map[string]uint32{"host": 1, "host42": 43, "target65534": 65535} {
			var st unix.Stat_t
			if err := unix.Lstat(l.path("image/"+name), &st); err != nil || st.Uid != want {
				return fmt.Errorf("%s: the worker sees owner %d (%v), want %d", name, st.Uid, err, want)
			}
		}
		fmt.Fprintln(&l.log, base, l.dir)
		return nil
	}

	cases["mounts"] = func(l *lab) error {
		if err := os.WriteFile(l.path("secret"), nil, 0o644); err != nil {
			return err
		}
		if err := os.Mkdir(l.path("ro"), 0o755); err != nil {
			return err
		}
		if err := l.world(func(s *sandbox.SessionSpec) {
			s.Mounts = append(s.Mounts, sandbox.Mount{Source: l.path("ro"), Target: "/var/deep/ro", ReadOnly: true},
				sandbox.Mount{Kind: sandbox.Tmpfs, Target: "/image/var/tmpfs", Options: "mode=1777,size=1m"},
				sandbox.Mount{Source: l.path("secret"), Target: "/etc/not-there", IfExists: true},
				sandbox.Mount{Source: l.path("secret"), Target: "/etc/passwd", IfExists: true})
		}); err != nil {
			return err
		}
		defer l.session.Close()
		h := l.session
		if err := all(
			l.want(h, "mkdir /tmp/a /image/mnt/b; echo x > /tmp/a/x; mount --bind /tmp/a /image/mnt/b; mount -t proc none /image/proc; mount -t tmpfs none '/image/mnt/b'", ""),
			l.want(h, "mkdir '/image/mnt/b/with space' && mount -t tmpfs none '/image/mnt/b/with space' && echo y > '/image/mnt/b/with space/y'; chroot /image /bin/sh -c 'id -u; ls /mnt/b; test -d /proc/self && echo proc'", "0\nwith space\nproc"),
			l.want(h, "touch /var/deep/ro/x 2>&1 | grep -c Read-only; mount -o remount,bind,rw /var/deep/ro 2>/dev/null || echo locked; umount /var/deep/ro 2>/dev/null || echo locked; umount -l /image 2>/dev/null || echo locked", "1\nlocked\nlocked\nlocked"),
			l.want(h, "ls /etc; wc -c < /etc/passwd; stat -c %a /image/var/tmpfs", "passwd\n0\n1777"),
		); err != nil {
			return err
		}
		c, err := h.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image"})
		if err != nil {
			return err
		}
		if err := all(l.want(c, "cat '/mnt/b/with space/y'; echo z > '/mnt/b/with space/z'", "y"), c.Close(),
			l.want(h, "cat '/image/mnt/b/with space/z'", "z")); err != nil {
			return err
		}
		below, err := h.MountsBelow("/image")
		if want := "/image/mnt/b/with space|/image/mnt/b|/image/proc|/image/mnt/b"; err != nil || strings.Join(below, "|") != want {
			return fmt.Errorf("MountsBelow = %q, %v, want %q", below, err, want)
		}
		// Even if in use.
		busy, cancel := context.WithCancel(l.ctx)
		defer cancel()
		go h.Run(busy, sandbox.Command{Args: []string{"sleep", "985"}, Dir: "/image/mnt/b", Env: l.env()}) //nolint:errcheck // cancelled
		time.Sleep(50 * time.Millisecond)
		if err := h.UnmountBelow("/image"); err != nil {
			return err
		}
		below, err = h.MountsBelow("/image")
		if err != nil || len(below) != 0 {
			return fmt.Errorf("after UnmountBelow: %q, %v", below, err)
		}
		return l.want(h, "ls /image/mnt/b; grep -c /image/var/tmpfs /proc/self/mountinfo", "1")
	}

	cases["capability"] = func(l *lab) error {
		if err := l.world(nil); err != nil {
			return err
		}
		defer l.session.Close()
		c, err := l.session.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image", Mounts: []sandbox.Mount{{Source: binaryInside, Target: probePath}}})
		if err != nil {
			return err
		}
		defer c.Close()
		if err := l.probe(c, "setcap", "ok"); err != nil {
			return err
		}
		value := make([]byte, 100)
		n, err := unix.Lgetxattr(l.path("image/tmp/ping"), "security.capability", value)
		if err != nil {
			return err
		}
		got := fmt.Sprintf("%x", value[:n])
		// Version 3 with rootid 1 (vfs_ns_cap_data in linux/capability.h).
		if want := "010000030020000000000000000000000000000001000000"; got != want {
			return fmt.Errorf("security.capability in the worker: got %s, want %s", got, want)
		}
		return nil
	}
	callers["setcap"] = func(string) error {
		v2 := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		if err := os.WriteFile("/tmp/ping", nil, 0o755); err != nil {
			return err
		}
		if err := unix.Setxattr("/tmp/ping", "security.capability", v2, 0); err != nil {
			return err
		}
		return say("ok")
	}

	cases["network"] = func(l *lab) error {
		if err := l.world(func(s *sandbox.SessionSpec) { s.TCPPorts = []int{8080, 80} }); err != nil {
			return err
		}
		defer l.session.Close()
		if len(l.session.Listening.TCP) != 3 || len(l.session.Listening.UDP) != 1 {
			return fmt.Errorf("listening: %v", l.session.Listening)
		}
		for port, f := range l.session.Listening.TCP {
			n, err := net.FileListener(f)
			if err != nil {
				return err
			}
			go http.Serve(n, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:errcheck // ends with the worker
				fmt.Fprintf(w, "%s %s %d", r.Host, r.URL.Path, port)
			}))
		}
		dns, err := net.FilePacketConn(l.session.Listening.UDP[53])
		if err != nil {
			return err
		}
		go answerDNS(dns)
		c, err := l.session.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image"})
		if err != nil {
			return err
		}
		defer c.Close()
		for _, in := range []runnable{l.session, c} {
			if err := all(
				l.want(in, "wget -qO- http://127.0.0.1/a; echo; wget -qO- http://127.0.0.1:8080/b", "127.0.0.1 /a 80\n127.0.0.1:8080 /b 8080"),
				l.want(in, "nslookup -type=a packages.example.org 127.0.0.1 | grep -c 'Address: 127.0.0.1$'", "1"),
				l.want(in, "nc -w2 192.0.2.1 80 2>&1 </dev/null | grep -c unreachable; nc -w2 169.254.169.254 80 2>&1 </dev/null | grep -c unreachable", "1\n1"),
				l.want(in, "nc -w2 127.0.0.1 81 2>&1 </dev/null | grep -c refused", "1"),
			); err != nil {
				return err
			}
		}
		return nil
	}

	cases["container tree"] = func(l *lab) error {
		if err := l.world(nil); err != nil {
			return err
		}
		defer l.session.Close()
		h := l.session
		const list = "cd /image; find . -exec stat -c '%n %F %Y %y %u %a %s' {} +  | sort | md5sum"
		if err := l.want(h, "cd /image; rmdir dev proc sys; ln -s ../run/resolv.conf etc/resolv.conf; echo hosts > etc/hosts; ln -s ../../../../etc/hosts etc/climb; ln -s / etc/loop; touch -d @1000000 etc var .", ""); err != nil {
			return err
		}
		before, _, err := l.sh(h, list)
		if err != nil {
			return err
		}
		if err := l.want(h, "echo mine > /tmp/file; mkdir /tmp/dir; touch /tmp/dir/in", ""); err != nil {
			return err
		}
		c, err := h.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image", Hostname: "target", Mounts: []sandbox.Mount{
			{Source: "/tmp/file", Target: "/etc/resolv.conf", IfExists: true},
			{Source: "/tmp/file", Target: "/etc/hosts", IfExists: true},
			{Source: "/tmp/file", Target: "/var/a/b/file"},
			{Source: "/tmp/dir", Target: "/etc/loop/var/a/dir", ReadOnly: true},
			{Source: "/tmp/file", Target: "/dev/.cairn/file"},
			{Kind: sandbox.Tmpfs, Target: "/run/x"},
		}})
		if err != nil {
			return err
		}
		if err := all(
			l.want(c, "hostname; cat /etc/hosts /var/a/b/file /dev/.cairn/file; ls /var/a/dir /run/x; touch /var/a/dir/x 2>&1 | grep -c Read-only; cat /etc/resolv.conf 2>/dev/null || echo none", "target\nmine\nmine\nmine\n/run/x:\n\n/var/a/dir:\nin\n1\nnone"),
			c.Close(),
			c.Close(),
		); err != nil {
			return err
		}
		after, _, err := l.sh(h, list)
		if err != nil {
			return err
		}
		if before != after {
			now, _, _ := l.sh(h, "find /image -newermt @999999 | grep -v /bin/; ls -lR /image/etc /image/var")
			return fmt.Errorf("the container left traces:\n%s", now)
		}
		return l.want(h, "ls /dev/.cairn-sandbox-state; ps | grep -c '[c]ontainer' || true", "0")
	}
}

// answerDNS says 127.0.0.1 to every question.
func answerDNS(c net.PacketConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		q := append([]byte(nil), buf[:n]...)
		q[2], q[3], q[7] = 0x81, 0x80, 1
		q = append(q, 0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
		c.WriteTo(q, from) //nolint:errcheck // a test
	}
}

func TestMounts(t *testing.T)        { runCase(t, "mounts", nil) }
func TestCapability(t *testing.T)    { runCase(t, "capability", nil) }
func TestNetwork(t *testing.T)       { runCase(t, "network", nil) }
func TestContainerTree(t *testing.T) { runCase(t, "container tree", nil) }
