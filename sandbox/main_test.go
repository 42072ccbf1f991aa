package sandbox_test

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/sandbox"
)

// envCase makes the test binary run one case as a caller of the package: with
// the credentials that the test wants, which is why it is another process.
const (
	envCase = "SANDBOX_TEST_CASE"
	envDir  = "SANDBOX_TEST_DIR"
)

// self is this test binary where every user may execute it.
var self = os.Args[0]

func TestMain(m *testing.M) {
	sandbox.Main(testWorker)
	if name := os.Getenv(envCase); name != "" {
		os.Exit(callerMain(name))
	}
	os.Exit(runStatic(m))
}

// runStatic runs the tests in a statically linked binary outside of go test's
// private directory: the sandbox puts this program into trees without a libc.
func runStatic(m *testing.M) int {
	const envStatic = "SANDBOX_TEST_STATIC"
	if os.Getenv(envStatic) != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "sandbox-test-bin-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "sandbox.test")
	if err := errors.Join(os.Chmod(dir, 0o755), makeStatic(bin)); err != nil {
		fmt.Println(err)
		return 1
	}
	cmd := exec.Command(bin, os.Args[1:]...)
	cmd.Env = append(os.Environ(), envStatic+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return 1
	}
	return 0
}

func makeStatic(to string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	f, err := elf.Open(exe)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			out, err := exec.Command("go", "test", "-c", "-tags", "netgo osusergo", "-ldflags", "-extldflags -static", "-o", to, ".").CombinedOutput()
			if err != nil {
				return fmt.Errorf("build static test binary: %w\n%s", err, out)
			}
			return nil
		}
	}
	in, err := os.ReadFile(exe)
	if err != nil {
		return err
	}
	return os.WriteFile(to, in, 0o755)
}

// cases are what runs in the worker, by name.
var cases = map[string]func(*lab) error{}

// A lab is what a case in the worker works with.
type lab struct {
	ctx     context.Context //nolint:containedctx // of one case
	conn    *sandbox.WorkerConn
	dir     string // scratch directory of the case, on disk
	session *sandbox.Session
	log     bytes.Buffer
}

// testWorker runs the case that its parent names.
func testWorker(ctx context.Context, conn *sandbox.WorkerConn) error {
	note, files, err := sandbox.RecvFiles(conn.FDs)
	if err != nil {
		return err
	}
	for _, f := range files {
		f.Close()
	}
	var job struct{ Case, Dir string }
	if err := json.Unmarshal(note, &job); err != nil {
		return err
	}
	l := &lab{ctx: ctx, conn: conn, dir: job.Dir}
	err = cases[job.Case](l)
	answer := l.log.String()
	if err != nil {
		answer += "FAIL: " + err.Error() + "\n"
	}
	return sandbox.SendFiles(conn.FDs, []byte(answer))
}

// host describes this process's machine and user, as the command line does.
func host() sandbox.Host {
	h := sandbox.Host{UID: os.Getuid(), GID: os.Getgid()}
	if u, err := user.LookupId(strconv.Itoa(h.UID)); err == nil {
		h.User = u.Username
	}
	h.SubUID, _ = os.ReadFile("/etc/subuid")
	h.SubGID, _ = os.ReadFile("/etc/subgid")
	h.UIDMap, _ = os.ReadFile("/proc/self/uid_map")
	h.GIDMap, _ = os.ReadFile("/proc/self/gid_map")
	h.NewUIDMap, _ = exec.LookPath("newuidmap")
	h.NewGIDMap, _ = exec.LookPath("newgidmap")
	return h
}

// callerMain starts a worker for one case and prints what it says.
func callerMain(name string) int {
	// A descriptor that a careless caller left open must not get in.
	if _, err := syscall.Open("/etc/passwd", syscall.O_RDONLY, 0); err != nil {
		return 1
	}
	if f := callers[name]; f != nil {
		if err := f(os.Getenv(envDir)); err != nil {
			fmt.Println("FAIL:", err)
			return 1
		}
		return 0
	}
	out, err := inWorker(context.Background(), name, os.Getenv(envDir))
	fmt.Print(out)
	if err != nil {
		fmt.Println("FAIL:", err)
		return 1
	}
	return 0
}

// callers are cases that do not start the usual worker.
var callers = map[string]func(dir string) error{}

