package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	fstar "cairn/fsbuild/tar"
	"cairn/fsbuild/tar/entry"
	fsdir "cairn/fsbuild/tree/dir"
)

func char(name string) ent {
	return special(tar.TypeChar, name, "").with(func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 })
}

// TestWhiteouts unpacks two layers; lower is the same in all cases.
func TestWhiteouts(t *testing.T) {
	lower := []ent{
		folder("d"), reg("d/a", "low"), reg("d/b", "low"), folder("d/s"), reg("d/s/x", "low"), char("d/s/null"),
		reg("keep", "low"), symlink("l", "d"), char("null"),
	}
	base := []string{".", "d", "d/a", "d/b", "d/s", "d/s/x", "keep", "l"}
	tests := map[string]struct {
		upper   []ent
		paths   []string
		devices []string
	}{
		"none":                   {nil, base, []string{"d/s/null", "null"}},
		"file":                   {[]ent{reg("d/.wh.a", "")}, []string{".", "d", "d/b", "d/s", "d/s/x", "keep", "l"}, []string{"d/s/null", "null"}},
		"device":                 {[]ent{reg(".wh.null", "")}, base, []string{"d/s/null"}},
		"symlink, not its goal":  {[]ent{reg(".wh.l", "")}, []string{".", "d", "d/a", "d/b", "d/s", "d/s/x", "keep"}, []string{"d/s/null", "null"}},
		"tree":                   {[]ent{reg(".wh.d", "")}, []string{".", "keep", "l"}, []string{"null"}},
		"absent":                 {[]ent{reg(".wh.zzz", ""), reg("no/.wh.x", ""), reg("keep/.wh.x", ""), reg("zzz/.wh..wh..opq", "")}, base, []string{"d/s/null", "null"}},
		"as hard link":           {[]ent{hardlink(".wh.d", ".wh..wh.aufs")}, []string{".", "keep", "l"}, []string{"null"}},
		"opaque first":           {[]ent{folder("d"), reg("d/.wh..wh..opq", ""), reg("d/new", "")}, []string{".", "d", "d/new", "keep", "l"}, []string{"null"}},
		"opaque last":            {[]ent{folder("d"), reg("d/new", ""), reg("d/.wh..wh..opq", "")}, []string{".", "d", "d/new", "keep", "l"}, []string{"null"}},
		"opaque keeps deep":      {[]ent{reg("d/s/new", ""), char("d/zero"), reg("d/.wh..wh..opq", "")}, []string{".", "d", "d/s", "d/s/new", "keep", "l"}, []string{"d/zero", "null"}},
		"opaque through symlink": {[]ent{reg("l/new", ""), reg("d/.wh..wh..opq", "")}, []string{".", "d", "d/new", "keep", "l"}, []string{"null"}},
		"opaque by symlink":      {[]ent{reg("d/new", ""), reg("l/.wh..wh..opq", "")}, []string{".", "d", "d/new", "keep", "l"}, []string{"null"}},
		"opaque root":            {[]ent{reg("d/a", "up"), reg(".wh..wh..opq", "")}, []string{".", "d", "d/a"}, nil},
		"replaced, hidden first": {[]ent{reg("d/.wh.a", ""), reg("d/a", "up")}, base, []string{"d/s/null", "null"}},
		"replaced, hidden last":  {[]ent{reg("d/a", "up"), reg("d/.wh.a", "")}, base, []string{"d/s/null", "null"}},
		"tree anew, hidden last": {[]ent{folder("d"), reg("d/new", ""), reg(".wh.d", "")}, []string{".", "d", "d/new", "keep", "l"}, []string{"null"}},
		"file over directory":    {[]ent{reg("d", "up")}, []string{".", "d", "keep", "l"}, []string{"null"}},
		"device over directory":  {[]ent{char("d")}, []string{".", "keep", "l"}, []string{"d", "null"}},
		"directory over file":    {[]ent{folder("keep"), reg("keep/x", "")}, []string{".", "d", "d/a", "d/b", "d/s", "d/s/x", "keep", "keep/x", "l"}, []string{"d/s/null", "null"}},
		"directory over symlink": {[]ent{folder("l"), reg("l/x", "")}, []string{".", "d", "d/a", "d/b", "d/s", "d/s/x", "keep", "l", "l/x"}, []string{"d/s/null", "null"}},
		"file over device":       {[]ent{reg("null", "")}, append(slices.Clone(base), "null"), []string{"d/s/null"}},
		"directory over device":  {[]ent{reg("null/x", "")}, append(slices.Clone(base), "null", "null/x"), []string{"d/s/null"}},
		"device hard link":       {[]ent{hardlink("null2", "null")}, base, []string{"d/s/null", "null", "null2"}},
		"device through symlink": {[]ent{char("l/zero")}, base, []string{"d/s/null", "d/zero", "null"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, ledger := unpack(t, Options{Whiteouts: true}, lower, tt.upper)
			if d := cmp.Diff(tt.paths, names(got)); d != "" {
				t.Errorf("paths (-want +got):\n%s", d)
			}
			var devices []string
			for _, n := range ledger {
				devices = append(devices, n.Path)
			}
			if d := cmp.Diff(tt.devices, devices); d != "" {
				t.Errorf("devices (-want +got):\n%s", d)
			}
			// A ledger has no parents for others, and no hard links.
			if name != "directory over device" && name != "device hard link" {
				checkTree(t, lower, tt.upper)
			}
			if strings.HasPrefix(name, "replaced") {
				if line := lineOf(got, "d/a"); !strings.Contains(line, " 2 ") {
					t.Errorf("d/a is not the upper file of 2 bytes: %s", line)
				}
			}
		})
	}
}

