package layer

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/tar/entry"
)

// hide carries out a whiteout. It hides what lower layers put there, and
// nothing of this layer, whichever comes first in the archive.
func (u *unpacker) hide(w entry.Whiteout) error {
	parent := path.Dir(w.Path)
	if w.Opaque {
		parent = w.Path
	}
	d, err := u.dirs.get(parent, false)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open parent: %w", err)
	}
	p := d.path
	if !w.Opaque {
		p = path.Join(d.path, path.Base(w.Path))
	}
	u.ledger.dropIf(func(name string) bool {
		return within(name, p) && (name != p || !w.Opaque) && !u.isUpper(name)
	})
	u.dirs.purge(d)
	if w.Opaque {
		_, err = removeChildren(d.fd, p, u.isUpper)
	} else if _, err = removeTree(d.fd, path.Base(p), p, u.isUpper); errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return err
}

// isUpper reports that this layer made the path, or something below it.
func (u *unpacker) isUpper(path string) bool {
	_, ok := u.upper[path]
	return ok
}

// removeTree removes the object base of the directory dirfd, whose path is p,
// with all below it, except what keep reports; a directory in which something
// was kept stays. It reports whether the object is gone.
func removeTree(dirfd int, base, p string, keep func(path string) bool) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	kept := keep != nil && keep(p)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if kept {
			return false, nil
		}
		return true, unix.Unlinkat(dirfd, base, 0)
	}
	fd, err := unix.Openat(dirfd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open %q to remove it: %w", p, err)
	}
	defer closeFD(fd)
	all, err := removeChildren(fd, p, keep)
	if err != nil || !all || kept {
		return false, err
	}
	return true, unix.Unlinkat(dirfd, base, unix.AT_REMOVEDIR)
}

// removeChildren does the same with everything in a directory, and reports
// whether nothing is left.
func removeChildren(fd int, p string, keep func(path string) bool) (bool, error) {
	names, err := readNames(fd)
	if err != nil {
		return false, fmt.Errorf("list %q: %w", p, err)
	}
	all := true
	for _, name := range names {
		removed, err := removeTree(fd, name, path.Join(p, name), keep)
		if err != nil {
			return false, err
		}
		all = all && removed
	}
	return all, nil
}

// readNames lists an open directory from its start.
func readNames(fd int) ([]string, error) {
	again, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(again), "directory")
	defer f.Close()
	return f.Readdirnames(-1)
}
