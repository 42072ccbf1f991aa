package fsbuild_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild"
	"cairn/fsbuild/cpio"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/qcow2"
	"cairn/fsbuild/squashfs"
	"cairn/fsbuild/tar"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
	"cairn/fsbuild/vfat"
	"cairn/fsbuild/vhd"
	"cairn/fsbuild/vmdk"
)

var update = flag.Bool("update", false, "write testdata/golden anew")

// A golden is a way to write the golden tree, and how to show the result.
type golden struct {
	name  string
	write func(ctx context.Context, w *os.File, tr *tree.Tree) error
	show  string // a shell script that prints what is in the file "image"
}

// goldens are all writers, with the parameters that decide about their formats.
func goldens(t testing.TB) []golden {
	const (
		ext       = `exec 2>/dev/null; dumpe2fs image && debugfs -R 'ls -l /' image && debugfs -R 'ls -l /d' image`
		fat       = `fsck.vfat -vn image && mdir -/ -a -i image ::`
		unsquash  = `unsquashfs -s image && unsquashfs -lln image`
		table     = `sfdisk --dump image`
		container = `qemu-img info --output=json image | grep -v actual-size && qemu-img map --output=json image`
	)
	esp, root := entry(t, "esp", "ESP", 2), entry(t, "root-x86-64", "root", 3)
	gptEntries := []partition.Partition{at(esp, 2048, 4096), at(root, 6144, 20480)}
	hybridEntries := slices.Clone(gptEntries)
	hybridEntries[0].Type, hybridEntries[1].Type, hybridEntries[1].Active = 0xef, partition.Linux, true
	linux := []fsbuild.Partition{{Root: true, Entry: partition.Partition{Type: partition.Linux}}}
	mbr := fsbuild.Image{Table: fsbuild.MBR, DiskSignature: 0xca1f2023, Partitions: linux}
	gpt := fsbuild.Image{Table: fsbuild.GPT, DiskGUID: partition.GUID{0: 0xca, 15: 0xff}, Partitions: []fsbuild.Partition{
		{Entry: esp, Content: espContent(t)}, {Entry: root, Root: true},
	}}
	return []golden{
		{"ext4", extWriter(ext4.Params{}), ext},
		{"ext4-1k", extWriter(ext4.Params{BlockSize: 1024, JournalSize: 1 << 20}), ext},
		{"ext4-grow-1p", extWriter(ext4.Params{GrowTo: 1 << 50}), ext},
		{"ext3", extWriter(ext4.Params{Type: ext4.Ext3}), ext},
		{"ext2", extWriter(ext4.Params{Type: ext4.Ext2}), ext},
		{"fat12", fatWriter(vfat.FAT12), fat},
		{"fat16", fatWriter(vfat.FAT16), fat},
		{"fat32", fatWriter(vfat.FAT32), fat},
		{"squashfs-gzip", squashWriter(squashfs.Gzip), unsquash},
		{"squashfs-zstd", squashWriter(squashfs.Zstd), unsquash},
		{"squashfs-xz", squashWriter(squashfs.XZ), unsquash},
		{"cpio", func(ctx context.Context, w *os.File, tr *tree.Tree) error {
			_, err := cpio.Write(ctx, w, tr, cpio.Params{})
			return err
		}, `cpio -itvn <image`},
		{"tar", func(ctx context.Context, w *os.File, tr *tree.Tree) error {
			_, err := tar.Write(ctx, w, tr, tar.Params{})
			return err
		}, `tar --numeric-owner --full-time --xattrs -tvvf image`},
		{"table-mbr", tableWriter(partition.Table{Label: partition.MBR, Signature: 0xca1f2023, Partitions: []partition.Partition{
			{Start: 2048, Sectors: 4096, Type: partition.Linux, Active: true},
			{Start: 8192, Sectors: 20480, Type: partition.Extended},
			{},
			{},
			{Start: 10240, Sectors: 2048, Type: partition.Linux},
			{Start: 14336, Sectors: 4096, Type: 0x82},
		}}), table},
		{"table-gpt", tableWriter(partition.Table{Label: partition.GPT, DiskGUID: partition.GUID{0: 0xca}, Partitions: gptEntries}), table},
		{"table-hybrid", tableWriter(partition.Table{Label: partition.GPT, DiskGUID: partition.GUID{0: 0xca}, Hybrid: []int{1, 2}, Partitions: hybridEntries}), table + ` && od -A d -t x1 -j 446 -N 66 image`},
		{"disk-mbr", diskWriter(mbr, fsbuild.Output{Format: fsbuild.FormatRaw}), table + ` && dumpe2fs -h 'image?offset=1048576' 2>/dev/null`},
		{"disk-gpt", diskWriter(gpt, fsbuild.Output{Format: fsbuild.FormatRaw}), table},
		{"qcow2-v2-zlib", diskWriter(mbr, fsbuild.Output{Format: fsbuild.FormatQCOW2, Compress: true, QCOW2: qcow2.Options{Version: 2}}), container},
		{"qcow2-v3-zlib", diskWriter(mbr, fsbuild.Output{Format: fsbuild.FormatQCOW2, Compress: true}), container},
		{"qcow2-v3-zstd", diskWriter(mbr, fsbuild.Output{Format: fsbuild.FormatQCOW2, Compress: true, QCOW2: qcow2.Options{Compression: qcow2.Zstd}}), container},
		{"qcow2", diskWriter(mbr, fsbuild.Output{Format: fsbuild.FormatQCOW2}), container},
		{"vhd", diskWriter(mbr, fsbuild.Output{Format: fsbuild.FormatVHD, VHD: vhd.Options{UUID: [16]byte{7}, Time: goldenTime}}), container},
		{"vhd-fixed", diskWriter(mbr, fsbuild.Output{Format: fsbuild.FormatVHDFixed, VHD: vhd.Options{UUID: [16]byte{7}, Time: goldenTime}}), container},
		{"vmdk-stream", diskWriter(mbr, fsbuild.Output{Format: fsbuild.FormatVMDK, Compress: true, VMDK: vmdk.Options{CID: 5}}), container},
		{"vmdk-sparse", diskWriter(mbr, fsbuild.Output{Format: fsbuild.FormatVMDK, VMDK: vmdk.Options{CID: 5}}), container},
	}
}

