package builtin_test

import (
	"io/fs"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/elements/blockdevice"
	"cairn/elements/builtin"
	"cairn/fsbuild/partition"
)

// TestBlockDevices reads the disks that elements describe: sector size, "NAME TYPE SIZE" of each partition, and the lines
// of fstab.
func TestBlockDevices(t *testing.T) {
	const (
		root = "LABEL=cloudimg-rootfs / ext4 defaults 0 1\n"
		esp  = "LABEL=MKFS_ESP /boot/efi vfat defaults 0 2\n"
	)
	tests := map[string]struct {
		sector     int
		partitions []string
		fstab      string
	}{
		"block-device-mbr/block-device-default.yaml":    {512, []string{"root 0x83 100%"}, root},
		"block-device-mbr/block-device-ppc64el.yaml":    {512, []string{"boot 0x41 8MiB", "root 0x83 100%"}, root},
		"block-device-gpt/block-device-default.yaml":    {512, []string{"BSP EF02 8MiB", "root 8300 100%"}, root},
		"block-device-gpt/block-device-ppc64el.yaml":    {512, []string{"boot 4100 8MiB", "root 8300 100%"}, root},
		"block-device-efi/block-device-default.yaml":    {512, []string{"ESP EF00 550MiB", "BSP EF02 8MiB", "root 8300 100%"}, root + esp},
		"block-device-efi-4k/block-device-default.yaml": {4096, []string{"ESP EF00 500MiB", "BSP EF02 8MiB", "root 8300 100%"}, root + esp},
	}
	files, err := fs.Glob(builtin.FS(), "*/block-device-*.yaml")
	if err != nil || len(files) != len(tests) {
		t.Errorf("%d tests, but files %q, %v", len(tests), files, err)
	}
	for file, test := range tests {
		t.Run(file, func(t *testing.T) {
			text, err := fs.ReadFile(builtin.FS(), file)
			if err != nil {
				t.Fatal(err)
			}
			plan, err := blockdevice.Parse(text, blockdevice.Params{})
			if err != nil {
				t.Fatal(err)
			}
			if len(plan.Disks) != 1 || plan.Disks[0].BlockSize != test.sector || len(plan.Ignored) > 0 {
				t.Fatalf("disks %+v, ignored %q", plan.Disks, plan.Ignored)
			}
			disk := plan.Disks[0]
			var got []blockdevice.Partition
			for _, p := range disk.Partitions {
				got = append(got, blockdevice.Partition{Name: p.Name, Type: p.Type, MBRType: p.MBRType, Size: p.Size})
			}
			if diff := cmp.Diff(entries(t, disk.Label, test.partitions), got, cmp.AllowUnexported(partition.Size{})); diff != "" {
				t.Errorf("partitions (-want +got):\n%s", diff)
			}
			if got := plan.Fstab(); got != test.fstab {
				t.Errorf("fstab = %q, want %q", got, test.fstab)
			}
		})
	}
}

// entries reads "NAME TYPE SIZE" lines.
func entries(t *testing.T, label partition.Label, lines []string) []blockdevice.Partition {
	t.Helper()
	var list []blockdevice.Partition
	for _, line := range lines {
		field := strings.Fields(line)
		p := blockdevice.Partition{Name: field[0]}
		var err error
		if label == partition.GPT {
			p.Type, err = partition.ParseType(field[1])
		} else {
			p.MBRType, err = partition.ParseMBRType(field[1])
		}
		if err != nil {
			t.Fatal(err)
		}
		if p.Size, err = partition.ParseSize(field[2]); err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return list
}

// TestBlockDeviceArchitectures sources the environment of each element.
func TestBlockDeviceArchitectures(t *testing.T) {
	const mbr, gpt, efi, efi4k = "block-device-mbr", "block-device-gpt", "block-device-efi", "block-device-efi-4k"
	for _, test := range []struct{ element, arch, want string }{
		{mbr, "amd64", "mbr"},
		{mbr, "ppc64el", "mbr"},
		{mbr, "arm64", "block-device-mbr is not supported on AARCH64; use block-device-efi"},
		{gpt, "amd64", "gpt"},
		{gpt, "aarch64", "block-device-gpt is not supported on AARCH64; use block-device-efi"},
		{efi, "amd64", "efi"},
		{efi, "arm64", "efi"},
		{efi, "ppc64el", "block-device-efi is not supported on Power; use block-device-gpt or block-device-mbr"},
		{efi4k, "arm64", "efi 4096"},
		{efi4k, "ppc64", "block-device-efi-4k is not supported on Power; use block-device-gpt or block-device-mbr"},
	} {
		t.Run(test.element+" on "+test.arch, func(t *testing.T) {
			script := ". " + test.element + "/environment.d/15-block-device.bash; bash -c 'echo $DIB_BLOCK_DEVICE $DIB_BLOCK_SIZE'"
			c := exec.Command("bash", "-eu", "-c", script)
			c.Env = []string{"ARCH=" + test.arch}
			out, err := c.CombinedOutput()
			if got := strings.TrimSpace(string(out)); got != test.want || (err == nil) != (len(strings.Fields(got)) < 3) {
				t.Errorf("says %q, %v, want %q", got, err, test.want)
			}
		})
	}
}
