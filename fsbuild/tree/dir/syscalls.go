package dir

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"cairn/fsbuild/tree"
)

// maxXattr is the kernel's limit of a list of names and of a value.
const maxXattr = 64 << 10

// closeRead closes a descriptor that was only read, so that no error matters.
func closeRead(fd int) { _ = unix.Close(fd) }

func openat2(fd int, path string, how *unix.OpenHow) (int, error) {
	for {
		n, err := unix.Openat2(fd, path, how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return n, err
		}
	}
}

// openStepwise does without openat2, and for paths longer than the kernel
// takes: it opens one component after the other.
func openStepwise(root int, path string, flags int) (int, error) {
	at := root
	for {
		name, rest, more := strings.Cut(path, "/")
		mode := unix.O_PATH | unix.O_DIRECTORY
		if !more {
			mode = flags
		}
		fd, err := unix.Openat(at, name, mode|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if at != root {
			closeRead(at)
		}
		if err != nil || !more {
			return fd, err
		}
		at, path = fd, rest
	}
}

func statx(fd int, name string, flags int, st *unix.Statx_t) error {
	for {
		err := unix.Statx(fd, name, flags, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, st)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// readlink reads a link of about size bytes.
func readlink(fd int, name string, size int) (string, error) {
	for size = max(size, 64) + 1; ; size *= 2 {
		b := make([]byte, size)
		n, err := unix.Readlinkat(fd, name, b)
		if err != nil || n < len(b) {
			return string(b[:max(n, 0)]), err
		}
	}
}

// xattrReader reads extended attributes of files in a directory, never of what
// a symbolic link refers to.
type xattrReader struct {
	viaProc atomic.Bool // the kernel has no listxattrat
}

// xattrArgs is struct xattr_args of the getxattrat system call.
type xattrArgs struct {
	value uint64
	size  uint32
	flags uint32
}

// read returns the attributes that keep accepts, in the kernel's order.
func (r *xattrReader) read(fd int, name string, keep func(string) bool) ([]tree.Xattr, error) {
	if name == "" {
		name = "."
	}
	var small [512]byte
	names := small[:]
	n, err := r.list(fd, name, names)
	if errors.Is(err, unix.ERANGE) {
		names = make([]byte, maxXattr)
		n, err = r.list(fd, name, names)
	}
	if n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	var list []tree.Xattr
	for x := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if !keep(x) {
			continue
		}
		v, err := r.value(fd, name, x)
		if err != nil {
			return nil, fmt.Errorf("xattr %q: %w", x, err)
		}
		list = append(list, tree.Xattr{Name: x, Value: v})
	}
	return list, nil
}

func (r *xattrReader) list(fd int, name string, b []byte) (int, error) {
	if !r.viaProc.Load() {
		p, err := unix.BytePtrFromString(name)
		if err != nil {
			return 0, err
		}
		n, _, errno := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(fd), uintptr(unsafe.Pointer(p)),
			unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.ENOSYS && errno != unix.EPERM {
			return 0, errno
		}
		r.viaProc.Store(true)
	}
	return unix.Llistxattr(procPath(fd, name), b)
}

func (r *xattrReader) value(fd int, name, x string) ([]byte, error) {
	for size := 256; ; size = maxXattr {
		b := make([]byte, size)
		n, err := r.get(fd, name, x, b)
		if !errors.Is(err, unix.ERANGE) || size == maxXattr {
			return b[:max(n, 0):max(n, 0)], err
		}
	}
}

func (r *xattrReader) get(fd int, name, x string, b []byte) (int, error) {
	if r.viaProc.Load() {
		return unix.Lgetxattr(procPath(fd, name), x, b)
	}
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	xp, err := unix.BytePtrFromString(x)
	if err != nil {
		return 0, err
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&b[0])
	args := xattrArgs{value: uint64(uintptr(unsafe.Pointer(&b[0]))), size: uint32(len(b))}
	n, _, errno := unix.Syscall6(unix.SYS_GETXATTRAT, uintptr(fd), uintptr(unsafe.Pointer(p)),
		unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(xp)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// procPath is the path of a file in an open directory.
func procPath(fd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
}
