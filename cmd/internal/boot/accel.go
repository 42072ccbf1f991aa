package boot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Accel says how the guest's processor is made.
type Accel int

// The ways to run a guest.
const (
	TCG  Accel = iota // emulation: works everywhere, slow
	KVM               // the host's own processor, unconditionally
	Auto              // KVM when ProbeKVM succeeds, else TCG
)

// ProbeTimeout is how long a guest under KVM may take from power-on to the end
// of the probe. A working KVM takes well below a second.
const ProbeTimeout = 10 * time.Second

func (a Accel) resolve(ctx context.Context) (string, error) {
	switch a {
	case KVM:
		return "kvm", nil
	case Auto:
		if ProbeKVM(ctx) == nil {
			return "kvm", nil
		}
		return tcg, ctx.Err()
	case TCG:
		return tcg, nil
	}
	return "", fmt.Errorf("unknown accelerator %d", int(a))
}

// Translated code runs on one host thread per guest processor.
const tcg = "tcg,thread=multi"

// cpuModel is the processor that the guest sees. Some hosts refuse to write
// the register behind arch-capabilities, and nothing here needs it. Page tables
// of five levels cost an emulated guest a fifth of its time, and before version
// 8 the emulated CMPXCHG16B now and then leaves wrong flags, of which the guest's
// kernel dies.
func cpuModel(accel string) string {
	if accel == "kvm" {
		return "host,arch-capabilities=off"
	}
	return "max,la57=off,cx16=off"
}

// ProbeKVM tells whether KVM is usable: a guest must print a word on its
// serial port within ProbeTimeout, after the firmware and a long loop in real
// mode. A /dev/kvm that interprets the code of a boot instead of running it,
// stops with an internal error or crawls, fails the probe.
func ProbeKVM(ctx context.Context) error {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("probe kvm: %w", err)
	}
	dev.Close()
	dir, err := os.MkdirTemp("", "cairn-kvm-")
	if err != nil {
		return fmt.Errorf("probe kvm: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a folder in TMPDIR
	ctx, cancel := context.WithTimeout(ctx, ProbeTimeout)
	defer cancel()
	if err := runProbe(ctx, "kvm", dir, probeLoops); err != nil {
		return fmt.Errorf("probe kvm: %w", err)
	}
	return nil
}

const (
	// probeLoops is some 0.1 s on a processor, and minutes when each
	// instruction is interpreted.
	probeLoops = 200_000_000
	probeWord  = 'K'
)

// probeSector is a boot sector that counts down from loops, prints probeWord
// and halts. It runs in 16-bit real mode as the BIOS leaves it.
func probeSector(loops uint32) []byte {
	s := make([]byte, 512)
	code := []byte{0xfa, 0x66, 0xb9} // cli; mov ecx, loops
	code = binary.LittleEndian.AppendUint32(code, loops)
	code = append(code,
		0x66, 0x49, // dec ecx
		0x75, 0xfc, // jnz to the dec
		0xba, 0xf8, 0x03, // mov dx, 0x3f8 (COM1)
		0xb0, probeWord, // mov al, probeWord
		0xee,       // out dx, al
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to the hlt
	)
	copy(s, code)
	s[510], s[511] = 0x55, 0xaa
	return s
}

// runProbe boots the probe sector and waits for its word.
func runProbe(ctx context.Context, accel, dir string, loops uint32) error {
	disk := filepath.Join(dir, "probe.raw")
	if err := os.WriteFile(disk, probeSector(loops), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "pc", "-accel", accel, "-cpu", cpuModel(accel), "-m", "64",
		"-drive", "file="+escape(disk)+",if=ide,format=raw,readonly=off,snapshot=on", "-serial", "stdio")
	said, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	stderr := &tailBuffer{limit: 1 << 10}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	var word [1]byte
	_, readErr := said.Read(word[:])
	killErr := cmd.Process.Kill()
	waitErr := cmd.Wait()
	switch {
	case word[0] == probeWord:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("no sign of the guest: %w", ctx.Err())
	}
	return fmt.Errorf("guest printed %q: %w: %s", word, errors.Join(readErr, killErr, waitErr), stderr)
}
