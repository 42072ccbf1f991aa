package tar

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tar/entry"
	"cairn/fsbuild/tree"
	"cairn/tests/require"
)

// FuzzScanner compares with archive/tar, as [compare] says. It also mends the
// checksums of the headers first.
func FuzzScanner(f *testing.F) {
	for _, b := range samples(f) {
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, in []byte, mend bool) {
		if mend {
			in = mended(in)
		}
		compare(t, in, false)
		compare(t, in, true)
	})
}

// compare goes through an archive with a scanner and with archive/tar: both
// have the same entries with the same fields and contents, and end with the
// same error. There is one exception: an archive that ends within the padding
// behind a content is damaged, unless isCut.
func compare(t *testing.T, in []byte, isCut bool) {
	t.Helper()
	src := io.NewSectionReader(bytes.NewReader(in), 0, int64(len(in)))
	s, std := newScanner(src, isCut), tar.NewReader(bytes.NewReader(in))
	for i := 0; ; i++ {
		got, err := s.next()
		want, wantErr := std.Next()
		if errors.Is(wantErr, tar.ErrInsecurePath) {
			wantErr = nil
		}
		if s.start > src.Size() && !isCut && errors.Is(wantErr, io.EOF) {
			wantErr = io.ErrUnexpectedEOF
		}
		if fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Fatalf("entry %d: error is %v, want %v", i, err, wantErr)
		}
		if err != nil {
			return
		}
		if want, got := fieldsOf(want), fieldsOf(got); want != got {
			t.Fatalf("entry %d (-archive/tar +ours):\n%s", i, cmp.Diff(want, got))
		}
		if types[got.Typeflag] == 0 && got.Typeflag != tar.TypeLink && got.Typeflag != tar.TypeXGlobalHeader {
			return // a reader stops here
		}
		if !sameContent(t, s, got, std) {
			return
		}
	}
}

// fields is what counts of a header.
type fields struct {
	Type        byte
	Name, Link  string
	Numbers     [6]int64
	Seconds     int64
	Nanoseconds int
	Records     string
	IsSparse    bool
}

// fieldsOf returns the fields of a header. Of a global one those are the
// records: if one of them is malformed, the name is any.
func fieldsOf(h *tar.Header) fields {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return fields{Type: h.Typeflag, Records: fmt.Sprint(h.PAXRecords)} // sorted
	}
	records := map[string]string{}
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.xattr.") || strings.HasPrefix(key, "SCHILY.acl.") {
			records[key] = value
		}
	}
	return fields{
		Type: h.Typeflag, Name: h.Name, Link: h.Linkname, Numbers: [6]int64{h.Size, h.Mode, int64(h.Uid), int64(h.Gid), h.Devmajor, h.Devminor},
		Seconds: h.ModTime.Unix(), Nanoseconds: h.ModTime.Nanosecond(), Records: fmt.Sprint(records), IsSparse: entry.IsSparse(h),
	}
}

// sameContent compares the content of an entry, and reports whether to go on.
func sameContent(t *testing.T, s *scanner, h *tar.Header, std io.Reader) bool {
	t.Helper()
	if h.Size > 1<<20 { // skipped; a sparse one takes long, one beyond 1<<62 is an error of seeking
		return !entry.IsSparse(h) && h.Size < 1<<62
	}
	want, wantErr := io.ReadAll(std)
	if entry.IsSparse(h) {
		err := s.skipSparse()
		if fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Fatalf("content of %q: error is %v, want %v", h.Name, err, wantErr)
		}
		return err == nil
	}
	got := make([]byte, s.end-s.data)
	n, err := s.in.r.ReadAt(got, s.data)
	if err == nil && wantErr != nil || !bytes.Equal(got[:n], want) {
		t.Fatalf("content of %q is %q, want %q and %v", h.Name, got[:n], want, wantErr)
	}
	return true // what is missing is found by the next call
}

// mended returns an archive with the right checksum in each header.
func mended(in []byte) []byte {
	out := bytes.Clone(in)
	for off := int64(0); off >= 0 && off+blockSize <= int64(len(out)); {
		b := (*[blockSize]byte)(out[off:])
		if *b != [blockSize]byte{} {
			setChecksum(b)
		}
		off += blockSize
		size, ok := parseOctal(b[124:136])
		if t := b[156]; ok && (types[t] == 0 && t != tar.TypeLink || types[t] == tree.Regular || t == 0) {
			off += padded(size)
		}
	}
	return out
}

