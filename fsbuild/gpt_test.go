package fsbuild_test

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
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/fsbuild"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/grub"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/tree"
	"cairn/tests/require"
)

func entry(t testing.TB, kind, name string, n byte) partition.Partition {
	t.Helper()
	g, err := partition.ParseType(kind)
	must(t, err)
	return partition.Partition{TypeGUID: g, GUID: partition.GUID{0: 0xca, 15: n}, Name: name}
}

// espImage makes a small FAT with a file, 4 MiB.
func espImage(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "esp.img")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, 4<<20))
	run(t, "dosfstools", "mkfs.vfat", "-n", "ESP", "-i", "12345678", path)
	file := filepath.Join(t.TempDir(), "startup.nsh")
	must(t, os.WriteFile(file, []byte("echo cairn\n"), 0o600))
	run(t, "mtools", "mcopy", "-i", path, file, "::startup.nsh")
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

// gptImage has a BIOS boot partition, an ESP, and the root last.
func gptImage(t testing.TB) fsbuild.Image {
	boot, core := grubImages(t)
	esp := espImage(t)
	return fsbuild.Image{
		Tree: sample(t), FS: params(), Table: fsbuild.GPT, DiskGUID: partition.GUID{0: 0xca, 15: 0xff}, Boot: boot, Core: core,
		Partitions: []fsbuild.Partition{
			{Entry: entry(t, "bios-boot", "BSP", 1), Size: partition.Size{Bytes: 1 << 20}},
			{Entry: entry(t, "esp", "ESP", 2), Content: fsbuild.Reader(bytes.NewReader(esp), int64(len(esp)))},
			{Entry: entry(t, "root-x86-64", "root", 3), Root: true},
		},
	}
}

// copyOf returns img with partitions of its own.
func copyOf(img fsbuild.Image) fsbuild.Image {
	img.Partitions = slices.Clone(img.Partitions)
	return img
}

func TestBuildGPT(t *testing.T) {
	whole := gptImage(t)
	content := whole.Partitions[1].Content
	esp := writer(make([]byte, content.Size()))
	must(t, content.WriteTo(t.Context(), esp))
	for name, tc := range map[string]struct {
		edit        func(img *fsbuild.Image)
		bios, esp   int64 // MiB where they start; 0: not there
		root, after int64 // MiB where the root starts, and behind its end
	}{
		"BIOS and UEFI": {func(*fsbuild.Image) {}, 1, 2, 6, 1},
		"BIOS":          {func(img *fsbuild.Image) { img.Partitions = append(img.Partitions[:1], img.Partitions[2]) }, 1, 0, 2, 1},
		"UEFI": {func(img *fsbuild.Image) {
			img.Partitions, img.Boot, img.Core = img.Partitions[1:], nil, nil
		}, 0, 1, 5, 1},
		"given size": {func(img *fsbuild.Image) { img.DiskSize = 128<<20 + 512 }, 1, 2, 6, 1},
		"ESP of a given size, last": {func(img *fsbuild.Image) {
			img.Partitions = []fsbuild.Partition{img.Partitions[0], img.Partitions[2], {Entry: img.Partitions[1].Entry, Content: content, Size: partition.Size{Bytes: 33 << 20}}}
		}, 1, -1, 2, 34},
		"root of a given size": {func(img *fsbuild.Image) { img.Partitions[2].Size.Bytes, img.DiskSize = 64<<20, 100<<20 }, 1, 2, 6, 30},
	} {
		t.Run(name, func(t *testing.T) {
			img := copyOf(whole)
			tc.edit(&img)
			paths, results := build(t, img)
			disk, err := os.ReadFile(paths[0])
			must(t, err)
			size := results[0].FileSystem.Size
			judge(t, paths[0], len(img.Partitions))
			checkFileSystem(t, disk, tc.root<<20, size)
			if end := int64(len(disk))>>20 - tc.after; (tc.root<<20+size+1<<20-1)>>20 != end {
				t.Errorf("root of %d bytes at %d MiB on a disk of %d", size, tc.root, len(disk))
			}
			if tc.bios > 0 {
				e, err := grub.Embed(img.Boot, img.Core, uint64(tc.bios)*2048, uint64(tc.bios+1)*2048)
				must(t, err)
				if !bytes.Equal(disk[:440], e.BootCode) || !bytes.Equal(disk[tc.bios<<20:][:len(e.Core)], e.Core) {
					t.Error("boot loader is not where it belongs")
				}
			}
			at := tc.esp
			if at < 0 {
				at = int64(len(disk))>>20 - 34
			}
			if at > 0 && !bytes.Equal(disk[at<<20:][:len(esp)], esp) {
				t.Error("the ESP is not where it belongs")
			}
		})
	}
}

