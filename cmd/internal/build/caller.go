package build

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/sandbox"
)

// How hooks outside the image see the caller's directories. They run as the
// image's root, which is nobody to the caller's files: a directory appears
// through an overlay that belongs to the image's root, so hooks may make files
// in it, and what they made is handed over to the caller at the end.

// ownDirs are directories of the tools root that no directory of the caller may hide.
var ownDirs = []string{"/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/share", "/var", "/var/lib", "/var/cache"}

// shared is one directory of the caller that hooks see.
type shared struct {
	dir   string // on the host, and as hooks see it
	upper string // what hooks made in it
	view  string // the overlay
}

// callerDirs are the working and the output directory, as far as hooks can be
// given them.
func (w *worker) callerDirs() []string {
	out := filepath.Dir(filepath.Join(w.req.Cwd, w.req.Output))
	if filepath.IsAbs(w.req.Output) {
		out = filepath.Dir(w.req.Output)
	}
	dirs := []string{}
	for _, d := range []string{w.req.Cwd, out} {
		if !slices.Contains(ownDirs, d) && !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	slices.Sort(dirs) // a parent comes before what is below it
	return dirs
}

// seenCwd is where host hooks start.
func (w *worker) seenCwd() string {
	if slices.Contains(ownDirs, w.req.Cwd) {
		return "/"
	}
	return w.req.Cwd
}

// shareDirs mounts the overlays and returns the binds that show them, and the
// home: what lies in another directory after it.
func (w *worker) shareDirs(home string) ([]sandbox.Mount, error) {
	var mounts []sandbox.Mount
	if w.req.Home != "" && !slices.Contains(w.callerDirs(), w.req.Home) {
		mounts = append(mounts, sandbox.Mount{Source: home, Target: w.req.Home, ReadOnly: true})
	}
	for i, dir := range w.callerDirs() {
		base := filepath.Join(w.dirs.work, "share", string(rune('a'+i)))
		if err := w.apart(base, dir); err != nil {
			return nil, err
		}
		s := shared{dir: dir, upper: filepath.Join(base, "upper"), view: filepath.Join(base, "view")}
		work := filepath.Join(base, "work")
		for _, d := range []string{s.upper, work, s.view} {
			if err := makeImageDir(d); err != nil {
				return nil, err
			}
		}
		lower := []string{dir}
		if dir == w.req.Home {
			lower = []string{home, dir}
		}
		hidden, err := w.hideOutputs(dir, s.upper)
		if err != nil {
			return nil, err
		}
		if err := sandbox.MountOverlay(lower, s.upper, work, s.view); err != nil {
			// A directory that cannot be the lower layer (another overlay, say)
			// is not shown; hooks still have a place to write.
			s.view = s.upper
			for _, name := range hidden {
				if err := os.Remove(name); err != nil {
					return nil, err
				}
			}
		} else {
			w.undo = append(w.undo, func() error { return sandbox.Unmount(s.view) })
		}
		w.shared = append(w.shared, s)
		mounts = append(mounts, sandbox.Mount{Source: s.view, Target: dir})
	}
	slices.SortStableFunc(mounts, func(a, b sandbox.Mount) int { return strings.Compare(a.Target, b.Target) })
	return mounts, nil
}

// hideOutputs covers what an earlier build left under the output's name with
// whiteouts in upper: it is the caller's, hooks could not write over it, and
// what they make takes its place at the end.
func (w *worker) hideOutputs(dir, upper string) ([]string, error) {
	var prefixes []string // of names
	for _, name := range diskNames(w.plan) {
		out := outputPath(w.req, name, "")
		if filepath.Dir(out) != dir {
			return nil, nil
		}
		prefixes = append(prefixes, filepath.Base(out))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var hidden []string
	for _, e := range entries {
		if !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(e.Name(), p) }) {
			continue
		}
		name := filepath.Join(upper, e.Name())
		if err := unix.Mknod(name, unix.S_IFCHR, 0); err != nil {
			return nil, &os.PathError{Op: "hide", Path: name, Err: err}
		}
		hidden = append(hidden, name)
	}
	return hidden, nil
}

