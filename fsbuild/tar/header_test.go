package tar

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"
	"time"
)

// TestPlain: the headers that are made here are those of archive/tar, and what
// needs more is left to it.
func TestPlain(t *testing.T) {
	for name, tc := range map[string]struct {
		header tar.Header
		plain  bool
	}{
		"root":          {tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, true},
		"file":          {tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 1<<33 - 1, Uid: 1<<21 - 1, Gid: 1000}, true},
		"longest names": {tar.Header{Name: strings.Repeat("n", 100), Typeflag: tar.TypeLink, Linkname: strings.Repeat("l", 100)}, true},
		"device":        {tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1<<21 - 1, Devminor: 5}, true},
		"latest":        {tar.Header{Name: "f", Typeflag: tar.TypeFifo, ModTime: time.Unix(1<<33-1, 0)}, true},
		"large":         {tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: 1 << 33}, false},
		"long name":     {tar.Header{Name: "d/" + strings.Repeat("n", 99), Typeflag: tar.TypeReg}, false},
		"long target":   {tar.Header{Name: "l", Linkname: strings.Repeat("l", 101), Typeflag: tar.TypeSymlink}, false},
		"not ASCII":     {tar.Header{Name: "ü", Typeflag: tar.TypeReg}, false},
		"owner":         {tar.Header{Name: "f", Typeflag: tar.TypeReg, Uid: 1 << 21}, false},
		"group":         {tar.Header{Name: "f", Typeflag: tar.TypeReg, Gid: 1 << 21}, false},
		"later":         {tar.Header{Name: "f", Typeflag: tar.TypeReg, ModTime: time.Unix(1<<33, 0)}, false},
		"early":         {tar.Header{Name: "f", Typeflag: tar.TypeReg, ModTime: time.Unix(-1, 0)}, false},
		"nanoseconds":   {tar.Header{Name: "f", Typeflag: tar.TypeReg, ModTime: time.Unix(0, 1)}, false},
		"record":        {tar.Header{Name: "f", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, false},
	} {
		h := tc.header
		h.Format = tar.FormatPAX
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_700_000_000, 0)
		}
		if got := isPlain(&h); got != tc.plain {
			t.Errorf("%s: plain is %t", name, got)
		}
		var want bytes.Buffer
		if err := tar.NewWriter(&want).WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if got := plain(&h); tc.plain && !bytes.Equal(got[:], want.Bytes()) {
			t.Errorf("%s: header is\n%q, want\n%q", name, got, want.Bytes())
		}
	}
}
