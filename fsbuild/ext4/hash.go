package ext4

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

var le = binary.LittleEndian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c continues a checksum as the format wants it: without the inversions
// before and after that hash/crc32 makes.
func crc32c(seed uint32, b []byte) uint32 { return ^crc32.Update(^seed, castagnoli, b) }

func crc32c32(seed, v uint32) uint32 {
	var b [4]byte
	le.PutUint32(b[:], v)
	return crc32c(seed, b[:])
}

// hashVersion is half-MD4 with signed characters (section "Hash Tree
// Directories"), the superblock's s_def_hash_version with its flag.
const (
	hashHalfMD4  = 1
	flagSigned   = 1
	hashEOF      = 0x7fffffff << 1 // reserved as the end of a directory
	hashNameStep = 32              // bytes of a name that one round takes
)

// dirHasher computes the hashes of names.
type dirHasher [4]uint32

// newDirHasher takes the seed of the superblock; an all-zero one means the
// initial state of MD4.
func newDirHasher(seed [16]byte) dirHasher {
	if seed == [16]byte{} {
		return dirHasher{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	}
	var h dirHasher
	for i := range h {
		h[i] = le.Uint32(seed[4*i:])
	}
	return h
}

// hash returns the major hash of a name, its lowest bit clear.
func (h dirHasher) hash(name string) uint32 {
	for {
		in := nameWords(name)
		h.transform(&in)
		if len(name) <= hashNameStep {
			break
		}
		name = name[hashNameStep:]
	}
	major := h[1] &^ 1
	if major == hashEOF {
		major = hashEOF - 2
	}
	return major
}

// nameWords packs the first 32 bytes of a name, each sign-extended, into
// words; what is missing is filled with the length of the rest of the name.
func nameWords(name string) (words [8]uint32) {
	pad := uint32(len(name)) & 0xff
	pad |= pad << 8
	pad |= pad << 16
	for i := range words {
		w := pad
		for _, c := range []byte(name[min(4*i, len(name)):min(4*i+4, len(name))]) {
			w = w<<8 + uint32(int32(int8(c)))
		}
		words[i] = w
	}
	return words
}

// transform is half of MD4's compression function: eight of the sixteen words
// in each of three rounds (RFC 1320 section 3.4 for the functions).
func (h *dirHasher) transform(in *[8]uint32) {
	type round struct {
		f     func(x, y, z uint32) uint32
		add   uint32
		order [8]uint8
		shift [4]int
	}
	rounds := [3]round{
		{func(x, y, z uint32) uint32 { return x&y | ^x&z }, 0, [8]uint8{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19}},
		{func(x, y, z uint32) uint32 { return x&y | x&z | y&z }, 0x5a827999, [8]uint8{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13}},
		{func(x, y, z uint32) uint32 { return x ^ y ^ z }, 0x6ed9eba1, [8]uint8{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15}},
	}
	a, b, c, d := h[0], h[1], h[2], h[3]
	for _, r := range rounds {
		for i, w := range r.order {
			a = bits.RotateLeft32(a+r.f(b, c, d)+in[w]+r.add, r.shift[i%4])
			a, b, c, d = d, a, b, c
		}
	}
	h[0] += a
	h[1] += b
	h[2] += c
	h[3] += d
}
