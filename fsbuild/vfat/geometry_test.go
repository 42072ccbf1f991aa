package vfat_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
	"cairn/tests/require"
)

// TestMkfs compares boot and FSInfo sectors with those of mkfs.fat, all but
// name and code, for a table of sizes.
func TestMkfs(t *testing.T) {
	mkfs := require.Tool(t, "mkfs.fat", "dosfstools")
	const k, m, g = 1 << 10, 1 << 20, 1 << 30
	scratch := scratchDir(t)
	for _, c := range []struct {
		typ    vfat.Type
		sector int
		sizes  []int64
	}{
		{0, 512, []int64{
			64 * k, 100 * k, 360 * k, 720 * k, 1200 * k, 1440 * k, 2880 * k, 1 * m, 2 * m, 4 * m, 4*m + 64*k, 5 * m,
			8 * m, 9 * m, 16 * m, 17 * m, 31 * m, 32 * m, 33 * m, 64 * m, 100 * m, 127 * m, 128 * m, 130 * m, 255 * m, 256 * m, 257 * m,
			260 * m, 511*m + 512, 512 * m, 513 * m, 1 * g, 2*g + 4096, 8 * g, 9 * g, 33 * g, 100 * g, 2000 * g,
		}},
		{12, 512, []int64{128 * k, 1 * m, 8 * m, 64 * m, 200 * m}},
		{16, 512, []int64{9 * m, 16 * m, 100 * m, 512 * m, 2 * g}},
		{32, 512, []int64{34 * m, 64 * m, 100 * m, 260 * m, 261 * m, 512 * m, 17 * g}},
		{0, 4096, []int64{256 * k, 1 * m, 32 * m, 64 * m, 100 * m, 256 * m, 511 * m, 512 * m, 4 * g, 100 * g}},
		{32, 4096, []int64{258 * m, 300 * m, 3 * g}},
		{0, 1024, []int64{1 * m, 20 * m, 600 * m}},
		{0, 2048, []int64{1 * m, 20 * m, 600 * m}},
	} {
		for _, size := range c.sizes {
			name := filepath.Join(scratch, "mkfs.img")
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(name, size); err != nil {
				t.Fatal(err)
			}
			args := []string{"-i", "1234abcd", "-n", "CAIRN", "-S", fmt.Sprint(c.sector), "-h", "2048"}
			if c.typ != 0 {
				args = append(args, "-F", fmt.Sprint(int(c.typ)))
			}
			run(t, mkfs, append(args, name)...)
			p := params()
			p.Type, p.SectorSize, p.Size, p.HiddenSectors = c.typ, c.sector, size, 2048
			img, s := image(t, tree.New(), p)
			want, got := reserved(t, name, c.sector), reserved(t, img, c.sector)
			if diff := firstDiff(want, got); diff != "" {
				t.Errorf("%d bytes in sectors of %d, type %d: %s", size, c.sector, c.typ, diff)
			}
			if s.Size != size {
				t.Errorf("size %d, want %d", s.Size, size)
			}
			_ = os.Remove(name)
			_ = os.Remove(img)
		}
	}
}

// reserved dumps the sectors before the FATs, without BS_jmpBoot, BS_OEMName,
// and what follows the file system type.
func reserved(t *testing.T, name string, sector int) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 9*sector)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	boots := []int{0}
	if b[22] == 0 && b[23] == 0 {
		boots = append(boots, 6*sector)
	} else {
		b = b[:sector]
	}
	for _, at := range boots {
		clear(b[at : at+11])
		clear(b[at+90 : at+510])
		if len(boots) == 1 {
			clear(b[62:90])
		}
	}
	var out strings.Builder
	for i := 0; i < len(b); i += 16 {
		fmt.Fprintf(&out, "%#05x % x\n", i, b[i:i+16])
	}
	return out.String()
}

