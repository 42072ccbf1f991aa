package guest_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/tests/require"
)

// checkLivesOn changes the guest as its administrator would, another kernel
// and a new boot loader, and boots it again.
func (g *guest) checkLivesOn(t *testing.T) {
	t.Run("grub defaults", func(t *testing.T) {
		got := g.run(t, `for f in /etc/default/grub /etc/default/grub.d/*.cfg; do [ ! -e $f ] || . $f; done
			echo "$GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT"`)
		if !strings.Contains(got, consoleWords) {
			t.Errorf("/etc/default/grub has the arguments %q, want %q", got, consoleWords)
		}
	})
	var version string
	ok := t.Run("another kernel", func(t *testing.T) { version = g.installKernel(t) })
	ok = t.Run("new boot loader", func(t *testing.T) {
		// The first bytes of the embedded core image are written anew by
		// grub-install; without them the disk would not boot.
		g.run(t, "dd if=/dev/zero of=/dev/vda bs=512 seek=1 count=2047 conv=notrunc status=none && sync")
		g.run(t, "grub-install /dev/vda && update-grub")
	}) && ok
	if !ok {
		return
	}
	t.Run("reboot", func(t *testing.T) { g.checkReboot(t, version) })
}

// installKernel installs another kernel than the running one and returns its
// version as uname has it.
func (g *guest) installKernel(t *testing.T) string {
	running := g.run(t, "uname -r")
	release := g.run(t, ". /etc/os-release; echo $VERSION_CODENAME")
	deb, version := downloadKernel(t, release, running)
	f, err := os.Open(deb)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx := within(t, installTimeout)
	if _, err := g.session.RunInput(ctx, "cat >/tmp/kernel.deb", f); err != nil {
		t.Fatal(err)
	}
	// An initramfs with all modules, well compressed, takes an emulated guest
	// many minutes.
	g.run(t, "printf 'MODULES=dep\\nCOMPRESSLEVEL=1\\n' >/etc/initramfs-tools/conf.d/cairn-test")
	begin := time.Now()
	if out, err := g.session.Run(ctx, asRoot("DEBIAN_FRONTEND=noninteractive dpkg -i /tmp/kernel.deb && rm /tmp/kernel.deb")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("kernel %s installed beside %s in %v", version, running, time.Since(begin).Round(time.Second))
	if got := g.run(t, "dpkg --audit; apt-get -qq check"); got != "" {
		t.Errorf("after the installation: %s", got)
	}
	return version
}

// checkReboot boots again and finds the new kernel, the console, the root and
// the guest's identity.
func (g *guest) checkReboot(t *testing.T, version string) {
	before := g.identity(t)
	// GRUB is to read its environment block and to empty this variable in it.
	const next, used = "next_entry=0", "next_entry="
	g.run(t, "grub-reboot 0")
	if got := g.run(t, "grub-editenv list"); !slices.Contains(strings.Split(got, "\n"), next) {
		t.Errorf("GRUB's environment before the reboot: %q, want %q", got, next)
	}
	boot := g.run(t, "cat /proc/sys/kernel/random/boot_id")
	from := len(g.Serial().Bytes())
	g.session.Run(within(t, time.Minute), asRoot("systemctl reboot")) //nolint:errcheck // the connection may break
	g.session.Close()                                                 //nolint:errcheck // as above
	if _, err := g.Serial().Wait(within(t, bootTimeout), from, "Linux version "+version+" "); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Serial().Wait(within(t, bootTimeout), from, g.instance.Hostname+" login:"); err != nil {
		t.Fatal(err)
	}
	g.login(t)
	g.settle(t)
	if g.run(t, "cat /proc/sys/kernel/random/boot_id") == boot {
		t.Fatal("the guest did not reboot")
	}
	if got := g.run(t, "uname -r"); got != version {
		t.Errorf("running kernel = %s, want %s", got, version)
	}
	if got := g.run(t, "grub-editenv list"); !slices.Contains(strings.Split(got, "\n"), used) {
		t.Errorf("GRUB's environment after the reboot: %q, want %q", got, used)
	}
	if after := g.identity(t); after != before {
		t.Errorf("after the reboot the guest is %v, was %v", after, before)
	}
	g.checkCommandLine(t)
	g.checkUnits(t)
	g.checkCloudInitLogs(t)
	g.checkGrowth(t)
}

// downloadKernel gets a kernel package of the release, other than the running
// one, from the mirror that this machine's apt uses. The newest is taken,
// since GRUB boots the newest by default, and of two flavours the smaller.
func downloadKernel(t *testing.T, release, running string) (path, version string) {
	t.Helper()
	apt := newApt(t, release)
	names := strings.Fields(apt.run(t, "apt-cache", "search", "--names-only", `^linux-image-[0-9][^ ]*[0-9]-cloud-amd64$`))
	found := regexp.MustCompile(`^linux-image-(\d+\.\d+\..*-cloud-amd64)$`)
	var versions []string
	for _, name := range names {
		if m := found.FindStringSubmatch(name); m != nil && m[1] != running {
			versions = append(versions, m[1])
		}
	}
	if len(versions) == 0 {
		t.Fatalf("the mirror has no kernel for %s beside %s", release, running)
	}
	version = slices.MaxFunc(versions, compareVersions)
	apt.run(t, "apt-get", "download", "linux-image-"+version)
	debs, err := filepath.Glob(filepath.Join(apt.dir, "linux-image-*.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatalf("apt-get download left %q: %v", debs, err)
	}
	return debs[0], version
}

// compareVersions orders versions as dpkg does.
func compareVersions(a, b string) int {
	switch {
	case exec.Command("dpkg", "--compare-versions", a, "lt", b).Run() == nil:
		return -1
	case exec.Command("dpkg", "--compare-versions", a, "gt", b).Run() == nil:
		return 1
	}
	return 0
}

// apt is this machine's apt with lists of its own for one Debian release.
type apt struct {
	dir     string
	options []string
}

func newApt(t *testing.T, release string) *apt {
	t.Helper()
	require.Tool(t, "apt-get", "apt")
	a := &apt{dir: t.TempDir()}
	for _, sub := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sources := debianSources(t, release)
	for name, data := range map[string]string{"status": "", "sources.list": sources} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{
		"Dir::State::status": "status", "Dir::State::lists": "lists", "Dir::Cache": "cache",
		"Dir::Etc::sourcelist": "sources.list",
	} {
		a.options = append(a.options, "-o", name+"="+filepath.Join(a.dir, value))
	}
	a.options = append(a.options, "-o", "Dir::Etc::sourceparts=-", "-o", "APT::Architecture=amd64",
		"-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none", "-o", "Acquire::Retries=3", "-q")
	a.run(t, "apt-get", "update")
	return a
}

func (a *apt) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(within(t, commandTimeout), name, append(slices.Clone(a.options), args...)...)
	cmd.Dir = a.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
	}
	return string(out)
}

// debianSources are this machine's apt sources of Debian, turned to a release.
func debianSources(t *testing.T, release string) string {
	t.Helper()
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(CODENAME) $(RELEASE) $(REPO_URI) $(SIGNED_BY)",
		"Created-By: Packages", "Origin: Debian").Output()
	if err != nil {
		t.Fatalf("apt-get indextargets: %v", err)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		own, _, _ := strings.Cut(fields[0], "-")
		_, part, _ := strings.Cut(fields[1], own)
		option := ""
		if len(fields) > 3 && strings.HasPrefix(fields[3], "/") {
			option = "[signed-by=" + fields[3] + "] "
		}
		lines = append(lines, fmt.Sprintf("deb %s%s %s%s main\n", option, fields[2], release, part))
	}
	if lines == nil {
		t.Fatal(`this machine's apt knows no Debian mirror: run "apt-get update"`)
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "")
}
