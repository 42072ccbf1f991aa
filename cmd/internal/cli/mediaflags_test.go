package cli

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// sources makes what the commands of TestEveryFlag read.
func sources(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	late := time.Unix(1_700_000_000, 0)
	pack(t, in("in"), tar.Header{Name: "boot", Typeflag: tar.TypeDir, ModTime: late}, tar.Header{Name: "f", Uname: strings.Repeat("words ", 9000), Uid: 5, ModTime: late})
	must(t, os.Mkdir(in("folder"), 0o755))
	must(t, os.WriteFile(in("folder/f"), []byte("x"), 0o600))
	const config = `
- local_loop: {name: image0}
- partitioning:
    base: image0
    label: gpt
    partitions:
      - {name: boot, size: 8MiB, mkfs: {type: ext2, mount: {mount_point: /boot}}}
      - {name: root, size: 100%, mkfs: {mount: {mount_point: /}}}
`
	must(t, os.WriteFile(in("gpt"), []byte(config), 0o600))
	must(t, os.WriteFile(in("mbr"), []byte(strings.Replace(config, "gpt", "mbr", 1)), 0o600))
	for _, args := range []string{"disk -c gpt -t raw in disk.raw", "convert -t qcow2 disk.raw disk.qcow2"} {
		if code, stderr := command(t, dir, nil, io.Discard, strings.Fields(args)...); code != 0 {
			t.Fatal(stderr)
		}
	}
	emptyLayout(t, in("layout"))
	return dir
}

