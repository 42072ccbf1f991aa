package mkfs_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cairn/cmd/internal/mkfs"
	"cairn/fsbuild/cpio"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/squashfs"
	fstar "cairn/fsbuild/tar"
	"cairn/fsbuild/tree/dir"
	"cairn/fsbuild/vfat"
	"cairn/reproducibility"
)

// archive makes a tar archive of headers; the content of a file is its Uname.
func archive(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := h.Uname
		h.Uname, h.ModTime = "", stamp
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, content)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// layout is an OCI image layout for amd64 of layers, the first one compressed.
func layout(t *testing.T, layers ...[]byte) string {
	t.Helper()
	root := t.TempDir()
	blob := func(kind string, b []byte) map[string]any {
		sum := sha256.Sum256(b)
		name := hex.EncodeToString(sum[:])
		must(t, os.WriteFile(filepath.Join(root, "blobs/sha256", name), b, 0o600))
		return map[string]any{"mediaType": "application/vnd.oci.image." + kind, "digest": "sha256:" + name, "size": len(b)}
	}
	document := func(kind string, v any) map[string]any {
		b, err := json.Marshal(v)
		must(t, err)
		return blob(kind, b)
	}
	must(t, os.MkdirAll(filepath.Join(root, "blobs/sha256"), 0o755))
	var descriptors []any
	var ids []string
	for i, l := range layers {
		ids = append(ids, fmt.Sprintf("sha256:%x", sha256.Sum256(l)))
		if i > 0 {
			descriptors = append(descriptors, blob("layer.v1.tar", l))
			continue
		}
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		_, err := w.Write(l)
		must(t, errors.Join(err, w.Close()))
		descriptors = append(descriptors, blob("layer.v1.tar+gzip", packed.Bytes()))
	}
	config := document("config.v1+json", map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	manifest := document("manifest.v1+json", map[string]any{"schemaVersion": 2, "config": config, "layers": descriptors})
	manifest["annotations"] = map[string]string{"org.opencontainers.image.ref.name": "v1"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}})
	must(t, errors.Join(err, os.WriteFile(filepath.Join(root, "index.json"), index, 0o600),
		os.WriteFile(filepath.Join(root, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600)))
	return root
}

// TestSameBytes: a directory, its archive, its container image and its own file
// system give the same file system.
func TestSameBytes(t *testing.T) {
	root := sample(t)
	holes := filepath.Join(root, "holes")
	must(t, os.WriteFile(holes, []byte("begin"), 0o600))
	must(t, errors.Join(os.Truncate(holes, 3<<20), os.Link(filepath.Join(root, "big"), filepath.Join(root, "etc/big")),
		os.Symlink("etc/hello", filepath.Join(root, "link")), unix.Setxattr(filepath.Join(root, "big"), "user.a", []byte("b"), 0)))
	at := unix.NsecToTimespec(stamp.UnixNano() + 123456789)
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
	}))
	tmp := t.TempDir()
	whole := filepath.Join(tmp, "whole.tar")
	run(t, mkfs.Request{Type: "tar", Source: root, Output: whole})
	b, err := os.ReadFile(whole)
	must(t, err)
	// The lower layer has more, which the upper one hides.
	end := len(b) - 1024
	low := append(b[:end:end], archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "gone/x", Mode: 0o644})...)
	image := layout(t, low, archive(t, tar.Header{Typeflag: tar.TypeReg, Name: ".wh.gone", Mode: 0o644}))

	r := mkfs.Request{Type: "ext4", Source: root, Output: filepath.Join(tmp, "fs"), Label: "root", Size: mkfs.Size{Extra: 1 << 20}, GrowTo: 1 << 45}
	want := run(t, r)
	for _, source := range []string{whole, "oci:" + image, "oci:" + image + ":v1", r.Output} {
		again := r
		again.Source, again.Output, again.Arch = source, filepath.Join(tmp, "again"), "amd64"
		if got := run(t, again); got.SHA256 != want.SHA256 || strings.HasPrefix(source, "oci:") != (got.Manifest != "") {
			t.Errorf("from %s: %+v\nwant %+v", source, got, want)
		}
	}
}

