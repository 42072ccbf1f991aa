// Package boot starts a disk image in QEMU as a virtual machine of an
// OpenStack or EC2 cloud would be started, and says what the machine does.
//
// The image is never modified: the guest writes into an overlay in a work
// folder, which may be larger than the image so that a root file system has
// room to grow. The guest sees one virtio disk (/dev/vda), one virtio network
// card on QEMU's user network with the metadata service of a cloud on
// 169.254.169.254 when one is given, and a serial console whose output is kept
// in a file. [Instance] makes the metadata service and the seed disks (config
// drive, NoCloud). Log in with [Machine.Login], stop with [Machine.Stop];
// [Machine.Close] ends the process and removes the work folder whatever
// happened before. QEMU also ends when the calling process dies.
//
// Emulation (TCG) is used unless KVM is asked for, or [Auto] has seen a probe
// guest run at the speed of a real processor; see [ProbeKVM].
//
// The package does not build images and does not judge what it finds in a
// guest. It needs qemu-system-x86_64 and qemu-img on PATH, and only starts PC
// guests, by BIOS or by UEFI ([Firmware]); for UEFI it needs OVMF.
//
// The caller's program has to call [Relay] first thing in main (or TestMain):
// QEMU starts the program again for each connection to the metadata service.
//
// Specifications: QEMU 7.2 system emulation, invocation and QMP,
// https://www.qemu.org/docs/master/system/invocation.html; cloud-init data
// sources, https://docs.cloud-init.io/en/latest/reference/datasources.html.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// MetadataAddress is where clouds serve metadata, and so does a guest's
// network here.
const MetadataAddress = "169.254.169.254"

// DefaultMAC is the address of the guest's only network card when the
// configuration gives none. It lies in the range that QEMU and KVM use.
const DefaultMAC = "52:54:00:ca:19:01"

// Config describes a virtual machine.
type Config struct {
	Image      string   // path of a raw or qcow2 disk image; only read
	DiskBytes  int64    // size of the guest's disk; 0 is the image's own, smaller is an error
	SectorSize int      // of the guest's disk, in bytes: 512 or 4096; 0 is 512
	MemoryMiB  int      // 0 is 1024
	CPUs       int      // 1..255; 0 is 1, which costs an emulated guest the least
	Accel      Accel    // the zero value is emulation
	Firmware   Firmware // the zero value is a BIOS
	MAC        string   // "" is DefaultMAC
	SMBIOS     []string // values of QEMU's -smbios, e.g. "type=1,product=OpenStack Nova"
	Seeds      []string // paths of raw disks that the guest gets read-only after its own

	Metadata http.Handler // served on MetadataAddress port 80; nil is no service
	Isolated bool         // the guest reaches the metadata service and nothing else

	// WorkDir is the folder below which the machine's own folder is made:
	// overlay, serial transcript and sockets. "" is os.TempDir.
	WorkDir string
}

// Machine is a started virtual machine. Its methods may be called from
// several goroutines.
type Machine struct {
	dir     *os.File // work folder, held open to reach sockets by short paths
	command *exec.Cmd
	server  *http.Server // of the metadata; nil is none
	monitor *monitor
	sshPort int
	exited  chan struct{} // closed when QEMU has been waited for
	exitErr error         // valid after exited is closed
	stderr  *tailBuffer
}

// Start starts a machine and returns when QEMU answers on its monitor; the
// guest has then just begun to boot. ctx bounds the start only.
func Start(ctx context.Context, c Config) (*Machine, error) {
	m, err := start(ctx, c.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("start virtual machine: %s: %w", c.Image, err)
	}
	return m, nil
}

func (c Config) withDefaults() Config {
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 1024
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.SectorSize == 0 {
		c.SectorSize = 512
	}
	if c.MAC == "" {
		c.MAC = DefaultMAC
	}
	return c
}

