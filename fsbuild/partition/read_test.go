package partition_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/partition"
)

// image returns the bytes of a small disk.
func image(t testing.TB, table partition.Table) []byte {
	t.Helper()
	regions, err := table.Regions()
	must(t, err)
	b := make([]byte, int64(table.Sectors)*int64(max(table.SectorSize, 512)))
	for _, r := range regions {
		copy(b[r.Offset:], r.Data)
	}
	return b
}

func smallGPT(t testing.TB) partition.Table {
	table := bootDisk(t, 256)
	table.SectorSize, table.Entries = 512, 128
	table.BootCode = bytes.Repeat([]byte{0xeb, 0}, 220)
	for i := range table.Partitions {
		table.Partitions[i].Start, table.Partitions[i].Sectors = partition.LBA(40+i*20), 20
	}
	return table
}

func TestReadGivesTheTableBack(t *testing.T) {
	hybrid := smallGPT(t)
	hybrid.Hybrid = []int{3, 1}
	hybrid.Partitions[0].Type, hybrid.Partitions[2].Type, hybrid.Partitions[2].Active = 0x0b, 0x83, true
	gap := smallGPT(t)
	gap.Partitions[1] = partition.Partition{}
	large := smallGPT(t)
	large.Entries, large.Sectors = 300, 400
	for i := range large.Partitions {
		large.Partitions[i].Start += 60
	}
	for name, table := range map[string]partition.Table{
		"GPT": smallGPT(t), "hybrid": hybrid, "gap": gap, "300 entries": large,
		"no partition": {Label: partition.GPT, SectorSize: 512, Sectors: 128, DiskGUID: guid(1), Entries: 128},
		"MBR": {
			Label: partition.MBR, SectorSize: 512, Sectors: 2048, Signature: 7, BootCode: bytes.Repeat([]byte{1}, 440),
			Partitions: []partition.Partition{{}, {Start: 1, Sectors: 2047, Type: 0xb, Active: true}},
		},
		"empty MBR": {Label: partition.MBR, SectorSize: 512, Sectors: 9, Signature: 7},
	} {
		t.Run(name, func(t *testing.T) {
			b := image(t, table)
			got, err := partition.Read(bytes.NewReader(b), int64(len(b)))
			must(t, err)
			if diff := cmp.Diff(table, got); diff != "" {
				t.Errorf("Read (-want +got):\n%s", diff)
			}
		})
	}
}

// TestReadOthers reads tables of parted and of diskimage-builder's dialect.
func TestReadOthers(t *testing.T) {
	t.Parallel()
	path := disk(t, partition.Table{Label: partition.MBR, Sectors: 128 * mib})
	run(t, "parted", "parted", "-s", path, "mklabel", "gpt", "mkpart", "first", "ext4", "1MiB", "20MiB", "mkpart", "second", "fat32", "20MiB", "127MiB", "set", "2", "esp", "on")
	got, err := partition.Read(open(t, path), 128<<20)
	must(t, err)
	want := []partition.Partition{
		{Start: mib, Sectors: 19 * mib, TypeGUID: kind(t, "linux-data"), Name: "first"},
		{Start: 20 * mib, Sectors: 107 * mib, TypeGUID: kind(t, "esp"), Name: "second"},
	}
	for i := range got.Partitions {
		got.Partitions[i].GUID = partition.GUID{}
	}
	if diff := cmp.Diff(want, got.Partitions); diff != "" || got.Damage != nil || got.Label != partition.GPT {
		t.Errorf("Read (-want +got):\n%s%v", diff, got.Damage)
	}
	path = disk(t, partition.Table{Label: partition.MBR, Sectors: 128 * mib})
	run(t, "parted", "parted", "-s", path, "mklabel", "msdos", "mkpart", "primary", "1MiB", "9MiB", "mkpart", "extended", "9MiB", "100%",
		"mkpart", "logical", "10MiB", "20MiB", "mkpart", "logical", "21MiB", "100%")
	got, err = partition.Read(open(t, path), 128<<20)
	must(t, err)
	want = []partition.Partition{
		{Start: mib, Sectors: 8 * mib, Type: 0x83},
		{Start: 9 * mib, Sectors: 119 * mib, Type: 0x0f},
		{},
		{},
		{Start: 10 * mib, Sectors: 10 * mib, Type: 0x83, EBR: 9 * mib},
		{Start: 21 * mib, Sectors: 107 * mib, Type: 0x83, EBR: 20*mib + 1},
	}
	if len(got.Partitions) == 6 {
		want[5].EBR = got.Partitions[5].EBR
	}
	if diff := cmp.Diff(want, got.Partitions); diff != "" {
		t.Errorf("Read (-want +got):\n%s", diff)
	}
}

