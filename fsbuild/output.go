package fsbuild

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// OutputError says which output could not be written, and why.
type OutputError struct {
	Op   string // "create", "write raw", "complete" ...
	Path string // as the caller gave it
	Err  error
}

// Error implements error.
func (e *OutputError) Error() string { return fmt.Sprintf("%s: %s: %v", e.Op, e.Path, e.Err) }

// Unwrap returns the cause, usually a syscall.Errno.
func (e *OutputError) Unwrap() error { return e.Err }

// Hint says what the user can do about it, or is empty.
func (e *OutputError) Hint() string {
	dir := filepath.Dir(e.Path)
	for _, h := range []struct {
		errno syscall.Errno
		hint  string
	}{
		{unix.ENOSPC, "free some space in " + dir + " or write to another file system"},
		{unix.EDQUOT, "your disk quota for " + dir + " is used up: remove files or write elsewhere"},
		{unix.EFBIG, "the file system of " + dir + " or a limit (ulimit -f) does not allow files of this size"},
		{unix.EROFS, dir + " is on a read-only file system: write to another folder"},
		{unix.EACCES, "you may not write to " + dir + ": change its permissions or write to another folder"},
		{unix.EPERM, "you may not write to " + dir + ": change its permissions or write to another folder"},
		{unix.ENOENT, "create the folder " + dir + " first"},
		{unix.ENOTDIR, "a part of " + dir + " is not a folder"},
		{unix.EISDIR, e.Path + " is a folder: name a file in it"},
		{unix.ENAMETOOLONG, "choose a shorter name"},
	} {
		if errors.Is(e.Err, h.errno) {
			return h.hint
		}
	}
	return ""
}

// OutputFile is a file that gets its name only when it is complete.
//
// Where the file system can do it, the file has no name at all until Commit, so
// that nothing is left of it even after kill -9. Elsewhere (some network file
// systems) it is called ".cairn-partial-N", and the next output in the folder
// uses that name again.
type OutputFile struct {
	file *os.File
	dir  *os.File // where path is
	path string
	temp string // base name; empty while the file has none
	over bool   // committed or aborted
}

// CreateOutput starts a file that will be at path, mode 0666 less the umask.
// What is at path stays until Commit replaces it; a symbolic link is replaced,
// not followed. The errors of CreateOutput and Commit are *OutputError.
func CreateOutput(path string) (*OutputFile, error) {
	o, err := createOutput(path)
	if err != nil {
		return nil, &OutputError{Op: "create output", Path: path, Err: bare(err)}
	}
	return o, nil
}

func createOutput(path string) (*OutputFile, error) {
	if err := checkReplaceable(path); err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	o := &OutputFile{dir: dir, path: path}
	err = o.createNameless()
	if err != nil && isUnsupported(err) {
		err = o.createNamed()
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return o, nil
}

func checkReplaceable(path string) error {
	info, err := os.Lstat(path)
	switch {
	case path == "":
		return errors.New("the name is empty")
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return unix.EISDIR
	case !info.Mode().IsRegular() && info.Mode().Type() != fs.ModeSymlink:
		return errors.New("exists and is not a regular file")
	}
	return nil
}

// isUnsupported reports whether err means that there are no nameless files
// here: what file systems and old kernels say, or that /proc is missing.
func isUnsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) ||
		errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)
}

func (o *OutputFile) createNameless() error {
	fd, err := unix.Openat(int(o.dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), o.path)
	if _, err := os.Stat(procPath(f)); err != nil {
		f.Close()
		return err
	}
	o.file = f
	return nil
}

// procPath names an open file for linkat.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// maxNames bounds the search for a free temporary name.
const maxNames = 1000

// createNamed makes the file under a temporary name, or takes one over that
// nobody has locked.
func (o *OutputFile) createNamed() error {
	for i := range maxNames {
		temp := fmt.Sprintf(".cairn-partial-%d", i)
		fd, err := unix.Openat(int(o.dir.Fd()), temp, unix.O_CREAT|unix.O_NOFOLLOW|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), o.path)
		if o.lock(f, temp) && f.Truncate(0) == nil {
			o.file, o.temp = f, temp
			return nil
		}
		f.Close()
	}
	return errors.New("too many unfinished outputs (.cairn-partial-*) in the folder")
}

// lock locks f and reports whether nobody else had, and whether f is a regular
// file that has the name temp and no other.
func (o *OutputFile) lock(f *os.File, temp string) bool {
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false
	}
	var a, b unix.Stat_t
	errA := unix.Fstat(int(f.Fd()), &a)
	errB := unix.Fstatat(int(o.dir.Fd()), temp, &b, unix.AT_SYMLINK_NOFOLLOW)
	return errA == nil && errB == nil && a.Mode&unix.S_IFMT == unix.S_IFREG && a.Nlink == 1 &&
		a.Dev == b.Dev && a.Ino == b.Ino
}

// File returns the open file, whose name is the final one. It stays open until
// Commit or Abort; do not close it.
func (o *OutputFile) File() *os.File { return o.file }

// Commit syncs the file, puts it at its path in one step, replacing what is
// there, and syncs the folder. After an error nothing has changed at path and
// the file is gone, except that it may be there if only the last sync failed.
func (o *OutputFile) Commit() error {
	if o.over {
		return &OutputError{Op: "complete output", Path: o.path, Err: os.ErrClosed}
	}
	err := o.publish()
	if err == nil {
		o.temp = ""
		err = o.syncDir()
	}
	if err != nil {
		_ = o.Abort() // the first error is the one to tell
		return &OutputError{Op: "complete output", Path: o.path, Err: bare(err)}
	}
	return o.Abort()
}

// publish makes the synced file appear at its path.
func (o *OutputFile) publish() error {
	if err := o.file.Sync(); err != nil {
		return err
	}
	name := filepath.Base(o.path)
	if o.temp == "" {
		err := o.link(name)
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
		if err := o.linkTemp(); err != nil {
			return err
		}
	}
	dir := int(o.dir.Fd())
	return unix.Renameat(dir, o.temp, dir, name)
}

func (o *OutputFile) link(name string) error {
	return unix.Linkat(unix.AT_FDCWD, procPath(o.file), int(o.dir.Fd()), name, unix.AT_SYMLINK_FOLLOW)
}

// linkTemp gives the file a temporary name.
func (o *OutputFile) linkTemp() error {
	for i := range maxNames {
		temp := fmt.Sprintf(".cairn-complete-%d", i)
		err := o.link(temp)
		if err == nil {
			o.temp = temp
		}
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return errors.New("too many files named .cairn-complete-* in the folder")
}

// syncDir makes the name durable where the file system can do that.
func (o *OutputFile) syncDir() error {
	if err := o.dir.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// Abort removes the file. After Commit or Abort it does nothing, so it can be
// deferred.
func (o *OutputFile) Abort() error {
	if o.over {
		return nil
	}
	o.over = true
	var err error
	if o.temp != "" {
		err = unix.Unlinkat(int(o.dir.Fd()), o.temp, 0)
	}
	return errors.Join(err, o.file.Close(), o.dir.Close())
}

// bare takes away the path of an *os.PathError, which OutputError repeats.
func bare(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