func inWorker(ctx context.Context, name, dir string) (string, error) {
	h := host()
	m, err := sandbox.Preflight(h)
	if err != nil {
		return "", err
	}
	w, err := sandbox.StartWorker(ctx, sandbox.WorkerSpec{Map: m, Host: h, Stderr: os.Stderr})
	if err != nil {
		return "", err
	}
	note, _ := json.Marshal(map[string]string{"Case": name, "Dir": dir})
	if err := sandbox.SendFiles(w.FDs(), note); err != nil {
		return "", err
	}
	out, files, err := sandbox.RecvFiles(w.FDs())
	for _, f := range files {
		f.Close()
	}
	return string(out), errors.Join(err, w.Wait())
}

// patience is how long tests wait for what must come. It is no measure of speed:
// a busy machine may stand still for minutes.
const patience = 5 * time.Minute

// Everyone is who a case runs as.
var everyone = []struct {
	name string
	uid  int // of the caller
	base int // host uid of image root
}{
	{"root", 0, 0x70000000},
	{"builder", -1, -1},
}

// runCase runs a case as root and as the ordinary user builder.
func runCase(t *testing.T, name string, check func(t *testing.T, who, out string)) {
	t.Helper()
	for _, who := range everyone {
		t.Run(who.name, func(t *testing.T) {
			dir := scratch(t, who.name)
			cmd := asUser(t, who.name, self)
			cmd.Env = append(os.Environ(), envCase+"="+name, envDir+"="+dir)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			err := cmd.Run()
			if err != nil || strings.Contains(out.String(), "FAIL: ") {
				t.Fatalf("%s as %s: %v\n%s", name, who.name, err, out.String())
			}
			if check != nil {
				check(t, who.name, out.String())
			}
			if left := leftovers(dir); len(left) > 0 {
				t.Errorf("processes left behind: %v", left)
			}
		})
	}
}

