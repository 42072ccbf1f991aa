package partition_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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

func guid(n byte) partition.GUID {
	return partition.GUID{0xca, 0x1f, 0x11, 0x22, 0x33, 0x44, 0x80, 0x55, 0xa0, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, n}
}

const mib = 2048 // sectors

// bootDisk is a disk for BIOS and UEFI, of MiB.
func bootDisk(t testing.TB, sectors partition.LBA) partition.Table {
	return partition.Table{
		Label: partition.GPT, Sectors: sectors, DiskGUID: guid(0),
		Partitions: []partition.Partition{
			{Start: mib, Sectors: 8 * mib, TypeGUID: kind(t, "bios-boot"), GUID: guid(1), Name: "BSP"},
			{Start: 9 * mib, Sectors: 32 * mib, TypeGUID: kind(t, "esp"), GUID: guid(2), Name: "ESP", Attributes: partition.Required},
			{
				Start: 41 * mib, Sectors: sectors - 42*mib, TypeGUID: kind(t, "root-x86-64"), GUID: guid(3), Name: "wörld 🌍",
				Attributes: partition.LegacyBIOSBootable | partition.GrowFileSystem | partition.ReadOnly | partition.NoAuto,
			},
		},
	}
}

// sgdiskArgs makes the same table with sgdisk.
func sgdiskArgs(table partition.Table) []string {
	args := []string{"-a", "1", "-U", table.DiskGUID.String()}
	if table.Entries != 0 {
		args = append(args, "-S", fmt.Sprint(table.Entries))
	}
	for i, p := range table.Partitions {
		if p.Sectors == 0 {
			continue
		}
		args = append(args, "-n", fmt.Sprintf("%d:%d:%d", i+1, p.Start, p.Start+p.Sectors-1),
			"-t", fmt.Sprintf("%d:%v", i+1, p.TypeGUID), "-u", fmt.Sprintf("%d:%v", i+1, p.GUID), "-c", fmt.Sprintf("%d:%s", i+1, p.Name))
		for bit := range 64 {
			if p.Attributes>>bit&1 == 1 {
				args = append(args, "-A", fmt.Sprintf("%d:set:%d", i+1, bit))
			}
		}
	}
	return args
}

// sgdiskTable lets sgdisk make the table, with sectors of 512 bytes.
func sgdiskTable(t *testing.T, table partition.Table) string {
	path := filepath.Join(t.TempDir(), "theirs.raw")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, int64(table.Sectors)*512))
	run(t, "gdisk", "sgdisk", append(sgdiskArgs(table), path)...)
	if len(table.Hybrid) == 0 {
		return path
	}
	var numbers []string
	for _, n := range table.Hybrid {
		numbers = append(numbers, fmt.Sprint(n))
	}
	run(t, "gdisk", "sgdisk", "-h", strings.Join(numbers, ":"), path)
	return path
}

// ends returns the first and last 2 MiB of a disk.
func ends(t *testing.T, path string) []byte {
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	st, err := f.Stat()
	must(t, err)
	b := make([]byte, 4<<20)
	_, err = f.ReadAt(b[:2<<20], 0)
	must(t, err)
	_, err = f.ReadAt(b[2<<20:], st.Size()-2<<20)
	must(t, err)
	return b
}

// judgeGPT lets sgdisk, sfdisk, parted and partx look for problems.
func judgeGPT(t *testing.T, path string, table partition.Table) {
	t.Helper()
	used := 0
	for _, p := range table.Partitions {
		if p.Sectors > 0 {
			used++
		}
	}
	if out := run(t, "gdisk", "sgdisk", "-v", path); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v: %s", out)
	}
	if out := run(t, "fdisk", "sfdisk", "--verify", path); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk --verify: %s", out)
	}
	if out := run(t, "util-linux", "partx", "-rgo", "NR", path); len(strings.Fields(out)) != used {
		t.Errorf("partx sees other partitions than %d: %q", used, out)
	}
	if out := run(t, "parted", "parted", "-sm", path, "unit", "s", "print"); strings.Count(out, ";") != used+2 || !strings.Contains(out, ":gpt:") {
		t.Errorf("parted sees other partitions than %d: %q", used, out)
	}
}

