// Package guest_test boots the built image as clouds boot it and looks at it
// from inside.
package guest_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/cmd/internal/boot"
	"cairn/tests/require"
)

func TestMain(m *testing.M) {
	if boot.Relay() {
		return
	}
	os.Exit(m.Run())
}

// Bounds of single steps, for an emulated guest on a busy machine.
const (
	bootTimeout    = 10 * time.Minute // from power-on to a login by key
	settleTimeout  = 8 * time.Minute  // from there to the end of the first boot
	commandTimeout = 5 * time.Minute
	installTimeout = 20 * time.Minute // of a kernel package
	haltTimeout    = 10 * time.Minute
)

const (
	outFolder    = "../../../../out"
	defaultUser  = "debian"
	diskBytes    = 8 << 30
	consoleWords = "console=tty0 console=ttyS0,115200n8"
)

// image is the disk image under test.
func image(t *testing.T) string {
	t.Helper()
	path := os.Getenv("CAIRN_TEST_IMAGE")
	if path == "" {
		path = filepath.Join(outFolder, "debian.qcow2")
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no image at %s: run \"make image\", or name one in CAIRN_TEST_IMAGE", path)
	} else if err != nil {
		t.Fatal(err)
	}
	return path
}

// slots bounds the machines that run at a time.
var slots = make(chan struct{}, 2)

// accelerator is found once: its probe takes up to ten seconds.
var accelerator = sync.OnceValue(func() boot.Accel {
	if boot.ProbeKVM(context.Background()) == nil {
		return boot.KVM
	}
	return boot.TCG
})

// guest is a booted machine with a login of the default user.
type guest struct {
	*boot.Machine
	session  *boot.Session
	key      *boot.Key
	instance boot.Instance
	status   string // what "cloud-init status" said at the end of the boot
}

// cloud says how one kind of cloud starts an image.
type cloud struct {
	name       string
	datasource string // as cloud-init names it in result.json
	instanceID string
	isolated   bool // without it the guest learns a gateway and a name server
	layout     bool // the guest's disk is that of layouts/mbr.yaml
	// prepare adds what this cloud gives its guests; dir is a scratch folder.
	prepare func(c *boot.Config, i boot.Instance, dir string) error
}

var clouds = []cloud{
	{
		"openstack", "DataSourceOpenStack", "6b1a7c9e-2f43-4b7e-9a55-0c5d1e5f7a01", false, false,
		func(c *boot.Config, i boot.Instance, _ string) error {
			c.SMBIOS, c.Metadata = boot.OpenStackSMBIOS(), boot.OpenStackService(i)
			return nil
		},
	},
	{
		"ec2", "DataSourceEc2", "i-0123456789abcdef0", true, false,
		func(c *boot.Config, i boot.Instance, _ string) error {
			c.SMBIOS, c.Metadata = boot.EC2SMBIOS(), boot.EC2Service(i)
			return nil
		},
	},
	{
		"configdrive", "DataSourceConfigDrive", "6b1a7c9e-2f43-4b7e-9a55-0c5d1e5f7a03", true, true,
		func(c *boot.Config, i boot.Instance, dir string) error {
			c.SMBIOS = boot.OpenStackSMBIOS()
			return addSeed(c, dir, boot.ConfigDriveLabel, i.OpenStack())
		},
	},
}

// nocloud is how the guest of a base image from a registry is started.
var nocloud = cloud{
	"nocloud", "DataSourceNoCloud", "nocloud-instance-1", true, false,
	func(c *boot.Config, i boot.Instance, dir string) error {
		return addSeed(c, dir, boot.NoCloudLabel, i.NoCloud())
	},
}

func addSeed(c *boot.Config, dir, label string, files []boot.File) error {
	path := filepath.Join(dir, label+".iso")
	c.Seeds = []string{path}
	return boot.WriteSeed(path, label, files)
}

// start boots an image in the cloud, logs in with the key that only the
// cloud's metadata knows, and waits until the first boot is over. The machine
// ends with the test.
func (c cloud) start(t *testing.T, image string) *guest {
	t.Helper()
	require.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	require.Tool(t, "qemu-img", "qemu-utils")
	key, err := boot.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{key: key, instance: boot.Instance{
		ID:        c.instanceID,
		Hostname:  "guest-" + c.name,
		KeyName:   "mykey",
		PublicKey: key.Public(),
		UserData:  "#!/bin/sh\necho " + c.instanceID + " >/var/lib/cairn-user-data\n",
		MAC:       boot.DefaultMAC,
	}}
	config := boot.Config{Image: image, DiskBytes: diskBytes, Accel: accelerator(), Isolated: c.isolated}
	if err := c.prepare(&config, g.instance, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	g.Machine, err = boot.Start(within(t, commandTimeout), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.finish(t, c.name) })
	g.login(t)
	g.settle(t)
	return g
}

func (g *guest) login(t *testing.T) {
	t.Helper()
	begin := time.Now()
	var err error
	g.session, err = g.Login(within(t, bootTimeout), defaultUser, g.key)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("login after %v", time.Since(begin).Round(time.Second))
}

// settle waits until cloud-init and the init system have nothing left to do.
func (g *guest) settle(t *testing.T) {
	t.Helper()
	begin := time.Now()
	ctx := within(t, settleTimeout)
	g.status, _ = g.session.Run(ctx, "cloud-init status --wait")     // judged by a check
	g.session.Run(ctx, "systemctl is-system-running --wait --quiet") //nolint:errcheck // judged by a check
	if ctx.Err() != nil {
		t.Errorf("the first boot did not end: %v\n%s", ctx.Err(), g.Serial().Tail(30))
	}
	t.Logf("settled after %v more", time.Since(begin).Round(time.Second))
}

// finish shuts the guest down, or keeps the transcript of a failed test.
func (g *guest) finish(t *testing.T, name string) {
	if g.session != nil {
		g.session.Close() //nolint:errcheck // the guest may be gone
		if err := g.Stop(within(t, haltTimeout)); err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		keepTranscript(t, g.Machine, name)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}

func keepTranscript(t *testing.T, m *boot.Machine, name string) {
	dir := filepath.Join(outFolder, "boot")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Error(err)
		return
	}
	path := filepath.Join(dir, name+".serial.log")
	if err := m.SaveSerial(path); err != nil {
		t.Error(err)
		return
	}
	t.Logf("serial console kept in %s; its end:\n%s", path, m.Serial().Tail(20))
}

// within is a context that ends after d. It does not end with the test, so
// that clean-up can use it too.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(t.Context()), d, fmt.Errorf("not within %v", d))
	t.Cleanup(cancel)
	return ctx
}

// run runs a command in the guest as root and returns what it printed, without
// space around it. A command that fails fails the test.
func (g *guest) run(t *testing.T, command string) string {
	t.Helper()
	out, err := g.session.Run(within(t, commandTimeout), asRoot(command))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(out)
}

func asRoot(command string) string {
	return "sudo -n sh -c '" + strings.ReplaceAll(command, "'", `'\''`) + "'"
}
