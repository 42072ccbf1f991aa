package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMkfsAndConvert: the writers by their commands, as an ordinary user: a tar
// archive from a pipe becomes a file system, which becomes a qcow2.
func TestMkfsAndConvert(t *testing.T) {
	who := ordinary(t)
	dir := scratch(t, who)
	archive, err := exec.Command("tar", "-C", "/etc", "-c", "os-release", "debian_version").Output()
	if err != nil {
		t.Fatal(err)
	}
	in := filepath.Join(dir, "in.tar")
	if err := os.WriteFile(in, archive, 0o644); err != nil {
		t.Fatal(err)
	}
	r := run{
		t: t, who: who, dir: dir, wrap: []string{"sh", "-c", `exec "$@" < in.tar`, "sh"}, env: []string{"TMPDIR=" + dir},
		args: []string{"mkfs", "-t", "ext4", "-L", "demo", "--size", "+8M", "--json", "-", "x.raw"},
	}
	var summary struct {
		Label, UUID, SHA256 string
		Size                int64
	}
	if err := json.Unmarshal([]byte(r.ok().stdout), &summary); err != nil {
		t.Fatal(err)
	}
	fs := filepath.Join(dir, "x.raw")
	checkFS(t, fs)
	if got := digest(t, fs); got != summary.SHA256 || summary.Label != "demo" || summary.UUID == "" {
		t.Errorf("summary %+v, sha256 %s", summary, got)
	}
	want, err := os.ReadFile("/etc/debian_version")
	if err != nil {
		t.Fatal(err)
	}
	if got := debugfs(t, fs, "cat /debian_version"); got != string(want) {
		t.Errorf("debian_version is %q, want %q", got, want)
	}
	(&run{t: t, who: who, dir: dir, args: []string{"convert", "-t", "qcow2", "-o", "compression_type=zstd", "x.raw", "x.qcow2"}}).ok()
	if out, err := exec.Command("qemu-img", "compare", fs, fs[:len(fs)-3]+"qcow2").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	listed := (&run{t: t, who: who, dir: dir, args: []string{"mkfs", "-t", "tar", "x.qcow2", "-"}}).ok().stdout
	cmd := exec.Command("tar", "-x", "--to-stdout", "--wildcards", "*debian_version")
	cmd.Stdin = bytes.NewReader([]byte(listed))
	if out, err := cmd.Output(); err != nil || !bytes.Equal(out, want) {
		t.Errorf("back in an archive it is %q, %v", out, err)
	}
	(&run{t: t, who: who, dir: dir, args: []string{"mkfs", "-t", "ext4", "--size", "64K", "in.tar", "y"}}).refused(1, []string{"bytes are missing", "hint:", "--size"}, filepath.Join(dir, "y"))
	(&run{t: t, who: who, dir: dir, args: []string{"mkfs", "-t", "ext4", "--size", "big", "in.tar", "y"}}).refused(1, []string{"--size", `"big"`})
	(&run{t: t, who: who, dir: dir, args: []string{"convert", "-t", "qed", "x.raw", "y"}}).refused(1, []string{`"qed"`, "qcow2"}, filepath.Join(dir, "y"))
	nothingLeft(t, dir)
}

// TestOwnersWithoutPrivileges: a user without subordinate ids gets the owners of
// a container image that others made, and those of an archive that was unpacked.
func TestOwnersWithoutPrivileges(t *testing.T) {
	who := withoutRange(t)
	dir := scratch(t, who)
	shell := func(script string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	shell(`
		mkdir tree && echo hello > tree/f && mkfifo tree/p && chown -R 5:6 tree && chmod 4711 tree/f
		umoci init --layout layout && umoci new --image layout:v1 && umoci insert --image layout:v1 tree /d
		tar --numeric-owner -cf tree.tar tree && rm -r tree && chown -R ` + who.name + ` .`)
	(&run{t: t, who: who, dir: dir, env: []string{"TMPDIR=" + dir}, args: []string{"mkfs", "-t", "ext4", "oci:layout:v1", "oci.raw"}}).ok()
	checkFS(t, filepath.Join(dir, "oci.raw"))
	shell(`
		setpriv --reuid ` + who.name + ` --regid ` + who.name + ` --clear-groups sh -ec 'tar -xf tree.tar && echo new > tree/g'
		test "$(stat -c %u tree/f)" != 5`)
	(&run{t: t, who: who, dir: dir, args: []string{"mkfs", "-t", "ext4", "--owner-from-tar", "tree.tar", ".", "tar.raw"}}).ok()
	for file, want := range map[string][]string{
		"oci.raw:/d/f":    {"User:     5   Group:     6", "Mode:  04711"},
		"oci.raw:/d/p":    {"User:     5   Group:     6", "Type: FIFO"},
		"tar.raw:/tree/f": {"User:     5   Group:     6", "Mode:  04711"},
		"tar.raw:/tree/g": {"User:     0   Group:     0"},
	} {
		name, path, _ := strings.Cut(file, ":")
		said := debugfs(t, filepath.Join(dir, name), "stat "+path)
		for _, text := range want {
			if !strings.Contains(said, text) {
				t.Errorf("%s lacks %q:\n%s", file, text, said)
			}
		}
	}
}
