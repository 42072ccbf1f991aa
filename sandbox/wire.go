package sandbox

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Limits of one message: what a container's agent sends is not trusted.
const (
	maxNote  = 16 << 20
	maxFiles = 64
)

// SendFiles sends a note and open files (at most 64) over a Unix stream
// socket, to be taken by one [RecvFiles] on the other side. The sender may
// close its files afterwards. Calls on one connection must not overlap.
func SendFiles(c *net.UnixConn, note []byte, files ...*os.File) error {
	if len(note) > maxNote || len(files) > maxFiles {
		return fmt.Errorf("send files: %d bytes and %d files are too many", len(note), len(files))
	}
	fds, err := descriptors(files)
	if err != nil {
		return fmt.Errorf("send files: %w", err)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	var head [5]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(note)))
	head[4] = byte(len(files))
	if _, _, err := c.WriteMsgUnix(head[:], oob, nil); err != nil {
		return fmt.Errorf("send files: %w", err)
	}
	if _, err := c.Write(note); err != nil {
		return fmt.Errorf("send files: %w", err)
	}
	return nil
}

// descriptors returns the numbers of files without touching their mode, as Fd
// would. They are good as long as the caller keeps the files.
func descriptors(files []*os.File) ([]int, error) {
	fds := make([]int, 0, len(files))
	for _, f := range files {
		c, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := c.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return nil, err
		}
	}
	return fds, nil
}

// RecvFiles takes what one [SendFiles] sent. The files are close-on-exec and
// the caller's to close. The error is io.EOF when the other side has closed the
// connection between two messages.
func RecvFiles(c *net.UnixConn) (note []byte, files []*os.File, err error) {
	var head [5]byte
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(head[:], oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, nil, recvError(err)
	}
	files, err = parseRights(oob[:oobn])
	if err == nil {
		note, err = recvNote(c, head[:], n, flags, len(files))
	}
	if err != nil {
		closeAll(files)
		return nil, nil, recvError(err)
	}
	return note, files, nil
}

func recvError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		return io.EOF
	}
	return fmt.Errorf("receive files: %w", err)
}

func recvNote(c io.Reader, head []byte, n, flags, files int) ([]byte, error) {
	if flags&unix.MSG_CTRUNC != 0 {
		return nil, errors.New("more files than announced")
	}
	if _, err := io.ReadFull(c, head[n:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxNote || int(head[4]) != files {
		return nil, fmt.Errorf("message of %d bytes with %d of %d files", size, files, head[4])
	}
	note := make([]byte, size)
	if _, err := io.ReadFull(c, note); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return note, nil
}

func parseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			closeAll(files)
			return nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// sendJSON sends a value and files as one message.
func sendJSON(c *net.UnixConn, v any, files ...*os.File) error {
	note, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return SendFiles(c, note, files...)
}

// recvJSON receives a value and the files that came with it.
func recvJSON(c *net.UnixConn, v any) ([]*os.File, error) {
	note, files, err := RecvFiles(c)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(note, v); err != nil {
		closeAll(files)
		return nil, fmt.Errorf("receive message: %w", err)
	}
	return files, nil
}

// recvReport is recvJSON of a report, where an early end is one too.
func recvReport(c *net.UnixConn) report {
	var r report
	files, err := recvJSON(c, &r)
	closeAll(files) // none, unless the peer is not who it should be
	if errors.Is(err, io.EOF) {
		return report{Text: "it died without a word"}
	}
	if err != nil {
		return failed("read its report", err)
	}
	return r
}

// socketpair returns two connected stream sockets: one to use here, one to give
// to a child.
func socketpair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "socket")
	ours, err := connOf(os.NewFile(uintptr(fds[0]), "socket"))
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// connOf turns a socket's file into a connection and closes the file.
func connOf(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, errors.New("use socket: not a Unix socket")
	}
	return u, nil
}
