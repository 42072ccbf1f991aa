package boot

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/tests/require"
)

func TestSeedVolumeIsReadByXorriso(t *testing.T) {
	xorriso := require.Tool(t, "xorriso", "xorriso")
	files := []File{
		{"openstack/latest/meta_data.json", []byte(`{"uuid": "x"}`)},
		{"openstack/latest/user_data", bytes.Repeat([]byte("0123456789abcdef"), 1000)},
		{"openstack/2012-08-10/meta_data.json", nil},
		{"user-data", []byte("#cloud-config\n")},
	}
	dir := t.TempDir()
	seed := filepath.Join(dir, "seed.iso")
	if err := WriteSeed(seed, ConfigDriveLabel, files); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	said, err := exec.Command(xorriso, "-osirrox", "on", "-indev", seed, "-pvd_info", "-extract", "/", out).CombinedOutput()
	if err != nil {
		t.Fatalf("xorriso: %v\n%s", err, said)
	}
	if strings.Contains(string(said), "WARNING") || !strings.Contains(string(said), "Volume Id    : config-2") {
		t.Errorf("xorriso says\n%s", said)
	}
	for _, f := range files {
		got, err := os.ReadFile(filepath.Join(out, f.Name))
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, f.Data) {
			t.Errorf("%s: got %d bytes, want %d", f.Name, len(got), len(f.Data))
		}
	}
}

func TestSeedVolumeRefuses(t *testing.T) {
	many := make([]File, 40)
	for i := range many {
		many[i].Name = strings.Repeat("x", i+1)
	}
	deep := make([]File, 200)
	for i := range deep {
		deep[i].Name = strings.Repeat("d/", i) + "f"
	}
	tests := []struct {
		name, label string
		files       []File
		want        string
	}{
		{"long label", strings.Repeat("x", 33), nil, "longer than 32"},
		{"absolute", "x", []File{{Name: "/etc/passwd"}}, "not a clean relative path"},
		{"upwards", "x", []File{{Name: "../x"}}, "not a clean relative path"},
		{"empty", "x", []File{{Name: ""}}, "not a clean relative path"},
		{"twice", "x", []File{{Name: "a"}, {Name: "a"}}, "stands twice"},
		{"file and folder", "x", []File{{Name: "a"}, {Name: "a/b"}}, "stands twice"},
		{"long name", "x", []File{{Name: strings.Repeat("n", 121)}}, "longer than 120"},
		{"many files", "x", many, "too many files"},
		{"many folders", "x", deep, "too many folders"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := SeedVolume(test.label, test.files)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("SeedVolume() error = %v, want %q", err, test.want)
			}
		})
	}
}