func start(ctx context.Context, c Config) (*Machine, error) {
	accel, err := c.Accel.resolve(ctx)
	if err != nil {
		return nil, err
	}
	path, err := os.MkdirTemp(c.WorkDir, "cairn-boot-")
	if err != nil {
		return nil, fmt.Errorf("make work folder: %w", err)
	}
	m := &Machine{exited: make(chan struct{}), stderr: &tailBuffer{limit: 8 << 10}}
	m.dir, err = os.Open(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open work folder: %w", err), os.RemoveAll(path))
	}
	if err := m.launch(ctx, c, accel); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Machine) launch(ctx context.Context, c Config, accel string) error {
	if err := createOverlay(ctx, c.Image, m.path(overlayName), c.DiskBytes); err != nil {
		return err
	}
	if err := c.Firmware.prepare(m.dir.Name(), ovmfFolder); err != nil {
		return err
	}
	if err := m.serve(c.Metadata); err != nil {
		return err
	}
	args, err := arguments(c, accel)
	if err != nil {
		return err
	}
	if err := m.run(args); err != nil {
		return err
	}
	if m.monitor, err = m.dialMonitor(ctx); err != nil {
		return m.explain("reach monitor of qemu", err)
	}
	if m.sshPort, err = m.monitor.forwardedPort(ctx); err != nil {
		return err
	}
	// QEMU has it open. Without a name, gigabytes of a guest's writes do not
	// stay behind when this process is killed.
	if err := os.Remove(m.path(overlayName)); err != nil {
		return fmt.Errorf("unlink overlay: %w", err)
	}
	return nil
}

// Names inside the work folder, which is QEMU's working directory.
const (
	overlayName    = "overlay.qcow2"
	serialName     = "serial.log"
	monitorSocket  = "monitor.sock"
	metadataSocket = "metadata.sock"
)

func (m *Machine) path(name string) string { return filepath.Join(m.dir.Name(), name) }

// socketPath names a socket in the work folder by a path that fits into the
// 108 bytes of a Unix socket address however long the folder's own path is.
func (m *Machine) socketPath(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", m.dir.Fd(), name)
}

// serve answers the guest's HTTP on a socket in the work folder until the
// machine closes.
func (m *Machine) serve(h http.Handler) error {
	if h == nil {
		return nil
	}
	l, err := net.Listen("unix", m.socketPath(metadataSocket))
	if err != nil {
		return fmt.Errorf("listen for the guest: %w", err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	m.server = s
	go s.Serve(l) //nolint:errcheck // it ends with ErrServerClosed when the machine closes
	return nil
}

// run starts QEMU on a thread that lives as long as QEMU does: the kernel
// sends the parent-death signal when the thread ends, not the process.
func (m *Machine) run(args []string) error {
	m.command = exec.Command("qemu-system-x86_64", args...)
	m.command.Dir = m.dir.Name()
	m.command.Stderr = m.stderr
	m.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	m.command.Env = append(os.Environ(), relayVariable+"=1")
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := m.command.Start(); err != nil {
			m.exitErr = err
			close(m.exited)
			started <- fmt.Errorf("start qemu-system-x86_64 (Debian package qemu-system-x86): %w", err)
			return
		}
		started <- nil
		m.exitErr = m.command.Wait()
		close(m.exited)
	}()
	return <-started
}

// arguments is QEMU's command line without the program.
func arguments(c Config, accel string) ([]string, error) {
	network, err := networkOption(c)
	if err != nil {
		return nil, err
	}
	args := []string{
		"-name", "cairn-boot", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "std",
		"-accel", accel, "-cpu", cpuModel(accel),
		"-m", strconv.Itoa(c.MemoryMiB), "-smp", strconv.Itoa(c.CPUs),
		"-chardev", "file,id=console,path=" + serialName, "-serial", "chardev:console",
		"-qmp", "unix:" + monitorSocket + ",server=on,wait=off",
		"-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
		"-drive", "file=" + overlayName + ",if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap",
		"-device", fmt.Sprintf("virtio-blk-pci,drive=disk,logical_block_size=%d,physical_block_size=%[1]d", c.SectorSize),
		"-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile=,mac=" + c.MAC,
	}
	args = append(args, c.Firmware.arguments()...)
	for _, seed := range c.Seeds {
		abs, err := filepath.Abs(seed)
		if err != nil {
			return nil, fmt.Errorf("name seed disk: %w", err)
		}
		args = append(args, "-drive", "file="+escape(abs)+",if=virtio,format=raw,readonly=on")
	}
	for _, s := range c.SMBIOS {
		args = append(args, "-smbios", s)
	}
	return args, nil
}

// escape protects commas in a value of a QEMU option.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// networkOption is the value of -netdev: a user network that holds the
// metadata address, since QEMU forwards only addresses of its own network.
func networkOption(c Config) (string, error) {
	opt := "user,id=net,net=169.254.169.0/24,host=169.254.169.2,dns=169.254.169.3,dhcpstart=169.254.169.15" +
		",hostfwd=tcp:127.0.0.1:0-:22"
	if c.Isolated {
		opt += ",restrict=on"
	}
	if c.Metadata != nil {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find own program for the relay: %w", err)
		}
		relay := shellQuote(self) + " " + metadataSocket
		opt += ",guestfwd=tcp:" + MetadataAddress + ":80-cmd:" + escape(relay)
	}
	return opt, nil
}

