package tree

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

const textHeader = "cairn-tree 1"

// maxLine bounds a line of the text form: 100 xattrs of 64 KiB, escaped.
const maxLine = 32 << 20

// ErrNoContent is returned by Open of a content that is known by its digest
// only, as in a tree that ParseText made.
var ErrNoContent = errors.New("content is known by its digest only")

type digestOnly [32]byte

func (d *digestOnly) Open() (io.ReadCloser, error) { return nil, ErrNoContent }
func (d *digestOnly) SHA256() ([32]byte, bool)     { return *d, true }

var (
	_ Content  = (*digestOnly)(nil)
	_ Digester = (*digestOnly)(nil)
)

// WriteText writes the text form. It reads every content that is not a
// [Digester] once, and fails when a content has not exactly Size bytes.
func (t *Tree) WriteText(w io.Writer) error {
	b := bufio.NewWriterSize(w, 64<<10)
	_, _ = b.WriteString(textHeader + "\n") // Flush repeats the error
	tw := textWriter{links: map[uint64]int{}, sums: map[uint64][32]byte{}}
	for n := range t.All() {
		line, err := tw.line(n)
		if err != nil {
			return fmt.Errorf("write tree text: %q: %w", n.Path, err)
		}
		if _, err := b.Write(line); err != nil {
			return fmt.Errorf("write tree text: %w", err)
		}
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write tree text: %w", err)
	}
	return nil
}

type textWriter struct {
	buf   []byte
	links map[uint64]int      // Inode → number of its group in the text
	sums  map[uint64][32]byte // Inode → digest, so that links are read once
}

func (tw *textWriter) line(n *Node) ([]byte, error) {
	b := fmt.Appendf(tw.buf[:0], "%s %04o %d:%d %d.%09d ", n.Type, n.Mode, n.UID, n.GID, n.MTime.Sec, n.MTime.Nsec)
	b = appendEscaped(b, n.Path, 0)
	switch n.Type {
	case Regular:
		sum, err := tw.digest(n)
		if err != nil {
			return nil, err
		}
		b = fmt.Appendf(b, " size=%d sha256=%x", n.Size, sum)
	case Symlink:
		b = appendEscaped(append(b, " target="...), n.Target, 0)
	case CharDevice, BlockDevice:
		b = fmt.Appendf(b, " dev=%d:%d", n.Major, n.Minor)
	default: // nothing but what every node has
	}
	if n.Inode != 0 {
		if tw.links[n.Inode] == 0 {
			tw.links[n.Inode] = len(tw.links) + 1
		}
		b = fmt.Appendf(b, " link=%d", tw.links[n.Inode])
	}
	for _, x := range n.Xattrs {
		b = appendEscaped(append(b, " xattr:"...), x.Name, '=')
		b = appendEscaped(append(b, '='), string(x.Value), 0)
	}
	tw.buf = append(b, '\n')
	return tw.buf, nil
}

func (tw *textWriter) digest(n *Node) (sum [32]byte, err error) {
	if known, ok := tw.sums[n.Inode]; ok && n.Inode != 0 {
		return known, nil
	}
	if n.Content == nil {
		return sha256.Sum256(nil), nil
	}
	if d, ok := n.Content.(Digester); ok {
		if known, ok := d.SHA256(); ok {
			return known, nil
		}
	}
	r, err := n.Content.Open()
	if err != nil {
		return sum, err
	}
	defer r.Close()
	h := sha256.New()
	got, err := io.Copy(h, r)
	if err != nil {
		return sum, err
	}
	if got != n.Size {
		return sum, fmt.Errorf("content has %d bytes, not %d", got, n.Size)
	}
	h.Sum(sum[:0])
	if n.Inode != 0 {
		tw.sums[n.Inode] = sum
	}
	return sum, nil
}

func appendEscaped(b []byte, s string, also byte) []byte {
	for i := range len(s) {
		if c := s[i]; c > 0x20 && c < 0x7f && c != '\\' && (c != also || also == 0) {
			b = append(b, c)
		} else {
			b = append(b, '\\', 'x', "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
		}
	}
	return b
}

func unescape(s string) (string, error) {
	if strings.IndexByte(s, '\\') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		if len(s)-i < 4 || s[i+1] != 'x' {
			return "", fmt.Errorf("bad escape in %q", s)
		}
		c, err := hex.DecodeString(s[i+2 : i+4])
		if err != nil {
			return "", fmt.Errorf("bad escape in %q", s)
		}
		b = append(b, c[0])
		i += 3
	}
	return string(b), nil
}

