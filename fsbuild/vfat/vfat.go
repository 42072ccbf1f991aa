// Package vfat writes and reads FAT file systems with long names (FAT12, FAT16
// and FAT32), as EFI system partitions, config drives and NoCloud seeds use.
//
// [Plan] computes the whole layout from metadata. [Layout.Write] then emits the
// image with strictly ascending offsets, reading each file once; what it skips
// is zero. The bytes are a function of the tree and [Params] alone. [Open] reads
// an image into a tree whose contents are opened when they are needed.
//
// # What is written
//
// Two FATs, a backup boot sector and FSInfo sectors on FAT32, every file and
// directory in one run of clusters: first the directories in canonical order,
// then the contents, directory by directory. Entries are in canonical order. A
// name that is not an
// 8.3 name in upper case has a long name; but the base or the extension of an
// 8.3 name may as a whole be in lower case, which the two case bits of Windows
// NT record. Short names beside long ones count ~1, ~2 … in canonical order.
// The label is in the boot sector and in the root directory. Modification
// times are the tree's, not later than Params.Time, in UTC, rounded down to
// two seconds; creation and access times equal Params.Time. Times before 1980
// become 1980-01-01 00:00:00, times after 2107 become 2107-12-31 23:59:58.
//
// Geometry is that of mkfs.fat 4.2: cluster size, type, alignment of the
// structures to clusters, sectors per track and heads are the same for the same
// size, unless mkfs.fat refuses the size.
//
// # What is not
//
// FAT has no place for owners, modes and the root's time: they are dropped, and
// whoever mounts the file system says what everything in it has. Names of one
// hard-linked file become files of their own with equal content, since
// shared clusters are damage to FAT; holes become zeros.
//
// What else FAT cannot hold is an error that names the path: symlinks, devices,
// FIFOs and sockets, extended attributes, names that are not UTF-8, that have
// one of the characters "*/:<>?\| or a control character, that end with a dot or
// a space or are longer than 255 UTF-16 units, names in a directory that differ
// in case only, paths of more than 256 units, files of 4 GiB or more, more
// than 65,536 entries of 32 bytes in a directory, or more than the root of FAT12
// and FAT16 holds. The labels and short names that are written are ASCII.
//
// exFAT is another format and neither written nor read.
//
// The format is specified in Microsoft's "FAT: General Overview of On-Disk
// Format", version 1.03 (fatgen103), cited here by section name; FAT12 and FAT16
// without long names are ECMA-107 too.
//
// # Stability
//
// The API may change until version 1 of the module. The bytes for the same
// tree and Params are part of it: a release that writes others says so.
package vfat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"cairn/fsbuild/tree"
)

// Type is a FAT type: the bits of an entry of the FAT.
type Type uint8

// The FAT types. The zero Type leaves the choice to the writer.
const (
	FAT12 Type = 12
	FAT16 Type = 16
	FAT32 Type = 32
)

// String returns FAT12, FAT16 or FAT32, and "FAT" for anything else.
func (t Type) String() string {
	switch t {
	case FAT12, FAT16, FAT32:
		return fmt.Sprintf("FAT%d", uint8(t))
	}
	return "FAT"
}

// Sizes that the format or this package fixes.
const (
	minSector          = 512
	maxSector          = 4096
	maxSectors         = math.MaxUint32
	maxClusterSize     = 128 // in sectors
	fats               = 2
	slotSize           = 32        // of a directory entry
	maxSlots           = 1 << 16   // of a directory other than FAT12's and FAT16's root
	maxFile            = 1<<32 - 1 // in bytes
	maxUnits           = 255       // of a name, in UTF-16
	maxPath            = 256       // in UTF-16 units: 260 with "C:\" and the final NUL
	maxLabel           = 11        // in bytes
	defaultRootEntries = 512
	maxRootEntries     = 32768     // of FAT12 and FAT16; the field has 16 bits
	noLabel            = "NO NAME" // in the boot sector of a file system without label
	labelForbidden     = "*?.,;:/\\|+=<>[]\"\x7f"
)

