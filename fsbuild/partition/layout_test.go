package partition_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/partition"
)

func wish(t testing.TB, size string, logical bool) partition.Wish {
	t.Helper()
	s, err := partition.ParseSize(size)
	must(t, err)
	return partition.Wish{Partition: partition.Partition{Type: partition.Linux}, Size: s, Logical: logical}
}

// theirMBR lays a disk out with diskimage-builder's own class. Arguments: file,
// alignment, and for each partition p or l and its size.
const theirMBR = `
import os, sys
from diskimage_builder.block_device.level1.mbr import MBR
from diskimage_builder.block_device.utils import parse_rel_size_spec
path, align = sys.argv[1], int(sys.argv[2])
with MBR(path, os.path.getsize(path), align) as m:
    for a in sys.argv[3:]:
        m.add_partition(a[0] == 'p', False, parse_rel_size_spec(a[1:], m.free())[1], 0x83)
`

func TestLayoutLikeDiskimageBuilder(t *testing.T) {
	for name, tc := range map[string]struct {
		sectors partition.LBA
		align   int64
		sizes   []string
	}{
		"one":             {4 << 20, 0, []string{"p100%"}},
		"PReP and root":   {4 << 20, 0, []string{"p8MiB", "p100%"}},
		"odd disk":        {4<<20 + 333, 0, []string{"p8MiB", "p33.3%", "p50%", "p100%"}},
		"odd sizes":       {4 << 20, 0, []string{"p8M", "p1.5G", "p10%"}},
		"logical":         {8 << 20, 0, []string{"p1GiB", "l1GB", "l10%", "l777777777", "l100%"}},
		"only logical":    {8 << 20, 0, []string{"l100%"}},
		"coarse":          {8 << 20, 8 << 20, []string{"p10%", "l1GB", "l50%", "l100%"}},
		"fine":            {8 << 20, 4096, []string{"p10%", "l1GB", "l50%", "l100%"}},
		"four primaries":  {8 << 20, 0, []string{"p1GiB", "p1%", "p1%", "p12.5%"}},
		"three and chain": {8 << 20, 0, []string{"p25%", "p25%", "p25%", "l25%", "l25%", "l25%"}},
	} {
		t.Run(name, func(t *testing.T) {
			empty := partition.Table{Label: partition.MBR, Sectors: tc.sectors}
			var wishes []partition.Wish
			for _, s := range tc.sizes {
				wishes = append(wishes, wish(t, s[1:], s[0] == 'l'))
			}
			table, err := empty.Layout(tc.align, wishes)
			must(t, err)
			ours, theirs := disk(t, table), filepath.Join(t.TempDir(), "theirs.raw")
			must(t, os.WriteFile(theirs, nil, 0o600))
			must(t, os.Truncate(theirs, int64(tc.sectors)*512))
			align := tc.align
			if align == 0 {
				align = 1 << 20
			}
			run(t, "python3-diskimage-builder", "/usr/bin/python3", append([]string{"-c", theirMBR, theirs, fmt.Sprint(align)}, tc.sizes...)...)
			if diff := cmp.Diff(lines(t, theirs), lines(t, ours)); diff != "" {
				t.Errorf("partitions (-diskimage-builder +ours):\n%s", diff)
			}
		})
	}
}

// lines is what sfdisk -d says of the partitions.
func lines(t *testing.T, path string) (all []string) {
	for line := range strings.Lines(run(t, "fdisk", "sfdisk", "-d", path)) {
		if _, p, ok := strings.Cut(line, path); ok && strings.Contains(p, "start=") {
			all = append(all, p)
		}
	}
	return all
}