func TestSameBytesAsSgdisk(t *testing.T) {
	many := bootDisk(t, 255*63*1024+1)
	many.Entries = 1024
	for i := range many.Partitions {
		many.Partitions[i].Start += mib
	}
	many.Partitions[2].Sectors -= mib
	gaps := bootDisk(t, 255*63*1024)
	gaps.Partitions = append(make([]partition.Partition, 13), gaps.Partitions...)
	hybrid := bootDisk(t, 64*mib+77)
	hybrid.Hybrid = []int{3, 2}
	hybrid.Partitions[1].Type, hybrid.Partitions[2].Type = 0xef, 0x83
	full := partition.Table{Label: partition.GPT, Sectors: 8192, DiskGUID: guid(9), Partitions: []partition.Partition{
		{Start: 34, Sectors: 8192 - 67, TypeGUID: kind(t, "swap"), GUID: guid(7), Name: strings.Repeat("é", 36)},
	}}
	for name, table := range map[string]partition.Table{
		"CHS reaches, numbers 14 to 16": gaps, "CHS does not, 1024 entries": many, "hybrid": hybrid, "full": full,
		"2 TiB and one block": bootDisk(t, 1<<32+1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // sgdisk sleeps for a second
			ours, theirs := disk(t, table), sgdiskTable(t, table)
			a, b := ends(t, ours), ends(t, theirs)
			for i := range a {
				if a[i] != b[i] {
					t.Fatalf("byte %#x is %02x, sgdisk writes %02x:\n% x\n% x", i, a[i], b[i], a[i&^15:i&^15+32], b[i&^15:i&^15+32])
				}
			}
			if len(table.Hybrid) == 0 {
				judgeGPT(t, ours, table)
			}
		})
	}
}

// TestFewEntries: sgdisk does not keep the 16 KiB for them that the
// specification asks for, but finds nothing wrong.
func TestFewEntries(t *testing.T) {
	table := bootDisk(t, 128*mib)
	table.Entries = 4
	judgeGPT(t, disk(t, table), table)
}

// TestRandomTablesLikeSgdisk makes tables from a seed and lets sgdisk make the
// same ones.
func TestRandomTablesLikeSgdisk(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(5, 6))
	names := []string{"esp", "xbootldr", "root-arm64", "home", "srv", "var", "linux-data", "8200", "0x8E00", "EF02"}
	for range 2 {
		table := partition.Table{Label: partition.GPT, Sectors: 1 << 22, DiskGUID: guid(byte(rnd.Uint32()))}
		next := partition.LBA(34)
		for n := range 1 + rnd.IntN(12) {
			next += partition.LBA(rnd.IntN(1 << 16))
			size := 1 + partition.LBA(rnd.IntN(1<<18))
			table.Partitions = append(table.Partitions, partition.Partition{
				Start: next, Sectors: size, TypeGUID: kind(t, names[rnd.IntN(len(names))]), GUID: guid(byte(n)),
				Name: fmt.Sprintf("p %d", rnd.Uint32()), Attributes: partition.Attributes(rnd.Uint64()) & (7 | 0xffff<<48),
			})
			next += size
		}
		rnd.Shuffle(len(table.Partitions), func(i, j int) {
			table.Partitions[i], table.Partitions[j] = table.Partitions[j], table.Partitions[i]
		})
		ours := disk(t, table)
		if !bytes.Equal(ends(t, ours), ends(t, sgdiskTable(t, table))) {
			t.Errorf("other bytes than sgdisk's for %+v", table)
		}
		judgeGPT(t, ours, table)
	}
}

// loop attaches an image with sectors of so many bytes.
func loop(t *testing.T, path string, sector int) string {
	out := run(t, "mount", "losetup", "--show", "-f", "-b", fmt.Sprint(sector), path)
	device := strings.TrimSpace(out)
	t.Cleanup(func() { run(t, "mount", "losetup", "-d", device) })
	return device
}

// TestSectorsOf4096Bytes compares with sgdisk on loop devices, since image
// files always have sectors of 512 bytes for it. That needs root; without, the
// table is only read back.
func TestSectorsOf4096Bytes(t *testing.T) {
	t.Parallel()
	table := bootDisk(t, 1<<14)
	table.SectorSize = 4096
	for i := range table.Partitions {
		p := &table.Partitions[i]
		p.Start, p.Sectors = partition.LBA(256*(i*20+1)), 256*20
	}
	ours := disk(t, table)
	got, err := partition.Read(open(t, ours), 4096<<14)
	must(t, err)
	want := table
	want.Entries = 128
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Read (-want +got):\n%s", diff)
	}
	if os.Geteuid() != 0 {
		t.Log("not root: no loop device to compare on")
		return
	}
	theirs := disk(t, partition.Table{Label: partition.MBR, SectorSize: 4096, Sectors: 1 << 14})
	must(t, os.WriteFile(theirs, nil, 0o600))
	must(t, os.Truncate(theirs, 4096<<14))
	run(t, "gdisk", "sgdisk", append(sgdiskArgs(table), loop(t, theirs, 4096))...)
	if !bytes.Equal(ends(t, ours), ends(t, theirs)) {
		t.Error("other bytes than sgdisk's")
	}
	judgeGPT(t, loop(t, ours, 4096), table)
}

