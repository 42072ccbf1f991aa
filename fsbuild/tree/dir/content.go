package dir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/tree"
)

// Files from sparseSize bytes on are searched for holes: units of sparseUnit
// bytes, the last one of a file shorter, that are all zero. The rule looks at bytes only, so
// it gives the same answer on every file system; holes that the file system
// reports merely spare the reading. The sizes keep the search cheap (few
// files are that large) and extents few.
const (
	sparseSize = 1 << 20
	sparseUnit = 64 << 10
)

// content is the content of one file.
type content struct {
	root  *os.File
	path  string
	size  int64
	mtime tree.Time
	id    fileID
}

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
	fd, err := openBeneath(c.root, c.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return -1, fmt.Errorf("open: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		closeRead(fd)
		return -1, fmt.Errorf("stat: %w", err)
	}
	same := st.Ino == c.id.ino && st.Dev == c.id.dev && st.Size == c.size &&
		st.Mtim.Sec == c.mtime.Sec && uint32(st.Mtim.Nsec) == c.mtime.Nsec
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

// scratch holds buffers of the search for holes.
var scratch = sync.Pool{New: func() any { return new([4 * sparseUnit]byte) }}

// Data finds the runs that are not holes.
func (c *large) Data() ([]tree.Extent, error) {
	fd, err := c.open()
	if err != nil {
		return nil, err
	}
	defer closeRead(fd)
	buf, ok := scratch.Get().(*[4 * sparseUnit]byte)
	if !ok {
		buf = new([4 * sparseUnit]byte)
	}
	defer scratch.Put(buf)
	f := holeFinder{fd: fd, size: c.size, buf: buf[:]}
	for off := int64(0); off < c.size; {
		if off, err = f.next(off); err != nil {
			return nil, err
		}
	}
	return f.data, nil
}

// holeFinder collects the units of a file that are not all zero.
type holeFinder struct {
	fd   int
	size int64
	buf  []byte
	data []tree.Extent
}

// next examines some units from off, which is aligned, and returns where to go
// on.
func (f *holeFinder) next(off int64) (int64, error) {
	start, err := unix.Seek(f.fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // a hole to the end
		return f.size, nil
	case err != nil: // the file system cannot tell
		start = off
	}
	off = max(off, start&^(sparseUnit-1))
	for filled := 0; filled < len(f.buf) && off+int64(filled) < f.size; {
		n, err := unix.Pread(f.fd, f.buf[filled:], off+int64(filled))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("read: %w", err)
		case n == 0:
			return 0, ErrChanged
		}
		filled += n
		if off+int64(filled) > f.size {
			return 0, ErrChanged
		}
		if filled == len(f.buf) || off+int64(filled) == f.size {
			f.units(off, f.buf[:filled])
			return off + int64(filled), nil
		}
	}
	return f.size, nil
}

// units records the units of b, which begins at off, that hold data.
func (f *holeFinder) units(off int64, b []byte) {
	for len(b) > 0 {
		n := min(sparseUnit, len(b))
		if !allZero(b[:n]) {
			if k := len(f.data) - 1; k >= 0 && f.data[k].Off+f.data[k].Len == off {
				f.data[k].Len += int64(n)
			} else {
				f.data = append(f.data, tree.Extent{Off: off, Len: int64(n)})
			}
		}
		off += int64(n)
		b = b[n:]
	}
}

var zeros [512]byte

func allZero(b []byte) bool {
	for len(b) > len(zeros) {
		if [512]byte(b) != zeros {
			return false
		}
		b = b[len(zeros):]
	}
	return string(b) == string(zeros[:len(b)])
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
