package mkfs_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/cmd/internal/mkfs"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var stamp = time.Unix(1_700_000_000, 0)

// sample is a folder with what each format can hold.
func sample(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "tree")
	must(t, os.MkdirAll(filepath.Join(root, "etc", "empty"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "etc", "hello"), []byte("hello\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "big"), bytes.Repeat([]byte("0123456789abcdef"), 40_000), 0o600))
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, stamp, stamp))
	}))
	return root
}

func run(t *testing.T, r mkfs.Request) mkfs.Summary {
	t.Helper()
	r.TmpDir = t.TempDir()
	s, err := mkfs.Run(t.Context(), r)
	must(t, err)
	return s
}

// tool runs a judge.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// judges read each type with another's program; want is in what they print.
var judges = map[string]struct {
	command []string
	want    string
}{
	"ext4":     {[]string{"sh", "-c", `e2fsck -fn "$0" && debugfs -R 'cat /etc/hello' "$0"`}, "hello\n"},
	"ext3":     {[]string{"sh", "-c", `e2fsck -fn "$0" && debugfs -R 'cat /etc/hello' "$0"`}, "hello\n"},
	"ext2":     {[]string{"sh", "-c", `e2fsck -fn "$0" && debugfs -R 'cat /etc/hello' "$0"`}, "hello\n"},
	"vfat":     {[]string{"sh", "-c", `fsck.vfat -n "$0" && mtype -i "$0" ::/etc/hello`}, "hello\n"},
	"squashfs": {[]string{"unsquashfs", "-cat"}, "hello\n"},
	"cpio":     {[]string{"sh", "-c", `cpio -i --to-stdout etc/hello < "$0"`}, "hello\n"},
	"tar":      {[]string{"sh", "-c", `tar -xOf "$0" ./etc/hello || tar -xOf "$0" etc/hello`}, "hello\n"},
}

// TestTypes: every type is read by its own tools, comes out the same again, and
// what can be read back has the same tree.
func TestTypes(t *testing.T) {
	root := sample(t)
	reference := run(t, mkfs.Request{Type: "tar", Source: root, Output: filepath.Join(t.TempDir(), "x"), Owner: &mkfs.Owner{}})
	if diff := cmp.Diff(mkfs.Types(), []string{"cpio", "ext2", "ext3", "ext4", "squashfs", "tar", "vfat"}); diff != "" {
		t.Error(diff)
	}
	for _, kind := range mkfs.Types() {
		t.Run(kind, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			r := mkfs.Request{Type: kind, Source: root, Output: out, Owner: &mkfs.Owner{}}
			s := run(t, r)
			j := judges[kind]
			args := append(j.command[1:], out)
			if kind == "squashfs" {
				args = append(args, "etc/hello")
			}
			if got := tool(t, j.command[0], args...); !strings.Contains(got, j.want) {
				t.Errorf("the judge prints %q, want %q", got, j.want)
			}
			if sum, _, _ := strings.Cut(tool(t, "sha256sum", out), " "); sum != s.SHA256 {
				t.Errorf("the summary has sha256 %s, the file %s", s.SHA256, sum)
			}
			if again := run(t, r); again != s {
				t.Errorf("made again it is %+v, was %+v", again, s)
			}
			if kind == "cpio" || kind == "squashfs" {
				return // not read back
			}
			back := run(t, mkfs.Request{Type: "tar", Source: out, Output: filepath.Join(t.TempDir(), "x")})
			if kind != "vfat" && back.SHA256 != reference.SHA256 { // it has no modes
				t.Errorf("read back it is another tree")
			}
		})
	}
}

