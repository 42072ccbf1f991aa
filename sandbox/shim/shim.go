// Package shim is what hooks find on their PATH in place of programs that need the host: sudo, losetup, kpartx, and
// in the image grub-probe and grub-install; mknod in both. It also is cairn-helper, through which the built-in elements' hooks ask
// the builder for what only the builder can do.
//
// All of them are this one program under another name. mount, umount and chroot are not here: in the sandbox the real
// ones work. Nothing here gains a privilege: sudo runs a command as the root of the user namespace in which the hook
// runs anyway.
package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A Process is what a shim needs of the process it runs in.
type Process struct {
	Args   []string // including the program's name, whose last component says which shim it is
	Env    []string // NAME=VALUE
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Disk is the file that describes the image's disk, see [Disk]; DiskFile when empty.
	Disk string
}

// A Verb is a command of cairn-helper that is answered in this process. It returns an exit status.
type Verb = func(args, env []string, stdout, stderr io.Writer) int

// HostNames are the names under which host hooks find this program on PATH.
func HostNames() []string { return []string{"cairn-helper", "kpartx", "losetup", "mknod", "sudo"} }

// TargetPaths are the programs of an image that this program covers during the build, where they exist. GRUB's have
// other names on Red Hat and SUSE.
func TargetPaths() []string {
	return []string{
		"/usr/bin/grub-mkrelpath", "/usr/bin/grub2-mkrelpath", "/usr/bin/mknod",
		"/usr/sbin/grub-bios-setup", "/usr/sbin/grub-install", "/usr/sbin/grub-probe",
		"/usr/sbin/grub2-bios-setup", "/usr/sbin/grub2-install", "/usr/sbin/grub2-probe",
	}
}

// Is tells whether name, without its directory, is one of a shim.
func Is(name string) bool {
	isTarget := func(path string) bool { return filepath.Base(path) == filepath.Base(name) }
	return slices.Contains(HostNames(), filepath.Base(name)) || slices.ContainsFunc(TargetPaths(), isTarget)
}

// Main is the shim that p.Args[0] names. It returns the exit status: that of the command for sudo, else 0 or 1. The
// verbs are those of cairn-helper besides the ones that it passes on to the builder, which are [Remote].
func Main(p Process, verbs map[string]Verb) int {
	switch name := filepath.Base(p.Args[0]); name {
	case "sudo":
		return sudo(p)
	case "cairn-helper":
		return helper(p, verbs)
	case "grub-probe", "grub2-probe":
		return grubProbe(p)
	case "grub-mkrelpath", "grub2-mkrelpath":
		return grubMkrelpath(p)
	case "grub-install", "grub-bios-setup", "grub2-install", "grub2-bios-setup":
		return grubInstall(p, name)
	case "mknod":
		return mknod(p)
	case "losetup", "kpartx":
		return refuse(p, name)
	default:
		_, _ = fmt.Fprintf(p.Stderr, "%s: not a program of the sandbox\n", name)
		return 1
	}
}

// grubInstall says who does it. The boot sector is written when the disk is.
func grubInstall(p Process, name string) int {
	if slices.Contains(p.Args, "--version") || slices.Contains(p.Args, "-V") {
		_, _ = fmt.Fprintf(p.Stdout, "%s (cairn) 2\n", name)
		return 0
	}
	_, _ = fmt.Fprintf(p.Stderr, "%s: nothing to do during the build: the boot loader is embedded when the disk image is written\n", name)
	return 0
}

// refuse explains why there are no block devices.
func refuse(p Process, name string) int {
	_, _ = fmt.Fprintf(p.Stderr, `%s: error: there are no loop devices or device maps in the sandbox
%s: hint: describe the disk with DIB_BLOCK_DEVICE_CONFIG or a block-device element, or start from DIB_BASE_IMAGE or a -minimal element instead of a disk image
`, name, name)
	return 1
}

// run starts a command in place of this process as far as the caller can tell.
func run(p Process, argv, env []string, dir string, attr *syscall.SysProcAttr) int {
	path, err := lookPath(argv[0], env)
	if err != nil {
		_, _ = fmt.Fprintf(p.Stderr, "sudo: %s: command not found\n", argv[0])
		return 1
	}
	c := &exec.Cmd{Path: path, Args: argv, Env: env, Dir: dir, Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, SysProcAttr: attr}
	err = c.Run()
	if errors.Is(err, syscall.ENOEXEC) { // a script without "#!"
		c = &exec.Cmd{Path: "/bin/sh", Args: append([]string{"sh", path}, argv[1:]...), Env: env, Dir: dir, Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, SysProcAttr: attr}
		err = c.Run()
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal())
		}
		return exit.ExitCode()
	}
	_, _ = fmt.Fprintf(p.Stderr, "sudo: unable to execute %s: %v\n", path, err)
	return 1
}

// lookPath finds a program on the PATH of env.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(variable(env, "PATH")) {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

// variable returns the last value of a variable, or "".
func variable(env []string, name string) string {
	value := ""
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			value = v
		}
	}
	return value
}
