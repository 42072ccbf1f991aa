package reproducibility

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"io"
	"path"
	"strconv"
	"strings"
	"unicode/utf16"

	"cairn/fsbuild/tree" // Java's key stores have it in their format
)

const secondsPerDay = 86400

// rewriteShadow sets the date of the last password change (shadow(5), third
// field, days since 1970) to the epoch's where the build has set it.
func rewriteShadow(s *state, n *tree.Node) (Action, error) {
	b, err := read(n)
	if err != nil {
		return "", err
	}
	lines := strings.SplitAfter(string(b), "\n")
	changed := false
	for i, line := range lines {
		fields := strings.SplitN(line, ":", 4)
		if len(fields) < 4 {
			continue
		}
		day, err := strconv.ParseInt(fields[2], 10, 32)
		if err != nil || !s.isStampDay(day) {
			continue
		}
		fields[2] = strconv.FormatInt(s.epoch.Sec/secondsPerDay, 10)
		if again := strings.Join(fields, ":"); again != line {
			lines[i], changed = again, true
		}
	}
	if !changed {
		return "", nil
	}
	s.setContent(n, []byte(strings.Join(lines, "")))
	return Rewrite, nil
}

// isStampDay reports whether a date was set by the build.
func (s *state) isStampDay(day int64) bool {
	if day > s.epoch.Sec/secondsPerDay {
		return true
	}
	if s.p.Started.IsZero() || s.p.Ended.IsZero() {
		return false
	}
	return day >= s.p.Started.Unix()/secondsPerDay && day <= s.p.Ended.Unix()/secondsPerDay
}

// Byte-compiled Python (PEP 552, importlib/_bootstrap_external.py): a magic
// number of 4 bytes, flags (4 bytes, little-endian, as all that follows), and,
// with no flag set, the modification time and the size of the source, 4 bytes
// each and modulo 2^32.
const (
	pycHeader = 16
	pycFlags  = 4
	pycTime   = 8
	pycSize   = 12
)

// rewritePyc keeps a byte-compiled file valid whose source gets another time.
// One that was not valid before, though it carries a time of the build, is
// removed: the time must not stay, and it must not become valid by accident.
func rewritePyc(s *state, n *tree.Node) (Action, error) {
	head, err := readHead(n, pycHeader)
	if err != nil || len(head) < pycHeader || binary.LittleEndian.Uint32(head[pycFlags:]) != 0 {
		return "", err
	}
	recorded := binary.LittleEndian.Uint32(head[pycTime:])
	if !s.isStamp(tree.Time{Sec: int64(recorded)}) {
		return "", nil
	}
	source, legacy := pycSource(n.Path)
	switch src := s.t.Lookup(source); {
	case src == nil && legacy: // Python takes it for the module itself and reads no time
	case src == nil, src.Type != tree.Regular, uint32(src.MTime.Sec) != recorded,
		uint32(src.Size) != binary.LittleEndian.Uint32(head[pycSize:]):
		s.t.Remove(n.Path)
		return Remove, nil
	case !s.isStamp(src.MTime):
		return "", nil
	}
	binary.LittleEndian.PutUint32(head[pycTime:], uint32(s.epoch.Sec))
	content := &patched{n.Content, head}
	for _, m := range s.names(n) {
		m.Content, m.MTime = content, s.epoch
	}
	return Rewrite, nil
}

// pycSource returns the path of the source of a byte-compiled file (PEP 3147):
// a.py for __pycache__/a.cpython-311.opt-1.pyc and for a.pyc, which is where
// such files were before.
func pycSource(pyc string) (source string, legacy bool) {
	dir, name := path.Split(pyc)
	dir = path.Clean(dir)
	if path.Base(dir) != "__pycache__" {
		return strings.TrimSuffix(pyc, "c"), true
	}
	name = strings.TrimSuffix(name, ".pyc")
	if i := strings.LastIndex(name, ".opt-"); i >= 0 {
		name = name[:i]
	}
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		name = name[:i]
	}
	return path.Join(path.Dir(dir), name+".py"), false
}

// patched is a content whose first bytes are replaced.
type patched struct {
	tree.Content
	head []byte
}

func (p *patched) Open() (io.ReadCloser, error) {
	r, err := p.Content.Open()
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, r, int64(len(p.head))); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(p.head), r), r}, nil
}

// Java's key store format "JKS" (sun.security.provider.JavaKeyStore): a magic
// number, a version and a count, 4 bytes each and big-endian as everything;
// for each entry a tag (4 bytes; 2 is a trusted certificate), an alias (2 bytes
// of length, then text), a time (8 bytes, milliseconds since 1970), a type like
// the alias, and a certificate (4 bytes of length, then DER); last the SHA-1 of
// the password in UTF-16, a fixed phrase, and all of the above.
const (
	jksMagic       = 0xfeedfeed
	jksVersion     = 2
	jksCertificate = 2
	jksPhrase      = "Mighty Aphrodite"
	jksPassword    = "changeit" // Java's documented default, which Debian keeps
)

// rewriteKeystore sets the times of import in a JKS key store of certificates
// to the epoch where the build has set them. A store of another format, or with
// another password, is left as it is.
func rewriteKeystore(s *state, n *tree.Node) (Action, error) {
	b, err := read(n)
	if err != nil {
		return "", err
	}
	data := bytes.Clone(b[:max(0, len(b)-sha1.Size)])
	sum := jksSum(data)
	if !bytes.Equal(sum[:], b[len(data):]) {
		return "", nil
	}
	for _, t := range jksTimes(data) {
		ms := int64(binary.BigEndian.Uint64(t))
		if s.isStamp(tree.Time{Sec: ms / 1000, Nsec: uint32(ms % 1000)}) {
			binary.BigEndian.PutUint64(t, uint64(s.epoch.Sec*1000))
		}
	}
	sum = jksSum(data)
	again := append(data, sum[:]...)
	if bytes.Equal(again, b) {
		return "", nil
	}
	s.setContent(n, again)
	return Rewrite, nil
}

func jksSum(data []byte) [sha1.Size]byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(jksPassword)) {
		b = binary.BigEndian.AppendUint16(b, c)
	}
	b = append(b, jksPhrase...)
	return sha1.Sum(append(b, data...))
}

// jksTimes returns the places in data of the entries' times, none if data is
// not a key store that holds only certificates.
func jksTimes(data []byte) [][]byte {
	d := &cutter{b: data}
	if d.uint32() != jksMagic || d.uint32() != jksVersion {
		return nil
	}
	var times [][]byte
	for range d.uint32() {
		if d.uint32() != jksCertificate || d.short {
			return nil
		}
		d.cut(d.uint16())
		times = append(times, d.cut(8))
		d.cut(d.uint16())
		d.cut(int(d.uint32()))
	}
	if d.short || len(d.b) != 0 {
		return nil
	}
	return times
}

// A cutter takes a slice apart. Once it was too short, it returns zeros.
type cutter struct {
	b     []byte
	short bool
}

func (c *cutter) cut(n int) []byte {
	if c.short || n > len(c.b) {
		c.short = true
		return make([]byte, 8)
	}
	head := c.b[:n]
	c.b = c.b[n:]
	return head
}

func (c *cutter) uint16() int    { return int(binary.BigEndian.Uint16(c.cut(2))) }
func (c *cutter) uint32() uint32 { return binary.BigEndian.Uint32(c.cut(4)) }
