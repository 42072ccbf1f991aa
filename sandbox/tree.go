package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/sandbox/idmap"
)

// MountOverlay mounts an overlay in the worker, at target: the directories
// lower, topmost first, below the writable upper, which shares a file system
// with the empty directory work. With upper "" it is read-only and needs two
// lower directories. Its whiteouts and opaque marks are user.overlay.*
// attributes (userxattr), which any user namespace can write.
func MountOverlay(lower []string, upper, work, target string) error {
	// Descriptors stand for the directories: mount(2) takes one page of options,
	// in which ":" and "," are special.
	var open []*os.File
	defer func() { closeAll(open) }()
	name := func(dir string) (string, error) {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", &os.PathError{Op: "open", Path: dir, Err: err}
		}
		open = append(open, os.NewFile(uintptr(fd), dir))
		return fdPath(fd), nil
	}
	options, err := overlayOptions(lower, upper, work, name)
	if err == nil {
		err = unix.Mount("overlay", target, "overlay", 0, options)
	}
	if err != nil {
		return fmt.Errorf("mount overlay on %s: %w", target, err)
	}
	return nil
}

func overlayOptions(lower []string, upper, work string, name func(string) (string, error)) (string, error) {
	layers := make([]string, len(lower))
	for i, l := range lower {
		var err error
		if layers[i], err = name(l); err != nil {
			return "", err
		}
	}
	options := "userxattr,lowerdir=" + strings.Join(layers, ":")
	if upper == "" {
		return options, nil
	}
	u, err := name(upper)
	if err != nil {
		return "", err
	}
	w, err := name(work)
	return options + ",upperdir=" + u + ",workdir=" + w, err
}

// MountTmpfs mounts a tmpfs at target, in the worker. options are those of
// tmpfs(5); "" is a mode of 0755.
func MountTmpfs(target, options string) error {
	tree, err := tmpfsTree(options)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", target, err)
	}
	return nil
}

// Unmount unmounts what is at target, in the worker, at once for everyone and
// in fact when it is no longer in use. Nothing being mounted there is an error.
func Unmount(target string) error {
	if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// Chown makes an image's owner, given by the image's ids, that of a file, in
// the worker. It does not follow a symbolic link.
func Chown(name string, uid, gid int) error { return os.Lchown(name, uid+IDShift, gid+IDShift) }

// RemoveAll removes a tree, in the worker, whatever ids own its files and
// whatever modes its directories have. It does not follow links, nor leave the
// file system that the tree is on. A missing tree is no error.
func RemoveAll(name string) error {
	// The worker has CAP_DAC_OVERRIDE over every id of its map, so that modes
	// do not matter.
	if err := os.RemoveAll(name); err != nil {
		return fmt.Errorf("remove tree: %w", err)
	}
	return nil
}

// RemoveOwned removes trees that hold files of image ids, which the caller
// itself cannot remove: it starts a worker for it. It is for cleaning up after
// a build that was killed. Missing trees are no error.
func RemoveOwned(ctx context.Context, h Host, m idmap.Map, paths ...string) error {
	w, err := startOuter(ctx, roleRemove, WorkerSpec{Map: m, Host: h})
	if err != nil {
		return fmt.Errorf("remove trees: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = w.Kill() })
	defer stop()
	defer w.Wait() //nolint:errcheck // its report says it all
	defer w.Kill() //nolint:errcheck // it has ended, or must
	if err := sendJSON(w.Conn(), paths); err != nil {
		return fmt.Errorf("remove trees: %w", err)
	}
	r := recvReport(w.Conn())
	if ctx.Err() != nil {
		return fmt.Errorf("remove trees: %w", context.Cause(ctx))
	}
	if !r.Ready {
		return fmt.Errorf("remove trees: %w", &remoteError{r.Text, 0})
	}
	return nil
}

// removeWorker is the worker of RemoveOwned.
func removeWorker(_ context.Context, conn *WorkerConn) error {
	var paths []string
	if _, err := recvJSON(conn.RPC, &paths); err != nil {
		return err
	}
	var errs []error
	for _, p := range paths {
		errs = append(errs, RemoveAll(p))
	}
	r := report{Ready: true}
	if err := errors.Join(errs...); err != nil {
		r = failed("", err)
	}
	return sendJSON(conn.RPC, r)
}
