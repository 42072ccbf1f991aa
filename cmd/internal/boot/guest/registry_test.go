package guest_test

import (
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"cairn/tests/require"
)

// TestRegistryBase builds a virtual machine on a base image that comes from a
// registry, on a disk with a GPT, and boots it.
func TestRegistryBase(t *testing.T) {
	require.Root(t)
	t.Parallel()
	who := require.OrdinaryUser(t)
	dir := shared(t, who)
	server := httptest.NewServer(registry.New())
	defer server.Close()
	reference := strings.TrimPrefix(server.URL, "http://") + "/test/debian:bookworm"
	push(t, baseLayout(t, dir), reference)

	name := filepath.Join(dir, "vm")
	out := buildAs(t, who, dir, []string{"DIB_BASE_IMAGE=" + reference},
		"-t", "qcow2", "-o", name, "debian", "vm", "block-device-gpt", "cloud-init", "openssh-server", "growroot")
	if !strings.Contains(out, reference+" is sha256:") {
		t.Errorf("the build did not say what %s is", reference)
	}
	lock, err := os.ReadFile(name + ".lock.json")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(lock), `"kind": "oci"`) || !strings.Contains(string(lock), reference) {
		t.Errorf("the lock does not name the base image:\n%s", lastLines(string(lock), 20))
	}
	g := nocloud.start(t, name+".qcow2")
	g.checkFirstBoot(t, nocloud)
	// The disk was enlarged: the copy of the table has moved to its end.
	if got := g.run(t, "sgdisk --verify /dev/vda && sgdisk --print /dev/vda"); !strings.Contains(got, "No problems found") || !strings.Contains(got, "EF02") {
		t.Errorf("sgdisk says:\n%s", got)
	}
}

// buildAs runs cairn build as the user, in the scratch folder dir, and returns
// what it said. The kernel is the smaller one for clouds.
func buildAs(t *testing.T, who require.User, dir string, env []string, args ...string) string {
	t.Helper()
	cairn, err := filepath.Abs("../../../../bin/cairn")
	if err != nil {
		t.Fatal(err)
	}
	build := who.Command(cairn, append([]string{"build"}, args...)...)
	build.Env = append(append(build.Env, "TMPDIR="+dir, "DIB_DEBIAN_KERNEL_FLAVOUR=cloud-amd64"), env...)
	build.Dir = dir
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", build.Args, err, lastLines(string(out), 60))
	}
	return string(out)
}

// shared is a scratch folder of the user.
func shared(t *testing.T, who require.User) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "cairn-guest-") //nolint:usetesting // on disk
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chown(dir, int(who.UID), int(who.GID)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// baseLayout makes a base image with mmdebstrap and umoci.
func baseLayout(t *testing.T, dir string) string {
	t.Helper()
	require.Tool(t, "mmdebstrap", "mmdebstrap")
	require.Tool(t, "umoci", "umoci")
	work := filepath.Join(dir, "base")
	script := `set -eu
mkdir "$0"; cd "$0"
mirror=$(apt-get indextargets --format '$(REPO_URI)|$(ORIGIN)|$(LABEL)' 'Identifier: Packages' | awk -F'|' '$2=="Debian" && $3=="Debian" {print $1; exit}')
mmdebstrap --variant=minbase --skip=check/qemu bookworm root.tar "$mirror"
umoci init --layout image
umoci new --image image:bookworm
umoci unpack --image image:bookworm bundle
tar -C bundle/rootfs --xattrs --xattrs-include='*' --numeric-owner -xf root.tar
umoci repack --image image:bookworm bundle
rm -rf bundle root.tar`
	if out, err := exec.Command("sh", "-c", script, work).CombinedOutput(); err != nil {
		t.Fatalf("make the base image: %v\n%s", err, lastLines(string(out), 40))
	}
	return filepath.Join(work, "image")
}

// push puts the image into the registry.
func push(t *testing.T, layout, reference string) {
	t.Helper()
	skopeo := require.Tool(t, "skopeo", "skopeo")
	out, err := exec.Command(skopeo, "--insecure-policy", "copy", "--dest-tls-verify=false", "oci:"+layout+":bookworm", "docker://"+reference).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo copy: %v\n%s", err, out)
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
