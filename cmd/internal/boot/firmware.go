package boot

import (
	"fmt"
	"os"
	"path/filepath"
)

// Firmware is what a guest's processor runs first.
type Firmware int

// The kinds of firmware.
const (
	BIOS       Firmware = iota // SeaBIOS, which comes with QEMU
	UEFI                       // OVMF; starts what it finds
	SecureBoot                 // OVMF with Microsoft's keys; starts what is signed by one of them
)

// ovmfFolder is where the Debian package ovmf puts its files.
const ovmfFolder = "/usr/share/OVMF"

// variablesName is the guest's own copy of OVMF's variables in the work
// folder. The guest writes into it.
const variablesName = "variables.fd"

// platforms says, by Firmware, what machine it needs and which files of
// ovmfFolder it is. SecureBoot keeps its variables from the guest's kernel by
// the system management mode (SMM), which only the machine q35 has.
var platforms = [...]struct{ machine, code, variables string }{
	BIOS:       {machine: "pc"},
	UEFI:       {"q35", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"},
	SecureBoot: {"q35,smm=on", "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"},
}

// prepare puts into the folder dir what the firmware writes to. Firmware comes
// from the folder from.
func (f Firmware) prepare(dir, from string) error {
	if f < 0 || int(f) >= len(platforms) {
		return fmt.Errorf("unknown firmware %d", int(f))
	}
	p := platforms[f]
	if p.code == "" {
		return nil
	}
	variables, err := os.ReadFile(filepath.Join(from, p.variables))
	if err == nil {
		_, err = os.Stat(filepath.Join(from, p.code))
	}
	if err != nil {
		return fmt.Errorf("find firmware (Debian package ovmf): %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, variablesName), variables, 0o600); err != nil {
		return fmt.Errorf("copy firmware's variables: %w", err)
	}
	return nil
}

// arguments are QEMU's options for the machine and its flash memory.
//
// OVMF's README, "SMM support"; docs/pcie.txt of QEMU for what q35 differs in.
func (f Firmware) arguments() []string {
	p := platforms[f]
	args := []string{"-machine", p.machine}
	if p.code == "" {
		return args
	}
	if f == SecureBoot {
		args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	return append(args,
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+filepath.Join(ovmfFolder, p.code),
		"-drive", "if=pflash,unit=1,format=raw,file="+variablesName)
}