// TestStreams: a compressed archive comes in by standard input and an archive
// goes out by standard output.
func TestStreams(t *testing.T) {
	root := sample(t)
	var plain, packed, again bytes.Buffer
	run(t, mkfs.Request{Type: "tar", Source: root, Output: "-", Stdout: &plain})
	w := gzip.NewWriter(&packed)
	_, err := w.Write(plain.Bytes())
	must(t, errors.Join(err, w.Close()))
	tmp := t.TempDir()
	s, err := mkfs.Run(t.Context(), mkfs.Request{Type: "tar", Source: "-", Stdin: &packed, Output: "-", Stdout: &again, TmpDir: tmp})
	must(t, err)
	if s.SHA256 != fmt.Sprintf("%x", sha256.Sum256(again.Bytes())) || s.Size != int64(again.Len()) || s.Entries != 5 {
		t.Errorf("summary of a stream: %+v", s)
	}
	if !bytes.Equal(plain.Bytes(), again.Bytes()) {
		t.Error("the archive of an archive is another one")
	}
	if left, _ := os.ReadDir(tmp); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

// TestSettings: what is set is in the file system, as its tools see it.
func TestSettings(t *testing.T) {
	root := sample(t)
	out := filepath.Join(t.TempDir(), "out")
	s := run(t, mkfs.Request{
		Type: "ext4", Source: root, Output: out, Label: "a label", Size: mkfs.Size{Bytes: 64 << 20},
		Set: map[string]string{"uuid": "01234567-89ab-cdef-0123-456789abcdef", "block-size": "1K", "inode-size": "512", "reserved-percent": "2.5", "journal-size": "0"},
	})
	info := tool(t, "dumpe2fs", "-h", out)
	for _, want := range []string{"a label", "01234567-89ab-cdef-0123-456789abcdef", "Block size:               1024", "Inode size:	          512", "Block count:              65536"} {
		if !strings.Contains(info, want) {
			t.Errorf("dumpe2fs -h lacks %q", want)
		}
	}
	if strings.Contains(info, "has_journal") || s.Size != 64<<20 {
		t.Errorf("journal or size: %+v\n%s", s, info)
	}
	free := run(t, mkfs.Request{Type: "ext4", Source: root, Output: out, Size: mkfs.Size{Extra: 100 << 20}})
	if free.FreeBytes < 100<<20 {
		t.Errorf("%d bytes are free of the 100 MiB asked for", free.FreeBytes)
	}
	far := run(t, mkfs.Request{Type: "ext4", Source: root, Output: out, GrowTo: 1 << 50})
	if far.MaxSize < 1<<50 {
		t.Errorf("grows to %d only", far.MaxSize)
	}
	other := run(t, mkfs.Request{Type: "ext4", Source: root, Output: out, Seed: strings.Repeat("ab", 32)})
	if other.UUID == far.UUID {
		t.Error("another seed gives the same UUID")
	}
	early := time.Unix(1_000_000_000, 0)
	run(t, mkfs.Request{Type: "tar", Source: root, Output: out, Epoch: &early})
	if got := tool(t, "tar", "--utc", "--full-time", "-tvf", out); strings.Count(got, "2001-09-09 01:46:40") != 5 {
		t.Errorf("times are not clamped:\n%s", got)
	}
}

// TestRefused: wrong input is named, with what to do, and leaves no output.
func TestRefused(t *testing.T) {
	root := sample(t)
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, 8<<20))
	tool(t, "sh", "-c", `printf '1MiB,1MiB\n3MiB,1MiB\n' | sfdisk -q "$0"`, disk)
	junk := filepath.Join(t.TempDir(), "junk")
	must(t, os.WriteFile(junk, bytes.Repeat([]byte("junk"), 1000), 0o600))
	archive := filepath.Join(t.TempDir(), "archive")
	tool(t, "tar", "-C", root, "-cf", archive, ".")
	for name, tt := range map[string]struct {
		request mkfs.Request
		want    string
	}{
		"type":            {mkfs.Request{Type: "xfs", Source: root}, `type "xfs" is not one of cpio, ext2`},
		"setting":         {mkfs.Request{Type: "tar", Source: root, Set: map[string]string{"uuid": "x"}}, `tar does not know "uuid"`},
		"value":           {mkfs.Request{Type: "ext4", Source: root, Set: map[string]string{"uuid": "x"}}, "uuid=x: not a UUID"},
		"number":          {mkfs.Request{Type: "ext4", Source: root, Set: map[string]string{"block-size": "big"}}, "block-size=big: not a size"},
		"compression":     {mkfs.Request{Type: "squashfs", Source: root, Set: map[string]string{"compression": "lzo"}}, "not gzip, xz or zstd"},
		"label":           {mkfs.Request{Type: "cpio", Source: root, Label: "x"}, "cpio has no label"},
		"size":            {mkfs.Request{Type: "squashfs", Source: root, Size: mkfs.Size{Bytes: 1}}, "as large as its content"},
		"grow":            {mkfs.Request{Type: "vfat", Source: root, GrowTo: 1}, "does not say how far"},
		"too small":       {mkfs.Request{Type: "ext2", Source: root, Size: mkfs.Size{Bytes: 256 << 10}}, "bytes are missing"},
		"no source":       {mkfs.Request{Type: "ext4", Source: root + "/nosuch"}, "no such file"},
		"no file system":  {mkfs.Request{Type: "ext4", Source: junk}, "no file system that is known"},
		"which partition": {mkfs.Request{Type: "ext4", Source: disk}, "several partitions"},
		"no partition":    {mkfs.Request{Type: "ext4", Source: disk, Partition: 3}, "has no partition 3"},
		"of a folder":     {mkfs.Request{Type: "ext4", Source: root, Partition: 1}, "is a directory"},
		"of an archive":   {mkfs.Request{Type: "ext4", Source: archive, Partition: 1}, "is an archive"},
		"seed":            {mkfs.Request{Type: "ext4", Source: root, Seed: "x"}, "--seed"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tt.request.Output, tt.request.TmpDir = filepath.Join(dir, "out"), dir
			_, err := mkfs.Run(t.Context(), tt.request)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want %q in it", err, tt.want)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := mkfs.Run(ctx, mkfs.Request{Type: "ext4", Source: root, Output: filepath.Join(dir, "out")}); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v, want it to be stopped", err)
	}
}

