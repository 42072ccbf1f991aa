package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// ent is an entry of a test archive.
type ent struct {
	tar.Header
	data string
}

func reg(name, data string) ent {
	return ent{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}, data}
}

func special(typeflag byte, name, target string) ent {
	return ent{Header: tar.Header{Typeflag: typeflag, Name: name, Linkname: target, Mode: 0o755}}
}

func folder(name string) ent           { return special(tar.TypeDir, name, "") }
func symlink(name, target string) ent  { return special(tar.TypeSymlink, name, target) }
func hardlink(name, target string) ent { return special(tar.TypeLink, name, target) }

func (e ent) with(change func(*tar.Header)) ent {
	change(&e.Header)
	return e
}

func (e ent) xattr(name, value string) ent {
	return e.with(func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	})
}

func archive(t testing.TB, entries ...ent) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.ModTime.IsZero() {
			e.ModTime = time.Unix(1_700_000_000, 0)
		}
		e.Format = tar.FormatPAX
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// unpack unpacks entries into a fresh root and returns its listing.
func unpack(t *testing.T, o Options, layers ...[]ent) (string, Ledger) {
	t.Helper()
	root := newRoot(t)
	for _, entries := range layers {
		var err error
		if o.Ledger, err = Unpack(t.Context(), root, archive(t, entries...), o); err != nil {
			t.Fatal(err)
		}
	}
	return listing(t, root), o.Ledger
}

// newRoot returns an empty directory of mode 0755 and a fixed time.
func newRoot(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(root, time.Unix(5, 0), time.Unix(5, 0)); err != nil {
		t.Fatal(err)
	}
	return root
}

// listing describes a tree on disk, one line per object: path, type and mode,
// owner, time, then target, digest, links and attributes where there are any.
// It is written with lstat and friends only, apart from the code under test.
func listing(t testing.TB, root string) string {
	t.Helper()
	var out strings.Builder
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		fmt.Fprintf(&out, "%q %06o %d:%d %d.%09d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " -> %q", target)
		case unix.S_IFREG:
			fmt.Fprintf(&out, " %d %s", st.Size, digest(t, p))
		case unix.S_IFCHR, unix.S_IFBLK:
			fmt.Fprintf(&out, " dev %d", st.Rdev)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			fmt.Fprintf(&out, " = %q", first[st.Ino])
		}
		out.WriteString(attributes(t, p) + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func digest(t testing.TB, p string) string {
	t.Helper()
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:4])
}

func attributes(t testing.TB, p string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 64<<10)
		m, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf(" %s=%x", name, v[:m]))
	}
	slices.Sort(all)
	return strings.Join(all, "")
}

