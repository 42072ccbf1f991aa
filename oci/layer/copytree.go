package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// CopyOptions say how CopyTree works. They do not change its result.
type CopyOptions struct {
	Workers int // directories copied at once; 0 stands for 2
}

// CopyStats counts what CopyTree did.
type CopyStats struct {
	Entries int64 // objects of every type, the root included
	Bytes   int64 // data written or shared, without holes
	Cloned  int64 // files that share their blocks with the source (FICLONE)
}

// CopyTree copies the directory src with all below it to dst, which must be
// missing or empty: files with their holes and hard links, directories,
// symlinks, fifos, sockets and, where the kernel allows it, device nodes; with
// owners, modes, times of modification to the nanosecond, and the attributes
// user.*, security.capability and POSIX ACLs. Blocks are shared where the file
// system can. Mounts below src are copied like directories. Nobody may change
// either tree during the call; symlinks are never followed. After an error dst
// holds a part and should be thrown away. Files are not synced to disk.
func CopyTree(ctx context.Context, src, dst string, o CopyOptions) (CopyStats, error) {
	if o.Workers <= 0 {
		o.Workers = 2
	}
	if err := os.Mkdir(dst, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return CopyStats{}, fmt.Errorf("copy tree: %w", err)
	}
	from, err := openDir(unix.AT_FDCWD, src, 0)
	if err != nil {
		return CopyStats{}, fmt.Errorf("copy tree: open %s: %w", src, err)
	}
	to, err := openDir(unix.AT_FDCWD, dst, 0)
	if err != nil {
		closeFD(from)
		return CopyStats{}, fmt.Errorf("copy tree: open %s: %w", dst, err)
	}
	defer closeFD(to)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &copier{root: to, free: make(chan []byte, o.Workers), cancel: cancel, links: map[inode]*linked{}}
	for range o.Workers - 1 {
		c.free <- make([]byte, copyBuffer)
	}
	top, err := dupFD(to)
	if err == nil {
		c.dir(ctx, from, top, ".", make([]byte, copyBuffer))
		err = context.Cause(ctx)
	}
	if err != nil {
		return CopyStats{}, fmt.Errorf("copy tree: %w", err)
	}
	return CopyStats{c.entries.Load(), c.bytes.Load(), c.cloned.Load()}, nil
}

const copyBuffer = 256 << 10

// copier is the state of one CopyTree. A goroutine that copies owns a buffer;
// those that nobody uses are in free.
type copier struct {
	root    int // of the copy
	free    chan []byte
	cancel  context.CancelCauseFunc
	noClone atomic.Bool // FICLONE does not work here
	noRange atomic.Bool // nor does copy_file_range

	mu    sync.Mutex
	links map[inode]*linked

	entries, bytes, cloned atomic.Int64
}

type inode struct{ dev, ino uint64 }

// linked is a file with several names, copied under the first one met.
type linked struct {
	path string
	done chan struct{} // closed once the copy exists
}

func (c *copier) fail(p string, err error) {
	c.cancel(fmt.Errorf("%s: %w", p, err))
}

// dir copies the directory from into the empty one to and closes both. An
// error goes to c.fail. It owns buf, may give it away while it waits, and
// returns the buffer that the caller owns from then on.
func (c *copier) dir(ctx context.Context, from, to int, p string, buf []byte) []byte {
	defer closeFD(from)
	defer closeFD(to)
	names, err := readNames(from)
	if err != nil {
		c.fail(p, err)
		return buf
	}
	d := copying{from: from, to: to, path: p, inherits: hasXattr(to, aclDefault)}
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		if buf, err = c.child(ctx, &d, name, buf); err != nil {
			c.fail(path.Join(p, name), err)
		}
	}
	buf = c.wait(&d.others, buf)
	if ctx.Err() != nil {
		return buf
	}
	if err := c.finishDir(from, to); err != nil {
		c.fail(p, err)
	}
	return buf
}

// copying is a directory that is being copied.
type copying struct {
	from, to int
	path     string
	inherits bool           // new children get ACLs from it that are not theirs
	others   sync.WaitGroup // who copies its subdirectories
}