// TestPartition: the only partition of a disk is found, in any container.
func TestPartition(t *testing.T) {
	root := sample(t)
	fs := filepath.Join(t.TempDir(), "fs")
	disk := filepath.Join(t.TempDir(), "disk")
	s := run(t, mkfs.Request{Type: "ext2", Source: root, Output: fs})
	tool(t, "sh", "-c", `truncate -s $(($2 + 4194304)) "$1" && echo '1MiB,,L' | sfdisk -q "$1" && dd if="$0" of="$1" bs=1M seek=1 conv=notrunc status=none && qemu-img convert -c -O qcow2 "$1" "$1.qcow2"`,
		fs, disk, strconv.FormatInt(s.Size, 10))
	want := run(t, mkfs.Request{Type: "tar", Source: fs, Output: filepath.Join(t.TempDir(), "x")})
	for _, source := range []string{disk, disk + ".qcow2"} {
		for _, number := range []int{0, 1} {
			got := run(t, mkfs.Request{Type: "tar", Source: source, Partition: number, Output: filepath.Join(t.TempDir(), "x")})
			if got.SHA256 != want.SHA256 {
				t.Errorf("%s, partition %d: another tree", filepath.Base(source), number)
			}
		}
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "17": 17, "4k": 4096, "1MiB": 1 << 20, "2GB": 2 << 30, "1P": 1 << 50} {
		if got, err := mkfs.ParseBytes(text); got != want || err != nil {
			t.Errorf("ParseBytes(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "K", "-1", "1.5G", "9000P", "1X"} {
		if got, err := mkfs.ParseBytes(text); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", text, got)
		}
	}
}
