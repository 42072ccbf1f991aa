package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/sandbox"
)

// hostile are things that a hook, or a base image, may do to the tree or to
// the processes around it. The numbers are those of the project's list of
// adversarial tests.
var hostile = []struct {
	name   string
	before string // by a host hook, in /image
	hook   string // by a target hook; "" is "echo fine"
	want   string // of the hook; "" is "fine"
	refuse string // the container must be refused with this
}{
	{name: "30 dev is a link to outside", before: "rmdir dev; mkdir /tmp/out; ln -s /tmp/out dev", refuse: "dev"},
	{name: "37 proc is a link", before: "rmdir proc; ln -s /tmp proc", refuse: "proc"},
	{name: "37 sys is a link to the root", before: "rmdir sys; ln -s / sys", refuse: "sys"},
	{name: "37 dev is a file", before: "rmdir dev; touch dev", refuse: "dev"},
	{name: "37 proc is a fifo", before: "rmdir proc; mkfifo proc", refuse: "proc"},
	{name: "37 mount point's directory is a link to outside", before: "rm -r etc; ln -s ../../../../tmp etc", hook: "cat /tmp/bound", want: "bound"},
	{name: "37 mount point's directory is an absolute link", before: "rm -r etc; ln -s /var etc", hook: "cat /var/bound", want: "bound"},
	{name: "37 mount point is a dangling link", before: "ln -s /nowhere/x etc/bound", refuse: "bound"},
	{name: "37 mount point's directory is a magic link", before: "rm -r etc; ln -s /proc/self/cwd etc", refuse: "etc"},
	{name: "50 passwd is a fifo", before: "rm etc/passwd; mkfifo etc/passwd"},
	{name: "50 passwd is a link to a device", before: "ln -sf /dev/zero etc/passwd"},
	{name: "50 passwd and group are garbage", before: "head -c 100000 /dev/urandom > etc/passwd; cp etc/passwd etc/group"},
	{name: "39 the processes of the container", hook: "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline | cut -c1-36; done 2>/dev/null | sort -u | grep -c '[c]airn'; ls -l /proc/1/root /proc/1/cwd /proc/1/exe 2>&1 | grep -c 'ermission denied'", want: "3\n3"},
	{name: "39 the working directory", hook: "readlink /proc/self/cwd; cd ..; pwd; ls -d ../../../../../image 2>/dev/null || echo none", want: "/\n/\nnone"},
	{name: "41 abstract sockets and host files", hook: "grep -c @ /proc/net/unix; ls /image 2>/dev/null || echo none", want: "0\nnone"},
	{name: "36 hook removes everything", hook: "rm -rf / 2>/dev/null; echo fine"},
	{name: "36 hook kills everything it can", hook: "kill -9 -1; echo unreachable", refuse: "-"},
	{name: "48 binfmt", hook: "ls /proc/sys/fs/binfmt_misc; (echo x > /proc/sys/fs/binfmt_misc/register) 2>/dev/null || echo fine"},
	{name: "chroot stays inside", hook: "mkdir /tmp/j; busybox chroot /tmp/j /bin/sh 2>/dev/null; cd /proc/1/root 2>/dev/null || echo fine"},
	{name: "mount point is removed while in use", hook: "rmdir /mnt/made 2>/dev/null; rm -f /etc/bound 2>/dev/null; mv /mnt /mnt2; mkdir /mnt; echo mine > /mnt/made; echo fine"},
}

func init() {
	cases["hostile"] = func(l *lab) error {
		if err := l.world(nil); err != nil {
			return err
		}
		defer l.session.Close()
		if err := l.want(l.session, "echo bound > /tmp/bound; mkdir /tmp/made", ""); err != nil {
			return err
		}
		var errs []error
		for _, h := range hostile {
			if err := l.hostile(h.before, h.hook, h.want, h.refuse); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", h.name, err))
			}
		}
		// The session and what is outside the image are as they were.
		errs = append(errs, l.want(l.session, "cat /tmp/bound; ls /tmp /tmp/out; ps | grep -c '[c]ontainer' || true", "bound\n/tmp:\nbound\nmade\nout\n\n/tmp/out:\n0"))
		return errors.Join(errs...)
	}
}