var goldenTime = time.Unix(1_700_000_000, 0)

func at(p partition.Partition, start, sectors partition.LBA) partition.Partition {
	p.Start, p.Sectors = start, sectors
	return p
}

func extWriter(p ext4.Params) func(context.Context, *os.File, *tree.Tree) error {
	p.UUID, p.HashSeed, p.Label, p.Time = [16]byte{0: 0xca, 15: 0x1f}, [16]byte{1, 2, 3}, "golden", goldenTime
	return func(ctx context.Context, w *os.File, tr *tree.Tree) error {
		s, err := ext4.Write(ctx, w, tr, p)
		if err != nil {
			return err
		}
		return w.Truncate(s.Size)
	}
}

func fatWriter(kind vfat.Type) func(context.Context, *os.File, *tree.Tree) error {
	return func(ctx context.Context, w *os.File, tr *tree.Tree) error {
		s, err := vfat.Write(ctx, w, plain(tr), vfat.Params{Type: kind, Label: "GOLDEN", Serial: 0xca1f, Time: goldenTime})
		if err != nil {
			return err
		}
		return w.Truncate(s.Size)
	}
}

// plain is what FAT can hold of a tree.
func plain(tr *tree.Tree) *tree.Tree {
	for n := range tr.All() {
		n.Xattrs = nil
		if n.Type != tree.Directory && n.Type != tree.Regular {
			defer tr.Remove(n.Path)
		}
	}
	return tr
}

func squashWriter(c squashfs.Compression) func(context.Context, *os.File, *tree.Tree) error {
	return func(ctx context.Context, w *os.File, tr *tree.Tree) error {
		_, err := squashfs.Write(ctx, w, tr, squashfs.Params{Compression: c, Time: goldenTime})
		return err
	}
}

