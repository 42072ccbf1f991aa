// Package e2e drives the built program as its users do: as root and as an
// ordinary user, on good input and on bad.
package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// repo is the checkout.
const repo = "../.."

// cairn is the program under test. `make` builds it.
func cairn(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(repo, "bin", "cairn"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make first", err)
	}
	return path
}

// elementsPath is the folder of the test's own elements.
func elementsPath(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("testdata/elements")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// account is whom a command runs as.
type account struct {
	name     string
	uid, gid uint32
	home     string
}

// ordinary is the user that tests build as. As root it is made when it is
// missing; otherwise it is the one who runs the tests.
func ordinary(t *testing.T) account {
	t.Helper()
	if os.Getuid() != 0 {
		return lookup(t, "")
	}
	const name = "cairn-test"
	if _, err := user.Lookup(name); err != nil {
		if out, err := exec.Command("useradd", "--create-home", "--shell", "/bin/bash", name).CombinedOutput(); err != nil {
			t.Fatalf("useradd %s: %v\n%s", name, err, out)
		}
	}
	subuid, err := os.ReadFile("/etc/subuid")
	if err != nil || !strings.Contains(string(subuid), name+":") {
		t.Fatalf("user %s has no subuid range (%v): usermod --add-subuids 300000-365535 --add-subgids 300000-365535 %s", name, err, name)
	}
	return lookup(t, name)
}

func lookup(t *testing.T, name string) account {
	t.Helper()
	u, err := user.Current()
	if name != "" {
		u, err = user.Lookup(name)
	}
	if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return account{u.Username, uint32(uid), uint32(gid), u.HomeDir}
}

// scratch is a directory of the account, removed at the end with the account's
// own means (cairn cache clean removes what belongs to other ids).
func scratch(t *testing.T, who account) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "cairn-e2e-") //nolint:usetesting // on disk
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(who.uid), int(who.gid)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// run is one run of the program.
type run struct {
	t      *testing.T
	who    account
	dir    string
	env    []string
	args   []string
	wrap   []string // a command that starts the program
	userns bool     // start it as root of a user namespace of its own
}

// result is how it ended.
type result struct {
	code           int
	stdout, stderr string
	elapsed        time.Duration
}

// cache is where a user's runs of one test process keep packages and snapshots.
func cache(t *testing.T, who account) string {
	t.Helper()
	dir := filepath.Join(who.home, ".cache", "cairn")
	return dir
}

// start begins the program.
func (r *run) start(ctx context.Context) (*exec.Cmd, *output, *output) {
	r.t.Helper()
	argv := append(append([]string{}, r.wrap...), append([]string{cairn(r.t)}, r.args...)...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = r.dir
	cmd.Env = append([]string{
		"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + r.who.home, "USER=" + r.who.name, "CI=true",
		"ELEMENTS_PATH=" + elementsPath(r.t), "DIB_IMAGE_CACHE=" + cache(r.t, r.who),
	}, r.env...)
	var stdout, stderr output
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if r.userns {
		all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1 << 20}}
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = all, all
	}
	if os.Getuid() == 0 && r.who.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: r.who.uid, Gid: r.who.gid}
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return cmd, &stdout, &stderr
}

// output is what a running program printed so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// limit is how long a run may take. It is no measure of speed: a busy machine
// may stand still for minutes.
const limit = 15 * time.Minute

// end runs the program to its end.
func (r *run) end() result {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), limit)
	defer cancel()
	begin := time.Now()
	cmd, stdout, stderr := r.start(ctx)
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String(), time.Since(begin)}
}

// ok runs the program and expects it to succeed.
func (r *run) ok() result {
	r.t.Helper()
	res := r.end()
	if res.code != 0 {
		r.t.Fatalf("cairn %s: exit status %d\n%s", strings.Join(r.args, " "), res.code, tail(res.stderr))
	}
	return res
}

// refused runs the program and expects one error that says each of the texts,
// and no file with one of the names.
func (r *run) refused(code int, texts []string, absent ...string) result {
	r.t.Helper()
	res := r.end()
	if res.code != code {
		r.t.Errorf("exit status %d, want %d", res.code, code)
	}
	for _, text := range texts {
		if !strings.Contains(res.stderr, text) {
			r.t.Errorf("stderr lacks %q", text)
		}
	}
	if n := strings.Count(res.stderr, "cairn: error:"); n > 1 {
		r.t.Errorf("%d errors, want one", n)
	}
	for _, name := range absent {
		if _, err := os.Lstat(name); err == nil {
			r.t.Errorf("%s exists", name)
		}
	}
	if r.t.Failed() {
		r.t.Logf("stderr:\n%s", tail(res.stderr))
	}
	return res
}

func tail(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > 60 {
		lines = lines[len(lines)-60:]
	}
	return strings.Join(lines, "\n")
}

// digest is the SHA-256 of a file.
func digest(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// nothingLeft checks that no process, mount or work directory of the
// program's survives, once the kernel has had time to end them.
func nothingLeft(t *testing.T, work string) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Minute) // less than a hook sleeps
	for {
		left := leftovers(t, work)
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left behind:\n%s", left)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// leftovers names processes whose environment or command line has work in it,
// and mounts below it.
func leftovers(t *testing.T, work string) string {
	t.Helper()
	var left []string
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		env, err1 := os.ReadFile(filepath.Join(p, "environ"))
		cmd, err2 := os.ReadFile(filepath.Join(p, "cmdline"))
		if err1 != nil || err2 != nil || p == fmt.Sprintf("/proc/%d", os.Getpid()) {
			continue // gone
		}
		if bytes.Contains(env, []byte(work)) || bytes.Contains(cmd, []byte(work)) {
			left = append(left, p+": "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, work) {
			left = append(left, line)
		}
	}
	return strings.Join(left, "\n")
}