func TestTypesLikeSgdisk(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, 64<<20))
	codes := []string{
		"0700", "0C01", "2700", "4100", "8200", "8300", "8301", "8302", "8303", "8304", "8305", "8306", "8307", "8308", "8309", "830A",
		"8310", "8311", "8312", "8314", "8316", "830C", "830E", "8319", "831B", "8E00", "EA00", "EF00", "EF01", "EF02", "FD00",
	}
	var args []string
	for i, code := range codes {
		args = append(args, "-n", fmt.Sprintf("%d:0:+1M", i+1), "-t", fmt.Sprintf("%d:%s", i+1, code))
	}
	run(t, "gdisk", "sgdisk", append(args, path)...)
	table, err := partition.Read(open(t, path), 64<<20)
	must(t, err)
	for i, code := range codes {
		for _, text := range []string{code, strings.ToLower(code), "0x" + code} {
			if got, err := partition.ParseType(text); err != nil || got != table.Partitions[i].TypeGUID {
				t.Errorf("type %s is %v (%v), but sgdisk writes %v", text, got, err, table.Partitions[i].TypeGUID)
			}
		}
	}
}

// TestTypesLikeSfdisk looks up the GUIDs of the names in sfdisk's list.
func TestTypesLikeSfdisk(t *testing.T) {
	list := strings.ToLower(run(t, "fdisk", "sfdisk", "--label", "gpt", "-T"))
	for name, want := range map[string]string{
		"esp": "efi system", "bios-boot": "bios boot", "xbootldr": "linux extended boot", "swap": "linux swap", "home": "linux home",
		"srv": "linux server data", "var": "linux variable data", "tmp": "linux temporary data", "user-home": "linux user's home",
		"linux-data": "linux filesystem", "linux-generic": "linux filesystem", "lvm": "linux lvm", "raid": "linux raid", "prep": "powerpc prep boot",
		"root-x86-64": "linux root (x86-64)", "root-x86": "linux root (x86)", "root-arm64": "linux root (arm-64)", "root-arm": "linux root (arm)",
		"root-riscv64": "linux root (risc-v-64)", "root-ppc64-le": "linux root (ppc64le)", "root-s390x": "linux root (s390x)",
		"root-loongarch64": "linux root (loongarch-64)", "root-x86-64-verity": "linux root verity (x86-64)",
		"root-arm64-verity-sig": "linux root verity sign. (arm-64)", "usr-x86-64": "linux /usr (x86-64)", "usr-arm64-verity": "linux /usr verity (arm-64)",
	} {
		if line := kind(t, name).String() + "  " + want + "\n"; !strings.Contains(list, line) {
			t.Errorf("sfdisk -T has no line %q", line)
		}
	}
	for name, want := range map[string]string{"8300": "linux-generic", "root-x86-64": "root-x86-64", guid(1).String(): guid(1).String()} {
		if got := partition.TypeName(kind(t, name)); got != want {
			t.Errorf("TypeName(%s) = %q, want %q", name, got, want)
		}
	}
	for _, text := range []string{"", "83", "EF03", "root", "c12a7328-f81f-11d2-ba4b-00a0c93ec93", "c12a7328+f81f-11d2-ba4b-00a0c93ec93b", "g12a7328-f81f-11d2-ba4b-00a0c93ec93b"} {
		if g, err := partition.ParseType(text); err == nil {
			t.Errorf("ParseType(%q) = %v, want an error", text, g)
		}
	}
}

