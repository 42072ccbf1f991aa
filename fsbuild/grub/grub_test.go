package grub_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/grub"
	"cairn/fsbuild/partition"
	"cairn/tests/require"
)

const grubDir = "/usr/lib/grub/i386-pc"

// run starts a tool of somebody else, which must be there.
func run(t *testing.T, pkg, tool string, args ...string) string {
	t.Helper()
	out, err := exec.Command(require.Tool(t, tool, pkg), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", tool, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// images returns Debian's boot.img and a core.img that its grub-mkimage makes.
func images(t *testing.T) (boot, core []byte) {
	t.Helper()
	boot, err := os.ReadFile(filepath.Join(grubDir, "boot.img"))
	if err != nil {
		t.Fatalf("%v: install grub-pc-bin", err)
	}
	text, err := grub.EarlyConfig(grub.Root{Label: "cloudimg-rootfs"}, "/boot/grub")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config, out := filepath.Join(dir, "early.cfg"), filepath.Join(dir, "core.img")
	if err = os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-O", "i386-pc", "-d", grubDir, "-p", "/boot/grub", "-c", config, "-o", out}
	run(t, "grub-common", "grub-mkimage", append(args, grub.Modules()...)...)
	core, err = os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return boot, core
}

// changed lists the half-open ranges in which b differs from a.
func changed(a, b []byte) (ranges [][2]int) {
	for i := range b {
		if a[i] == b[i] {
			continue
		}
		if n := len(ranges); n > 0 && ranges[n-1][1] == i {
			ranges[n-1][1]++
		} else {
			ranges = append(ranges, [2]int{i, i + 1})
		}
	}
	return ranges
}

func TestEmbedChangesOnlyItsPlaces(t *testing.T) {
	boot, core := images(t)
	got, err := grub.Embed(boot, core, 0x1122334455667788, 1<<63)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][2]int{{0x5c, 0x64}, {0x66, 0x68}}, changed(boot[:440], got.BootCode)); diff != "" {
		t.Errorf("ranges of boot.img that changed (-want +got):\n%s", diff)
	}
	if want := "\x88\x77\x66\x55\x44\x33\x22\x11\xff\xfa\x90\x90"; string(got.BootCode[0x5c:0x68]) != want {
		t.Errorf("boot.img at 0x5c = % x, want % x", got.BootCode[0x5c:0x68], want)
	}
	padded := append(bytes.Clone(core), make([]byte, len(got.Core)-len(core))...)
	for _, r := range changed(padded, got.Core) {
		if r[0] < 0x1f4 || r[1] > 0x200 {
			t.Errorf("core.img changed at %#x..%#x, outside its block list", r[0], r[1])
		}
	}
	sectors := len(got.Core)/512 - 1
	want := "\x89\x77\x66\x55\x44\x33\x22\x11" + string([]byte{byte(sectors), byte(sectors >> 8)}) + "\x20\x08"
	if string(got.Core[0x1f4:0x200]) != want {
		t.Errorf("block list = % x, want % x", got.Core[0x1f4:0x200], want)
	}
	if len(got.Core)%512 != 0 || len(got.BootCode) != 440 || got.CoreLBA != 0x1122334455667788 {
		t.Errorf("%d bytes of core, %d of boot code, at %d", len(got.Core), len(got.BootCode), got.CoreLBA)
	}
}

func TestCoreFitsBeforeTheFirstPartition(t *testing.T) {
	_, core := images(t)
	if len(core) > 2047*512/2 {
		t.Errorf("core.img has %d bytes, more than half the gap before sector 2048", len(core))
	}
}

