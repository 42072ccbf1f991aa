package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// request is the image of `make image`.
var request = strings.Fields("-a amd64 -t qcow2,raw debian-minimal vm cloud-init openssh-server growroot")

// image is what `make image` made, with the lock file beside it.
func image(t *testing.T, suffix string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(repo, "out", "debian"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make image first", err)
	}
	return path
}

// rebuild is a build of the same request from the lock of `make image`.
func rebuild(t *testing.T, who account, dir, name string) *run {
	lock := filepath.Join(dir, "given.lock.json")
	b, err := os.ReadFile(image(t, ".lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lock, b, 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"build", "--locked", "--lock", lock, "-o", filepath.Join(dir, name)}, request...)
	return &run{t: t, who: who, dir: dir, args: args, env: []string{"TMPDIR=" + dir}}
}

// same compares both formats with those of `make image`.
func same(t *testing.T, base string) {
	t.Helper()
	for _, format := range []string{".raw", ".qcow2"} {
		if got, want := digest(t, base+format), digest(t, image(t, format)); got != want {
			t.Errorf("%s: sha256 %s, want %s", base+format, got, want)
		}
	}
}

// TestSameBytes: the same inputs give the same bytes, whoever builds, where and
// how. `make image` ran as the user who runs the tests, on the disk.
func TestSameBytes(t *testing.T) {
	who := otherRange(t)
	dir := scratch(t, who)
	r := rebuild(t, who, dir, "another-name")
	r.args = append(r.args, "--tmpfs")
	r.wrap = []string{"sh", "-c", `umask 077; exec taskset -c "$(sed -n 's/^Cpus_allowed_list:[^0-9]*\([0-9]*\).*/\1/p' /proc/self/status)" "$@"`, "sh"}
	r.env = append(r.env, "TZ=Asia/Tokyo", "LANG=tr_TR.UTF-8", "LC_ALL=tr_TR.UTF-8", "GOMAXPROCS=1")
	r.ok()
	same(t, filepath.Join(dir, "another-name"))
	nothingLeft(t, dir)
}

// TestSameBytesLater: a year later, among the programs of another release of
// Debian, with the network cut off, the lock and the store give the same bytes.
// The test sets the machine's clock, so nothing else may run beside it
// (tests/run).
func TestSameBytesLater(t *testing.T) {
	who := lookup(t, "")
	dir := scratch(t, who)
	root := trixie(t)
	r := rebuild(t, who, dir, "x")
	r.args = append(r.args, "--offline")
	r.wrap = []string{
		"unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", pivot,
		root, filepath.Dir(filepath.Dir(cairn(t))), dir, cache(t, who),
	}
	later(t, 365*24*time.Hour)
	r.ok()
	same(t, filepath.Join(dir, "x"))
}

// TestInputChanged: one changed input is refused by a lock that does not have
// it, and gives another image without.
func TestInputChanged(t *testing.T) {
	who := ordinary(t)
	dir := scratch(t, who)
	r := rebuild(t, who, dir, "x")
	r.env = append(r.env, "DIB_BOOTLOADER_DEFAULT_CMDLINE=quiet")
	r.refused(1, []string{"DIB_BOOTLOADER_DEFAULT_CMDLINE", "hint:"})

	digests := map[string]string{}
	for _, value := range []string{"one", "one", "another"} {
		r := build(t, who, dir, "test-os")
		r.env = append(r.env, "DIB_TEST_INPUT="+value)
		r.ok()
		sum := digest(t, filepath.Join(dir, "x.raw"))
		if before, ok := digests[value]; ok && before != sum {
			t.Errorf("%s: sha256 %s, and %s again", value, before, sum)
		}
		digests[value] = sum
	}
	if digests["one"] == digests["another"] {
		t.Error("another value of a variable that a hook writes into the image gave the same image")
	}
}

// pivot changes into a root directory ($0) with the directories that the build
// needs ($1…, up to the program) bound at their own paths, and starts it there.
const pivot = `set -eu
export PATH=$PATH:/usr/sbin:/sbin
root=$0
mount --bind "$root" "$root"
for d in "$1" "$2" "$3"; do
	mkdir -p "$root$d"
	mount --rbind "$d" "$root$d"
done
shift 3
for d in /proc /sys /dev; do mount --rbind $d "$root$d"; done
cp /etc/resolv.conf /etc/subuid /etc/subgid "$root/etc/"
cd "$root"
pivot_root . mnt
umount -l /mnt
cd "$OLDPWD" 2>/dev/null || cd /
exec "$@"`

// trixie makes a Debian 13 root with another distribution release's tools.
func trixie(t *testing.T) string {
	t.Helper()
	who := lookup(t, "")
	root := filepath.Join(scratch(t, who), "trixie")
	mirror := hostMirror(t)
	out, err := exec.Command("mmdebstrap", "--variant=minbase", "--include=uidmap", "--skip=check/qemu", "trixie", root, mirror).CombinedOutput()
	if err != nil {
		t.Fatalf("mmdebstrap trixie: %v\n%s", err, tail(string(out)))
	}
	return root
}

// hostMirror is the Debian mirror of this machine's own apt sources.
func hostMirror(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(SITE)|$(REPO_URI)|$(ORIGIN)|$(LABEL)", "Identifier: Packages").Output()
	if err != nil {
		t.Fatalf("apt-get indextargets: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) == 4 && f[2] == "Debian" && f[3] == "Debian" {
			return strings.TrimSuffix(f[1], "/")
		}
	}
	t.Fatalf("no Debian archive among apt's sources:\n%s", out)
	return ""
}

// otherRange is an ordinary user with another subuid range.
func otherRange(t *testing.T) account {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("making another user needs root")
	}
	const name = "cairn-other"
	script := fmt.Sprintf(`id %[1]s 2>/dev/null || useradd --create-home %[1]s
sed -i /^%[1]s:/d /etc/subuid /etc/subgid
echo %[1]s:1000000:65536 >> /etc/subuid
echo %[1]s:2000000:65536 >> /etc/subgid`, name)
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return lookup(t, name)
}

// later sets the clock forward for the rest of the test.
func later(t *testing.T, by time.Duration) {
	t.Helper()
	shift := func(d time.Duration) error {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			return err
		}
		then := unix.NsecToTimespec(now.Nano() + int64(d))
		return unix.ClockSettime(unix.CLOCK_REALTIME, &then)
	}
	if err := shift(by); err != nil {
		t.Fatalf("set the clock: %v", err)
	}
	t.Cleanup(func() {
		if err := shift(-by); err != nil {
			t.Errorf("set the clock back: %v", err)
		}
	})
}

// TestInputsAreListed: what apt fetched in hooks is in the lock with a digest.
func TestInputsAreListed(t *testing.T) {
	lock := readLock(t, image(t, ".lock.json"))
	var kernels int
	for _, f := range lock.Fetched {
		if !strings.HasPrefix(f.Digest, "sha256:") {
			t.Errorf("%s has no digest", f.URL)
		}
		if strings.Contains(f.URL, "/linux-image-") {
			kernels++
		}
	}
	if kernels == 0 {
		t.Error("the kernel package, which a hook installs, is not in the lock")
	}
}