// child copies one child of a directory, or hands it to an idle worker.
func (c *copier) child(ctx context.Context, d *copying, name string, buf []byte) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(d.from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return buf, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return buf, c.object(ctx, d, name, &st, buf)
	}
	from, to, err := subdirs(d, name)
	if err != nil {
		return buf, err
	}
	p := path.Join(d.path, name)
	select {
	case other := <-c.free:
		d.others.Go(func() { c.free <- c.dir(ctx, from, to, p, other) })
	default:
		buf = c.dir(ctx, from, to, p, buf)
	}
	return buf, nil
}

// wait waits for the workers that took subdirectories; meanwhile another may
// start with buf.
func (c *copier) wait(others *sync.WaitGroup, buf []byte) []byte {
	c.free <- buf
	others.Wait()
	return <-c.free
}

// finishDir gives a copied directory its metadata, the time last.
func (c *copier) finishDir(from, to int) error {
	c.entries.Add(1)
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := copyMetadata(from, to, &st); err != nil {
		return err
	}
	return setTime(to, ".", st.Mtim)
}

// object copies what is no directory.
func (c *copier) object(ctx context.Context, d *copying, name string, st *unix.Stat_t, buf []byte) error {
	c.entries.Add(1)
	if st.Nlink > 1 {
		first, mine := c.claim(st, path.Join(d.path, name))
		if !mine {
			<-first.done
			if err := unix.Linkat(c.root, first.path, d.to, name, 0); err != nil {
				return fmt.Errorf("link to %s: %w", first.path, err)
			}
			return nil
		}
		defer close(first.done)
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = c.file(ctx, d, name, st, buf)
	case unix.S_IFLNK:
		err = copySymlink(d, name, st)
	default:
		err = copyNode(d, name, st)
	}
	if err != nil {
		return err
	}
	return setTime(d.to, name, st.Mtim)
}

// claim returns the entry of a file with several names, and whether the caller
// is the first to meet it and has to copy it.
func (c *copier) claim(st *unix.Stat_t, p string) (*linked, bool) {
	key := inode{st.Dev, st.Ino}
	c.mu.Lock()
	defer c.mu.Unlock()
	if l, ok := c.links[key]; ok {
		return l, false
	}
	l := &linked{path: p, done: make(chan struct{})}
	c.links[key] = l
	return l, true
}

