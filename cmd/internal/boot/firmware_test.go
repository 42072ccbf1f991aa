package boot

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/tests/require"
)

// program is a PE32+ image for UEFI on x86-64 that prints word on COM1 and
// halts. It has one section, and no relocations because its code needs none.
//
// PE Format (Microsoft), "Optional Header"; UEFI 2.10, 2.1.1.
func program(word string) []byte {
	const (
		pe        = 0x40
		coff      = pe + 4
		optional  = coff + 20
		optSize   = 112 // without data directories
		section   = optional + optSize
		text      = 0x200  // in the file
		address   = 0x1000 // in memory
		imageSize = 0x2000
	)
	b := make([]byte, 2*text)
	put16 := func(at int, v uint16) { binary.LittleEndian.PutUint16(b[at:], v) }
	put32 := func(at int, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }
	copy(b, "MZ")
	put32(0x3c, pe)
	copy(b[pe:], "PE\x00\x00")
	put16(coff, 0x8664)     // x86-64
	put16(coff+2, 1)        // sections
	put16(coff+16, optSize) //
	put16(coff+18, 0x22)    // executable, large addresses
	put16(optional, 0x20b)  // PE32+
	put32(optional+4, text) // bytes of code
	put32(optional+16, address)
	put32(optional+20, address)
	put32(optional+32, address)                  // section alignment
	put32(optional+36, text)                     // file alignment
	put32(optional+56, imageSize)                //
	put32(optional+60, text)                     // bytes of headers
	put16(optional+68, 10)                       // an EFI application
	copy(b[section:], ".text")                   //
	put32(section+8, text)                       // bytes in memory
	put32(section+12, address)                   //
	put32(section+16, text)                      // bytes in the file
	put32(section+20, text)                      //
	put32(section+36, 0x6000_0020)               // code, executable, readable
	code := []byte{0xfa, 0x66, 0xba, 0xf8, 0x03} // cli; mov dx, 0x3f8 (COM1)
	for _, c := range []byte(word) {
		code = append(code, 0xb0, c, 0xee) // mov al, c; out dx, al
	}
	copy(b[text:], append(code, 0xf4, 0xeb, 0xfd)) // hlt; jmp to the hlt
	return b
}

// efiImage is a disk without partitions whose FAT file system holds a program
// for UEFI to start.
func efiImage(t *testing.T, word string) string {
	t.Helper()
	require.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	require.Tool(t, "qemu-img", "qemu-utils")
	mformat := require.Tool(t, "mformat", "mtools")
	dir := t.TempDir()
	file, disk := filepath.Join(dir, "program"), filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(file, program(word), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{mformat, "-C", "-i", disk, "-T", "65536", "-h", "16", "-s", "63", "::"},
		{require.Tool(t, "mmd", "mtools"), "-i", disk, "::EFI", "::EFI/BOOT"},
		{require.Tool(t, "mcopy", "mtools"), "-i", disk, file, "::EFI/BOOT/BOOTX64.EFI"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	return disk
}

// TestFirmware starts a program that nobody signed.
func TestFirmware(t *testing.T) {
	const word = "started by UEFI"
	for _, test := range []struct {
		name     string
		firmware Firmware
		want     string
	}{
		{"UEFI", UEFI, word},
		{"Secure Boot", SecureBoot, "Access Denied"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m, _ := smallMachine(t, Config{Image: efiImage(t, word), Firmware: test.firmware, MemoryMiB: 256})
			if _, err := m.Serial().Wait(within(t, patience), 0, test.want); err != nil {
				t.Fatal(err)
			}
			if said := m.Serial().Bytes(); test.want != word && bytes.Contains(said, []byte(word)) {
				t.Errorf("the program ran:\n%s", tail(said, 10))
			}
		})
	}
}

func TestFirmwareIsMissing(t *testing.T) {
	for f := UEFI; int(f) < len(platforms); f++ {
		if err := f.prepare(t.TempDir(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "Debian package ovmf") {
			t.Errorf("firmware %d: prepare() error = %v, want the package's name", f, err)
		}
	}
}

// TestFirmwareVariables sees to it that guests do not write to the
// firmware's own files.
func TestFirmwareVariables(t *testing.T) {
	dir := t.TempDir()
	for f := BIOS; int(f) < len(platforms); f++ {
		if err := f.prepare(dir, ovmfFolder); err != nil {
			t.Fatal(err)
		}
		args := strings.Join(f.arguments(), " ")
		if f == BIOS {
			if strings.Contains(args, "pflash") {
				t.Errorf("arguments of a BIOS: %s", args)
			}
			continue
		}
		got, err := os.ReadFile(filepath.Join(dir, variablesName))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(ovmfFolder, platforms[f].variables))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("firmware %d: variables differ from %s (or %v)", f, platforms[f].variables, err)
		}
		if !strings.Contains(args, "readonly=on,file="+ovmfFolder+"/") || strings.Count(args, ovmfFolder) != 1 {
			t.Errorf("firmware %d: arguments %s", f, args)
		}
	}
}
