package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *Store, text string) Digest {
	t.Helper()
	d, _, err := s.Put(t.Context(), strings.NewReader(text), "")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// files lists the paths of all files below the store's directory.
func files(t *testing.T, s *Store) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(s.Dir(), func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(s.Dir(), path)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// overwrite changes the content of a file of the store behind its back.
func overwrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestParseDigest(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 4)
	for in, ok := range map[string]bool{
		"sha256:" + hex:                        true,
		"sha256:" + strings.ToUpper(hex):       false,
		"sha256:" + hex[1:]:                    false,
		"sha256:" + hex + "0":                  false,
		"sha512:" + hex:                        false,
		"sha256:../../../../" + hex[12:]:       false,
		"sha256:" + strings.Repeat("../a", 16): false,
		"":                                     false,
		hex:                                    false,
		"sha256:" + hex[:63] + "\n":            false,
	} {
		d, err := ParseDigest(in)
		if (err == nil) != ok || (err != nil) != errors.Is(err, ErrBadDigest) {
			t.Errorf("ParseDigest(%q) = %q, %v", in, d, err)
		}
		if s := (&Store{dir: "/x"}); !ok && s.Path(Digest(in)) != "" {
			t.Errorf("Path(%q) = %q, want none", in, s.Path(Digest(in)))
		}
	}
}

// The digest is judged by coreutils' sha256sum.
func TestPutOpen(t *testing.T) {
	s := open(t)
	text := strings.Repeat("content ", 100_000)
	d, n, err := s.Put(t.Context(), iotest.OneByteReader(strings.NewReader(text[:1000])), "")
	if err != nil || n != 1000 {
		t.Fatalf("Put = %d, %v", n, err)
	}
	d2 := put(t, s, text)
	for _, d := range []Digest{d, d2} {
		out, oerr := exec.Command("sha256sum", s.Path(d)).Output()
		if oerr != nil || !strings.HasPrefix(string(out), d.Hex()+" ") {
			t.Errorf("sha256sum says %s, %v for %s", out, oerr, d)
		}
	}
	r, size, err := s.Open(d2)
	if err != nil || size != int64(len(text)) {
		t.Fatalf("Open = %d, %v", size, err)
	}
	got, err := io.ReadAll(r)
	if err != nil || string(got) != text {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if err = r.Close(); err != nil {
		t.Error(err)
	}
	if got, err = s.ReadAll(d2, size); err != nil || string(got) != text {
		t.Errorf("ReadAll = %d bytes, %v", len(got), err)
	}
	if _, err = s.ReadAll(d2, size-1); err == nil {
		t.Error("ReadAll beyond its limit succeeded")
	}
	fi, err := os.Stat(s.Path(d2))
	if err != nil || fi.Mode() != 0o400 {
		t.Errorf("blob has mode %v, %v", fi.Mode(), err)
	}
}

func TestModes(t *testing.T) {
	s := open(t)
	put(t, s, "x")
	err := filepath.WalkDir(s.Dir(), func(path string, _ os.DirEntry, err error) error {
		fi, serr := os.Lstat(path)
		if serr == nil && fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, fi.Mode())
		}
		return errors.Join(err, serr)
	})
	if err != nil {
		t.Error(err)
	}
}

func TestPutRefusals(t *testing.T) {
	want := Of([]byte("other"))
	broken := errors.New("connection cut")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx  func() context.Context
		r    io.Reader
		want Digest
		is   error
	}{
		"mismatch":   {t.Context, strings.NewReader("text"), want, nil},
		"read error": {t.Context, io.MultiReader(strings.NewReader("te"), iotest.ErrReader(broken)), "", broken},
		"canceled":   {func() context.Context { return canceled }, strings.NewReader("text"), "", context.Canceled},
		"bad digest": {t.Context, strings.NewReader("text"), "sha256:../x", ErrBadDigest},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			_, _, err := s.Put(c.ctx(), c.r, c.want)
			var mismatch *MismatchError
			if err == nil || c.is != nil && !errors.Is(err, c.is) || c.is == nil && !errors.As(err, &mismatch) {
				t.Errorf("Put: %v", err)
			}
			if left := files(t, s); left != nil {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestVerify(t *testing.T) {
	d := Of([]byte("12345"))
	for name, c := range map[string]struct {
		in   string
		size int64
		read string // delivered before the error
		err  string // "" for none
	}{
		"good":         {"12345", 5, "12345", ""},
		"good unsized": {"12345", -1, "12345", ""},
		"other bytes":  {"12346", 5, "12346", "content has digest"},
		"surplus":      {"123456", 5, "", "longer than the 5 bytes"},
		"truncated":    {"1234", 5, "1234", "4 of the 5 bytes"},
		"unsized":      {"123456", -1, "123456", "content has digest"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := io.ReadAll(Verify(strings.NewReader(c.in), d, c.size))
			if string(got) != c.read || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("read %q, %v; want %q, %q", got, err, c.read, c.err)
			}
			var mismatch *MismatchError
			if err != nil && !errors.As(err, &mismatch) {
				t.Errorf("error %T is no MismatchError", err)
			}
		})
	}
}

