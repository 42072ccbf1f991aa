package convert_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/cmd/internal/convert"
	"cairn/fsbuild"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
	"cairn/reproducibility"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// disk is a raw disk with data at both ends.
func disk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	b := make([]byte, 4<<20)
	copy(b, bytes.Repeat([]byte("begin"), 100_000))
	copy(b[len(b)-512:], "the end")
	must(t, os.WriteFile(path, b, 0o600))
	return path
}

// info is what qemu-img says of an image, and that it holds the same disk.
func info(t *testing.T, path, driver, raw string) string {
	t.Helper()
	if out, err := exec.Command("qemu-img", "compare", "-f", "raw", "-F", driver, raw, path).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	out, err := exec.Command("qemu-img", "info", "-f", driver, path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func TestOptions(t *testing.T) {
	raw := disk(t)
	for _, tt := range []struct {
		format, driver, options string
		want                    []string
	}{
		{"qcow2", "qcow2", "", []string{"compat: 1.1", "compression type: zlib", "cluster_size: 65536"}},
		{"qcow2", "qcow2", "compression_type=zstd cluster_size=128K", []string{"compression type: zstd", "cluster_size: 131072"}},
		{"qcow2", "qcow2", "compat=0.10 window=32K", []string{"compat: 0.10"}},
		{"qcow2", "qcow2", "compression_type=none", []string{"disk size"}},
		{"vhd", "vpc", "", []string{"virtual size: 4 MiB (4194304 bytes)"}},
		{"vhd", "vpc", "subformat=fixed", []string{"virtual size: 4 MiB (4194304 bytes)"}},
		{"vmdk", "vmdk", "", []string{"create type: streamOptimized"}},
		{"vmdk", "vmdk", "subformat=monolithicSparse", []string{"create type: monolithicSparse"}},
		{"raw", "raw", "", []string{"virtual size: 4 MiB"}},
	} {
		t.Run(tt.format+" "+tt.options, func(t *testing.T) {
			r := convert.Request{Source: raw, Output: filepath.Join(t.TempDir(), "out"), To: tt.format, Options: map[string]string{}}
			for _, o := range strings.Fields(tt.options) {
				name, value, _ := strings.Cut(o, "=")
				r.Options[name] = value
			}
			result, err := convert.Run(t.Context(), r, nil)
			must(t, err)
			said := info(t, r.Output, tt.driver, raw)
			for _, want := range tt.want {
				if !strings.Contains(said, want) {
					t.Errorf("qemu-img info lacks %q:\n%s", want, said)
				}
			}
			again, err := convert.Run(t.Context(), r, nil)
			must(t, err)
			if again.SHA256 != result.SHA256 {
				t.Error("converted again it has other bytes")
			}
		})
	}
}

// TestPairs: any format becomes any other with the bytes that a build of it
// gives at once.
func TestPairs(t *testing.T) {
	dir := t.TempDir()
	content := tree.New()
	must(t, content.Add(tree.Node{Path: "f", Type: tree.Regular, Mode: 0o644, Size: 300_000, Content: tree.Bytes(bytes.Repeat([]byte("abc"), 100_000))}))
	id := strings.Repeat("ab", 32)
	seed, err := reproducibility.ParseSeed(id)
	must(t, err)
	var outs []fsbuild.Output
	for _, format := range fsbuild.Formats() {
		f, err := os.Create(filepath.Join(dir, format))
		must(t, err)
		defer f.Close()
		o := fsbuild.Output{Format: format, File: f, Compress: true}
		name := reproducibility.Name("container " + format)
		o.VHD.UUID, o.VMDK.CID = seed.UUID(name), seed.VolumeSerial(name)
		outs = append(outs, o)
	}
	built, err := fsbuild.Build(t.Context(), fsbuild.Image{Tree: content, FS: ext4.Params{UUID: [16]byte{1}, JournalSize: -1}, Table: fsbuild.MBR}, outs, nil)
	must(t, err)
	for i, to := range built {
		for _, from := range fsbuild.Formats() {
			for _, named := range []string{"", from} {
				got, err := convert.Run(t.Context(), convert.Request{Source: filepath.Join(dir, from), From: named, Output: filepath.Join(dir, "out"), To: to.Format, Seed: id}, nil)
				must(t, err)
				if got.SHA256 != to.SHA256 {
					t.Errorf("%s (as %q) to %s: %+v, built it is %+v", from, named, to.Format, got, built[i])
				}
			}
		}
	}
}

func TestRefused(t *testing.T) {
	raw := disk(t)
	vdi := filepath.Join(t.TempDir(), "x.vdi")
	must(t, os.WriteFile(vdi, []byte("<<< Oracle VM VirtualBox Disk Image >>>"), 0o600))
	for name, tt := range map[string]struct {
		request convert.Request
		want    string
	}{
		"format":  {convert.Request{Source: raw, To: "vdi"}, `"vdi" is not one of qcow2, raw`},
		"option":  {convert.Request{Source: raw, To: "raw", Options: map[string]string{"x": "y"}}, `raw does not know "x"`},
		"value":   {convert.Request{Source: raw, To: "qcow2", Options: map[string]string{"compat": "2"}}, "compat=2: not 0.10 or 1.1"},
		"cluster": {convert.Request{Source: raw, To: "qcow2", Options: map[string]string{"cluster_size": "100"}}, "cluster size"},
		"source":  {convert.Request{Source: vdi, To: "raw"}, "VirtualBox VDI"},
		"absent":  {convert.Request{Source: raw + ".x", To: "raw"}, "no such file"},
		"damaged": {convert.Request{Source: raw, From: fsbuild.FormatQCOW2, To: "raw"}, "qcow2"},
		"folder":  {convert.Request{Source: t.TempDir(), To: "raw"}, "is not a file"},
		"seed":    {convert.Request{Source: raw, To: "vhd", Seed: "x"}, "--seed"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tt.request.Output = filepath.Join(dir, "out")
			_, err := convert.Run(t.Context(), tt.request, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want %q in it", err, tt.want)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}