// reseal corrects the checksums of the header at offset.
func reseal(b []byte, offset int) {
	h := b[offset : offset+92]
	le := binary.LittleEndian
	at, n := le.Uint64(h[72:])*512, uint64(le.Uint32(h[80:]))*uint64(le.Uint32(h[84:]))
	if at <= uint64(len(b)) && n <= uint64(len(b))-at {
		le.PutUint32(h[88:], crc32.ChecksumIEEE(b[at:at+n]))
	}
	clear(h[16:20])
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
}

func TestBackupIsTaken(t *testing.T) {
	table := smallGPT(t)
	backup := 255 * 512
	for name, tc := range map[string]struct {
		edit func(b []byte)
		want string // of Damage
	}{
		"no primary":         {func(b []byte) { clear(b[512:1024]) }, "primary header"},
		"primary's checksum": {func(b []byte) { b[512+60]++ }, "primary header: header in sector 1: damaged partition table: wrong checksum"},
		"primary's entries":  {func(b []byte) { b[1024+130]++ }, "primary header: entries in sector 2: wrong checksum"},
		"primary misplaced":  {func(b []byte) { b[512+24] = 9; reseal(b, 512) }, "says that it is in sector 9"},
		"revision":           {func(b []byte) { b[512+10] = 2; reseal(b, 512) }, "revision 0x20000 is not 1"},
		"header size":        {func(b []byte) { b[512+12] = 91 }, "says that it has 91 bytes"},
		"entry size":         {func(b []byte) { b[512+84] = 129; reseal(b, 512) }, "entries of 129 bytes"},
		"no entries":         {func(b []byte) { b[512+80] = 0; reseal(b, 512) }, "0 entries"},
		"entries far away":   {func(b []byte) { b[512+79] = 1; reseal(b, 512) }, "entries in sector 72057594037927938"},
		"entries in header":  {func(b []byte) { b[512+72] = 1; reseal(b, 512) }, "entries in sector 1"},
		"no backup":          {func(b []byte) { clear(b[backup:]) }, "backup header: header in sector 255"},
		"another backup":     {func(b []byte) { b[backup-32*512+56] = 'x'; reseal(b, backup) }, "backup header: its table is another one"},
		"alternate nowhere":  {func(b []byte) { b[512+39] = 1; reseal(b, 512) }, "backup header"},
		"no protective MBR":  {func(b []byte) { clear(b[:512]) }, "no protective MBR"},
		"hybrid entry":       {func(b []byte) { copy(b[462:], []byte{0, 0, 0, 0, 0x83, 0, 0, 0, 41, 0, 0, 0, 1}) }, "hybrid MBR: its entry 2 is no partition"},
	} {
		t.Run(name, func(t *testing.T) {
			b := image(t, table)
			tc.edit(b)
			got, err := partition.Read(bytes.NewReader(b), int64(len(b)))
			must(t, err)
			if diff := cmp.Diff(table.Partitions, got.Partitions); diff != "" || got.DiskGUID != table.DiskGUID {
				t.Errorf("Read (-want +got):\n%s", diff)
			}
			if !errors.Is(got.Damage, partition.ErrDamaged) || !strings.Contains(got.Damage.Error(), tc.want) {
				t.Errorf("damage is %v, want %q", got.Damage, tc.want)
			}
		})
	}
	t.Run("larger disk", func(t *testing.T) {
		b := append(image(t, table), make([]byte, 4096)...)
		got, err := partition.Read(bytes.NewReader(b), int64(len(b)))
		must(t, err)
		if got.Damage == nil || !strings.Contains(got.Damage.Error(), "in sector 255, not in the disk's last one, 263") {
			t.Errorf("damage is %v", got.Damage)
		}
	})
}

