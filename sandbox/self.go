package sandbox

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// memfile makes an anonymous file in memory.
func memfile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// stageBinary binds this program, read-only, to name inside root and returns
// its path there as the calling thread sees it.
func stageBinary(root, name string) (string, error) {
	r, err := openRooted(root)
	if err != nil {
		return "", err
	}
	defer r.close()
	tree, err := selfTree(r)
	if err != nil {
		return "", err
	}
	defer tree.Close()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return "", err
	}
	at, _, err := r.mountPoint(name, false, IDShift)
	if err != nil {
		return "", err
	}
	defer at.Close()
	if err := attach(tree, at); err != nil {
		return "", err
	}
	bound, err := r.open(name, 0)
	if err != nil {
		return "", err
	}
	defer bound.Close()
	return os.Readlink(fdPath(int(bound.Fd())))
}

// selfTree returns this program's file, not attached to anything: the file
// itself if hooks may execute it, else a copy. A copy is on a tmpfs that stays
// hidden below the session's /dev.
func selfTree(r *rooted) (*os.File, error) {
	if name, ok := selfPath(); ok {
		fd, err := unix.OpenTree(unix.AT_FDCWD, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
	}
	tree, err := tmpfsTree("")
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	at, err := r.open("/dev", unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	if err := attach(tree, at); err != nil {
		return nil, err
	}
	if err := copySelf(tree); err != nil {
		return nil, err
	}
	fd, err := unix.OpenTree(int(tree.Fd()), selfName, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: selfName, Err: err}
	}
	return os.NewFile(uintptr(fd), selfName), nil
}

// selfPath returns the path of this program if it still leads to it and every
// user may execute it there.
func selfPath() (string, bool) {
	name, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return "", false
	}
	var exe, st unix.Stat_t
	if unix.Stat("/proc/self/exe", &exe) != nil || unix.Lstat(name, &st) != nil {
		return "", false
	}
	ok := exe.Dev == st.Dev && exe.Ino == st.Ino && st.Mode&0o555 == 0o555
	return name, ok && !strings.HasPrefix(name, "(unreachable)")
}

const selfName = "self"

func copySelf(dir *os.File) error {
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("copy this program: %w", err)
	}
	defer in.Close()
	fd, err := unix.Openat(int(dir.Fd()), selfName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o755)
	if err != nil {
		return fmt.Errorf("copy this program: %w", err)
	}
	out := os.NewFile(uintptr(fd), selfName)
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return fmt.Errorf("copy this program: %w", err)
	}
	return out.Close()
}

// tmpfsTree makes a tmpfs that is not attached to anything yet. options are
// those of tmpfs(5); "" is a mode of 0755.
func tmpfsTree(options string) (*os.File, error) {
	if options == "" {
		options = "mode=0755"
	}
	ctx, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make tmpfs: %w", err)
	}
	defer unix.Close(ctx)
	for option := range strings.SplitSeq(options, ",") {
		key, value, ok := strings.Cut(option, "=")
		if ok {
			err = unix.FsconfigSetString(ctx, key, value)
		} else {
			err = unix.FsconfigSetFlag(ctx, key)
		}
		if err != nil {
			return nil, fmt.Errorf("make tmpfs: option %s: %w", option, err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, fmt.Errorf("make tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, fmt.Errorf("make tmpfs: %w", err)
	}
	return os.NewFile(uintptr(fd), "tmpfs"), nil
}
