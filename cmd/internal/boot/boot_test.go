package boot

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/tests/require"
)

// smallImage is a disk whose boot sector prints one letter and halts.
func smallImage(t *testing.T) string {
	t.Helper()
	require.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	require.Tool(t, "qemu-img", "qemu-utils")
	path := filepath.Join(t.TempDir(), "small.raw")
	if err := os.WriteFile(path, append(probeSector(1), make([]byte, 1<<20-512)...), 0o444); err != nil {
		t.Fatal(err)
	}
	return path
}

// patience is how long tests wait for what must come. It is no measure of speed:
// a busy machine may stand still for minutes.
const patience = 5 * time.Minute

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// smallMachine runs the small image below a folder whose name is as awkward as
// can be.
func smallMachine(t *testing.T, c Config) (*Machine, string) {
	t.Helper()
	c.WorkDir = filepath.Join(t.TempDir(), "a, b=c 'd'", strings.Repeat("long", 40))
	if err := os.MkdirAll(c.WorkDir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.CPUs = 1
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 64
	}
	m, err := Start(within(t, patience), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() }) //nolint:errcheck // closed by the test
	return m, c.WorkDir
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestMachineLeavesNothing(t *testing.T) {
	image := smallImage(t)
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	m, work := smallMachine(t, Config{Image: image, DiskBytes: 1 << 30, Metadata: http.NotFoundHandler()})
	if end, err := m.Serial().Wait(within(t, patience), 0, "K"); err != nil || end < 1 {
		t.Fatalf("Wait() = %d, %v", end, err)
	}
	if _, err := os.Stat(m.path(overlayName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the overlay has a name while the machine runs: %v", err)
	}
	pid := m.command.Process.Pid
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("second Close() = %v", err)
	}
	if alive(pid) {
		t.Error("qemu still runs")
	}
	if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
		t.Errorf("left in the work folder: %v, %v", left, err)
	}
	if after, err := os.ReadFile(image); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the image was changed (or %v)", err)
	}
}

func TestMachineErrorsTellWhatHappened(t *testing.T) {
	m, _ := smallMachine(t, Config{Image: smallImage(t)})
	if _, err := m.Serial().Wait(within(t, patience), 0, "K"); err != nil {
		t.Fatal(err)
	}
	_, err := m.Serial().Wait(within(t, 300*time.Millisecond), 0, "never said")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `"never said"`) || !strings.HasSuffix(err.Error(), "serial console:\nK") {
		t.Errorf("Wait() error = %v", err)
	}
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Login(within(t, 300*time.Millisecond), "nobody", key); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Login() error = %v", err)
	}
	// The guest has no operating system that would hear the power button.
	err = m.Stop(within(t, time.Second))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "shut down") {
		t.Errorf("Stop() error = %v", err)
	}
	select {
	case <-m.Done():
	default:
		t.Error("the machine runs after a Stop that timed out")
	}
	if _, err := m.Serial().Wait(within(t, patience), 0, "never said"); !errors.Is(err, errExited) {
		t.Errorf("Wait() after the end: error = %v", err)
	}
	if err := m.SaveSerial(filepath.Join(t.TempDir(), "log")); err != nil {
		t.Error(err)
	}
}

// TestLastTry: what QEMU brought about before it ended counts.
func TestLastTry(t *testing.T) {
	m := &Machine{exited: make(chan struct{})}
	close(m.exited)
	tries := 0
	err := m.poll(t.Context(), time.Hour, func() (bool, error) {
		tries++
		return tries == 2, nil
	})
	if err != nil || tries != 2 {
		t.Errorf("poll() after the end: %v, in %d tries", err, tries)
	}
}

// TestSilentMonitor: the end of time is told as such.
func TestSilentMonitor(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	q := &monitor{conn: near, dec: json.NewDecoder(near), enc: json.NewEncoder(near)}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.execute(ended, "stop", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("execute() error = %v", err)
	}
}

