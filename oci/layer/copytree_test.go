package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cairn/fsbuild/tar/entry"
)

// must stops the test at the first error.
func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// oddTree makes a directory with one of everything that CopyTree keeps.
func oddTree(t testing.TB) string {
	t.Helper()
	root := newRoot(t)
	at := func(name string) string { return filepath.Join(root, name) }
	when := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 1_600_000_000, Nsec: 987654321}}
	must(t,
		os.MkdirAll(at("d/e/f"), 0o755),
		os.MkdirAll(at("acl"), 0o755),
		os.WriteFile(at("d/su"), []byte("ELF"), 0o755),
		os.Link(at("d/su"), at("su2")),
		os.Link(at("d/su"), at("d/e/f/su3")),
		os.WriteFile(at("empty"), nil, 0o000),
		os.WriteFile(at("big"), []byte(strings.Repeat("0123456789abcdef", 80_000)), 0o600),
		os.WriteFile(at("new\nline \xff"), []byte("x"), 0o644),
		os.Symlink("/nowhere", at("d/l")),
		os.Link(at("d/l"), at("l2")),
		unix.Mkfifo(at("d/p"), 0o620),
		unix.Mknod(at("d/sock"), unix.S_IFSOCK|0o777, 0),
		os.Lchown(at("d/l"), 5, 6),
		os.Chown(at("d/su"), 7, 8),
		os.Chown(at("d/e"), 9, 50),
		unix.Chmod(at("d/su"), 0o6755),
		unix.Chmod(at("d/e"), 0o3770),
		unix.Chmod(at("d/e/f"), 0),
		unix.Setxattr(at("d/su"), "user.name", []byte("value"), 0),
		unix.Setxattr(at("d/su"), "user.long", []byte(strings.Repeat("v", 1000)), 0),
		unix.Setxattr(at("d"), "user.empty", nil, 0),
		unix.Setxattr(at("big"), capability, []byte("\x01\x00\x00\x02\x00\x20"+strings.Repeat("\x00", 14)), 0),
		unix.Setxattr(at("acl"), aclDefault, entry.ACL{{Tag: entry.ACLUserObj, Perm: 7, ID: entry.ACLNoID}, {Tag: entry.ACLUser, Perm: 7, ID: 33}, {Tag: entry.ACLGroupObj, Perm: 5, ID: entry.ACLNoID}, {Tag: entry.ACLMask, Perm: 7, ID: entry.ACLNoID}, {Tag: entry.ACLOther, Perm: 0, ID: entry.ACLNoID}}.Encode(), 0),
		os.WriteFile(at("acl/inherits"), nil, 0o644),
		os.Mkdir(at("acl/plain"), 0o755),
		unix.Removexattr(at("acl/plain"), aclDefault),
		unix.Removexattr(at("acl/plain"), aclAccess),
		os.WriteFile(at("acl/plain.txt"), nil, 0o644),
		unix.Removexattr(at("acl/plain.txt"), aclAccess),
	)
	sparse, err := os.OpenFile(at("sparse"), os.O_CREATE|os.O_WRONLY, 0o644)
	must(t, err)
	_, err1 := sparse.WriteAt([]byte("begin"), 0)
	_, err2 := sparse.WriteAt([]byte("middle"), 5<<20)
	must(t, err1, err2, sparse.Truncate(64<<20), sparse.Close())
	must(t, filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		when[1].Nsec--
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, when, unix.AT_SYMLINK_NOFOLLOW)
	}))
	return root
}

func TestCopyTreeKeepsEverything(t *testing.T) {
	src := oddTree(t)
	want := listing(t, src)
	for _, workers := range []int{1, 2, 8} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			dst := filepath.Join(t.TempDir(), "copy")
			stats, err := CopyTree(t.Context(), src, dst, CopyOptions{Workers: workers})
			must(t, err)
			if d := cmp.Diff(want, listing(t, dst)); d != "" {
				t.Errorf("copy (-want +got):\n%s", d)
			}
			if n := int64(strings.Count(want, "\n")); stats.Entries != n {
				t.Errorf("stats.Entries = %d, want %d", stats.Entries, n)
			}
			var st unix.Stat_t
			must(t, unix.Stat(filepath.Join(dst, "sparse"), &st))
			if st.Blocks*512 > 1<<20 {
				t.Errorf("the sparse file has %d bytes on disk", st.Blocks*512)
			}
		})
	}
	if d := cmp.Diff(want, listing(t, src)); d != "" {
		t.Errorf("source changed (-before +after):\n%s", d)
	}
}

