package sandbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"cairn/sandbox"
)

func init() {
	// linger keeps every kind of process running.
	cases["linger"] = func(l *lab) error {
		if err := l.world(nil); err != nil {
			return err
		}
		defer l.session.Close()
		c, err := l.session.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image"})
		if err != nil {
			return err
		}
		defer c.Close()
		if err := l.want(l.session, "mkdir -p /image/mnt/deep; chmod 0 /image/mnt/deep; chown 42 /image/mnt/deep; mount -t tmpfs none /image/mnt", ""); err != nil {
			return err
		}
		results := make(chan error, 2)
		for up, in := range map[string]runnable{"/image/" + upInSession: l.session, "/" + upInContainer: c} {
			go func() {
				st, err := in.Run(l.ctx, sandbox.Command{Args: []string{"sh", "-c", "(setsid sleep 984 &); touch " + up + "; sleep 984"}, Env: l.env()})
				if err == nil {
					err = fmt.Errorf("the hook ended: %v", st)
				}
				results <- err
			}()
		}
		err = <-results
		fmt.Fprintln(&l.log, "ended:", err)
		return nil
	}
	callers["clean"] = func(dir string) error {
		h := host()
		m, err := sandbox.Preflight(h)
		if err != nil {
			return err
		}
		var trees []string
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			trees = append(trees, filepath.Join(dir, e.Name()))
		}
		return sandbox.RemoveOwned(context.Background(), h, m, append(trees, filepath.Join(dir, "missing"))...)
	}
}

// What the hooks of a lingering build make in its image when they run.
const upInSession, upInContainer = "up-in-session", "up-in-container"

// linger starts a lingering build.
func linger(t *testing.T, who string) (cmd *exec.Cmd, dir string, out *bytes.Buffer) {
	t.Helper()
	dir = scratch(t, who)
	cmd = asUser(t, who, self)
	cmd.WaitDelay = 10 * time.Second // what is left holds the pipes
	cmd.Env = append(os.Environ(), envCase+"=linger", envDir+"="+dir)
	out = &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, dir, out
}

// waitReady waits until every process of the build is there.
func waitReady(t *testing.T, dir string) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		_, err := os.Stat(filepath.Join(dir, "image", upInSession))
		_, err2 := os.Stat(filepath.Join(dir, "image", upInContainer))
		if err == nil && err2 == nil {
			return
		}
	}
	t.Fatal("the build does not come up")
}

