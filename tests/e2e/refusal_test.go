package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRefusals: a request that cannot work is refused before anything is
// built, with one error and a hint.
func TestRefusals(t *testing.T) {
	who := ordinary(t)
	tests := []struct {
		name string
		args []string
		env  []string
		want []string
	}{
		{"no element", []string{"build"}, nil, []string{"At least one distribution root element must be specified"}},
		{"unknown element", []string{"build", "test-os", "nosuch"}, nil, []string{"Element 'nosuch' not found", "hint:"}},
		{"missing dependency", []string{"build", "test-os", "needs-missing"}, nil, []string{"Element 'not-there' not found"}},
		{"two operating systems", []string{"build", "test-os", "debian-minimal"}, nil, []string{"operating-system: already provided by"}},
		{"no operating system", []string{"build", "-n", "all-phases"}, nil, []string{"Please include an operating system element"}},
		{"unknown option", []string{"build", "--bogus", "test-os"}, nil, []string{"unrecognized option '--bogus'"}},
		{"unknown format", []string{"build", "-t", "floppy", "test-os"}, nil, []string{`format "floppy"`, "hint:"}},
		{"bad size", []string{"build", "--image-size", "big", "test-os"}, nil, []string{"--image-size", `"big"`}},
		{"bad epoch", []string{"build", "test-os"}, []string{"SOURCE_DATE_EPOCH=soon"}, []string{"SOURCE_DATE_EPOCH", `"soon"`}},
		{"long label", []string{"build", "-n", "--root-label", "abcdefghijklmnopq", "test-os"}, nil, []string{"Label [abcdefghijklmnopq] too long for filesystem [ext4]: 17 > 16"}},
		// No machine that tests runs an emulator of a mainframe for all programs.
		{"foreign architecture", []string{"build", "-a", "s390x", "test-os"}, nil, []string{"cannot run programs for s390x", "hint:", "qemu-user-static"}},
		{"elements path", []string{"build", "test-os"}, []string{"ELEMENTS_PATH=/nonexistent"}, []string{"ELEMENTS_PATH entry '/nonexistent' is not a directory"}},
		{"no keyring", []string{"build", "test-os"}, []string{"DIB_APT_KEYRING=/nonexistent"}, []string{"DIB_APT_KEYRING", "/nonexistent"}},
		{"no lock file", []string{"build", "--locked", "test-os"}, nil, []string{"lock file", "hint:"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := scratch(t, who)
			r := run{t: t, who: who, dir: dir, args: tt.args, env: append([]string{"TMPDIR=" + dir}, tt.env...)}
			r.refused(1, tt.want, filepath.Join(dir, "image.qcow2"))
			nothingLeft(t, dir)
			empty(t, dir)
		})
	}
}

// empty checks that a directory holds nothing.
func empty(t *testing.T, dir string) {
	t.Helper()
	for _, name := range names(t, dir) {
		t.Errorf("%s is left in %s", name, dir)
	}
}

// names lists a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// build is the request that the tests of this file start from: no kernel, no
// disk.
func build(t *testing.T, who account, dir string, more ...string) *run {
	return &run{
		t: t, who: who, dir: dir, env: []string{"TMPDIR=" + dir},
		args: append([]string{"build", "-n", "-t", "raw", "-o", filepath.Join(dir, "x")}, more...),
	}
}

// TestUnusableMirror: a mirror that does not answer, or hangs up, is named.
func TestUnusableMirror(t *testing.T) {
	who := ordinary(t)
	hangUp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp.Close()
	go func() {
		for {
			c, err := hangUp.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for name, mirror := range map[string]string{
		"down":     "http://127.0.0.1:9/debian",
		"hangs up": "http://" + hangUp.Addr().String() + "/debian",
	} {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t, who)
			r := build(t, who, dir, "test-os")
			r.env = append(r.env, "DIB_DISTRIBUTION_MIRROR="+mirror, "DIB_DEBIAN_SECURITY_MIRROR="+mirror)
			r.refused(1, []string{mirror, "hint:"}, filepath.Join(dir, "x.raw"))
			nothingLeft(t, dir)
			empty(t, dir)
		})
	}
}

// TestExpiredRelease: an index past its date is refused, and accepted when that
// is asked for. Its signature and hashes are verified all the same.
func TestExpiredRelease(t *testing.T) {
	who := ordinary(t)
	dir := scratch(t, who)
	r := build(t, who, dir, "test-os")
	r.env = append(r.env, "DIB_RELEASE=sid")
	if res := r.end(); res.code == 0 {
		t.Fatal("the mirror's sid is current: this test needs an expired suite")
	}
	r.refused(1, []string{"expired", "sid", "hint:", "--allow-expired-release"}, filepath.Join(dir, "x.raw"))
	nothingLeft(t, dir)
	empty(t, dir)
	r.args = append(r.args, "--allow-expired-release")
	r.ok()
}

// phases are diskimage-builder's, in order.
var phases = strings.Fields("root extra-data pre-install install post-install post-root block-device pre-finalise finalise cleanup")