// TestLibrary: the command writes what a call of the library writes.
func TestLibrary(t *testing.T) {
	root := sample(t)
	content, err := dir.Read(t.Context(), root, dir.Options{})
	must(t, err)
	id := strings.Repeat("ab", 32)
	seed, err := reproducibility.ParseSeed(id)
	must(t, err)
	name := reproducibility.FileSystem("root")
	for kind, write := range map[string]func(f *os.File) (int64, error){
		"ext4": func(f *os.File) (int64, error) {
			s, err := ext4.Write(t.Context(), f, content, ext4.Params{Label: "root", Time: stamp, UUID: seed.UUID(name), HashSeed: seed.HashSeed(name), Slack: 1 << 20})
			return s.Size, err
		},
		"vfat": func(f *os.File) (int64, error) {
			s, err := vfat.Write(t.Context(), f, content, vfat.Params{Label: "root", Time: stamp, Serial: seed.VolumeSerial(name), Slack: 1 << 20})
			return s.Size, err
		},
		"squashfs": func(f *os.File) (int64, error) {
			s, err := squashfs.Write(t.Context(), f, content, squashfs.Params{Time: stamp})
			return s.Size, err
		},
		"cpio": func(f *os.File) (int64, error) {
			s, err := cpio.Write(t.Context(), f, content, cpio.Params{Time: stamp})
			return s.Size, err
		},
		"tar": func(f *os.File) (int64, error) {
			s, err := fstar.Write(t.Context(), f, content, fstar.Params{Time: stamp})
			return s.Size, err
		},
	} {
		r := mkfs.Request{Type: kind, Source: root, Output: filepath.Join(t.TempDir(), "out"), Seed: id, Epoch: &stamp}
		if kind == "ext4" || kind == "vfat" {
			r.Label, r.Size.Extra = "root", 1<<20
		}
		want := run(t, r)
		f, err := os.Create(filepath.Join(t.TempDir(), "library"))
		must(t, err)
		defer f.Close()
		size, err := write(f)
		must(t, errors.Join(err, f.Truncate(size)))
		if sum, _, _ := strings.Cut(tool(t, "sha256sum", f.Name()), " "); sum != want.SHA256 {
			t.Errorf("%s by the library is %s, want %+v", kind, sum, want)
		}
	}
}

// TestOwners: an archive that was unpacked without privileges lends its owners.
func TestOwners(t *testing.T) {
	file := func(name string, mode int64, uid int) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Uid: uid, Gid: 7, Uname: "x"}
	}
	capable := file("ping", 0o755, 0)
	capable.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20" + strings.Repeat("\x00", 14)}
	given := archive(t, file("su", 0o4755, 1), capable, file("changed", 0o644, 3), file("replaced", 0o644, 4), file("gone", 0o644, 5),
		tar.Header{Typeflag: tar.TypeLink, Name: "su2", Linkname: "su"},
		tar.Header{Typeflag: tar.TypeDir, Name: "dev", Mode: 0o711, Uid: 6},
		tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3},
		tar.Header{Typeflag: tar.TypeBlock, Name: "gone.d/sda", Mode: 0o660, Devmajor: 8})
	root := t.TempDir()
	for _, name := range []string{"su", "ping", "changed", "added"} {
		must(t, os.WriteFile(filepath.Join(root, name), []byte("new"), 0o600))
	}
	must(t, errors.Join(os.Link(filepath.Join(root, "su"), filepath.Join(root, "su2")), os.Mkdir(filepath.Join(root, "dev"), 0o700), os.Mkdir(filepath.Join(root, "replaced"), 0o700)))
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, stamp, stamp))
	}))
	owners := filepath.Join(t.TempDir(), "owners.tar")
	must(t, os.WriteFile(owners, given, 0o600))
	list := func(owner *mkfs.Owner, from string, stdin io.Reader) string {
		t.Helper()
		var out bytes.Buffer
		run(t, mkfs.Request{Type: "tar", Source: root, Output: "-", Stdout: &out, Stdin: stdin, OwnersOf: from, Owner: owner})
		return listing(t, &out)
	}
	want := []string{
		"./ 755 0:0", "added 600 8:9", "changed 644 3:7", "dev/ 711 6:0", "dev/null 666 0:0 1:3",
		"ping 755 0:7 security.capability", "replaced/ 700 8:9", "su 4755 1:7", "su2 > su",
	}
	if diff := cmp.Diff(strings.Join(want, "\n"), list(&mkfs.Owner{UID: 8, GID: 9}, owners, nil)); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
	roots := strings.ReplaceAll(strings.Join(want, "\n"), "8:9", "0:0")
	if diff := cmp.Diff(roots, list(nil, "-", bytes.NewReader(given))); diff != "" {
		t.Errorf("owners from a pipe (-want +got):\n%s", diff)
	}
}

// listing tells names, modes, owners and attributes in an archive.
func listing(t *testing.T, in io.Reader) string {
	t.Helper()
	var lines []string
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return strings.Join(lines, "\n")
		}
		must(t, err)
		line := fmt.Sprintf("%s %o %d:%d", h.Name, h.Mode, h.Uid, h.Gid)
		if h.Typeflag == tar.TypeLink {
			line = h.Name + " > " + h.Linkname
		}
		if h.Typeflag == tar.TypeChar {
			line += fmt.Sprintf(" %d:%d", h.Devmajor, h.Devminor)
		}
		for name := range h.PAXRecords {
			if attribute, ok := strings.CutPrefix(name, "SCHILY.xattr."); ok {
				line += " " + attribute
			}
		}
		lines = append(lines, line)
	}
}

