package dir

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/internal/contents"
	"cairn/fsbuild/tree"
)

// content is the content of one file. There may be millions.
type content struct {
	from  *origin
	path  string
	ino   uint64
	size  int64
	mtime int64 // in nanoseconds, modulo 1<<64
}

// origin is what the files of one file system have in common.
type origin struct {
	root *os.File
	dev  uint64
}

// nanoseconds are enough of a time to tell whether it is still the same.
func nanoseconds(sec, nsec int64) int64 { return sec*1_000_000_000 + nsec }

// large is a content that may have holes.
type large struct{ content }

var (
	_ tree.Content = (*content)(nil)
	_ tree.Sparse  = (*large)(nil)
)

// Open opens the file and checks that it is the one that was scanned.
func (c *content) Open() (io.ReadCloser, error) {
	fd, err := c.open()
	if err != nil {
		return nil, err
	}
	return &reader{c: c, fd: fd}, nil
}

func (c *content) open() (int, error) {
	fd, err := openBeneath(c.from.root, c.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return -1, fmt.Errorf("open: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		closeRead(fd)
		return -1, fmt.Errorf("stat: %w", err)
	}
	same := st.Ino == c.ino && st.Dev == c.from.dev && st.Size == c.size && nanoseconds(st.Mtim.Unix()) == c.mtime
	if !same {
		closeRead(fd)
		return -1, ErrChanged
	}
	return fd, nil
}

// reader reads one file. It reports io.EOF together with the last bytes, which
// spares a system call.
type reader struct {
	c   *content
	fd  int
	off int64
}

func (r *reader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := unix.Read(r.fd, b)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(r.fd, b)
	}
	if err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	r.off += int64(n)
	switch {
	case r.off > r.c.size || n == 0 && r.off < r.c.size:
		return n, ErrChanged
	case r.off == r.c.size && n < len(b):
		return n, io.EOF
	}
	return n, nil
}

// Seek moves to an offset from the beginning; other origins are refused.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart || offset < 0 || offset > r.c.size {
		return r.off, errors.New("seek: not within the file")
	}
	if _, err := unix.Seek(r.fd, offset, unix.SEEK_SET); err != nil {
		return r.off, fmt.Errorf("seek: %w", err)
	}
	r.off = offset
	return offset, nil
}

func (r *reader) Close() error {
	if r.fd < 0 {
		return unix.EBADF
	}
	err := unix.Close(r.fd)
	r.fd = -1
	return err
}

// Data finds the runs that are not holes, by the rule of package contents.
func (c *large) Data() ([]tree.Extent, error) {
	fd, err := c.open()
	if err != nil {
		return nil, err
	}
	defer closeRead(fd)
	return contents.FindData(file(fd), c.size, file(fd).seekData)
}

// file is an open file.
type file int

// ReadAt fills b. The end of the file is an error.
func (f file) ReadAt(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		k, err := unix.Pread(int(f), b[n:], off+int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return n, fmt.Errorf("read: %w", err)
		case k == 0:
			return n, ErrChanged
		}
		n += k
	}
	return n, nil
}

// seekData returns where data begins from off on, off itself where the file
// system cannot tell.
func (f file) seekData(off int64) int64 {
	start, err := unix.Seek(int(f), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // a hole to the end
		return math.MaxInt64
	case err != nil:
		return off
	}
	return start
}

// openBeneath opens a path below the root without following any symbolic
// link.
func openBeneath(dir *os.File, path string, flags int) (int, error) {
	defer runtime.KeepAlive(dir)
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NOATIME),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	root := int(dir.Fd())
	fd, err := openat2(root, path, &how)
	if errors.Is(err, unix.EPERM) { // another user's file
		how.Flags &^= unix.O_NOATIME
		fd, err = openat2(root, path, &how)
	}
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, unix.EPERM) {
		return openStepwise(root, path, flags)
	}
	return fd, err
}
