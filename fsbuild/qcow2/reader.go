package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"cairn/fsbuild/internal/disk"
	"cairn/fsbuild/tree"
)

// Errors of images that cannot be read.
var (
	// ErrCorrupt means that the image is damaged, cut off or no qcow2 at all.
	ErrCorrupt = errors.New("corrupt qcow2 image")
	// ErrUnsupported means that the image uses a feature that a Reader
	// refuses: the error names it.
	ErrUnsupported = errors.New("qcow2 feature not supported")
)

// Reader is the virtual disk of an image. Its methods may be called
// concurrently.
//
// Every version, cluster size, refcount width and compression method of the
// format is read, and extended L2 entries. Refused are images that say less
// than a whole disk, or more than one: with a backing file, an external data
// file, encryption or internal snapshots, and images that QEMU marked corrupt.
// Refcounts are not looked at.
//
// Memory is bounded by the L1 table, at most 32 MiB, a cache of at most 16 MiB
// and one cluster for each concurrent call.
type Reader struct {
	file     io.ReaderAt
	fileSize int64
	geo      layout
	l1       []byte
	tables   *disk.Cache // L2 tables by offset in the file
	clusters *disk.Cache // compressed clusters by L2 entry, decompressed
	decode   decoder
}

// cacheBytes is what the L2 tables, and what the decompressed clusters, may
// take.
const cacheBytes = 8 << 20

// Open reads the header of an image in a file of fileSize bytes. The file must
// not change while the Reader is used.
func Open(file io.ReaderAt, fileSize int64) (*Reader, error) {
	r := &Reader{file: file, fileSize: fileSize}
	if err := r.open(); err != nil {
		return nil, fmt.Errorf("open qcow2: %w", err)
	}
	return r, nil
}

func (r *Reader) open() (err error) {
	head := make([]byte, max(0, min(headerLenZstd, r.fileSize)))
	if err = disk.Full(r.file, r.fileSize, head, 0); err != nil {
		return err
	}
	if r.geo, err = parseHeader(head); err != nil {
		return err
	}
	l1 := r.geo.l1Needed() * l1EntryLen
	if l1 > maxL1Bytes {
		return fmt.Errorf("disk of %d bytes needs an L1 table of %d bytes, more than %d: %w", r.geo.virtualSize, l1, maxL1Bytes, ErrCorrupt)
	}
	if l1 > r.fileSize { // before memory is taken
		return fmt.Errorf("L1 table of %d bytes in a file of %d: %w", l1, r.fileSize, ErrCorrupt)
	}
	r.l1 = make([]byte, l1)
	if err = disk.Full(r.file, r.fileSize, r.l1, r.geo.l1Offset); err != nil {
		return fmt.Errorf("L1 table: %w", corrupt(err))
	}
	blocks := max(2, cacheBytes>>r.geo.clusterBits)
	r.tables, r.clusters = disk.NewCache(min(blocks, 64)), disk.NewCache(min(blocks, 16))
	r.decode, err = newDecoder(r.geo)
	return err
}

// corrupt turns a read beyond the file's end into ErrCorrupt.
func corrupt(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// Size returns the size of the virtual disk in bytes.
func (r *Reader) Size() int64 { return r.geo.virtualSize }

// ReadAt implements io.ReaderAt on the virtual disk.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	n, err := disk.ReadAt(p, off, r.geo.virtualSize, r.piece)
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader's io.EOF is never wrapped
		err = fmt.Errorf("read qcow2 at %d: %w", off+int64(n), err)
	}
	return n, err
}

// Data iterates over the runs of the virtual disk that are stored, ascending
// and disjoint; what lies between them reads as zeros. They depend on the image
// alone, and cover stored zeros too. The last pair may be an error.
func (r *Reader) Data() iter.Seq2[tree.Extent, error] {
	return disk.Data(r.geo.virtualSize, func(off int64) (int64, bool, error) {
		m, err := r.locate(off)
		if err != nil {
			err = fmt.Errorf("read qcow2 map at %d: %w", off, err)
		}
		return m.length, m.kind != zero, err
	})
}

// piece reads at most one mapping.
func (r *Reader) piece(p []byte, off int64) (int, error) {
	m, err := r.locate(off)
	if err != nil {
		return 0, err
	}
	p = p[:min(int64(len(p)), m.length)]
	switch m.kind {
	case plain:
		return len(p), r.readPlain(p, m.offset)
	case packed:
		data, err := r.clusters.Get(int64(m.entry), func() ([]byte, error) { return r.unpack(m.entry) })
		if err != nil {
			return 0, err
		}
		return copy(p, data[off%r.geo.clusterSize:]), nil
	default:
		clear(p)
		return len(p), nil
	}
}