// ParseText reads the text form. Contents of the result know their size and
// digest, but Open returns [ErrNoContent], except that empty files open. Lines
// may come in any order that has parents first; errors name the line.
func ParseText(r io.Reader) (*Tree, error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLine)
	if !s.Scan() || s.Text() != textHeader {
		return nil, errors.Join(fmt.Errorf("parse tree text: first line is not %q", textHeader), s.Err())
	}
	t := New()
	rootSeen := false
	for line := 2; s.Scan(); line++ {
		n, err := parseLine(s.Text())
		switch {
		case err != nil:
		case n.Path != ".":
			err = t.Add(n)
		case rootSeen || n.Type != Directory:
			err = errors.New("the root is there twice or not a directory")
		default:
			n.sortXattrs()
			if err = n.Check(); err == nil {
				t.index["."].Node = n
			}
			rootSeen = true
		}
		if err != nil {
			return nil, fmt.Errorf("parse tree text: line %d: %w", line, err)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("parse tree text: %w", err)
	}
	return t, nil
}

func parseLine(line string) (n Node, err error) {
	f := strings.Split(line, " ")
	if len(f) < 5 {
		return n, errors.New("fewer than five fields")
	}
	i := strings.Index(typeLetters, f[0])
	if len(f[0]) != 1 || i < 1 {
		return n, fmt.Errorf("unknown type %q", f[0])
	}
	n.Type = Type(i)
	mode, err := strconv.ParseUint(f[1], 8, 32)
	if err != nil {
		return n, fmt.Errorf("mode %q is not octal", f[1])
	}
	n.Mode = uint32(mode)
	if n.UID, n.GID, err = parsePair(f[2]); err != nil {
		return n, err
	}
	if n.MTime, err = parseTime(f[3]); err != nil {
		return n, err
	}
	if n.Path, err = unescape(f[4]); err != nil {
		return n, err
	}
	for _, a := range f[5:] {
		if err := n.parseAttribute(a); err != nil {
			return n, err
		}
	}
	return n, n.afterParse()
}

// afterParse completes and checks what one attribute alone cannot decide.
func (n *Node) afterParse() error {
	if n.Type == Regular && n.Content == nil {
		return errors.New("a regular file needs size and sha256")
	}
	if n.Size == 0 && n.Content != nil {
		if d, ok := n.Content.(*digestOnly); ok && *d != sha256.Sum256(nil) {
			return errors.New("sha256 of an empty file is wrong")
		}
		n.Content = Bytes(nil)
	}
	return nil
}

func (n *Node) parseAttribute(a string) error {
	key, value, ok := strings.Cut(a, "=")
	if !ok {
		return fmt.Errorf("attribute %q has no value", a)
	}
	var err error
	switch {
	case key == "size":
		n.Size, err = strconv.ParseInt(value, 10, 64)
	case key == "sha256":
		var d digestOnly
		if len(value) != 2*len(d) {
			return fmt.Errorf("sha256 %q has not 64 digits", value)
		}
		_, err = hex.Decode(d[:], []byte(value))
		n.Content = &d
	case key == "target":
		n.Target, err = unescape(value)
	case key == "dev":
		n.Major, n.Minor, err = parsePair(value)
	case key == "link":
		n.Inode, err = strconv.ParseUint(value, 10, 64)
	case strings.HasPrefix(key, "xattr:"):
		err = n.parseXattr(key[len("xattr:"):], value)
	default:
		err = fmt.Errorf("unknown attribute %q", key)
	}
	return err
}

func (n *Node) parseXattr(name, value string) error {
	name, err := unescape(name)
	if err != nil {
		return err
	}
	value, err = unescape(value)
	if err != nil {
		return err
	}
	n.Xattrs = append(n.Xattrs, Xattr{Name: name, Value: []byte(value)})
	return nil
}

func parsePair(s string) (a, b uint32, err error) {
	first, second, _ := strings.Cut(s, ":")
	x, err1 := strconv.ParseUint(first, 10, 32)
	y, err2 := strconv.ParseUint(second, 10, 32)
	if err1 != nil || err2 != nil {
		return 0, 0, fmt.Errorf("%q is not a pair of 32-bit numbers", s)
	}
	return uint32(x), uint32(y), nil
}

func parseTime(s string) (t Time, err error) {
	sec, nsec, _ := strings.Cut(s, ".")
	t.Sec, err = strconv.ParseInt(sec, 10, 64)
	n, err2 := strconv.ParseUint(nsec, 10, 32)
	if err != nil || err2 != nil || len(nsec) != 9 || n > math.MaxUint32 {
		return t, fmt.Errorf("time %q is not SECONDS.NANOSECONDS", s)
	}
	t.Nsec = uint32(n)
	return t, nil
}