func TestDamagedBlobHeals(t *testing.T) {
	ways := map[string]func(*Store, Digest) error{
		"Open": func(s *Store, d Digest) error {
			r, _, err := s.Open(d)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, r)
			return errors.Join(err, r.Close())
		},
		"OpenVerified": func(s *Store, d Digest) error { _, _, err := s.OpenVerified(d); return err },
		"ReadAll":      func(s *Store, d Digest) error { _, err := s.ReadAll(d, 1<<20); return err },
	}
	for way, read := range ways {
		for name, bad := range map[string]string{"flipped": "tExt", "truncated": "te", "empty": "", "longer": "text!"} {
			t.Run(way+" "+name, func(t *testing.T) {
				s := open(t)
				d := put(t, s, "text")
				overwrite(t, s.Path(d), bad)
				var corrupt *CorruptError
				if err := read(s, d); !errors.As(err, &corrupt) || corrupt.Removal != nil {
					t.Fatalf("read damaged blob: %v", err)
				}
				if err := read(s, d); !errors.Is(err, ErrNotFound) {
					t.Errorf("read again: %v, want ErrNotFound", err)
				}
				put(t, s, "text")
				if err := read(s, d); err != nil {
					t.Errorf("read mended blob: %v", err)
				}
			})
		}
	}
}

func TestPutMends(t *testing.T) {
	s := open(t)
	d := put(t, s, "text")
	overwrite(t, s.Path(d), "tExt")
	put(t, s, "text")
	if b, err := s.ReadAll(d, 10); string(b) != "text" {
		t.Errorf("ReadAll = %q, %v", b, err)
	}
}

func TestCorruptSparesReplacement(t *testing.T) {
	s := open(t)
	d := put(t, s, "text")
	overwrite(t, s.Path(d), "tExt")
	r, _, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	put(t, s, "text") // another process fetched it meanwhile
	if _, err := io.ReadAll(r); err == nil {
		t.Error("damaged blob was read")
	}
	if !s.Has(d) {
		t.Error("the replacement was removed")
	}
}

func TestPartial(t *testing.T) {
	s := open(t)
	f, err := s.Partial("http://example.org/a.deb")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = io.WriteString(f, "first "); err != nil {
		t.Fatal(err)
	}
	if err = f.Close(); err != nil { // interrupted
		t.Fatal(err)
	}
	f, err = s.Partial("http://example.org/a.deb")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.PartialContext(ctx, "http://example.org/a.deb"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second holder: %v", err)
	}
	if n, err := f.Seek(0, io.SeekEnd); n != 6 || err != nil {
		t.Errorf("resumed with %d bytes, %v", n, err)
	}
	if _, err := io.WriteString(f, "second"); err != nil {
		t.Fatal(err)
	}
	want := Of([]byte("first second"))
	if n, err := s.CommitPartial(t.Context(), f, want); n != 12 || err != nil {
		t.Fatalf("CommitPartial = %d, %v", n, err)
	}
	if diff := cmp.Diff([]string{filepath.Join("blobs/sha256", want.Hex()[:2], want.Hex())}, files(t, s)); diff != "" {
		t.Error(diff)
	}
}

