// Package require makes tests fail, never skip, when the machine lacks what
// they need, and says which Debian package or setting brings it. A skipped
// test proves nothing. For tests only.
package require

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Tool returns the path of a program on PATH (or in the sbin folders, which
// an ordinary user's PATH lacks). Without it the test fails and names the
// Debian package that has it.
func Tool(t testing.TB, name, debianPackage string) string {
	t.Helper()
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing: install the Debian package %s", name, debianPackage)
	return ""
}

// UserNS fails the test when this process may not make a user namespace.
func UserNS(t testing.TB) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("user namespaces are forbidden here (see kernel.unprivileged_userns_clone, "+
			"kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces): %v\n%s", err, out)
	}
}

// InNamespace reports whether the test runs in a user and a mount namespace of
// its own, where it may mount. If it does not, it has been run in such ones now.
func InNamespace(t *testing.T) bool {
	t.Helper()
	const mark = "CAIRN_TEST_NAMESPACE"
	if os.Getenv(mark) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), mark+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("in a namespace: %v\n%s", err, out)
	}
	return false
}

// Root fails the test when it does not run as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: run it with sudo or as the container's root")
	}
}

// User is an account of this machine without privileges.
type User struct {
	Name     string
	UID, GID uint32
	Home     string
}

// Range is how many subordinate ids an ordinary user needs.
const Range = 65536

// ordinaryName is the account that OrdinaryUser makes.
const ordinaryName = "builder"

// OrdinaryUser returns an account without privileges that has Range
// subordinate user and group ids: the caller's own or, for root, the account
// "builder", which is made or completed when need be and stays.
func OrdinaryUser(t testing.TB) User {
	t.Helper()
	unlock, err := lock()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	u, err := ordinaryUser()
	if err != nil {
		t.Fatalf("find an ordinary user with subordinate ids: %v", err)
	}
	return u
}

// lock keeps the tests of several packages, which run at a time, from making
// the same account.
func lock() (unlock func(), err error) {
	path := filepath.Join(os.TempDir(), fmt.Sprintf("cairn-test-account-%d.lock", os.Geteuid()))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock test account: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock test account: %s: %w", path, err), f.Close())
	}
	return func() { f.Close() }, nil //nolint:errcheck // nothing was written
}

func ordinaryUser() (User, error) {
	if os.Geteuid() != 0 {
		u, err := user.Current()
		if err != nil {
			return User{}, err
		}
		return describe(u, false)
	}
	u, err := user.Lookup(ordinaryName)
	if err != nil {
		if err := run("useradd", "--create-home", "--shell", "/bin/bash", ordinaryName); err != nil {
			return User{}, err
		}
		if u, err = user.Lookup(ordinaryName); err != nil {
			return User{}, err
		}
	}
	return describe(u, true)
}

// describe checks an account's ranges, or gives it the missing ones.
func describe(u *user.User, mend bool) (User, error) {
	for _, kind := range []struct{ file, option string }{
		{"/etc/subuid", "--add-subuids"}, {"/etc/subgid", "--add-subgids"},
	} {
		b, err := os.ReadFile(kind.file)
		if err != nil && !mend {
			return User{}, err
		}
		longest, free := ranges(string(b), u)
		if longest >= Range {
			continue
		}
		if !mend {
			return User{}, fmt.Errorf("%s gives %s no range of %d ids: run usermod %s FIRST-LAST %s",
				kind.file, u.Username, Range, kind.option, u.Username)
		}
		if err := run("usermod", kind.option, fmt.Sprintf("%d-%d", free, free+Range-1), u.Username); err != nil {
			return User{}, err
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return User{}, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return User{}, err
	}
	return User{u.Username, uint32(uid), uint32(gid), u.HomeDir}, nil
}

// ranges reads a file like subuid(5): the user's longest range, and the first
// id behind all ranges.
func ranges(text string, u *user.User) (longest, free uint64) {
	free = 100000 // SUB_UID_MIN of login.defs
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(fields[1], 10, 32)
		count, err2 := strconv.ParseUint(fields[2], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		free = max(free, first+count)
		if fields[0] == u.Username || fields[0] == u.Uid {
			longest = max(longest, count)
		}
	}
	return longest, free
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// Command prepares a program to run as the user, in the user's home and with
// nothing of this process's environment but PATH.
func (u User) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = u.Home
	cmd.Env = []string{"HOME=" + u.Home, "USER=" + u.Name, "LOGNAME=" + u.Name, "PATH=" + os.Getenv("PATH")}
	if uint32(os.Geteuid()) != u.UID {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.UID, Gid: u.GID}}
	}
	return cmd
}
