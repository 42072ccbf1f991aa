package cli

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/cmd/internal/mkfs"
	"cairn/fsbuild"
	"cairn/tests/require"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// command runs `cairn` with its arguments in the folder dir.
func command(t *testing.T, dir string, env map[string]string, stdout io.Writer, args ...string) (code int, stderr string) {
	t.Helper()
	var said bytes.Buffer
	p := &program{
		name: "cairn", args: args, stdout: stdout, stderr: &said, now: steps(time.Second), cwd: dir,
		env: func(name string) (string, bool) {
			if v, ok := env[name]; ok {
				return v, true
			}
			return t.TempDir(), name == "TMPDIR"
		},
	}
	code = p.status(p.dispatch(t.Context()))
	return code, said.String()
}

// pack writes an archive; the content of a file is its Uname.
func pack(t *testing.T, path string, headers ...tar.Header) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := h.Uname
		h.Uname, h.Mode = "", 0o755
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(content))
		}
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, content)
		must(t, err)
	}
	must(t, w.Close())
	must(t, os.WriteFile(path, b.Bytes(), 0o600))
}

// TestBadMedia: what cannot be is refused with the path and the limit, and
// leaves nothing under the output's name.
func TestBadMedia(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	many := []tar.Header{{Name: "f"}}
	for i := range 32000 {
		many = append(many, tar.Header{Name: "l" + strings.Repeat("x", i%9) + string(rune('a'+i%26)) + time.Duration(i).String(), Typeflag: tar.TypeLink, Linkname: "f"})
	}
	long := "d/" + strings.Repeat("n", 256)
	pack(t, in("good"), tar.Header{Name: "f", Uname: strings.Repeat("x", 100_000)}, tar.Header{Name: "f", Uname: strings.Repeat("y", 100_000)})
	pack(t, in("long"), tar.Header{Name: long})
	pack(t, in("below"), tar.Header{Name: "f"}, tar.Header{Name: "f/g"})
	pack(t, in("above"), tar.Header{Name: "../f"})
	pack(t, in("nowhere"), tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "gone"})
	pack(t, in("many"), many...)
	pack(t, in("xattr"), tar.Header{Name: "d/f", PAXRecords: map[string]string{"SCHILY.xattr.user.big": strings.Repeat("v", 5000)}})
	pack(t, in("link"), tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "f"})
	pack(t, in("far"), tar.Header{Name: "d/f", ModTime: time.Unix(-1<<40, 0)})
	if code, stderr := command(t, dir, nil, io.Discard, "mkfs", "-t", "ext4", "good", "good.ext4"); code != 0 {
		t.Fatal(stderr)
	}
	if code, stderr := command(t, dir, nil, io.Discard, "mkfs", "-t", "vfat", "good", "good.vfat"); code != 0 {
		t.Fatal(stderr)
	}
	for _, f := range []string{"qcow2", "vhd", "vmdk"} {
		if code, stderr := command(t, dir, nil, io.Discard, "convert", "-t", f, "good.ext4", "good."+f); code != 0 {
			t.Fatal(stderr)
		}
	}
	damage := func(name string, change func(b []byte) []byte) {
		b, err := os.ReadFile(in(name))
		must(t, err)
		must(t, os.WriteFile(in("bad."+strings.TrimPrefix(name, "good.")), change(b), 0o600))
	}
	half := func(b []byte) []byte { return b[:len(b)/2] }
	damage("good", half)
	damage("good.ext4", func(b []byte) []byte { clear(b[4096:65536]); return b })
	damage("good.vfat", func(b []byte) []byte { clear(b[13:17]); return b })
	damage("good.qcow2", func(b []byte) []byte { b[40]++; return b })
	damage("good.vhd", half)
	damage("good.vmdk", half)
	must(t, os.WriteFile(in("half.ext4"), half(first(os.ReadFile(in("good.ext4")))), 0o600))

	for name, tt := range map[string]struct {
		args string // the output is "out/x"
		want string // words of the error, separated by "|"
	}{
		"name, ext4":         {"mkfs -t ext4 long", `"` + long + `"|256|255`},
		"name, ext2":         {"mkfs -t ext2 long", `"` + long + `"|256|255`},
		"name, squashfs":     {"mkfs -t squashfs long", `"` + long + `"|256|255`},
		"name, vfat":         {"mkfs -t vfat long", `"` + long + `"|256|255`},
		"file in a file":     {"mkfs -t ext4 below", `"f/g"|not a directory`},
		"name with ..":       {"mkfs -t tar above", `"../f"|unsafe`},
		"link to nothing":    {"mkfs -t tar nowhere", `"l"|"gone"`},
		"links":              {"mkfs -t ext2 many", `32000 hard links`},
		"attribute":          {"mkfs -t ext4 xattr", `"d/f"|xattrs|960 bytes|4060`},
		"attribute, vfat":    {"mkfs -t vfat xattr", `"d/f"|attribute`},
		"symlink, vfat":      {"mkfs -t vfat link", `"d/l"|symlink`},
		"time":               {"mkfs -t squashfs far", `"d/f"|time|from 0`},
		"small, ext4":        {"mkfs -t ext4 --size 128K good", `bytes are missing|hint: give a larger --size`},
		"small, vfat":        {"mkfs -t vfat --size 64K good", `bytes are missing|hint: give a larger --size`},
		"odd size":           {"mkfs -t ext4 --size 1000001 good", `1000001 is not a multiple of 4096`},
		"label, ext4":        {"mkfs -t ext4 -L seventeen-letters good", `"seventeen-letters" has 17 bytes, the limit is 16`},
		"label, vfat":        {"mkfs -t vfat -L twelve-bytes good", `"twelve-bytes" has 12 bytes, the limit is 11`},
		"grow":               {"mkfs -t ext3 --grow-to 1P good", `above the limit of ext3`},
		"unknown setting":    {"mkfs -t vfat --set uuid=1 good", `vfat does not know "uuid"|hint: settings of vfat: cluster-size, fat,`},
		"setting twice":      {"mkfs -t vfat --set fat=16 --set fat=32 good", `"fat=32"|twice`},
		"epoch":              {"mkfs -t tar --source-date-epoch now good", `option --source-date-epoch: "now"`},
		"names of users":     {"mkfs -t tar --numeric=false good", `not looked up`},
		"owners of archive":  {"mkfs -t tar --owner-from-tar good good", `is not a directory|hint: leave it out`},
		"owners of image":    {"mkfs -t tar --owner-from-tar good.ext4 .", `good.ext4 is not a tar archive`},
		"half an archive":    {"mkfs -t ext4 bad.good", `bad.good: read tar|unexpected EOF`},
		"half an ext4":       {"mkfs -t tar half.ext4", `half.ext4`},
		"damaged ext4":       {"mkfs -t tar bad.ext4", `bad.ext4|ext4`},
		"damaged vfat":       {"mkfs -t tar bad.vfat", `bad.vfat|vfat`},
		"damaged qcow2":      {"convert -t raw bad.qcow2", `bad.qcow2|qcow2`},
		"half a vhd":         {"convert -t raw -f vhd bad.vhd", `bad.vhd|vhd`},
		"half a vmdk":        {"convert -t qcow2 bad.vmdk", `bad.vmdk|vmdk`},
		"no layout":          {"mkfs -t tar oci:.", `oci-layout|hint:`},
		"unknown option":     {"convert -t vmdk -o compat=1.1 good.qcow2", `vmdk does not know "compat"|hint: options of vmdk: subformat`},
		"bad option":         {"convert -t qcow2 -o compression_type=lzo good.qcow2", `compression_type=lzo|zlib, zstd or none`},
		"level not possible": {"mkfs -t squashfs --set compression=zstd --set level=9 good", `level 9 is not from 0 to 4`},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(dir, "out", t.Name())
			must(t, os.MkdirAll(out, 0o755))
			code, stderr := command(t, dir, nil, io.Discard, append(strings.Fields(tt.args), filepath.Join(out, "x"))...)
			if code != exitFailure {
				t.Errorf("status %d, want %d", code, exitFailure)
			}
			for _, want := range strings.Split(tt.want, "|") {
				if !strings.Contains(stderr, want) {
					t.Errorf("it lacks %q:\n%s", want, stderr)
				}
			}
			if left, err := os.ReadDir(out); len(left) != 0 || err != nil {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
	// Wrong is only what the format cannot hold: here the last of two wins.
	if code, stderr := command(t, dir, nil, io.Discard, "mkfs", "-t", "tar", "long", "ok"); code != 0 {
		t.Error(stderr)
	}
}

func first[T any](v T, _ error) T { return v }

// failing takes n bytes.
type failing struct{ n int }

func (f *failing) Write(b []byte) (int, error) {
	if f.n -= len(b); f.n < 0 {
		return max(0, len(b)+f.n), errors.New("the reader is gone")
	}
	return len(b), nil
}

// TestOutputFails: at any byte, a stream that ends is an error.
func TestOutputFails(t *testing.T) {
	dir := t.TempDir()
	pack(t, filepath.Join(dir, "in"), tar.Header{Name: "f", Uname: strings.Repeat("x", 300_000)})
	var whole bytes.Buffer
	code, stderr := command(t, dir, nil, &whole, "mkfs", "-t", "cpio", "in", "-")
	if code != 0 || !strings.Contains(stderr, "-: cpio, ") {
		t.Fatalf("status %d: %s", code, stderr)
	}
	for _, n := range []int{0, 1, 511, 262_144, whole.Len() - 1} {
		code, stderr := command(t, dir, nil, &failing{n}, "mkfs", "-t", "cpio", "in", "-")
		if code != exitFailure || !strings.Contains(stderr, "the reader is gone") {
			t.Errorf("after %d bytes: status %d: %s", n, code, stderr)
		}
	}
}

// TestFullDisk: every type and format says which disk is full, and so does what is kept
// aside meanwhile.
func TestFullDisk(t *testing.T) {
	if !require.InNamespace(t) {
		return
	}
	dir, full := t.TempDir(), t.TempDir()
	must(t, syscall.Mount("none", full, "tmpfs", 0, "size=64k"))
	defer syscall.Unmount(full, syscall.MNT_DETACH)
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(i * i >> 7)
	}
	pack(t, filepath.Join(dir, "in"), tar.Header{Name: "f", Uname: string(noise)})
	out := filepath.Join(full, "out")
	must(t, os.WriteFile(filepath.Join(dir, "config"), []byte("- local_loop: {name: image0}\n- mkfs: {base: image0, name: root, type: ext4, mount: {mount_point: /}}\n"), 0o600))
	fails := func(kind string, args ...string) {
		t.Helper()
		code, stderr := command(t, dir, nil, io.Discard, append(args, "-t", kind, "in", out)...)
		want := "write " + kind + ": " + out + ": no space left on device\ncairn: hint: free some space in " + full
		if code != exitFailure || !strings.HasPrefix(stderr, "cairn: error: ") || !strings.Contains(stderr, want) {
			t.Errorf("%s: status %d: %s", args, code, stderr)
		}
		if left, err := os.ReadDir(full); len(left) != 0 || err != nil {
			t.Errorf("%s left %v, %v", args, left, err)
		}
	}
	for _, kind := range mkfs.Types() {
		fails(kind, "mkfs")
	}
	for _, format := range fsbuild.Formats() {
		fails(format, "convert", "-f", "raw")
		fails(format, "disk", "-c", "config")
	}
	f, err := os.Open(filepath.Join(dir, "in"))
	must(t, err)
	stdin := os.Stdin
	os.Stdin = f
	defer func() { os.Stdin = stdin }()
	code, stderr := command(t, dir, map[string]string{"TMPDIR": full}, io.Discard, "mkfs", "-t", "tar", "-", "out")
	if code != exitFailure || !strings.Contains(stderr, "no space left on device") || !strings.Contains(stderr, "hint: free some space in "+full+", or set TMPDIR") {
		t.Errorf("status %d: %s", code, stderr)
	}
}