func TestPartialMismatch(t *testing.T) {
	s := open(t)
	f, err := s.Partial("key")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, "wrong"); err != nil {
		t.Fatal(err)
	}
	var mismatch *MismatchError
	if _, err := s.CommitPartial(t.Context(), f, Of([]byte("right"))); !errors.As(err, &mismatch) {
		t.Errorf("CommitPartial: %v", err)
	}
	if left := files(t, s); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

// Holders remove the file, so that one who opened it before may get the lock
// of a file that is no longer there.
func TestPartialHasOneHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var held, total atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for total.Load() < 2000 {
				f, ok, err := tryLockFile(path)
				if err != nil {
					t.Error(err)
					return
				}
				if !ok {
					continue
				}
				if held.Add(1) > 1 {
					t.Error("two holders at once")
				}
				runtime.Gosched()
				total.Add(1)
				held.Add(-1)
				if err := errors.Join(os.Remove(path), f.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

var key = strings.Repeat("ab", 32)

func snapshot(t *testing.T, s *Store) {
	t.Helper()
	w, err := s.NewSnapshot(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.Dir(), "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit([]byte("the manifest\n")); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshot(t *testing.T) {
	s := open(t)
	if _, err := s.Snapshot(key); !errors.Is(err, ErrNotFound) {
		t.Errorf("Snapshot before: %v", err)
	}
	snapshot(t, s)
	n, err := s.Snapshot(key)
	if err != nil {
		t.Fatal(err)
	}
	if string(n.Manifest) != "the manifest\n" {
		t.Errorf("manifest %q", n.Manifest)
	}
	if _, err := os.Stat(filepath.Join(n.Dir, "file")); err != nil {
		t.Error(err)
	}
	if _, err := s.NewSnapshot(key); !errors.Is(err, ErrExists) {
		t.Errorf("NewSnapshot again: %v", err)
	}
	if err := s.Remove(SnapshotEntry, key); !errors.Is(err, ErrBusy) {
		t.Errorf("Remove in use: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Remove(SnapshotEntry, key); err != nil {
		t.Error(err)
	}
	if left := files(t, s); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestSnapshotKeys(t *testing.T) {
	s := open(t)
	for _, bad := range []string{"", "..", "../" + key[3:], key + "0", strings.ToUpper(key)} {
		if _, err := s.Snapshot(bad); !errors.Is(err, ErrBadKey) {
			t.Errorf("Snapshot(%q): %v", bad, err)
		}
		if _, err := s.NewSnapshot(bad); !errors.Is(err, ErrBadKey) {
			t.Errorf("NewSnapshot(%q): %v", bad, err)
		}
		if err := s.Remove(SnapshotEntry, bad); !errors.Is(err, ErrBadKey) {
			t.Errorf("Remove(%q): %v", bad, err)
		}
	}
}

func TestSnapshotAbort(t *testing.T) {
	s := open(t)
	w, err := s.NewSnapshot(key)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.NewSnapshotContext(ctx, key); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second writer: %v", err)
	}
	if err := s.Sweep(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(w.Dir()); err != nil {
		t.Errorf("sweep took a living writer's tree: %v", err)
	}
	if err := errors.Join(w.Abort(), w.Abort()); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(s.path(snapshotsDir)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	snapshot(t, s)
}

func TestSnapshotDamaged(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"manifest gone":      func(dir string) error { return os.Remove(filepath.Join(dir, "manifest")) },
		"tree gone":          func(dir string) error { return os.RemoveAll(filepath.Join(dir, "tree")) },
		"manifest cut":       func(dir string) error { return os.Truncate(filepath.Join(dir, "manifest"), 95) },
		"manifest empty":     func(dir string) error { return os.Truncate(filepath.Join(dir, "manifest"), 0) },
		"manifest with tail": func(dir string) error { return os.Truncate(filepath.Join(dir, "manifest"), 500) },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			snapshot(t, s)
			if err := os.Chmod(s.path(snapshotsDir, key, "manifest"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := damage(s.path(snapshotsDir, key)); err != nil {
				t.Fatal(err)
			}
			var corrupt *CorruptError
			if _, err := s.Snapshot(key); !errors.As(err, &corrupt) || corrupt.Removal != nil {
				t.Fatalf("Snapshot: %v", err)
			}
			if _, err := s.Snapshot(key); !errors.Is(err, ErrNotFound) {
				t.Errorf("Snapshot again: %v", err)
			}
			snapshot(t, s)
			if err := s.Sweep(); err != nil {
				t.Error(err)
			}
			if n := len(files(t, s)); n != 2 {
				t.Errorf("%d files left, want 2", n)
			}
		})
	}
}

func TestList(t *testing.T) {
	s := open(t)
	d := put(t, s, "text")
	snapshot(t, s)
	f, err := s.Partial("p")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var kinds []Kind
	var total int64
	for _, e := range entries {
		kinds = append(kinds, e.Kind)
		total += e.Allocated
	}
	if diff := cmp.Diff([]Kind{BlobEntry, SnapshotEntry, PartialEntry}, kinds); diff != "" {
		t.Fatal(diff)
	}
	if size, err := s.Size(); size != total || size == 0 || err != nil {
		t.Errorf("Size = %d, %v, want %d", size, err, total)
	}
	if err := s.Remove(PartialEntry, entries[2].Name); !errors.Is(err, ErrBusy) {
		t.Errorf("remove partial in use: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if err := s.Remove(e.Kind, e.Name); err != nil {
			t.Error(err)
		}
		if err := s.Remove(e.Kind, e.Name); !errors.Is(err, ErrNotFound) {
			t.Errorf("remove %s again: %v", e.Kind, err)
		}
	}
	if s.Has(d) || files(t, s) != nil {
		t.Errorf("left behind: %v", files(t, s))
	}
}

// TestMain lets the test binary play a process that uses the store and is
// killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("STORE_TEST_CHILD"); dir != "" {
		if err := child(dir); err != nil {
			fmt.Println(err)
		}
		return
	}
	os.Exit(m.Run())
}

func child(dir string) error {
	s, err := Open(dir)
	if err != nil {
		return err
	}
	w, err := s.NewSnapshot(key)
	if err != nil {
		return err
	}
	if err = os.WriteFile(filepath.Join(w.Dir(), "file"), []byte("x"), 0o644); err != nil {
		return err
	}
	_, _, err = s.Put(context.Background(), io.MultiReader(strings.NewReader("begin"), talker{}), "")
	return err
}

// talker says that the child is in the middle of things, then never ends.
type talker struct{}

func (talker) Read([]byte) (int, error) {
	fmt.Println("writing")
	time.Sleep(time.Hour)
	return 0, io.EOF
}

func TestKill(t *testing.T) {
	s := open(t)
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "STORE_TEST_CHILD="+s.Dir())
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 7)
	if _, err := io.ReadFull(out, said); err != nil || string(said) != "writing" {
		t.Fatalf("child said %q, %v", said, err)
	}
	before := files(t, s)
	if len(before) != 3 {
		t.Errorf("child wrote %v", before)
	}
	if err := s.Sweep(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, files(t, s)); diff != "" {
		t.Errorf("sweep touched a living process's files: %s", diff)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if err := s.Sweep(); err != nil {
		t.Error(err)
	}
	if left := files(t, s); left != nil {
		t.Errorf("left behind: %v", left)
	}
	snapshot(t, s)
}

// Many writers of the same and of other blobs never disturb each other, sweeps
// and readers included.
func TestConcurrentUse(t *testing.T) {
	s := open(t)
	var wg sync.WaitGroup
	for i := range 8 {
		other, err := Open(s.Dir())
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for j := range 20 {
				text := bytes.Repeat([]byte{byte(j % 5)}, 1000+j%5)
				d, err := other.PutBytes(t.Context(), text)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := s.ReadAll(d, 2000); err != nil || !bytes.Equal(got, text) {
					t.Errorf("ReadAll = %d bytes, %v", len(got), err)
				}
				if i == 0 {
					if err := s.Sweep(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if n := len(files(t, s)); n != 5 {
		t.Errorf("%d files, want 5", n)
	}
}

func ExampleStore_Put() {
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s, err := Open(dir)
	if err != nil {
		return
	}
	d, n, err := s.Put(context.Background(), strings.NewReader("hello\n"), "")
	fmt.Println(d, n, err)
	// Output: sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03 6 <nil>
}