// shellQuote quotes a word for g_shell_parse_argv, which splits the relay's
// command line.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Done is closed when QEMU has ended.
func (m *Machine) Done() <-chan struct{} { return m.exited }

// Stop asks the guest to shut down, as a press of the power button would, and
// waits until it did. When ctx ends first the machine is killed and Stop
// returns an error.
func (m *Machine) Stop(ctx context.Context) error {
	if err := m.monitor.execute(ctx, "system_powerdown", nil); err != nil {
		return m.explain("shut down", errors.Join(err, m.Kill()))
	}
	select {
	case <-m.exited:
		if m.exitErr != nil {
			return m.explain("shut down", m.exitErr)
		}
		return nil
	case <-ctx.Done():
		return m.explain("shut down", errors.Join(ctx.Err(), m.Kill()))
	}
}

// Kill ends QEMU at once, as a power cut would, and waits for it.
func (m *Machine) Kill() error {
	select {
	case <-m.exited:
		return nil
	default:
	}
	err := m.command.Process.Kill()
	<-m.exited
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Close kills QEMU if it still runs, ends the services and removes the work
// folder with the overlay and the transcript. It may be called again.
func (m *Machine) Close() error {
	var errs []error
	if m.command != nil {
		errs = append(errs, m.Kill())
	}
	if m.monitor != nil {
		m.monitor.close()
	}
	if m.server != nil {
		errs = append(errs, m.server.Close())
	}
	errs = append(errs, os.RemoveAll(m.dir.Name()))
	if err := m.dir.Close(); !errors.Is(err, os.ErrClosed) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// explain adds to an error what QEMU and the guest's console said last.
func (m *Machine) explain(what string, err error) error {
	text := what + ": %w"
	if said := strings.TrimSpace(m.stderr.String()); said != "" {
		text += "\nqemu: " + strings.ReplaceAll(said, "%", "%%")
	}
	if tail := m.Serial().Tail(30); tail != "" {
		text += "\nlast lines of the serial console:\n" + strings.ReplaceAll(tail, "%", "%%")
	}
	return fmt.Errorf(text, err)
}

var errExited = errors.New("qemu has ended")

// poll calls try every interval until it reports true or an error, QEMU ends
// or ctx ends. It tries a last time when QEMU has ended, which may have brought
// about what is waited for.
func (m *Machine) poll(ctx context.Context, interval time.Duration, try func() (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if ok, err := try(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.exited:
			if ok, err := try(); ok || err != nil {
				return err
			}
			return errExited
		case <-tick.C:
		}
	}
}

// relayVariable tells a program that QEMU started it as a relay. QEMU itself
// has it in its environment and passes it on.
const relayVariable = "CAIRN_BOOT_RELAY"

// Relay connects standard input and output with a service of a machine when
// the program was started for that by QEMU, and reports whether it was. A
// program that uses Start calls it before anything else and returns when it
// reports true.
func Relay() bool {
	if os.Getenv(relayVariable) == "" || len(os.Args) != 2 {
		return false
	}
	conn, err := net.Dial("unix", os.Args[1])
	if err != nil {
		return true // the guest sees a closed connection
	}
	defer conn.Close()
	// QEMU ends the relay by a signal or by closing its end; an answer may
	// still be under way when the guest has finished sending.
	go func() {
		io.Copy(conn, os.Stdin) //nolint:errcheck // the guest sees a closed connection
		if c, ok := conn.(*net.UnixConn); ok {
			c.CloseWrite() //nolint:errcheck // as above
		}
	}()
	io.Copy(os.Stdout, conn) //nolint:errcheck // as above
	return true
}