// emptyLayout makes an OCI layout with an image for amd64 that has no layers.
func emptyLayout(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755))
	blob := func(kind, text string) string {
		sum := fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
		must(t, os.WriteFile(filepath.Join(dir, "blobs/sha256", sum), []byte(text), 0o600))
		return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.%s.v1+json","digest":"sha256:%s","size":%d}`, kind, sum, len(text))
	}
	config := blob("config", `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	manifest := blob("manifest", `{"schemaVersion":2,"config":`+config+`,"layers":[]}`)
	must(t, os.WriteFile(filepath.Join(dir, "index.json"), []byte(`{"schemaVersion":2,"manifests":[`+manifest+`]}`), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600))
}

// flagCases are two command lines for each flag, by command. What they make
// differs, or the second one is refused with words. "~" is a space.
var flagCases = map[string][][3]string{
	"mkfs": {
		{"-t ext4 in", "-t ext3 in"},
		{"-t ext4 in", "-t ext4 --label x in"},
		{"-t ext4 in", "-t ext4 --size +1M in"},
		{"-t ext4 --size minimal in", "-t ext4 --size x1.5 in"},
		{"-t ext4 --size 64M in", "-t ext4 --size 65M in"},
		{"-t ext4 in", "-t ext4 --grow-to 1P in"},
		{"-t ext4 in", "-t ext4 --set block-size=1K in"},
		{"-t tar --partition 1 disk.raw", "-t tar --partition 2 disk.qcow2"},
		{"-t tar --arch amd64 oci:layout", "-t tar --arch arm64 oci:layout", "arm64"},
		{"-t tar in", "-t tar --owner 7:8 in"},
		{"-t tar folder", "-t tar --owner-from-tar in folder"},
		{"-t tar --numeric in", "-t tar --numeric=false in", "not looked up"},
		{"-t tar in", "-t tar --source-date-epoch 1 in"},
		{"-t ext4 in", "-t ext4 --seed SEED in"},
	},
	"disk": {
		{"-t raw -c gpt in", "-t raw --config mbr in"},
		{"-c gpt in", "--type vmdk -c gpt in"},
		{"-c gpt in", "-o compression_type=zstd,cluster_size=128K -c gpt in"},
		{"-t raw -c gpt in", "-t raw -c gpt --size +1M in"},
		{"-t raw -c gpt --size 64M in", "-t raw -c gpt --size 65M in"},
		{"-t raw -c gpt in", "-t raw -c gpt --size x2 in", "no size by factor"},
		{"-t raw -c gpt in", "-t raw -c gpt --root-label x in"},
		{"-t raw -c gpt in", "-t raw -c gpt --root-type ext3 in"},
		{"-t raw -c gpt in", "-t raw -c gpt --mkfs-options -N~9000 in"},
		{"-t raw -c gpt --partition 1 disk.raw", "-t raw -c gpt --partition 2 disk.raw"},
		{"-t raw -c gpt --arch amd64 oci:layout", "-t raw -c gpt --arch arm64 oci:layout", "arm64"},
		{"-t raw -c gpt in", "-t raw -c gpt --owner 7:8 in"},
		{"-t raw -c gpt folder", "-t raw -c gpt --owner-from-tar in folder"},
		{"-t raw -c gpt --numeric in", "-t raw -c gpt --numeric=false in", "not looked up"},
		{"-t raw -c gpt in", "-t raw -c gpt --source-date-epoch 1 in"},
		{"-t raw -c gpt in", "-t raw -c gpt --seed SEED in"},
	},
	"convert": {
		{"-t qcow2 disk.raw", "--type vmdk disk.raw"},
		{"-t raw disk.qcow2", "-t raw --from raw disk.qcow2"},
		{"-t qcow2 disk.raw", "-t qcow2 --option compression_type=zstd disk.raw"},
		{"-t vhd disk.raw", "-t vhd --seed SEED disk.raw"},
	},
}

// TestEveryFlag: each flag of the commands for writers changes what is made, or
// is refused with a reason.
func TestEveryFlag(t *testing.T) {
	dir := sources(t)
	p := &program{env: func(string) (string, bool) { return "", false }}
	for name, c := range map[string]*cobra.Command{"mkfs": p.mkfsCommand(), "disk": p.diskCommand(), "convert": p.convertCommand()} {
		used := map[string]bool{"help": true, "json": true}
		for _, tc := range flagCases[name] {
			first, _ := digestOf(t, dir, name, tc[0])
			second, said := digestOf(t, dir, name, tc[1])
			switch {
			case first == "":
				t.Errorf("%s %s makes nothing", name, tc[0])
			case tc[2] != "" && (second != "" || !strings.Contains(said, tc[2])):
				t.Errorf("%s %s: %q, want %q", name, tc[1], said, tc[2])
			case tc[2] == "" && (second == "" || second == first):
				t.Errorf("%s %s makes %q, %s %q: %s", name, tc[1], second, tc[0], first, said)
			}
			for _, word := range strings.Fields(tc[1]) {
				flag, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
				if short := c.Flags().ShorthandLookup(flag[:1]); len(flag) == 1 && short != nil {
					flag = short.Name
				}
				used[flag] = used[flag] || strings.HasPrefix(word, "-")
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !used[f.Name] {
				t.Errorf("%s --%s is not tested", name, f.Name)
			}
		})
	}
}

// digestOf runs a command and returns the digest in its summary, which people
// get too, and what it says.
func digestOf(t *testing.T, dir, name, args string) (digest, stderr string) {
	t.Helper()
	words := []string{name}
	for _, word := range strings.Fields(strings.ReplaceAll(args, "SEED", strings.Repeat("ab", 32))) {
		words = append(words, strings.ReplaceAll(word, "~", " "))
	}
	out := filepath.Join(dir, "out")
	var plain, summary bytes.Buffer
	if code, said := command(t, dir, nil, &plain, append(words, out)...); code != 0 {
		return "", said
	}
	if code, said := command(t, dir, nil, &summary, append(words, "--json", out)...); code != 0 {
		t.Fatal(said)
	}
	var s struct{ SHA256 string }
	must(t, json.Unmarshal(summary.Bytes(), &s))
	if line := "sha256:" + s.SHA256 + "  " + out + "\n"; !strings.HasSuffix(plain.String(), line) || len(s.SHA256) != 64 {
		t.Errorf("%s %s says %q, want %q", name, args, plain.String(), line)
	}
	return s.SHA256, ""
}

// TestMediaProgress: a terminal shows how far the commands are.
func TestMediaProgress(t *testing.T) {
	dir := sources(t)
	for args, step := range map[string]string{
		"mkfs -t ext4 in out": "write ext4", "disk -c gpt in out": "write disk", "convert -t qcow2 disk.raw out": "convert",
	} {
		var said bytes.Buffer
		p := &program{
			name: "cairn", args: strings.Fields(args), stdout: io.Discard, stderr: &said, now: steps(time.Second), cwd: dir, tty: true,
			width: func() int { return 80 },
			env:   func(name string) (string, bool) { return t.TempDir(), name == "TMPDIR" },
		}
		if code := p.status(p.dispatch(t.Context())); code != 0 || !strings.Contains(said.String(), step) {
			t.Errorf("%s: status %d, it shows %q", args, code, said.String())
		}
	}
}

// TestGrowLimit: the summary says how far a file system can be grown.
func TestGrowLimit(t *testing.T) {
	dir := sources(t)
	var plain, summary bytes.Buffer
	for out, args := range map[*bytes.Buffer]string{&plain: "mkfs -t ext4 --grow-to 1P in out", &summary: "mkfs -t ext4 --json --grow-to 1P in out"} {
		if code, stderr := command(t, dir, nil, out, strings.Fields(args)...); code != 0 {
			t.Fatal(stderr)
		}
	}
	var s struct {
		Limit int64 `json:"grows_to"`
	}
	must(t, json.Unmarshal(summary.Bytes(), &s))
	if want := ", grows to " + size(s.Limit) + ", UUID "; s.Limit < 1<<50 || !strings.Contains(plain.String(), want) {
		t.Errorf("it grows to %d, %q lacks %q", s.Limit, plain.String(), want)
	}
}
