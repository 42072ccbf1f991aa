package layer

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/tree"
)

const (
	maxOpenDirs = 96 // descriptors that are kept
	maxLinks    = 40 // symlinks followed in one name, as the kernel does (MAXSYMLINKS)
)

// dir is an open directory of the tree.
type dir struct {
	fd   int
	path string // without symlinks, "." for the root
	acl  bool   // has a default ACL, which new children inherit
	used uint64
}

// place is a name in an open directory.
type place struct {
	dir        *dir
	base, path string
}

func placeIn(d *dir, base string) place { return place{d, base, path.Join(d.path, base)} }

// dirMeta is what a directory gets when everything else is done.
type dirMeta struct {
	mtime   unix.Timespec
	mode    uint32
	setMode bool
}

// dirs opens the directories below a root and keeps the last used ones open.
type dirs struct {
	root  int
	shift int
	note  func(path string, t tree.Type) // called for each directory made on the way
	open  map[string]*dir
	alias map[string]string  // a name that leads through symlinks -> path
	meta  map[string]dirMeta // every directory that was opened or made
	clock uint64
}

func newDirs(root, shift int, note func(string, tree.Type)) *dirs {
	return &dirs{
		root: root, shift: shift, note: note,
		open: map[string]*dir{}, alias: map[string]string{}, meta: map[string]dirMeta{},
	}
}

// get opens the directory of a clean name; symlinks are followed inside the
// root. With create, directories that are missing are made. The result is
// valid until the next call with create, and for a few without.
func (d *dirs) get(name string, create bool) (*dir, error) {
	if p, ok := d.alias[name]; ok {
		name = p
	}
	if e, ok := d.open[name]; ok {
		d.clock++
		e.used = d.clock
		return e, nil
	}
	fd, err := d.openat2(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil {
		return d.insert(name, fd)
	}
	if !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	p, rerr := d.resolve(name)
	switch {
	case rerr != nil:
		return nil, rerr
	case p != name:
		e, err := d.get(p, create)
		if err == nil {
			d.alias[name] = p
		}
		return e, err
	case !create:
		return nil, err
	}
	return d.imply(name)
}

// openat2 opens a path below the root that has no symlink in it.
func (d *dirs) openat2(name string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	}
	return retry(func() (int, error) { return unix.Openat2(d.root, name, &how) })
}

// insert takes over an open directory, and remembers the time to restore.
func (d *dirs) insert(name string, fd int) (*dir, error) {
	if _, ok := d.meta[name]; !ok {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			closeFD(fd)
			return nil, err
		}
		d.meta[name] = dirMeta{mtime: st.Mtim}
	}
	if len(d.open) >= maxOpenDirs {
		d.evict()
	}
	d.clock++
	e := &dir{fd: fd, path: name, acl: hasXattr(fd, aclDefault), used: d.clock}
	d.open[name] = e
	return e, nil
}

func (d *dirs) evict() {
	var oldest *dir
	for _, e := range d.open {
		if oldest == nil || e.used < oldest.used {
			oldest = e
		}
	}
	closeFD(oldest.fd)
	delete(d.open, oldest.path)
}

// purge forgets what is open, but for keep: a directory or a symlink was
// removed, and names may lead elsewhere now.
func (d *dirs) purge(keep *dir) {
	for name, e := range d.open {
		if e != keep {
			closeFD(e.fd)
			delete(d.open, name)
		}
	}
	clear(d.alias)
}

// resolve follows the symlinks of a name as chroot(2) would. What does not
// exist is kept as it is spelled.
func (d *dirs) resolve(name string) (string, error) {
	done, links := ".", 0
	todo := strings.Split(name, "/")
	for len(todo) > 0 {
		c := todo[0]
		todo = todo[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, c)
		target, err := d.readlink(next)
		switch {
		case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT): // no link, or nothing
			done = next
			continue
		case err != nil:
			return "", err
		}
		if links++; links > maxLinks {
			return "", unix.ELOOP
		}
		if path.IsAbs(target) {
			done = "."
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return done, nil
}

// readlink returns the target of a symlink, EINVAL for any other object.
func (d *dirs) readlink(name string) (string, error) {
	fd, err := d.openat2(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer closeFD(fd)
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(fd, "", buf)
	if errors.Is(err, unix.ENOENT) { // what readlinkat says of an O_PATH descriptor that is no link
		return "", unix.EINVAL
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// imply makes a directory that the archive did not name: 0755, root, time 0.
func (d *dirs) imply(name string) (*dir, error) {
	parent, err := d.get(path.Dir(name), true)
	if err != nil {
		return nil, err
	}
	inherits := parent.acl
	if err := unix.Mkdirat(parent.fd, path.Base(name), 0o700); err != nil {
		return nil, err
	}
	d.note(name, tree.Directory)
	d.meta[name] = dirMeta{}
	e, err := d.get(name, false)
	if err != nil {
		return nil, err
	}
	if inherits {
		if err := d.disinherit(e); err != nil {
			return nil, err
		}
	}
	if err := chown(e.fd, owner{}, d.shift); err != nil {
		return nil, err
	}
	return e, unix.Fchmod(e.fd, 0o755)
}

// disinherit takes off the ACLs that a new directory got from its parent.
func (d *dirs) disinherit(e *dir) error {
	e.acl = false
	return errors.Join(removeXattr(e.fd, aclAccess), removeXattr(e.fd, aclDefault))
}

// finish gives every directory that was touched its mode and time, the deepest
// first, so that a mode without write or search permission is no obstacle.
func (d *dirs) finish() error {
	names := make([]string, 0, len(d.meta))
	for name := range d.meta {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range slices.Backward(names) {
		if err := d.finishOne(name, d.meta[name]); err != nil {
			return &EntryError{Name: name, Err: err}
		}
	}
	return nil
}

func (d *dirs) finishOne(name string, m dirMeta) error {
	parent, base := d.root, "."
	if name != "." {
		e, err := d.get(path.Dir(name), false)
		if gone(err) {
			return nil // removed by a later entry, with what was above it
		}
		if err != nil {
			return err
		}
		parent, base = e.fd, path.Base(name)
	}
	var st unix.Stat_t
	err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if gone(err) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if err != nil {
		return err
	}
	if m.setMode {
		if err := chmodat(parent, base, m.mode); err != nil {
			return err
		}
	}
	return setTime(parent, base, m.mtime)
}

// gone reports that a path does not exist.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }

// retry repeats a call that a signal interrupted.
func retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}

// setTime sets the times of access and modification of a name.
func setTime(dirfd int, base string, t unix.Timespec) error {
	if err := unix.UtimesNanoAt(dirfd, base, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// chmodat sets the mode of a name that is no symlink.
func chmodat(dirfd int, base string, mode uint32) error {
	err := unix.Fchmodat(dirfd, base, mode, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.EOPNOTSUPP) { // before Linux 6.6, where fchmodat2 came
		err = unix.Fchmodat(dirfd, base, mode, 0)
	}
	if err != nil {
		return fmt.Errorf("set mode %#o: %w", mode, err)
	}
	return nil
}