// checkTree: the layers are the same tree in memory.
func checkTree(t *testing.T, layers ...[]ent) {
	t.Helper()
	o := Options{Whiteouts: true}
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(root, 0o755))
	var archives []*io.SectionReader
	for _, entries := range layers {
		b := archive(t, entries...)
		archives = append(archives, io.NewSectionReader(bytes.NewReader(b.Bytes()), 0, int64(b.Len())))
		var err error
		o.Ledger, err = Unpack(t.Context(), root, b, o)
		must(t, err)
	}
	must(t, os.Chtimes(root, time.Unix(0, 0), time.Unix(0, 0)))
	want, err := fsdir.Read(t.Context(), root, fsdir.Options{Devices: o.Ledger})
	must(t, err)
	got, err := fstar.ReadLayers(t.Context(), archives, fstar.Options{})
	must(t, err)
	var texts [2]strings.Builder
	must(t, want.WriteText(&texts[0]), got.WriteText(&texts[1]))
	if d := cmp.Diff(texts[0].String(), texts[1].String()); d != "" {
		t.Errorf("tree (-on disk +in memory):\n%s", d)
	}
}

func lineOf(listing, name string) string {
	for line := range strings.Lines(listing) {
		if strings.HasPrefix(line, `"`+name+`" `) {
			return line
		}
	}
	return ""
}

// TestDirectoryTimesSurvive touches directories of the lower layer in all ways
// without naming them: their times must stay.
func TestDirectoryTimesSurvive(t *testing.T) {
	lower := []ent{folder("."), folder("a"), reg("a/x", ""), folder("b"), reg("b/x", ""), folder("c/c"), symlink("l", "c/c")}
	upper := []ent{reg("a/.wh.x", ""), reg("b/y", ""), reg("l/new", "")}
	got, _ := unpack(t, Options{Whiteouts: true}, lower, upper)
	for _, name := range []string{".", "a", "b", "c/c"} {
		if line := lineOf(got, name); !strings.Contains(line, " 1700000000.000000000") {
			t.Errorf("the time changed: %s", line)
		}
	}
	if line := lineOf(got, "c"); !strings.Contains(line, " 0.000000000") {
		t.Errorf("an implied directory has not time 0: %s", line)
	}
}

