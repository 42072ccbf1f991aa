package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// rooted is a directory whose contents are not trusted. Paths are resolved
// below it, symbolic links included, as if it were "/" (openat2(2),
// RESOLVE_IN_ROOT), and never through a magic link.
type rooted struct {
	dir *os.File
}

func openRooted(name string) (*rooted, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return &rooted{os.NewFile(uintptr(fd), name)}, nil
}

func (r *rooted) close() { _ = r.dir.Close() }

// open returns an O_PATH descriptor of a path inside.
func (r *rooted) open(name string, flags uint64) (*os.File, error) {
	rel := strings.TrimPrefix(path.Clean("/"+name), "/")
	if rel == "" {
		rel = "."
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 128 { // EAGAIN: a rename somewhere raced with "..", try again
		fd, err := unix.Openat2(int(r.dir.Fd()), rel, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
	return nil, &os.PathError{Op: "open", Path: name, Err: unix.EAGAIN}
}

// exists reports whether name leads to something.
func (r *rooted) exists(name string) bool {
	f, err := r.open(name, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// A created is a mount point that was made because there was none.
type created struct {
	parent string // cleaned, inside the root
	name   string
	dir    bool
	before unix.Timespec // the parent's mtime before
}

// mountPoint opens the place to mount on, and makes it, with the directories
// above, when it is not there: owned by id, and without a trace in the mtime
// of the directory that gains it. It returns what it made, outermost first.
func (r *rooted) mountPoint(name string, dir bool, id int) (*os.File, []created, error) {
	name = path.Clean("/" + name)
	var made []created
	for _, p := range prefixes(name) {
		f, err := r.open(p, 0)
		if err == nil {
			_ = f.Close()
			continue
		}
		if !errors.Is(err, unix.ENOENT) {
			return nil, made, err
		}
		c, err := r.create(path.Dir(p), path.Base(p), dir || p != name, id)
		if err != nil {
			return nil, made, err
		}
		made = append(made, c)
	}
	f, err := r.open(name, 0)
	return f, made, err
}

// prefixes returns "/a", "/a/b", "/a/b/c" for "/a/b/c", and nothing for "/".
func prefixes(name string) []string {
	var out []string
	for i := 1; i < len(name); i++ {
		if name[i] == '/' {
			out = append(out, name[:i])
		}
	}
	if len(name) > 1 {
		out = append(out, name)
	}
	return out
}

func (r *rooted) create(parent, name string, dir bool, id int) (created, error) {
	c := created{parent: parent, name: name, dir: dir}
	p, err := r.open(parent, unix.O_DIRECTORY)
	if err != nil {
		return c, err
	}
	defer p.Close()
	fd := int(p.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return c, &os.PathError{Op: "stat", Path: parent, Err: err}
	}
	c.before = st.Mtim
	if err := makeAt(fd, name, dir, id); err != nil {
		return c, &os.PathError{Op: "create", Path: path.Join(parent, name), Err: err}
	}
	return c, setMtime(fd, c.before)
}

func makeAt(parent int, name string, dir bool, id int) error {
	var err error
	if dir {
		err = unix.Mkdirat(parent, name, 0o755)
	} else {
		err = unix.Mknodat(parent, name, unix.S_IFREG|0o644, 0)
	}
	if err != nil {
		return err
	}
	return unix.Fchownat(parent, name, id, id, unix.AT_SYMLINK_NOFOLLOW)
}

// setMtime restores a directory's mtime, by its O_PATH descriptor.
func setMtime(fd int, t unix.Timespec) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, t}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, fdPath(fd), times, 0); err != nil {
		return fmt.Errorf("restore mtime: %w", err)
	}
	return nil
}

// fdPath names a descriptor of this process for calls that take no descriptor.
func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// remove takes away what mountPoint made, innermost first, if it is still
// there and empty.
func (r *rooted) remove(made []created) error {
	var errs []error
	for i := len(made) - 1; i >= 0; i-- {
		errs = append(errs, r.removeOne(made[i]))
	}
	return errors.Join(errs...)
}

func (r *rooted) removeOne(c created) error {
	p, err := r.open(c.parent, unix.O_DIRECTORY)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	defer p.Close()
	fd := int(p.Fd())
	var st, self unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: c.parent, Err: err}
	}
	if unix.Fstatat(fd, c.name, &self, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return nil // a hook was faster
	}
	flags := 0
	if c.dir {
		flags = unix.AT_REMOVEDIR
	} else if self.Mode&unix.S_IFMT != unix.S_IFREG || self.Size != 0 {
		return nil // a hook put something else there
	}
	err = unix.Unlinkat(fd, c.name, flags)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "remove", Path: path.Join(c.parent, c.name), Err: err}
	}
	return setMtime(fd, st.Mtim)
}