// TestMediaJSON: programs get what was made, and the epoch of the environment
// counts unless an option says otherwise.
func TestMediaJSON(t *testing.T) {
	dir := t.TempDir()
	pack(t, filepath.Join(dir, "in"), tar.Header{Name: "f", Uname: "x", ModTime: time.Unix(1_700_000_000, 0)})
	type summary struct {
		Type, Path, SHA256, UUID string
		Size, Inodes             int64
		VirtualSize              int64 `json:"virtual_size"`
	}
	run := func(env map[string]string, args ...string) (s summary) {
		t.Helper()
		var out bytes.Buffer
		if code, stderr := command(t, dir, env, &out, args...); code != 0 || stderr != "" {
			t.Fatalf("status %d: %s", code, stderr)
		}
		must(t, json.Unmarshal(out.Bytes(), &s))
		return s
	}
	epoch := map[string]string{"SOURCE_DATE_EPOCH": "1600000000"}
	plain := run(nil, "mkfs", "-t", "ext4", "--json", "in", "x")
	early := run(epoch, "mkfs", "-t", "ext4", "--json", "in", "x")
	option := run(nil, "mkfs", "-t", "ext4", "--json", "--source-date-epoch", "1600000000", "in", "x")
	both := run(map[string]string{"SOURCE_DATE_EPOCH": "1"}, "mkfs", "-t", "ext4", "--json", "--source-date-epoch", "1600000000", "in", "x")
	if early == plain || early != option || early != both || plain.Inodes == 0 || len(plain.SHA256) != 64 || plain.Size == 0 || plain.UUID == "" || plain.Path != filepath.Join(dir, "x") {
		t.Errorf("plain %+v\nby the environment %+v\nby an option %+v\nby both %+v", plain, early, option, both)
	}
	c := run(nil, "convert", "-t", "qcow2", "-o", "compression_type=zstd,cluster_size=128K", "--json", "x", "y")
	if c.VirtualSize != plain.Size || len(c.SHA256) != 64 || c.Size == 0 {
		t.Errorf("convert: %+v", c)
	}
}