// file copies a regular file with all but its time.
func (c *copier) file(ctx context.Context, d *copying, name string, st *unix.Stat_t, buf []byte) error {
	src, err := retry(func() (int, error) {
		return unix.Openat(d.from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer closeFD(src)
	dst, err := retry(func() (int, error) {
		return unix.Openat(d.to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	err = c.data(ctx, src, dst, st, buf)
	if err == nil && d.inherits {
		err = removeXattr(dst, aclAccess)
	}
	if err == nil {
		err = copyMetadata(src, dst, st)
	}
	if cerr := unix.Close(dst); err == nil && cerr != nil {
		err = fmt.Errorf("close: %w", cerr)
	}
	return err
}

// data copies the content: shared, by extents, or as a whole.
func (c *copier) data(ctx context.Context, src, dst int, st *unix.Stat_t, buf []byte) error {
	if st.Size == 0 {
		return nil
	}
	if !c.noClone.Load() {
		if err := unix.IoctlFileClone(dst, src); err == nil {
			c.cloned.Add(1)
			c.bytes.Add(min(st.Blocks*512, st.Size))
			return nil
		}
		c.noClone.Store(true) // another file system, or one that cannot
	}
	if st.Blocks*512 >= st.Size {
		return c.extent(ctx, src, dst, 0, st.Size, buf)
	}
	for off := int64(0); off < st.Size; {
		start, err := unix.Seek(src, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			break
		}
		if err != nil {
			return fmt.Errorf("find data: %w", err)
		}
		if off, err = unix.Seek(src, start, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("find hole: %w", err)
		}
		if err := c.extent(ctx, src, dst, start, off, buf); err != nil {
			return err
		}
	}
	if err := unix.Ftruncate(dst, st.Size); err != nil {
		return fmt.Errorf("set size: %w", err)
	}
	return nil
}

// copyRange is the length in bytes from which copy_file_range is faster than
// reading and writing, as measured on ext4 and tmpfs of Linux 6.18.
const copyRange = 1 << 20

// extent copies the bytes from start to end.
func (c *copier) extent(ctx context.Context, src, dst int, start, end int64, buf []byte) error {
	c.bytes.Add(end - start)
	for start < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := c.inKernel(src, dst, start, end)
		if n == 0 {
			var err error
			if n, err = throughBuffer(src, dst, start, end, buf); err != nil {
				return err
			}
		}
		start += n
	}
	return nil
}

// inKernel copies a part of a long extent without taking it into memory, and
// returns its length: 0 where that is not possible.
func (c *copier) inKernel(src, dst int, start, end int64) int64 {
	if end-start < copyRange || c.noRange.Load() {
		return 0
	}
	out := start
	n, err := unix.CopyFileRange(src, &start, dst, &out, int(min(end-start, 64<<20)), 0)
	if errors.Is(err, unix.EINTR) {
		return 0
	}
	if err != nil || n <= 0 {
		c.noRange.Store(true) // two kinds of file system, or forbidden
		return 0
	}
	return int64(n)
}

// throughBuffer reads and writes up to the length of buf.
func throughBuffer(src, dst int, start, end int64, buf []byte) (int64, error) {
	n, err := retry(func() (int, error) { return unix.Pread(src, buf[:min(end-start, int64(len(buf)))], start) })
	if err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	if n == 0 {
		return 0, errors.New("the file became shorter")
	}
	if err := writeAll(dst, buf[:n], start); err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	return int64(n), nil
}

func copySymlink(d *copying, name string, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(d.from, name, buf)
	if err != nil {
		return fmt.Errorf("read symlink: %w", err)
	}
	if err := unix.Symlinkat(string(buf[:n]), d.to, name); err != nil {
		return fmt.Errorf("make symlink: %w", err)
	}
	return copyOwner(d.to, name, st)
}

// copyNode copies a fifo, socket or device node.
func copyNode(d *copying, name string, st *unix.Stat_t) error {
	if err := unix.Mknodat(d.to, name, st.Mode&unix.S_IFMT|0o600, int(st.Rdev)); err != nil {
		return fmt.Errorf("make node: %w", err)
	}
	if err := copyOwner(d.to, name, st); err != nil {
		return err
	}
	return chmodat(d.to, name, st.Mode&0o7777)
}

// copyOwner sets the owner of what cannot be opened.
func copyOwner(to int, name string, st *unix.Stat_t) error {
	if err := unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", st.Uid, st.Gid, err)
	}
	return nil
}

// copyMetadata sets owner, mode and attributes of an open file.
func copyMetadata(from, to int, st *unix.Stat_t) error {
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", st.Uid, st.Gid, err)
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	names, err := listXattrs(from)
	if err != nil {
		return fmt.Errorf("list attributes: %w", err)
	}
	for _, name := range names {
		if !copyXattr(name) {
			continue
		}
		value, err := getXattr(from, name)
		if err != nil {
			return fmt.Errorf("get attribute %q: %w", name, err)
		}
		if err := unix.Fsetxattr(to, name, value, 0); err != nil {
			return fmt.Errorf("set attribute %q: %w", name, err)
		}
	}
	return nil
}

func getXattr(fd int, name string) ([]byte, error) {
	var small [512]byte
	n, err := unix.Fgetxattr(fd, name, small[:])
	if !errors.Is(err, unix.ERANGE) {
		return small[:max(n, 0)], err
	}
	buf := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err = unix.Fgetxattr(fd, name, buf)
	return buf[:max(n, 0)], err
}

// subdirs makes a directory in the copy and opens both.
func subdirs(d *copying, name string) (from, to int, err error) {
	if from, err = openDir(d.from, name, unix.O_NOFOLLOW); err != nil {
		return -1, -1, fmt.Errorf("open: %w", err)
	}
	if err = unix.Mkdirat(d.to, name, 0o700); err == nil {
		to, err = openDir(d.to, name, unix.O_NOFOLLOW)
	}
	if err != nil {
		closeFD(from)
		return -1, -1, fmt.Errorf("make directory: %w", err)
	}
	if d.inherits {
		err = errors.Join(removeXattr(to, aclAccess), removeXattr(to, aclDefault))
	}
	if err != nil {
		closeFD(from)
		closeFD(to)
	}
	return from, to, err
}

func openDir(at int, name string, flags int) (int, error) {
	return retry(func() (int, error) {
		return unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|flags, 0)
	})
}

func dupFD(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }
