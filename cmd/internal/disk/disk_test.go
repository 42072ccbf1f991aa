package disk_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/cmd/internal/disk"
	"cairn/elements/blockdevice"
	"cairn/elements/builtin"
	"cairn/fsbuild"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
	"cairn/reproducibility"
	"cairn/tests/require"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sample has something below each mount point, and a file of two names in two
// file systems.
func sample(t *testing.T) *tree.Tree {
	t.Helper()
	tr := tree.New()
	hello := tree.Node{Type: tree.Regular, Mode: 0o644, Size: 6, Content: tree.Bytes([]byte("hello\n")), Inode: 7, MTime: tree.Time{Sec: 1_600_000_000}}
	for _, p := range []string{"boot", "boot/efi", "boot/efi/EFI", "etc", "var", "var/lib"} {
		must(t, tr.Add(tree.Node{Path: p, Type: tree.Directory, Mode: 0o755}))
	}
	for _, p := range []string{"boot/efi/EFI/start.efi", "boot/vmlinuz", "etc/hello", "var/lib/state"} {
		n := hello
		n.Path = p
		must(t, tr.Add(n))
	}
	return tr
}

func parse(t *testing.T, config string) *blockdevice.Plan {
	t.Helper()
	plan, err := blockdevice.Parse([]byte(config), blockdevice.Params{})
	must(t, err)
	return plan
}

func params() disk.Params {
	return disk.Params{Seed: reproducibility.NewSeed([]byte("disk")), Time: time.Unix(1_700_000_000, 0)}
}

// write builds the disk as a raw file.
func write(t *testing.T, plan *blockdevice.Plan, p disk.Params) (string, fsbuild.Result) {
	t.Helper()
	images, err := disk.Images(plan, sample(t), p)
	must(t, err)
	name, result := writeImage(t, images[0])
	return name, result
}

func writeImage(t *testing.T, img fsbuild.Image) (string, fsbuild.Result) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	must(t, err)
	defer f.Close()
	results, err := fsbuild.Build(t.Context(), img, []fsbuild.Output{{Format: fsbuild.FormatRaw, File: f}}, nil)
	must(t, err)
	return f.Name(), results[0]
}

// open returns a partition of a disk, by its number.
func open(t *testing.T, name string, number int) *io.SectionReader {
	t.Helper()
	f, err := os.Open(name)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	must(t, err)
	table, err := partition.Read(f, st.Size())
	must(t, err)
	p, sector := table.Partitions[number-1], int64(table.SectorSize)
	return io.NewSectionReader(f, int64(p.Start)*sector, int64(p.Sectors)*sector)
}

func extract(t *testing.T, r *io.SectionReader) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "partition")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	_, err = io.Copy(f, r)
	must(t, err)
	return path
}

func tool(t *testing.T, pkg, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(require.Tool(t, name, pkg), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

const everything = `
- local_loop: {name: image0}
- partitioning:
    base: image0
    label: gpt
    partitions:
      - {name: ESP, type: EF00, size: 40MiB, mkfs: {type: vfat, mount: {mount_point: /boot/efi, fstab: {options: defaults, fsck-passno: 2}}}}
      - {name: swap, type: 8200, size: 16MiB, mkfs: {type: swap, label: paging, mount: {mount_point: swap, fstab: {}}}}
      - {name: boot, size: 32MiB, mkfs: {type: ext2, label: bootfs, opts: -b 1024 -m 0, mount: {mount_point: /boot}}}
      - {name: root, size: 60%, mkfs: {mount: {mount_point: /}}}
      - {name: var, size: 100%, mkfs: {type: ext3, label: varfs, uuid: 01234567-89ab-cdef-0123-456789abcdef, mount: {mount_point: /var}}}
`

// TestEverything lays a tree out on all kinds of file system, and others read
// what is in which.
func TestEverything(t *testing.T) {
	plan := parse(t, everything)
	for name, size := range map[string]int64{"minimal": 0, "given": 512 << 20} {
		t.Run(name, func(t *testing.T) {
			p := params()
			p.Size = size
			path, result := write(t, plan, p)
			if size > 0 && result.VirtualSize != size {
				t.Errorf("disk of %d bytes", result.VirtualSize)
			}
			if out := tool(t, "gdisk", "sgdisk", "--verify", path); !strings.Contains(out, "No problems found") {
				t.Errorf("sgdisk: %s", out)
			}
			esp := extract(t, open(t, path, 1))
			tool(t, "dosfstools", "fsck.vfat", "-n", esp)
			if out := tool(t, "mtools", "mdir", "-b", "-i", esp, "-/", "::/"); !strings.Contains(out, "start.efi") {
				t.Errorf("mdir: %s", out)
			}
			for number, want := range map[int]string{3: "vmlinuz", 4: "hello", 5: "lib"} {
				r := open(t, path, number)
				file := extract(t, r)
				tool(t, "e2fsprogs", "e2fsck", "-fn", file)
				dir := map[int]string{3: "/", 4: "/etc", 5: "/"}[number]
				if out := tool(t, "e2fsprogs", "debugfs", "-R", "ls -p "+dir, file); !strings.Contains(out, "/"+want+"/") {
					t.Errorf("partition %d has no %s in %s:\n%s", number, want, dir, out)
				}
			}
			blkid := tool(t, "util-linux", "blkid", "-p", "-o", "export", extract(t, open(t, path, 2)))
			for _, want := range []string{"LABEL=paging", "TYPE=swap"} {
				if !strings.Contains(blkid, want) {
					t.Errorf("the swap area lacks %s: %s", want, blkid)
				}
			}
			checkVolumes(t, plan, path)
		})
	}
	want := "LABEL=MKFS_ESP /boot/efi vfat defaults 0 2\nLABEL=paging none swap sw 0 0\n"
	if got := plan.Fstab(); got != want {
		t.Errorf("fstab is\n%swant\n%s", got, want)
	}
}

// checkVolumes compares what hooks are told with what blkid finds.
func checkVolumes(t *testing.T, plan *blockdevice.Plan, path string) {
	t.Helper()
	volumes := disk.Volumes(plan, params().Seed)
	if len(volumes) != 4 {
		t.Errorf("%d volumes: %+v", len(volumes), volumes)
	}
	for _, v := range volumes {
		out := tool(t, "util-linux", "blkid", "-p", "-o", "export", extract(t, open(t, path, v.Partition)))
		for _, want := range []string{"\nUUID=" + v.UUID + "\n", "TYPE=" + v.Type + "\n", "LABEL=" + v.Label + "\n"} {
			if !strings.Contains("\n"+out, want) {
				t.Errorf("%s: blkid lacks %q:\n%s", v.Point, want, out)
			}
		}
		if out := tool(t, "fdisk", "sfdisk", "--part-uuid", path, string(rune('0'+v.Partition))); !strings.EqualFold(strings.TrimSpace(out), v.PartUUID) {
			t.Errorf("%s: the partition is %s, hooks are told %s", v.Point, out, v.PartUUID)
		}
	}
}

// TestMountPointsStay: what is mounted over is an empty directory, and a point
// that is not in the tree is made.
func TestMountPointsStay(t *testing.T) {
	plan := parse(t, strings.NewReplacer("/var}", "/srv/data}").Replace(everything))
	path, _ := write(t, plan, params())
	r := open(t, path, 4)
	fs, err := ext4.Open(r, r.Size())
	must(t, err)
	root, err := fs.Tree(t.Context())
	must(t, err)
	for _, p := range []string{"boot", "srv/data"} {
		n := root.Lookup(p)
		if n == nil || n.Type != tree.Directory {
			t.Errorf("/%s is not a directory of the root file system", p)
		}
		for child := range root.Children(p) {
			t.Errorf("%s is in the root file system", child.Path)
		}
	}
	if n := root.Lookup("etc/hello"); n == nil || n.Inode != 0 && root.Lookup("var/lib/state") == nil {
		t.Error("files are missing")
	}
	esp := open(t, path, 1)
	fat, err := vfat.Open(esp, esp.Size())
	must(t, err)
	n := fat.Tree.Lookup("EFI/start.efi")
	f, err := n.Content.Open()
	must(t, err)
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || !bytes.Equal(b, []byte("hello\n")) {
		t.Errorf("start.efi has %q (%v)", b, err)
	}
}

// TestLogical: more than four partitions of an MBR, one of them the root.
func TestLogical(t *testing.T) {
	plan := parse(t, `
- local_loop: {name: image0, size: 300MiB}
- partitioning:
    base: image0
    label: mbr
    partitions:
      - {name: boot, flags: [boot, primary], size: 32MiB, mkfs: {type: ext4, mount: {mount_point: /boot}}}
      - {name: data, size: 50MiB, mkfs: {type: ext4}}
      - {name: root, size: 100%, mkfs: {type: ext4, mount: {mount_point: /}}}
`)
	path, result := write(t, plan, params())
	tool(t, "fdisk", "sfdisk", "--verify", path)
	dump := tool(t, "fdisk", "sfdisk", "--dump", path)
	if strings.Count(dump, "start=") != 4 || !strings.Contains(dump, "path.raw6") && !strings.Contains(dump, "disk.raw6") {
		t.Errorf("sfdisk --dump: %s", dump)
	}
	for _, number := range []int{1, 5, 6} {
		tool(t, "e2fsprogs", "e2fsck", "-fn", extract(t, open(t, path, number)))
	}
	if got := result.FileSystem.Size; got != open(t, path, 6).Size()/4096*4096 {
		t.Errorf("the root has %d bytes in a partition of %d", got, open(t, path, 6).Size())
	}
	if v := disk.Volumes(plan, params().Seed); v[0].Point != "/" || v[0].Partition != 6 {
		t.Errorf("volumes %+v", v)
	}
}

// TestNoChange: options that ask for what is there anyway.
func TestNoChange(t *testing.T) {
	for _, config := range []string{
		"ext4, opts: '-F -q -j -O extent,64bit,has_journal,^resize_inode,dir_index'", "ext3, opts: '-O ^extent,has_journal,filetype'", "ext2, opts: '-O ^64bit,^metadata_csum'",
	} {
		text := strings.Replace("- local_loop: {name: image0}\n- mkfs: {base: image0, name: root_fs, type: TYPE, mount: {mount_point: /}}\n", "TYPE", config, 1)
		plain := strings.Replace(text, config, config[:4], 1)
		got, err := disk.Images(parse(t, text), sample(t), params())
		must(t, err)
		want, err := disk.Images(parse(t, plain), sample(t), params())
		must(t, err)
		if got[0].FS != want[0].FS {
			t.Errorf("%s: %+v, want %+v", config, got[0].FS, want[0].FS)
		}
	}
}

func TestRefuses(t *testing.T) {
	bare := "- local_loop: {name: image0}\n- mkfs: {base: image0, name: root_fs, type: ext4, mount: {mount_point: /}}\n"
	for name, tc := range map[string]struct{ config, want string }{
		"empty disk":     {bare + "- local_loop: {name: other}\n", "local_loop other: size: is missing"},
		"xfs":            {strings.Replace(bare, "ext4", "xfs", 1), "mkfs root_fs: type: xfs"},
		"vfat as root":   {strings.Replace(bare, "ext4", "vfat", 1), "mkfs root_fs: type: vfat"},
		"uuid":           {strings.Replace(bare, "ext4", "ext4, uuid: no", 1), "mkfs root_fs: uuid: read GUID"},
		"option":         {strings.Replace(bare, "ext4", "ext4, opts: -b 4096 -Z", 1), "opts: option -Z: is not known"},
		"option's value": {strings.Replace(bare, "ext4", "ext4, opts: -b many", 1), "opts: option -b:"},
		"no option":      {strings.Replace(bare, "ext4", "ext4, opts: many", 1), `opts: "many" is no option`},
		"feature":        {strings.Replace(bare, "ext4", "ext4, opts: '-O extent,bigalloc'", 1), `feature "bigalloc" cannot`},
		"ext4's feature": {strings.Replace(bare, "ext4", "ext3, opts: '-O extent'", 1), `feature "extent" cannot be chosen for ext3`},
		"not without":    {strings.Replace(bare, "ext4", "ext4, opts: '-O ^64bit'", 1), `feature "^64bit" cannot`},
		"ext2's journal": {strings.Replace(bare, "ext4", "ext2, opts: -j", 1), "option -j: feature"},
		"journal":        {strings.Replace(bare, "ext4", "ext4, opts: -J device=x", 1), "option -J: journal"},
		"swap options":   {strings.Replace(everything, "type: swap", "type: swap, opts: -p", 1), "swap has no options"},
		"FAT option":     {strings.Replace(everything, "type: vfat", "type: vfat, opts: -F x", 1), "option -F:"},
	} {
		_, err := disk.Images(parse(t, tc.config), sample(t), params())
		var config *blockdevice.ConfigError
		if err == nil || !strings.Contains(err.Error(), tc.want) || !errors.As(err, &config) {
			t.Errorf("%s: error %v, want %q", name, err, tc.want)
		}
	}
}

// TestBuildRefuses: errors that only the sizes show name the file system.
func TestBuildRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		config string
		size   int64
		want   []string
	}{
		"ESP too small":  {strings.Replace(everything, "40MiB", "1MiB", 1) + "\n", 0, nil},
		"boot too small": {strings.NewReplacer("32MiB", "1MiB", "-b 1024", "-b 4096 -N 100000").Replace(everything), 0, []string{"mkfs_boot", "bytes"}},
		"disk too small": {everything, 64 << 20, []string{"partition 3 needs"}},
		"nothing left":   {strings.Replace(everything, "60%", "100%", 1), 0, []string{"no disk is large enough", "partition 5 needs"}},
		"swap too small": {strings.Replace(everything, "16MiB", "8KiB", 1), 0, []string{"partition 2"}},
	} {
		p := params()
		p.Size = tc.size
		images, err := disk.Images(parse(t, tc.config), sample(t), p)
		must(t, err)
		f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
		must(t, err)
		_, err = fsbuild.Build(t.Context(), images[0], []fsbuild.Output{{Format: fsbuild.FormatRaw, File: f}}, nil)
		f.Close()
		if (err == nil) != (tc.want == nil) {
			t.Errorf("%s: error %v", name, err)
		}
		for _, want := range tc.want {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v, want %q", name, err, want)
			}
		}
	}
}

// TestBootDisk: from which disk a BIOS boots.
func TestBootDisk(t *testing.T) {
	for element, want := range map[string]int{
		"block-device-mbr": 0, "block-device-gpt": 0, "block-device-efi": 0, "block-device-efi-4k": -1,
	} {
		text, err := fs.ReadFile(builtin.FS(), element+"/block-device-default.yaml")
		must(t, err)
		if got := disk.BootDisk(parse(t, string(text))); got != want {
			t.Errorf("%s: %d", element, got)
		}
	}
	if got := disk.BootDisk(parse(t, blockdevice.Fallback)); got != -1 {
		t.Errorf("a disk without a table has no place for GRUB: %d", got)
	}
	const root = ", mkfs: {type: ext4, mount: {mount_point: /}}"
	for name, tc := range map[string]struct {
		image, other string
		want         int
	}{
		"root":          {"{label: mbr, partitions: [{name: a, size: 1MiB}]}", "{label: mbr, partitions: [{name: b, size: 100%" + root + "}]}", 1},
		"boot flag":     {"{label: mbr, partitions: [{name: a, size: 1MiB, flags: [boot]}]}", "{label: mbr, partitions: [{name: b, size: 100%" + root + "}]}", 0},
		"BIOS boot":     {"{label: gpt, partitions: [{name: a, size: 1MiB, type: EF02}]}", "{label: mbr, partitions: [{name: b, size: 100%" + root + "}]}", 0},
		"root has none": {"{label: mbr, partitions: [{name: a, size: 1MiB}]}", "{label: gpt, partitions: [{name: b, size: 100%" + root + "}]}", -1},
		"/boot":         {"{label: mbr, partitions: [{name: a, size: 1MiB, mkfs: {type: ext2, mount: {mount_point: /boot}}}]}", "{label: gpt, partitions: [{name: b, size: 100%" + root + "}]}", 0},
		"flag in a GPT": {"{label: gpt, partitions: [{name: a, size: 1MiB, flags: [boot]}]}", "{label: mbr, partitions: [{name: b, size: 100%" + root + "}]}", 1},
		"no place":      {"{label: gpt, partitions: [{name: a, size: 1MiB}]}", "{label: gpt, partitions: [{name: b, size: 100%" + root + "}]}", -1},
		"large sectors": {"{label: mbr, partitions: [{name: a, size: 1MiB}]}}\n- local_loop: {name: big, block_size: 4096, partitioning: {label: mbr, partitions: [{name: c, size: 1MiB, flags: [boot]}]}", "{label: mbr, partitions: [{name: b, size: 100%" + root + "}]}", 2},
	} {
		text := "- local_loop: {name: image0, partitioning: " + tc.image + "}\n- local_loop: {name: other, partitioning: " + tc.other + "}\n"
		if got := disk.BootDisk(parse(t, text)); got != tc.want {
			t.Errorf("%s: disk %d, want %d", name, got, tc.want)
		}
	}
}

// several is a configuration of four disks, the image among them.
const several = `
- local_loop: {name: data, partitioning: {label: gpt, partitions: [
    {name: paging, type: 8200, size: 4MiB, mkfs: {type: swap, label: paging, mount: {mount_point: swap, fstab: {}}}},
    {name: var, size: 100%, mkfs: {type: ext4, label: varfs, mount: {mount_point: /var, fstab: {}}}}]}}
- local_loop: {name: image0, partitioning: {label: mbr, partitions: [
    {name: boot, size: 32MiB, flags: [boot, primary], mkfs: {type: ext2, label: bootfs, mount: {mount_point: /boot, fstab: {}}}},
    {name: root, size: 100%, flags: [primary], mkfs: {type: ext4, label: rootfs, mount: {mount_point: /, fstab: {fsck-passno: 1}}}}]}}
- local_loop: {name: esp, size: 40MiB, mkfs: {type: vfat, mount: {mount_point: /boot/efi}}}
- local_loop: {name: scratch, size: 3MiB}
`

// TestSeveralDisks: each disk has its part of the tree and identifiers of its
// own, as hooks were told.
func TestSeveralDisks(t *testing.T) {
	plan := parse(t, several)
	images, err := disk.Images(plan, sample(t), params())
	must(t, err)
	var paths []string
	for i, img := range images {
		path, result := writeImage(t, img)
		paths = append(paths, path)
		if (result.FileSystem.Size > 0) != (i == 0) {
			t.Errorf("disk %d has a root of %d bytes", i, result.FileSystem.Size)
		}
	}
	tool(t, "fdisk", "sfdisk", "--verify", paths[0])
	tool(t, "gdisk", "sgdisk", "--verify", paths[1])
	ids := map[string]bool{}
	for _, v := range disk.Volumes(plan, params().Seed) {
		i := map[string]int{"image0": 0, "data": 1, "esp": 2}[v.Disk]
		file := paths[i]
		if v.Partition > 0 {
			file = extract(t, open(t, paths[i], v.Partition))
			args := []string{"--part-uuid", paths[i], strconv.Itoa(v.Partition)}
			want := v.PartUUID
			if i == 0 { // an MBR's have none of their own
				args = []string{"--disk-id", paths[i]}
				want = fmt.Sprintf("0x%s", strings.TrimSuffix(want, fmt.Sprintf("-%02x", v.Partition)))
			}
			if out := tool(t, "fdisk", "sfdisk", args...); !strings.EqualFold(strings.TrimSpace(out), want) {
				t.Errorf("%s: the partition is %s, hooks are told %s", v.Point, out, want)
			}
		}
		out := tool(t, "util-linux", "blkid", "-p", "-o", "export", file)
		if !strings.Contains("\n"+out, "\nUUID="+v.UUID+"\n") {
			t.Errorf("%s: blkid lacks %s:\n%s", v.Point, v.UUID, out)
		}
		if ids[v.UUID] {
			t.Errorf("%s has the UUID of another", v.Point)
		}
		ids[v.UUID] = true
		if v.Type == "vfat" {
			tool(t, "dosfstools", "fsck.vfat", "-n", file)
		} else {
			tool(t, "e2fsprogs", "e2fsck", "-fn", file)
		}
	}
	for _, tc := range []struct {
		disk, partition int
		dir, want       string
	}{{0, 1, "/", "vmlinuz"}, {0, 2, "/etc", "hello"}, {1, 2, "/lib", "state"}} {
		file := extract(t, open(t, paths[tc.disk], tc.partition))
		if out := tool(t, "e2fsprogs", "debugfs", "-R", "ls -p "+tc.dir, file); !strings.Contains(out, "/"+tc.want+"/") {
			t.Errorf("%s has no %s:\n%s", tc.dir, tc.want, out)
		}
	}
	if out := tool(t, "mtools", "mdir", "-b", "-i", paths[2], "-/", "::/"); !strings.Contains(out, "start.efi") {
		t.Errorf("mdir: %s", out)
	}
	if b, err := os.ReadFile(paths[3]); err != nil || len(b) != 3<<20 || len(bytes.Trim(b, "\x00")) > 0 {
		t.Errorf("the empty disk has %d bytes (%v)", len(b), err)
	}
	if images[0].DiskSignature == 0 || images[1].DiskGUID == (partition.GUID{}) {
		t.Error("a disk has no identifier")
	}
	want := "LABEL=rootfs / ext4 defaults 0 1\nLABEL=bootfs /boot ext2 defaults 0 2\nLABEL=varfs /var ext4 defaults 0 2\nLABEL=paging none swap sw 0 0\n"
	if got := plan.Fstab(); got != want {
		t.Errorf("fstab is\n%swant\n%s", got, want)
	}
}

