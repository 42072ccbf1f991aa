package vfat

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"cairn/fsbuild/tree"
)

// Volume is a file system that was read.
type Volume struct {
	// Tree has everything in the file system. Files have mode 0644, or 0444
	// when they are marked read-only, directories 0755; owners are 0:0. Times
	// are read as UTC. A content is read from the image when it is opened; a
	// damaged one fails then.
	Tree        *tree.Tree
	Label       string // from the root directory, else from the boot sector; "" for none
	Serial      uint32 // volume serial number, 0 when there is none
	Type        Type
	SectorSize  int64 // in bytes
	ClusterSize int64 // in bytes
	Clusters    int64 // in all
}

// ErrDamaged is wrapped by errors about an image that is not a FAT file system
// or contradicts itself, also by those of contents.
var ErrDamaged = errors.New("not a sound FAT file system")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// Open reads the boot sector and all directories of a file system of at most
// size bytes. Whatever is in them, it takes time and memory for what is there
// only: each cluster of a directory is read once, and paths have at most 1024
// bytes. A damaged image is an error
// that wraps [ErrDamaged] and names the path; it is not repaired. Clusters
// that files share, and lost ones, are not looked for.
//
// The type is FAT32 when the boot sector has no 16-bit size of a FAT, as
// Linux decides and as mkfs.fat makes small ones, else FAT12 or FAT16 by the
// number of clusters. A name is the long one, unless that does not belong to the
// short name behind it or is no file name; short names are read as code page
// 437.
//
// Contents refer to r, which must allow concurrent calls when contents are
// used concurrently.
func Open(r io.ReaderAt, size int64) (*Volume, error) {
	v, err := open(r, size)
	if err != nil {
		return nil, fmt.Errorf("open vfat: %w", err)
	}
	return v, nil
}

func open(r io.ReaderAt, size int64) (*Volume, error) {
	boot := make([]byte, bootSize)
	if err := readAt(r, boot, 0, size); err != nil {
		return nil, err
	}
	im := &image{r: r, size: size}
	if err := im.parseBoot(boot); err != nil {
		return nil, err
	}
	v := &Volume{
		Tree: tree.New(), Type: im.geo.typ, SectorSize: int64(im.geo.sector),
		ClusterSize: int64(im.geo.clusterSize()), Clusters: int64(im.geo.clusters),
	}
	extended := boot[36:62]
	if im.geo.typ == FAT32 {
		extended = boot[64:90]
	}
	if extended[2] == 0x28 || extended[2] == 0x29 {
		v.Serial = le.Uint32(extended[3:])
	}
	if extended[2] == 0x29 {
		v.Label = labelText(extended[7:18])
	}
	w := walker{im: im, v: v, seen: map[uint32]string{}}
	return v, w.walk()
}

// labelText decodes a label of the boot sector or the root directory.
func labelText(b []byte) string {
	label := strings.TrimRight(oemText(b), " \x00")
	if label == noLabel {
		return ""
	}
	return label
}

// readAt fills b from an image of size bytes.
func readAt(r io.ReaderAt, b []byte, offset, size int64) error {
	if offset > size-int64(len(b)) {
		return damaged("%d bytes at %d are beyond the end at %d", len(b), offset, size)
	}
	if n, err := r.ReadAt(b, offset); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes at %d: %w", len(b), offset, err)
	}
	return nil
}

// image is a file system that is being read. Its contents keep it.
type image struct {
	r        io.ReaderAt
	size     int64 // in bytes
	geo      geometry
	rootAt   uint32 // first cluster of FAT32's root
	fatStart int64  // of the FAT in use, in bytes
}

