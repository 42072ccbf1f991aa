package guest_test

import (
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cairn/cmd/internal/boot"
	"cairn/tests/require"
)

// The EFI system partition of the element block-device-efi, in bytes.
const (
	espStart = 1 << 20
	espSize  = 550 << 20
)

// TestFirmware builds one image that a BIOS, UEFI and UEFI with Secure Boot
// start, and boots it by the first and the last. The image holds two boot
// loaders for UEFI: the signed one, and one of its own making, which Secure Boot
// has to refuse. UEFI without Secure Boot starts such a loader from an image of
// its own, with sectors of 4096 bytes and a disk of several file systems.
func TestFirmware(t *testing.T) {
	t.Parallel()
	who := require.OrdinaryUser(t)
	dir := shared(t, who)
	image, large := filepath.Join(dir, "efi.raw"), filepath.Join(dir, "large.raw")
	env := []string{"ELEMENTS_PATH=" + testElements(t), "DIB_GRUB_TIMEOUT=0"}
	elements := []string{"debian-minimal", "vm", "growroot", "guest-report"}
	buildAs(t, who, dir, env, append(elements, "-n", "-t", "raw", "-o", image, "block-device-efi")...)
	checkDisk(t, image)
	buildAs(t, who, dir, append(env, layout(t, "gpt-4k.yaml"), "DIB_BOOTLOADER_SECURE_BOOT=False"),
		append(elements, "-n", "-t", "raw", "-o", large, "block-device-efi-4k")...)
	own := ownLoader(t, image)
	for _, test := range []struct {
		name, image string
		firmware    boot.Firmware
		sector      int // bytes
		check       func(*testing.T, *reporter)
	}{
		{"BIOS", image, boot.BIOS, 512, func(t *testing.T, r *reporter) { r.check(t, hybrid("BIOS", "")) }},
		{"UEFI", large, boot.UEFI, 4096, func(t *testing.T, r *reporter) { r.check(t, largeFacts) }},
		{"Secure Boot", image, boot.SecureBoot, 512, checkSecureBoot},
		{"Secure Boot refuses", own, boot.SecureBoot, 512, checkRefusal},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.check(t, power(t, test.image, test.firmware, test.sector))
		})
	}
}

// noErrors is what findmnt --verify says of an fstab that is right.
const noErrors = "Success, no errors or warnings detected"

// hybrid are the facts about a guest of the element block-device-efi.
func hybrid(firmware, secure string) map[string]string {
	return map[string]string{
		"firmware": firmware, "secure boot": secure, "root": "/dev/vda3", "esp": "/dev/vda1 vfat",
		"mounted": "/ /dev/vda3 ext4", "swap": "", "fstab": noErrors,
	}
}

// largeFacts are those about a guest of the disk of layouts/gpt-4k.yaml.
var largeFacts = map[string]string{
	"firmware": "UEFI", "secure boot": "0", "root": "/dev/vda5", "esp": "/dev/vda1 vfat",
	"mounted": "/ /dev/vda5 ext4 /boot /dev/vda2 ext3 /var /dev/vda3 ext4", "swap": "/dev/vda4", "fstab": noErrors,
}

