package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPhases: every phase runs once, in order, in its own world; mounts of
// root.d last until post-root.d. Nobody but the caller may pass the folder that
// everything lies in.
func TestPhases(t *testing.T) {
	who := ordinary(t)
	dir := scratch(t, who)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r := build(t, who, dir, "test-os", "all-phases")
	r.ok()
	seen := func(hooks, phase string) string {
		return " seen=" + hooks + "/" + phase + ".d/../environment.d/20-all-phases.bash"
	}
	merged := func(phase string) string { return seen("/tmp/dib_build.cairn/hooks", phase) }
	tree := "/tmp/dib_build.cairn/mnt"
	wantHost := []string{
		"root uid=0 cwd=" + dir + " target=" + tree + " device=unset" + merged("root"),
		"extra-data uid=0 cwd=" + dir + " target=unset device=unset" + merged("extra-data"),
		"post-root uid=0 cwd=" + dir + " target=unset device=unset" + merged("post-root"),
		"block-device uid=0 cwd=" + dir + " target=unset device=unset" + merged("block-device"),
		"pre-finalise uid=0 cwd=" + dir + " target=unset device=DEVICE" + merged("pre-finalise"),
		"cleanup uid=0 cwd=" + dir + " target=" + tree + " device=DEVICE" + merged("cleanup"),
	}
	host := readLines(t, filepath.Join(dir, "x.host.log"))
	for i := range host {
		host[i] = replaceField(host[i], "device=/dev/", "device=DEVICE")
	}
	if diff := cmp.Diff(wantHost, host); diff != "" {
		t.Errorf("host hooks (-want +got):\n%s", diff)
	}
	var wantTarget []string
	for _, p := range []string{"pre-install", "install", "post-install", "finalise"} {
		wantTarget = append(wantTarget, p+" uid=0 cwd=/ home=/root tmpdir=unset"+seen("/tmp/in_target.d", p))
	}
	if diff := cmp.Diff(wantTarget, readLines(t, filepath.Join(dir, "x.target.log"))); diff != "" {
		t.Errorf("target hooks (-want +got):\n%s", diff)
	}
	fi, err := os.Stat(filepath.Join(dir, "x.host.log"))
	if err != nil {
		t.Fatal(err)
	}
	if uid := owner(fi); uid != who.uid {
		t.Errorf("what a hook made belongs to uid %d, want %d", uid, who.uid)
	}
	checkFS(t, filepath.Join(dir, "x.raw"))
	if got := debugfs(t, filepath.Join(dir, "x.raw"), "cat /chroot.log"); got != "chroot uid=0\n" {
		t.Errorf("/chroot.log = %q", got)
	}
	if got := debugfs(t, filepath.Join(dir, "x.raw"), "ls /mnt/bound"); strings.Contains(got, "file") {
		t.Errorf("a bind mount is in the image: %s", got)
	}
	if got := debugfs(t, filepath.Join(dir, "x.raw"), "cat /etc/fstab"); got != "LABEL=cloudimg-rootfs / ext4 defaults 0 1\n" {
		t.Errorf("/etc/fstab = %q", got)
	}
	nothingLeft(t, dir)
}

// TestAgain: a build over the outputs of an earlier one replaces them, those
// that hooks make included.
func TestAgain(t *testing.T) {
	who := ordinary(t)
	dir := scratch(t, who)
	r := build(t, who, dir, "test-os", "manifests")
	r.ok()
	first := digest(t, filepath.Join(dir, "x.raw"))
	r.ok()
	if again := digest(t, filepath.Join(dir, "x.raw")); again != first {
		t.Errorf("the second build gave %s, the first %s", again, first)
	}
	if _, err := os.Stat(filepath.Join(dir, "x.d", "dib-manifests", "dib_arguments")); err != nil {
		t.Error(err)
	}
	nothingLeft(t, dir)
}

// TestTrixie: another release than the default one.
func TestTrixie(t *testing.T) {
	who := ordinary(t)
	dir := scratch(t, who)
	r := build(t, who, dir, "test-os")
	r.env = append(r.env, "DIB_RELEASE=trixie")
	r.ok()
	checkFS(t, filepath.Join(dir, "x.raw"))
	if got := debugfs(t, filepath.Join(dir, "x.raw"), "cat /etc/debian_version"); !strings.HasPrefix(got, "13") {
		t.Errorf("/etc/debian_version = %q", got)
	}
}