// TestKeepDirSymlinks is the merged /usr of Debian.
func TestKeepDirSymlinks(t *testing.T) {
	mode := func(m int64) func(*tar.Header) { return func(h *tar.Header) { h.Mode = m } }
	lower := []ent{folder("usr/lib"), folder("usr/bin"), symlink("lib", "usr/lib"), symlink("bin", "/usr/bin"), symlink("out", "../../.."), symlink("dangling", "none")}
	upper := []ent{
		folder("./").with(mode(0o700)), folder("./lib").with(mode(0o700)), reg("./lib/so", "x"), hardlink("./bin/so2", "./lib/so"),
		folder("bin/"), folder("out"), reg("out/f", ""), folder("dangling"), folder("usr").with(mode(0o700)), symlink("usr/lib", "elsewhere"),
	}
	got, _ := unpack(t, Options{KeepDirSymlinks: true}, lower, upper)
	want := []string{".", "bin", "dangling", "f", "lib", "out", "usr", "usr/bin", "usr/bin/so2", "usr/lib", "usr/lib/so"}
	if d := cmp.Diff(want, names(got)); d != "" {
		t.Errorf("paths (-want +got):\n%s", d)
	}
	for name, want := range map[string]string{"lib": " 120777 ", "bin": " 120777 ", "out": " 120777 ", "usr/lib": " 040755 ", "usr": " 040755 ", ".": " 040755 ", "dangling": " 040755 "} {
		if line := lineOf(got, name); !strings.Contains(line, want) {
			t.Errorf("%s: want%s", line, want)
		}
	}
	root := newRoot(t)
	_, err := Unpack(t.Context(), root, archive(t, folder("d"), reg("d", "")), Options{KeepDirSymlinks: true})
	if !errors.Is(err, unix.EISDIR) {
		t.Errorf("a file over a directory: %v, want EISDIR", err)
	}
}

func TestAttributes(t *testing.T) {
	v2 := "\x01\x00\x00\x02\x00\x20" + strings.Repeat("\x00", 14)
	v3 := "\x01\x00\x00\x03\x00\x20" + strings.Repeat("\x00", 14) + "\x00\x00\x00\x00"
	aclText := func(e ent, key, value string) ent {
		return e.with(func(h *tar.Header) { h.PAXRecords = map[string]string{key: value} })
	}
	named := func(shift uint32) string {
		a := entry.ACL{{Tag: entry.ACLUserObj, Perm: 6, ID: entry.ACLNoID}, {Tag: entry.ACLUser, Perm: 7, ID: 33 + shift}, {Tag: entry.ACLGroupObj, Perm: 4, ID: entry.ACLNoID}, {Tag: entry.ACLGroup, Perm: 5, ID: 50 + shift}, {Tag: entry.ACLMask, Perm: 7, ID: entry.ACLNoID}, {Tag: entry.ACLOther, Perm: 0, ID: entry.ACLNoID}}
		return fmt.Sprintf("%x", a.Encode())
	}
	entries := []ent{
		reg("cap2", "").xattr(capability, v2),
		reg("cap3", "").xattr(capability, v3),
		aclText(reg("gnu", ""), "SCHILY.acl.access", "user::rw-\nuser:33:rwx\ngroup::r--\ngroup:50:r-x\nmask::rwx\nother::---\n"),
		aclText(reg("star", ""), "SCHILY.acl.access", "user::rw-,user:www-data:rwx:33,group::r--,group:staff:r-x:50,mask::rwx,other::---"),
		reg("binary", "").xattr(aclAccess, string(entry.ACL{{Tag: entry.ACLUserObj, Perm: 6, ID: 0}, {Tag: entry.ACLUser, Perm: 7, ID: 33}, {Tag: entry.ACLGroupObj, Perm: 4, ID: 0}, {Tag: entry.ACLGroup, Perm: 5, ID: 50}, {Tag: entry.ACLMask, Perm: 7, ID: 0}, {Tag: entry.ACLOther, Perm: 0, ID: 0}}.Encode())),
		aclText(folder("default"), "SCHILY.acl.default", "user::rw-,user:33:rwx,group::r--,group:50:r-x,mask::rwx,other::---"),
		reg("default/file", ""), folder("default/dir"), reg("default/implied/file", ""),
		reg("user", "").xattr("user.a", "1").xattr("user.b", "=").xattr("security.selinux", "s").xattr("trusted.x", "t").xattr("security.ima", "i"),
		folder("dir").xattr("user.d", "2"),
	}
	for _, shift := range []int{0, 1, 100_000} {
		t.Run(fmt.Sprint(shift), func(t *testing.T) {
			got, _ := unpack(t, Options{IDShift: shift}, entries)
			capValue := fmt.Sprintf("%x", v2)
			if shift > 0 {
				capValue = fmt.Sprintf("%x", shiftCapability([]byte(v2), shift))
			}
			want := map[string]string{
				"cap2": " security.capability=" + capValue, "cap3": " security.capability=" + capValue,
				"gnu":                  " system.posix_acl_access=" + named(uint32(shift)),
				"star":                 " system.posix_acl_access=" + named(uint32(shift)),
				"binary":               " system.posix_acl_access=" + named(uint32(shift)),
				"default":              " system.posix_acl_default=" + named(uint32(shift)),
				"default/file":         "",
				"default/dir":          "",
				"default/implied":      "",
				"default/implied/file": "",
				"user":                 " user.a=31 user.b=3d",
				"dir":                  " user.d=32",
			}
			for name, attrs := range want {
				line := lineOf(got, name)
				owner := fmt.Sprintf(" %d:%d ", shift, shift)
				_, have, ok := strings.Cut(strings.TrimSpace(line), "e3b0c442") // digest of nothing
				if !ok {
					_, have, _ = strings.Cut(strings.TrimSpace(line), ".000000000")
				}
				if !strings.HasPrefix(have, attrs) || attrs == "" && have != "" || !strings.Contains(line, owner) {
					t.Errorf("got %swant owner%sand attributes%s", line, owner, attrs)
				}
			}
		})
	}
}