// TestFindsGRUB in the directories that distributions give it.
func TestFindsGRUB(t *testing.T) {
	text, err := fs.ReadFile(builtin.FS(), "block-device-mbr/block-device-default.yaml")
	must(t, err)
	plan, p := parse(t, string(text)), params()
	p.GRUB = true
	for _, dir := range []string{"boot/grub", "boot/grub2"} {
		tr := sample(t)
		for _, name := range []string{dir, dir + "/i386-pc"} {
			must(t, tr.Add(tree.Node{Path: name, Type: tree.Directory, Mode: 0o755}))
		}
		must(t, tr.Add(tree.Node{Path: dir + "/i386-pc/boot.img", Type: tree.Regular, Size: 4, Content: tree.Bytes([]byte("boot"))}))
		if _, err := disk.Images(plan, tr, p); disk.HasGRUB(tr) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s without core.img: %v", dir, err)
		}
		must(t, tr.Add(tree.Node{Path: dir + "/i386-pc/core.img", Type: tree.Regular, Size: 4, Content: tree.Bytes([]byte("core"))}))
		images, err := disk.Images(plan, tr, p)
		must(t, err)
		if img := images[0]; !disk.HasGRUB(tr) || string(img.Boot)+string(img.Core) != "bootcore" {
			t.Errorf("%s: %q and %q", dir, img.Boot, img.Core)
		}
	}
}

// TestLargeSectors lays the disk of block-device-efi-4k out, which the writers'
// own reader finds on its sectors.
func TestLargeSectors(t *testing.T) {
	text, err := fs.ReadFile(builtin.FS(), "block-device-efi-4k/block-device-default.yaml")
	must(t, err)
	plan := parse(t, string(text))
	path, _ := write(t, plan, params())
	esp, root := open(t, path, 1), open(t, path, 3)
	tool(t, "dosfstools", "fsck.vfat", "-n", extract(t, esp))
	tool(t, "e2fsprogs", "e2fsck", "-fn", extract(t, root))
}
