package partition_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/partition"
	"cairn/tests/require"
)

// run starts a tool of somebody else, which must be there, and returns what it
// printed.
func run(t testing.TB, pkg, tool string, args ...string) string {
	t.Helper()
	out, err := exec.Command(require.Tool(t, tool, pkg), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", tool, args, err, out)
	}
	return string(out)
}

// disk writes t to a sparse file of the right size.
func disk(t testing.TB, table partition.Table) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(table.Sectors) * int64(max(table.SectorSize, 512))); err != nil {
		t.Fatal(err)
	}
	if err := table.Write(f); err != nil {
		t.Fatal(err)
	}
	return path
}

// dump is what sfdisk -d prints of table, without the file's own name.
func dump(t *testing.T, table partition.Table) string {
	path := disk(t, table)
	if out := run(t, "fdisk", "sfdisk", "--verify", path); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk --verify: %s", out)
	}
	out := run(t, "fdisk", "sfdisk", "-d", path)
	out = regexp.MustCompile(`(?m)^device: .*\n`).ReplaceAllString(out, "")
	out = strings.ReplaceAll(out, path, "p")
	return regexp.MustCompile(` +`).ReplaceAllString(out, " ")
}

func TestSfdiskReadsTheTable(t *testing.T) {
	for name, tc := range map[string]struct {
		table partition.Table
		want  string
	}{
		"one active Linux partition": {
			partition.Table{
				Label: partition.MBR, Sectors: 2048 + 409600, Signature: 0x11223344,
				Partitions: []partition.Partition{{Start: 2048, Sectors: 409600, Type: partition.Linux, Active: true}},
			},
			"label: dos\nlabel-id: 0x11223344\nunit: sectors\nsector-size: 512\n\n" +
				"p1 : start= 2048, size= 409600, type=83, bootable\n",
		},
		"four, unordered, beyond CHS": {
			partition.Table{
				Label: partition.MBR, Sectors: 1<<32 - 1, Signature: 1,
				Partitions: []partition.Partition{
					{Start: 1 << 31, Sectors: 1<<31 - 1, Type: 0x8e},
					{Start: 2048, Sectors: 16384, Type: 0x41},
					{Start: 20480, Sectors: 1 << 20, Type: partition.Linux, Active: true},
					{Start: 1 << 30, Sectors: 1 << 30, Type: 0x82},
				},
			},
			"label: dos\nlabel-id: 0x00000001\nunit: sectors\nsector-size: 512\n\n" +
				"p1 : start= 2147483648, size= 2147483647, type=8e\n" +
				"p2 : start= 2048, size= 16384, type=41\n" +
				"p3 : start= 20480, size= 1048576, type=83, bootable\n" +
				"p4 : start= 1073741824, size= 1073741824, type=82\n",
		},
		"unused numbers": {
			partition.Table{
				Label: partition.MBR, Sectors: 65536, Signature: 0xffffffff,
				Partitions: []partition.Partition{{}, {Start: 2048, Sectors: 2048, Type: 0x0b}},
			},
			"label: dos\nlabel-id: 0xffffffff\nunit: sectors\nsector-size: 512\n\n" +
				"p2 : start= 2048, size= 2048, type=b\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, dump(t, tc.table)); diff != "" {
				t.Errorf("sfdisk -d (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSgdiskConverts(t *testing.T) {
	path := disk(t, partition.Table{
		Label: partition.MBR, Sectors: 1 << 20, Signature: 7,
		Partitions: []partition.Partition{{Start: 2048, Sectors: 1<<20 - 4096, Type: partition.Linux, Active: true}},
	})
	out := run(t, "gdisk", "sgdisk", "-p", path)
	if !strings.Contains(out, "MBR: MBR only") && !strings.Contains(out, "converting MBR to GPT") {
		t.Errorf("sgdisk -p does not see an MBR:\n%s", out)
	}
	if want := regexp.MustCompile(`(?m)^ +1 +2048 +1046527 .* 8300 +Linux filesystem`); !want.MatchString(out) {
		t.Errorf("sgdisk -p lacks %v:\n%s", want, out)
	}
}

func TestRandomTablesSurviveSfdisk(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 12 {
		table := partition.Table{Label: partition.MBR, Sectors: 1 << 31, Signature: rnd.Uint32()}
		want := fmt.Sprintf("label: dos\nlabel-id: 0x%08x\nunit: sectors\nsector-size: 512\n\n", table.Signature)
		next := partition.LBA(1)
		for n := range 1 + rnd.IntN(4) {
			start := next + partition.LBA(rnd.IntN(1<<26))
			size := 1 + partition.LBA(rnd.IntN(1<<28))
			next = start + size
			table.Partitions = append(table.Partitions, partition.Partition{Start: start, Sectors: size, Type: 0x83})
			want += fmt.Sprintf("p%d : start= %d, size= %d, type=83\n", n+1, start, size)
		}
		if diff := cmp.Diff(want, dump(t, table)); diff != "" {
			t.Errorf("sfdisk -d (-want +got):\n%s", diff)
		}
	}
}

func TestCHS(t *testing.T) {
	for _, tc := range []struct {
		lba  partition.LBA
		want []byte // head, sector and cylinder high, cylinder low
	}{
		{1, []byte{0, 2, 0}},
		{62, []byte{0, 63, 0}},
		{63, []byte{1, 1, 0}},
		{2048, []byte{32, 33, 0}},
		{254*63 - 1, []byte{253, 63, 0}},
		{254 * 63, []byte{0, 1, 1}},
		{254 * 63 * 5, []byte{0, 1, 5}},
		{254 * 63 * 256, []byte{0, 0x41, 0}},
		{254 * 63 * 1023, []byte{0, 0xc1, 255}},
		{254*63*1023 + 1, []byte{254, 0xff, 255}},
		{1<<32 - 1, []byte{254, 0xff, 255}},
	} {
		regions, err := partition.Table{
			Label: partition.MBR, Sectors: 1 << 33,
			Partitions: []partition.Partition{{Start: tc.lba, Sectors: 1, Type: 1}},
		}.Regions()
		if err != nil {
			t.Fatal(err)
		}
		first, last := regions[0].Data[447:450], regions[0].Data[451:454]
		if !bytes.Equal(first, tc.want) || !bytes.Equal(last, tc.want) {
			t.Errorf("CHS of %d = % x and % x, want % x", tc.lba, first, last, tc.want)
		}
	}
}

func TestBootCodeAndSectorSize(t *testing.T) {
	code := bytes.Repeat([]byte{0xeb}, partition.BootCodeSize)
	for _, size := range []int{0, 512, 4096} {
		regions, err := partition.Table{
			Label: partition.MBR, SectorSize: size, Sectors: 100, BootCode: code, Signature: 0x04030201,
			Partitions: []partition.Partition{{Start: 1, Sectors: 99, Type: 0x83}},
		}.Regions()
		if err != nil {
			t.Fatal(err)
		}
		b := regions[0].Data
		want := append(bytes.Clone(code), 1, 2, 3, 4, 0, 0, 0, 0, 2, 0, 0x83)
		if len(b) != max(size, 512) || !bytes.HasPrefix(b, want) || b[510] != 0x55 || b[511] != 0xaa {
			t.Errorf("sector size %d: %d bytes, % x … % x", size, len(b), b[436:456], b[510:512])
		}
	}
}

func TestBadTables(t *testing.T) {
	good := partition.Partition{Start: 2048, Sectors: 1000, Type: 0x83}
	with := func(p ...partition.Partition) partition.Table {
		return partition.Table{Label: partition.MBR, Sectors: 1 << 20, Partitions: p}
	}
	huge := with(partition.Partition{Start: 1 << 32, Sectors: 1, Type: 0x83})
	huge.Sectors = 1 << 40
	for name, tc := range map[string]struct {
		table       partition.Table
		want        string
		unsupported bool
	}{
		"no label":       {partition.Table{Sectors: 9}, "label 0", true},
		"sector size":    {partition.Table{Label: partition.MBR, SectorSize: 520, Sectors: 9}, "sector size 520", true},
		"empty disk":     {partition.Table{Label: partition.MBR}, "no sectors", false},
		"boot code":      {partition.Table{Label: partition.MBR, Sectors: 1, BootCode: make([]byte, 441)}, "441 bytes", false},
		"five":           {with(good, good, good, good, good), "5 partitions", true},
		"overlap":        {with(good, partition.Partition{Start: 3047, Sectors: 1, Type: 1}), "partition 2: sectors 3047+1 overlap partition 1", false},
		"leaves disk":    {with(partition.Partition{Start: 1 << 20, Sectors: 1, Type: 1}), "leave the disk", false},
		"wraps around":   {with(partition.Partition{Start: 10, Sectors: 1<<64 - 9, Type: 1}), "32 bits", true},
		"sector 0":       {with(partition.Partition{Sectors: 1, Type: 1}), "sector 0", false},
		"type 0":         {with(partition.Partition{Start: 1, Sectors: 1}), "type 0", false},
		"no length":      {with(partition.Partition{Start: 1, Type: 1}), "partition 1: has no sectors", false},
		"GPT's fields":   {with(partition.Partition{Start: 1, Sectors: 1, Type: 0x83, Name: "x"}), "need a GPT", true},
		"beyond 2 TiB":   {huge, "32 bits", true},
		"several active": {with(partition.Partition{Start: 1, Sectors: 1, Type: 1, Active: true}, partition.Partition{Start: 2, Sectors: 1, Type: 1, Active: true}), "2 active", false},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.table.Write(nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
			if got := errors.Is(err, partition.ErrUnsupported); got != tc.unsupported {
				t.Errorf("errors.Is(%v, ErrUnsupported) = %v", err, got)
			}
		})
	}
}

// limited fails when a write goes beyond n bytes, as a full disk does.
type limited struct {
	n   int
	err error
}

func (l *limited) WriteAt(b []byte, _ int64) (int, error) {
	if l.n -= len(b); l.n < 0 {
		return 0, l.err
	}
	return len(b), nil
}

// TestWriteError: whatever the region at which the writer fails, its error
// comes back.
func TestWriteError(t *testing.T) {
	full := errors.New("disk full")
	for _, table := range []partition.Table{
		{Label: partition.MBR, Sectors: 1},
		{Label: partition.GPT, Sectors: 1 << 20, DiskGUID: guid(1)},
		{Label: partition.MBR, Sectors: 1 << 20, Partitions: []partition.Partition{
			{Start: 2048, Sectors: 1 << 19, Type: partition.Extended},
			{},
			{},
			{},
			{Start: 4096, Sectors: 2048, Type: partition.Linux},
			{Start: 8192, Sectors: 2048, Type: partition.Linux},
		}},
	} {
		regions, err := table.Regions()
		if err != nil {
			t.Fatal(err)
		}
		need := 0
		for _, r := range regions {
			for _, room := range []int{need, need + len(r.Data) - 1} {
				if err := table.Write(&limited{room, full}); !errors.Is(err, full) {
					t.Errorf("%v with room for %d bytes: error = %v, want %v", table.Label, room, err, full)
				}
			}
			need += len(r.Data)
		}
		if err := table.Write(&limited{need, full}); err != nil {
			t.Errorf("%v with room for all: %v", table.Label, err)
		}
	}
}

func ExampleTable_Regions() {
	table := partition.Table{
		Label:     partition.MBR,
		Sectors:   1 << 21, // 1 GiB
		Signature: 0x8a7b6c5d,
		Partitions: []partition.Partition{
			{Start: 2048, Sectors: 1<<21 - 2048, Type: partition.Linux, Active: true},
		},
	}
	regions, err := table.Regions()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, r := range regions {
		fmt.Printf("offset %d: %d bytes, entry % x\n", r.Offset, len(r.Data), r.Data[446:462])
	}
	// Output:
	// offset 0: 512 bytes, entry 80 20 21 00 83 0e 08 83 00 08 00 00 00 f8 1f 00
}