// readPlain reads from the file. The last cluster may lack its end, which reads
// as zeros.
func (r *Reader) readPlain(p []byte, offset int64) error {
	start := offset &^ (r.geo.clusterSize - 1)
	if start >= r.fileSize {
		return fmt.Errorf("cluster at %d is beyond the file's end at %d: %w", start, r.fileSize, ErrCorrupt)
	}
	have := max(0, min(int64(len(p)), r.fileSize-offset))
	clear(p[have:])
	if have == 0 {
		return nil
	}
	return corrupt(disk.Full(r.file, r.fileSize, p[:have], offset))
}

// state is how a cluster is stored.
type state uint8

const (
	zero   state = iota // reads as zeros: takes no room
	plain               // stored as it is
	packed              // stored compressed
)

// mapping says where a run of the virtual disk is stored.
type mapping struct {
	kind   state
	length int64
	offset int64  // plain: in the file
	entry  uint64 // packed: the L2 entry
}

// locate finds the mapping of the guest's offset off. Holes are reported as
// long as one table says them.
func (r *Reader) locate(off int64) (mapping, error) {
	g := r.geo
	perTable := g.clusterSize * g.l2Entries
	l1 := binary.BigEndian.Uint64(r.l1[off/perTable*l1EntryLen:])
	offset := int64(l1 & offsetMask)
	if offset == 0 {
		return mapping{kind: zero, length: perTable - off%perTable}, nil
	}
	if offset%g.clusterSize != 0 {
		return mapping{}, fmt.Errorf("L2 table at %d is not at a cluster: %w", offset, ErrCorrupt)
	}
	table, err := r.tables.Get(offset, func() ([]byte, error) {
		b := make([]byte, g.clusterSize)
		return b, r.readTable(b, offset)
	})
	if err != nil {
		return mapping{}, err
	}
	return g.lookup(table, off%perTable)
}

func (r *Reader) readTable(b []byte, offset int64) error {
	if err := disk.Full(r.file, r.fileSize, b, offset); err != nil {
		return fmt.Errorf("L2 table: %w", corrupt(err))
	}
	return nil
}

// lookup interprets an L2 table. off is relative to the first byte that the
// table maps.
func (g layout) lookup(table []byte, off int64) (mapping, error) {
	index, in := off/g.clusterSize, off%g.clusterSize
	b := table[index*g.entryLen:]
	entry := binary.BigEndian.Uint64(b)
	if entry&compressed != 0 {
		return mapping{kind: packed, length: g.clusterSize - in, entry: entry &^ copied}, nil
	}
	offset := int64(entry & offsetMask)
	if offset%g.clusterSize != 0 {
		return mapping{}, fmt.Errorf("data cluster at %d is not at a cluster: %w", offset, ErrCorrupt)
	}
	if g.extended {
		return g.lookupSub(binary.BigEndian.Uint64(b[8:]), offset, in)
	}
	m := mapping{kind: plain, length: g.clusterSize - in, offset: offset + in}
	if offset == 0 || g.version >= 3 && entry&allZeros != 0 {
		m.kind = zero
	}
	return m, nil
}

// lookupSub interprets the bitmap of an extended L2 entry: the low half says
// which subclusters are stored, the high half which are zeros.
func (g layout) lookupSub(bitmap uint64, offset, in int64) (mapping, error) {
	size := g.clusterSize / subclusters
	i := in / size
	m := mapping{kind: zero, length: size - in%size, offset: offset + in}
	stored, zeros := bitmap>>i&1 != 0, bitmap>>(32+i)&1 != 0
	if stored && (zeros || offset == 0) {
		return mapping{}, fmt.Errorf("subcluster is both stored and not: %w", ErrCorrupt)
	}
	if stored {
		m.kind = plain
	}
	return m, nil
}

// unpack reads and decompresses the cluster of a compressed L2 entry.
func (r *Reader) unpack(entry uint64) ([]byte, error) {
	offset, length := r.geo.packedAt(entry)
	length = min(length, r.fileSize-offset)
	if length <= 0 {
		return nil, fmt.Errorf("compressed cluster at %d is beyond the file's end at %d: %w", offset, r.fileSize, ErrCorrupt)
	}
	src := make([]byte, length)
	if err := disk.Full(r.file, r.fileSize, src, offset); err != nil {
		return nil, corrupt(err)
	}
	dst := make([]byte, r.geo.clusterSize)
	if err := r.decode(dst, src); err != nil {
		return nil, fmt.Errorf("compressed cluster at %d: %w: %w", offset, ErrCorrupt, err)
	}
	return dst, nil
}