func TestNoTable(t *testing.T) {
	fat := make([]byte, 4096)
	copy(fat, "\xeb\x58\x90mkfs.fat")
	copy(fat[0x52:], "FAT32   ")
	fat[510], fat[511] = 0x55, 0xaa
	text := bytes.Repeat([]byte("text"), 1024)
	text[510], text[511] = 0x55, 0xaa
	for name, b := range map[string][]byte{"nothing": nil, "short": make([]byte, 511), "zeros": make([]byte, 4096), "FAT": fat, "text": text} {
		if _, err := partition.Read(bytes.NewReader(b), int64(len(b))); !errors.Is(err, partition.ErrNoTable) {
			t.Errorf("%s: error = %v, want ErrNoTable", name, err)
		}
	}
}

func TestDamaged(t *testing.T) {
	mbr := image(t, partition.Table{
		Label: partition.MBR, Sectors: 4096,
		Partitions: []partition.Partition{
			{Start: 1, Sectors: 9, Type: 0x83},
			{Start: 10, Sectors: 4000, Type: 0x05},
			{},
			{},
			{Start: 20, Sectors: 10, Type: 0x83},
			{Start: 40, Sectors: 10, Type: 0x83},
		},
	})
	gpt := image(t, smallGPT(t))
	both := func(at int, value byte) func([]byte) { // in both copies of the entries
		return func(b []byte) {
			b[1024+at], b[255*512-32*512+at] = value, value
			reseal(b, 512)
			reseal(b, 255*512)
		}
	}
	for name, tc := range map[string]struct {
		disk []byte
		edit func(b []byte)
		want string
	}{
		"MBR leaves disk":  {mbr, func(b []byte) { b[446+15] = 1 }, "partition 1: sectors 1+16777225 leave the disk"},
		"MBR overlap":      {mbr, func(b []byte) { b[446+12] = 10 }, "partition 2: sectors 10+4000 overlap partition 1"},
		"chain loops":      {mbr, func(b []byte) { b[10*512+446+24] = 0 }, "has no end at sector 10"},
		"chain leaves":     {mbr, func(b []byte) { b[10*512+446+27] = 9 }, "leave the disk"},
		"logical leaves":   {mbr, func(b []byte) { b[30*512+446+14] = 9 }, "partition 6: sectors 40+589834 leave the disk"},
		"no usable header": {gpt, func(b []byte) { b[512]++; b[255*512]++ }, "neither the primary nor the backup"},
		"GPT leaves":       {gpt, both(40+128, 255), "neither the primary nor the backup header can be used: partition 2: sectors 60+196 are not within 34 to 222"},
		"GPT overlap":      {gpt, both(32+128, 59), "partition 2: sectors 59+21 overlap partition 1"},
		"GPT backwards":    {gpt, both(40, 1), "partition 1: sectors 40+0"},
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(tc.disk)
			tc.edit(b)
			_, err := partition.Read(bytes.NewReader(b), int64(len(b)))
			if !errors.Is(err, partition.ErrDamaged) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want ErrDamaged with %q", err, tc.want)
			}
		})
	}
}

type failingReader struct{ err error }

func (r failingReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }

func TestReadError(t *testing.T) {
	if _, err := partition.Read(failingReader{os.ErrClosed}, 4096); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error = %v, want %v", err, os.ErrClosed)
	}
	if _, err := partition.Read(bytes.NewReader(make([]byte, 100)), 4096); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error = %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