// TestProgress: it goes up to the end, of which an archive's is known roughly.
func TestProgress(t *testing.T) {
	root := sample(t)
	for _, kind := range mkfs.Types() {
		var last, of int64
		s := run(t, mkfs.Request{Type: kind, Source: root, Output: filepath.Join(t.TempDir(), "out"), Progress: func(done, total int64) {
			if done < last || total != 0 && done > total {
				t.Errorf("%s: %d after %d, of %d", kind, done, last, total)
			}
			last, of = done, total
		}})
		if last < s.Size/2 || of != 0 && last != of && kind != "ext2" && kind != "ext3" && kind != "ext4" && kind != "vfat" {
			t.Errorf("%s: ended at %d of %d, size %d", kind, last, of, s.Size)
		}
	}
}

// values are one for each setting that is not the default.
var values = map[string]map[string]string{
	"ext4": {
		"block-size": "1K", "hash-seed": strings.Repeat("1", 32), "inode-ratio": "8K", "inode-size": "512", "inodes": "5000", "journal-size": "8M",
		"kernel-reserve": "true", "large-dir": "true", "reserved-percent": "5", "uuid": strings.Repeat("2", 32),
	},
	"vfat": {
		"cluster-size": "8K", "fat": "16", "hidden-sectors": "2048", "media": "0xf0", "root-entries": "1024", "sector-size": "4K", "serial": "1234-ABCD",
	},
	"squashfs": {"block-size": "64K", "compression": "xz", "level": "1"},
	"cpio":     {"align": "4K"},
}

// TestEverySetting: each changes the file system, which its judge still takes.
func TestEverySetting(t *testing.T) {
	root := sample(t)
	values["ext2"], values["ext3"] = values["ext4"], values["ext4"]
	for _, kind := range mkfs.Types() {
		r := mkfs.Request{Type: kind, Source: root, Output: filepath.Join(t.TempDir(), "out"), Owner: &mkfs.Owner{}}
		plain := run(t, r)
		for _, s := range mkfs.Settings(kind) {
			value, ok := values[kind][s.Name]
			switch {
			case s.Name == "skip-xattrs" || s.Name == "skip-sockets":
				continue // TestSkipped
			case kind == "ext2" && s.Name == "journal-size", kind != "ext4" && (s.Name == "large-dir" || s.Name == "kernel-reserve"):
				continue // refused, or Linux withholds nothing
			case !ok:
				t.Errorf("%s %s is not tested", kind, s.Name)
				continue
			}
			r.Set = map[string]string{s.Name: value}
			if kind == "vfat" && s.Name == "root-entries" {
				r.Set["fat"] = "12"
			}
			if got := run(t, r); got.SHA256 == plain.SHA256 {
				t.Errorf("%s %s=%s changes nothing", kind, s.Name, value)
			}
			j := judges[kind]
			args := append(j.command[1:len(j.command):len(j.command)], r.Output)
			if kind == "squashfs" {
				args = append(args, "etc/hello")
			}
			if got := tool(t, j.command[0], args...); !strings.Contains(got, j.want) {
				t.Errorf("%s %s=%s: the judge prints %q", kind, s.Name, value, got)
			}
		}
	}
}

// TestSkipped: what a format cannot hold can be left out.
func TestSkipped(t *testing.T) {
	with := sample(t)
	must(t, unix.Mknod(filepath.Join(with, "socket"), unix.S_IFSOCK|0o600, 0))
	acl := filepath.Join(t.TempDir(), "acl.tar")
	must(t, os.WriteFile(acl, archive(t, tar.Header{
		Typeflag: tar.TypeReg, Name: "x", Mode: 0o644, PAXRecords: map[string]string{"SCHILY.acl.access": "user::rw-,user:joe:r--:7,group::r--,mask::r--,other::---"},
	}), 0o600))
	for _, tt := range []struct{ kind, source, setting, want string }{
		{"tar", with, "skip-sockets", `"socket"`},
		{"squashfs", acl, "skip-xattrs", `"x": not possible in squashfs: attribute "system.posix_acl_access"`},
	} {
		r := mkfs.Request{Type: tt.kind, Source: tt.source, Output: filepath.Join(t.TempDir(), "out")}
		if _, err := mkfs.Run(t.Context(), r); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: err = %v, want %q in it", tt.kind, err, tt.want)
		}
		r.Set = map[string]string{tt.setting: "true"}
		run(t, r)
	}
}