// Params are what decides the bytes besides the tree. The zero value is
// complete: a file system of minimal size without label, serial number 0.
type Params struct {
	// Label has at most 11 ASCII characters, none of *?.,;:/\|+=<>[]" and no
	// space at either end; "" means none. Case is kept: the config drive of
	// OpenStack is found by "config-2".
	Label  string
	Serial uint32 // volume serial number; Linux finds no file system by 0
	// Time is the time of creation and access of everything. Modification
	// times later than it are set to it. The zero Time stamps 1980-01-01 and
	// clamps nothing.
	Time time.Time
	// Type is chosen by mkfs.fat's rule when it is 0: FAT32 from 512 MiB,
	// else FAT12 or FAT16. Any type has as many clusters as other readers
	// expect of it: 1 to 4084, 4087 to 65524, or 65525 to 268435446.
	Type        Type
	SectorSize  int // in bytes: 0 (meaning 512), 512, 1024, 2048 or 4096
	ClusterSize int // in bytes: 0 (meaning mkfs.fat's rule) or 1 to 128 sectors, a power of two
	// Size in bytes, a multiple of the sector size. As with mkfs.fat, sectors
	// beyond the last whole track (of 9 to 63 sectors) are left unused. 0 means
	// minimal: the least number of tracks that hold the tree and Slack.
	Size int64
	// Slack is the free space in a file system of minimal size, in bytes,
	// rounded up to clusters.
	Slack int64
	// HiddenSectors is where the file system starts on its disk: the first
	// sector of the partition, 0 when there is none.
	HiddenSectors uint32
	// RootEntries is the least size of FAT12's and FAT16's root directory, in
	// entries of 32 bytes: at most 32768; 0 means 512, or a floppy's own.
	RootEntries int
	// Media is the media descriptor: 0xF0 or 0xF8 to 0xFF; 0 means 0xF8, or a
	// floppy's own.
	Media byte
}

// Summary says what a layout is like.
type Summary struct {
	Size         int64  // of the image, in bytes
	Type         Type   // never 0
	SectorSize   int64  // in bytes
	ClusterSize  int64  // in bytes
	Clusters     int64  // in all
	FreeClusters int64  // of Clusters
	Serial       string // as in fstab: 1234-ABCD
}

// ErrTooSmall is wrapped by the error of a Params.Size below what the tree
// needs; the error is a *[SizeError].
var ErrTooSmall = errors.New("size is too small for the tree")

// SizeError says how much space is missing.
type SizeError struct {
	Size    int64 // asked for, in bytes
	Missing int64 // in bytes; with so many more the tree fits
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("%v: %d bytes are missing to %d", ErrTooSmall, e.Missing, e.Size)
}

// Unwrap returns ErrTooSmall.
func (e *SizeError) Unwrap() error { return ErrTooSmall }

// Write plans and writes in one call.
func Write(ctx context.Context, w io.WriterAt, t *tree.Tree, p Params) (Summary, error) {
	l, err := Plan(t, p)
	if err != nil {
		return Summary{}, err
	}
	return l.Write(ctx, w)
}

// sector returns the sector size in bytes.
func (p *Params) sector() uint64 {
	if p.SectorSize == 0 {
		return minSector
	}
	return uint64(p.SectorSize)
}

func powerOfTwo(n uint64) bool { return n != 0 && n&(n-1) == 0 }

// check refuses parameters that cannot be represented.
func (p *Params) check() error {
	sector := p.sector()
	switch {
	case p.Type != 0 && p.Type.String() == "FAT":
		return fmt.Errorf("type %d is not 12, 16 or 32", p.Type)
	case !powerOfTwo(sector) || sector < minSector || sector > maxSector:
		return fmt.Errorf("sector size %d is not 512, 1024, 2048 or 4096", p.SectorSize)
	case p.ClusterSize != 0 && (p.ClusterSize < 0 || !powerOfTwo(uint64(p.ClusterSize)) ||
		uint64(p.ClusterSize) < sector || uint64(p.ClusterSize) > maxClusterSize*sector):
		return fmt.Errorf("cluster size %d is not a power of two from %d to %d", p.ClusterSize, sector, maxClusterSize*sector)
	case p.Size < 0 || uint64(p.Size)%sector != 0:
		return fmt.Errorf("size %d is not a multiple of %d", p.Size, sector)
	case p.Slack < 0:
		return fmt.Errorf("slack %d is negative", p.Slack)
	case p.Size != 0 && p.Slack != 0:
		return errors.New("slack goes with minimal size only")
	case p.RootEntries < 0 || p.RootEntries > maxRootEntries:
		return fmt.Errorf("%d root entries are not from 0 to %d", p.RootEntries, maxRootEntries)
	case p.Media != 0 && p.Media != 0xf0 && p.Media < 0xf8:
		return fmt.Errorf("media descriptor %#x is not 0xf0 or 0xf8 to 0xff", p.Media)
	}
	return p.checkLabel()
}

func (p *Params) checkLabel() error {
	if len(p.Label) > maxLabel {
		return fmt.Errorf("label %q has %d bytes, the limit is %d", p.Label, len(p.Label), maxLabel)
	}
	for i := range len(p.Label) {
		if c := p.Label[i]; c < ' ' || c >= 0x80 || strings.IndexByte(labelForbidden, c) >= 0 {
			return fmt.Errorf("label %q has the character %q", p.Label, c)
		}
	}
	if strings.Trim(p.Label, " ") != p.Label {
		return fmt.Errorf("label %q has a space at an end", p.Label)
	}
	if p.Label == noLabel {
		return fmt.Errorf("label %q stands for none", p.Label)
	}
	return nil
}