// replaceField replaces a blank-separated field that begins with prefix.
func replaceField(line, prefix, with string) string {
	fields := strings.Fields(line)
	for i, f := range fields {
		if strings.HasPrefix(f, prefix) {
			fields[i] = with
		}
	}
	return strings.Join(fields, " ")
}

func readLines(t *testing.T, name string) []string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimRight(string(b), "\n"), "\n")
}

// checkFS has e2fsck judge a file system.
func checkFS(t *testing.T, name string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fn", name).CombinedOutput()
	if err != nil {
		t.Errorf("e2fsck -fn %s: %v\n%s", name, err, out)
	}
}

// debugfs runs one of debugfs's commands on a file system.
func debugfs(t *testing.T, name, command string) string {
	t.Helper()
	out, err := exec.Command("debugfs", "-R", command, name).Output()
	if err != nil {
		t.Fatalf("debugfs -R %q %s: %v", command, name, err)
	}
	return string(out)
}

// upstream is where Debian's python3-diskimage-builder has its elements.
const upstream = "/usr/lib/python3/dist-packages/diskimage_builder/elements"

// TestUpstreamElements: elements of diskimage-builder itself, unmodified, with
// their host hooks, sudo, mount and chroot.
func TestUpstreamElements(t *testing.T) {
	who := ordinary(t)
	dir := scratch(t, who)
	elements := filepath.Join(dir, "elements")
	if err := os.Mkdir(elements, 0o755); err != nil {
		t.Fatal(err)
	}
	copyUpstream(t, elements, "source-repositories", "pip-cache", "local-config", "devuser", "cloud-init-nocloud", "manifests")
	repoDir := gitRepository(t, dir)
	own := filepath.Join(elements, "uses-sources")
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(own, "source-repository-demo"), "demo git /opt/demo file://"+repoDir+" main\n")
	write(t, filepath.Join(own, "element-deps"), "source-repositories\n")
	home := filepath.Join(dir, "home")
	if err := os.MkdirAll(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvT3bTestKeyOnlyForThisTestxxxxxxxxxxxxxxxx test@example"
	write(t, filepath.Join(home, ".ssh", "authorized_keys"), key+"\n")
	write(t, filepath.Join(home, ".ssh", "id_ed25519.pub"), key+"\n")
	if out, err := exec.Command("chown", "-R", who.name+":", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r := build(t, who, dir, "debian-minimal", "uses-sources", "pip-cache", "local-config", "devuser", "cloud-init-nocloud", "cloud-init", "manifests")
	r.env = append(r.env, "ELEMENTS_PATH="+elements, "HOME="+home, "DIB_DEV_USER_USERNAME=dev", "DIB_DEV_USER_PWDLESS_SUDO=yes",
		"DIB_DEV_USER_AUTHORIZED_KEYS="+filepath.Join(home, ".ssh", "id_ed25519.pub"), "DIB_DEBIAN_KERNEL_FLAVOUR=cloud-amd64")
	r.ok()
	image := filepath.Join(dir, "x.raw")
	checkFS(t, image)
	for path, want := range map[string]string{
		"/opt/demo/hello":                  "hello\n",
		"/root/.ssh/authorized_keys":       key + "\n",
		"/home/dev/.ssh/authorized_keys":   key + "\n",
		"/etc/dib-source-repositories":     "/opt/demo",
		"/etc/dib-manifests/dib_arguments": "debian-minimal",
	} {
		if got := debugfs(t, image, "cat "+path); !strings.Contains(got, want) {
			t.Errorf("%s = %q, want %q in it", path, got, want)
		}
	}
	if got := debugfs(t, image, "cat /etc/sudoers.d/dev"); !strings.Contains(got, "NOPASSWD") {
		t.Errorf("sudoers.d/dev = %q", got)
	}
	manifest := filepath.Join(dir, "x.d", "dib-manifests", "dib_arguments")
	if fi, err := os.Stat(manifest); err != nil || owner(fi) != who.uid {
		t.Errorf("%s: %v, or not the caller's", manifest, err)
	}
	nothingLeft(t, dir)
}

// copyUpstream copies elements of diskimage-builder itself.
func copyUpstream(t *testing.T, to string, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(upstream, name)); err != nil {
			t.Fatalf("%v: install python3-diskimage-builder", err)
		}
		if out, err := exec.Command("cp", "-rL", filepath.Join(upstream, name), to).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

// TestUpstreamDebootstrap: diskimage-builder's element debootstrap makes the
// base with the real debootstrap, which finds mknod, mount and chroot and gets
// its packages through the recorder. Nodes that hooks make are in the image.
func TestUpstreamDebootstrap(t *testing.T) {
	who := ordinary(t)
	dir := scratch(t, who)
	elements := filepath.Join(dir, "elements")
	own := filepath.Join(elements, "debootstrapped")
	for _, sub := range []string{"environment.d", "root.d", "install.d"} {
		if err := os.MkdirAll(filepath.Join(own, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	copyUpstream(t, elements, "debootstrap", "modprobe")
	const mirror = "http://ftp.debian.org/debian"
	for name, content := range map[string]string{
		"element-deps":     "debootstrap\n",
		"element-provides": "operating-system\n",
		"environment.d/10-os.bash": "export DISTRO_NAME=debian DIB_RELEASE=bookworm DIB_INIT_SYSTEM=systemd\n" +
			"export DIB_DISTRIBUTION_MIRROR=" + mirror + "\n",
		"root.d/70-sources": "#!/bin/sh\nset -e\necho 'deb " + mirror + " bookworm main' | sudo tee $TARGET_ROOT/etc/apt/sources.list\n" +
			"sudo mknod -m 600 $TARGET_ROOT/srv/disk b 8 1\n",
		"install.d/50-node": "#!/bin/sh\nset -e\nmkdir -p /srv/jail/dev\nmknod -m 644 /srv/jail/dev/null c 1 3\n",
	} {
		write(t, filepath.Join(own, name), content)
		if strings.Contains(name, ".d/") {
			if err := os.Chmod(filepath.Join(own, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := build(t, who, dir, "debootstrapped")
	r.env = append(r.env, "ELEMENTS_PATH="+elements)
	r.ok()
	image := filepath.Join(dir, "x.raw")
	checkFS(t, image)
	for path, want := range map[string][]string{
		"/srv/disk":          {"Type: block special", "Mode:  0600", "08:01"},
		"/srv/jail/dev/null": {"Type: character special", "Mode:  0644", "01:03"},
	} {
		got := debugfs(t, image, "stat "+path)
		for _, text := range want {
			if !strings.Contains(got, text) {
				t.Errorf("%s lacks %q:\n%s", path, text, got)
			}
		}
	}
	if got := debugfs(t, image, "ls /dev"); strings.Contains(got, "null") {
		t.Errorf("/dev is not empty: %s", got)
	}
	status := debugfs(t, image, "cat /var/lib/dpkg/status")
	if n := strings.Count(status, "\nStatus: install ok installed\n"); n < 80 {
		t.Errorf("%d packages are installed", n)
	}
	debs := 0
	for _, f := range readLock(t, filepath.Join(dir, "x.lock.json")).Fetched {
		if strings.HasSuffix(f.URL, ".deb") && strings.HasPrefix(f.URL, mirror) && strings.HasPrefix(f.Digest, "sha256:") {
			debs++
		}
	}
	if n := strings.Count(status, "\nStatus: install ok installed\n"); debs < n {
		t.Errorf("%d packages are in the lock, %d are installed", debs, n)
	}
	nothingLeft(t, dir)
}

// gitRepository makes a repository with one commit on main.
func gitRepository(t *testing.T, dir string) string {
	t.Helper()
	at := filepath.Join(dir, "demo.git")
	script := `git init -q -b main "$0" && cd "$0" && echo hello > hello && git add hello &&
git -c user.name=t -c user.email=t@example.org commit -q -m hello`
	if out, err := exec.Command("sh", "-c", script, at).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return at
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// lockFile is the part of a lock that tests look at.
type lockFile struct {
	Fetched []struct {
		URL    string `json:"url"`
		Digest string `json:"digest"`
	} `json:"fetched"`
}

func readLock(t *testing.T, name string) lockFile {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var l lockFile
	if err := json.Unmarshal(b, &l); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}
