package build

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/reproducibility"
	"cairn/sandbox/shim"
)

// parentOf is one that has been asked for these elements with an environment.
func parentOf(t *testing.T, env []string, names ...string) (*parent, *[]string) {
	t.Helper()
	var said []string
	p := &parent{req: &Request{Elements: names, Arch: "amd64", Env: env}, event: func(e Event) { said = append(said, e.Text) }}
	return p, &said
}

func find(t *testing.T, env []string, names ...string) (*blockDevice, string, error) {
	t.Helper()
	p, said := parentOf(t, env, names...)
	_, s, err := openElements(p.req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.findBlockDevice(s)
	return b, strings.Join(*said, "\n"), err
}

// TestSeenDisk: what hooks see of the disk that an element asks for.
func TestSeenDisk(t *testing.T) {
	seed := reproducibility.NewSeed([]byte("test"))
	root := shim.FileSystem{Point: "/", Label: "cloudimg-rootfs", UUID: "dc5bbf7c-f4cd-8a0a-a78d-4b6d4c4dd0f0", Type: "ext4"}
	for element, want := range map[string]struct {
		partMap, partitions string
		number              int
	}{
		"block-device-mbr": {"msdos", "[image0]=/dev/cairn0 [root]=/dev/cairn0p1 ", 1},
		"block-device-gpt": {"gpt", "[image0]=/dev/cairn0 [BSP]=/dev/cairn0p1 [root]=/dev/cairn0p2 ", 2},
		"":                 {"", "[image0]=/dev/cairn0 ", 0},
	} {
		t.Run(element, func(t *testing.T) {
			names := []string{"base", "debian-minimal"}
			if element != "" {
				names = append(names, element)
			}
			b, _, err := find(t, nil, names...)
			if err != nil {
				t.Fatal(err)
			}
			d := seenDisk(b.plan, seed)
			if len(d.FileSystems) != 1 {
				t.Fatalf("hooks see %+v", d)
			}
			got := d.FileSystems[0]
			if (want.number > 0) != (got.PartUUID != "") || len(got.UUID) != len(root.UUID) {
				t.Errorf("PARTUUID %q, UUID %q", got.PartUUID, got.UUID)
			}
			expected := root
			expected.Partition, expected.PartUUID, expected.UUID, expected.PartMap = want.number, got.PartUUID, got.UUID, want.partMap
			if diff := cmp.Diff(expected, got); diff != "" {
				t.Errorf("file system (-want +got):\n%s", diff)
			}
			if got := seenPartitions(b.plan); got != want.partitions {
				t.Errorf("IMAGE_BLOCK_DEVICES = %q, want %q", got, want.partitions)
			}
		})
	}
}

// TestSeenDisks: what hooks see of several disks.
func TestSeenDisks(t *testing.T) {
	config := `
- local_loop: {name: data, size: 1GiB, mkfs: {type: ext4, mount: {mount_point: /srv}}}
- local_loop: {name: image0, partitioning: {label: mbr, partitions: [{name: root, flags: [primary], size: 100%, mkfs: {name: mkfs_root, mount: {mount_point: /}}}]}}
`
	b, _, err := find(t, []string{"DIB_BLOCK_DEVICE_CONFIG=" + config}, "base", "debian-minimal")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := seenPartitions(b.plan), "[image0]=/dev/cairn0 [root]=/dev/cairn0p1 [data]=/dev/cairn1 "; got != want {
		t.Errorf("IMAGE_BLOCK_DEVICES = %q, want %q", got, want)
	}
	var got []string
	for _, f := range seenDisk(b.plan, reproducibility.NewSeed(nil)).FileSystems {
		got = append(got, fmt.Sprint(f.Point, f.Disk, f.PartMap, f.Partition))
	}
	if diff := cmp.Diff([]string{"/0msdos1", "/srv10"}, got); diff != "" {
		t.Errorf("file systems (-want +got):\n%s", diff)
	}
	if got := diskNames(b.plan); !slices.Equal(got, []string{"", "data"}) {
		t.Errorf("outputs are named %q", got)
	}
}

// TestGivenBlockDevice: a configuration of the caller wins, and wrong ones say
// where they come from.
func TestGivenBlockDevice(t *testing.T) {
	const config = "- local_loop: {name: disk}\n- mkfs: {name: mkfs_root, base: disk, mount: {mount_point: /}}\n"
	file := filepath.Join(t.TempDir(), "disk.yaml")
	if err := os.WriteFile(file, []byte(strings.Replace(config, "name: disk", "name: disk, size: 1GiB", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		env  []string
		said string
		size int64
		kind string
	}{
		"text":    {[]string{"DIB_BLOCK_DEVICE_CONFIG=" + config}, "User specified block-device config from DIB_BLOCK_DEVICE_CONFIG", 0, "ext4"},
		"file":    {[]string{"DIB_BLOCK_DEVICE_CONFIG=file://" + file}, "Using file-based block-device config: " + file, 1 << 30, "ext4"},
		"fs type": {[]string{"FS_TYPE=ext3", "DIB_BLOCK_DEVICE_CONFIG=" + config}, "User specified", 0, "ext3"},
	} {
		t.Run(name, func(t *testing.T) {
			b, said, err := find(t, tc.env, "base", "debian-minimal", "block-device-mbr")
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(said, tc.said) {
				t.Errorf("said %q, want %q", said, tc.said)
			}
			if d := b.plan.Disks[0]; d.Name != "disk" || d.Size != tc.size || root(b.plan).Type != tc.kind {
				t.Errorf("plan %+v", b.plan)
			}
			if (b.fromFile() != "") != (name == "file") {
				t.Errorf("the lock is to hold %q", b.fromFile())
			}
		})
	}
	for name, tc := range map[string]struct {
		env  string
		want []string
	}{
		"no file":      {"DIB_BLOCK_DEVICE_CONFIG=file:///nonexistent", []string{"DIB_BLOCK_DEVICE_CONFIG", "/nonexistent"}},
		"no YAML":      {"DIB_BLOCK_DEVICE_CONFIG=mbr", []string{"not a list"}},
		"xfs":          {"FS_TYPE=xfs", []string{"mkfs_root: type: xfs", "not supported"}},
		"block size":   {"DIB_BLOCK_SIZE=big", []string{"DIB_BLOCK_SIZE"}},
		"mkfs options": {"DIB_BLOCK_DEVICE_CONFIG=" + strings.Replace(config, "base: disk", "base: disk, opts: -Z", 1), []string{"mkfs mkfs_root: opts: option -Z"}},
	} {
		_, _, err := find(t, []string{tc.env}, "base", "debian-minimal")
		for _, want := range tc.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v, want %q", name, err, want)
			}
		}
	}
}
