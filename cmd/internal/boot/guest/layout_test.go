package guest_test

import (
	"path/filepath"
	"strings"
	"testing"

	"cairn/tests/require"
)

// testElements is the folder of the tests' own elements.
func testElements(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("testdata/elements")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// layout sets the configuration of the disk to one of layouts.
func layout(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata/layouts", name))
	if err != nil {
		t.Fatal(err)
	}
	return "DIB_BLOCK_DEVICE_CONFIG=file://" + path
}

// buildLayout builds the elements of the image under test on the disk of
// layouts/mbr.yaml.
func buildLayout(t *testing.T) string {
	t.Helper()
	who := require.OrdinaryUser(t)
	dir := shared(t, who)
	name := filepath.Join(dir, "layout")
	buildAs(t, who, dir, []string{"ELEMENTS_PATH=" + testElements(t), layout(t, "mbr.yaml")},
		"-t", "qcow2", "-o", name, "debian-minimal", "vm", "cloud-init", "openssh-server", "growroot", "patient")
	return name + ".qcow2"
}

// checkLayout looks at the disk of layouts/mbr.yaml, whose root partition has
// others behind it.
func (g *guest) checkLayout(t *testing.T) {
	for command, want := range map[string]string{
		"findmnt -rn -o TARGET,SOURCE,FSTYPE -t ext2,ext3,ext4,vfat | LC_ALL=C sort": "/ /dev/vda2 ext4\n/boot /dev/vda1 ext2\n/var /dev/vda6 ext4",
		"swapon --noheadings --show=NAME":                                            "/dev/vda5",
		"cat /etc/fstab": "LABEL=cloudimg-rootfs / ext4 defaults,noatime 0 1\nLABEL=boot /boot ext2 nodev,nosuid 0 2\n" +
			"LABEL=var /var ext4 defaults 0 2\nLABEL=paging none swap sw 0 0",
		"findmnt --verify 2>&1 | tail -n1":                         noErrors,
		"findmnt -no OPTIONS /boot | grep -o nosuid,nodev || true": "nosuid,nodev",
		"cat /sys/class/block/vda2/size":                           "4194304",
		"systemctl is-active growroot || true":                     "active",
	} {
		if got := g.run(t, command); got != want {
			t.Errorf("%s says %q, want %q", command, got, want)
		}
	}
	g.checkBootFolder(t)
}

// checkBootFolder makes the configuration of GRUB anew, which has to find the
// kernels in the file system of /boot, as the one of the build did.
func (g *guest) checkBootFolder(t *testing.T) {
	const lines = `grep -hoE "(fs-uuid|linux|initrd)[[:space:]].*" /boot/grub/grub.cfg`
	built := g.run(t, lines)
	g.run(t, "update-grub")
	made, uuid := g.run(t, lines), g.run(t, "findmnt -no UUID /boot")
	for name, config := range map[string]string{"built": built, "made by update-grub": made} {
		if !strings.Contains(config, "linux\t/vmlinuz-") || !strings.Contains(config, "initrd\t/initrd.img-") || !strings.Contains(config, uuid) {
			t.Errorf("grub.cfg as %s does not find the kernel on %s:\n%s", name, uuid, config)
		}
	}
}