// gone checks that nothing is left, and that the user can remove the trees.
func gone(t *testing.T, who, dir string) {
	t.Helper()
	if left := leftovers(dir); len(left) > 0 {
		t.Errorf("processes left behind: %v", left)
		for _, p := range left {
			pid, _ := strconv.Atoi(filepath.Base(strings.Fields(p)[0]))
			syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // a failed test cleans up
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(dir)) {
		t.Errorf("mounts left behind on the host: %v", err)
	}
	cmd := asUser(t, who, self)
	cmd.Env = append(os.Environ(), envCase+"=clean", envDir+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("clean up as %s: %v\n%s", who, err, out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("files left behind: %v, %v", left, err)
	}
}

// TestKillCaller kills the caller with SIGKILL at random moments, of which most
// are in the start.
func TestKillCaller(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, who := range everyone {
		t.Run(who.name, func(t *testing.T) {
			for i := range 12 {
				cmd, dir, _ := linger(t, who.name)
				if i == 0 {
					waitReady(t, dir)
				} else {
					time.Sleep(time.Duration(random.IntN(250_000)) * time.Microsecond)
				}
				cmd.Process.Kill()
				cmd.Wait() //nolint:errcheck // it was killed
				gone(t, who.name, dir)
			}
		})
	}
}

// TestKillParts kills one of the sandbox's own processes. The caller must see
// the end and be left with nothing.
func TestKillParts(t *testing.T) {
	for _, who := range everyone {
		for _, part := range []string{
			"cairn-sandbox: outer init", "cairn-sandbox: worker", "cairn-sandbox: session", "cairn-sandbox: agent\x00\x00",
			"/dev/.cairn-sandbox\x00cairn-sandbox: container", "cairn-sandbox: agent\x00in container", "cairn-sandbox: hook",
		} {
			t.Run(who.name+"/"+strings.ReplaceAll(part, "\x00", " "), func(t *testing.T) {
				cmd, dir, out := linger(t, who.name)
				waitReady(t, dir)
				pid := findPart(t, part)
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() { done <- cmd.Wait() }()
				select {
				case err := <-done:
					t.Logf("the caller ended: %v", err)
				case <-time.After(patience):
					cmd.Process.Kill()
					t.Errorf("the caller waits on after %q was killed", part)
				}
				if s := out.String(); !strings.Contains(s, "has ended") && !strings.Contains(s, "was killed") && !strings.Contains(s, "EOF") {
					t.Errorf("the caller was told: %q", s)
				}
				gone(t, who.name, dir)
			})
		}
	}
}

func findPart(t *testing.T, part string) int {
	t.Helper()
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	own, _ := os.Stat("/proc/self/exe")
	for _, d := range dirs {
		args, _ := os.ReadFile(d + "/cmdline")
		exe, err := os.Stat(d + "/exe")
		if err == nil && os.SameFile(own, exe) && bytes.HasPrefix(append(args, 0), []byte(part)) {
			pid, _ := strconv.Atoi(filepath.Base(d))
			return pid
		}
	}
	t.Fatalf("no process %q", part)
	return 0
}

func init() {
	callers["signal"] = func(dir string) error {
		h := host()
		m, err := sandbox.Preflight(h)
		if err != nil {
			return err
		}
		w, err := sandbox.StartWorker(context.Background(), sandbox.WorkerSpec{Map: m, Host: h, Stderr: os.Stderr})
		if err != nil {
			return err
		}
		note, _ := json.Marshal(map[string]string{"Case": "wait for the end", "Dir": dir})
		if err := sandbox.SendFiles(w.FDs(), note); err != nil {
			return err
		}
		if _, err := w.Conn().Read(make([]byte, 1)); err != nil {
			return err
		}
		if err := w.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		out, _, err := sandbox.RecvFiles(w.FDs())
		if err != nil || string(out) != "context canceled" {
			return fmt.Errorf("after SIGTERM: %q, %w", out, err)
		}
		return w.Wait()
	}
	cases["wait for the end"] = func(l *lab) error {
		if _, err := l.conn.RPC.Write([]byte("!")); err != nil {
			return err
		}
		<-l.ctx.Done()
		l.log.WriteString(l.ctx.Err().Error())
		return nil
	}

	// files passes files in every way that there is.
	callers["files"] = func(string) error {
		h := host()
		m, err := sandbox.Preflight(h)
		if err != nil {
			return err
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		worker, err := sandbox.StartWorker(context.Background(), sandbox.WorkerSpec{Map: m, Host: h, Files: []*os.File{w}, Stderr: os.Stderr})
		if err != nil {
			return err
		}
		w.Close()
		r2, w2, err := os.Pipe()
		if err != nil {
			return err
		}
		note, _ := json.Marshal(map[string]string{"Case": "write to files"})
		if err := errors.Join(sandbox.SendFiles(worker.FDs(), note), sandbox.SendFiles(worker.FDs(), []byte("note"), w2, w2)); err != nil {
			return err
		}
		w2.Close()
		var one, two bytes.Buffer
		one.ReadFrom(r)  //nolint:errcheck // compared below
		two.ReadFrom(r2) //nolint:errcheck // compared below
		if one.String() != "extra" || two.String() != "note note " {
			return fmt.Errorf("got %q and %q", &one, &two)
		}
		return worker.Wait()
	}
	cases["write to files"] = func(l *lab) error {
		note, files, err := sandbox.RecvFiles(l.conn.FDs)
		if err != nil || len(files) != 2 || len(l.conn.Files) != 1 {
			return fmt.Errorf("received %q, %d and %d files, %w", note, len(files), len(l.conn.Files), err)
		}
		for _, f := range files {
			fmt.Fprintf(f, "%s ", note)
			f.Close()
		}
		fmt.Fprint(l.conn.Files[0], "extra")
		return l.conn.Files[0].Close()
	}

	cases["many sessions"] = func(l *lab) error {
		if err := l.world(nil); err != nil {
			return err
		}
		defer l.session.Close()
		var wg sync.WaitGroup
		errs := make(chan error, 4)
		for range 4 {
			wg.Go(func() {
				for range 5 {
					c, err := l.session.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image"})
					if err == nil {
						err = errors.Join(l.want(c, "echo x", "x"), c.Close())
					}
					if err != nil {
						errs <- err
						return
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			return err
		}
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil || len(open) > 25 {
			return fmt.Errorf("%d descriptors are open after 20 containers, %w", len(open), err)
		}
		// A process may end between the listing and the look at it, and the
		// last to end may not be reaped yet.
		const left = `exec 2>/dev/null
			for i in $(seq 3000); do
				left=$(
					for p in /proc/[0-9]*; do grep -q agent $p/cmdline && set -- $p/fd/* && test $# -gt 20 && echo "$*"; done
					ps | grep '[c]ontainer'
					cat /proc/[0-9]*/stat | grep ') Z ')
				test -z "$left" && break
				sleep 0.1
			done
			echo "left: $left"`
		if err := l.want(l.session, left, "left:"); err != nil {
			return err
		}
		// Closing a session with a container and hooks in it.
		if _, err := l.session.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image"}); err != nil {
			return err
		}
		go l.sh(l.session, "sleep 983") //nolint:errcheck // it is killed
		time.Sleep(20 * time.Millisecond)
		if err := l.session.Close(); err != nil {
			return err
		}
		if _, _, err := l.sh(l.session, "true"); !errors.Is(err, sandbox.ErrEnded) {
			return fmt.Errorf("Run after Close: %v, want ErrEnded", err)
		}
		if _, err := l.session.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image"}); !errors.Is(err, sandbox.ErrEnded) {
			return fmt.Errorf("Container after Close: %v, want ErrEnded", err)
		}
		return sandbox.Unmount(l.path("root"))
	}

	cases["cancelled starts"] = func(l *lab) error {
		if err := l.world(nil); err != nil {
			return err
		}
		defer l.session.Close()
		attempt := func(d time.Duration) error {
			ctx, cancel := context.WithTimeout(l.ctx, d)
			defer cancel()
			s, err := sandbox.StartSession(ctx, sandbox.SessionSpec{Root: l.path("root"), Binary: binaryInside})
			if err == nil {
				s.Close()
			} else if !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("session cancelled after %v: %w", d, err)
			}
			c, err := l.session.Container(ctx, sandbox.ContainerSpec{Rootfs: "/image"})
			if err == nil {
				c.Close()
			} else if !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("container cancelled after %v: %w", d, err)
			}
			return nil
		}
		for _, d := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond} {
			if err := attempt(d); err != nil {
				return err
			}
		}
		return l.want(l.session, "sleep 0.1; ps | grep -c '[c]ontainer' || true", "0")
	}

	cases["host network"] = func(l *lab) error {
		if err := l.world(func(s *sandbox.SessionSpec) { s.Network = sandbox.NetworkHost }); err != nil {
			return err
		}
		defer l.session.Close()
		ours, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			return err
		}
		return l.want(l.session, "readlink /proc/self/ns/net; mkdir /sys/fs/cgroup/x 2>&1 | grep -c Read-only; hostname", ours+"\n1\nlocalhost")
	}
	cases["no network"] = func(l *lab) error {
		if err := l.world(func(s *sandbox.SessionSpec) { s.Network = sandbox.NetworkNone }); err != nil {
			return err
		}
		defer l.session.Close()
		if len(l.session.Listening.TCP) != 0 {
			return errors.New("there are sockets")
		}
		return l.want(l.session, "nc -w1 127.0.0.1 80 2>&1 </dev/null | grep -c refused; ls /sys/class/net", "1\nlo")
	}
}

func TestSignal(t *testing.T)          { runCase(t, "signal", nil) }
func TestFiles(t *testing.T)           { runCase(t, "files", nil) }
func TestManySessions(t *testing.T)    { runCase(t, "many sessions", nil) }
func TestCancelledStarts(t *testing.T) { runCase(t, "cancelled starts", nil) }
func TestHostNetwork(t *testing.T)     { runCase(t, "host network", nil) }
func TestNoNetwork(t *testing.T)       { runCase(t, "no network", nil) }

// TestBinaryOfTheCallerAlone runs a program that only its owner may execute,
// below a directory that only he may enter.
func TestBinaryOfTheCallerAlone(t *testing.T) {
	for _, who := range everyone {
		t.Run(who.name, func(t *testing.T) {
			dir := scratch(t, who.name)
			private := scratch(t, who.name)
			bin := filepath.Join(private, "cairn")
			st, err := os.Stat(private)
			if err != nil {
				t.Fatal(err)
			}
			own := st.Sys().(*syscall.Stat_t) //nolint:forcetypeassert,errcheck // on Linux
			in, err := os.ReadFile(self)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(bin, in, 0o700), os.Chown(bin, int(own.Uid), int(own.Gid)), os.Chmod(private, 0o700)); err != nil {
				t.Fatal(err)
			}
			cmd := asUser(t, who.name, bin)
			cmd.Env = append(os.Environ(), envCase+"=conformance", envDir+"="+dir)
			out, err := cmd.CombinedOutput()
			if err != nil || bytes.Contains(out, []byte("FAIL: ")) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestIgnoredSignals starts the caller as nohup would, and as a program that
// ignores a signal which is the C library's own.
func TestIgnoredSignals(t *testing.T) {
	dir := scratch(t, "builder")
	cmd := asUser(t, "builder", busybox, "sh", "-c", "trap '' HUP INT QUIT PIPE USR1; ulimit -c unlimited; umask 077; exec "+self)
	cmd.Env = append(os.Environ(), envCase+"=ignore 32", envDir+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("FAIL: ")) {
		t.Errorf("%v\n%s", err, out)
	}
}

func init() {
	callers["ignore 32"] = func(string) error {
		type sigaction struct{ handler, flags, restorer, mask uintptr }
		ignore := sigaction{handler: 1}
		if _, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, 32, uintptr(unsafe.Pointer(&ignore)), 0, 8, 0, 0); errno != 0 {
			return errno
		}
		if err := os.Setenv(envCase, "conformance"); err != nil {
			return err
		}
		return syscall.Exec(self, []string{self}, os.Environ())
	}
}