// TestMinimal: an image of minimal size has the free space that was asked for,
// is the smallest of its type and cluster size, and its geometry is what
// mkfs.fat's rule says of its size but at that rule's borders.
func TestMinimal(t *testing.T) {
	data := strings.Repeat("x", 3_000_000)
	for name, p := range map[string]vfat.Params{
		"empty":           {},
		"seed":            {Slack: 1},
		"4 MiB":           {Slack: 4 << 20},
		"near 4084":       {Slack: 4084 * 2048},
		"near 4087":       {Slack: 4086 * 2048},
		"fixed, gap":      {Slack: 4082 * 512, ClusterSize: 512},
		"fixed, FAT32":    {Slack: 70000 * 512, ClusterSize: 512},
		"large clusters":  {Slack: 600 << 20, ClusterSize: 32768},
		"ESP":             {Slack: 100 << 20},
		"ESP FAT32":       {Slack: 100 << 20, Type: vfat.FAT32},
		"FAT16":           {Type: vfat.FAT16},
		"FAT16 small":     {Type: vfat.FAT16, ClusterSize: 512},
		"FAT32":           {Type: vfat.FAT32},
		"near 512 MiB":    {Slack: 511 << 20},
		"over 512 MiB":    {Slack: 513 << 20},
		"FAT32, 260 MiB":  {Slack: 258 << 20, Type: vfat.FAT32},
		"FAT32, 261 MiB":  {Slack: 262 << 20, Type: vfat.FAT32},
		"9 GiB":           {Slack: 9 << 30},
		"4096":            {SectorSize: 4096},
		"4096, 300 MiB":   {SectorSize: 4096, Slack: 300 << 20},
		"4096, FAT32":     {SectorSize: 4096, Type: vfat.FAT32},
		"floppy":          {Slack: 1440<<10 - 3_010_000%1440<<10},
		"many in root":    {RootEntries: 4096},
		"root to cluster": {RootEntries: 1, Slack: 64 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			tr := build(t, file("a long name", data), directory("d"), file("d/empty", ""))
			img, s := image(t, tr, p)
			fsck(t, img)
			free := s.FreeClusters * s.ClusterSize
			if free < p.Slack {
				t.Errorf("%d bytes are free, want %d", free, p.Slack)
			}
			// With the same type and cluster size, one track less is too small.
			q := p
			q.Slack, q.Type, q.ClusterSize = 0, s.Type, int(s.ClusterSize)
			q.Size = s.Size
			exact, err := vfat.Plan(tr, q)
			if err != nil || exact.Summary() != s {
				t.Errorf("Plan of that very size: %+v, %v", exact.Summary(), err)
			}
			q.Size -= s.SectorSize // the last track is not whole
			less, err := vfat.Plan(tr, q)
			if err == nil && less.Summary().FreeClusters*s.ClusterSize >= p.Slack {
				t.Errorf("a sector less is enough: %+v", less.Summary())
			}
		})
	}
}

// TestFloppySize: an image of minimal size that happens to be a floppy's has
// the root directory of others.
func TestFloppySize(t *testing.T) {
	var nodes []tree.Node
	for i := range 300 {
		nodes = append(nodes, file(fmt.Sprintf("n%d", i), ""))
	}
	tr, met := build(t, nodes...), 0
	for slack := int64(300 << 10); slack < 360<<10; slack += 2048 {
		img, s := image(t, tr, vfat.Params{Slack: slack})
		fsck(t, img)
		if s.Size == 360<<10 {
			met++
		}
	}
	if met == 0 {
		t.Error("no image had a floppy's size")
	}
}

// TestTooSmall: the error says how much is missing, and with that it fits.
func TestTooSmall(t *testing.T) {
	for name, p := range map[string]vfat.Params{
		"one sector":       {Size: 512},
		"seed":             {Size: 64 << 10},
		"other type":       {Size: 8 << 20},
		"FAT32":            {Size: 10 << 20, Type: vfat.FAT32},
		"FAT16":            {Size: 1 << 20, Type: vfat.FAT16},
		"4096":             {Size: 1 << 20, SectorSize: 4096},
		"cluster size":     {Size: 1 << 20, ClusterSize: 512},
		"FAT16, too small": {Size: 4 << 20, Type: vfat.FAT16},
	} {
		t.Run(name, func(t *testing.T) {
			tr := build(t, file("f", strings.Repeat("x", 9_000_000)))
			_, err := vfat.Plan(tr, p)
			var small *vfat.SizeError
			if !errors.Is(err, vfat.ErrTooSmall) || !errors.As(err, &small) || small.Size != p.Size || small.Missing <= 0 {
				t.Fatalf("Plan: %v, want a SizeError", err)
			}
			p.Size += small.Missing
			img, _ := image(t, tr, p)
			fsck(t, img)
		})
	}
}

// TestTooLarge: no size helps.
func TestTooLarge(t *testing.T) {
	tr := build(t, file("f", strings.Repeat("x", 9_000_000)))
	for name, p := range map[string]vfat.Params{
		"FAT12":        {Type: vfat.FAT12, ClusterSize: 512},
		"FAT12, exact": {Type: vfat.FAT12, ClusterSize: 512, Size: 64 << 20},
		"FAT16":        {Type: vfat.FAT16, Slack: 8 << 30},
		"sectors":      {Slack: 3 << 40},
	} {
		if l, err := vfat.Plan(tr, p); err == nil || errors.Is(err, vfat.ErrTooSmall) {
			t.Errorf("%s: Plan: %v, %v", name, l, err)
		}
	}
}
