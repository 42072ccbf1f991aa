package build

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"cairn/sandbox"
)

// What diskimage-builder's core itself does to the tree. All of it goes
// through os.Root: hooks own the tree and may have put links anywhere.

// rootPhase runs root.d and checks that it made a tree.
func (w *worker) rootPhase(ctx context.Context) error {
	if err := w.hostPhase("root.d")(ctx); err != nil {
		return err
	}
	names, err := os.ReadDir(w.dirs.mnt)
	if err != nil {
		return fail(err, "look at the tree that root.d made")
	}
	if len(names) == 0 {
		return refuse("an element that provides operating-system must fill $TARGET_ROOT in root.d",
			"Failed to deploy the root element.")
	}
	return w.onTree(func(r *os.Root) error {
		if err := swapResolvConf(r, resolver); err != nil {
			return fail(err, "replace /etc/resolv.conf for the build")
		}
		return nil
	})
}

// onTree opens the tree for f.
func (w *worker) onTree(f func(*os.Root) error) error {
	r, err := os.OpenRoot(w.dirs.mnt)
	if err != nil {
		return err
	}
	defer r.Close()
	return f(r)
}

const (
	resolvConf = "etc/resolv.conf"
	resolvOrig = "etc/resolv.conf.ORIG"
)

// swapResolvConf keeps the tree's own resolv.conf aside, under the name that
// elements know, and puts the build's in its place.
func swapResolvConf(r *os.Root, content string) error {
	if _, err := r.Lstat("etc"); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := r.Lstat(resolvConf); err == nil {
		if err := r.Rename(resolvConf, resolvOrig); err != nil {
			return err
		}
	}
	return writeOwned(r, resolvConf, []byte(content), 0o777)
}

// restoreResolvConf undoes swapResolvConf. A symlink that a hook made is kept;
// an original that a hook edited is what the image gets.
func restoreResolvConf(r *os.Root) error {
	fi, err := r.Lstat(resolvConf)
	if err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		return removeIfThere(r, resolvOrig)
	}
	if err == nil {
		if err := r.Remove(resolvConf); err != nil {
			return err
		}
	}
	if err := r.Rename(resolvOrig, resolvConf); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func removeIfThere(r *os.Root, name string) error {
	if err := r.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeOwned makes or replaces a file that belongs to the image's root.
func writeOwned(r *os.Root, name string, content []byte, mode fs.FileMode) error {
	if err := removeIfThere(r, name); err != nil {
		return err
	}
	f, err := r.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chown(sandbox.IDShift, sandbox.IDShift)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	return errors.Join(err, f.Close())
}

// leaveMnt ends the phases in the plain directory: element mounts vanish and
// the tree is called "built".
func (w *worker) leaveMnt(context.Context) error {
	if err := w.session.UnmountBelow(seenMnt); err != nil {
		return fail(err, "unmount what hooks mounted below %s", seenMnt)
	}
	if err := w.onTree(func(r *os.Root) error { return r.RemoveAll("lost+found") }); err != nil {
		return fail(err, "remove lost+found")
	}
	return os.Rename(w.dirs.mnt, w.dirs.built)
}

// createFilesystem is where diskimage-builder copies the tree into the new
// file system: here the tree stays where it is and only gets its fstab and its
// old name, since the file system is written from it at the end.
func (w *worker) createFilesystem(context.Context) error {
	if err := os.Rename(w.dirs.built, w.dirs.mnt); err != nil {
		return err
	}
	return w.onTree(func(r *os.Root) error {
		if _, err := r.Lstat("etc"); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err := writeOwned(r, "etc/fstab", []byte(w.plan.Fstab()), 0o644); err != nil {
			return fail(err, "write /etc/fstab")
		}
		return w.makeMountPoints(r)
	})
}

// makeMountPoints makes those that no element has made: from here on
// diskimage-builder has the file systems mounted.
func (w *worker) makeMountPoints(r *os.Root) error {
	for _, m := range w.plan.Mounts {
		made := ""
		for part := range strings.SplitSeq(strings.Trim(path.Clean(m.Point), "/"), "/") {
			made = path.Join(made, part)
			if m.Point == "none" || made == "" {
				break
			}
			switch err := r.Mkdir(made, 0o755); {
			case errors.Is(err, fs.ErrExist):
				continue
			case err != nil:
				return fail(err, "make the mount point %s", m.Point)
			}
			if err := errors.Join(r.Chmod(made, 0o755), r.Lchown(made, sandbox.IDShift, sandbox.IDShift)); err != nil {
				return fail(err, "make the mount point %s", m.Point)
			}
		}
	}
	return nil
}

// cleanupPhase runs cleanup.d and then diskimage-builder's own clean-up.
func (w *worker) cleanupPhase(ctx context.Context) error {
	if err := w.hostPhase("cleanup.d")(ctx); err != nil {
		return err
	}
	if err := w.session.UnmountBelow(seenMnt); err != nil {
		return fail(err, "unmount what hooks mounted below %s", seenMnt)
	}
	return w.onTree(func(r *os.Root) error {
		if err := restoreResolvConf(r); err != nil {
			return fail(err, "restore /etc/resolv.conf")
		}
		return emptyDir(r, "tmp")
	})
}

// emptyDir removes all that a directory of the tree holds.
func emptyDir(r *os.Root, dir string) error {
	fi, err := r.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.IsDir() {
		return nil
	}
	f, err := r.Open(dir)
	if err != nil {
		return fail(err, "empty /%s", dir)
	}
	names, err := f.Readdirnames(-1)
	f.Close()
	for _, name := range names {
		if rerr := r.RemoveAll(path.Join(dir, name)); rerr != nil && err == nil {
			err = rerr
		}
	}
	if err != nil {
		return fail(err, "empty /%s", dir)
	}
	return nil
}
