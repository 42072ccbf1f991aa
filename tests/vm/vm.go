// Package vm runs a script on Debian's kernel in an emulated machine, for tests
// that need file systems or rights that the machine they run on lacks. For
// tests only.
package vm

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/tests/require"
)

// kernelDir is where tests/install-tools unpacks Debian's kernel for clouds.
const kernelDir = "/var/lib/cairn-test/kernel"

// Guest is a machine that runs a script and stops.
type Guest struct {
	// Root is a folder with files for the guest's root file system, which is in
	// memory. Run adds busybox, /init, /modules and the programs to it.
	Root     string
	Modules  []string // of the kernel, without ".ko", in the order in which they are loaded
	Programs []string // of this machine; they keep their paths and get their libraries
	Disk     string   // a raw image for /dev/nvme0n1, empty for none
	Script   string   // for busybox's shell
}

// limit is how long a guest may run on a busy machine.
const limit = 20 * time.Minute

// prologue and epilogue are around a guest's script, whose standard output is
// the second serial port. To close the port waits until all is sent.
const (
	prologue = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /dev /proc /sys /mnt /tmp
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for m in $(cat /modules/order); do insmod /modules/$m.ko || echo "no $m"; done
stty raw -F /dev/ttyS1
exec >/dev/ttyS1
`
	epilogue = `
echo "end of script"
exec >/dev/null
sleep 1
poweroff -f
`
)

// Run runs the guest to its end and returns what the script printed, with what
// its programs said on standard error in the log of a failure.
func (g Guest) Run(t testing.TB) string {
	t.Helper()
	qemu := require.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	g.addFiles(t)
	dir := t.TempDir()
	initrd, out := filepath.Join(dir, "initrd"), filepath.Join(dir, "out")
	pack := exec.Command("sh", "-c", `cd "$0" && find . | busybox cpio -o -H newc >"$1" 2>/dev/null`, g.Root, initrd)
	if msg, err := pack.CombinedOutput(); err != nil {
		t.Fatalf("pack the guest's root: %v\n%s", err, msg)
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg", "-cpu", "max,la57=off,cx16=off", "-m", "512",
		"-kernel", filepath.Join(kernelDir, "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off", "-serial", "stdio", "-serial", "file:" + out,
	}
	if g.Disk != "" {
		args = append(args, "-drive", "if=none,id=disk,format=raw,cache=unsafe,file="+g.Disk, "-device", "nvme,drive=disk,serial=disk")
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	console, err := exec.CommandContext(ctx, qemu, args...).CombinedOutput() //nolint:gosec // the test's own files
	if err != nil {
		t.Fatalf("qemu: %v\n%s", err, console)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	said, whole := strings.CutSuffix(string(b), "end of script\n")
	if !whole {
		t.Fatalf("the guest did not finish:\n%s\n%s", console, b)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the guest's console:\n%s", console)
		}
	})
	return said
}

// addFiles puts together what the guest needs besides the caller's files.
func (g Guest) addFiles(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(kernelDir, "vmlinuz")); err != nil {
		t.Fatalf("%v: run tests/install-tools as root", err)
	}
	g.write(t, "init", []byte(prologue+g.Script+epilogue))
	g.write(t, "modules/order", []byte(strings.Join(g.Modules, "\n")+"\n"))
	g.copy(t, "bin/busybox", require.Tool(t, "busybox", "busybox-static"))
	for _, m := range g.Modules {
		g.copy(t, "modules/"+m+".ko", filepath.Join(kernelDir, m+".ko"))
	}
	for _, p := range g.Programs {
		g.copy(t, p, p)
		for _, library := range libraries(t, p) {
			g.copy(t, library, library)
		}
	}
}

// libraries are the absolute paths that ldd names.
func libraries(t testing.TB, program string) (paths []string) {
	t.Helper()
	out, err := exec.Command(require.Tool(t, "ldd", "libc-bin"), program).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", program, err)
	}
	for word := range strings.FieldsSeq(string(out)) {
		if filepath.IsAbs(word) {
			paths = append(paths, word)
		}
	}
	return paths
}

func (g Guest) copy(t testing.TB, to, from string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	g.write(t, to, b)
}

func (g Guest) write(t testing.TB, name string, data []byte) {
	t.Helper()
	path := filepath.Join(g.Root, name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, data, 0o755) //nolint:gosec // programs
	}
	if err != nil {
		t.Fatal(err)
	}
}
