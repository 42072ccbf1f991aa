package vmdk

import (
	"encoding/binary"
	"fmt"
	"hash/adler32"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"cairn/fsbuild/internal/deflate"
	"cairn/fsbuild/internal/disk"
)

// Writer makes one image. Its methods must not be called concurrently.
//
// WriteAt copies into grains; full ones go to workers, which compress them, and
// in the order of the disk to one committer, which gives them their place in
// the file and writes them. All memory is in a fixed number of grains, at most
// 16 MiB, in the encoders, and in the directory: 4 bytes for each 32 MiB of the
// disk.
type Writer struct {
	geo     geometry
	order   disk.Order
	current *grain // being filled, or nil
	free    chan *grain
	jobs    chan *grain // to the workers
	ordered chan *grain // to the committer
	done    sync.WaitGroup
	failure atomic.Pointer[error] // first error of a goroutine
	closed  bool
	commit  *committer
}

// grain travels from WriteAt through a worker to the committer and back.
type grain struct {
	index  int64
	data   []byte // grainSize bytes
	filled int64
	stored []byte // what goes into the file, empty for zeros
	packed []byte // room for it, if compressed
	ready  chan struct{}
}

const maxWorkers = 16

// NewWriter starts an image of a disk of size bytes, a positive multiple of 512
// up to MaxSize, in w, which must be empty (or read as zeros). Close or Abort
// must be called.
func NewWriter(w io.WriterAt, size int64, o Options) (*Writer, error) {
	g, err := newGeometry(size, o)
	if err != nil {
		return nil, fmt.Errorf("write vmdk: %w", err)
	}
	workers := o.Workers
	if workers == 0 {
		workers = min(runtime.GOMAXPROCS(0), maxWorkers)
	}
	encoders := make([]*deflate.Encoder, workers)
	for i := range encoders {
		if encoders[i], err = deflate.NewEncoder(deflate.MaxWindow); err != nil {
			return nil, fmt.Errorf("write vmdk: %w", err)
		}
	}
	return start(w, g, encoders), nil
}

func start(out io.WriterAt, g geometry, encoders []*deflate.Encoder) *Writer {
	inFlight := min(4*len(encoders)+4, 128)
	w := &Writer{
		geo:     g,
		order:   disk.Order{Size: g.size},
		free:    make(chan *grain, inFlight),
		jobs:    make(chan *grain, inFlight),
		ordered: make(chan *grain, inFlight),
		commit:  newCommitter(out, g),
	}
	for range inFlight {
		w.free <- &grain{ready: make(chan struct{}, 1)}
	}
	for _, e := range encoders {
		w.done.Go(func() {
			for c := range w.jobs {
				c.encode(e, g.kind)
				c.ready <- struct{}{}
			}
		})
	}
	w.done.Go(w.commitAll)
	return w
}

// WriteAt implements io.WriterAt for ascending, non-overlapping ranges. It
// keeps no reference to p. An error of the output comes at a later call.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	err := ErrClosed
	if !w.closed {
		err = w.order.Check(len(p), off)
	}
	if err != nil {
		return 0, fmt.Errorf("write vmdk: %w", err)
	}
	for n := 0; n < len(p); {
		if err := w.failed(); err != nil {
			return n, err
		}
		c, at := w.grainAt(off + int64(n))
		clear(c.data[c.filled:at])
		m := copy(c.data[at:], p[n:])
		c.filled = at + int64(m)
		n += m
	}
	return len(p), nil
}

// grainAt makes the grain of the disk's offset off the current one.
func (w *Writer) grainAt(off int64) (c *grain, at int64) {
	index, at := off/grainSize, off%grainSize
	if w.current != nil && w.current.index != index {
		w.send()
	}
	if w.current == nil {
		w.current = <-w.free
		if w.current.data == nil {
			w.current.data = make([]byte, grainSize)
		}
		w.current.index, w.current.filled = index, 0
	}
	return w.current, at
}

// send gives the current grain, if any, to a worker and the committer.
func (w *Writer) send() {
	if c := w.current; c != nil {
		clear(c.data[c.filled:])
		w.jobs <- c
		w.ordered <- c
		w.current = nil
	}
}

// encode makes what goes into the file. A stream's grain is its marker and a
// zlib stream (RFC 1950), in whole sectors.
func (c *grain) encode(e *deflate.Encoder, kind Kind) {
	c.stored = nil
	if isZero(c.data) {
		return
	}
	if kind == MonolithicSparse {
		c.stored = c.data
		return
	}
	const grainMarker = 12
	b := binary.LittleEndian.AppendUint64(c.packed[:0], uint64(c.index*grainSectors))
	b = append(b, 0, 0, 0, 0, 0x78, 0x9c) // the size comes below; deflate with 32 KiB
	b = e.Encode(b, c.data)
	b = binary.BigEndian.AppendUint32(b, adler32.Checksum(c.data))
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-grainMarker))
	b = append(b, make([]byte, -len(b)&(sectorSize-1))...)
	c.packed, c.stored = b, b
}

func isZero(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
	}
	return true
}

// commitAll is the committer's goroutine. After an error it only drains.
func (w *Writer) commitAll() {
	for c := range w.ordered {
		<-c.ready
		if w.failure.Load() == nil && len(c.stored) > 0 {
			if err := w.commit.add(c); err != nil {
				w.fail(err)
			}
		}
		w.free <- c
	}
}

func (w *Writer) fail(err error) {
	err = fmt.Errorf("write vmdk: %w", err)
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
		return fmt.Errorf("write vmdk: %w", ErrClosed)
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
	close(w.ordered)
	w.done.Wait()
}

// Size returns the size of the file in bytes after Close.
func (w *Writer) Size() int64 { return w.commit.next * sectorSize }
