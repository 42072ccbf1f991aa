package qcow2

import (
	"encoding/binary"
	"fmt"
)

// Parts of entries. The offset's other bits are reserved or flags.
const (
	l1EntryLen        = 8
	offsetMask uint64 = 0x00ff_ffff_ffff_fe00
	allZeros   uint64 = 1 // L2, version 3: the cluster reads as zeros

	subclusters     = 32 // of a cluster with extended L2 entries
	minExtendedBits = 14 // of the cluster size with extended L2 entries
)

// Bits of the incompatible features.
const (
	featureDirty       = 1 << 0 // refcounts may be wrong, which a reader does not mind
	featureCorrupt     = 1 << 1
	featureDataFile    = 1 << 2
	featureCompression = 1 << 3
	featureExtendedL2  = 1 << 4
	knownFeatures      = 1<<5 - 1
)

// layout is what a Reader needs to know of the header.
type layout struct {
	geometry
	extended bool  // L2 entries have a bitmap of subclusters
	entryLen int64 // of an L2 entry, in bytes
	l1Offset int64
}

// l1Needed is the number of L1 entries that the virtual disk takes.
func (g layout) l1Needed() int64 {
	perTable := g.clusterSize * g.l2Entries
	return g.virtualSize/perTable + min(1, g.virtualSize%perTable)
}

// packedAt takes the descriptor of a compressed cluster apart. The length is a
// bound in whole sectors: the data may be shorter.
func (g geometry) packedAt(entry uint64) (offset, length int64) {
	shift := 62 - (g.clusterBits - 8)
	entry &^= copied | compressed
	offset = int64(entry & (1<<shift - 1))
	return offset, int64(entry>>shift+1)<<9 - offset&511
}

// parseHeader reads what it is given of the header, which is at least what the
// file has of it.
func parseHeader(b []byte) (layout, error) {
	be := binary.BigEndian
	if len(b) < headerLen2 || string(b[:4]) != "QFI\xfb" {
		return layout{}, fmt.Errorf("no header: %w", ErrCorrupt)
	}
	g := layout{
		geometry: geometry{
			version:     int(be.Uint32(b[4:])),
			clusterBits: int(be.Uint32(b[20:])),
			virtualSize: int64(be.Uint64(b[24:])),
			l1Entries:   int64(be.Uint32(b[36:])),
		},
		entryLen: 8,
		l1Offset: int64(be.Uint64(b[40:])),
	}
	if g.version != 2 && g.version != 3 {
		return layout{}, fmt.Errorf("version %d: %w", g.version, ErrUnsupported)
	}
	if err := refuse(be.Uint64(b[8:]), be.Uint32(b[32:]), be.Uint32(b[60:])); err != nil {
		return layout{}, err
	}
	if g.clusterBits < minClusterBits || g.clusterBits > maxClusterBits {
		return layout{}, fmt.Errorf("clusters of 1<<%d bytes: %w", g.clusterBits, ErrCorrupt)
	}
	g.clusterSize = 1 << g.clusterBits
	if err := g.parseFeatures(b); err != nil {
		return layout{}, err
	}
	g.l2Entries = g.clusterSize / g.entryLen
	return g, g.checkTables()
}

// refuse names what a Reader cannot do.
func refuse(backing uint64, crypt, snapshots uint32) error {
	switch {
	case backing != 0:
		return fmt.Errorf("the image has a backing file (qemu-img rebase -b '' merges it): %w", ErrUnsupported)
	case crypt != 0:
		return fmt.Errorf("the image is encrypted: %w", ErrUnsupported)
	case snapshots != 0:
		return fmt.Errorf("the image has %d internal snapshots: %w", snapshots, ErrUnsupported)
	}
	return nil
}

// parseFeatures reads the fields that version 3 added.
func (g *layout) parseFeatures(b []byte) error {
	if g.version == 2 {
		return nil
	}
	if len(b) < headerLen3 {
		return fmt.Errorf("header is cut off: %w", ErrCorrupt)
	}
	features, length := binary.BigEndian.Uint64(b[72:]), binary.BigEndian.Uint32(b[100:])
	switch {
	case length < headerLen3 || int64(length) > g.clusterSize:
		return fmt.Errorf("header of %d bytes: %w", length, ErrCorrupt)
	case features&^knownFeatures != 0:
		return fmt.Errorf("incompatible features %#x: %w", features&^knownFeatures, ErrUnsupported)
	case features&featureCorrupt != 0:
		return fmt.Errorf("the image is marked corrupt (see qemu-img check -r): %w", ErrUnsupported)
	case features&featureDataFile != 0:
		return fmt.Errorf("the image has an external data file: %w", ErrUnsupported)
	case features&featureExtendedL2 != 0 && g.clusterBits < minExtendedBits:
		return fmt.Errorf("subclusters in clusters of %d bytes: %w", g.clusterSize, ErrCorrupt)
	}
	if g.extended = features&featureExtendedL2 != 0; g.extended {
		g.entryLen = 16
	}
	kind := byte(0)
	if length > headerLen3 && len(b) > headerLen3 {
		kind = b[headerLen3]
	}
	return g.setCompression(kind, features&featureCompression != 0)
}

// setCompression reads the compression type. The feature bit is set for all
// types but the classic one.
func (g *layout) setCompression(kind byte, feature bool) error {
	switch {
	case kind > 1:
		return fmt.Errorf("compression type %d: %w", kind, ErrUnsupported)
	case feature != (kind == 1):
		return fmt.Errorf("compression type %d contradicts the features: %w", kind, ErrCorrupt)
	case kind == 1:
		g.compression = Zstd
	}
	return nil
}

func (g layout) checkTables() error {
	switch {
	case g.virtualSize < 0:
		return fmt.Errorf("virtual size %d: %w", uint64(g.virtualSize), ErrCorrupt)
	case g.l1Entries < g.l1Needed():
		return fmt.Errorf("L1 table of %d entries for a disk of %d bytes: %w", g.l1Entries, g.virtualSize, ErrCorrupt)
	case g.l1Offset < 0 || g.l1Offset%g.clusterSize != 0:
		return fmt.Errorf("L1 table at %d is not at a cluster: %w", uint64(g.l1Offset), ErrCorrupt)
	}
	return nil
}
