package vmdk

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"

	"cairn/fsbuild/internal/disk"
	"cairn/fsbuild/tree"
)

// Reader is the virtual disk of an image. Its methods may be called
// concurrently. Memory is bounded by the directory, at most 64 MiB, a cache of
// 16 tables and 16 MiB of grains, and two grains for each concurrent call.
type Reader struct {
	file     io.ReaderAt
	fileSize int64
	head     header
	dir      []byte
	tables   *disk.Cache // by sector
	grains   *disk.Cache // decompressed ones, by sector
}

// Limits that no honest image reaches.
const (
	maxDirectory    = 64 << 20
	maxGrainSectors = 1 << 12 // 2 MiB
	maxTableEntries = 1 << 16
	maxDescriptor   = 1 << 20
	grainCache      = 16 << 20
	tableCache      = 16
)

// header is what a Reader needs to know of it. Offsets and sizes are in
// sectors.
type header struct {
	flags      uint32
	capacity   int64
	grain      int64
	entries    int64 // of a table
	dirAt      uint64
	descriptor int64
	descLength int64
}

// Open reads the header of an image in a file of fileSize bytes. The file must
// not change while the Reader is used.
func Open(file io.ReaderAt, fileSize int64) (*Reader, error) {
	r := &Reader{file: file, fileSize: fileSize}
	if err := r.open(); err != nil {
		return nil, fmt.Errorf("open vmdk: %w", err)
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
	b := make([]byte, max(0, min(sectorSize, r.fileSize)))
	if err := disk.Full(r.file, r.fileSize, b, 0); err != nil {
		return err
	}
	if bytes.HasPrefix(b, []byte("# Disk DescriptorFile")) {
		return fmt.Errorf("the image is a descriptor of other files: %w", ErrUnsupported)
	}
	if bytes.HasPrefix(b, []byte("COWD")) {
		return fmt.Errorf("the image is an ESX 3 sparse disk: %w", ErrUnsupported)
	}
	var err error
	if r.head, err = parseHeader(b); err != nil {
		return err
	}
	if err = r.readDescriptor(); err != nil {
		return err
	}
	if r.head.dirAt == directoryAtEnd {
		if err = r.readFooter(); err != nil {
			return err
		}
	}
	r.tables = disk.NewCache(tableCache)
	r.grains = disk.NewCache(int(min(64, grainCache/(r.head.grain*sectorSize))))
	return r.readDirectory()
}

func parseHeader(b []byte) (header, error) {
	le := binary.LittleEndian
	if len(b) < sectorSize || string(b[:4]) != "KDMV" {
		return header{}, fmt.Errorf("no header: %w", ErrCorrupt)
	}
	h := header{
		flags: le.Uint32(b[8:]), capacity: int64(le.Uint64(b[12:])), grain: int64(le.Uint64(b[20:])),
		entries: int64(le.Uint32(b[44:])), dirAt: le.Uint64(b[56:]),
		descriptor: int64(le.Uint64(b[28:])), descLength: int64(le.Uint64(b[36:])),
	}
	version, method := le.Uint32(b[4:]), le.Uint16(b[77:])
	switch {
	case version < 1 || version > 3:
		return header{}, fmt.Errorf("version %d: %w", version, ErrUnsupported)
	case h.flags&flagNewlines != 0 && string(b[73:77]) != "\n \r\n":
		return header{}, fmt.Errorf("newlines were changed, as by a transfer as text: %w", ErrCorrupt)
	case h.capacity < 0 || h.capacity > 1<<53:
		return header{}, fmt.Errorf("disk of %d sectors: %w", uint64(h.capacity), ErrCorrupt)
	case h.grain < 1 || h.grain > maxGrainSectors || h.grain&(h.grain-1) != 0:
		return header{}, fmt.Errorf("grains of %d sectors: %w", uint64(h.grain), ErrCorrupt)
	case h.entries < 1 || h.entries > maxTableEntries:
		return header{}, fmt.Errorf("tables of %d entries: %w", h.entries, ErrCorrupt)
	case h.flags&flagCompressed != 0 && (method != 1 || h.flags&flagMarkers == 0):
		return header{}, fmt.Errorf("compression %d, flags %#x: %w", method, h.flags, ErrUnsupported)
	}
	return h, nil
}

// readDescriptor refuses images that are only a part of a disk.
func (r *Reader) readDescriptor() error {
	if r.head.descriptor == 0 {
		return fmt.Errorf("the image's descriptor is in another file: %w", ErrUnsupported)
	}
	if r.head.descriptor < 0 || r.head.descLength < 0 || r.head.descLength > maxDescriptor/sectorSize {
		return fmt.Errorf("descriptor of %d sectors: %w", uint64(r.head.descLength), ErrCorrupt)
	}
	b := make([]byte, r.head.descLength*sectorSize)
	if err := r.sectors(b, uint64(r.head.descriptor)); err != nil {
		return fmt.Errorf("descriptor: %w", err)
	}
	b, _, _ = bytes.Cut(b, []byte{0})
	kind := ""
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(strings.TrimSpace(value), `"`)
		switch strings.TrimSpace(key) {
		case "parentCID":
			if !strings.EqualFold(value, "ffffffff") {
				return fmt.Errorf("the image has a parent: %w", ErrUnsupported)
			}
		case "createType":
			kind = value
		}
	}
	if kind != "monolithicSparse" && kind != "streamOptimized" {
		return fmt.Errorf("image type %q: %w", kind, ErrUnsupported)
	}
	return nil
}

