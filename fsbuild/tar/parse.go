package tar

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/binary"
	"strconv"
	"time"
)

// parser parses the headers of one entry of the usual kinds: those of V7, ustar
// and GNU, the long names of GNU, and one extended header of pax. It copies
// names and attributes and makes no other garbage. What it refuses need not be
// wrong, archive/tar decides that; what it accepts means what it means to
// archive/tar.
type parser struct {
	// head has no Uname, Gname, AccessTime, ChangeTime and Format, and of the
	// records those of attributes only.
	head tar.Header

	// What headers before the last one say. An empty string is as none.
	longName, longLink string // of GNU, which win
	extended           extended
}

// extended is what an extended header says.
type extended struct {
	path, linkpath string
	uid, gid, size record[int64]
	mtime          record[time.Time]
}

// record is a value of an extended header.
type record[T any] struct {
	value T
	set   bool
}

// or returns the value of the record, else that of the header.
func (r record[T]) or(header T) T {
	if r.set {
		return r.value
	}
	return header
}

// Magic and version of a header. V7 headers have neither, nor what is behind.
const (
	magic      = "ustar\x00" // any version
	magicGNU   = "ustar  \x00"
	trailer    = "tar\x00" // of star
	magicAt    = 257
	trailerAt  = 508
	checksumAt = 148
)

// block parses what means the same in every header. Offsets are those of
// "ustar Interchange Format" in POSIX pax.
func (p *parser) block(b *[blockSize]byte) bool {
	var f numbers
	h := &p.head
	h.Mode = f.parse(b[100:108])
	h.Uid = int(f.parse(b[108:116]))
	h.Gid = int(f.parse(b[116:124]))
	h.Size = f.parse(b[124:136])
	h.ModTime = time.Unix(f.parse(b[136:148]), 0)
	h.Typeflag = b[156]
	h.Devmajor, h.Devminor = 0, 0
	if isUstar(b) || isGNU(b) {
		h.Devmajor, h.Devminor = f.parse(b[329:337]), f.parse(b[337:345])
		f.bad = f.bad || hasTimes(b)
	}
	return !f.bad && h.Size >= 0 && isChecked(b)
}

func isUstar(b *[blockSize]byte) bool { return string(b[magicAt:magicAt+len(magic)]) == magic }

func isGNU(b *[blockSize]byte) bool { return string(b[magicAt:magicAt+len(magicGNU)]) == magicGNU }

// hasTimes reports whether there are times behind the device: in headers of
// star, and in those of GNU where ustar has a prefix.
func hasTimes(b *[blockSize]byte) bool {
	if isUstar(b) {
		return string(b[trailerAt:]) == trailer
	}
	return b[345] != 0 || b[357] != 0
}

