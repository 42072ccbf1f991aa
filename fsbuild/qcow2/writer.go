package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// Writer makes one image. Its methods must not be called concurrently.
//
// WriteAt copies into clusters; full ones go to workers, which compress them,
// and in the order of the guest's addresses to one committer, which gives them
// their place in the file and writes them. All memory is in a fixed number of
// clusters, at most 32 MiB, and in the encoders.
type Writer struct {
	geo     geometry
	pos     int64    // end of the last write, in the guest
	current *cluster // being filled, or nil
	free    chan *cluster
	jobs    chan *cluster // to the workers
	order   chan *cluster // to the committer
	done    sync.WaitGroup
	failure atomic.Pointer[error] // first error of a goroutine
	closed  bool
	commit  *committer
}

// cluster travels from WriteAt through a worker to the committer and back.
type cluster struct {
	index  int64  // in the guest
	data   []byte // clusterSize bytes
	filled int64  // bytes of data that are set
	packed []byte // compressed
	state  state
	err    error
	ready  chan struct{} // a token when the worker is done
}

type state uint8

const (
	zero   state = iota // reads as zeros: takes no room
	plain               // stored as it is
	packed              // stored compressed
)

// NewWriter starts an image of virtualSize bytes, a positive multiple of 512,
// in w, which must be empty (or read as zeros). Close or Abort must be called.
func NewWriter(w io.WriterAt, virtualSize int64, o Options) (*Writer, error) {
	g, err := newGeometry(virtualSize, o)
	if err != nil {
		return nil, fmt.Errorf("write qcow2: %w", err)
	}
	workers := o.Workers
	if workers == 0 {
		workers = min(runtime.GOMAXPROCS(0), maxWorkers)
	}
	encoders := make([]encoder, workers)
	for i := range encoders {
		if encoders[i], err = newEncoder(g); err != nil {
			return nil, fmt.Errorf("write qcow2: %w", err)
		}
	}
	return start(w, g, encoders), nil
}

// buffered is the number of bytes that clusters in flight may take, counting
// their compressed form too.
const buffered = 32 << 20

func start(out io.WriterAt, g geometry, encoders []encoder) *Writer {
	inFlight := max(2, min(4*len(encoders)+4, int(buffered/(2*g.clusterSize))))
	w := &Writer{
		geo:    g,
		free:   make(chan *cluster, inFlight),
		jobs:   make(chan *cluster, inFlight),
		order:  make(chan *cluster, inFlight),
		commit: newCommitter(out, g),
	}
	for range inFlight {
		w.free <- &cluster{ready: make(chan struct{}, 1)}
	}
	zeros := make([]byte, g.clusterSize)
	for _, e := range encoders {
		w.done.Go(func() { w.compress(e, zeros) })
	}
	w.done.Go(w.commitAll)
	return w
}

// WriteAt implements io.WriterAt for ascending, non-overlapping ranges. It
// keeps no reference to p. An error of the output comes at a later call.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if err := w.checkWrite(int64(len(p)), off); err != nil {
		return 0, fmt.Errorf("write qcow2: %w", err)
	}
	for n := 0; n < len(p); {
		if err := w.failed(); err != nil {
			return n, err
		}
		c, at := w.clusterAt(off + int64(n))
		clear(c.data[c.filled:at])
		m := copy(c.data[at:], p[n:])
		c.filled = at + int64(m)
		n += m
	}
	w.pos = max(w.pos, off+int64(len(p)))
	return len(p), nil
}

func (w *Writer) checkWrite(n, off int64) error {
	switch {
	case w.closed:
		return ErrClosed
	case off < w.pos:
		return fmt.Errorf("offset %d is before %d: %w", off, w.pos, ErrOrder)
	case off > w.geo.virtualSize-n:
		return fmt.Errorf("%d bytes at %d leave the disk of %d: %w", n, off, w.geo.virtualSize, ErrOrder)
	}
	return nil
}

// clusterAt makes the cluster of guest offset off the current one.
func (w *Writer) clusterAt(off int64) (c *cluster, at int64) {
	index, at := off/w.geo.clusterSize, off%w.geo.clusterSize
	if w.current != nil && w.current.index != index {
		w.send()
	}
	if w.current == nil {
		w.current = <-w.free
		if w.current.data == nil {
			w.current.data = make([]byte, w.geo.clusterSize)
		}
		w.current.index, w.current.filled = index, 0
	}
	return w.current, at
}

// send gives the current cluster, if any, to a worker and the committer.
func (w *Writer) send() {
	if c := w.current; c != nil {
		clear(c.data[c.filled:])
		w.jobs <- c
		w.order <- c
		w.current = nil
	}
}

// compress is a worker. All share one cluster of zeros.
func (w *Writer) compress(e encoder, zeros []byte) {
	for c := range w.jobs {
		c.encode(e, zeros)
		c.ready <- struct{}{}
	}
}

func (c *cluster) encode(e encoder, zeros []byte) {
	if c.state = zero; bytes.Equal(c.data, zeros) {
		return
	}
	if c.state = plain; e == (storer{}) {
		return
	}
	if c.packed, c.err = e.encode(c.packed[:0], c.data); c.err == nil && len(c.packed) < len(c.data) {
		c.state = packed
	}
}

// commitAll is the committer's goroutine. After an error it only drains.
func (w *Writer) commitAll() {
	for c := range w.order {
		<-c.ready
		if w.failure.Load() == nil {
			if err := w.commit.add(c); err != nil {
				w.fail(err)
			}
		}
		w.free <- c
	}
}

func (w *Writer) fail(err error) {
	err = fmt.Errorf("write qcow2: %w", err)
	w.failure.CompareAndSwap(nil, &err)
}

func (w *Writer) failed() error {
	if err := w.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Close writes what is left and the tables. The image is complete, if not yet
// synced, when Close returns nil.
func (w *Writer) Close() error {
	if w.closed {
		return fmt.Errorf("write qcow2: %w", ErrClosed)
	}
	w.send()
	w.stop()
	if w.failed() == nil {
		if err := w.commit.finish(); err != nil {
			w.fail(err)
		}
	}
	return w.failed()
}

// Abort ends the goroutines and leaves the output as it is, which is no valid
// image. After Close it does nothing.
func (w *Writer) Abort() {
	if !w.closed {
		w.fail(ErrClosed)
		w.stop()
	}
}

func (w *Writer) stop() {
	w.closed = true
	close(w.jobs)
	close(w.order)
	w.done.Wait()
}

// Size returns the size of the file in bytes after Close.
func (w *Writer) Size() int64 { return w.commit.alloc.next * w.geo.clusterSize }

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

func (m *committer) add(c *cluster) error {
	if c.err != nil || c.state == zero {
		return c.err
	}
	if err := m.enterTable(c.index / m.geo.l2Entries); err != nil {
		return err
	}
	entry, err := m.place(c)
	binary.BigEndian.PutUint64(m.l2[c.index%m.geo.l2Entries*8:], entry)
	return err
}

// place writes a cluster's data and returns its L2 entry.
func (m *committer) place(c *cluster) (entry uint64, err error) {
	if err = m.settle(); err != nil {
		return 0, err
	}
	data, offset := c.data, int64(0)
	if c.state == packed {
		data = c.packed
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

// finish writes all tables, and the header last.
func (m *committer) finish() error {
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
