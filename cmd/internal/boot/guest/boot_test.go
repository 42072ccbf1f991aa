package guest_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// identity is what no two guests of one image may share.
type identity struct{ machineID, hostKey string }

// TestGuests boots the image in each kind of cloud, or one with the same
// elements on a disk of another layout. OpenStack's guest is also changed as an
// administrator would change it, and booted again.
func TestGuests(t *testing.T) {
	t.Parallel()
	built := image(t)
	identities := make(map[string]identity)
	report := make(chan struct {
		cloud string
		id    identity
	}, len(clouds))
	t.Run("boot", func(t *testing.T) {
		for _, c := range clouds {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				image := built
				if c.layout {
					image = buildLayout(t)
				}
				g := c.start(t, image)
				g.checkFirstBoot(t, c)
				report <- struct {
					cloud string
					id    identity
				}{c.name, g.identity(t)}
				if c.name == "openstack" {
					g.checkImage(t)
					g.checkLivesOn(t)
				}
			})
		}
	})
	close(report)
	for r := range report {
		for other, id := range identities {
			if id.machineID == r.id.machineID {
				t.Errorf("guests %s and %s have the same machine-id %s", other, r.cloud, id.machineID)
			}
			if id.hostKey == r.id.hostKey {
				t.Errorf("guests %s and %s have the same host key %s", other, r.cloud, id.hostKey)
			}
		}
		identities[r.cloud] = r.id
	}
}

func (g *guest) identity(t *testing.T) identity {
	return identity{g.run(t, "cat /etc/machine-id"), g.session.HostKey()}
}

// checkFirstBoot is what every cloud's first boot has to bring about.
func (g *guest) checkFirstBoot(t *testing.T, c cloud) {
	t.Run("data source", func(t *testing.T) { g.checkDatasource(t, c.datasource) })
	t.Run("cloud-init logs", g.checkCloudInitLogs)
	t.Run("units", g.checkUnits)
	if c.layout {
		t.Run("layout", g.checkLayout)
	} else {
		t.Run("growth", g.checkGrowth)
	}
	t.Run("host name", func(t *testing.T) {
		if got := g.run(t, "hostname"); got != g.instance.Hostname {
			t.Errorf("hostname = %q, want %q from the metadata", got, g.instance.Hostname)
		}
		if got := g.run(t, "getent hosts $(hostname) || true"); got == "" {
			t.Error("the guest cannot resolve its own name")
		}
	})
	t.Run("user data", func(t *testing.T) {
		if got := g.run(t, "cat /var/lib/cairn-user-data"); got != g.instance.ID {
			t.Errorf("user data wrote %q, want %q", got, g.instance.ID)
		}
	})
	t.Run("host keys and machine-id", g.checkIdentityIsNew)
	t.Run("passwords", g.checkPasswords)
	t.Run("console", g.checkConsole)
}

func (g *guest) checkDatasource(t *testing.T, want string) {
	var result struct {
		V1 struct {
			Datasource string
			Errors     []string
		}
	}
	text := g.run(t, "cat /run/cloud-init/result.json")
	if err := json.Unmarshal([]byte(text), &result); err != nil {
		t.Fatalf("result.json: %v\n%s", err, text)
	}
	if !strings.HasPrefix(result.V1.Datasource, want) {
		t.Errorf("data source = %q, want %s", result.V1.Datasource, want)
	}
	if len(result.V1.Errors) > 0 {
		t.Errorf("cloud-init had errors: %q", result.V1.Errors)
	}
	if got := strings.TrimLeft(strings.TrimSpace(g.status), "."); strings.TrimSpace(got) != "status: done" {
		t.Errorf("cloud-init status = %q, want done", g.status)
	}
}

func (g *guest) checkCloudInitLogs(t *testing.T) {
	got := g.run(t, "grep -hE 'ERROR|CRITICAL|WARNING|Traceback' /var/log/cloud-init.log /var/log/cloud-init-output.log || true")
	if got != "" {
		t.Errorf("cloud-init logged\n%s", got)
	}
}

