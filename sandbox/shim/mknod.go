package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DeviceXattr marks the file that stands for a device node, since a user namespace may not make one. Its value is
// "c MAJOR MINOR" or "b MAJOR MINOR"; mode and owner are the file's.
const DeviceXattr = "user.cairn.device"

// A node is what mknod is to make.
type node struct {
	name         string
	kind         byte // 'b', 'c' or 'p'
	major, minor uint32
	mode         uint32
	exact        bool // mode is as given, whatever the umask
}

var errMknod = errors.New("usage: mknod [-Z] [-m MODE] NAME {b|c|u|p} [MAJOR MINOR]")

// mknod makes a fifo, or a file that stands for a device node until the image is written. In a directory called dev the
// devices that every program expects also work at once: the build's own are bound over the files, where that is
// allowed.
func mknod(p Process) int {
	n, err := parseMknod(p.Args[1:])
	if err == nil {
		err = n.make()
	}
	if err != nil {
		_, _ = fmt.Fprintf(p.Stderr, "mknod: %v\n", err)
		return 1
	}
	return 0
}

func parseMknod(args []string) (node, error) {
	n := node{mode: 0o666}
	var words []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		mode, inArg := strings.CutPrefix(arg, "--mode=")
		switch {
		case arg == "--":
			words, args = append(words, args...), nil
			continue
		case arg == "-Z" || strings.HasPrefix(arg, "--context"):
			continue
		case inArg:
		case (arg == "-m" || arg == "--mode") && len(args) > 0:
			mode, args = args[0], args[1:]
		case strings.HasPrefix(arg, "-m") && arg != "-m":
			mode = arg[2:]
		case strings.HasPrefix(arg, "-"):
			return n, errMknod
		default:
			words = append(words, arg)
			continue
		}
		m, err := strconv.ParseUint(mode, 8, 12)
		if err != nil {
			return n, fmt.Errorf("mode %q: only octal modes are known in a build", mode)
		}
		n.mode, n.exact = uint32(m), true
	}
	return n, n.words(words)
}

// words are the arguments that are no options.
func (n *node) words(words []string) error {
	if len(words) < 2 || len(words[1]) != 1 {
		return errMknod
	}
	n.name, n.kind = words[0], words[1][0]
	switch {
	case n.kind == 'p' && len(words) == 2:
		return nil
	case n.kind == 'u':
		n.kind = 'c'
	case n.kind != 'b' && n.kind != 'c':
		return errMknod
	}
	if len(words) != 4 {
		return errMknod
	}
	// The kernel's numbers have 12 and 20 bits.
	major, err1 := strconv.ParseUint(words[2], 0, 12)
	minor, err2 := strconv.ParseUint(words[3], 0, 20)
	n.major, n.minor = uint32(major), uint32(minor)
	return errors.Join(err1, err2)
}

func (n *node) make() error {
	var err error
	if n.kind == 'p' {
		err = unix.Mkfifo(n.name, n.mode)
	} else {
		err = n.placeholder()
	}
	if err == nil && n.exact {
		err = unix.Chmod(n.name, n.mode)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	n.bind()
	return nil
}

// placeholder makes the file that becomes the node.
func (n *node) placeholder() error {
	f, err := os.OpenFile(n.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, os.FileMode(n.mode&0o777))
	if err != nil {
		return errors.Unwrap(err)
	}
	err = unix.Fsetxattr(int(f.Fd()), DeviceXattr, fmt.Appendf(nil, "%c %d %d", n.kind, n.major, n.minor), 0)
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(n.name))
	}
	return nil
}

// working are the devices that a build has, at /dev.
var working = []string{"null", "zero", "full", "random", "urandom", "tty"}

// bind has the device work, if the build has it and may mount.
func (n *node) bind() {
	name, err := filepath.Abs(n.name)
	if err != nil || n.kind != 'c' || filepath.Base(filepath.Dir(name)) != "dev" {
		return
	}
	i := slices.IndexFunc(working, func(device string) bool {
		var st unix.Stat_t
		err := unix.Stat("/dev/"+device, &st)
		return err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(n.major, n.minor)
	})
	if i >= 0 {
		_ = unix.Mount("/dev/"+working[i], name, "", unix.MS_BIND, "") // a container may not, and has its own /dev
	}
}
