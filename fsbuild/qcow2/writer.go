package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"

	"cairn/fsbuild/internal/disk"
)

// Writer makes one image. Its methods must not be called concurrently.
//
// WriteAt copies into clusters; full ones go to workers, which compress them,
// and in the order of the guest's addresses to one committer, which gives them
// their place in the file and writes them. All memory is in a fixed number of
// clusters, at most 32 MiB, and in the encoders.
type Writer struct {
	clusters *disk.Blocks
	commit   *committer
}

// buffered is the number of bytes that clusters in flight may take.
const buffered = 32 << 20

// NewWriter starts an image of virtualSize bytes, a positive multiple of 512,
// in w, which must be empty (or read as zeros). Close or Abort must be called.
func NewWriter(w io.WriterAt, virtualSize int64, o Options) (*Writer, error) {
	g, err := newGeometry(virtualSize, o)
	if err != nil {
		return nil, fmt.Errorf("write qcow2: %w", err)
	}
	encode := make([]func(*disk.Block) error, disk.Workers(o.Workers))
	for i := range encode {
		if encode[i], err = newEncoding(g); err != nil {
			return nil, fmt.Errorf("write qcow2: %w", err)
		}
	}
	c := newCommitter(w, g)
	return &Writer{commit: c, clusters: disk.NewBlocks(disk.BlocksOptions{
		What: "write qcow2", Closed: ErrClosed, Size: virtualSize, BlockSize: g.clusterSize, Buffered: buffered, Container: c, Encode: encode,
	})}, nil
}

// newEncoding returns a worker's function. A cluster that does not become
// smaller is stored as it is.
func newEncoding(g geometry) (func(*disk.Block) error, error) {
	e, err := newEncoder(g)
	if err != nil {
		return nil, err
	}
	return func(c *disk.Block) (err error) {
		if c.Stored = c.Data; e == (storer{}) {
			return nil
		}
		if c.Packed, err = e.encode(c.Packed[:0], c.Data); len(c.Packed) < len(c.Data) {
			c.Stored = c.Packed
		}
		return err
	}, nil
}

// WriteAt implements io.WriterAt for ascending, non-overlapping ranges. It
// keeps no reference to p. An error of the output comes at a later call.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) { return w.clusters.WriteAt(p, off) }

// Close writes what is left and the tables. The image is complete, if not yet
// synced, when Close returns nil.
func (w *Writer) Close() error { return w.clusters.Close() }

// Abort ends the goroutines and leaves the output as it is, which is no valid
// image. After Close it does nothing.
func (w *Writer) Abort() { w.clusters.Abort() }

// Size returns the size of the file in bytes after Close.
func (w *Writer) Size() int64 { return w.commit.alloc.next * w.commit.geo.clusterSize }

// committer puts clusters into the file, one after another.
type committer struct {
	out   io.WriterAt
	geo   geometry
	alloc *allocator
	l2    []byte // the L2 table being filled
	l2At  int64  // its index in the L1 table, -1 if none
	l1    []l1Entry
}

// l1Entry is one that is not zero.
type l1Entry struct{ index, offset int64 }

func newCommitter(out io.WriterAt, g geometry) *committer {
	c := &committer{out: out, geo: g, alloc: newAllocator(g.clusterSize), l2: make([]byte, g.clusterSize), l2At: -1}
	c.alloc.alloc(1 + g.l1Clusters())
	return c
}

// Add implements disk.Container.
func (m *committer) Add(c *disk.Block) error {
	if err := m.enterTable(c.Index / m.geo.l2Entries); err != nil {
		return err
	}
	entry, err := m.place(c.Stored)
	binary.BigEndian.PutUint64(m.l2[c.Index%m.geo.l2Entries*8:], entry)
	return err
}

// place writes what is stored of a cluster, compressed if it is shorter, and
// returns its L2 entry.
func (m *committer) place(data []byte) (entry uint64, err error) {
	if err = m.settle(); err != nil {
		return 0, err
	}
	var offset int64
	if int64(len(data)) < m.geo.clusterSize {
		offset = m.alloc.pack(int64(len(data)))
		entry = m.geo.descriptor(offset, int64(len(data)))
	} else {
		offset = m.alloc.alloc(1) * m.geo.clusterSize
		entry = copied | uint64(offset)
	}
	_, err = m.out.WriteAt(data, offset)
	return entry, err
}

// enterTable makes the L2 table of L1 entry index the current one.
func (m *committer) enterTable(index int64) error {
	if m.l2At == index {
		return nil
	}
	err := m.flushTable()
	m.l2At = index
	return err
}

// flushTable writes the current L2 table, if any.
func (m *committer) flushTable() error {
	if m.l2At < 0 {
		return nil
	}
	if err := m.settle(); err != nil {
		return err
	}
	offset := m.alloc.alloc(1) * m.geo.clusterSize
	m.l1 = append(m.l1, l1Entry{m.l2At, offset})
	_, err := m.out.WriteAt(m.l2, offset)
	clear(m.l2)
	m.l2At = -1
	return err
}

// settle writes the refcount blocks that cannot change any more.
func (m *committer) settle() error {
	return m.writeBlocks(m.alloc.settle())
}

func (m *committer) writeBlocks(blocks []block) error {
	for _, b := range blocks {
		if _, err := m.out.WriteAt(b.data, b.offset); err != nil {
			return err
		}
	}
	return nil
}

// Finish writes all tables, and the header last.
func (m *committer) Finish() error {
	if err := m.flushTable(); err != nil {
		return err
	}
	if err := m.settle(); err != nil {
		return err
	}
	table, offset, blocks := m.alloc.finish()
	if len(table) > maxRefcountTabs {
		return fmt.Errorf("image file too large for clusters of %d bytes: %w", m.geo.clusterSize, ErrSize)
	}
	if _, err := m.out.WriteAt(table, offset); err != nil {
		return err
	}
	if err := m.writeBlocks(blocks); err != nil {
		return err
	}
	if err := m.writeL1(); err != nil {
		return err
	}
	_, err := m.out.WriteAt(m.geo.header(offset, int64(len(table))/m.geo.clusterSize), 0)
	return err
}

// writeL1 writes those clusters of the L1 table that are not all zeros.
func (m *committer) writeL1() error {
	b := make([]byte, m.geo.clusterSize)
	perCluster := m.geo.clusterSize / 8
	for i := 0; i < len(m.l1); {
		clear(b)
		at := m.l1[i].index / perCluster
		for ; i < len(m.l1) && m.l1[i].index/perCluster == at; i++ {
			binary.BigEndian.PutUint64(b[m.l1[i].index%perCluster*8:], copied|uint64(m.l1[i].offset))
		}
		if _, err := m.out.WriteAt(b, (1+at)*m.geo.clusterSize); err != nil {
			return err
		}
	}
	return nil
}