// checkDisk lets other tools judge the partition table and the EFI system
// partition of a raw image.
func checkDisk(t *testing.T, image string) {
	t.Helper()
	judge := func(tool, debianPackage string, args ...string) string {
		out, err := exec.Command(require.Tool(t, tool, debianPackage), args...).CombinedOutput()
		if err != nil {
			t.Errorf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	table := judge("sgdisk", "gdisk", "--verify", "--print", image)
	for _, want := range []string{"No problems found", "EF00  ESP", "EF02  BSP", "8300  root"} {
		if !strings.Contains(table, want) {
			t.Errorf("sgdisk lacks %q:\n%s", want, table)
		}
	}
	esp := filepath.Join(t.TempDir(), "esp")
	copySection(t, esp, image)
	judge("fsck.vfat", "dosfstools", "-n", esp)
	files := strings.Fields(judge("mdir", "mtools", "-/", "-b", "-i", esp, "::"))
	files = slices.DeleteFunc(files, func(name string) bool { return strings.HasSuffix(name, "/") })
	slices.Sort(files)
	want := []string{
		"::/EFI/BOOT/BOOTX64.EFI", "::/EFI/BOOT/grubx64.efi", "::/EFI/BOOT/mmx64.efi", "::/EFI/debian/grub.cfg", "::/own.efi",
	}
	if !slices.Equal(files, want) {
		t.Errorf("the EFI system partition has %q, want %q", files, want)
	}
}

// copySection copies the EFI system partition of a raw image to a new file.
func copySection(t *testing.T, path, image string) {
	t.Helper()
	in, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, io.NewSectionReader(in, espStart, espSize))
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}

// ownLoader copies a raw image and puts the loader own.efi of its EFI system
// partition where firmware looks for one.
func ownLoader(t *testing.T, image string) string {
	t.Helper()
	changed := filepath.Join(filepath.Dir(image), "own.raw")
	partition := changed + "@@" + strconv.Itoa(espStart)
	loader := filepath.Join(t.TempDir(), "own.efi")
	for _, args := range [][]string{
		{"cp", "--sparse=always", image, changed},
		{require.Tool(t, "mcopy", "mtools"), "-i", partition, "::own.efi", loader},
		{require.Tool(t, "mcopy", "mtools"), "-o", "-i", partition, loader, "::EFI/BOOT/BOOTX64.EFI"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	return changed
}

// reporter is a guest of the element guest-report, which tells about itself on
// its console.
type reporter struct {
	*boot.Machine
	seen int // bytes of the console that have been looked at
}

// power starts a guest on a disk larger than the image. It ends with the test.
func power(t *testing.T, image string, firmware boot.Firmware, sector int) *reporter {
	t.Helper()
	require.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	require.Tool(t, "qemu-img", "qemu-utils")
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	m, err := boot.Start(within(t, commandTimeout), boot.Config{
		Image: image, DiskBytes: diskBytes, SectorSize: sector, Accel: accelerator(), Firmware: firmware, Isolated: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			keepTranscript(t, m, strings.ReplaceAll(t.Name(), "/", "-"))
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return &reporter{Machine: m}
}

// wait waits for a text on what follows of the console, and returns all
// before it.
func (r *reporter) wait(t *testing.T, text string) string {
	t.Helper()
	end, err := r.Serial().Wait(within(t, bootTimeout), r.seen, text)
	if err != nil {
		t.Fatal(err)
	}
	before := string(r.Serial().Bytes()[r.seen : end-len(text)])
	r.seen = end
	return before
}

// facts reads the next report.
func (r *reporter) facts(t *testing.T) map[string]string {
	t.Helper()
	facts := make(map[string]string)
	for line := range strings.Lines(r.wait(t, "report end")) {
		if fact, ok := strings.CutPrefix(line, "report "); ok {
			name, value, _ := strings.Cut(fact, ":")
			facts[name] = strings.TrimSpace(value)
		}
	}
	return facts
}

// check compares the guest's first report with what any guest of the image has
// to be like. The root partition has grown to the end of the disk, in front of
// the copy of its table.
func (r *reporter) check(t *testing.T, want map[string]string) {
	t.Helper()
	facts := r.facts(t)
	want = maps.Clone(want)
	want["state"], want["failed"], want["table"] = "running", "", "No errors detected."
	for name, want := range want {
		if got, ok := facts[name]; !ok || got != want {
			t.Errorf("the guest reports %s %q, want %q", name, got, want)
		}
	}
	number := func(name string) int64 {
		n, err := strconv.ParseInt(facts[name], 10, 64)
		if err != nil {
			t.Errorf("the guest reports %s: %v", name, err)
		}
		return n
	}
	if end := number("root end"); end < diskBytes-2<<20 || end > diskBytes {
		t.Errorf("the root partition ends at %d of a disk of %d bytes", end, int64(diskBytes))
	}
	// What df calls the size lacks the metadata, some per cent.
	if size := number("root bytes"); size < (diskBytes-3*espSize)*9/10 {
		t.Errorf("the root file system has %d bytes, the disk %d", size, int64(diskBytes))
	}
}

// secureBoot is what the kernel says when firmware vouches for it.
const secureBoot = "Secure boot enabled"

// checkSecureBoot boots twice: with the loaders of the image, and with those
// that the guest's own package has put in their place.
func checkSecureBoot(t *testing.T, r *reporter) {
	r.wait(t, secureBoot)
	r.check(t, hybrid("UEFI", "1"))
	facts := r.facts(t)
	if facts["renewed"] != "1" || facts["changed"] != "" {
		t.Errorf("the package of the boot loader: %q", facts)
	}
	t.Logf("the EFI system partition has %s", facts["loaders"])
	r.wait(t, secureBoot)
}

// checkRefusal waits until the firmware refuses the boot loader.
func checkRefusal(t *testing.T, r *reporter) {
	if said := r.wait(t, "Access Denied"); strings.Contains(said, "GRUB") || strings.Contains(said, "Linux version") {
		t.Errorf("a loader was started that is not signed:\n%s", lastLines(said, 10))
	}
}
