package sandbox

import (
	"os"

	"golang.org/x/sys/unix"
)

// devNodes are the devices that hooks have. They are the host's, bound, since
// mknod(2) of a device is refused in a user namespace.
var devNodes = []string{"null", "zero", "full", "random", "urandom", "tty"}

// devLinks are the symbolic links of a /dev, name and target.
var devLinks = [][2]string{
	{"ptmx", "pts/ptmx"},
	{"fd", "/proc/self/fd"},
	{"stdin", "/proc/self/fd/0"},
	{"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"},
}

const (
	devOptions    = "mode=0755,size=64m"
	devptsOptions = "newinstance,ptmxmode=0666,mode=0620,gid=5"
	shmOptions    = "mode=1777,size=512m"
)

// mountDev mounts a small /dev inside root: a tmpfs with the devices that
// every program expects, terminals of its own, and shared memory.
func mountDev(root string) error {
	if err := onMountPoint(root, "/dev", func(t string) error {
		return unix.Mount("tmpfs", t, "tmpfs", unix.MS_NOSUID, devOptions)
	}); err != nil {
		return err
	}
	return onMountPoint(root, "/dev", fillDev)
}

// fillDev puts the contents into the tmpfs at dev. The host's devices are
// still at /dev.
func fillDev(dev string) error {
	for _, n := range devNodes {
		f, err := os.OpenFile(dev+"/"+n, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
		if err != nil {
			return err
		}
		_ = f.Close()
		if err := unix.Mount("/dev/"+n, dev+"/"+n, "", unix.MS_BIND, ""); err != nil {
			return &os.PathError{Op: "bind", Path: "/dev/" + n, Err: err}
		}
	}
	for _, l := range devLinks {
		if err := os.Symlink(l[1], dev+"/"+l[0]); err != nil {
			return err
		}
	}
	return fillDevMounts(dev)
}

func fillDevMounts(dev string) error {
	for _, m := range []struct {
		name, fs, options string
		flags             uintptr
	}{
		{"pts", "devpts", devptsOptions, unix.MS_NOSUID | unix.MS_NOEXEC},
		{"shm", "tmpfs", shmOptions, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{stateName, "tmpfs", "mode=0700,size=64m", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	} {
		if err := os.Mkdir(dev+"/"+m.name, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, dev+"/"+m.name, m.fs, m.flags, m.options); err != nil {
			return &os.PathError{Op: "mount", Path: "/dev/" + m.name, Err: err}
		}
	}
	return nil
}

// stateName is a directory in a session's /dev for the run-time state of
// libcontainer.
const stateName = ".cairn-sandbox-state"