func setChecksum(b *[blockSize]byte) {
	sum := 0
	copy(b[checksumAt:], "        ")
	for _, c := range b {
		sum += int(c)
	}
	copy(b[checksumAt:], fmt.Sprintf("%06o\x00 ", sum))
}

// samples returns small archives by name: of GNU tar, bsdtar, archive/tar and
// this package, in all their formats.
func samples(t testing.TB) map[string][]byte {
	t.Helper()
	src := sampleDir(t)
	all := map[string][]byte{}
	gnu, bsd := require.Tool(t, "tar", "tar"), require.Tool(t, "bsdtar", "libarchive-tools")
	for _, args := range [][]string{
		{gnu, "--format=v7"},
		{gnu, "--format=oldgnu"},
		{gnu, "--format=gnu"},
		{gnu, "--format=ustar"},
		{gnu, "--format=pax"},
		{gnu, "--format=pax", "--xattrs", "--xattrs-include=*"},
		{gnu, "--format=gnu", "--owner=u:3000000000", "--group=g:2500000"},
		{gnu, "--format=gnu", "--mtime=@-5"},
		{gnu, "--format=pax", "--mtime=@-5.25"},
		{gnu, "--format=gnu", "-S"},
		{gnu, "--format=pax", "-S", "--sparse-version=0.0"},
		{gnu, "--format=pax", "-S", "--sparse-version=0.1"},
		{gnu, "--format=pax", "-S", "--sparse-version=1.0"},
		{gnu, "--format=gnu", "--incremental"},
		{gnu, "--format=pax", "--pax-option=globexthdr.name=g,comment=c"},
		{bsd, "--format=v7"},
		{bsd, "--format=ustar"},
		{bsd, "--format=pax"},
		{bsd, "--format=gnutar"},
	} {
		args = append(args, "-b1", "-cf", "-", "-C", src, ".")
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
		out, err := cmd.Output()
		if len(out) < 10*blockSize { // what a format cannot hold makes an error too
			t.Fatalf("%q: %v, %d bytes", args, err, len(out))
		}
		all[filepath.Base(args[0])+" "+strings.Join(args[1:len(args)-6], " ")] = out
	}
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		all["archive/tar "+format.String()] = sampleStd(t, format)
	}
	all["cairn"] = sampleOurs(t)
	all["both kinds of long names"] = slices.Concat(
		sampleEntry('x', "14 path=first\n"), sampleEntry('K', "long link\x00"), sampleEntry('L', "long name\x00"),
		sampleEntry('x', "17 path=recorded\n17 linkpath=link\n"), sampleEntry('2', ""), sampleEntry('5', ""), sampleEntry('6', ""), sampleEntry('0', "x"), sampleEntry('1', ""))
	all["a size below zero"] = slices.Concat(sampleEntry('x', "11 size=-5\n"), sampleEntry('0', ""))
	return all
}