// names returns the paths of a listing.
func names(listing string) []string {
	var all []string
	for line := range strings.Lines(listing) {
		name, _, _ := strings.Cut(line, " ")
		all = append(all, strings.Trim(name, `"`))
	}
	return all
}

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests set owners: run them as root, or in a user namespace with a range of ids")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestUnpackEveryType(t *testing.T) {
	at := func(sec, nsec int64) func(*tar.Header) {
		return func(h *tar.Header) { h.ModTime = time.Unix(sec, nsec) }
	}
	long := strings.Repeat("n", 200)
	got, ledger := unpack(t, Options{}, []ent{
		folder("./").with(func(h *tar.Header) { h.Mode, h.Uid = 0o711, 3 }),
		folder("d/").with(func(h *tar.Header) { h.Mode, h.Gid = 0o2775, 50 }).with(at(-5, 7)),
		reg("d/su", "ELF").with(func(h *tar.Header) { h.Mode, h.Gid = 0o4755, 7 }).with(at(1, 123456789)),
		hardlink("d/su2", "d/su"),
		symlink("d/l", "/etc/passwd").with(func(h *tar.Header) { h.Uid = 9 }),
		hardlink("d/l2", "/d/l"),
		special(tar.TypeFifo, "d/p", "").with(func(h *tar.Header) { h.Mode = 0o620 }),
		reg("implied/"+long+"/"+long, "x").xattr("user.k", "v"),
		special(tar.TypeChar, "dev/null", "").with(func(h *tar.Header) { h.Mode, h.Gid, h.Devmajor, h.Devminor = 0o666, 5, 1, 3 }),
		special(tar.TypeBlock, "dev/a", "").with(func(h *tar.Header) { h.Devmajor, h.Devminor = 7, 1<<20-1 }),
		folder("dev").with(func(h *tar.Header) { h.Mode = 0o1777 }),
	})
	sha := func(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s)))[:8] }
	want := `"." 040711 3:0 1700000000.000000000
"d" 042775 0:50 -5.000000007
"d/l" 120777 9:0 1700000000.000000000 -> "/etc/passwd" = "d/l"
"d/l2" 120777 9:0 1700000000.000000000 -> "/etc/passwd" = "d/l"
"d/p" 010620 0:0 1700000000.000000000
"d/su" 104755 0:7 1.123456789 3 ` + sha("ELF") + ` = "d/su"
"d/su2" 104755 0:7 1.123456789 3 ` + sha("ELF") + ` = "d/su"
"dev" 041777 0:0 1700000000.000000000
"implied" 040755 0:0 0.000000000
"implied/` + long + `" 040755 0:0 0.000000000
"implied/` + long + "/" + long + `" 100644 0:0 1700000000.000000000 1 ` + sha("x") + ` user.k=76
`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("tree (-want +got):\n%s", d)
	}
	var devices []string
	for _, n := range ledger {
		devices = append(devices, fmt.Sprintf("%s %v %o %d:%d %d:%d %d", n.Path, n.Type, n.Mode, n.UID, n.GID, n.Major, n.Minor, n.MTime.Sec))
	}
	if d := cmp.Diff([]string{"dev/a b 755 0:0 7:1048575 1700000000", "dev/null c 666 0:5 1:3 1700000000"}, devices); d != "" {
		t.Errorf("ledger (-want +got):\n%s", d)
	}
}