func tableWriter(table partition.Table) func(context.Context, *os.File, *tree.Tree) error {
	table.Sectors = 32 << 20 / 512
	return func(_ context.Context, w *os.File, _ *tree.Tree) error {
		if err := table.Write(w); err != nil {
			return err
		}
		return w.Truncate(int64(table.Sectors) * 512)
	}
}

func diskWriter(img fsbuild.Image, out fsbuild.Output) func(context.Context, *os.File, *tree.Tree) error {
	img.FS = ext4.Params{UUID: [16]byte{0: 0xca, 15: 0x1f}, Label: "golden", Time: goldenTime, JournalSize: -1}
	return func(ctx context.Context, w *os.File, tr *tree.Tree) error {
		img.Tree, out.File = tr, w
		_, err := fsbuild.Build(ctx, img, []fsbuild.Output{out}, nil)
		return err
	}
}

// espContent is a FAT as our writer makes it.
func espContent(t testing.TB) fsbuild.Content {
	t.Helper()
	l, err := vfat.Plan(plain(goldenTree(t, nil)), vfat.Params{Label: "ESP", Serial: 0xca1f, Time: goldenTime})
	must(t, err)
	return fsbuild.Layout(l)
}

// goldenTree is a small tree with everything in it that all formats but FAT
// can hold. rng, if not nil, says in which order it is put together.
func goldenTree(t testing.TB, rng *rand.Rand) *tree.Tree {
	t.Helper()
	words := strings.Repeat("all work and no play makes a dull image\n", 4000)
	mtime := tree.Time{Sec: 1_600_000_000, Nsec: 123_456_789}
	file := func(path, content string) tree.Node {
		return tree.Node{Path: path, Type: tree.Regular, Mode: 0o644, MTime: mtime, Size: int64(len(content)), Content: tree.Bytes([]byte(content))}
	}
	program, hard, holes := file("d/program", words), file("hard", words[:5000]), file("holes", "")
	program.Mode, program.UID, program.GID = 0o4755, 1000, 100_000
	program.Xattrs = []tree.Xattr{{Name: "security.capability", Value: []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}}
	hard.Inode = 1
	other := hard
	other.Path = "d/other name"
	sparse := &fstest.Holes{Bytes: 300_000, Runs: []fstest.Run{{Off: 100_000, Data: []byte(words[:9000])}}}
	holes.Size, holes.Content = sparse.Bytes, sparse
	marked := file("ümlaut", "attributes")
	marked.Xattrs = []tree.Xattr{{Name: "trusted.large", Value: []byte(words[:500])}, {Name: "user.note", Value: []byte("note")}}
	nodes := []tree.Node{
		{Path: "d", Type: tree.Directory, Mode: 0o755, MTime: mtime},
		{Path: "d/e", Type: tree.Directory, Mode: 0o1777, UID: 65534, GID: 65534, MTime: mtime},
		program, hard, other, holes, marked, file("empty", ""), file("d/e/"+strings.Repeat("long", 50), "long name"),
		{Path: "short link", Type: tree.Symlink, Mode: 0o777, MTime: mtime, Target: "d/program"},
		{Path: "long link", Type: tree.Symlink, Mode: 0o777, MTime: mtime, Target: strings.Repeat("../", 40) + "d"},
		{Path: "null", Type: tree.CharDevice, Mode: 0o666, MTime: mtime, Major: 1, Minor: 3},
		{Path: "disk", Type: tree.BlockDevice, Mode: 0o660, GID: 6, MTime: mtime, Major: 259, Minor: 70_000},
		{Path: "fifo", Type: tree.FIFO, Mode: 0o600, MTime: mtime},
	}
	for i := range 100 {
		nodes = append(nodes, file(fmt.Sprintf("d/%d", i), words[i:i*i]))
	}
	if rng != nil {
		rng.Shuffle(len(nodes)-2, func(i, j int) { nodes[i+2], nodes[j+2] = nodes[j+2], nodes[i+2] }) // d and d/e stay the first
	}
	tr := tree.New()
	for _, n := range nodes {
		must(t, tr.Add(n))
	}
	return tr
}

