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
	"time"

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
	esp := part(t, disk, 1)
	judge("fsck.vfat", "dosfstools", "-n", esp)
	judge("e2fsck", "e2fsprogs", "-fn", part(t, disk, 3))
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
	const packages = "/var/lib/cairn-test/grub-arm64"
	if _, err := os.Stat(packages); err != nil {
		t.Fatalf("%v: run tests/install-tools as root", err)
	}
	require.Tool(t, "grub-mkimage", "grub-common")
	dir := t.TempDir()
	boot, config, disk := filepath.Join(dir, "tree/boot"), filepath.Join(dir, "disk.yaml"), filepath.Join(dir, "disk.raw")
	element, err := filepath.Abs(filepath.Join(repo, "elements/builtin/bootloader"))
	if err = errors.Join(err, os.MkdirAll(boot, 0o755), os.WriteFile(config, []byte(arm64Config), 0o600)); err != nil {
		t.Fatal(err)
	}
	hook := exec.Command("unshare", "--map-root-user", "--mount", "testdata/bootloader-hook", cairn(t), packages, boot, element)
	hook.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DIB_BOOTLOADER_SECURE_BOOT="+secureBoot)
	for _, c := range []*exec.Cmd{hook, exec.Command(cairn(t), "disk", "--config", config, "--owner", "0:0", "--source-date-epoch", "1700000000",
		"--seed", strings.Repeat("5", 64), "--root-label", "cloudimg-rootfs", "-t", "raw", filepath.Dir(boot), disk)} {
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c.Args, err, out)
		}
	}
	return disk
}

// powerARM64 starts a machine with a disk, which stays as it is, and returns
// its console as soon as that has a text.
func powerARM64(t *testing.T, disk, variables, text string) string {
	t.Helper()
	const firmware = "/usr/share/AAVMF"
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
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