// sampleDir makes a directory with long names, an attribute and a sparse file.
func sampleDir(t testing.TB) string {
	t.Helper()
	src := fstest.ScratchDir(t)
	long := filepath.Join(src, strings.Repeat("l", 90), strings.Repeat("m", 90))
	hole := filepath.Join(src, "hole")
	for _, err := range []error{
		os.MkdirAll(long, 0o755),
		os.WriteFile(filepath.Join(src, "a"), []byte("first"), 0o640),
		os.WriteFile(filepath.Join(long, "b"), []byte("second"), 0o4755),
		os.WriteFile(filepath.Join(src, strings.Repeat("n", 180)), nil, 0o600),
		os.WriteFile(filepath.Join(src, "\u00e4"), []byte("x"), 0o600),
		os.Symlink(strings.Repeat("t", 130), filepath.Join(src, "s")),
		os.Link(filepath.Join(src, "a"), filepath.Join(src, "z")),
		os.WriteFile(hole, []byte("data"), 0o600),
		os.Truncate(hole, 20_000),
		unix.Setxattr(filepath.Join(src, "a"), "user.x", []byte("value=\n\x00"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return src
}

// sampleStd returns an archive that archive/tar wrote.
func sampleStd(t testing.TB, format tar.Format) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o644, Size: 3, ModTime: time.Unix(1_700_000_000, 0)},
		{Name: "d/" + strings.Repeat("n", 99), Typeflag: tar.TypeSymlink, Linkname: "f"},
		{Name: "c", Typeflag: tar.TypeChar, Devmajor: 5, Devminor: 1, Uid: 1<<21 - 1},
		{Name: "h", Typeflag: tar.TypeLink, Linkname: "d/f"},
	} {
		h.Format = format
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, "abc"[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sampleEntry returns a ustar header with its data.
func sampleEntry(typeflag byte, data string) []byte {
	b := plain(&tar.Header{Typeflag: typeflag, Name: "name", Linkname: "target", Size: int64(len(data)), ModTime: time.Unix(1_700_000_000, 0)})
	return append(b[:], append([]byte(data), make([]byte, -len(data)&(blockSize-1))...)...)
}

// sampleOurs returns an archive that this package wrote.
func sampleOurs(t testing.TB) []byte {
	t.Helper()
	tr := tree.New()
	for _, n := range []tree.Node{
		{Path: "d", Type: tree.Directory, Mode: 0o755},
		{Path: "d/plain", Type: tree.Regular, Size: 5, Content: tree.Bytes([]byte("plain")), Inode: 1},
		{Path: "d/other", Type: tree.Regular, Size: 5, Content: tree.Bytes([]byte("plain")), Inode: 1},
		{Path: "d/" + strings.Repeat("\xff", 120), Type: tree.Symlink, Target: strings.Repeat("t", 300), MTime: tree.Time{Sec: -2, Nsec: 5}},
		{Path: "e", Type: tree.FIFO, UID: 1 << 30, GID: 1 << 31, Xattrs: []tree.Xattr{{Name: "user.a", Value: []byte("\x00=\n")}}},
		{Path: "f", Type: tree.BlockDevice, Major: 8, Minor: 1<<20 - 1, MTime: tree.Time{Sec: 1 << 34}},
	} {
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if _, err := Write(t.Context(), &b, tr, Params{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestScannerUsual: archive/tar is left only what is rare.
func TestScannerUsual(t *testing.T) {
	for name, b := range samples(t) {
		if strings.Contains(name, "incremental") || name == "a size below zero" { // the first has times where ustar has a prefix
			continue
		}
		s, entries, rare := newScanner(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), false), 0, 0
		for {
			h, err := s.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			entries++
			if s.rare == nil {
				continue
			}
			rare++
			if entry.IsSparse(h) {
				if err := s.skipSparse(); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
		}
		want := 0
		switch {
		case strings.Contains(name, "-S"), strings.Contains(name, "comment"), name == "bsdtar --format=pax":
			want = 1 // the sparse file, or the global header
		}
		if rare != want || entries < 5 {
			t.Errorf("%s: archive/tar parsed %d of %d entries, want %d", name, rare, entries, want)
		}
	}
}

// counting counts what is read.
type counting struct {
	io.ReaderAt
	reads, bytes int
}

func (c *counting) ReadAt(b []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(b, off)
	c.reads++
	c.bytes += n
	return n, err
}

// TestScannerReads: headers cost few reads when they follow each other, and
// few bytes when contents are between them.
func TestScannerReads(t *testing.T) {
	const entries = 1000
	for _, c := range []struct{ size, reads, bytes int }{
		{0, 16, entries * blockSize},
		{50_000, entries + 10, (entries + 10) * 8 << 10},
	} {
		tr := tree.New()
		for i := range entries {
			n := tree.Node{Path: fmt.Sprint(i), Type: tree.Regular, Size: int64(c.size), Content: tree.Bytes(make([]byte, c.size))}
			if err := tr.Add(n); err != nil {
				t.Fatal(err)
			}
		}
		var b bytes.Buffer
		if _, err := Write(t.Context(), &b, tr, Params{}); err != nil {
			t.Fatal(err)
		}
		in := &counting{ReaderAt: bytes.NewReader(b.Bytes())}
		if _, err := Read(t.Context(), in, int64(b.Len()), Options{}); err != nil {
			t.Fatal(err)
		}
		if in.reads > c.reads || in.bytes > c.bytes+4*blockSize {
			t.Errorf("files of %d bytes: %d reads of %d bytes, want at most %d of %d", c.size, in.reads, in.bytes, c.reads, c.bytes)
		}
	}
}

// TestScannerOdd compares archives with odd fields, records and types in all
// combinations, most of them with correct checksums.
func TestScannerOdd(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		var b []byte
		for range 1 + rng.IntN(4) {
			b = append(b, oddEntry(rng)...)
		}
		switch rng.IntN(10) {
		case 0:
			b = b[:rng.IntN(len(b))]
		case 1:
			b = append(b, make([]byte, blockSize)...)
		case 2:
		default:
			b = append(b, make([]byte, 2*blockSize)...)
		}
		compare(t, b, rng.IntN(2) == 0)
	}
}

// one returns an element, the first in most cases.
func one[T any](rng *rand.Rand, of ...T) T {
	if rng.IntN(4) > 0 {
		return of[0]
	}
	return of[rng.IntN(len(of))]
}

// pick returns any element.
func pick[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }

// oddEntry makes a header with its data.
func oddEntry(rng *rand.Rand) []byte {
	b := new([blockSize]byte)
	number := func(field []byte, usual string) {
		copy(field, one(rng, usual, " 17 ", "\x00\x0017\x00 ", "", "8", "-1", "1 7", "17\x00x", "7777777777777", "\x80\x00\x00\x00\x00\x00\x01\x02",
			"\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02", "\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff\xff", "\x81\x00\x00\x00\x01\x02\x03\x04", "\x80\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff",
			"\x80\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00", "\xff\xfe\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "\xc0\x01"))
	}
	kinds := "00000000112345567xxxxxxxxxxgLLLKKKSSVDM\x00\x00\x00AX"
	b[156] = kinds[rng.IntN(len(kinds))]
	data := oddData(rng, b[156])
	copy(b[:100], one(rng, "name", "dir/", "", strings.Repeat("n", 120), "\xff\x00junk"))
	number(b[100:108], "0000644")
	number(b[108:116], "0001750")
	number(b[116:124], "0000000")
	if number(b[124:136], fmt.Sprintf("%011o", len(data))); rng.IntN(3) > 0 {
		copy(b[124:136], fmt.Sprintf("%011o\x00", len(data)))
	}
	number(b[136:148], "14524770400")
	copy(b[157:257], one(rng, "", "link", strings.Repeat("l", 120)))
	copy(b[257:265], one(rng, "ustar\x0000", "ustar  \x00", "", "ustar\x00xx", "ustar   ", "Ustar\x0000"))
	number(b[329:337], "0000001")
	number(b[337:345], "0000002")
	copy(b[345:500], one(rng, "", "prefix", strings.Repeat("p", 200), "12345670123\x00", "\x0012345670123"))
	copy(b[508:], one(rng, "", "", "tar\x00", "xxxx"))
	if setChecksum(b); rng.IntN(40) == 0 {
		copy(b[checksumAt:], one(rng, "999999\x00 ", "\x80\x00\x00\x00\x00\x00\x10\x00", "", "1"))
	}
	return append(b[:], append(data, make([]byte, -len(data)&(blockSize-1))...)...)
}

// oddData makes what follows the header of a type.
func oddData(rng *rand.Rand, typeflag byte) (data []byte) {
	switch typeflag {
	case 'L', 'K':
		return []byte(one(rng, "long\x00", "long", "", "\x00", "dir/\x00x", strings.Repeat("n", 600)))
	case '0', 0, '7', 'S', 'V':
		return bytes.Repeat([]byte("."), rng.IntN(4)*rng.IntN(400))
	case 'x', 'g':
	default:
		return nil
	}
	for range rng.IntN(5) {
		data = append(data, oddRecord(rng)...)
	}
	return data
}

// oddRecord makes a record of an extended header.
func oddRecord(rng *rand.Rand) string {
	if rng.IntN(30) == 0 {
		return pick(rng, "5 a\n", "x", "7 ab=c ", "+9 ab=cd\n", "99 a=b\n", "3 a=b\n", "\n", "010 ab=cd\n", " 9 ab=cd\n", "2 \n", "1 \n", "0 a=b\n", "-1 a=b\n")
	}
	text := []string{"value", "value", "value", "", "dir/", "a=b", strings.Repeat("v", 300), "a\x00b"}
	number := []string{"5", "5", "5", "5", "", "-5", "+5", "5.25", "-0.5", "-5.123456789", "1.0000000001", "1.000000000x", "1.x", ".5", "9223372036854775807", "9223372036854775808", "x", "0,5", "5\x00"}
	values := map[string][]string{"path": text, "linkpath": text, "uname": text, "comment": text, "hdrcharset": text, "": text}
	key := pick(rng, "path", "path", "linkpath", "linkpath", "uid", "gid", "size", "mtime", "mtime", "atime", "ctime", "uname", "comment", "SCHILY.xattr.user.a", "SCHILY.xattr.", "SCHILY.acl.access",
		"GNU.sparse.major", "GNU.sparse.map", "", "a\x00b", "LIBARCHIVE.xattr.a", "hdrcharset")
	if values[key] == nil {
		values[key] = number
	}
	record := key + "=" + pick(rng, values[key]...)
	size := len(record) + 3 // with a digit, a space and a newline
	for len(fmt.Sprint(size))+len(record)+2 > size {
		size++
	}
	return fmt.Sprintf("%d %s\n", size, record)
}
