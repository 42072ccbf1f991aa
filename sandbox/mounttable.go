package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A mounted is one line of proc_pid_mountinfo(5).
type mounted struct {
	id    int
	point string
}

// mountTable reads this process's mounts, in the order of mounting.
func mountTable() ([]mounted, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	var out []mounted
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		id, err := strconv.Atoi(f[0])
		if err != nil {
			return nil, fmt.Errorf("read mount table: %w", err)
		}
		out = append(out, mounted{id, unescapeMount(f[4])})
	}
	return out, nil
}

// unescapeMount undoes the octal escapes of blanks, tabs, newlines, backslashes
// and "#" in the mount table.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountsBelow lists what has been mounted strictly below dir since the start of
// the session, last mounted first, which is deepest first.
func (a *agent) mountsBelow(dir string) ([]string, error) {
	mounts, err := mountTable()
	if err != nil {
		return nil, err
	}
	prefix := strings.TrimSuffix(path.Clean("/"+dir), "/") + "/"
	var out []string
	for i := len(mounts) - 1; i >= 0; i-- {
		if strings.HasPrefix(mounts[i].point, prefix) && !a.own[mounts[i].id] {
			out = append(out, mounts[i].point)
		}
	}
	return out, nil
}

func (a *agent) unmountBelow(dir string) error {
	mounts, err := a.mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		// EINVAL: it went with the one above it.
		err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, &os.PathError{Op: "unmount", Path: m, Err: err})
		}
	}
	return errors.Join(errs...)
}