// TestCopyTreeAgreesWithCp compares the copy with that of GNU cp.
func TestCopyTreeAgreesWithCp(t *testing.T) {
	src, dir := oddTree(t), t.TempDir()
	tool(t, "cp", "coreutils")
	if out, err := exec.Command("cp", "-a", src, filepath.Join(dir, "cp")).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	_, err := CopyTree(t.Context(), src, filepath.Join(dir, "ours"), CopyOptions{})
	must(t, err)
	if d := cmp.Diff(listing(t, filepath.Join(dir, "cp")), listing(t, filepath.Join(dir, "ours"))); d != "" {
		t.Errorf("copy (-cp +ours):\n%s", d)
	}
}

// TestCopyTreeManyLinks copies many names of few files with many workers.
func TestCopyTreeManyLinks(t *testing.T) {
	src := newRoot(t)
	for i := range 40 {
		dir := filepath.Join(src, fmt.Sprintf("d%d/e", i))
		must(t, os.MkdirAll(dir, 0o755))
		for j := range 40 {
			f := filepath.Join(dir, fmt.Sprint(j))
			if i < 4 {
				must(t, os.WriteFile(f, []byte(f), 0o644))
			} else {
				must(t, os.Link(filepath.Join(src, fmt.Sprintf("d%d/e/%d", i%4, j)), f))
			}
		}
	}
	for range 3 {
		dst := filepath.Join(t.TempDir(), "copy")
		_, err := CopyTree(t.Context(), src, dst, CopyOptions{Workers: 16})
		must(t, err)
		if d := cmp.Diff(listing(t, src), listing(t, dst)); d != "" {
			t.Fatalf("copy (-want +got):\n%s", d)
		}
	}
}

func TestCopyTreeErrors(t *testing.T) {
	src := oddTree(t)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	full := t.TempDir()
	must(t, os.WriteFile(filepath.Join(full, "big"), nil, 0o644))
	tests := map[string]struct {
		ctx      context.Context //nolint:containedctx // of one call
		src, dst string
		want     error
	}{
		"cancelled":     {cancelled, src, filepath.Join(t.TempDir(), "x"), context.Canceled},
		"no source":     {t.Context(), src + "/none", filepath.Join(t.TempDir(), "x"), fs.ErrNotExist},
		"not empty":     {t.Context(), src, full, fs.ErrExist},
		"no parent":     {t.Context(), src, full + "/none/x", fs.ErrNotExist},
		"dst is a file": {t.Context(), src, full + "/big", unix.ENOTDIR},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := CopyTree(tt.ctx, tt.src, tt.dst, CopyOptions{}); !errors.Is(err, tt.want) {
				t.Errorf("CopyTree = %v, want %v", err, tt.want)
			}
		})
	}
}

// TestCopyTreeClosesWhatItOpens counts descriptors, also after errors.
func TestCopyTreeClosesWhatItOpens(t *testing.T) {
	src, full := oddTree(t), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(full, "d/e"), 0o755))
	before := openFiles(t)
	for range 3 {
		_, err := CopyTree(t.Context(), src, filepath.Join(t.TempDir(), "copy"), CopyOptions{Workers: 4})
		must(t, err)
		if _, err = CopyTree(t.Context(), src, full, CopyOptions{Workers: 4}); err == nil {
			t.Error("CopyTree into a full directory succeeded")
		}
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors were open, now %d", before, after)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(fds)
}

// manyFiles makes a tree like a small Debian: 15,000 entries, 300 MB.
func manyFiles(t testing.TB) string {
	t.Helper()
	root := newRoot(t)
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i*7 + i>>8)
	}
	for i := range 1500 {
		dir := filepath.Join(root, fmt.Sprintf("a%d/b%d/c%d", i%3, i%50, i))
		must(t, os.MkdirAll(dir, 0o755))
		for j := range 8 {
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("file", j)), data[:2000+(i*j)%40000], 0o644))
		}
		must(t, os.Symlink("file0", filepath.Join(dir, "link")))
	}
	for i := range 80 {
		must(t, os.WriteFile(filepath.Join(root, fmt.Sprint("lib", i)), data, 0o644))
	}
	return root
}

func BenchmarkCopyTree(b *testing.B) {
	src := manyFiles(b)
	for _, workers := range []int{1, 2, 4} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				dst := filepath.Join(b.TempDir(), fmt.Sprint(i))
				start := time.Now()
				stats, err := CopyTree(b.Context(), src, dst, CopyOptions{Workers: workers})
				must(b, err)
				b.SetBytes(stats.Bytes)
				b.ReportMetric(time.Since(start).Seconds(), "s/copy")
				b.StopTimer()
				must(b, os.RemoveAll(dst))
				b.StartTimer()
			}
		})
	}
}
