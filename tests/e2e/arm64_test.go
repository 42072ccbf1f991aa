package e2e

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/tests/require"
)

// arm64Config is the disk of block-device-efi with a smaller EFI system
// partition and a root that GRUB's configuration names.
const arm64Config = `
- local_loop: {name: image0}
- partitioning:
    base: image0
    label: gpt
    partitions:
      - {name: ESP, type: EF00, size: 64MiB, mkfs: {type: vfat, mount: {mount_point: /boot/efi}}}
      - {name: BSP, type: EF02, size: 8MiB}
      - {name: root, size: 100%, mkfs: {uuid: 11111111-2222-4333-8444-555555555555, mount: {mount_point: /}}}
`

// TestARM64Firmware has the bootloader's hook prepare disks for arm64, signed
// and not, and the firmware of such a machine start them. No program for arm64
// runs but that.
func TestARM64Firmware(t *testing.T) {
	signed := arm64Disk(t, "auto", "BOOTAA64.EFI", "grubaa64.efi", "mmaa64.efi")
	own := arm64Disk(t, "False", "BOOTAA64.EFI")
	for _, test := range []struct{ name, disk, variables, want, without string }{
		{"signed", signed, "AAVMF_VARS.ms.fd", "bad shim signature", "isn't found"}, // of the kernel, which is none
		{"own", own, "AAVMF_VARS.fd", "Loading Linux 6.1.0-arm64", "isn't found"},
		{"own with Secure Boot", own, "AAVMF_VARS.ms.fd", "Access Denied", "GRUB"},
	} {
		t.Run(test.name, func(t *testing.T) {
			console := powerARM64(t, test.disk, test.variables, test.want)
			if !strings.Contains(console, test.want) || strings.Contains(console, test.without) {
				t.Errorf("the console lacks %q or has %q:\n%q", test.want, test.without, console)
			}
		})
	}
}