// TestLayoutOfGPT expects what diskimage-builder tells sgdisk: each partition
// has its size rounded down to MiB, and begins behind the one before.
func TestLayoutOfGPT(t *testing.T) {
	const MiB = 1 << 20
	for name, tc := range map[string]struct {
		size   int64
		sector int
		sizes  []string
		want   [][2]int64 // MiB
	}{
		"block-device-gpt":    {2048 * MiB, 512, []string{"8MiB", "100%"}, [][2]int64{{1, 8}, {9, 2038}}},
		"block-device-efi":    {2048 * MiB, 512, []string{"550MiB", "8MiB", "100%"}, [][2]int64{{1, 550}, {551, 8}, {559, 1488}}},
		"block-device-efi-4k": {2048 * MiB, 4096, []string{"500MiB", "8MiB", "100%"}, [][2]int64{{1, 500}, {501, 8}, {509, 1538}}},
		"fractions":           {1000*MiB + 512, 512, []string{"10%", "8M", "33.3%", "100%"}, [][2]int64{{1, 99}, {100, 7}, {107, 296}, {403, 594}}},
		"smallest":            {3 * MiB, 512, []string{"100%"}, [][2]int64{{1, 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			table := partition.Table{Label: partition.GPT, SectorSize: tc.sector, Sectors: partition.LBA(tc.size) / partition.LBA(tc.sector), DiskGUID: guid(0)}
			var wishes []partition.Wish
			for i, s := range tc.sizes {
				w := wish(t, s, false)
				w.Partition = partition.Partition{TypeGUID: kind(t, "8300"), GUID: guid(byte(i + 1))}
				wishes = append(wishes, w)
			}
			got, err := table.Layout(0, wishes)
			must(t, err)
			_, err = got.Regions()
			must(t, err)
			var ranges [][2]int64
			unit := partition.LBA(MiB / tc.sector)
			for _, p := range got.Partitions {
				ranges = append(ranges, [2]int64{int64(p.Start / unit), int64(p.Sectors / unit)})
				if p.Start%unit != 0 || p.Sectors%unit != 0 {
					t.Errorf("sectors %d+%d are no whole MiB", p.Start, p.Sectors)
				}
			}
			if diff := cmp.Diff(tc.want, ranges); diff != "" {
				t.Errorf("MiB (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLayoutRefuses(t *testing.T) {
	gpt := partition.Table{Label: partition.GPT, Sectors: 1 << 16, DiskGUID: guid(0)}
	mbr := partition.Table{Label: partition.MBR, Sectors: 1 << 16}
	full := mbr
	full.Partitions = []partition.Partition{{}}
	p := func(size string) partition.Wish { return wish(t, size, false) }
	l := func(size string) partition.Wish { return wish(t, size, true) }
	for name, tc := range map[string]struct {
		table  partition.Table
		align  int64
		wishes []partition.Wish
		want   string
		space  bool
	}{
		"partitions":       {full, 0, nil, "has partitions already", false},
		"no disk":          {partition.Table{Label: partition.MBR}, 0, nil, "no sectors", false},
		"alignment":        {mbr, 1000, nil, "alignment of 1000 bytes", false},
		"negative":         {mbr, -512, nil, "alignment of -512 bytes", false},
		"larger than disk": {mbr, 64 << 20, nil, "larger than the disk", false},
		"GPT too large":    {gpt, 0, []partition.Wish{p("8MiB"), p("23MiB")}, "partition 2 needs 24117248 bytes, but only 23068672 are free", true},
		"GPT too small":    {gpt, 0, []partition.Wish{p("1000000B")}, "partition 1: 1000000 bytes are less than the alignment", false},
		"GPT full":         {gpt, 0, []partition.Wish{p("100%"), p("100%")}, "partition 2 needs 1048576 bytes, but only 0 are free", true},
		"GPT logical":      {gpt, 0, []partition.Wish{l("1MiB")}, "no logical partitions", false},
		"MBR too large":    {mbr, 0, []partition.Wish{p("32MiB")}, "partition 1 needs 33554432 bytes", true},
		"MBR too small":    {mbr, 0, []partition.Wish{p("511")}, "partition 1 needs 512 bytes", true},
		"MBR full":         {mbr, 0, []partition.Wish{p("31MiB"), p("1MiB")}, "partition 2 needs 1048576 bytes", true},
		"no room inside":   {mbr, 0, []partition.Wish{p("31MiB"), l("1MiB")}, "partition 5 needs", true},
		"logical first":    {mbr, 0, []partition.Wish{l("1MiB"), p("1MiB")}, "partition 6: all primary partitions must come before", false},
		"five primaries":   {mbr, 0, []partition.Wish{p("1MiB"), p("1MiB"), p("1MiB"), p("1MiB"), p("1MiB")}, "partition 5: there are 4 primary", false},
		"no number left":   {mbr, 0, []partition.Wish{p("1MiB"), p("1MiB"), p("1MiB"), p("1MiB"), l("1MiB")}, "no number for an extended one", false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tc.table.Layout(tc.align, tc.wishes)
			var space *partition.SpaceError
			if err == nil || !strings.Contains(err.Error(), tc.want) || errors.As(err, &space) != tc.space {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]partition.Size{
		"1": {Bytes: 1}, "8MiB": {Bytes: 8 << 20}, "8 MiB": {Bytes: 8 << 20}, "8M": {Bytes: 8e6}, "1.5KiB": {Bytes: 1536}, "0.3GiB": {Bytes: 322122547},
		"40G": {Bytes: 40e9}, "2TB": {Bytes: 2e12}, "2TiB": {Bytes: 2 << 40}, "7 B": {Bytes: 7}, "9 ": {Bytes: 9}, "1.9": {Bytes: 1}, "3KB": {Bytes: 3000}, ".5K": {Bytes: 500},
		"100%": {Percent: 100}, "12.5%": {Percent: 12.5}, "3MB": {Bytes: 3e6}, "1K": {Bytes: 1000}, "1GB": {Bytes: 1e9}, "1T": {Bytes: 1e12},
	} {
		if got, err := partition.ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "MiB", "8mib", "8Mi", "0", "0.4", "-1", "1e3", "1  KiB", " 1", "0%", "101%", "%", "-5%", "NaN%", "Inf", "0x10", "1_0", "5TiBB", "9999999TiB", "1.2.3", "1%%", "+5%",
	} {
		if got, err := partition.ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %v, want an error", text, got)
		}
	}
}

func TestParseMBRType(t *testing.T) {
	for text, want := range map[string]byte{"0x41": 0x41, "83": 0x83, "0X0F": 0x0f, "1": 1, "ff": 0xff} {
		if got, err := partition.ParseMBRType(text); err != nil || got != want {
			t.Errorf("ParseMBRType(%q) = %#x, %v; want %#x", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "0x", "100", "8300", "-1", "+1", "xy"} {
		if got, err := partition.ParseMBRType(text); !errors.Is(err, partition.ErrUnsupported) {
			t.Errorf("ParseMBRType(%q) = %#x, %v; want ErrUnsupported", text, got, err)
		}
	}
}

// FuzzLayout: a layout that works out can be written.
func FuzzLayout(f *testing.F) {
	f.Add("8MiB 100%", uint64(1<<22), uint8(1), true)
	f.Add("10% 1GB 50% 100% 7", uint64(1<<23+5), uint8(3), false)
	f.Add("100%", uint64(4096), uint8(0), true)
	f.Fuzz(func(t *testing.T, sizes string, sectors uint64, primaries uint8, gpt bool) {
		table := partition.Table{Label: partition.MBR, Sectors: partition.LBA(sectors)}
		if gpt {
			table.Label, table.DiskGUID = partition.GPT, guid(0)
		}
		var wishes []partition.Wish
		for i, text := range strings.Fields(sizes) {
			size, err := partition.ParseSize(text)
			if err != nil || i > 100 {
				return
			}
			p := partition.Partition{Type: partition.Linux}
			if gpt {
				p = partition.Partition{TypeGUID: guid(0), GUID: guid(byte(i + 1))}
			}
			wishes = append(wishes, partition.Wish{Partition: p, Size: size, Logical: !gpt && i >= int(primaries)})
		}
		got, err := table.Layout(0, wishes)
		if err != nil {
			return
		}
		if _, err := got.Regions(); err != nil && !errors.Is(err, partition.ErrUnsupported) {
			t.Errorf("%q on %d sectors: %v", sizes, sectors, err)
		}
	})
}

func ExampleTable_Layout() {
	var wishes []partition.Wish
	for _, size := range []string{"8MiB", "100%"} {
		s, err := partition.ParseSize(size)
		if err != nil {
			fmt.Println(err)
			return
		}
		wishes = append(wishes, partition.Wish{Size: s})
	}
	table, err := partition.Table{Label: partition.GPT, Sectors: 1 << 21}.Layout(partition.DefaultAlign, wishes)
	if err != nil {
		fmt.Println(err)
		return
	}
	for i, p := range table.Partitions {
		fmt.Println(i+1, p.Start, p.Sectors)
	}
	// Output:
	// 1 2048 16384
	// 2 18432 2076672
}
