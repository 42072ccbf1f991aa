// Package entry holds the rules for the entries of tar archives from strangers:
// names, ids, sizes, attributes. The readers of archives share it, so that
// each refuses and repairs the same.
package entry

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"path"
	"strings"
)

// Errors that are wrapped by those of this package and of the readers.
var (
	// ErrUnsafe means that the entry is one that only an attacker or a broken
	// program writes, such as a name with "..".
	ErrUnsafe = errors.New("unsafe entry")
	// ErrLimit means that the archive exceeds one of the [Limits].
	ErrLimit = errors.New("limit exceeded")
	// ErrUnsupported means that a directory tree cannot hold the entry.
	ErrUnsupported = errors.New("unsupported entry")
)

// Limits bound one archive. A field that is zero stands for its default.
type Limits struct {
	Entries    int   // entries; 2,000,000
	NameBytes  int   // length of one name or link target; 4095, Linux's PATH_MAX
	Depth      int   // components of one name; 512
	XattrBytes int   // length of one attribute's value; 65536, Linux's XATTR_SIZE_MAX
	Devices    int   // device nodes; 10,000
	TotalBytes int64 // sizes of all files, holes included; 256 GiB
}

// Filled returns the limits with the defaults in place of zeros.
func (l Limits) Filled() Limits {
	set := func(v *int, to int) {
		if *v == 0 {
			*v = to
		}
	}
	set(&l.Entries, 2_000_000)
	set(&l.NameBytes, 4095)
	set(&l.Depth, 512)
	set(&l.XattrBytes, 65536)
	set(&l.Devices, 10_000)
	if l.TotalBytes == 0 {
		l.TotalBytes = 256 << 30
	}
	return l
}

// Clean turns a name of the archive into a clean relative path, "." for the
// root. A leading slash is taken off; ".." is refused wherever it stands.
func (l Limits) Clean(name string) (string, error) {
	if len(name) > l.NameBytes {
		return "", fmt.Errorf("%w: a name of %d bytes", ErrLimit, len(name))
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("%w: NUL in the name", ErrUnsafe)
	}
	clean := strings.Trim(strings.TrimPrefix(name, "./"), "/")
	depth, odd := 0, false
	for rest, c := clean, ""; rest != ""; depth++ {
		switch c, rest, _ = strings.Cut(rest, "/"); c {
		case "..":
			return "", fmt.Errorf("%w: .. in the name", ErrUnsafe)
		case ".", "":
			odd = true
		}
	}
	if odd {
		clean = path.Clean("/" + clean)[1:]
		depth = strings.Count(clean, "/") + 1
	}
	if clean == "" {
		return ".", nil
	}
	if depth > l.Depth {
		return "", fmt.Errorf("%w: a name of %d components", ErrLimit, depth)
	}
	return clean, nil
}

// ID refuses what is no id: below zero, or (uid_t)-1 and above.
func ID(id int64) (uint32, error) {
	if id < 0 || id >= math.MaxUint32 {
		return 0, fmt.Errorf("%w: user or group %d", ErrUnsafe, id)
	}
	return uint32(id), nil
}

// IsSparse reports whether the entry has holes, in one of GNU's formats.
func IsSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for _, key := range []string{"GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size"} {
		if _, ok := h.PAXRecords[key]; ok {
			return true
		}
	}
	return false
}

// CheckDevice refuses device numbers beyond Linux's dev_t, and the device that
// overlayfs takes for a whiteout.
func CheckDevice(h *tar.Header) error {
	switch major, minor := h.Devmajor, h.Devminor; {
	case major < 0 || major >= 1<<12 || minor < 0 || minor >= 1<<20:
		return fmt.Errorf("%w: device %d:%d", ErrUnsupported, major, minor)
	case h.Typeflag == tar.TypeChar && major == 0 && minor == 0:
		return fmt.Errorf("%w: character device 0:0, which overlayfs takes for a whiteout", ErrUnsafe)
	}
	return nil
}