// TestDirectoryAttributesAreReplaced: an entry of a higher layer decides all.
func TestDirectoryAttributesAreReplaced(t *testing.T) {
	got, _ := unpack(t, Options{Whiteouts: true}, []ent{folder("d").xattr("user.low", "1")}, []ent{folder("d").xattr("user.up", "2")})
	if line := lineOf(got, "d"); !strings.HasSuffix(line, " user.up=32\n") || strings.Contains(line, "low") {
		t.Errorf("got %s", line)
	}
}

func TestLimits(t *testing.T) {
	tests := map[string]struct {
		limits  Limits
		entries []ent
	}{
		"entries":   {Limits{Entries: 2}, []ent{reg("a", ""), reg("b", ""), reg("c", "")}},
		"name":      {Limits{NameBytes: 5}, []ent{reg("abcdef", "")}},
		"depth":     {Limits{Depth: 2}, []ent{reg("a/b/c", "")}},
		"attribute": {Limits{XattrBytes: 3}, []ent{reg("a", "").xattr("user.x", "1234")}},
		"bytes":     {Limits{TotalBytes: 10}, []ent{reg("a", "123456"), reg("b", "123456")}},
		"devices":   {Limits{Devices: 1}, []ent{char("a"), char("b")}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Unpack(t.Context(), newRoot(t), archive(t, tt.entries...), Options{Limits: tt.limits}); !errors.Is(err, ErrLimit) {
				t.Errorf("Unpack = %v, want ErrLimit", err)
			}
			if _, err := Unpack(t.Context(), newRoot(t), archive(t, tt.entries...), Options{}); err != nil {
				t.Errorf("with default limits: %v", err)
			}
		})
	}
}

