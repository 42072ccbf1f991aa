package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"cairn/fsbuild/internal/disk"
	"cairn/fsbuild/tree"
)

// Reader is the virtual disk of an image. Its methods may be called
// concurrently. Its size is what the footer says in bytes, whatever the
// geometry. Memory is bounded by the table, at most 64 MiB, and a small cache.
type Reader struct {
	file      io.ReaderAt
	fileSize  int64
	size      int64
	fixed     bool
	blockSize int64
	bitsSize  int64  // of a block's bits, in whole sectors
	table     []byte // big-endian entries
	bits      *disk.Cache
}

// Limits that no honest image reaches.
const (
	maxTable     = 64 << 20
	maxBlockSize = 256 << 20
	cachedBlocks = 32
)

// Open reads the footer of an image in a file of fileSize bytes: the last 512,
// or for a dynamic image whose end is damaged the copy at its start. The file
// must not change while the Reader is used.
func Open(file io.ReaderAt, fileSize int64) (*Reader, error) {
	r := &Reader{file: file, fileSize: fileSize, bits: disk.NewCache(cachedBlocks)}
	if err := r.open(); err != nil {
		return nil, fmt.Errorf("open vhd: %w", err)
	}
	return r, nil
}

// corrupt turns a read beyond the file's end into ErrCorrupt.
func corrupt(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

func (r *Reader) open() error {
	footer, err := r.readFooter(r.fileSize - footerSize)
	if err != nil {
		first := err
		if footer, err = r.readFooter(0); err != nil || binary.BigEndian.Uint32(footer[60:]) == typeFixed {
			return first
		}
	}
	be := binary.BigEndian
	r.size = int64(be.Uint64(footer[48:]))
	if r.size < 0 || r.size%sectorSize != 0 {
		return fmt.Errorf("virtual size %d: %w", uint64(r.size), ErrCorrupt)
	}
	switch kind := be.Uint32(footer[60:]); kind {
	case typeFixed:
		if r.fixed = true; r.size > r.fileSize-footerSize {
			return fmt.Errorf("disk of %d bytes in a file of %d: %w", r.size, r.fileSize, ErrCorrupt)
		}
		return nil
	case typeDynamic:
		return r.openDynamic(int64(be.Uint64(footer[16:])))
	case typeDiff:
		return fmt.Errorf("the image has a parent: %w", ErrUnsupported)
	default:
		return fmt.Errorf("disk type %d: %w", kind, ErrUnsupported)
	}
}

func (r *Reader) readFooter(at int64) ([]byte, error) {
	b := make([]byte, footerSize)
	if err := disk.Full(r.file, r.fileSize, b, at); err != nil {
		return nil, fmt.Errorf("footer: %w", corrupt(err))
	}
	switch {
	case string(b[:8]) != "conectix":
		return nil, fmt.Errorf("no footer: %w", ErrCorrupt)
	case binary.BigEndian.Uint32(b[64:]) != checksum(b, 64):
		return nil, fmt.Errorf("footer has a wrong checksum: %w", ErrCorrupt)
	case binary.BigEndian.Uint16(b[12:]) != version>>16:
		return nil, fmt.Errorf("version %#x: %w", binary.BigEndian.Uint32(b[12:]), ErrUnsupported)
	}
	return b, nil
}

func (r *Reader) openDynamic(at int64) error {
	b := make([]byte, headerSize)
	if err := disk.Full(r.file, r.fileSize, b, at); err != nil {
		return fmt.Errorf("header: %w", corrupt(err))
	}
	be := binary.BigEndian
	offset, entries := int64(be.Uint64(b[16:])), int64(be.Uint32(b[28:]))
	r.blockSize = int64(be.Uint32(b[32:]))
	switch {
	case string(b[:8]) != "cxsparse":
		return fmt.Errorf("no header: %w", ErrCorrupt)
	case be.Uint32(b[36:]) != checksum(b, 36):
		return fmt.Errorf("header has a wrong checksum: %w", ErrCorrupt)
	case !isPowerOfTwo(r.blockSize) || r.blockSize < sectorSize || r.blockSize > maxBlockSize:
		return fmt.Errorf("blocks of %d bytes: %w", r.blockSize, ErrCorrupt)
	}
	sectors := r.blockSize / sectorSize
	r.bitsSize = (sectors + 8*sectorSize - 1) / (8 * sectorSize) * sectorSize
	needed := r.size/r.blockSize + min(1, r.size%r.blockSize)
	if needed > entries || needed*4 > maxTable || needed*4 > r.fileSize {
		return fmt.Errorf("table of %d entries for %d blocks: %w", entries, needed, ErrCorrupt)
	}
	r.table = make([]byte, needed*4)
	if err := disk.Full(r.file, r.fileSize, r.table, offset); err != nil {
		return fmt.Errorf("block allocation table: %w", corrupt(err))
	}
	return nil
}

// Size returns the size of the virtual disk in bytes.
func (r *Reader) Size() int64 { return r.size }

// ReadAt implements io.ReaderAt on the virtual disk.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	n, err := disk.ReadAt(p, off, r.size, func(p []byte, off int64) (int, error) {
		at, n, err := r.locate(off)
		if err != nil {
			return 0, err
		}
		p = p[:min(int64(len(p)), n)]
		if at < 0 {
			clear(p)
			return len(p), nil
		}
		return len(p), corrupt(disk.Full(r.file, r.fileSize, p, at))
	})
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader's io.EOF is never wrapped
		err = fmt.Errorf("read vhd at %d: %w", off+int64(n), err)
	}
	return n, err
}

// Data iterates over the runs of the virtual disk that are stored, ascending
// and disjoint; what lies between them reads as zeros. All of a fixed image is
// stored. The last pair may be an error.
func (r *Reader) Data() iter.Seq2[tree.Extent, error] {
	return disk.Data(r.size, func(off int64) (int64, bool, error) {
		at, n, err := r.locate(off)
		if err != nil {
			err = fmt.Errorf("read vhd map at %d: %w", off, err)
		}
		return n, at >= 0, err
	})
}

// locate says where in the file the disk's offset off is, negative if it is not
// stored, and for how many bytes the same holds.
func (r *Reader) locate(off int64) (at, n int64, err error) {
	if r.fixed {
		return off, r.size - off, nil
	}
	in := off % r.blockSize
	entry := binary.BigEndian.Uint32(r.table[off/r.blockSize*4:])
	if entry == unused {
		return -1, r.blockSize - in, nil
	}
	start := int64(entry) * sectorSize
	bits, err := r.bits.Get(start, func() ([]byte, error) {
		b := make([]byte, r.bitsSize)
		return b, corrupt(disk.Full(r.file, r.fileSize, b, start))
	})
	if err != nil {
		return 0, 0, err
	}
	sector := in / sectorSize
	stored := bit(bits, sector)
	for n = sector + 1; n < r.blockSize/sectorSize && bit(bits, n) == stored; n++ {
	}
	n = n*sectorSize - in
	if !stored {
		return -1, n, nil
	}
	return start + r.bitsSize + in, n, nil
}

// bit returns a sector's, of which the first is the highest in its byte.
func bit(b []byte, i int64) bool { return b[i/8]>>(7-i%8)&1 != 0 }
