package partition_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/partition"
)

// logicalDisk has an extended partition with three logical ones, as sfdisk
// lays them out.
func logicalDisk() partition.Table {
	return partition.Table{
		Label: partition.MBR, SectorSize: 512, Sectors: 2097152, Signature: 0x11223344,
		Partitions: []partition.Partition{
			{Start: 2048, Sectors: 204800, Type: partition.Linux, Active: true},
			{Start: 206848, Sectors: 1890304, Type: partition.Extended},
			{},
			{},
			{Start: 208896, Sectors: 204800, Type: partition.Linux},
			{Start: 415744, Sectors: 102400, Type: 0x82},
			{Start: 520192, Sectors: 1576960, Type: partition.Linux},
		},
	}
}

// sfdiskScript writes a table as sfdisk's input.
func sfdiskScript(table partition.Table) string {
	script := fmt.Sprintf("label: dos\nlabel-id: 0x%08x\nunit: sectors\nsector-size: 512\n\n", table.Signature)
	for i, p := range table.Partitions {
		if p.Sectors == 0 {
			continue
		}
		script += fmt.Sprintf("p%d : start= %d, size= %d, type=%x", i+1, p.Start, p.Sectors, p.Type)
		if p.Active {
			script += ", bootable"
		}
		script += "\n"
	}
	return script
}

// TestSameBytesAsSfdisk compares all boot records but for the CHS addresses:
// sfdisk assumes 255 heads.
func TestSameBytesAsSfdisk(t *testing.T) {
	table := logicalDisk()
	ours, theirs := disk(t, table), disk(t, partition.Table{Label: partition.MBR, Sectors: table.Sectors})
	script := t.TempDir() + "/script"
	must(t, os.WriteFile(script, []byte(sfdiskScript(table)), 0o600))
	run(t, "bash", "bash", "-c", `sfdisk -q "$1" < "$2"`, "-", theirs, script)
	for _, sector := range []int64{0, 206848, 206848 + 2048 + 204800, 518144} {
		a, b := record(t, ours, sector), record(t, theirs, sector)
		if diff := cmp.Diff(b, a); diff != "" {
			t.Errorf("sector %d (-sfdisk +ours):\n%s", sector, diff)
		}
	}
	if out := run(t, "parted", "parted", "-sm", ours, "unit", "s", "print"); !strings.Contains(out, "\n7:520192s:2097151s:1576960s:") {
		t.Errorf("parted: %s", out)
	}
}

// record returns a boot record in hexadecimal, a line for each entry, without
// CHS addresses.
func record(t *testing.T, path string, sector int64) []string {
	b := make([]byte, 512)
	_, err := open(t, path).ReadAt(b, sector*512)
	must(t, err)
	lines := []string{fmt.Sprintf("%x", b[440:446]), fmt.Sprintf("%x", b[510:])}
	for i := range 4 {
		e := b[446+i*16:]
		lines = append(lines, fmt.Sprintf("%02x %02x % x", e[0], e[4], e[8:16]))
	}
	return lines
}

func TestSfdiskReadsLogicalPartitions(t *testing.T) {
	apart := logicalDisk()
	apart.Partitions[5].EBR = 413696 + 63 // not at the first free sector
	apart.Partitions[6].Start, apart.Partitions[6].Sectors = 520193, 1576959
	unordered := logicalDisk() // on the disk 5, 7, 6
	unordered.Partitions[5], unordered.Partitions[6] = unordered.Partitions[6], unordered.Partitions[5]
	unordered.Partitions[5].EBR, unordered.Partitions[6].EBR = 518144, 413696
	empty := logicalDisk()
	empty.Partitions = empty.Partitions[:2]
	for name, table := range map[string]partition.Table{
		"three": logicalDisk(), "own place": apart, "unordered": unordered, "none": empty,
	} {
		t.Run(name, func(t *testing.T) {
			path := disk(t, table)
			out := strings.ReplaceAll(run(t, "fdisk", "sfdisk", "-d", path), path, "p")
			for line := range strings.Lines(sfdiskScript(table)) {
				if line = strings.Join(strings.Fields(line), " "); !strings.Contains(strings.Join(strings.Fields(out), " "), line) {
					t.Errorf("sfdisk -d lacks %q:\n%s", line, out)
				}
			}
			got, err := partition.Read(open(t, path), int64(table.Sectors)*512)
			must(t, err)
			again, err := got.Regions()
			must(t, err)
			want, err := table.Regions()
			must(t, err)
			if diff := cmp.Diff(want, again); diff != "" {
				t.Errorf("regions after Read (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBadLogicalPartitions(t *testing.T) {
	edit := func(f func(p []partition.Partition)) partition.Table {
		table := logicalDisk()
		f(table.Partitions)
		return table
	}
	long := logicalDisk()
	for i := range 300 {
		start := partition.LBA(1000000 + 2*i)
		long.Partitions = append(long.Partitions, partition.Partition{Start: start, Sectors: 1, Type: 0x83})
	}
	for name, tc := range map[string]struct {
		table partition.Table
		want  string
	}{
		"no extended":      {edit(func(p []partition.Partition) { p[1].Type = 0x83 }), "none of these is extended"},
		"two extended":     {edit(func(p []partition.Partition) { p[0].Type = 0x05 }), "2 extended partitions"},
		"extended inside":  {edit(func(p []partition.Partition) { p[4].Type = 0x85 }), "2 extended partitions"},
		"unused":           {edit(func(p []partition.Partition) { p[5] = partition.Partition{} }), "partition 6: a logical number cannot be left unused"},
		"no room for EBR":  {edit(func(p []partition.Partition) { p[4].Start = 206848 }), "partition 5: starts at sector 206848, which is not behind"},
		"leaves":           {edit(func(p []partition.Partition) { p[0].Start, p[1].Sectors = 1048, 1890303 }), "partition 7: sectors 520192+1576960 with the boot record in 518144 leave"},
		"before":           {edit(func(p []partition.Partition) { p[5].EBR = 100 }), "partition 6: sectors 415744+102400 with the boot record in 100 leave"},
		"first EBR":        {edit(func(p []partition.Partition) { p[4].EBR = 206849 }), "the first extended boot record is in sector 206849"},
		"EBR in another":   {edit(func(p []partition.Partition) { p[6].EBR = 415744 }), "partition 7: its extended boot record in sector 415744 overlaps partition 6"},
		"EBR twice":        {edit(func(p []partition.Partition) { p[6].EBR = 413696 }), "partition 6: its extended boot record in sector 413696 overlaps partition 7"},
		"EBR of a primary": {edit(func(p []partition.Partition) { p[0].EBR = 1 }), "only a logical partition"},
		"overlap inside":   {edit(func(p []partition.Partition) { p[5].Start, p[5].EBR, p[6].EBR = 500000, 413696, 413697 }), "partition 7: sectors 520192+1576960 overlap partition 6"},
		"overlap outside":  {edit(func(p []partition.Partition) { p[0].Sectors++ }), "partition 2: sectors 206848+1890304 overlap partition 1"},
		"very many":        {long, "303 logical partitions, more than 256"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := tc.table.Regions(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}