// TestGolden: the bytes that each writer makes of one tree are fixed, for any
// number of processors and any order of the source. testdata/golden has their
// digest and, to show what changed, what other programs say of them. After a
// wanted change run
//
//	go test ./fsbuild -run '^TestGolden$' -update
//
// and say in the commit why every image changes.
func TestGolden(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	var names []string
	for _, g := range goldens(t) {
		names = append(names, g.name+".txt")
		t.Run(g.name, func(t *testing.T) {
			scratch := fstest.ScratchDir(t)
			sum := g.digest(t, scratch, 1, goldenTree(t, nil))
			name := filepath.Join("testdata", "golden", g.name+".txt")
			if *update {
				must(t, os.WriteFile(name, []byte(g.describe(t, scratch, sum)), 0o644)) //nolint:gosec // for everybody
			}
			want, err := os.ReadFile(name)
			must(t, err)
			if !strings.HasPrefix(string(want), sum+"\n") { // then other versions of the tools do not matter
				t.Errorf("other bytes:\n%s", cmp.Diff(string(want), g.describe(t, scratch, sum)))
			}
			for seed := range uint64(2) {
				if got := g.digest(t, scratch, 16, goldenTree(t, rand.New(rand.NewPCG(seed, 0)))); got != sum {
					t.Errorf("16 processors and another order give sha256 %s, one processor %s", got, sum)
				}
			}
		})
	}
	files, err := os.ReadDir("testdata/golden")
	must(t, err)
	for _, f := range files {
		if !slices.Contains(names, f.Name()) {
			t.Errorf("%s is of no writer", f.Name())
		}
	}
}

// digest writes a tree to the file "image" and returns its SHA-256.
func (g golden) digest(t *testing.T, scratch string, processors int, tr *tree.Tree) string {
	t.Helper()
	runtime.GOMAXPROCS(processors)
	f, err := os.OpenFile(filepath.Join(scratch, "image"), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	must(t, err)
	defer f.Close()
	must(t, g.write(t.Context(), f, tr))
	_, err = f.Seek(0, io.SeekStart)
	must(t, err)
	h := sha256.New()
	_, err = io.Copy(h, f)
	must(t, err)
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestDirectoryOrder: the order in which a folder lists its files, which in a
// tmpfs is that of their creation, does not show in what any writer makes of it.
func TestDirectoryOrder(t *testing.T) {
	var paths []string
	for i := range 300 {
		paths = append(paths, fmt.Sprintf("d%d/e%d/file %d", i%3, i%20, i))
	}
	var trees []*tree.Tree
	for range 2 {
		trees = append(trees, folder(t, paths))
		slices.Reverse(paths)
	}
	scratch := fstest.ScratchDir(t)
	for _, g := range goldens(t) {
		if first, second := g.digest(t, scratch, 16, trees[0]), g.digest(t, scratch, 16, trees[1]); first != second {
			t.Errorf("%s: sha256 %s and %s", g.name, first, second)
		}
	}
}

// folder makes files in the given order, every tenth with a second name, and
// reads the folder.
func folder(t *testing.T, paths []string) *tree.Tree {
	t.Helper()
	root := fstest.ScratchDir(t)
	for _, p := range paths {
		name := filepath.Join(root, p)
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name, []byte(strings.Repeat(p+"\n", len(p)*len(p))), 0o600))
		if strings.HasSuffix(p, "0") {
			must(t, os.Link(name, filepath.Join(root, filepath.Base(p))))
		}
	}
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, goldenTime, goldenTime))
	}))
	f, err := os.Open(root)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	tr, err := dir.ReadFrom(t.Context(), f, dir.Options{})
	must(t, err)
	return tr
}

// describe is a golden file: the digest of the file "image", and its script's
// output.
func (g golden) describe(t *testing.T, scratch, sum string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", g.show) //nolint:gosec // a constant
	cmd.Dir = scratch
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v", g.show, err)
	}
	return sum + "\n" + string(out)
}
