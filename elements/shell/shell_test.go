package shell

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func lib(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "lib")
	if err := Write(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func bash(t *testing.T, dir, script string) (string, int) {
	t.Helper()
	c := exec.Command("bash", "-euo", "pipefail", "-c", script)
	c.Dir = dir
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "_LIB=" + lib(t), "TMP_DIR=" + t.TempDir(), "LC_ALL=C"}
	out, err := c.CombinedOutput()
	if err != nil && c.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), c.ProcessState.ExitCode()
}

func TestSelectBootKernelInitrd(t *testing.T) {
	tests := []struct{ name, files, links, env, want string }{
		{
			"debian", "etc/debian_version boot/vmlinuz-6.1.0-9-amd64 boot/vmlinuz-6.1.0-10-amd64 boot/initrd.img-6.1.0-9-amd64 boot/initrd.img-6.1.0-10-amd64 boot/config-6", "", "",
			"vmlinuz-6.1.0-10-amd64 initrd.img-6.1.0-10-amd64",
		},
		{"ubuntu prefers generic", "etc/debian_version boot/vmlinuz-5.4-generic boot/vmlinuz-5.9-kvm boot/initrd.img-5.4-generic", "", "", "vmlinuz-5.4-generic initrd.img-5.4-generic"},
		{
			"signed", "etc/debian_version boot/vmlinuz-5.4-generic boot/vmlinuz-5.4-generic.efi.signed boot/initrd.img-5.4-generic", "", "DIB_SIGNED_KERNEL_VERSION=1",
			"vmlinuz-5.4-generic.efi.signed initrd.img-5.4-generic",
		},
		{"red hat", "etc/redhat-release boot/vmlinuz-3.9 boot/vmlinuz-3.10 boot/vmlinuz-3.11debug boot/initramfs-3.10.img", "", "", "vmlinuz-3.10 initramfs-3.10.img"},
		{"red hat PAE", "etc/redhat-release boot/vmlinuz-3.9.PAE boot/vmlinuz-3.10 boot/initramfs-3.9.PAE.img", "", "", "vmlinuz-3.9.PAE initramfs-3.9.PAE.img"},
		{"red hat without initramfs", "etc/redhat-release boot/vmlinuz-3.10", "", "", "Can't find an initramfs for the 3.10 version of the kernel.\n"},
		{"suse", "etc/SuSE-release boot/image-5 boot/initrd-5", "boot/vmlinuz=image-5 boot/initrd=initrd-5", "", "image-5 initrd-5"},
		{"gentoo", "etc/gentoo-release boot/vmlinuz-5 boot/initramfs-5", "", "", "vmlinuz-5 initramfs-5"},
		{"patterns", "boot/a1 boot/a2 boot/b1", "", "DIB_BAREMETAL_KERNEL_PATTERN='a*' DIB_BAREMETAL_INITRD_PATTERN='b*'", "a2 b1"},
		{"unknown", "boot/vmlinuz-5", "", "", "ERROR: Unable to detect operating system\n"},
		{"none", "etc/debian_version boot/config-5", "", "", "No suitable kernel found.\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for _, name := range strings.Fields(tt.files) {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(root, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, link := range strings.Fields(tt.links) {
				name, target, _ := strings.Cut(link, "=")
				if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
					t.Fatal(err)
				}
			}
			out, status := bash(t, root, "true; "+tt.env+"\nsource $_LIB/img-functions; select_boot_kernel_initrd "+root+`; echo -n "$KERNEL $RAMDISK"`)
			if wantStatus := strings.Count(tt.want, "\n"); out != tt.want || status != wantStatus {
				t.Errorf("%d %q, want %q", status, out, tt.want)
			}
		})
	}
}

func TestLibrary(t *testing.T) {
	tests := []struct{ name, script, want string }{
		{"die", `source $_LIB/die; (die a b) || echo $?`, "a b\n1\n"},
		{"build directory", `source $_LIB/common-defaults; source $_LIB/common-functions; mk_build_dir; [ -d $TMP_BUILD_DIR ] && basename $TMP_BUILD_DIR | cut -c1-10`, "dib_build.\n"},
		{"devpts", `source $_LIB/common-functions; mount_dev_pts_options | cut -c1-3`, "-o \n"},
		{"defaults", `source $_LIB/common-defaults; source $_LIB/img-defaults; source $_LIB/ramdisk-defaults; echo $FS_TYPE $DIB_NO_TMPFS $IMAGE_TYPE`, "ext4 1 qcow2\n"},
		{
			"save", `source $_LIB/common-functions; echo 1 > x.raw; touch -d 2020-01-02T03:04:05 x.raw; echo 2 > y; TMP_IMAGE_PATH=y; save_image x.raw; cat x.raw x-2020.01.02-03.04.05.raw`,
			"Old image found. Renaming it to x-2020.01.02-03.04.05.raw\nImage file x.raw created...\n2\n1\n",
		},
		{"binaries", `source $_LIB/ramdisk-functions; ensure_binaries ls; (ensure_binaries nosuch) || echo $?`, "nosuch is not found in PATH. Please ensure your elements install it\n1\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if out, _ := bash(t, t.TempDir(), tt.script); out != tt.want {
				t.Errorf("%q, want %q", out, tt.want)
			}
		})
	}
	if err := Write(lib(t)); err == nil {
		t.Error("existing files were overwritten")
	}
}
