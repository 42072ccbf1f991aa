package sandbox

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// An ArchError says that this machine does not start programs for an
// architecture, so that no hook can run inside an image for it.
type ArchError struct {
	Arch string // Debian's name
	// Outside says that there is an emulator, but only for programs outside
	// images: its path, or its loader's, leads nowhere in them.
	Outside bool
}

func (e *ArchError) Error() string {
	if e.Outside {
		return fmt.Sprintf("this machine's emulator of %s does not start programs inside an image", e.Arch)
	}
	return fmt.Sprintf("this machine (%s) cannot run programs for %s, and hooks run inside the image", runtime.GOARCH, e.Arch)
}

// Hint says what to do next.
func (e *ArchError) Hint() string {
	if e.Outside {
		return "it has to be a static program, registered in /proc/sys/fs/binfmt_misc with the flag F: Debian's package qemu-user-static does both"
	}
	return "build on a machine of that architecture, or install an emulator of it: Debian's packages qemu-user-static and binfmt-support, in a container on the machine that runs it"
}

// native are the architectures of which this program's machines run programs,
// and hooks may, see the system calls that a container allows.
var native = map[string][]string{
	"amd64": {"amd64", "x86_64", "i386"},
	"arm64": {"arm64", "aarch64"},
}

// foreign says how the kernel knows programs of Debian's architectures: what is
// at the bytes 4, 5 and 18 of an ELF file.
var foreign = map[string]struct {
	class   elf.Class
	data    elf.Data
	machine elf.Machine
}{
	"amd64":    {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_X86_64},
	"arm64":    {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_AARCH64},
	"aarch64":  {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_AARCH64},
	"armel":    {elf.ELFCLASS32, elf.ELFDATA2LSB, elf.EM_ARM},
	"armhf":    {elf.ELFCLASS32, elf.ELFDATA2LSB, elf.EM_ARM},
	"i386":     {elf.ELFCLASS32, elf.ELFDATA2LSB, elf.EM_386},
	"mips64el": {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_MIPS},
	"mipsel":   {elf.ELFCLASS32, elf.ELFDATA2LSB, elf.EM_MIPS},
	"ppc64el":  {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_PPC64},
	"ppc64le":  {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_PPC64},
	"riscv64":  {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_RISCV},
	"s390x":    {elf.ELFCLASS64, elf.ELFDATA2MSB, elf.EM_S390},
	"x86_64":   {elf.ELFCLASS64, elf.ELFDATA2LSB, elf.EM_X86_64},
}

// CheckArch tells whether programs for an architecture, by Debian's name, start
// inside an image: those of this machine do, others with an emulator that the
// kernel knows (binfmt_misc). It tries that below dir, which must exist. It
// says nothing against an architecture that it does not know.
//
// The error is an *[ArchError], or says why nothing could be tried.
func CheckArch(ctx context.Context, arch, dir string) error {
	if slices.Contains(native[runtime.GOARCH], arch) {
		return nil
	}
	header, ok := elfHeader(arch)
	if !ok {
		return nil
	}
	root, err := os.MkdirTemp(dir, "cairn-arch-")
	if err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(root, "program"), header, 0o700)
	if err == nil {
		err = start(ctx, root, "/program")
	}
	err = errors.Join(err, os.RemoveAll(root))
	switch {
	case errors.Is(err, unix.ENOEXEC):
		return &ArchError{Arch: arch}
	case errors.Is(err, unix.ENOENT):
		return &ArchError{Arch: arch, Outside: true}
	case err != nil:
		return fmt.Errorf("try a program for %s: %w", arch, err)
	}
	return nil
}

// elfHeader is a program for an architecture that has no code: enough for the
// kernel to choose an emulator, which refuses it.
func elfHeader(arch string) ([]byte, bool) {
	f, ok := foreign[arch]
	if !ok {
		return nil, false
	}
	h := append([]byte(elf.ELFMAG), byte(f.class), byte(f.data), byte(elf.EV_CURRENT))
	h = append(h, make([]byte, 64-len(h))...)
	var order binary.ByteOrder = binary.LittleEndian
	if f.data == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	order.PutUint16(h[16:], uint16(elf.ET_EXEC))
	order.PutUint16(h[18:], uint16(f.machine))
	order.PutUint32(h[20:], uint32(elf.EV_CURRENT))
	return h, true
}

// start runs a program with root for its root directory, in a user namespace
// because nobody else may change that. How the program ends does not matter.
func start(ctx context.Context, root, program string) error {
	cmd := exec.CommandContext(ctx, program)
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		Chroot:      root,
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var ended *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &ended) {
		return err
	}
	return ctx.Err()
}