// apart makes base. An overlay's layers must not lie in one another: where the
// work directory is below dir, base is kept in memory.
func (w *worker) apart(base, dir string) error {
	if err := makeImageDir(base); err != nil {
		return err
	}
	if !strings.HasPrefix(w.dirs.work+"/", dir+"/") || w.req.Tmpfs {
		return nil
	}
	if err := sandbox.MountTmpfs(base, "mode=0755"); err != nil {
		return err
	}
	w.undo = append(w.undo, func() error { return sandbox.Unmount(base) })
	return nil
}

// homeFiles are what hooks see of the caller's home: configuration and public
// keys, never a private key.
var homeFiles = []string{
	".gitconfig", ".config/git/config", ".config/pip/pip.conf", ".pip/pip.conf",
	".ssh/authorized_keys", ".ssh/config", ".ssh/known_hosts", ".ssh/*.pub",
}

// stageHome copies those files into a home that hooks can read.
func (w *worker) stageHome() (string, error) {
	dst := filepath.Join(w.dirs.stage, "home")
	if err := makeImageDir(dst); err != nil {
		return "", err
	}
	if w.req.Home == "" {
		return dst, nil
	}
	for _, pattern := range homeFiles {
		found, err := filepath.Glob(filepath.Join(w.req.Home, pattern))
		if err != nil {
			return "", err
		}
		for _, name := range found {
			rel, err := filepath.Rel(w.req.Home, name)
			if err != nil {
				return "", err
			}
			if err := stageFile(name, dst, rel); err != nil {
				return "", fail(err, "copy %s of the caller's home for the hooks", rel)
			}
		}
	}
	return dst, nil
}

// stageFile copies one file to rel below dst, for the image's root alone.
func stageFile(name, dst, rel string) error {
	in, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a dangling link
	}
	if err != nil {
		return err
	}
	defer in.Close()
	if fi, err := in.Stat(); err != nil || !fi.Mode().IsRegular() {
		return err
	}
	for d := filepath.Dir(rel); d != "."; d = filepath.Dir(d) {
		if err := makeImageDir(filepath.Join(dst, d)); err != nil {
			return err
		}
	}
	to := filepath.Join(dst, rel)
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chown(sandbox.IDShift, sandbox.IDShift), out.Close())
}

// collectOutputs hands over to the caller what hooks made in its directories:
// manifests, kernels, and whatever else their elements export.
func (w *worker) collectOutputs(ctx context.Context) error {
	// From here on nobody else may change the tree.
	if err := w.session.Close(); err != nil {
		return fail(err, "end the hooks' session")
	}
	for _, s := range w.shared {
		r, err := os.OpenRoot(s.upper)
		if err != nil {
			return err
		}
		err = fs.WalkDir(r.FS(), ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || name == "." {
				return err
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return w.handOver(r, s, name, d)
		})
		r.Close()
		if err != nil {
			return fail(err, "hand over what hooks made in %s", s.dir)
		}
	}
	return nil
}

// handOver copies one entry to the caller's directory. Mount points, whiteouts
// and special files are not for the caller.
func (w *worker) handOver(from *os.Root, s shared, name string, d fs.DirEntry) error {
	to := filepath.Join(s.dir, name)
	switch {
	case d.IsDir() && w.isMountPoint(to):
		return fs.SkipDir
	case d.IsDir():
		err := os.Mkdir(to, 0o755)
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
		return err
	case d.Type()&fs.ModeSymlink != 0:
		target, err := from.Readlink(name)
		if err != nil {
			return err
		}
		return replaceLink(target, to)
	case !d.Type().IsRegular():
		return nil
	}
	in, err := from.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	return replaceFile(in, to, fi.Mode().Perm()|0o600)
}

// isMountPoint says whether the session has something of its own at path.
func (w *worker) isMountPoint(path string) bool {
	return slices.ContainsFunc(w.mounts, func(m sandbox.Mount) bool {
		return m.Target == path || strings.HasPrefix(m.Target, path+"/") && !w.isShared(m.Target)
	})
}

func (w *worker) isShared(path string) bool {
	return slices.ContainsFunc(w.shared, func(s shared) bool { return s.dir == path })
}

// replaceFile writes in under a temporary name and renames it.
func replaceFile(in io.Reader, to string, mode fs.FileMode) error {
	out, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+".*")
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	err = errors.Join(err, out.Chmod(mode), out.Close())
	if err == nil {
		err = os.Rename(out.Name(), to)
	}
	if err != nil {
		return errors.Join(err, os.Remove(out.Name()))
	}
	return nil
}

func replaceLink(target, to string) error {
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, to)
}