// TestAsGrubBIOSSetup lets GRUB's own installer write to a disk: it refuses
// what Embed refuses, and otherwise everything before the root partition is the
// same. It needs a file system on a block device, hence root; without root,
// TestEmbedChangesOnlyItsPlaces and TestWrongImages stand alone.
func TestAsGrubBIOSSetup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: nothing to compare with")
		return
	}
	boot, core := images(t)
	need := partition.LBA(len(core)+511) / 512
	for name, tc := range map[string]struct {
		table      partition.Table
		start, end uint64
		boot, core []byte // nil: as grub-mkimage made it
		refused    bool
	}{
		"MBR":                     {mbrDisk(2048), 1, 2048, nil, nil, false},
		"MBR, smallest gap":       {mbrDisk(need + 1), 1, uint64(need) + 1, nil, nil, false},
		"MBR, gap is small":       {mbrDisk(need), 1, uint64(need), nil, nil, true},
		"GPT":                     {gptDisk(t, 2048, 2048), 2048, 4096, nil, nil, false},
		"GPT, behind the table":   {gptDisk(t, 34, 2014), 34, 2048, nil, nil, false},
		"GPT, in the middle":      {gptDisk(t, 3001, 700), 3001, 3701, nil, nil, false},
		"GPT, smallest":           {gptDisk(t, 2048, need), 2048, 2048 + uint64(need), nil, nil, false},
		"GPT, partition is small": {gptDisk(t, 2048, need-1), 2048, 2047 + uint64(need), nil, nil, true},
		"largest core.img":        {gptDisk(t, 2048, 2048), 2048, 4096, nil, padded(core, 888*512), false},
		"larger core.img":         {gptDisk(t, 2048, 2048), 2048, 4096, nil, padded(core, 888*512+1), true},
		"core.img in pieces":      {mbrDisk(2048), 1, 2048, nil, inPieces(core, 3), false},
		"core.img in more pieces": {mbrDisk(2048), 1, 2048, nil, inPieces(core, 9), false},
		"no end of pieces":        {mbrDisk(2048), 1, 2048, nil, inPieces(core, 42), true},
		"old core.img":            {mbrDisk(2048), 1, 2048, nil, edit(core, 512+0x14, 0xff, 0xff), true},
		"long boot.img":           {mbrDisk(2048), 1, 2048, padded(boot, 513), nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			theirs, ours := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "ours.raw")
			if tc.boot == nil {
				tc.boot = boot
			}
			if tc.core == nil {
				tc.core = core
			}
			writeDisk(t, theirs, tc.table, nil, 0)
			out, refused := grubBIOSSetup(t, dir, theirs, tc.boot, tc.core)
			e, err := grub.Embed(tc.boot, tc.core, tc.start, tc.end)
			if (refused != nil) != tc.refused || (err != nil) != tc.refused {
				t.Fatalf("grub-bios-setup says %v (%s), we %v", refused, out, err)
			}
			if tc.refused {
				return
			}
			tc.table.BootCode = e.BootCode
			writeDisk(t, ours, tc.table, e.Core, int64(e.CoreLBA)*512)
			a, b := readStart(t, theirs), readStart(t, ours)
			if diff := changed(a, b); len(diff) > 0 {
				t.Errorf("bytes that differ from grub-bios-setup's: %#x", diff)
			}
			if bytes.Equal(a[:440], make([]byte, 440)) {
				t.Error("grub-bios-setup wrote nothing")
			}
		})
	}
}

// padded is a copy of b with zeros up to a length.
func padded(b []byte, length int) []byte {
	return append(bytes.Clone(b), make([]byte, length-len(b))...)
}

// edit is a copy of b with other bytes at a place.
func edit(b []byte, at int, with ...byte) []byte {
	c := bytes.Clone(b)
	copy(c[at:], with)
	return c
}

// inPieces is core.img with as many entries in its block list as if GRUB had
// installed it as a file in pieces.
func inPieces(core []byte, pieces int) []byte {
	rest := (len(core)+511)/512 - 1
	for i := range pieces {
		n := 1
		if i == pieces-1 {
			n = rest
		}
		rest -= n
		core = edit(core, 0x1f4-12*i, 0x99, 0, 0, 0, 0, 0, 0, 0, byte(n), byte(n>>8), 0x20, 0x08)
	}
	return core
}

// mbrDisk has a root partition from a sector on.
func mbrDisk(start partition.LBA) partition.Table {
	return partition.Table{
		Label: partition.MBR, Sectors: 2048 * 64, Signature: 0xcafef00d,
		Partitions: []partition.Partition{{Start: start, Sectors: 2048 * 60, Type: partition.Linux, Active: true}},
	}
}

// gptDisk has a BIOS boot partition at sector start, and a root partition from
// 4 MiB on.
func gptDisk(t *testing.T, start, sectors partition.LBA) partition.Table {
	t.Helper()
	bios, err := partition.ParseType("bios-boot")
	must(t, err)
	root, err := partition.ParseType("root-x86-64")
	must(t, err)
	return partition.Table{
		Label: partition.GPT, Sectors: 2048 * 64, DiskGUID: partition.GUID{1},
		Partitions: []partition.Partition{
			{Start: start, Sectors: sectors, TypeGUID: bios, GUID: partition.GUID{2}},
			{Start: 4 * 2048, Sectors: 2048 * 59, TypeGUID: root, GUID: partition.GUID{3}},
		},
	}
}