func TestBadGPT(t *testing.T) {
	edit := func(f func(*partition.Table)) partition.Table {
		table := bootDisk(t, 128*mib)
		f(&table)
		return table
	}
	for name, tc := range map[string]struct {
		table partition.Table
		want  string
	}{
		"no disk GUID":    {edit(func(d *partition.Table) { d.DiskGUID = partition.GUID{} }), "the disk has no GUID"},
		"no GUID":         {edit(func(d *partition.Table) { d.Partitions[1].GUID = partition.GUID{} }), "partition 2: has no GUID"},
		"GUID twice":      {edit(func(d *partition.Table) { d.Partitions[2].GUID = guid(1) }), "partition 3: its GUID ca1f1122-3344-8055-a066-778899aabb01 is that of partition 1"},
		"no type":         {edit(func(d *partition.Table) { d.Partitions[0].TypeGUID = partition.GUID{} }), "partition 1: a type of zeros"},
		"no sectors":      {edit(func(d *partition.Table) { d.Partitions[0].Sectors = 0 }), "partition 1: has no sectors"},
		"in the table":    {edit(func(d *partition.Table) { d.Partitions[0].Start = 33 }), "leaves sectors 34 to 262110"},
		"in the backup":   {edit(func(d *partition.Table) { d.Partitions[2].Sectors += mib - 32 }), "partition 3: sectors 83968+178144 overlap the partition table"},
		"leaves the disk": {edit(func(d *partition.Table) { d.Partitions[2].Sectors = 1 << 60 }), "leave the disk"},
		"overlap":         {edit(func(d *partition.Table) { d.Partitions[2].Start-- }), "partition 3: sectors 83967+176128 overlap partition 2"},
		"long name":       {edit(func(d *partition.Table) { d.Partitions[0].Name = strings.Repeat("🌍", 18) + "x" }), "37 UTF-16 code units"},
		"name with NUL":   {edit(func(d *partition.Table) { d.Partitions[0].Name = "a\x00" }), "has a NUL"},
		"not UTF-8":       {edit(func(d *partition.Table) { d.Partitions[0].Name = "\xff" }), "not UTF-8"},
		"EBR":             {edit(func(d *partition.Table) { d.Partitions[0].EBR = 1 }), "no extended boot records"},
		"MBR type":        {edit(func(d *partition.Table) { d.Partitions[0].Type = 0x83 }), "need a hybrid MBR"},
		"active":          {edit(func(d *partition.Table) { d.Partitions[0].Active = true }), "need a hybrid MBR"},
		"few entries":     {edit(func(d *partition.Table) { d.Entries = 2 }), "3 partitions, more than 2"},
		"many entries":    {edit(func(d *partition.Table) { d.Entries, d.Partitions = 16385, nil }), "1 to 16384"},
		"negative":        {edit(func(d *partition.Table) { d.Entries = -1 }), "1 to 16384"},
		"small disk":      {partition.Table{Label: partition.GPT, Sectors: 67, DiskGUID: guid(1)}, "no room for a GPT"},
		"huge disk":       {partition.Table{Label: partition.GPT, Sectors: 1 << 54, DiskGUID: guid(1)}, "disk of 18014398509481984 sectors"},
		"hybrid number":   {edit(func(d *partition.Table) { d.Hybrid = []int{4} }), "partition 4 of the hybrid MBR"},
		"hybrid twice":    {edit(func(d *partition.Table) { d.Hybrid, d.Partitions[0].Type = []int{1, 1}, 0x83 }), "or twice"},
		"hybrid type":     {edit(func(d *partition.Table) { d.Hybrid, d.Partitions[0].Type = []int{1}, 0xee }), "type 0xee"},
		"four hybrid":     {edit(func(d *partition.Table) { d.Hybrid = []int{1, 2, 3, 4} }), "4 partitions in the hybrid MBR"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := tc.table.Regions(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func ExampleTable_Regions_gPT() {
	esp, err := partition.ParseType("esp")
	if err != nil {
		fmt.Println(err)
		return
	}
	table := partition.Table{
		Label:    partition.GPT,
		Sectors:  1 << 21, // 1 GiB
		DiskGUID: partition.GUID{1},
		Partitions: []partition.Partition{
			{Start: 2048, Sectors: 1 << 20, TypeGUID: esp, GUID: partition.GUID{2}, Name: "ESP"},
		},
	}
	regions, err := table.Regions()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, r := range regions {
		fmt.Printf("offset %d: %d bytes\n", r.Offset, len(r.Data))
	}
	// Output:
	// offset 0: 512 bytes
	// offset 512: 16896 bytes
	// offset 1073724928: 16896 bytes
}