// hostile makes a new image, lets a host hook change it, and runs a target
// hook in it.
func (l *lab) hostile(before, hook, want, refuse string) error {
	if err := l.want(l.session, "mkdir /image/t; cp -a /image/bin /image/t/; cd /image/t; mkdir dev proc sys etc tmp var mnt root; touch etc/passwd; "+before, ""); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(l.ctx, patience)
	defer cancel()
	c, err := l.session.Container(ctx, sandbox.ContainerSpec{Rootfs: "/image/t", Mounts: []sandbox.Mount{
		{Source: "/tmp/bound", Target: "/etc/bound"}, {Source: "/tmp/made", Target: "/mnt/made"},
	}})
	if err == nil {
		if hook == "" {
			hook = "echo fine"
		}
		if want == "" {
			want = "fine"
		}
		err = errors.Join(l.want(c, hook, want), c.Close())
	}
	if err == nil && refuse != "" {
		err = errors.New("it was not refused")
	} else if err != nil && refuse != "" && (refuse == "-" || strings.Contains(err.Error(), refuse)) {
		err = nil
	}
	return errors.Join(err, l.want(l.session, "rm -rf /image/t", ""))
}

func init() {
	cases["fork bomb"] = func(l *lab) error {
		if err := l.world(nil); err != nil {
			return err
		}
		defer l.session.Close()
		c, err := l.session.Container(l.ctx, sandbox.ContainerSpec{Rootfs: "/image"})
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(l.ctx, 300*time.Millisecond)
		defer cancel()
		// Its limit is the machine's protection: what runs beside this test would
		// stand still, and so would who is to kill it.
		const bomb = "f() { (sleep 0.01; setsid sh -c 'sleep 982') & f2; }; f2() { for i in 1 2 3; do f & sleep 0.01; done; }; (ulimit -u 1000 && f) & exec sleep 981"
		_, err = c.Run(ctx, sandbox.Command{Args: []string{"sh", "-c", bomb}, Env: l.env()})
		if !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("fork bomb: %w", err)
		}
		if err := c.Close(); err != nil {
			return err
		}
		return l.want(l.session, "ps | grep -c 'sleep 98[2]' || true", "0")
	}

	// A host hook has the session in its hands, but not more.
	cases["hostile host hook"] = func(l *lab) error {
		if err := l.world(nil); err != nil {
			return err
		}
		defer l.session.Close()
		if err := all(
			l.want(l.session, "cat /proc/1/environ | wc -c; ls /proc/1/root/ | head -1; ls /tmp/sandbox-test* 2>/dev/null; ls /home /work 2>/dev/null; true", "0\nbin"),
			l.want(l.session, "(echo 1 > /proc/sys/kernel/panic) 2>/dev/null || echo refused; (echo h > /proc/sysrq-trigger) 2>/dev/null || echo refused; mknod /tmp/sda b 8 0 2>/dev/null || echo refused; mount -t ext4 /dev/vda /mnt 2>/dev/null || echo refused; mount -t sysfs s /mnt && ls -d /mnt/kernel; touch /mnt/kernel/x 2>/dev/null || echo refused; umount /mnt", "refused\nrefused\nrefused\nrefused\n/mnt/kernel\nrefused"),
			l.want(l.session, "chown 65536 /tmp 2>/dev/null || echo refused; mount -o remount,rw "+binaryInside+" 2>/dev/null; (echo x > "+binaryInside+") 2>/dev/null || echo refused", "refused\nrefused"),
		); err != nil {
			return err
		}
		// rm -rf / takes the tools root and what is bound into it, not more.
		if err := os.Mkdir(l.path("beside"), 0o777); err != nil {
			return err
		}
		if _, _, err := l.sh(l.session, "busybox rm -rf / 2>/dev/null"); err != nil {
			return err
		}
		for _, name := range []string{l.path("beside"), l.path("base/bin/sh"), "/etc/passwd", "/dev/null"} {
			if _, err := os.Lstat(name); err != nil {
				return err
			}
		}
		if _, _, err := l.sh(l.session, "true"); err == nil {
			return errors.New("sh is still there")
		}
		return nil
	}

	cases["session ends itself"] = func(l *lab) error {
		if err := l.world(nil); err != nil {
			return err
		}
		defer l.session.Close()
		_, _, err := l.sh(l.session, "kill -9 -1; sleep 5")
		if !errors.Is(err, sandbox.ErrEnded) {
			return fmt.Errorf("after kill -9 -1: %v, want ErrEnded", err)
		}
		select {
		case <-l.session.Done():
		case <-time.After(patience):
			return errors.New("the session is not done")
		}
		return nil
	}

	// The mounts of a session are resolved inside its root.
	cases["hostile root"] = func(l *lab) error {
		outside := l.path("outside")
		if err := os.Mkdir(outside, 0o777); err != nil {
			return err
		}
		if err := os.MkdirAll(l.path("base"), 0o755); err != nil {
			return err
		}
		for from, to := range map[string]string{"opt": outside, "srv": "../../../../../../" + strings.TrimPrefix(outside, "/"), ".cairn": "/var"} {
			if err := os.Symlink(to, filepath.Join(l.path("base"), from)); err != nil {
				return err
			}
		}
		err := l.world(func(s *sandbox.SessionSpec) {
			s.Mounts = append(s.Mounts, sandbox.Mount{Source: "/usr", Target: "/opt/x"}, sandbox.Mount{Source: "/usr", Target: "/srv/y"})
		})
		// A dangling link is refused; one that leads somewhere leads inside.
		if err == nil {
			l.session.Close()
			return errors.New("a dangling link was not refused")
		}
		left, err := os.ReadDir(outside)
		if err != nil || len(left) > 0 {
			return fmt.Errorf("made outside: %v, %w", left, err)
		}
		return nil
	}

	cases["remove"] = func(l *lab) error {
		deep := l.path("tree")
		for range 60 {
			deep = filepath.Join(deep, strings.Repeat("d", 60))
		}
		if err := os.MkdirAll(deep, 0o700); err != nil {
			return err
		}
		for dir := deep; dir != l.dir; dir = filepath.Dir(dir) {
			if err := errors.Join(sandbox.Chown(dir, 33, 33), os.Chmod(dir, 0)); err != nil {
				return err
			}
		}
		if err := os.WriteFile(l.path("kept"), nil, 0o644); err != nil {
			return err
		}
		if err := errors.Join(os.Symlink(l.path("kept"), deep+"/link"), unix.Mkfifo(deep+"/fifo", 0), sandbox.RemoveAll(l.path("tree")), sandbox.RemoveAll(l.path("tree"))); err != nil {
			return err
		}
		_, err := os.Stat(l.path("kept"))
		return err
	}

	cases["overlay"] = func(l *lab) error {
		var lower []string
		for i := range 40 {
			dir := l.path(fmt.Sprintf("a lower:directory, with\\ %d", i))
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(dir+"/"+fmt.Sprint(i), nil, 0o644); err != nil {
				return err
			}
			lower = append(lower, dir)
		}
		for _, d := range []string{"up:per", "wo,rk", "target"} {
			if err := os.Mkdir(l.path(d), 0o755); err != nil {
				return err
			}
		}
		if err := sandbox.MountOverlay(lower, l.path("up:per"), l.path("wo,rk"), l.path("target")); err != nil {
			return err
		}
		names, err := os.ReadDir(l.path("target"))
		if err != nil || len(names) != 40 {
			return fmt.Errorf("%d of 40 layers, %w", len(names), err)
		}
		if err := errors.Join(os.Remove(l.path("target/3")), sandbox.Unmount(l.path("target")),
			sandbox.MountOverlay(lower, "", "", l.path("target")), sandbox.MountTmpfs(l.path("target"), "size=1m"), sandbox.Unmount(l.path("target")), sandbox.Unmount(l.path("target"))); err != nil {
			return err
		}
		if err := sandbox.Unmount(l.path("target")); !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("Unmount of what is not mounted: %v", err)
		}
		if err := sandbox.MountOverlay([]string{l.path("none")}, "", "", l.path("target")); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("MountOverlay of nothing: %v", err)
		}
		return nil
	}
}

func TestHostile(t *testing.T)           { runCase(t, "hostile", nil) }
func TestForkBomb(t *testing.T)          { runCase(t, "fork bomb", nil) }
func TestHostileHostHook(t *testing.T)   { runCase(t, "hostile host hook", nil) }
func TestSessionEndsItself(t *testing.T) { runCase(t, "session ends itself", nil) }
func TestHostileRoot(t *testing.T)       { runCase(t, "hostile root", nil) }
func TestRemove(t *testing.T)            { runCase(t, "remove", nil) }
func TestOverlay(t *testing.T)           { runCase(t, "overlay", nil) }