// last completes the header of the entry itself.
func (p *parser) last(b *[blockSize]byte) bool {
	h, x := &p.head, &p.extended
	if h.Name = cmp.Or(p.longName, x.path); h.Name == "" {
		h.Name = name(b)
	}
	if h.Linkname = cmp.Or(p.longLink, x.linkpath); h.Linkname == "" {
		h.Linkname = text(b[157:257])
	}
	h.Uid, h.Gid = int(x.uid.or(int64(h.Uid))), int(x.gid.or(int64(h.Gid)))
	h.Size, h.ModTime = x.size.or(h.Size), x.mtime.or(h.ModTime)
	if h.Typeflag == 0 { // a file of V7, or a directory
		h.Typeflag = tar.TypeReg
		if h.Name != "" && h.Name[len(h.Name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
	}
	return h.Size >= 0
}

// name returns the name in a header.
func name(b *[blockSize]byte) string {
	if isUstar(b) && b[345] != 0 {
		return text(b[345:500]) + "/" + text(b[:100])
	}
	return text(b[:100])
}

// text returns what is before the first NUL.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// isChecked reports whether the checksum is that of the header: of its bytes
// without sign, the checksum itself taken for spaces.
func isChecked(b *[blockSize]byte) bool {
	const low = 0x00ff00ff00ff00ff // every other byte
	var sums uint64                // four, each below 1<<16
	for i := 0; i < blockSize; i += 8 {
		w := binary.LittleEndian.Uint64(b[i : i+8])
		sums += w&low + w>>8&low
	}
	got := int64(sums&0xffff + sums>>16&0xffff + sums>>32&0xffff + sums>>48)
	for _, c := range b[checksumAt : checksumAt+8] {
		got += ' ' - int64(c)
	}
	want, ok := parseOctal(b[checksumAt : checksumAt+8])
	return ok && want == got
}

// numbers parses fields of a header. bad means that one was not usual.
type numbers struct{ bad bool }

// parse parses octal digits, or a number of GNU.
func (f *numbers) parse(field []byte) int64 {
	n, ok := int64(0), false
	if field[0] < 0x80 {
		n, ok = parseOctal(field)
	} else {
		n, ok = parseBinary(field)
	}
	f.bad = f.bad || !ok
	return n
}

// parseOctal parses octal digits with spaces and NULs before and behind them,
// or nothing but those, which is 0. A field has at most 12 bytes.
func parseOctal(field []byte) (n int64, ok bool) {
	i := 0
	for i < len(field) && isBlank(field[i]) {
		i++
	}
	for ; i < len(field) && field[i]-'0' < 8; i++ {
		n = n<<3 | int64(field[i]-'0')
	}
	for i < len(field) && isBlank(field[i]) {
		i++
	}
	return n, i == len(field)
}

func isBlank(c byte) bool { return c == ' ' || c == 0 }

// parseBinary parses a big-endian number in two's complement behind a byte that
// has its sign, as GNU writes it ("Extensions to the archive format").
func parseBinary(field []byte) (n int64, ok bool) {
	switch field[0] {
	case 0x80:
	case 0xff:
		n = -1
	default:
		return 0, false
	}
	for _, c := range field[1:] {
		if n < -1<<55 || n >= 1<<55 {
			return 0, false
		}
		n = n<<8 | int64(c)
	}
	return n, true
}

// before takes the data of a header that is for the one after it.
func (p *parser) before(typeflag byte, data []byte) bool {
	switch typeflag {
	case tar.TypeGNULongName:
		p.longName = text(data)
	case tar.TypeGNULongLink:
		p.longLink = text(data)
	default:
		return p.records(data)
	}
	return true
}

// records parses the data of an extended header, which replaces one before it:
// "pax Extended Header" in POSIX pax.
func (p *parser) records(b []byte) bool {
	p.head.PAXRecords = nil
	p.extended = extended{}
	for len(b) > 0 {
		digits, _, _ := bytes.Cut(b, []byte(" "))
		n, err := strconv.Atoi(string(digits))
		if err != nil || n > len(b) || n < len(digits)+2 || b[n-1] != '\n' {
			return false
		}
		key, value, ok := bytes.Cut(b[len(digits)+1:n-1], []byte("="))
		if !ok || !p.record(key, value) {
			return false
		}
		b = b[n:]
	}
	return true
}

// record takes a record. Of several with one key the last one counts, and an
// empty one is as none.
func (p *parser) record(key, value []byte) (ok bool) {
	x := &p.extended
	switch string(key) {
	case "path":
		x.path = string(value)
		return !hasNUL(value)
	case "linkpath":
		x.linkpath = string(value)
		return !hasNUL(value)
	case "uname", "gname":
		return !hasNUL(value)
	case "uid":
		x.uid, ok = parseRecord(value, parseDecimal)
	case "gid":
		x.gid, ok = parseRecord(value, parseDecimal)
	case "size":
		x.size, ok = parseRecord(value, parseDecimal)
	case "mtime":
		x.mtime, ok = parseRecord(value, parseTime)
	case "atime", "ctime":
		_, ok = parseRecord(value, parseTime)
	default:
		return p.other(key, value)
	}
	return ok
}

// other keeps attributes and refuses sparse files.
func (p *parser) other(key, value []byte) bool {
	switch {
	case len(key) == 0 || hasNUL(key) || bytes.HasPrefix(key, []byte("GNU.sparse.")):
		return false
	case bytes.HasPrefix(key, []byte(xattrKey)) || bytes.HasPrefix(key, []byte("SCHILY.acl.")):
		if p.head.PAXRecords == nil {
			p.head.PAXRecords = map[string]string{}
		}
		p.head.PAXRecords[string(key)] = string(value)
	}
	return true
}

func hasNUL(b []byte) bool { return bytes.IndexByte(b, 0) >= 0 }

func parseRecord[T any](value []byte, parse func([]byte) (T, bool)) (r record[T], ok bool) {
	if len(value) == 0 {
		return r, true
	}
	r.value, r.set = parse(value)
	return r, r.set
}

func parseDecimal(b []byte) (int64, bool) {
	n, err := strconv.ParseInt(string(b), 10, 64)
	return n, err == nil
}

// parseTime parses seconds, with up to nine digits behind the point. A minus is
// for these too.
func parseTime(b []byte) (time.Time, bool) {
	whole, part, _ := bytes.Cut(b, []byte("."))
	sec, ok := parseDecimal(whole)
	if !ok || len(part) > 9 {
		return time.Time{}, false
	}
	nsec := int64(0)
	for i := range 9 {
		nsec *= 10
		if i < len(part) {
			if part[i] < '0' || part[i] > '9' {
				return time.Time{}, false
			}
			nsec += int64(part[i] - '0')
		}
	}
	if whole[0] == '-' {
		nsec = -nsec
	}
	return time.Unix(sec, nsec), true
}