// grubBIOSSetup installs onto disk with --no-rs-codes. The images lie on a
// small file system of their own, which GRUB is told is a second disk.
func grubBIOSSetup(t *testing.T, dir, disk string, boot, core []byte) ([]byte, error) {
	t.Helper()
	fs, mnt, deviceMap := filepath.Join(dir, "fs.img"), filepath.Join(dir, "mnt"), filepath.Join(dir, "device.map")
	must(t, os.WriteFile(fs, nil, 0o600))
	must(t, os.Truncate(fs, 16<<20))
	must(t, os.Mkdir(mnt, 0o700))
	run(t, "e2fsprogs", "mke2fs", "-qF", "-t", "ext4", fs)
	run(t, "mount", "mount", "-o", "loop", fs, mnt)
	t.Cleanup(func() { run(t, "mount", "umount", mnt) })
	must(t, os.WriteFile(filepath.Join(mnt, "boot.img"), boot, 0o600))
	must(t, os.WriteFile(filepath.Join(mnt, "core.img"), core, 0o600))
	loop := run(t, "util-linux", "findmnt", "-no", "SOURCE", mnt)
	must(t, os.WriteFile(deviceMap, fmt.Appendf(nil, "(hd0) %s\n(hd1) %s\n", disk, loop), 0o600))
	setup := require.Tool(t, filepath.Join(grubDir, "grub-bios-setup"), "grub-pc-bin")
	return exec.Command(setup, "--no-rs-codes", "-m", deviceMap, "-d", mnt, "(hd0)").CombinedOutput()
}

func writeDisk(t *testing.T, path string, table partition.Table, core []byte, offset int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(int64(table.Sectors)*512))
	must(t, table.Write(f))
	_, err = f.WriteAt(core, offset)
	must(t, err)
}

func readStart(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	b := make([]byte, 4<<20)
	_, err = f.ReadAt(b, 0)
	must(t, err)
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCoreTooLarge(t *testing.T) {
	boot, core := images(t)
	sectors := uint64(len(core)+511) / 512
	if _, err := grub.Embed(boot, core, 1, 1+sectors); err != nil {
		t.Errorf("a gap of exactly %d sectors: %v", sectors, err)
	}
	_, err := grub.Embed(boot, core, 1, sectors)
	var size *grub.SizeError
	if !errors.As(err, &size) || size.Need != sectors || size.Room != sectors-1 {
		t.Errorf("error = %v, want a SizeError of %d in %d sectors", err, sectors, sectors-1)
	}
}

// TestLargestCore takes what grub-bios-setup still installs, and expects that
// 1 MiB is enough for it.
func TestLargestCore(t *testing.T) {
	boot, core := images(t)
	core = padded(core, 888*512)
	if _, err := grub.Embed(boot, core, 2048, 4096); err != nil {
		t.Errorf("core.img of %d bytes: %v", len(core), err)
	}
}

func TestEmbedDoesNotTouchItsInput(t *testing.T) {
	boot, core := images(t)
	boot2, core2 := bytes.Clone(boot), bytes.Clone(core)
	if _, err := grub.Embed(boot, core, 4096, 6144); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(boot, boot2) || !bytes.Equal(core, core2) {
		t.Error("Embed changed the images it was given")
	}
}

func TestEmbedIsIdempotent(t *testing.T) {
	boot, core := images(t)
	first, err := grub.Embed(boot, core, 1, 2048)
	must(t, err)
	again, err := grub.Embed(append(bytes.Clone(first.BootCode), boot[440:]...), first.Core, 1, 2048)
	if diff := cmp.Diff(first, again); err != nil || diff != "" {
		t.Errorf("embedding an embedded image: %v (-first +again):\n%s", err, diff)
	}
}

func TestOldBIOSParameterBlockIsCleared(t *testing.T) {
	boot, core := images(t)
	want, err := grub.Embed(boot, core, 1, 2048)
	must(t, err)
	for i := 0x03; i < 0x5a; i++ {
		boot[i] = 0xaa
	}
	got, err := grub.Embed(boot, core, 1, 2048)
	if err != nil || !bytes.Equal(got.BootCode, want.BootCode) {
		t.Errorf("boot code depends on the parameter block of boot.img (%v)", err)
	}
}

func TestWrongImages(t *testing.T) {
	boot, core := images(t)
	for name, tc := range map[string]struct {
		boot, core []byte
		want       error
	}{
		"no boot.img":       {nil, core, grub.ErrBootImage},
		"long boot.img":     {padded(boot, 513), core, grub.ErrBootImage},
		"no signature":      {edit(boot, 0x1fe, 0), core, grub.ErrBootImage},
		"other boot code":   {edit(boot, 0x66, 0x31), core, grub.ErrBootImage},
		"no core.img":       {boot, nil, grub.ErrCoreImage},
		"only diskboot":     {boot, core[:512], grub.ErrCoreImage},
		"no block list":     {boot, edit(core, 0x1ff, 0), grub.ErrCoreImage},
		"no end of pieces":  {boot, inPieces(core, 42), grub.ErrCoreImage},
		"cut off":           {boot, core[:len(core)-512], grub.ErrCoreImage},
		"a piece cut off":   {boot, inPieces(core, 2)[:len(core)-512], grub.ErrCoreImage},
		"cut in its header": {boot, core[:512+20], grub.ErrCoreImage},
		"old version":       {boot, edit(core, 512+0x14, 0xff, 0xff), grub.ErrCoreImage},
		"far too much":      {boot, padded(core, 888*512+1), grub.ErrCoreImage},
		"an ELF as core":    {boot, append([]byte("\x7fELF"), make([]byte, 4096)...), grub.ErrCoreImage},
		"swapped by error":  {core, boot, grub.ErrBootImage},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := grub.Embed(tc.boot, tc.core, 1, 1<<20); !errors.Is(err, tc.want) {
				t.Errorf("error = %v, want %v", err, tc.want)
			}
		})
	}
	for _, gap := range [][2]uint64{{0, 2048}, {10, 9}} {
		if _, err := grub.Embed(boot, core, gap[0], gap[1]); err == nil {
			t.Errorf("gap %v: no error", gap)
		}
	}
}

