package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/tar/entry"
)

// parts are the components of which FuzzUnpack makes names and link targets.
var parts = []string{"a", "b", "c", "..", ".", "", ".wh.a", ".wh.b", entry.OpaqueName, "OUT", "CANARY", "canary", "proc", "self", "a/b/c", "../.."}

// program turns fuzz input into an archive: for each entry a byte for the type,
// two for its name and two for its target.
func program(data []byte, outside string) []ent {
	types := []byte{
		tar.TypeReg, tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeSymlink, tar.TypeLink, tar.TypeLink, tar.TypeFifo, tar.TypeChar,
	}
	name := func(a, b byte) string {
		n := parts[a&15] + "/" + parts[a>>4]
		if b&1 == 1 {
			n += "/" + parts[b>>4]
		}
		if b&2 == 2 {
			n = "/" + n
		}
		if b&4 == 4 {
			n = parts[a&15]
		}
		return n
	}
	real := strings.NewReplacer("OUT", outside, "CANARY", filepath.Join(outside, "canary"))
	var entries []ent
	for ; len(data) >= 5 && len(entries) < 64; data = data[5:] {
		e := special(types[int(data[0])%len(types)], strings.TrimRight(name(data[1], data[2]), "/"), real.Replace(name(data[3], data[4])))
		switch e.Typeflag {
		case tar.TypeReg:
			e.data = "changed"
			e.Size = int64(len(e.data))
		case tar.TypeChar:
			e.Devmajor, e.Devminor = 1, 3
		}
		if e.Typeflag != tar.TypeSymlink && e.Typeflag != tar.TypeLink {
			e.Linkname = ""
		}
		entries = append(entries, e)
	}
	return entries
}

// FuzzUnpack unpacks the input as an archive and as a program for one. Nothing
// outside the root may change, and errors name the entry.
func FuzzUnpack(f *testing.F) {
	for _, seed := range [][]ent{
		{reg("a", "x"), symlink("l", "/etc"), reg("l/x", "y"), hardlink("h", "a"), folder("d/e"), char("n"), reg("d/.wh.e", "")},
		{reg("f", "").xattr("user.x", "1").xattr(capability, "\x01\x00\x00\x02"+strings.Repeat("\x00", 16))},
	} {
		f.Add(archive(f, seed...).Bytes())
	}
	f.Add([]byte{3, 0x00, 4, 0x09, 4, 0, 0xb0, 0, 0, 0}) // a -> OUT, then a/canary
	f.Add([]byte{3, 0x00, 4, 0x0a, 4, 6, 0x01, 4, 0x00, 4, 0, 0x01, 4, 0, 0, 2, 0x00, 4, 0, 0})
	outside := f.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "canary"), []byte("alive"), 0o600); err != nil {
		f.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(outside, "a"), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		root, err := os.MkdirTemp(filepath.Join(outside, "a"), "root") //nolint:usetesting // at this place
		must(t, err)
		defer os.RemoveAll(root)
		must(t, os.Chtimes(filepath.Join(outside, "a"), time.Unix(1, 0), time.Unix(1, 0)))
		before := outsideListing(t, outside)
		check := func(o Options, data []byte) {
			o.Limits = Limits{TotalBytes: 1 << 20, Entries: 1000}
			_, err := Unpack(context.Background(), root, bytes.NewReader(data), o)
			var entryErr *EntryError
			if err != nil && !errors.As(err, &entryErr) && !strings.HasPrefix(err.Error(), "read archive after") {
				t.Errorf("error %v names no entry", err)
			}
			if d := cmp.Diff(before, outsideListing(t, outside)); d != "" {
				t.Fatalf("outside of the root (-before +after):\n%s", d)
			}
		}
		check(Options{Whiteouts: true}, data)
		entries := program(data, outside)
		if len(entries) == 0 {
			return
		}
		for i := range entries { // one layer each, so that an error does not end it
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			if w.WriteHeader(&entries[i].Header) != nil {
				continue
			}
			_, werr := w.Write([]byte(entries[i].data))
			must(t, werr, w.Close())
			check(Options{Whiteouts: len(data)%2 == 0, KeepDirSymlinks: len(data)%3 == 0}, b.Bytes())
		}
	})
}