func TestStartRefuses(t *testing.T) {
	image := smallImage(t)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, bytes.Repeat([]byte("text\n"), 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		config Config
		want   string
	}{
		{"missing image", Config{Image: filepath.Join(t.TempDir(), "none")}, "no such file"},
		{"no disk image", Config{Image: text}, "neither qcow2 nor a disk"},
		{"short file", Config{Image: "/dev/null"}, "EOF"},
		{"smaller disk", Config{Image: image, DiskBytes: 512}, "smaller than the image's 1048576"},
		{"unknown accelerator", Config{Image: image, Accel: 9}, "unknown accelerator 9"},
		{"unknown firmware", Config{Image: image, Firmware: 9}, "unknown firmware 9"},
		{"qemu's own refusal", Config{Image: image, SMBIOS: []string{"type=nonsense"}}, "qemu: "},
		{"work folder", Config{Image: image, WorkDir: "/nonexistent"}, "make work folder"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.config.WorkDir == "" {
				test.config.WorkDir = t.TempDir()
			}
			_, err := Start(within(t, patience), test.config)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("Start() error = %v, want %q", err, test.want)
			}
			if left, err := os.ReadDir(test.config.WorkDir); len(left) > 0 && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("left in the work folder: %v", left)
			}
		})
	}
}

func TestStartNamesMissingPackages(t *testing.T) {
	image := smallImage(t)
	t.Setenv("PATH", t.TempDir())
	_, err := Start(within(t, patience), Config{Image: image, WorkDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "qemu-utils") {
		t.Errorf("Start() error = %v, want the package's name", err)
	}
}

func TestMachineDiesWithItsParent(t *testing.T) {
	parent := exec.Command("/proc/self/exe")
	parent.Env = append(os.Environ(), orphanVariable+"="+smallImage(t), "TMPDIR="+t.TempDir())
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	if err := parent.Process.Kill(); err != nil {
		t.Error(err)
	}
	parent.Wait() //nolint:errcheck // killed
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("started machine said %q: %v", line, errors.Join(err, readErr))
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if state, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
	}
	t.Errorf("qemu %d outlived its parent", pid)
	syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // best effort
}

func TestRelay(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: OpenStackService(Instance{UserData: "words of the user"})}
	go server.Serve(l) //nolint:errcheck // ends with the test
	defer server.Close()
	relay := exec.Command("/proc/self/exe", "s")
	relay.Dir = dir
	relay.Env = append(os.Environ(), relayVariable+"=1")
	relay.Stdin = strings.NewReader("GET /openstack/latest/user_data HTTP/1.0\r\nHost: x\r\n\r\n")
	out, err := relay.Output()
	if err != nil || !strings.HasSuffix(string(out), "\r\n\r\nwords of the user") {
		t.Errorf("relay said %q, %v", out, err)
	}
}

func TestProbe(t *testing.T) {
	require.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	if err := runProbe(within(t, patience), tcg, t.TempDir(), 1000); err != nil {
		t.Errorf("probe under emulation: %v", err)
	}
	// A guest that is slow: the probe's loop does not end in time.
	if err := runProbe(within(t, time.Second), tcg, t.TempDir(), 1<<32-1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("probe of a slow guest: error = %v", err)
	}
	if err := runProbe(within(t, patience), "nonsense", t.TempDir(), 1); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("probe of no accelerator: error = %v", err)
	}
}

func TestTail(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"nothing", "", ""},
		{"last lines", "a\nb\nc\n", "b\nc"},
		{"control characters", "\x1b[0mx\r\ny\xff\x00\n", "[0mx\ny?"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := tail([]byte(test.in), 2); got != test.want {
				t.Errorf("tail(%q) = %q, want %q", test.in, got, test.want)
			}
		})
	}
}

func TestProbeImage(t *testing.T) {
	qemuImg := require.Tool(t, "qemu-img", "qemu-utils")
	dir := t.TempDir()
	qcow2 := filepath.Join(dir, "x.qcow2")
	if out, err := exec.Command(qemuImg, "create", "-q", "-f", "qcow2", qcow2, "5G").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for path, want := range map[string]struct {
		format string
		size   int64
	}{qcow2: {"qcow2", 5 << 30}, smallImage(t): {"raw", 1 << 20}} {
		format, size, err := probeImage(path)
		if err != nil || format != want.format || size != want.size {
			t.Errorf("probeImage(%s) = %s, %d, %v, want %v", filepath.Base(path), format, size, err, want)
		}
	}
}
