package tar

import (
	"archive/tar"
	"strings"
	"time"
	"unicode/utf8"

	"cairn/fsbuild/tree"
)

// blockSize is what headers and contents are padded to, in bytes.
const blockSize = 512

// typeFlags are the types of entries by tree.Type.
var typeFlags = [...]byte{
	tree.Regular: tar.TypeReg, tree.Directory: tar.TypeDir, tree.Symlink: tar.TypeSymlink,
	tree.CharDevice: tar.TypeChar, tree.BlockDevice: tar.TypeBlock, tree.FIFO: tar.TypeFifo,
}

// header describes a node; the next call reuses the result.
func (a *archive) header(n *tree.Node) *tar.Header {
	h := &a.head
	*h = tar.Header{
		Typeflag: typeFlags[n.Type], Name: n.Path, Linkname: n.Target, Mode: int64(n.Mode),
		Uid: int(n.UID), Gid: int(n.GID), ModTime: time.Unix(n.MTime.Sec, int64(n.MTime.Nsec)),
		Devmajor: int64(n.Major), Devminor: int64(n.Minor), Size: n.Size, Format: tar.FormatPAX,
	}
	if n.Type == tree.Directory {
		h.Name += "/"
	}
	if !a.p.Time.IsZero() && h.ModTime.After(a.p.Time) {
		h.ModTime = a.p.Time
	}
	if first, ok := a.first[n.Inode]; ok {
		h.Typeflag, h.Linkname, h.Size, h.Devmajor, h.Devminor = tar.TypeLink, first, 0, 0, 0
		h.PAXRecords = charset(h)
		return h
	}
	if n.Inode != 0 {
		a.first[n.Inode] = n.Path
	}
	h.PAXRecords = charset(h)
	if len(n.Xattrs) > 0 {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string, len(n.Xattrs))
		}
		for _, x := range n.Xattrs {
			h.PAXRecords[xattrKey+x.Name] = string(x.Value)
		}
	}
	return h
}

// charset returns the record without which names in an extended header are
// UTF-8, if those of h are not.
func charset(h *tar.Header) map[string]string {
	if utf8.ValidString(h.Name) && utf8.ValidString(h.Linkname) {
		return nil
	}
	return map[string]string{"hdrcharset": "BINARY"}
}

// writeHeader writes a header and those that extend it. Most entries need only
// a ustar header, which is made here, byte for byte as archive/tar makes it but
// in a tenth of the time.
func (a *archive) writeHeader(h *tar.Header) error {
	if !isPlain(h) {
		return tar.NewWriter(a.out).WriteHeader(h)
	}
	a.block = plain(h)
	_, err := a.out.Write(a.block[:])
	return err
}

// isPlain tells whether a ustar header holds all of h without a prefix.
func isPlain(h *tar.Header) bool {
	seconds := h.ModTime.Unix()
	return len(h.PAXRecords) == 0 && isShort(h.Name) && isShort(h.Linkname) &&
		h.Uid < 1<<21 && h.Gid < 1<<21 && h.Size < 1<<33 &&
		seconds >= 0 && seconds < 1<<33 && h.ModTime.Nanosecond() == 0
}

// isShort tells whether a name fits into its field.
func isShort(name string) bool {
	return len(name) <= 100 && strings.IndexFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}

// plain makes a ustar header (POSIX pax, "ustar Interchange Format").
func plain(h *tar.Header) (b [blockSize]byte) {
	copy(b[0:100], h.Name)
	octal(b[100:108], h.Mode)
	octal(b[108:116], int64(h.Uid))
	octal(b[116:124], int64(h.Gid))
	octal(b[124:136], h.Size)
	octal(b[136:148], h.ModTime.Unix())
	b[156] = h.Typeflag
	copy(b[157:257], h.Linkname)
	copy(b[257:265], "ustar\x0000")
	octal(b[329:337], h.Devmajor)
	octal(b[337:345], h.Devminor)
	copy(b[148:156], "        ") // as which the checksum counts itself
	sum := int64(0)
	for _, c := range b {
		sum += int64(c)
	}
	octal(b[148:155], sum)
	return b
}

// octal fills a field with a number and a NUL.
func octal(field []byte, n int64) {
	last := len(field) - 1
	field[last] = 0
	for i := last - 1; i >= 0; i-- {
		field[i] = '0' + byte(n&7)
		n >>= 3
	}
}
