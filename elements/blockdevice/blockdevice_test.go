package blockdevice_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/elements/blockdevice"
	"cairn/fsbuild/partition"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func kind(t testing.TB, name string) partition.GUID {
	t.Helper()
	g, err := partition.ParseType(name)
	must(t, err)
	return g
}

const efi = `
- local_loop:
    name: image0
- partitioning:
    base: image0
    label: gpt
    partitions:
      - name: ESP
        type: 'EF00'
        size: 550MiB
        mkfs:
          type: vfat
          mount:
            mount_point: /boot/efi
            fstab: {options: defaults, fsck-passno: 2}
      - {name: BSP, type: EF02, size: 8MiB}
      - name: Root Part
        type: 8300
        flags: [boot]
        size: 100%
        mkfs:
          type: ext4
          mount:
            mount_point: /
            fstab: {}
`

const mbr = `
- local_loop: {name: image0, size: 2 GiB, block_size: 512, directory: /x}
- partitioning:
    name: table
    base: image0
    label: mbr
    align: 4MiB
    partitions:
      - {name: boot, flags: [boot, primary], size: 8MiB, type: '0x41'}
      - {name: root, flags: [primary], size: 54%}
      - name: swap
        size: 1%
        type: "82"
        mkfs: {type: swap, uuid: 11111111-2222-3333-4444-555555555555, mount: {mount_point: none, fstab: {fsck-passno: 7, options: x}}}
      - name: var log
        size: 100%
        mkfs:
          base: var log
          type: xfs
          label: log
          opts: -i size=512  -q
          nonsense: true
          mount: {name: m, mount_point: /var/log, unknown: 1}
- mkfs:
    name: mkfs_root
    base: root
- mount: {name: mnt, base: mkfs_root, mount_point: /}
- fstab: {name: f, base: mnt, options: "rw,relatime", dump-freq: 1, fsck-passno: 1}
`

func size(t testing.TB, text string) partition.Size {
	t.Helper()
	s, err := partition.ParseSize(text)
	must(t, err)
	return s
}

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		text   string
		params blockdevice.Params
		want   blockdevice.Plan
		fstab  string
	}{
		"fallback": {
			blockdevice.Fallback,
			blockdevice.Params{BlockSize: 4096, RootOpts: "-i 4096 -J size=64"},
			blockdevice.Plan{
				Disks:       []blockdevice.Disk{{Name: "image0", BlockSize: 4096}},
				FileSystems: []blockdevice.FileSystem{{Name: "mkfs_root", Base: "image0", Type: "ext4", Label: "cloudimg-rootfs", Opts: []string{"-i", "4096", "-J", "size=64"}}},
				Mounts:      []blockdevice.Mount{{Name: "mount_mkfs_root", FileSystem: "mkfs_root", Point: "/", Fstab: &blockdevice.Fstab{Options: "defaults", Passno: 1}}},
			},
			"LABEL=cloudimg-rootfs / ext4 defaults 0 1\n",
		},
		"efi": {
			efi,
			blockdevice.Params{RootType: "xfs", RootLabel: "other"},
			blockdevice.Plan{
				Disks: []blockdevice.Disk{{Name: "image0", BlockSize: 512, Label: partition.GPT, Align: 1 << 20, Partitions: []blockdevice.Partition{
					{Name: "ESP", Number: 1, Size: size(t, "550MiB"), Type: kind(t, "esp")},
					{Name: "BSP", Number: 2, Size: size(t, "8MiB"), Type: kind(t, "bios-boot")},
					{Name: "Root Part", Number: 3, Size: size(t, "100%"), Type: kind(t, "linux-data"), Boot: true},
				}}},
				FileSystems: []blockdevice.FileSystem{
					{Name: "mkfs_ESP", Base: "ESP", Type: "vfat", Label: "MKFS_ESP"},
					{Name: "mkfs_Root Part", Base: "Root Part", Type: "ext4", Label: "mkfs_Root Part"},
				},
				Mounts: []blockdevice.Mount{
					{Name: "mount_mkfs_Root Part", FileSystem: "mkfs_Root Part", Point: "/", Fstab: &blockdevice.Fstab{Options: "defaults", Passno: 2}},
					{Name: "mount_mkfs_ESP", FileSystem: "mkfs_ESP", Point: "/boot/efi", Fstab: &blockdevice.Fstab{Options: "defaults", Passno: 2}},
				},
			},
			"LABEL=mkfs_Root\\040Part / ext4 defaults 0 2\nLABEL=MKFS_ESP /boot/efi vfat defaults 0 2\n",
		},
		"mbr": {
			mbr,
			blockdevice.Params{RootType: "xfs"},
			blockdevice.Plan{
				Disks: []blockdevice.Disk{{Name: "image0", Size: 2 << 30, BlockSize: 512, Label: partition.MBR, Align: 4 << 20, Partitions: []blockdevice.Partition{
					{Name: "boot", Number: 1, Size: size(t, "8MiB"), MBRType: 0x41, Boot: true},
					{Name: "root", Number: 2, Size: size(t, "54%"), MBRType: 0x83},
					{Name: "swap", Number: 5, Size: size(t, "1%"), MBRType: 0x82, Logical: true},
					{Name: "var log", Number: 6, Size: size(t, "100%"), MBRType: 0x83, Logical: true},
				}}},
				FileSystems: []blockdevice.FileSystem{
					{Name: "mkfs_swap", Base: "swap", Type: "swap", Label: "mkfs_swap", UUID: "11111111-2222-3333-4444-555555555555"},
					{Name: "mkfs_var log", Base: "var log", Type: "xfs", Label: "log", Opts: []string{"-i", "size=512", "-q"}},
					{Name: "mkfs_root", Base: "root", Type: "xfs", Label: "img-rootfs"},
				},
				Mounts: []blockdevice.Mount{
					{Name: "mnt", FileSystem: "mkfs_root", Point: "/", Fstab: &blockdevice.Fstab{Options: "rw,relatime", DumpFreq: 1, Passno: 1}},
					{Name: "m", FileSystem: "mkfs_var log", Point: "/var/log"},
					{Name: "mount_mkfs_swap", FileSystem: "mkfs_swap", Point: "none", Fstab: &blockdevice.Fstab{Options: "x", Passno: 7}},
				},
				Ignored: []string{"local_loop image0: directory", "mkfs mkfs_var log: nonsense", "mount m: unknown"},
			},
			"LABEL=img-rootfs / xfs rw,relatime 1 1\nLABEL=mkfs_swap none swap sw 0 0\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := blockdevice.Parse([]byte(tc.text), tc.params)
			must(t, err)
			if diff := cmp.Diff(&tc.want, got, cmp.Transformer("empty", func(s []string) string { return strings.Join(s, "\x00") })); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.fstab, got.Fstab()); diff != "" {
				t.Errorf("fstab (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSeveralDisks: the image comes first, wherever it stands, and file systems know their places.
func TestSeveralDisks(t *testing.T) {
	plan, err := blockdevice.Parse([]byte(`
- local_loop: {name: data, partitioning: {label: gpt, partitions: [{name: one, size: 1MiB}, {name: two, size: 1MiB}]}}
- local_loop: {name: image0}
- local_loop: {name: last}
- mkfs: {base: image0, name: mkfs_root, mount: {mount_point: /}}
`), blockdevice.Params{})
	must(t, err)
	var names []string
	for _, d := range plan.Disks {
		names = append(names, d.Name)
	}
	if diff := cmp.Diff([]string{"image0", "data", "last"}, names); diff != "" {
		t.Errorf("disks (-want +got):\n%s", diff)
	}
	for base, want := range map[string][2]int{"image0": {0, -1}, "one": {1, 0}, "two": {1, 1}, "last": {2, -1}} {
		if disk, part := plan.Place(base); disk != want[0] || part != want[1] {
			t.Errorf("%s is on disk %d, partition %d, want %v", base, disk, part, want)
		}
	}
}

// theirGraph lets diskimage-builder flatten a configuration.
const theirGraph = `
import json, sys, yaml
from diskimage_builder.block_device import config
config.is_a_plugin = lambda name: name in ('local_loop', 'partitioning', 'mkfs', 'mount', 'fstab')
print(json.dumps(config.config_tree_to_graph(yaml.safe_load(sys.stdin))))
`

// TestFlatLikeDiskimageBuilder parses what diskimage-builder makes of the tree form, and expects the same plan.
func TestFlatLikeDiskimageBuilder(t *testing.T) {
	texts := map[string]string{"efi": efi, "mbr": mbr, "fallback": blockdevice.Fallback}
	paths, err := filepath.Glob("/usr/lib/python3/dist-packages/diskimage_builder/elements/block-device-*/*.yaml")
	must(t, err)
	for _, path := range paths {
		if strings.Contains(path, "lvm") {
			continue
		}
		text, err := os.ReadFile(path)
		must(t, err)
		texts[path] = string(text)
	}
	if len(texts) < 6 {
		t.Fatalf("only %d configurations: install python3-diskimage-builder", len(texts))
	}
	for name, text := range texts {
		cmd := exec.Command("/usr/bin/python3", "-c", theirGraph)
		cmd.Stdin, cmd.Stderr = strings.NewReader(text), os.Stderr
		flat, err := cmd.Output()
		must(t, err)
		fromTree, err := blockdevice.Parse([]byte(text), blockdevice.Params{RootType: "ext4"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		fromFlat, err := blockdevice.Parse(flat, blockdevice.Params{RootType: "ext4"})
		must(t, err)
		if diff := cmp.Diff(fromFlat, fromTree); diff != "" {
			t.Errorf("%s (-diskimage-builder's graph +ours):\n%s", name, diff)
		}
		if fs, ok := fromTree.At("/"); !ok || fs.Type == "" || fs.Label == "" {
			t.Errorf("%s: root file system is %+v", name, fs)
		}
	}
}

func TestBadConfigurations(t *testing.T) {
	replace := func(old, text string) string {
		if !strings.Contains(mbr, old) {
			t.Fatalf("no %q", old)
		}
		return strings.Replace(mbr, old, text, 1)
	}
	for name, tc := range map[string]struct {
		text, want  string
		unsupported bool
	}{
		"nothing":          {"", "block device configuration: is empty", false},
		"no YAML":          {"{", "did not find expected node content", false},
		"no list":          {"local_loop: {name: a}", "line 1: is not a list", false},
		"entry a word":     {"- x", "line 1: config entry not a dict", false},
		"two keys":         {"- {local_loop: {name: a}, mkfs: {}}", "should be a single dict: it has 2 keys", false},
		"no plugin":        {"- raid: {}", "line 1: raid: config entry is not a plugin value", false},
		"no name":          {"- local_loop: {}", "line 1: local_loop: name: is missing", false},
		"values a list":    {"- local_loop: [a]", "local_loop: not a map", false},
		"key twice":        {"- local_loop: {name: a, name: b}", "key name is there twice", false},
		"merge":            {"- local_loop: {<<: {name: a}}", "no plain word", true},
		"lvm":              {replace("- mount: {name: mnt", "- lvm: {name: v, base: [root]}\n- mount: {name: mnt"), "line 27: lvm v: not supported yet", true},
		"luks":             {replace("- mount: {name: mnt", "- luks: {name: v, base: root}\n- mount: {name: mnt"), "line 27: luks v: not supported yet", true},
		"name twice":       {replace("name: swap", "name: root"), "partition root: name: duplicate node name: root", false},
		"no base":          {replace("base: mkfs_root", "base: nowhere"), "mount mnt: base: edge not defined: nowhere->mnt", false},
		"base is missing":  {replace("name: mnt, base: mkfs_root", "name: mnt"), "mount mnt: base: is missing", false},
		"base of a kind":   {replace("base: mkfs_root", "base: root"), "mount mnt: base: root is a partition, not a mkfs", false},
		"two on one":       {replace("    name: mkfs_root\n    base: root", "    name: other\n    type: ext4\n    base: var log"), "mkfs other: base: var log has mkfs mkfs_var log on it already", false},
		"two tables":       {mbr + "- partitioning: {name: again, base: image0, label: gpt, partitions: []}", "partitioning again: base: image0 has partitioning table on it already", false},
		"fs on the disk":   {replace("    base: root\n", "    base: image0\n"), "mkfs mkfs_root: base: image0 has partitioning table on it already", false},
		"label":            {replace("label: mbr", "label: apple"), "line 6: partitioning table: label: label must be 'mbr' or 'gpt'", false},
		"no label":         {replace("    label: mbr\n", ""), "partitioning config needs 'label'", false},
		"no partitions":    {"- local_loop: {name: a}\n- partitioning: {base: a, label: mbr}", "partitioning_a: partitions: partitioning config needs 'partitions'", false},
		"partitions a map": {"- local_loop: {name: a}\n- partitioning: {base: a, label: mbr, partitions: {}}", "partitions: is not a list", false},
		"align":            {replace("4MiB", "4%"), `line 7: partitioning table: align: size "4%" is relative`, false},
		"size":             {replace("54%", "54 apples"), `line 10: partition root: size: size "54 apples": unit "apples" is not known`, false},
		"no size":          {replace(", size: 54%", ""), "partition root: size: is missing", false},
		"disk's name":      {"- local_loop: {name: ../x}", `local_loop ../x: name: "../x" is not of letters`, false},
		"no image":         {"- local_loop: {name: a}\n- local_loop: {name: b}", "local_loop: name: none of 2 disks is called image0", false},
		"loop size":        {replace("2 GiB", "big"), "line 2: local_loop image0: size: ", false},
		"block size":       {replace("block_size: 512", "block_size: 520"), "local_loop image0: block_size: 520 is neither", true},
		"type":             {replace("0x41", "EF02"), `partition boot: type: partition type "EF02" is no hexadecimal number`, false},
		"GPT type":         {replace("label: mbr", "label: gpt"), "primary flag not supported for GPT", false},
		"flag":             {replace("[boot, primary]", "[hidden]"), "partition boot: flags: unknown flag: hidden", false},
		"flags a word":     {replace("[boot, primary]", "boot"), "partition boot: flags: is not a list", false},
		"primary late":     {replace("name: swap\n", "name: swap\n      - {name: late, size: 1MiB, flags: [primary]}\n"), "", false},
		"no fs type":       {replace("          type: xfs\n", ""), "mkfs mkfs_var log: type: mkfs config needs [type]", false},
		"label twice":      {replace("label: log", "label: mkfs_swap"), "file system label [mkfs_swap] used more than once", false},
		"long label":       {replace("label: log", "label: thirteen-long"), "Label [thirteen-long] too long for filesystem [xfs]: 13 > 12", false},
		"odd label":        {replace("label: log", `label: "a\tb"`), "has characters that fstab cannot hold", false},
		"point":            {replace("mount_point: /var/log", "mount_point: var"), `"var" is no absolute path`, false},
		"point with dots":  {replace("mount_point: /var/log", "mount_point: /var/../etc"), "is no absolute path", false},
		"no point":         {replace(", mount_point: /var/log", ""), "mount m: mount_point: mount needs [mount_point]", false},
		"point twice":      {replace("mount_point: /var/log", "mount_point: /"), "mount point [/] specified more than once", false},
		"no root":          {replace("mount_point: /}", "mount_point: /mnt}"), "mount: mount_point: no file system is mounted at /", false},
		"passno":           {replace("fsck-passno: 1", "fsck-passno: first"), `fstab f: fsck-passno: "first" is no whole number`, false},
		"options":          {replace("rw,relatime", "rw, relatime"), "fstab f: options: ", false},
		"options a list":   {replace(`"rw,relatime"`, "[rw]"), "options: is not a single value", false},
		"deep":             {"- local_loop: " + strings.Repeat("{name: a, mkfs: ", 200) + strings.Repeat("}", 200), "nested too deep", true},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "primary late" {
				tc.text = "- local_loop: {name: a}\n- partitioning: {base: a, label: mbr, partitions: [{name: l, size: 1MiB}, {name: p, size: 1MiB, flags: [primary]}]}"
				tc.want = "partition p: flags: all primary partitions must be given first"
			}
			_, err := blockdevice.Parse([]byte(tc.text), blockdevice.Params{RootType: "ext4"})
			var ce *blockdevice.ConfigError
			if !errors.As(err, &ce) || !strings.Contains(err.Error(), tc.want) || errors.Is(err, blockdevice.ErrUnsupported) != tc.unsupported {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}

// TestAliases: a small text with very many values in it ends with an error, and soon.
func TestAliases(t *testing.T) {
	text := "- local_loop: &a {name: a}\n"
	for i := range 12 {
		this, last := string(rune('b'+i)), string(rune('a'+i))
		entry := "{name: p, partitioning: *" + last + "},"
		text += fmt.Sprintf("- partitioning: &%s {name: p, partitions: [%s]}\n", this, strings.TrimSuffix(strings.Repeat(entry, 9), ","))
	}
	for text, want := range map[string]string{
		text:                                   "has more than 10000 values",
		"- local_loop: &a {name: a, mkfs: *a}": "nested too deep",
		"- &a [*a]":                            "config entry not a dict",
	} {
		_, err := blockdevice.Parse([]byte(text), blockdevice.Params{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v for %.80s, want %q", err, text, want)
		}
	}
}

// FuzzParse: any text is a plan or an error, and a plan can be laid out or not, but not crash.
func FuzzParse(f *testing.F) {
	for _, text := range []string{efi, mbr, blockdevice.Fallback, "- lvm: {name: a}", "- &a [*a]"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		plan, err := blockdevice.Parse([]byte(text), blockdevice.Params{})
		if err != nil {
			return
		}
		if _, ok := plan.At("/"); !ok {
			t.Error("no root file system")
		}
		for line := range strings.Lines(plan.Fstab()) {
			if n := len(strings.Fields(line)); n != 6 {
				t.Errorf("%d fields in %q", n, line)
			}
		}
		for _, d := range plan.Disks {
			table := partition.Table{Label: d.Label, Sectors: 1 << 24, SectorSize: d.BlockSize}
			if d.Label == 0 {
				continue
			}
			table, err := table.Layout(d.Align, d.Wishes())
			if err != nil {
				continue
			}
			for _, p := range d.Partitions {
				if table.Partitions[p.Number-1].Sectors == 0 {
					t.Errorf("partition %s is not number %d", p.Name, p.Number)
				}
			}
		}
	})
}

func ExampleParse() {
	plan, err := blockdevice.Parse([]byte(`
- local_loop:
    name: image0
- partitioning:
    base: image0
    label: gpt
    partitions:
      - name: BSP
        type: EF02
        size: 8MiB
      - name: root
        size: 100%
        mkfs:
          type: ext4
          mount:
            mount_point: /
            fstab:
              fsck-passno: 1
`), blockdevice.Params{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, p := range plan.Disks[0].Partitions {
		fmt.Println(p.Number, p.Name, partition.TypeName(p.Type))
	}
	fmt.Print(plan.Fstab())
	// Output:
	// 1 BSP bios-boot
	// 2 root linux-generic
	// LABEL=cloudimg-rootfs / ext4 defaults 0 1
}