// FuzzRead: whatever the disk holds, Read returns a table or an error and, if
// the table can be written, gives it back when read again. A small disk is
// given by its first sectors, and by the last one and the backup's entries of a
// GPT; checksums are corrected, so that the fuzzer gets behind them.
func FuzzRead(f *testing.F) {
	gpt := smallGPT(f)
	gpt.Entries, gpt.Hybrid, gpt.Partitions[0].Type = 4, []int{1}, 0x0b
	for _, table := range []partition.Table{
		gpt,
		{Label: partition.MBR, Sectors: 256, Partitions: []partition.Partition{{Start: 1, Sectors: 9, Type: 0x83, Active: true}}},
		{Label: partition.MBR, Sectors: 256, Partitions: []partition.Partition{
			{Start: 1, Sectors: 50, Type: 0x05}, {}, {}, {}, {Start: 3, Sectors: 10, Type: 0x83, EBR: 1}, {Start: 40, Sectors: 10, Type: 0x83, EBR: 2},
		}},
	} {
		b := image(f, table)
		f.Add(b[:1536], b[223*512:][:512], b[255*512:])
	}
	f.Fuzz(func(t *testing.T, head, entries, header []byte) {
		b := make([]byte, 256*512)
		copy(b, head)
		copy(b[223*512:], entries)
		copy(b[255*512:], header)
		for _, offset := range []int{512, 255 * 512} {
			if bytes.HasPrefix(b[offset:], []byte("EFI PART")) {
				reseal(b, offset)
			}
		}
		table, err := partition.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		regions, err := table.Regions()
		if err != nil {
			return
		}
		clear(b)
		for _, r := range regions {
			copy(b[r.Offset:], r.Data)
		}
		again, err := partition.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatalf("Read of what was read and written: %v", err)
		}
		table.Damage = nil
		if diff := cmp.Diff(table, again); diff != "" {
			t.Errorf("Read (-first +second):\n%s", diff)
		}
	})
}

func ExampleRead() {
	written := partition.Table{
		Label: partition.MBR, Sectors: 4096, Signature: 0xcafe,
		Partitions: []partition.Partition{{Start: 2048, Sectors: 2048, Type: partition.Linux, Active: true}},
	}
	regions, err := written.Regions()
	if err != nil {
		fmt.Println(err)
		return
	}
	disk := make([]byte, 4096*512)
	copy(disk, regions[0].Data)
	table, err := partition.Read(bytes.NewReader(disk), int64(len(disk)))
	fmt.Println(table.Label, len(table.Partitions), table.Partitions[0].Start, err)
	// Output:
	// dos 1 2048 <nil>
}

// TestPartx: libblkid, by which Linux's tools and udev find partitions, sees the
// numbers, places and identifiers of the table.
func TestPartx(t *testing.T) {
	hybrid := smallGPT(t)
	hybrid.Hybrid = []int{3, 1}
	hybrid.Partitions[0].Type, hybrid.Partitions[2].Type = 0x0b, 0x83
	large := bootDisk(t, 100*mib)
	large.SectorSize = 4096
	for name, table := range map[string]partition.Table{
		"GPT": bootDisk(t, 100*mib), "hybrid": hybrid, "4096": large, "MBR": logicalDisk(),
	} {
		t.Run(name, func(t *testing.T) {
			path, sector := disk(t, table), max(table.SectorSize, 512)
			args := []string{"--raw", "--noheadings", "--output", "NR,START,SECTORS,UUID", "--sector-size", fmt.Sprint(sector), path}
			want := ""
			for i, p := range table.Partitions {
				id := p.GUID.String()
				if table.Label == partition.MBR {
					id = fmt.Sprintf("%08x-%02x", table.Signature, i+1)
				}
				if units := partition.LBA(sector / 512); p.Sectors > 0 {
					want += fmt.Sprintf("%d %d %d %s\n", i+1, p.Start*units, p.Sectors*units, strings.ToLower(id))
				}
			}
			if diff := cmp.Diff(want, run(t, "util-linux", "partx", args...)); diff != "" {
				t.Errorf("partx (-want +got):\n%s", diff)
			}
		})
	}
}