// readFooter looks for the directory in the header's copy at a stream's end,
// before the last sector.
func (r *Reader) readFooter() error {
	b := make([]byte, sectorSize)
	if err := disk.Full(r.file, r.fileSize, b, r.fileSize-2*sectorSize); err != nil {
		return fmt.Errorf("footer: %w", corrupt(err))
	}
	footer, err := parseHeader(b)
	if err != nil {
		return fmt.Errorf("footer: %w", err)
	}
	r.head.dirAt = footer.dirAt
	return nil
}

// sectors reads from sector at on.
func (r *Reader) sectors(b []byte, at uint64) error {
	if at > uint64(r.fileSize)/sectorSize {
		return fmt.Errorf("sector %d is beyond the file's end at %d bytes: %w", at, r.fileSize, ErrCorrupt)
	}
	return corrupt(disk.Full(r.file, r.fileSize, b, int64(at)*sectorSize))
}

func (r *Reader) readDirectory() error {
	each := r.head.grain * r.head.entries
	length := ((r.head.capacity + each - 1) / each) * 4
	if length > maxDirectory || length > r.fileSize {
		return fmt.Errorf("directory of %d bytes in a file of %d: %w", length, r.fileSize, ErrCorrupt)
	}
	r.dir = make([]byte, length)
	if err := r.sectors(r.dir, r.head.dirAt); err != nil {
		return fmt.Errorf("grain directory: %w", err)
	}
	return nil
}

// Size returns the size of the virtual disk in bytes.
func (r *Reader) Size() int64 { return r.head.capacity * sectorSize }

// ReadAt implements io.ReaderAt on the virtual disk.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	n, err := disk.ReadAt(p, off, r.Size(), r.piece)
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader's io.EOF is never wrapped
		err = fmt.Errorf("read vmdk at %d: %w", off+int64(n), err)
	}
	return n, err
}

// Data iterates over the runs of the virtual disk that are stored, ascending
// and disjoint; what lies between them reads as zeros. The last pair may be an
// error.
func (r *Reader) Data() iter.Seq2[tree.Extent, error] {
	return disk.Data(r.Size(), func(off int64) (int64, bool, error) {
		sector, n, err := r.locate(off)
		if err != nil {
			err = fmt.Errorf("read vmdk map at %d: %w", off, err)
		}
		return n, sector != 0, err
	})
}

// piece reads within one grain, or from a hole.
func (r *Reader) piece(p []byte, off int64) (int, error) {
	sector, n, err := r.locate(off)
	if err != nil {
		return 0, err
	}
	p = p[:min(int64(len(p)), n)]
	in := off % (r.head.grain * sectorSize)
	switch {
	case sector == 0:
		clear(p)
	case r.head.flags&flagCompressed != 0:
		grain, err := r.grains.Get(sector, func() ([]byte, error) { return r.unpack(sector, r.Size()-off+in) })
		if err != nil {
			return 0, err
		}
		copy(p, grain[in:])
	default:
		return len(p), corrupt(disk.Full(r.file, r.fileSize, p, sector*sectorSize+in))
	}
	return len(p), nil
}

// locate finds the sector of the grain of the disk's offset off, 0 if it is not
// stored, and for how many bytes that holds.
func (r *Reader) locate(off int64) (sector, n int64, err error) {
	grain := r.head.grain * sectorSize
	each := grain * r.head.entries
	at := binary.LittleEndian.Uint32(r.dir[off/each*4:])
	if at == 0 {
		return 0, each - off%each, nil
	}
	table, err := r.tables.Get(int64(at), func() ([]byte, error) {
		b := make([]byte, r.head.entries*4)
		return b, r.sectors(b, uint64(at))
	})
	if err != nil {
		return 0, 0, fmt.Errorf("grain table: %w", err)
	}
	sector = int64(binary.LittleEndian.Uint32(table[off%each/grain*4:]))
	if sector == 1 && r.head.flags&flagZeroGrains != 0 {
		sector = 0
	}
	return sector, grain - off%grain, nil
}

// unpack reads and inflates the grain whose marker is at a sector. The last
// grain may be as short as what is left of the disk.
func (r *Reader) unpack(sector, left int64) ([]byte, error) {
	var mark [12]byte
	if err := r.sectors(mark[:], uint64(sector)); err != nil {
		return nil, fmt.Errorf("grain marker: %w", err)
	}
	grain := r.head.grain * sectorSize
	size := int64(binary.LittleEndian.Uint32(mark[8:]))
	if size > 2*grain+sectorSize { // no encoder expands so much
		return nil, fmt.Errorf("grain at sector %d has %d bytes: %w", sector, size, ErrCorrupt)
	}
	src := make([]byte, size)
	if err := disk.Full(r.file, r.fileSize, src, sector*sectorSize+int64(len(mark))); err != nil {
		return nil, fmt.Errorf("grain: %w", corrupt(err))
	}
	z, err := zlib.NewReader(bytes.NewReader(src))
	if err != nil {
		return nil, fmt.Errorf("grain at sector %d: %w: %w", sector, ErrCorrupt, err)
	}
	dst, err := io.ReadAll(io.LimitReader(z, grain+1)) // to the end, where the checksum is
	if err != nil {
		return nil, fmt.Errorf("grain at sector %d: %w: %w", sector, ErrCorrupt, err)
	}
	if n := int64(len(dst)); n > grain || n < min(grain, left) {
		return nil, fmt.Errorf("grain at sector %d inflates to %d bytes: %w", sector, n, ErrCorrupt)
	}
	return dst, nil
}