func TestHooks(t *testing.T) {
	var seen []string
	o := Options{
		Whiteouts: true,
		Exclude:   func(name string) bool { return strings.HasPrefix(name, "doc") },
		Entry: func(name string, h *tar.Header) error {
			seen = append(seen, fmt.Sprintf("%s %c %o", name, h.Typeflag, h.Mode))
			return nil
		},
	}
	got, _ := unpack(t, o, []ent{folder("./"), reg("./a", ""), reg("doc/b", ""), reg(".wh.x", ""), symlink("l", "a")})
	if d := cmp.Diff([]string{". 5 755", "a 0 644", "l 2 755"}, seen); d != "" {
		t.Errorf("Entry saw (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{".", "a", "l"}, names(got)); d != "" {
		t.Errorf("paths (-want +got):\n%s", d)
	}
	stop := errors.New("stop")
	o.Entry = func(string, *tar.Header) error { return stop }
	if _, err := Unpack(t.Context(), newRoot(t), archive(t, reg("a", "")), o); !errors.Is(err, stop) {
		t.Errorf("Unpack = %v, want the error of Entry", err)
	}
}

func TestUnpackStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, newRoot(t), archive(t, reg("a", "")), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	whole := archive(t, reg("a", strings.Repeat("x", 2000))).Bytes()
	if _, err := Unpack(t.Context(), newRoot(t), strings.NewReader(string(whole[:1700])), Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("truncated: %v", err)
	}
	if _, err := Unpack(t.Context(), newRoot(t), strings.NewReader(strings.Repeat("no tar", 1000)), Options{}); !errors.Is(err, tar.ErrHeader) {
		t.Errorf("no archive: %v", err)
	}
	if _, err := Unpack(t.Context(), "/nonexistent", archive(t), Options{}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no root: %v", err)
	}
}

// TestNoOwners unpacks as nobody in particular, where a closed directory is an
// obstacle and owners cannot be set.
func TestNoOwners(t *testing.T) {
	closed := folder("d").with(func(h *tar.Header) { h.Mode, h.Uid = 0, 77 })
	got, _ := unpack(t, Options{IDShift: -1}, []ent{closed, reg("d/f", "x").with(func(h *tar.Header) { h.Uid = 5 })})
	for _, name := range []string{"d", "d/f"} {
		if line := lineOf(got, name); !strings.Contains(line, " 0:0 1700000000") {
			t.Errorf("got %s", line)
		}
	}
	if line := lineOf(got, "d"); !strings.Contains(line, " 040000 ") {
		t.Errorf("mode of a closed directory: %s", line)
	}
}

// gnuTar runs GNU tar.
func gnuTar(t testing.TB, args ...string) {
	t.Helper()
	tool(t, "tar", "tar")
	if out, err := exec.Command("tar", args...).CombinedOutput(); err != nil {
		t.Fatalf("tar %q: %v\n%s", args, err, out)
	}
}

func tool(t testing.TB, name, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("install %s: %v", pkg, err)
	}
}

// TestAgreesWithGNUTar packs a tree with GNU tar in each of its formats, and
// compares what we unpack with the tree.
func TestAgreesWithGNUTar(t *testing.T) {
	src := oddTree(t)
	must(t, os.Remove(filepath.Join(src, "d/sock"))) // no archive has sockets
	long := filepath.Join(src, strings.Repeat("n", 200), strings.Repeat("m", 200))
	must(t, os.MkdirAll(filepath.Dir(long), 0o755), os.Symlink(strings.Repeat("t", 300), long))
	for _, args := range [][]string{
		{"--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "--sparse"},
		{"--format=posix", "--sparse", "--sparse-version=0.0"},
		{"--format=posix", "--sparse", "--sparse-version=0.1"},
		{"--format=gnu", "--sparse"},
		{"--format=gnu"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "a.tar")
			gnuTar(t, append(args, "--numeric-owner", "-cf", file, "-C", src, ".")...)
			f, err := os.Open(file)
			must(t, err)
			defer f.Close()
			root := newRoot(t)
			_, err = Unpack(t.Context(), root, f, Options{})
			must(t, err)
			want, got := listing(t, src), listing(t, root)
			if args[0] == "--format=gnu" {
				want, got = secondsOnly(want), secondsOnly(got)
			}
			if len(args) < 3 || args[1] != "--xattrs" {
				want, got = noAttributes(want), noAttributes(got)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("tree (-want +got):\n%s", d)
			}
			var st unix.Stat_t
			must(t, unix.Stat(filepath.Join(root, "sparse"), &st))
			if slices.Contains(args, "--sparse") && st.Blocks*512 > 2<<20 {
				t.Errorf("the sparse file has %d bytes on disk", st.Blocks*512)
			}
		})
	}
}

func secondsOnly(listing string) string {
	return mapFields(listing, func(f string) string {
		if sec, frac, ok := strings.Cut(f, "."); ok && len(frac) == 9 {
			return sec
		}
		return f
	})
}

