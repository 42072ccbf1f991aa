package reproducibility

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// A Seed is what all identifiers of an image derive from: the same inputs give
// the same identifiers, other inputs give others.
type Seed [sha256.Size]byte

// seedDomain keeps seeds apart from other digests of the same bytes.
const seedDomain = "cairn seed 1\x00"

// NewSeed returns the seed of a build with the given inputs, which are to be in
// a canonical encoding: SHA-256 of "cairn seed 1", a zero byte, and the inputs.
func NewSeed(inputs []byte) Seed {
	return sha256.Sum256(append([]byte(seedDomain), inputs...))
}

// ParseSeed returns the seed with the given 64 hexadecimal digits, such as
// String returns.
func ParseSeed(digits string) (Seed, error) {
	var s Seed
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != len(s) {
		return s, fmt.Errorf("seed %q is not %d hexadecimal digits", digits, 2*len(s))
	}
	return Seed(b), nil
}

// String returns the seed as 64 lower-case hexadecimal digits.
func (s Seed) String() string { return hex.EncodeToString(s[:]) }

// A Name says what an identifier is of; no two things of an image share one.
type Name string

// Names of the things that every disk image has. Others are made with
// [OtherDisk], [Container], [Partition] and [FileSystem].
const (
	Disk Name = "disk"
	Root Name = "file system root"
)

// OtherDisk returns the name of the disk that the disk plan calls label, beside
// the image.
func OtherDisk(label string) Name { return Name("disk " + label) }

// Container returns the name of what holds a disk in a format. The disk is "" for
// the image.
func Container(format, disk string) Name {
	name := Name("container " + format)
	if disk != "" {
		name += Name(" of disk " + disk)
	}
	return name
}

// Partition returns the name of the partition that the disk plan calls label.
func Partition(label string) Name { return Name("partition " + label) }

// FileSystem returns the name of the file system that the disk plan calls label.
func FileSystem(label string) Name { return Name("file system " + label) }

// derive returns HMAC-SHA-256 with the seed as key of the kind of identifier, a
// zero byte, and the name.
func (s Seed) derive(kind string, name Name) []byte {
	h := hmac.New(sha256.New, s[:])
	h.Write([]byte(kind + "\x00" + string(name)))
	return h.Sum(nil)
}

// UUID returns a UUID in network byte order. Its version is 8, the one for
// values that are derived in a way of their own (RFC 9562 5.8), not 4, since it
// is not random.
func (s Seed) UUID(name Name) [16]byte {
	u := [16]byte(s.derive("uuid", name))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u
}

// HashSeed returns the seed of ext4's directory hashes (s_hash_seed), which
// has the form of a UUID too and is never zero.
func (s Seed) HashSeed(name Name) [16]byte {
	u := [16]byte(s.derive("hash seed", name))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u
}

// DiskSignature returns the disk signature of an MBR. It is never zero, which
// stands for none.
func (s Seed) DiskSignature(name Name) uint32 {
	if n := s.uint32("disk signature", name); n != 0 {
		return n
	}
	return 1
}

// VolumeSerial returns the serial number of a FAT volume, which is never zero.
func (s Seed) VolumeSerial(name Name) uint32 {
	if n := s.uint32("volume serial", name); n != 0 {
		return n
	}
	return 1
}

func (s Seed) uint32(kind string, name Name) uint32 {
	return binary.LittleEndian.Uint32(s.derive(kind, name))
}