// arm64Disk makes a disk twice, which is to have the same bytes, and looks for
// boot loaders in its EFI system partition.
func arm64Disk(t *testing.T, secureBoot string, loaders ...string) string {
	t.Helper()
	disk, again := oneARM64Disk(t, secureBoot), oneARM64Disk(t, secureBoot)
	judge := func(tool, debianPackage string, args ...string) string {
		out, err := exec.Command(require.Tool(t, tool, debianPackage), args...).CombinedOutput()
		if err != nil {
			t.Errorf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	judge("cmp", "diffutils", disk, again)
	if out := judge("sgdisk", "gdisk", "--verify", disk); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk: %s", out)
	}
	files, _ := parts(t, disk)
	esp := files[0]
	judge("fsck.vfat", "dosfstools", "-n", esp)
	judge("e2fsck", "e2fsprogs", "-fn", files[2])
	var found []string
	for name := range strings.FieldsSeq(judge("mdir", "mtools", "-b", "-i", esp, "::EFI/BOOT")) {
		found = append(found, filepath.Base(name))
		file := filepath.Join(t.TempDir(), "loader")
		judge("mcopy", "mtools", "-i", esp, name, file)
		if kind := judge("file", "file", "--brief", file); !strings.Contains(kind, "EFI application") || !strings.Contains(kind, "Aarch64") {
			t.Errorf("%s is %s", name, kind)
		}
	}
	if slices.Sort(found); !slices.Equal(found, loaders) {
		t.Errorf("EFI/BOOT holds %q, want %q", found, loaders)
	}
	return disk
}

// oneARM64Disk runs the hook and lays its /boot out on a disk.
func oneARM64Disk(t *testing.T, secureBoot string) string {
	t.Helper()
	dir := t.TempDir()
	tree, config, disk := filepath.Join(dir, "tree"), filepath.Join(dir, "disk.yaml"), filepath.Join(dir, "disk.raw")
	bootloader(t, "debian", secureBoot, filepath.Join(tree, "boot"))
	if err := os.WriteFile(config, []byte(arm64Config), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(cairn(t), "disk", "--config", config, "--owner", "0:0", "--source-date-epoch", "1700000000",
		"--seed", strings.Repeat("5", 64), "--root-label", "cloudimg-rootfs", "-t", "raw", tree, disk).CombinedOutput(); err != nil {
		t.Fatalf("cairn disk: %v\n%s", err, out)
	}
	return disk
}

// bootloader runs the hook for arm64 in namespaces of its own, with boot as
// /boot.
func bootloader(t *testing.T, distribution, secureBoot, boot string) {
	t.Helper()
	const packages = "/var/lib/cairn-test/grub-arm64"
	if _, err := os.Stat(packages); err != nil {
		t.Fatalf("%v: run tests/install-tools as root", err)
	}
	require.Tool(t, "grub-mkimage", "grub-common")
	element, err := filepath.Abs(filepath.Join(repo, "elements/builtin/bootloader"))
	if err = errors.Join(err, os.MkdirAll(boot, 0o755)); err != nil {
		t.Fatal(err)
	}
	hook := exec.Command("unshare", "--map-root-user", "--mount", "testdata/bootloader-hook", cairn(t), packages, boot, element, distribution)
	hook.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DIB_BOOTLOADER_SECURE_BOOT="+secureBoot)
	if out, err := hook.CombinedOutput(); err != nil {
		t.Fatalf("the bootloader's hook for %s: %v\n%s", distribution, err, out)
	}
}

// TestOtherFamilies runs the hook with the names and places of other
// distributions: GRUB for the firmware, made with modules from SUSE's place, and
// a configuration for the boot loaders that Fedora's packages have put there.
func TestOtherFamilies(t *testing.T) {
	suse := t.TempDir()
	bootloader(t, "suse", "auto", suse)
	if _, err := os.Stat(filepath.Join(suse, "efi/EFI/BOOT/BOOTAA64.EFI")); err != nil {
		t.Error(err)
	}
	fedora := t.TempDir()
	vendor := filepath.Join(fedora, "efi/EFI/fedora")
	err := errors.Join(os.MkdirAll(vendor, 0o755), os.MkdirAll(filepath.Join(fedora, "grub2"), 0o755), os.MkdirAll(filepath.Join(fedora, "loader"), 0o755),
		os.Symlink("../efi/EFI/fedora/grubenv", filepath.Join(fedora, "grub2/grubenv")))
	if err != nil {
		t.Fatal(err)
	}
	bootloader(t, "fedora", "auto", fedora)
	for _, name := range []string{"grub.cfg", "grubenv"} {
		theirs, err := os.ReadFile(filepath.Join(vendor, name))
		ours, err2 := os.ReadFile(filepath.Join(fedora, "grub2", name))
		if err := errors.Join(err, err2); err != nil || len(ours) == 0 || string(ours) != string(theirs) {
			t.Errorf("%s of %d bytes is not the same in the EFI system partition, %d bytes (%v)", name, len(ours), len(theirs), err)
		}
	}
	if names := names(t, fedora); slices.Contains(names, "loader") {
		t.Errorf("/boot has %q", names)
	}
}

// powerARM64 starts a machine with a disk, which stays as it is, and returns
// its console as soon as that has a text.
func powerARM64(t *testing.T, disk, variables, text string) string {
	t.Helper()
	const firmware = "/usr/share/AAVMF"
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	vars := filepath.Join(t.TempDir(), "variables")
	if out, err := exec.Command("cp", filepath.Join(firmware, variables), vars).CombinedOutput(); err != nil {
		t.Fatalf("install qemu-efi-aarch64: %v\n%s", err, out)
	}
	qemu := exec.CommandContext(ctx, require.Tool(t, "qemu-system-aarch64", "qemu-system-arm"),
		"-machine", "virt", "-cpu", "cortex-a57", "-m", "512", "-nodefaults", "-display", "none", "-serial", "stdio",
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+filepath.Join(firmware, "AAVMF_CODE.fd"),
		"-drive", "if=pflash,unit=1,format=raw,file="+vars,
		"-drive", "if=virtio,format=raw,snapshot=on,file="+disk)
	qemu.Stderr = os.Stderr
	out, err := qemu.StdoutPipe()
	if err = errors.Join(err, qemu.Start()); err != nil {
		t.Fatal(err)
	}
	defer qemu.Wait() //nolint:errcheck // it is killed
	defer cancel()
	var console []byte
	for buf := make([]byte, 4096); !strings.Contains(string(console), text); {
		n, err := out.Read(buf)
		console = append(console, buf[:n]...)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("console: %v", err)
		}
		if err != nil {
			break
		}
	}
	return string(console)
}