// parseBoot checks the boot sector and takes over what it says.
func (im *image) parseBoot(b []byte) error {
	g := &im.geo
	g.sector, g.perCluster = uint64(le.Uint16(b[11:])), uint64(b[13])
	g.reserved, g.rootEntries = uint64(le.Uint16(b[14:])), uint64(le.Uint16(b[17:]))
	g.total, g.fat = uint64(le.Uint16(b[19:])), uint64(le.Uint16(b[22:]))
	if g.total == 0 {
		g.total = uint64(le.Uint32(b[32:]))
	}
	is32 := g.fat == 0
	if is32 {
		g.fat = uint64(le.Uint32(b[36:]))
		im.rootAt = le.Uint32(b[44:])
	}
	g.copies = uint64(b[16])
	switch {
	case b[510] != 0x55 || b[511] != 0xaa:
		return damaged("the boot sector has no signature")
	case b[0] != 0xeb && b[0] != 0xe9:
		return damaged("the boot sector does not start with a jump")
	case !powerOfTwo(g.sector) || g.sector < minSector || g.sector > maxSector:
		return damaged("sectors of %d bytes", g.sector)
	case !powerOfTwo(g.perCluster):
		return damaged("clusters of %d sectors", g.perCluster)
	case g.reserved == 0 || g.copies == 0 || g.fat == 0:
		return damaged("%d reserved sectors and %d FATs of %d sectors", g.reserved, g.copies, g.fat)
	case int64(g.total*g.sector) > im.size:
		return damaged("%d sectors of %d bytes, but the image has %d bytes", g.total, g.sector, im.size)
	}
	g.root = ceil(g.rootEntries*slotSize, g.sector)
	before := g.dataStart()
	if before > g.total {
		return damaged("%d of %d sectors precede the clusters", before, g.total)
	}
	g.clusters = (g.total - before) / g.perCluster
	if err := im.setType(is32); err != nil {
		return err
	}
	im.fatStart = int64(g.reserved * g.sector)
	if flags := le.Uint16(b[40:]); is32 && flags&0x80 != 0 { // only one FAT is kept ("BPB_ExtFlags")
		if uint64(flags&15) >= g.copies {
			return damaged("FAT %d of %d is in use", flags&15, g.copies)
		}
		im.fatStart += int64(uint64(flags&15) * g.fat * g.sector)
	}
	return nil
}

// setType decides the type and checks that the FAT is large enough.
func (im *image) setType(is32 bool) error {
	g := &im.geo
	switch {
	case is32:
		g.typ = FAT32
		g.clusters = min(g.clusters, 1<<28-firstCluster)
	case g.clusters < 4085:
		g.typ = FAT12
	case g.clusters < 65525:
		g.typ = FAT16
	default:
		return damaged("%d clusters, too many for FAT16", g.clusters)
	}
	if fatSectors(g.typ, g.clusters, g.sector) > g.fat {
		return damaged("a FAT of %d sectors for %d clusters", g.fat, g.clusters)
	}
	if is32 && !im.valid(im.rootAt) {
		return damaged("root directory in cluster %d of %d", im.rootAt, g.clusters)
	}
	return nil
}

// valid tells whether there is a cluster with this number.
func (im *image) valid(cluster uint32) bool {
	return cluster >= firstCluster && uint64(cluster-firstCluster) < im.geo.clusters
}

// fatPage is how much of a FAT is read at a time, in bytes.
const fatPage = 4096

// fatReader reads entries of a FAT, keeping the last page.
type fatReader struct {
	im   *image
	page []byte
	at   int64 // of page, relative to the FAT
}

func newFATReader(im *image) *fatReader { return &fatReader{im: im, at: -1} }

// next returns the cluster behind a valid one, or 0 at the end of the chain.
func (f *fatReader) next(cluster uint32) (uint32, error) {
	typ := f.im.geo.typ
	offset := int64(cluster) * int64(typ) / 8
	size := 2 // in bytes, a half of one too much for FAT12
	if typ == FAT32 {
		size = 4
	}
	raw, err := f.bytes(offset, size)
	if err != nil {
		return 0, fmt.Errorf("FAT entry %d: %w", cluster, err)
	}
	var v, end uint32
	switch typ {
	case FAT12:
		v, end = uint32(le.Uint16(raw)), 0xff8
		if cluster%2 == 1 {
			v >>= 4
		}
		v &= 0xfff
	case FAT16:
		v, end = uint32(le.Uint16(raw)), 0xfff8
	default:
		v, end = le.Uint32(raw)&(1<<28-1), 1<<28-8
	}
	switch {
	case v >= end:
		return 0, nil
	case !f.im.valid(v):
		return 0, damaged("cluster %d is followed by %d of %d", cluster, v, f.im.geo.clusters)
	}
	return v, nil
}

// bytes returns n bytes of the FAT, which may lie across two pages.
func (f *fatReader) bytes(offset int64, n int) ([]byte, error) {
	if f.at < 0 || offset < f.at || offset+int64(n) > f.at+int64(len(f.page)) {
		at := offset &^ (fatPage - 1)
		size := min(fatPage+4, int64(f.im.geo.fat*f.im.geo.sector)-at)
		if f.page == nil {
			f.page = make([]byte, fatPage+4)
		}
		f.page, f.at = f.page[:size], at
		if err := readAt(f.im.r, f.page, f.im.fatStart+at, f.im.size); err != nil {
			f.at = -1
			return nil, err
		}
	}
	return f.page[offset-f.at:][:n], nil
}
