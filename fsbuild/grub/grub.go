// Package grub puts GRUB 2 for BIOS (i386-pc) on a disk without grub-install:
// Embed patches the bytes of boot.img and core.img as grub-bios-setup does with
// --no-rs-codes, and EarlyConfig writes the text that core.img carries to find
// the root file system. It makes no core.img (grub-mkimage does, see Modules),
// writes no grub.cfg, and knows no UEFI.
//
// There are two places for core.img: on an MBR disk the gap between the table
// and the first partition, on a GPT disk a partition of type bios-boot, for
// which 1 MiB is always enough. GRUB for BIOS counts in sectors of 512 bytes;
// disks with other ones cannot be booted like this.
//
// The places that are patched are those of GRUB 2.06's
// grub-core/boot/i386/pc/boot.S and diskboot.S, described in GRUB's manual,
// section "Embedding data"; Debian's 2.06 and 2.12 have the same ones.
//
// # Stability
//
// The API may change until version 1 of the module. The bytes for the same
// images and place are part of it: a release that writes others says so.
package grub

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

const sectorSize = 512

// Offsets in boot.img, in bytes. Numbers are little-endian.
const (
	bootBPB        = 0x03  // 0x03..0x59 keep the old sector's BIOS parameter block: zeros
	bootBPBEnd     = 0x5a  //
	bootKernelLBA  = 0x5c  // 8 bytes: first sector of core.img
	bootDrive      = 0x64  // 1 byte: 0xff, the drive that the BIOS booted
	bootDriveCheck = 0x66  // 2 bytes: a jump over a workaround, or two nops that enable it
	bootCodeEnd    = 0x1b8 // disk signature and partition table begin here
	bootMagic      = 0x1fe // 0x55 0xaa
)

// The block list in core.img's first sector says where the others are. It
// grows downwards from its first entry to one without sectors.
const (
	blockEntry   = 12    // bytes
	blockFirst   = 0x1f4 // offset of the first entry
	blockCount   = 8     // in an entry, 2 bytes behind the first sector's 8: number of sectors
	blockSegment = 10    // in an entry, 2 bytes: where they are loaded
	loadSegment  = 0x0820
)

// GRUB's header in core.img's second sector, grub's include/grub/offsets.h.
const (
	coreVersion = sectorSize + 0x14 // 2 bytes: length of what Reed-Solomon codes do not cover; grub-bios-setup refuses 0xffff
	coreHeader  = sectorSize + 0x16 // its end, as far as it matters here
)

// Errors that a caller may test with errors.Is.
var (
	// ErrBootImage means that boot.img is not GRUB 2's for i386-pc.
	ErrBootImage = errors.New("not a boot.img of GRUB 2 for i386-pc")
	// ErrCoreImage means that core.img is not grub-mkimage's for i386-pc.
	ErrCoreImage = errors.New("not a core.img of GRUB 2 for i386-pc")
)

// SizeError says that core.img does not fit into the place it was given: use
// fewer modules, let the first partition of an MBR disk start later, or give a
// GPT disk a larger BIOS boot partition.
type SizeError struct {
	Need, Room uint64 // sectors of 512 bytes
}

// Error implements error.
func (e *SizeError) Error() string {
	return fmt.Sprintf("core.img needs %d sectors, but only %d are free for it", e.Need, e.Room)
}

// Embedding is what has to be on the disk for the BIOS to start GRUB.
type Embedding struct {
	BootCode []byte // 440 bytes, the start of the disk's first sector
	Core     []byte // whole sectors
	CoreLBA  uint64 // where Core goes, in sectors of 512 bytes
}

// Embed patches copies of boot.img and core.img for a core.img at sector
// start, which may use the sectors before end: 1 and the start of the first
// partition on an MBR disk; start and end of the BIOS boot partition on GPT,
// where start is behind the table, which ends before sector 34.
// A core.img too large for that is a *SizeError, one that no BIOS could load a
// wrapped ErrCoreImage.
func Embed(boot, core []byte, start, end uint64) (Embedding, error) {
	if err := checkImages(boot, core); err != nil {
		return Embedding{}, fmt.Errorf("embed grub: %w", err)
	}
	if start == 0 || end < start {
		return Embedding{}, fmt.Errorf("embed grub: no room in sectors %d to %d", start, end)
	}
	sectors := uint64(len(core)+sectorSize-1) / sectorSize
	if sectors > end-start {
		return Embedding{}, fmt.Errorf("embed grub: %w", &SizeError{Need: sectors, Room: end - start})
	}
	return Embedding{
		BootCode: patchBoot(boot, start),
		Core:     patchCore(core, start, sectors),
		CoreLBA:  start,
	}, nil
}

// maxCoreSize is what grub-bios-setup installs: what fits into memory from
// 0x9000 to 0x78000. It is less than the 16-bit count of the block list can say.
const maxCoreSize = 0x78000 - 0x9000