// TestHostile is the corpus: each archive must be refused, or must change
// nothing outside the root. Names say what is tried.
func TestHostile(t *testing.T) {
	pax := func(e ent, key, value string) ent {
		return e.with(func(h *tar.Header) { h.PAXRecords = map[string]string{key: value} })
	}
	id := func(e ent, uid int) ent { return e.with(func(h *tar.Header) { h.Uid = uid }) }
	at := func(sec int64) ent {
		return reg("f", "").with(func(h *tar.Header) { h.ModTime = time.Unix(sec, 0) })
	}
	device := func(name string, major, minor int64) ent {
		return special(tar.TypeChar, name, "").with(func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor })
	}
	deep := strings.Repeat("d/", 3000) + "f"
	var duplicates, deepTree []ent
	for i := range 1000 {
		duplicates = append(duplicates, reg("same", fmt.Sprint(i)))
	}
	for i := range 500 {
		deepTree = append(deepTree, folder(strings.Repeat("d/", i+1)))
	}
	tests := map[string]struct {
		entries []ent
		want    error    // nil: accepted
		paths   []string // what is in the root then, if given
	}{
		"01 dotdot":                 {[]ent{reg("../../canary", "x")}, ErrUnsafe, nil},
		"01 dotdot inside":          {[]ent{reg("a/../../canary", "x")}, ErrUnsafe, nil},
		"02 absolute":               {[]ent{reg("/canary", "x")}, nil, []string{".", "canary"}},
		"03 through a symlink":      {[]ent{symlink("l", "OUT"), reg("l/canary", "x")}, nil, nil},
		"04 relative chain":         {[]ent{symlink("a", "../.."), symlink("b", "a/../.."), reg("b/canary", "x")}, nil, []string{".", "a", "b", "canary"}},
		"05 hard link outside":      {[]ent{hardlink("h", "../../canary"), reg("h", "x")}, ErrUnsafe, nil},
		"06 hard link absolute":     {[]ent{hardlink("h", "CANARY"), reg("h", "x")}, unix.ENOENT, nil},
		"06 hard link by symlink":   {[]ent{symlink("l", "OUT"), hardlink("h", "l/canary"), reg("h", "x")}, unix.ENOENT, nil},
		"07 hard link to symlink":   {[]ent{symlink("l", "CANARY"), hardlink("h", "l"), reg("h", "x")}, nil, []string{".", "h", "l"}},
		"08 directory over symlink": {[]ent{symlink("l", "OUT"), folder("l"), reg("l/canary", "x")}, nil, []string{".", "l", "l/canary"}},
		"09 file over symlink":      {[]ent{symlink("l", "CANARY"), reg("l", "x")}, nil, []string{".", "l"}},
		"09 fifo over symlink":      {[]ent{symlink("l", "CANARY"), special(tar.TypeFifo, "l", "")}, nil, []string{".", "l"}},
		"10 device over symlink":    {[]ent{symlink("l", "CANARY"), device("l", 1, 3)}, nil, []string{"."}},
		"11 attribute on symlink":   {[]ent{symlink("l", "CANARY").xattr("user.x", "1")}, ErrUnsupported, nil},
		"12 rootlesscontainers":     {[]ent{reg("f", "").xattr("user.rootlesscontainers", "\x08\x05")}, nil, []string{".", "f"}},
		"13 overlay attributes":     {[]ent{folder("d").xattr("user.overlay.opaque", "y").xattr("trusted.overlay.opaque", "y")}, nil, []string{".", "d"}},
		"14 whiteout device":        {[]ent{device("d", 0, 0)}, ErrUnsafe, nil},
		"14 huge device":            {[]ent{device("d", 1<<12, 0)}, ErrUnsupported, nil},
		"15 uid 2^32-1":             {[]ent{id(reg("f", ""), math.MaxUint32)}, ErrUnsafe, nil},
		"15 device of 2^32-1":       {[]ent{id(device("d", 1, 3), math.MaxUint32)}, ErrUnsafe, nil},
		"15 uid 2^40":               {[]ent{id(reg("f", ""), 1<<40)}, ErrUnsafe, nil},
		"16 uid -1":                 {[]ent{id(reg("f", ""), -1)}, ErrUnsafe, nil},
		"17 empty whiteout":         {[]ent{reg("d/.wh.", "")}, ErrUnsafe, nil},
		"17 whiteout of itself":     {[]ent{reg("d/.wh..", "")}, ErrUnsafe, nil},
		"17 whiteout of parent":     {[]ent{reg("d/.wh...", "")}, ErrUnsafe, nil},
		"17 whiteout of whiteout":   {[]ent{reg("d/.wh..wh.x", "")}, ErrUnsafe, nil},
		"17 whiteout as directory":  {[]ent{reg(".wh.d/f", "")}, ErrUnsafe, nil},
		"17 whiteout is directory":  {[]ent{folder(".wh.d")}, ErrUnsafe, nil},
		"18 odd names":              {[]ent{reg("new\nline", ""), reg("bad\xffutf8", "")}, nil, []string{".", `bad\xffutf8`, `new\nline`}},
		"19 far future":             {[]ent{at(math.MaxInt64)}, nil, []string{".", "f"}},
		"19 far past":               {[]ent{at(math.MinInt64)}, nil, []string{".", "f"}},
		"20 symlink loop":           {[]ent{symlink("a", "b"), symlink("b", "a"), reg("a/f", "")}, unix.ELOOP, nil},
		"20 symlink to itself":      {[]ent{symlink("a", "a/a"), reg("a/f", "")}, unix.ELOOP, nil},
		"21 hard link to directory": {[]ent{folder("d"), hardlink("h", "d")}, ErrUnsafe, nil},
		"21 hard link to root":      {[]ent{hardlink("h", ".")}, ErrUnsafe, nil},
		"22 300-byte name":          {[]ent{reg(strings.Repeat("n", 300), "")}, unix.ENAMETOOLONG, nil},
		"22 5000-byte name":         {[]ent{reg(strings.Repeat("n/", 2500)+"f", "")}, ErrLimit, nil},
		"23 depth 3000":             {[]ent{reg(deep, "")}, ErrLimit, nil},
		"23 depth 500":              {deepTree, nil, nil},
		"24 closed directory":       {[]ent{folder("d").with(func(h *tar.Header) { h.Mode = 0 }), reg("d/f", "")}, nil, []string{".", "d", "d/f"}},
		"25 file as parent":         {[]ent{reg("f", ""), reg("f/g", "")}, unix.ENOTDIR, nil},
		"27 long attribute":         {[]ent{reg("f", "").xattr("user.x", strings.Repeat("v", 200<<10))}, ErrLimit, nil},
		"28 duplicates":             {duplicates, nil, []string{".", "same"}},
		"29 proc and sys":           {[]ent{symlink("proc", "/proc"), reg("proc/self/exe", "x"), symlink("sys", "/"), reg("sys/canary", "x")}, unix.ELOOP, nil},
		"29 sys is root":            {[]ent{symlink("sys", "/"), reg("sys/canary", "x")}, nil, []string{".", "canary", "sys"}},
		"30 dev outside":            {[]ent{symlink("dev", "OUT"), device("dev/null", 1, 3), reg("dev/canary", "x")}, nil, nil},
		"45 capability of 3 bytes":  {[]ent{reg("f", "").xattr(capability, "\x00\x00\x02")}, ErrUnsafe, nil},
		"45 foreign root":           {[]ent{reg("f", "").xattr(capability, "\x00\x00\x00\x03"+strings.Repeat("\x00", 16)+"\x07\x00\x00\x00")}, ErrUnsafe, nil},
		"45 capability on symlink":  {[]ent{symlink("l", "x").xattr(capability, "\x00\x00\x00\x02"+strings.Repeat("\x00", 16))}, ErrUnsupported, nil},
		"root is a symlink":         {[]ent{symlink(".", "OUT")}, ErrUnsafe, nil},
		"root is a file":            {[]ent{reg(".", "")}, ErrUnsafe, nil},
		"empty link target":         {[]ent{symlink("l", "")}, ErrUnsafe, nil},
		"self hard link":            {[]ent{reg("f", "x"), hardlink("f", "f")}, nil, []string{".", "f"}},
		"malformed ACL":             {[]ent{pax(reg("f", ""), "SCHILY.acl.access", "user:joe:rwx")}, ErrUnsafe, nil},
		"malformed binary ACL":      {[]ent{reg("f", "").xattr(aclAccess, "xx")}, ErrUnsafe, nil},
		"type of old":               {[]ent{special('V', "volume", "")}, ErrUnsupported, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			canary := filepath.Join(outside, "canary")
			if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
				t.Fatal(err)
			}
			root := filepath.Join(outside, "a/root")
			if err := os.MkdirAll(root, 0o755); err != nil {
				t.Fatal(err)
			}
			for i := range tt.entries {
				e := &tt.entries[i]
				e.Linkname = strings.NewReplacer("OUT", outside, "CANARY", canary).Replace(e.Linkname)
			}
			before := outsideListing(t, outside)
			_, err := Unpack(t.Context(), root, archive(t, tt.entries...), Options{Whiteouts: true})
			if !errors.Is(err, tt.want) {
				t.Errorf("Unpack = %v, want %v", err, tt.want)
			}
			var entryErr *EntryError
			if err != nil && !errors.As(err, &entryErr) {
				t.Errorf("error %v names no entry", err)
			}
			if d := cmp.Diff(before, outsideListing(t, outside)); d != "" {
				t.Errorf("outside of the root (-before +after):\n%s", d)
			}
			l := listing(t, root)
			if tt.paths != nil && err == nil {
				if d := cmp.Diff(tt.paths, names(l)); d != "" {
					t.Errorf("paths (-want +got):\n%s", d)
				}
			}
			if strings.Contains(l, "overlay") || strings.Contains(l, "rootless") {
				t.Errorf("forged attribute on disk:\n%s", l)
			}
		})
	}
}

// outsideListing is the listing of all but the root "a/root".
func outsideListing(t testing.TB, dir string) string {
	t.Helper()
	var keep []string
	for line := range strings.Lines(listing(t, dir)) {
		if !strings.HasPrefix(line, `"a/root`) && !strings.HasPrefix(line, `"a" `) {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "")
}