func noAttributes(listing string) string {
	return mapFields(listing, func(f string) string {
		if strings.HasPrefix(f, "user.") || strings.HasPrefix(f, "system.") || strings.HasPrefix(f, "security.") {
			return ""
		}
		return f
	})
}

func mapFields(listing string, change func(string) string) string {
	var out strings.Builder
	for line := range strings.Lines(listing) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		for i, f := range fields {
			fields[i] = change(f)
		}
		out.WriteString(strings.TrimRight(strings.Join(fields, " "), " ") + "\n")
	}
	return out.String()
}

// TestHugeSparseFile: a file of 1 TiB that is one hole costs nothing to name,
// and is refused before it costs anything to make.
func TestHugeSparseFile(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "huge"), nil, 0o644), os.Truncate(filepath.Join(dir, "huge"), 1<<40))
	file := filepath.Join(t.TempDir(), "a.tar")
	gnuTar(t, "--format=posix", "--sparse", "-cf", file, "-C", dir, "huge")
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	start := time.Now()
	if _, err := Unpack(t.Context(), newRoot(t), f, Options{}); !errors.Is(err, ErrLimit) {
		t.Errorf("Unpack = %v, want ErrLimit", err)
	}
	if d := time.Since(start); d > 5*time.Minute { // a TiB takes longer, and a busy machine may stand still for some
		t.Errorf("it took %v", d)
	}
}

// TestInUserNamespace unpacks and copies as the worker does: uid 0 of a user
// namespace, image ids one above. The test runs itself there.
func TestInUserNamespace(t *testing.T) {
	if dir := os.Getenv("LAYER_TEST_USERNS"); dir != "" {
		inUserNamespace(t, dir)
		return
	}
	dir := newRoot(t)
	must(t, os.Chown(dir, 200_000, 200_000))
	for p := filepath.Dir(dir); strings.HasPrefix(p, os.TempDir()+"/"); p = filepath.Dir(p) {
		must(t, os.Chmod(p, 0o755))
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200_000, Size: 65537}}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestInUserNamespace$", "-test.v")
	cmd.Env = append(os.Environ(), "LAYER_TEST_USERNS="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: ids, GidMappings: ids,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("in the namespace: %v\n%s", err, out)
	}
	got := listing(t, dir)
	for _, name := range []string{"tree/f", "copy/f"} {
		want := " 104755 200001:200002 1700000000.000000000 1 "
		if line := lineOf(got, name); !strings.Contains(line, want) || !strings.Contains(line, "security.capability=01000003") || !strings.Contains(line, "410d0300") {
			t.Errorf("got %q, want%swith a capability of user 200001", line, want)
		}
	}
}

func inUserNamespace(t *testing.T, dir string) {
	file := reg("f", "x").with(func(h *tar.Header) { h.Mode, h.Gid = 0o4755, 1 }).
		xattr(capability, "\x01\x00\x00\x02\x00\x20"+strings.Repeat("\x00", 14))
	root := filepath.Join(dir, "tree")
	must(t, os.Mkdir(root, 0o755))
	ledger, err := Unpack(t.Context(), root, archive(t, file, char("null"), hardlink("g", "f")), Options{IDShift: 1, Whiteouts: true})
	must(t, err)
	if len(ledger) != 1 {
		t.Errorf("ledger = %v, want one device", ledger)
	}
	_, err = CopyTree(t.Context(), root, filepath.Join(dir, "copy"), CopyOptions{})
	must(t, err)
	if d := cmp.Diff(listing(t, root), listing(t, filepath.Join(dir, "copy"))); d != "" {
		t.Errorf("copy (-want +got):\n%s", d)
	}
	far := reg("far", "").with(func(h *tar.Header) { h.Uid = 70_000 })
	var entryErr *EntryError
	if _, err := Unpack(t.Context(), root, archive(t, far), Options{IDShift: 1}); !errors.As(err, &entryErr) || !strings.Contains(err.Error(), "70000:0: not in the range") {
		t.Errorf("an id that is not mapped: %v", err)
	}
}