func (g *guest) checkUnits(t *testing.T) {
	if got := g.run(t, "systemctl is-system-running || true"); got != "running" {
		t.Errorf("systemctl is-system-running = %q, want running", got)
	}
	if got := g.run(t, "systemctl --failed --no-legend --plain"); got != "" {
		t.Errorf("failed units:\n%s\n%s", got,
			g.run(t, "for u in $(systemctl --failed --no-legend --plain | cut -d' ' -f1); do systemctl status --no-pager --full $u; done || true"))
	}
	for _, unit := range []string{"ssh", "serial-getty@ttyS0"} {
		if got := g.run(t, "systemctl is-active "+unit+" || true"); got != "active" {
			t.Errorf("unit %s is %s, want active", unit, got)
		}
	}
}

func (g *guest) checkGrowth(t *testing.T) {
	number := func(command string) int64 {
		n, err := strconv.ParseInt(g.run(t, command), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	root := g.run(t, "findmnt -no SOURCE /")
	if !strings.HasPrefix(root, "/dev/vda") || root == "/dev/vda" {
		t.Fatalf("root is on %s, want a partition of /dev/vda", root)
	}
	sys := "/sys/class/block/" + strings.TrimPrefix(root, "/dev/")
	end := 512 * (number("cat "+sys+"/start") + number("cat "+sys+"/size"))
	if free := diskBytes - end; free > 2<<20 {
		t.Errorf("%d bytes of the disk are behind the root partition", free)
	}
	// What df calls the size lacks the metadata, some per cent.
	if size := number("df -B1 --output=size / | tail -n1"); size < diskBytes*9/10 {
		t.Errorf("root file system has %d bytes, the disk %d", size, int64(diskBytes))
	}
}

// checkIdentityIsNew sees to it that keys and machine-id were made by this
// boot: they are not older than the kernel.
func (g *guest) checkIdentityIsNew(t *testing.T) {
	if got := g.run(t, "cat /etc/machine-id"); !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(got) {
		t.Errorf("machine-id = %q", got)
	}
	old := g.run(t, `boot=$(sed -n "s/^btime //p" /proc/stat)
		ls /etc/ssh/ssh_host_ed25519_key /etc/ssh/ssh_host_ed25519_key.pub >/dev/null
		for f in /etc/ssh/ssh_host_*_key /etc/machine-id; do
			[ $(stat -c %Y $f) -ge $((boot - 2)) ] || echo $f
		done`)
	if old != "" {
		t.Errorf("older than this boot: %s", old)
	}
	server := strings.Join(strings.Fields(g.run(t, "cat /etc/ssh/ssh_host_*_key.pub")), " ")
	if key := strings.Fields(g.session.HostKey())[1]; !strings.Contains(server, key) {
		t.Errorf("the ssh server's key %s is none of /etc/ssh: %s", key, server)
	}
}

// checkPasswords gives an account a password and must not get in with it.
func (g *guest) checkPasswords(t *testing.T) {
	settings := strings.Split(g.run(t, "sshd -T"), "\n")
	for _, want := range []string{"passwordauthentication no", "kbdinteractiveauthentication no", "permitemptypasswords no"} {
		if !slices.Contains(settings, want) {
			t.Errorf("sshd -T lacks %q", want)
		}
	}
	g.run(t, "useradd --create-home --shell /bin/sh passtest && echo passtest:open-sesame | chpasswd")
	s, err := g.LoginWithPassword(within(t, commandTimeout), "passtest", "open-sesame")
	if err == nil {
		s.Close() //nolint:errcheck // it should not be there
		t.Error("logged in with a password")
	} else if !strings.Contains(err.Error(), "unable to authenticate") {
		t.Errorf("login with a password: %v, want a refusal", err)
	}
}

func (g *guest) checkConsole(t *testing.T) {
	serial := string(g.Serial().Bytes())
	for _, want := range []string{"Linux version ", "Command line: ", g.instance.Hostname + " login:"} {
		if !strings.Contains(serial, want) {
			t.Errorf("the serial console lacks %q", want)
		}
	}
	g.checkCommandLine(t)
}

var rootArgument = regexp.MustCompile(`(^| )root=(LABEL|UUID|PARTUUID)=\S+`)

func (g *guest) checkCommandLine(t *testing.T) {
	t.Helper()
	got := g.run(t, "cat /proc/cmdline")
	if !strings.Contains(got, consoleWords) || !rootArgument.MatchString(got) {
		t.Errorf("kernel command line = %q, want %q and root by label or UUID", got, consoleWords)
	}
}

// checkImage is what stands in the image and no boot changes.
func (g *guest) checkImage(t *testing.T) {
	t.Run("firewall", func(t *testing.T) {
		got := g.run(t, `cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true
			if command -v nft >/dev/null; then nft list ruleset; fi`)
		if got != "" {
			t.Errorf("there is a firewall:\n%s", got)
		}
	})
	t.Run("MAC addresses", g.checkNoMAC)
	for _, command := range []string{"dpkg --verify", "dpkg --audit", "apt-get -qq check"} {
		t.Run(command, func(t *testing.T) {
			if got := g.run(t, command); got != "" {
				t.Errorf("%s says\n%s", command, got)
			}
		})
	}
	t.Run("apt sources", g.checkSources)
	t.Run("resolver", func(t *testing.T) {
		if got := g.run(t, "cat /etc/resolv.conf"); !strings.Contains(got, "nameserver ") {
			t.Errorf("/etc/resolv.conf names no server: %q", got)
		}
	})
	t.Run("default user", func(t *testing.T) {
		if got := g.run(t, "passwd -S "+defaultUser+"; passwd -S root"); strings.Count(got, " L ") != 2 {
			t.Errorf("passwd -S = %q, want both passwords locked", got)
		}
	})
}

// renderings are the files in which cloud-init may write down the address of
// the card that it has just found.
var renderings = []string{
	"/etc/netplan/50-cloud-init.yaml",
	"/etc/network/interfaces.d/50-cloud-init",
	"/etc/systemd/network/10-cloud-init-*.network",
}

func (g *guest) checkNoMAC(t *testing.T) {
	got := g.run(t, fmt.Sprintf(`for f in $(grep -rIilE "(^|[^0-9a-f:])([0-9a-f]{2}:){5}[0-9a-f]{2}([^0-9a-f:]|$)" /etc); do
		case $f in %s) ;; *) echo $f ;; esac; done`, strings.Join(renderings, "|")))
	if got != "" {
		t.Errorf("hardware addresses stand in %s", got)
	}
	if got := g.run(t, "ls /etc/udev/rules.d/*persistent-net* 2>/dev/null || true"); got != "" {
		t.Errorf("interface names are pinned by %s", got)
	}
}

// checkSources wants the public mirrors that images name by default, each
// with the guest's own release, and nothing of the machine that built it.
func (g *guest) checkSources(t *testing.T) {
	release := g.run(t, ". /etc/os-release; echo $VERSION_CODENAME")
	var got []string
	releases := regexp.MustCompile(`'(\S+)/dists/(\S+)/InRelease'`)
	for _, m := range releases.FindAllStringSubmatch(g.run(t, "apt-get update --print-uris"), -1) {
		got = append(got, m[1]+" "+m[2])
	}
	slices.Sort(got)
	want := []string{
		"http://ftp.debian.org/debian " + release,
		"http://ftp.debian.org/debian " + release + "-updates",
		"http://security.debian.org/debian-security " + release + "-security",
	}
	if !slices.Equal(got, want) {
		t.Errorf("apt sources = %q, want %q", got, want)
	}
}