// asUser makes a command that runs as a user. Tests must be started as root.
func asUser(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("run these tests as root: they run each case as root and as the user builder")
	}
	cmd := exec.Command(args[0], args[1:]...)
	if name != "root" {
		u, err := user.Lookup(name)
		if err != nil {
			t.Fatalf("%v: make the user with: useradd -m %s", err, name)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	cmd.Dir = "/"
	return cmd
}

// scratch makes a directory owned by a user. What the sandbox leaves in it is
// removed by root, who can.
func scratch(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sandbox-test-") //nolint:usetesting // with a short name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("%v: make the user with: useradd -m %s", err, name)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// leftovers lists processes of this test binary, but for this one and its
// parent, and processes that have mark in their environment or arguments, after
// time to end. So tests that call it must not run in parallel.
func leftovers(mark string) []string {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if found := processes(mark); len(found) == 0 || time.Now().After(deadline) {
			return found
		}
	}
}

func processes(mark string) []string {
	var found []string
	own, _ := os.Stat("/proc/self/exe")
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		if pid == os.Getpid() || pid == os.Getppid() {
			continue
		}
		env, _ := os.ReadFile(d + "/environ")
		args, _ := os.ReadFile(d + "/cmdline")
		exe, err := os.Stat(d + "/exe")
		if err == nil && os.SameFile(exe, own) || bytes.Contains(env, []byte(mark)) || bytes.Contains(args, []byte(mark)) {
			found = append(found, d+" "+strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return found
}

// busybox is a static shell with tools, the whole userland of these tests.
const busybox = "/bin/busybox"

// makeRoot makes a small tree of the image's at dir, in the worker.
func makeRoot(dir string) error {
	if _, err := os.Stat(busybox); err != nil {
		return errors.New("install the package busybox-static")
	}
	for _, d := range []string{"", "bin", "etc", "root", "tmp", "dev", "proc", "sys", "var", "mnt"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := sandbox.Chown(filepath.Join(dir, d), 0, 0); err != nil {
			return err
		}
	}
	if err := copyFile(busybox, filepath.Join(dir, "bin/busybox")); err != nil {
		return err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return err
	}
	for _, a := range strings.Fields(string(applets)) {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return errors.Join(sandbox.Chown(to, 0, 0), out.Close())
}

const binaryInside = "/.cairn/bin/cairn"

// world makes a base tree, an overlay over it as the session's root, and an
// image tree that the session sees at /image, and starts the session.
func (l *lab) world(change func(*sandbox.SessionSpec)) error {
	for _, d := range []string{"base", "upper", "work", "root", "image"} {
		if err := os.MkdirAll(l.path(d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"base", "image"} {
		if err := makeRoot(l.path(d)); err != nil {
			return err
		}
	}
	if err := sandbox.Chown(l.path("upper"), 0, 0); err != nil {
		return err
	}
	if err := sandbox.MountOverlay([]string{l.path("base")}, l.path("upper"), l.path("work"), l.path("root")); err != nil {
		return err
	}
	spec := sandbox.SessionSpec{
		Root: l.path("root"), Binary: binaryInside,
		Mounts: []sandbox.Mount{{Source: l.path("image"), Target: "/image"}},
	}
	if change != nil {
		change(&spec)
	}
	var err error
	l.session, err = sandbox.StartSession(l.ctx, spec)
	return err
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

type runnable interface {
	Run(context.Context, sandbox.Command) (sandbox.Status, error)
}

// hookEnv is the environment of commands; it marks them as ours.
func (l *lab) env() []string { return []string{"PATH=/bin", "MARK=" + l.dir} }

// sh runs a script and returns what it printed.
func (l *lab) sh(in runnable, script string) (string, sandbox.Status, error) {
	f, err := os.CreateTemp("/dev/shm", "out")
	if err != nil {
		return "", sandbox.Status{}, err
	}
	defer f.Close()
	os.Remove(f.Name())
	st, err := in.Run(l.ctx, sandbox.Command{Args: []string{"sh", "-c", script}, Env: l.env(), Stdout: f, Stderr: f})
	out := make([]byte, 1<<20)
	n, _ := f.ReadAt(out, 0)
	return string(out[:n]), st, err
}

// want runs a script and compares its output.
func (l *lab) want(in runnable, script, want string) error {
	got, st, err := l.sh(in, script)
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", script, err, got)
	}
	if got = strings.TrimSpace(got); got != want || !st.OK() {
		return fmt.Errorf("%s: %s: got %q, want %q", script, st, got, want)
	}
	return nil
}

// all joins checks.
func all(errs ...error) error { return errors.Join(errs...) }

func benchCase(b *testing.B, name string) {
	for _, who := range everyone {
		b.Run(who.name, func(b *testing.B) {
			cmd := asUser(b, who.name, self)
			cmd.Env = append(os.Environ(), envCase+"="+name, envDir+"="+scratch(b, who.name), "SANDBOX_TEST_N="+strconv.Itoa(b.N))
			b.ResetTimer()
			out, err := cmd.CombinedOutput()
			if err != nil || bytes.Contains(out, []byte("FAIL: ")) {
				b.Fatalf("%v\n%s", err, out)
			}
			for line := range strings.Lines(string(out)) {
				var what string
				var ms float64
				if n, _ := fmt.Sscanf(line, "%s %f", &what, &ms); n == 2 {
					b.ReportMetric(ms, what)
				}
			}
		})
	}
}

func BenchmarkStart(b *testing.B) { benchCase(b, "bench") }

func init() {
	cases["bench"] = func(l *lab) error {
		n := 20
		timed := func(what string, n int, f func() error) error {
			start := time.Now()
			for range n {
				if err := f(); err != nil {
					return err
				}
			}
			fmt.Fprintf(&l.log, "ms/%s %f\n", what, float64(time.Since(start).Microseconds())/1000/float64(n))
			return nil
		}
		if err := l.world(nil); err != nil {
			return err
		}
		defer l.session.Close()
		truth := sandbox.Command{Args: []string{"true"}, Env: l.env()}
		c, err := l.session.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image"})
		if err != nil {
			return err
		}
		err = all(
			timed("hook", n, func() error { _, err := l.session.Run(l.ctx, truth); return err }),
			timed("exec", n, func() error { _, err := c.Run(l.ctx, truth); return err }),
			c.Close(),
			timed("container", n, func() error {
				c, err := l.session.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image"})
				if err != nil {
					return err
				}
				return c.Close()
			}),
			timed("session", n, func() error {
				s, err := sandbox.StartSession(l.ctx, sandbox.SessionSpec{Root: l.path("root"), Binary: binaryInside})
				if err != nil {
					return err
				}
				return s.Close()
			}),
		)
		return err
	}
}