// TestFailingHook: a hook's status becomes the program's, in each phase, and
// nothing is left.
func TestFailingHook(t *testing.T) {
	who := ordinary(t)
	for _, phase := range phases {
		t.Run(phase, func(t *testing.T) {
			dir := scratch(t, who)
			r := build(t, who, dir, "test-os", "all-phases")
			r.env = append(r.env, "DIB_TEST_FAIL="+phase)
			r.refused(42, []string{"element all-phases: " + phase + ".d/50-all-phases", "hint:"}, filepath.Join(dir, "x.raw"), filepath.Join(dir, "x.lock.json"))
			nothingLeft(t, dir)
			empty(t, dir)
		})
	}
}

// TestInterrupted: Ctrl-C in each phase ends the build with nothing left.
func TestInterrupted(t *testing.T) {
	who := ordinary(t)
	for _, phase := range phases {
		t.Run(phase, func(t *testing.T) {
			dir := scratch(t, who)
			cmd := asleep(t, who, dir, phase)
			if err := syscall.Kill(cmd.Process.Pid, syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 130 {
				t.Errorf("ended with %v, want exit status 130", err)
			}
			nothingLeft(t, dir)
			empty(t, dir)
		})
	}
}

// TestKilled: kill -9 in each phase leaves no process and no mount, and no
// files but those that the next build, even one that fails, removes.
func TestKilled(t *testing.T) {
	who := ordinary(t)
	dir := scratch(t, who)
	var left []string
	for _, phase := range phases {
		t.Run(phase, func(t *testing.T) {
			cmd := asleep(t, who, dir, phase)
			for _, name := range left {
				if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
					t.Errorf("%s of the build before is still in %s", name, dir)
				}
			}
			left = names(t, dir)
			if err := syscall.Kill(cmd.Process.Pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // "signal: killed"
			nothingLeft(t, dir)
		})
	}
	r := build(t, who, dir, "test-os", "all-phases")
	r.env = append(r.env, "DIB_TEST_FAIL=root")
	r.refused(42, nil)
	empty(t, dir)
}

// asleep is a build whose hook of a phase is under way.
func asleep(t *testing.T, who account, dir, phase string) *exec.Cmd {
	t.Helper()
	r := build(t, who, dir, "test-os", "all-phases")
	r.env = append(r.env, "DIB_TEST_SLEEP="+phase)
	cmd, _, stderr := r.start(t.Context())
	waitFor(t, stderr.String, "sleeping in "+phase)
	return cmd
}

// waitFor waits until text appears.
func waitFor(t *testing.T, read func() string, text string) {
	t.Helper()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if strings.Contains(read(), text) {
			return
		}
	}
	t.Fatalf("no %q in %v:\n%s", text, limit, tail(read()))
}

// TestOutputFolder: an output folder that is read-only or full fails clearly
// and holds nothing afterwards.
func TestOutputFolder(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("mounts for this test need root; run the tests as root, or in a container as root")
	}
	who := ordinary(t)
	mounts := map[string][]string{
		"read-only": {"read-only", "mount --bind . . && mount -o remount,ro,bind ."},
		"full":      {"no space left on device", "mount -t tmpfs -o size=20m none ."},
	}
	for name, m := range mounts {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t, who)
			out := filepath.Join(dir, "out")
			if err := os.Mkdir(out, 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(out, int(who.uid), int(who.gid)); err != nil {
				t.Fatal(err)
			}
			mount(t, out, m[1])
			r := build(t, who, dir, "test-os")
			r.args = append(r.args, "-o", filepath.Join(out, "x"))
			r.refused(1, []string{m[0], out, "hint:"})
			nothingLeft(t, filepath.Join(dir, "work"))
			empty(t, out)
		})
	}
}

// mount runs a mount command in a directory and undoes it at the end.
func mount(t *testing.T, dir, command string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", command)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	if out, err := exec.Command("chmod", "0777", dir).CombinedOutput(); err != nil && !strings.Contains(string(out), "Read-only") {
		t.Fatalf("chmod %s: %v\n%s", dir, err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v\n%s", dir, err, out)
		}
	})
}

// withoutRange is a user who has no range of subordinate ids.
func withoutRange(t *testing.T) account {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("making a user without subuid range needs root")
	}
	const name = "cairn-nosub"
	if out, err := exec.Command("sh", "-c", "id "+name+" 2>/dev/null || useradd --create-home "+name+
		"; sed -i /^"+name+":/d /etc/subuid /etc/subgid").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return lookup(t, name)
}

// TestNoSandbox: a user who cannot have a sandbox is told how to get one.
func TestNoSandbox(t *testing.T) {
	without := withoutRange(t)
	t.Run("no subuid range", func(t *testing.T) {
		dir := scratch(t, without)
		build(t, without, dir, "test-os").refused(1, []string{"subuid", without.name, "hint:", "usermod"})
		empty(t, dir)
	})
	t.Run("user namespaces forbidden", func(t *testing.T) {
		who := lookup(t, "")
		dir := scratch(t, who)
		r := build(t, who, dir, "test-os")
		r.userns = true
		r.wrap = []string{"sh", "-c", `echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"`, "sh"}
		r.refused(1, []string{"namespaces", "hint:", "max_user_namespaces"})
		empty(t, dir)
	})
}