// judge lets others look at the table.
func judge(t *testing.T, path string, partitions int) {
	t.Helper()
	if out := run(t, "gdisk", "sgdisk", "-v", path); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v: %s", out)
	}
	if out := run(t, "fdisk", "sfdisk", "--verify", path); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk --verify: %s", out)
	}
	if out := run(t, "fdisk", "sfdisk", "-d", path); strings.Count(out, "start=") != partitions {
		t.Errorf("sfdisk -d: %s", out)
	}
}

func TestSectorsOf4096Bytes(t *testing.T) {
	img := gptImage(t)
	img.SectorSize, img.Boot, img.Core = 4096, nil, nil
	paths, results := build(t, img)
	f, err := os.Open(paths[0])
	must(t, err)
	defer f.Close()
	table, err := partition.Read(f, results[0].VirtualSize)
	must(t, err)
	if root := table.Partitions[2]; table.SectorSize != 4096 || table.Damage != nil || root.Start != 6*256 || int64(root.Sectors)*4096 < results[0].FileSystem.Size {
		t.Errorf("table is %+v", table)
	}
	disk, err := os.ReadFile(paths[0])
	must(t, err)
	checkFileSystem(t, disk, 6<<20, results[0].FileSystem.Size)
}

// TestMBRWithMorePartitions is what diskimage-builder makes for ppc64el, with
// swap behind it.
func TestMBRWithMorePartitions(t *testing.T) {
	paths, results := build(t, fsbuild.Image{
		Tree: sample(t), FS: params(), Table: fsbuild.MBR, DiskSignature: 0xdecafbad, DiskSize: 200 << 20,
		Partitions: []fsbuild.Partition{
			{Entry: partition.Partition{Type: 0x41, Active: true}, Size: partition.Size{Bytes: 8 << 20}},
			{Entry: partition.Partition{Type: 0x83}, Root: true},
			{Entry: partition.Partition{Type: 0x82}, Size: partition.Size{Bytes: 16 << 20}},
		},
	})
	out := strings.Join(strings.Fields(run(t, "fdisk", "sfdisk", "-d", paths[0])), " ")
	for _, want := range []string{
		"start= 2048, size= 16384, type=41, bootable", "start= 18432, size= 356352, type=83", "start= 374784, size= 32768, type=82",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("sfdisk -d lacks %q: %s", want, out)
		}
	}
	if size := results[0].FileSystem.Size; size != 174<<20 {
		t.Errorf("file system has %d bytes", size)
	}
}

// TestGPTBootsFromBIOS starts the disk in an emulated PC: SeaBIOS loads the boot
// sector, this core.img from its partition, and GRUB reads the root.
func TestGPTBootsFromBIOS(t *testing.T) {
	img := gptImage(t)
	const modules = "/usr/lib/grub/i386-pc"
	dir := t.TempDir()
	config, core := filepath.Join(dir, "early.cfg"), filepath.Join(dir, "core.img")
	must(t, os.WriteFile(config, []byte("serial\nterminal_output serial\nsearch.fs_label cloudimg-rootfs root\necho root is $root\ncat ($root)/etc/hostname\nhalt\n"), 0o600))
	run(t, "grub-common", "grub-mkimage", append([]string{"-O", "i386-pc", "-d", modules, "-p", "/boot/grub", "-c", config, "-o", core, "halt", "cat"}, grub.Modules()...)...)
	var err error
	img.Core, err = os.ReadFile(core)
	must(t, err)
	paths, _ := build(t, img)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, require.Tool(t, "qemu-system-x86_64", "qemu-system-x86"), "-accel", "tcg", "-m", "64", "-display", "none", "-net", "none",
		"-serial", "stdio", "-drive", "format=qcow2,if=virtio,file="+paths[1]).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("root is hd0,gpt3")) || !bytes.Contains(out, []byte("cairn")) {
		t.Errorf("GRUB said %q (%v)", out, err)
	}
}

// misbehaved writes where it was not asked to, or fails.
type misbehaved struct {
	size int64
	at   []int64
	err  error
}