func TestEarlyConfig(t *testing.T) {
	for name, tc := range map[string]struct {
		root grub.Root
		dir  string
		want string // of the error when it does not end in a line break
	}{
		"label":         {grub.Root{Label: "cloudimg-rootfs"}, "/boot/grub", "search.fs_label cloudimg-rootfs root\nset prefix=($root)/boot/grub\n"},
		"uuid":          {grub.Root{UUID: "0a1b2c3d-0000-4000-8000-0123456789ab"}, "/grub", "search.fs_uuid 0a1b2c3d-0000-4000-8000-0123456789ab root\nset prefix=($root)/grub\n"},
		"odd label":     {grub.Root{Label: "my $root; x\"y"}, "/boot/grub", "search.fs_label 'my $root; x\"y' root\nset prefix=($root)/boot/grub\n"},
		"option-like":   {grub.Root{Label: "-x"}, "/boot/grub", "search.fs_label '-x' root\nset prefix=($root)/boot/grub\n"},
		"odd directory": {grub.Root{Label: "a"}, "/boot dir", "search.fs_label a root\nset prefix=($root)'/boot dir'\n"},
		"quote":         {grub.Root{Label: "a'b"}, "/boot/grub", "has a quote"},
		"line break":    {grub.Root{Label: "a\nb"}, "/boot/grub", "has a quote, line break"},
		"neither":       {grub.Root{}, "/boot/grub", "either a label or a UUID"},
		"both":          {grub.Root{Label: "a", UUID: "b"}, "/boot/grub", "either a label or a UUID"},
		"bad uuid":      {grub.Root{UUID: "1234;reboot"}, "/boot/grub", "hexadecimal"},
		"relative":      {grub.Root{Label: "a"}, "boot/grub", "not absolute"},
		"bad directory": {grub.Root{Label: "a"}, "/a\nb", "directory \"/a\\nb\" has a quote"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := grub.EarlyConfig(tc.root, tc.dir)
			if strings.HasSuffix(tc.want, "\n") {
				if err != nil || got != tc.want {
					t.Errorf("got %q, %v; want %q", got, err, tc.want)
				}
			} else if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want one with %q", err, tc.want)
			}
		})
	}
}

func ExampleEarlyConfig() {
	text, err := grub.EarlyConfig(grub.Root{Label: "cloudimg-rootfs"}, "/boot/grub")
	fmt.Printf("%s%v\n", text, err)
	// Output:
	// search.fs_label cloudimg-rootfs root
	// set prefix=($root)/boot/grub
	// <nil>
}
