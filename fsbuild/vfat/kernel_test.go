package vfat_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
	"cairn/tests/require"
)

// kernelDir is where tests/install-tools unpacks Debian's kernel for clouds.
// Many kernels of CI machines lack FAT, so the test boots one that has it.
const kernelDir = "/var/lib/cairn-test/kernel"

// guestInit mounts every image and tells what it sees on the second serial
// port: an image's name, then for each node type, size of a file, time, path, and for each
// file "= SHA256  PATH".
const guestInit = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /dev /proc /sys /mnt
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for m in nls_cp437 nls_utf8 nls_ascii fat vfat loop; do insmod /modules/$m.ko || echo "no $m"; done
stty raw -F /dev/ttyS1
exec >/dev/ttyS1
for i in /images/*.img; do
    echo "image ${i##*/}"
    truncate -s $(cat $i.size) $i
    mount -t vfat -o ro,loop,utf8=1,iocharset=utf8,tz=UTC $i /mnt || echo "no mount"
    cd /mnt
    find . -mindepth 1 -type d -print0 | xargs -0 -r stat -c '%F %Y %n'
    find . -type f -print0 | xargs -0 -r stat -c '%F %s %Y %n'
    find . -type f -print0 | xargs -0 -r sha256sum | sed 's/^/= /'
    cd /
    umount /mnt
done
echo "end"
sleep 1
poweroff -f
`

// TestKernel lets Linux list and read the images of generated trees.
func TestKernel(t *testing.T) {
	t.Parallel()
	qemu := require.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	root := scratchDir(t)
	want := map[string]string{}
	seed := uint64(20)
	for name, p := range kinds() {
		tr := generate(t, seed)
		seed++
		name = strings.ReplaceAll(name, "/", "-") + ".img"
		want[name] = kernelText(t, asFAT(t, tr, p.Time))
		guestImage(t, filepath.Join(root, "images", name), tr, p)
	}
	guestFiles(t, root)
	initrd := filepath.Join(scratchDir(t), "initrd")
	run(t, "sh", "-c", `cd "$0" && find . | busybox cpio -o -H newc >"$1" 2>/dev/null`, root, initrd)
	out := filepath.Join(t.TempDir(), "out")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	console, err := exec.CommandContext(ctx, qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", //nolint:gosec // the test's own files
		"-accel", "tcg", "-cpu", "max", "-m", "512", "-kernel", filepath.Join(kernelDir, "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off", "-serial", "stdio", "-serial", "file:"+out).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu: %v\n%s", err, console)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	body, whole := strings.CutSuffix(string(b), "end\n")
	if !whole {
		t.Fatalf("the guest did not finish:\n%s\n%s", console, b)
	}
	got := map[string]string{}
	for part := range strings.SplitSeq(body, "image ") {
		if name, lines, ok := strings.Cut(part, "\n"); ok {
			got[name] = lines
		}
	}
	for name, w := range want {
		if diff := firstDiff(sortedLines(w), sortedLines(got[name])); diff != "" {
			t.Errorf("%s: Linux sees %s\n%s", name, diff, console)
		}
	}
}

// kernelText is what guestInit says about a tree.
func kernelText(t *testing.T, tr *tree.Tree) string {
	var s strings.Builder
	for n := range tr.All() {
		switch {
		case n.Path == ".":
		case n.Type == tree.Directory: // Linux makes up a size
			fmt.Fprintf(&s, "directory %d ./%s\n", n.MTime.Sec, n.Path)
		default:
			kind := "regular file"
			if n.Size == 0 {
				kind = "regular empty file"
			}
			fmt.Fprintf(&s, "%s %d %d ./%s\n", kind, n.Size, n.MTime.Sec, n.Path)
			fmt.Fprintf(&s, "= %x  ./%s\n", sha256.Sum256(contentOf(t, n)), n.Path)
		}
	}
	return s.String()
}

// guestImage writes an image, as long as what was written, and beside it the
// size that it has.
func guestImage(t *testing.T, name string, tr *tree.Tree, p vfat.Params) {
	t.Helper()
	var m memory
	s, err := vfat.Write(t.Context(), &m, tr, p)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(name), 0o755)
	}
	if err == nil {
		err = os.WriteFile(name, m.data, 0o644)
	}
	if err == nil {
		err = os.WriteFile(name+".size", fmt.Append(nil, s.Size), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// guestFiles puts together what the guest needs besides images.
func guestFiles(t *testing.T, root string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(kernelDir, "vmlinuz")); errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s is missing: run tests/install-tools as root", kernelDir)
	}
	for to, from := range map[string]string{
		"bin/busybox": require.Tool(t, "busybox", "busybox-static"), "modules/fat.ko": "", "modules/vfat.ko": "",
		"modules/nls_cp437.ko": "", "modules/nls_utf8.ko": "", "modules/nls_ascii.ko": "", "modules/loop.ko": "",
	} {
		if from == "" {
			from = filepath.Join(kernelDir, filepath.Base(to))
		}
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(root, to)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(root, to), b, 0o755) //nolint:gosec // programs
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "init"), []byte(guestInit), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
}