func checkImages(boot, core []byte) error {
	switch {
	case len(boot) != sectorSize:
		return fmt.Errorf("boot.img has %d bytes, not %d: %w", len(boot), sectorSize, ErrBootImage)
	case boot[bootMagic] != 0x55 || boot[bootMagic+1] != 0xaa:
		return fmt.Errorf("boot.img lacks the boot signature: %w", ErrBootImage)
	case !isDriveCheck(boot[bootDriveCheck:]):
		return fmt.Errorf("boot.img has no drive check at 0x%x: %w", bootDriveCheck, ErrBootImage)
	case len(core) < coreHeader:
		return fmt.Errorf("core.img has only %d bytes: %w", len(core), ErrCoreImage)
	case len(core) > maxCoreSize:
		return fmt.Errorf("core.img has %d bytes, more than the %d that can be loaded: %w", len(core), maxCoreSize, ErrCoreImage)
	case binary.LittleEndian.Uint16(core[blockFirst+blockSegment:]) != loadSegment:
		return fmt.Errorf("core.img has no block list at 0x%x: %w", blockFirst, ErrCoreImage)
	case binary.LittleEndian.Uint16(core[coreVersion:]) == 0xffff:
		return fmt.Errorf("core.img is of another version of GRUB: %w", ErrCoreImage)
	}
	end, sectors := blockList(core)
	switch size := sectorSize * (1 + sectors); {
	case end <= 0:
		return fmt.Errorf("core.img's block list has no end: %w", ErrCoreImage)
	case len(core) <= size-sectorSize:
		return fmt.Errorf("core.img has been cut off: it has %d bytes of %d: %w", len(core), size, ErrCoreImage)
	}
	return nil
}

// blockList reads the block list of core.img: the offset of the entry that ends
// it, not above 0 when there is none, and how many sectors it names. A core.img
// that GRUB has installed as a file in pieces has more than one entry.
func blockList(core []byte) (end, sectors int) {
	for end = blockFirst; end > 0; end -= blockEntry {
		n := int(binary.LittleEndian.Uint16(core[end+blockCount:]))
		if n == 0 {
			break
		}
		sectors += n
	}
	return end, sectors
}

// isDriveCheck reports whether b starts with the short jump of a fresh
// boot.img, or with the two nops of one taken from a disk.
func isDriveCheck(b []byte) bool {
	return b[0] == 0xeb && b[1] == 0x05 || b[0] == 0x90 && b[1] == 0x90
}

func patchBoot(boot []byte, coreLBA uint64) []byte {
	b := append([]byte(nil), boot[:bootCodeEnd]...)
	clear(b[bootBPB:bootBPBEnd])
	binary.LittleEndian.PutUint64(b[bootKernelLBA:], coreLBA)
	b[bootDrive] = 0xff
	b[bootDriveCheck], b[bootDriveCheck+1] = 0x90, 0x90
	return b
}

func patchCore(core []byte, lba, sectors uint64) []byte {
	b := make([]byte, sectors*sectorSize)
	copy(b, core)
	end, _ := blockList(core)
	clear(b[min(end, blockFirst-blockEntry):blockFirst])
	binary.LittleEndian.PutUint64(b[blockFirst:], lba+1)
	binary.LittleEndian.PutUint16(b[blockFirst+blockCount:], uint16(sectors-1))
	binary.LittleEndian.PutUint16(b[blockFirst+blockSegment:], loadSegment)
	return b
}

// Modules are the GRUB modules for core.img that find and boot a Linux on an
// ext4 file system of an MBR or GPT disk, with a serial or VGA console. The
// core.img of grub-mkimage -O i386-pc with them has about 160 KiB.
func Modules() []string {
	return []string{
		"biosdisk", "part_msdos", "part_gpt", "ext2", "search", "search_fs_uuid", "search_label",
		"normal", "linux", "serial", "terminal", "echo", "configfile", "ls", "test", "minicmd", "gzio",
	}
}

// Root says by what GRUB finds the file system with /boot/grub: exactly one
// field is set.
type Root struct {
	Label string // file-system label
	UUID  string // file-system UUID, as blkid prints it
}

// EarlyConfig returns the text for grub-mkimage's --config: it finds the file
// system and sets prefix to dir in it, "/boot/grub" or, with a file system of
// its own for /boot, "/grub". GRUB's rescue parser cannot quote a single quote
// or a line break, so these are refused in label and dir.
func EarlyConfig(root Root, dir string) (string, error) {
	if !strings.HasPrefix(dir, "/") {
		return "", fmt.Errorf("write grub's early config: directory %q is not absolute", dir)
	}
	quotedDir, err := quote(dir)
	if err != nil {
		return "", fmt.Errorf("write grub's early config: directory %w", err)
	}
	search, err := root.search()
	if err != nil {
		return "", fmt.Errorf("write grub's early config: %w", err)
	}
	return search + " root\nset prefix=($root)" + quotedDir + "\n", nil
}

func (r Root) search() (string, error) {
	switch {
	case (r.Label == "") == (r.UUID == ""):
		return "", errors.New("need either a label or a UUID of the root file system")
	case r.Label != "":
		label, err := quote(r.Label)
		if err != nil {
			return "", fmt.Errorf("label %w", err)
		}
		return "search.fs_label " + label, nil
	case strings.Trim(r.UUID, "0123456789abcdefABCDEF-") != "":
		return "", fmt.Errorf("UUID %q has other characters than hexadecimal digits and dashes", r.UUID)
	default:
		return "search.fs_uuid " + r.UUID, nil
	}
}

const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"

// quote returns s as one word for GRUB's parser, quoted only where needed.
func quote(s string) (string, error) {
	switch {
	case strings.ContainsAny(s, "'\n\r\x00"):
		return "", fmt.Errorf("%q has a quote, line break or NUL", s)
	case strings.Trim(s, plain) == "" && !strings.HasPrefix(s, "-"):
		return s, nil
	default:
		return "'" + s + "'", nil
	}
}