func (m misbehaved) Size() int64 { return m.size }

func (m misbehaved) WriteTo(_ context.Context, w io.WriterAt) error {
	for _, at := range m.at {
		if _, err := w.WriteAt([]byte("x"), at); err != nil {
			return err
		}
	}
	return m.err
}

func TestBadContents(t *testing.T) {
	whole := gptImage(t)
	for name, tc := range map[string]struct {
		content fsbuild.Content
		want    string
	}{
		"beyond its end":    {misbehaved{4096, []int64{4096}, nil}, "partition 2: 1 bytes at offset 4096 leave the 4096"},
		"before its start":  {misbehaved{4096, []int64{-1}, nil}, "partition 2: 1 bytes at offset -1 leave"},
		"not ascending":     {misbehaved{4096, []int64{9, 8}, nil}, "partition 2: write disk: offset"},
		"an error":          {misbehaved{4096, nil, os.ErrPermission}, "partition 2: permission denied"},
		"shorter than said": {fsbuild.Reader(strings.NewReader("short"), 4096), "partition 2: read image at 5 of 4096 bytes: unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			img := copyOf(whole)
			img.Partitions[1].Content = tc.content
			_, err := buildRaw(t, img)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}

// buildRaw builds a raw image and returns its digest.
func buildRaw(t testing.TB, img fsbuild.Image) (string, error) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	defer f.Close()
	r, err := fsbuild.Build(t.Context(), img, []fsbuild.Output{{Format: fsbuild.FormatRaw, File: f}}, nil)
	if err != nil {
		return "", err
	}
	return r[0].SHA256, nil
}

// TestContentOfALayout puts a second ext4 beside the root; the same bytes come
// from a finished image of it.
func TestContentOfALayout(t *testing.T) {
	layout, err := ext4.Plan(sample(t), params())
	must(t, err)
	image := writer(make([]byte, layout.Size()))
	_, err = layout.Write(t.Context(), image)
	must(t, err)
	var sums []string
	img := gptImage(t)
	for _, c := range []fsbuild.Content{fsbuild.Layout(layout), fsbuild.Reader(bytes.NewReader(image), layout.Size())} {
		img.Partitions[1].Content = c
		sum, err := buildRaw(t, img)
		must(t, err)
		sums = append(sums, sum)
	}
	if sums[0] != sums[1] {
		t.Errorf("digests differ: %v", sums)
	}
}

type writer []byte

func (w writer) WriteAt(p []byte, off int64) (int, error) { return copy(w[off:], p), nil }

func TestGPTRefuses(t *testing.T) {
	whole := gptImage(t)
	for name, tc := range map[string]struct {
		edit func(img *fsbuild.Image)
		want string
		is   error
	}{
		"no partitions":     {func(img *fsbuild.Image) { img.Partitions = nil }, "0 root partitions", fsbuild.ErrImage},
		"two roots":         {func(img *fsbuild.Image) { img.Partitions[0].Root = true }, "2 root partitions", fsbuild.ErrImage},
		"partitions, bare":  {func(img *fsbuild.Image) { img.Table, img.Boot, img.Core = fsbuild.NoTable, nil, nil }, "need a partition table", fsbuild.ErrImage},
		"placed":            {func(img *fsbuild.Image) { img.Partitions[0].Entry.Start = 9 }, "partition 1: its place", fsbuild.ErrImage},
		"odd size":          {func(img *fsbuild.Image) { img.Partitions[0].Size.Bytes = 1000 }, "partition 1: size 1000", fsbuild.ErrImage},
		"negative size":     {func(img *fsbuild.Image) { img.Partitions[2].Size.Bytes = -4096 }, "partition 3: size -4096", fsbuild.ErrImage},
		"no size":           {func(img *fsbuild.Image) { img.Partitions[0].Size.Bytes = 0 }, "partition 1: has neither", fsbuild.ErrImage},
		"content too large": {func(img *fsbuild.Image) { img.Partitions[1].Size.Bytes = 1 << 20 }, "partition 2: content of 4194304 bytes does not fit", fsbuild.ErrImage},
		"content of root":   {func(img *fsbuild.Image) { img.Partitions[2].Content = img.Partitions[1].Content }, "partition 3: the root partition holds", fsbuild.ErrImage},
		"negative content":  {func(img *fsbuild.Image) { img.Partitions[1].Content = misbehaved{-1, nil, nil} }, "partition 2: content of -1", fsbuild.ErrImage},
		"no disk GUID":      {func(img *fsbuild.Image) { img.DiskGUID = partition.GUID{} }, "the disk has no GUID", nil},
		"no BIOS boot":      {func(img *fsbuild.Image) { img.Partitions = img.Partitions[1:] }, "needs a partition of type bios-boot", fsbuild.ErrImage},
		"BIOS boot is full": {func(img *fsbuild.Image) { img.Partitions[0].Content = misbehaved{1, nil, nil} }, "partition 1: a BIOS boot partition holds", fsbuild.ErrImage},
		"BIOS boot is fit": {func(img *fsbuild.Image) {
			img.Partitions[0].Fit = func(int64) (fsbuild.Content, error) { return misbehaved{1, nil, nil}, nil }
		}, "partition 1: a BIOS boot partition holds", fsbuild.ErrImage},
		"gap is small":     {func(img *fsbuild.Image) { img.Table, img.Partitions, img.Align = fsbuild.MBR, nil, 16<<10 }, "core.img needs", nil},
		"below alignment":  {func(img *fsbuild.Image) { img.Partitions[0].Size.Bytes = 65536 }, "partition 1: 65536 bytes are less than the alignment", partition.ErrUnsupported},
		"small disk":       {func(img *fsbuild.Image) { img.DiskSize = 7 << 20 }, "no room", fsbuild.ErrImage},
		"root beyond disk": {func(img *fsbuild.Image) { img.DiskSize, img.Partitions[2].Size.Bytes = 64<<20, 64<<20 }, "partition 3 needs 67108864 bytes", nil},
		"MBR with names":   {func(img *fsbuild.Image) { img.Table, img.Partitions[0].Entry.Type = fsbuild.MBR, 0x83 }, "need a GPT", partition.ErrUnsupported},
		"large sectors":    {func(img *fsbuild.Image) { img.SectorSize = 4096 }, "needs sectors of 512 bytes", fsbuild.ErrImage},
		"odd sectors":      {func(img *fsbuild.Image) { img.SectorSize = 1024 }, "sectors of 1024 bytes", fsbuild.ErrImage},
	} {
		t.Run(name, func(t *testing.T) {
			img := copyOf(whole)
			tc.edit(&img)
			_, err := buildRaw(t, img)
			if err == nil || !strings.Contains(err.Error(), tc.want) || tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
			var size *grub.SizeError
			if name == "gap is small" && !errors.As(err, &size) {
				t.Errorf("error = %v is no grub.SizeError", err)
			}
		})
	}
}

// TestGPTDigest is the same on any number of processors.
func TestGPTDigest(t *testing.T) {
	img := gptImage(t)
	var sums []string
	for _, procs := range []int{1, 16} {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		sum, err := buildRaw(t, img)
		must(t, err)
		sums = append(sums, sum)
	}
	if sums[0] != sums[1] {
		t.Errorf("digests of 1 and 16 processors: %v", sums)
	}
}

func ExampleImage() {
	bios, err := partition.ParseType("bios-boot")
	if err != nil {
		fmt.Println(err)
		return
	}
	root, err := partition.ParseType("root-x86-64")
	if err != nil {
		fmt.Println(err)
		return
	}
	img := fsbuild.Image{
		Tree:     tree.New(),
		FS:       ext4.Params{UUID: [16]byte{1}, Label: "root", Time: time.Unix(1700000000, 0), Slack: 32 << 20},
		Table:    fsbuild.GPT,
		DiskGUID: partition.GUID{1},
		Partitions: []fsbuild.Partition{
			{Entry: partition.Partition{TypeGUID: bios, GUID: partition.GUID{2}, Name: "bios"}, Size: partition.Size{Bytes: 1 << 20}},
			{Entry: partition.Partition{TypeGUID: root, GUID: partition.GUID{3}, Name: "root"}, Root: true},
		},
	}
	f, err := os.CreateTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(f.Name())
	defer f.Close()
	results, err := fsbuild.Build(context.Background(), img, []fsbuild.Output{{Format: fsbuild.FormatRaw, File: f}}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	table, err := partition.Read(f, results[0].VirtualSize)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, p := range table.Partitions {
		fmt.Println(partition.TypeName(p.TypeGUID), "from MiB", p.Start/2048)
	}
	// Output:
	// bios-boot from MiB 1
	// root-x86-64 from MiB 2
}
