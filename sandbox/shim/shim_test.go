package shim

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func start(t *testing.T, env []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	p := Process{Args: args, Env: append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/home/caller"}, env...), Stdin: strings.NewReader("input"), Stdout: &out, Stderr: &errs}
	p.Disk = filepath.Join(t.TempDir(), "disk.json")
	if err := os.WriteFile(p.Disk, []byte(`{"filesystems":[
		{"partmap":"msdos","point":"/","label":"cloudimg-rootfs","uuid":"01234567-89ab-cdef-0123-456789abcdef","partuuid":"11223344-01","type":"ext4","partition":1},
		{"disk":1,"partmap":"gpt","point":"/proc/sys","label":"OTHER","uuid":"1234-ABCD","partuuid":"11223344-03","type":"vfat","partition":3}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	local := map[string]Verb{"local": func(args, _ []string, stdout, _ io.Writer) int {
		_, err := io.WriteString(stdout, strings.Join(args, ","))
		if err != nil {
			return 2
		}
		return 3
	}}
	status = Main(p, local)
	return status, out.String(), errs.String()
}

func TestSudo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run this test as root: it changes users")
	}
	tests := []struct {
		name, command string
		status        int
		want          string
	}{
		{"plain", "sudo printf %s-%s a b", 0, "a-b"},
		{"status", "sudo sh -c exit\\ 7", 7, ""},
		{"signal", "sudo sh -c kill\\ -9\\ $$", 137, ""},
		{"stdin", "sudo cat", 0, "input"},
		{"keeps HOME", "sudo -E sh -c echo\\ $HOME\\ $USER", 0, "/home/caller root\n"},
		{"sets HOME", "sudo -H sh -c echo\\ $HOME", 0, "/root\n"},
		{"user", "sudo -u nobody id -un", 0, "nobody\n"},
		{"user attached and letters", "sudo -nEunobody id -un", 0, "nobody\n"},
		{"long options", "sudo --preserve-env --user=nobody -- id -un", 0, "nobody\n"},
		{"number", "sudo -u #1234 id -u", 0, "1234\n"},
		{"assignment", "sudo FOO=bar sh -c echo\\ $FOO", 0, "bar\n"},
		{"assignment after dashes", "sudo -E -- FOO=bar sh -c echo\\ $FOO", 0, "bar\n"},
		{"login", "sudo -Hiu root pwd", 0, "/root\n"},
		{"login with words", "sudo -i echo a;b", 0, "a;b\n"},
		{"no functions", "sudo env", 0, ""},
		{"validate", "sudo -v", 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := strings.Split(strings.ReplaceAll(tt.command, "\\ ", "\x00"), " ")
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "\x00", " ")
			}
			status, out, errs := start(t, []string{"BASH_FUNC_f%%=() { :; }", "LD_PRELOAD=x"}, args...)
			if tt.name == "no functions" {
				if strings.Contains(out, "BASH_FUNC") || strings.Contains(out, "LD_PRELOAD") || !strings.Contains(out, "PATH=") {
					t.Errorf("environment %s", out)
				}
				return
			}
			if status != tt.status || out != tt.want {
				t.Errorf("status %d, %q, want %d, %q (%s)", status, out, tt.status, tt.want, errs)
			}
		})
	}
	for command, want := range map[string]string{
		"sudo": "usage: sudo", "sudo nosuchcommand": "nosuchcommand: command not found", "sudo -u nosuchuser id": "unknown user nosuchuser", "sudo -Z x": "invalid option", "sudo -u": "usage",
		"sudo --nosuch x": "unrecognized option '--nosuch'", "sudo -D / pwd": "does not work in the sandbox",
	} {
		if status, _, errs := start(t, nil, strings.Fields(command)...); status != 1 || !strings.Contains(errs, want) {
			t.Errorf("%s: %d %q", command, status, errs)
		}
	}
}

func TestScriptWithoutInterpreter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte("echo $1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if status, out, errs := start(t, nil, "/usr/bin/sudo", path, "word"); status != 0 || out != "word\n" {
		t.Errorf("%d %q %q", status, out, errs)
	}
}

func TestGrubProbe(t *testing.T) {
	uuid := "01234567-89ab-cdef-0123-456789abcdef"
	for command, want := range map[string]string{
		"--target=device /": "/dev/disk/by-uuid/" + uuid + "\n", "--device /dev/x --target=fs_uuid": uuid + "\n", "-t fs /boot": "ext2\n", "--target=fs_label /": "cloudimg-rootfs\n",
		"--target=partuuid --device x": "11223344-01\n", "--device x --target=partmap": "msdos\n", "--target=abstraction /": "", "--target=compatibility_hint /": "hd0,msdos1\n",
		"--target=hints_string /": "--hint-bios=hd0,msdos1 --hint-efi=hd0,msdos1 --hint-baremetal=ahci0,msdos1 \n", "--target=cryptodisk_uuid /": "", "-V": "grub-probe (cairn) 2\n",
		"--target drive /": "(hd0,msdos1)\n", "--target=fs_uuid /proc/sys/kernel": "1234-ABCD\n", "-t fs /proc/sys": "fat\n", "-t drive /proc/sysfs": "(hd0,msdos1)\n",
		"-t bios_hints /proc/sys": "hd1,gpt3\n", "-t baremetal_hints /proc/sys": "ahci1,gpt3\n", "-t partmap /proc/sys": "gpt\n", "--device /dev/disk/by-uuid/1234-ABCD -t fs_label": "OTHER\n", "-t fs_label --device=/dev/disk/by-uuid/1234-ABCD": "OTHER\n",
	} {
		if status, out, errs := start(t, nil, append([]string{"grub-probe"}, strings.Fields(command)...)...); status != 0 || out != want {
			t.Errorf("%s: %d %q %q", command, status, out, errs)
		}
	}
	if status, _, errs := start(t, nil, "grub-probe", "--target=nosuch", "/"); status != 1 || !strings.Contains(errs, "unknown target") {
		t.Errorf("unknown target: %d %q", status, errs)
	}
}

// TestMknod: what mknod(1) would make is there, devices as files that stand for them.
func TestMknod(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		args, want string
		status     int
		mode       os.FileMode
		errs       string
	}{
		{"-m 600 NAME b 8 1", "b 8 1", 0, 0o600, ""},
		{"NAME c 0x1 03 -m644", "c 1 3", 0, 0o644, ""},
		{"--mode=0620 -- NAME u 5 0", "c 5 0", 0, 0o620, ""},
		{"-m 640 NAME p", "", 0, os.ModeNamedPipe | 0o640, ""},
		{"NAME c 1", "", 1, 0, "usage"},
		{"NAME p 1 3", "", 1, 0, "usage"},
		{"NAME x 1 3", "", 1, 0, "usage"},
		{"NAME c 4096 3", "", 1, 0, "out of range"},
		{"-m u=rw NAME c 1 3", "", 1, 0, "octal"},
	} {
		name := filepath.Join(dir, "node")
		status, _, errs := start(t, nil, append([]string{"mknod"}, strings.Fields(strings.ReplaceAll(tt.args, "NAME", name))...)...)
		if status != tt.status || !strings.Contains(errs, tt.errs) {
			t.Errorf("mknod %s: %d %q", tt.args, status, errs)
		}
		st, err := os.Lstat(name)
		if tt.status != 0 {
			if err == nil {
				t.Errorf("mknod %s: made %v", tt.args, st.Mode())
			}
			continue
		}
		if err != nil || st.Mode() != tt.mode {
			t.Errorf("mknod %s: %v, %v, want %v", tt.args, st, err, tt.mode)
		}
		value := make([]byte, 32)
		n, _ := unix.Lgetxattr(name, DeviceXattr, value)
		if got := string(value[:max(n, 0)]); got != tt.want {
			t.Errorf("mknod %s: attribute %q, want %q", tt.args, got, tt.want)
		}
		if status, _, errs := start(t, nil, "mknod", name, "c", "1", "3"); status != 1 || !strings.Contains(errs, "file exists") {
			t.Errorf("once more: %d %q", status, errs)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOthers(t *testing.T) {
	for _, tt := range []struct {
		command, want string
		status        int
	}{
		{"/usr/sbin/grub-install /dev/sda", "embedded when the disk image is written", 0},
		{"grub-bios-setup x", "embedded", 0},
		{"losetup -f x", "DIB_BLOCK_DEVICE_CONFIG", 1},
		{"kpartx -a x", "no loop devices", 1},
		{"nosuch", "not a program", 1},
		{"cairn-helper", "verbs: base-image bootstrap-deb local", 1},
		{"cairn-helper nosuch", "unknown verb: nosuch", 1},
		{"cairn-helper bootstrap-deb", "CAIRN_SOCKET is not set", 1},
		{"cairn-helper bootstrap-deb x", `"x" is not NAME=VALUE`, 1},
	} {
		if status, _, errs := start(t, nil, strings.Fields(tt.command)...); status != tt.status || !strings.Contains(errs, tt.want) {
			t.Errorf("%s: %d %q", tt.command, status, errs)
		}
	}
	if status, out, _ := start(t, nil, "cairn-helper", "local", "a", "b"); status != 3 || out != "a,b" {
		t.Errorf("local verb: %d %q", status, out)
	}
	for _, path := range TargetPaths() {
		if status, out, _ := start(t, nil, path, "--version"); strings.Contains(path, "grub") && (status != 0 || !strings.Contains(out, "(cairn)")) {
			t.Errorf("%s --version: status %d, %q", path, status, out)
		}
	}
	if status, out, _ := start(t, nil, "grub2-mkrelpath", "/usr"); status != 0 || out != "/usr\n" {
		t.Errorf("grub2-mkrelpath: status %d, %q", status, out)
	}
	if !Is("/usr/sbin/grub-probe") || !Is("sudo") || Is("cairn") {
		t.Error("names")
	}
}

// serve answers one request with the replies.
func serve(t *testing.T, replies ...Reply) (socket string, got <-chan Request) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
	})
	requests := make(chan Request, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var r Request
		if json.NewDecoder(conn).Decode(&r) == nil {
			requests <- r
		}
		for _, reply := range replies {
			if json.NewEncoder(conn).Encode(reply) != nil {
				return
			}
		}
	}()
	return socket, requests
}

func TestRemote(t *testing.T) {
	tests := []struct {
		name    string
		replies []Reply
		status  int
		stderr  string
	}{
		{"done", []Reply{{Log: "one"}, {Log: "two"}, {Done: true}}, 0, "one\ntwo\n"},
		{
			"error",
			[]Reply{{Log: "one"}, {Error: "no such suite", Hint: "try bookworm"}},
			1,
			"one\ncairn-helper: error: bootstrap-deb: no such suite\ncairn-helper: hint: try bookworm\n",
		},
		{"cut", []Reply{{Log: "one"}}, 1, "one\ncairn-helper: error: bootstrap-deb: read reply of the builder: EOF\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			socket, requests := serve(t, tt.replies...)
			status, _, errs := start(t, []string{"CAIRN_SOCKET=" + socket}, "cairn-helper", "bootstrap-deb", "suite=bookworm", "root=/x=y")
			if status != tt.status || errs != tt.stderr {
				t.Errorf("%d %q", status, errs)
			}
			want := Request{"bootstrap-deb", map[string]string{"suite": "bookworm", "root": "/x=y"}}
			if diff := cmp.Diff(want, <-requests); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestGrubMkrelpath(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/etc/passwd", link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/etc/passwd": "/etc/passwd\n", link: "/etc/passwd\n", "/": "\n", "/proc/sys/kernel": "/kernel\n", "/proc/sys": "\n"} {
		if status, out, errs := start(t, nil, "grub-mkrelpath", path); status != 0 || out != want {
			t.Errorf("grub-mkrelpath %s: status %d, %q, %s; want %q", path, status, out, errs, want)
		}
	}
	if status, _, errs := start(t, nil, "grub-mkrelpath", filepath.Join(dir, "none")); status != 1 || !strings.Contains(errs, "cannot resolve") {
		t.Errorf("a missing path: status %d, %q", status, errs)
	}
}
