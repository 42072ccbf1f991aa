package disk

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// Block is a piece of the disk on its way into a container.
type Block struct {
	Index  int64  // of the disk's blocks
	Data   []byte // all of it
	Stored []byte // what the file is to hold: set by Encode, empty for zeros
	Packed []byte // room for an encoded form, kept from block to block

	filled int64 // bytes of Data that are set
	err    error
	ready  chan struct{} // a token when it is encoded
}

// A Container takes blocks, in the order of the disk, from one goroutine.
type Container interface {
	Add(b *Block) error
	// Finish is called once behind the last block.
	Finish() error
}

// BlocksOptions say how a disk is cut.
type BlocksOptions struct {
	What      string // what errors begin with: "write qcow2"
	Closed    error  // of calls after the end
	Size      int64  // of the disk, in bytes
	BlockSize int64  // in bytes
	Buffered  int64  // most bytes that blocks under way may take, encoded form included
	Container Container
	// Encode are one for each worker. They are called for blocks that are not
	// all zeros.
	Encode []func(b *Block) error
}

// Blocks cuts ascending writes into blocks, which workers encode side by side
// and a container takes one after the other. The bytes do not depend on the
// number of workers. Memory is in a fixed number of blocks. Its methods must
// not be called concurrently.
type Blocks struct {
	o       BlocksOptions
	order   Order
	current *Block // being filled, or nil
	free    chan *Block
	jobs    chan *Block // to the workers
	ordered chan *Block // to the container
	done    sync.WaitGroup
	failure atomic.Pointer[error] // first error of a goroutine
	closed  bool
}

// maxWorkers bounds the memory of encoders.
const maxWorkers = 16

// Workers is the number of encoders for a wish, where 0 leaves the choice.
func Workers(wish int) int {
	if wish > 0 {
		return wish
	}
	return min(runtime.GOMAXPROCS(0), maxWorkers)
}

// NewBlocks starts the goroutines. Close or Abort must be called.
func NewBlocks(o BlocksOptions) *Blocks {
	inFlight := max(2, min(4*len(o.Encode)+4, int(o.Buffered/(2*o.BlockSize))))
	s := &Blocks{
		o:       o,
		order:   Order{Size: o.Size},
		free:    make(chan *Block, inFlight),
		jobs:    make(chan *Block, inFlight),
		ordered: make(chan *Block, inFlight),
	}
	for range inFlight {
		s.free <- &Block{ready: make(chan struct{}, 1)}
	}
	zeros := make([]byte, o.BlockSize)
	for _, encode := range o.Encode {
		s.done.Go(func() { s.encode(encode, zeros) })
	}
	s.done.Go(s.commit)
	return s
}

// WriteAt is io.WriterAt for ascending, non-overlapping ranges. It keeps no
// reference to p. An error of the container comes at a later call.
func (s *Blocks) WriteAt(p []byte, off int64) (int, error) {
	err := s.o.Closed
	if !s.closed {
		err = s.order.Check(len(p), off)
	}
	if err != nil {
		return 0, s.wrap(err)
	}
	for n := 0; n < len(p); {
		if err := s.failed(); err != nil {
			return n, err
		}
		b, at := s.blockAt(off + int64(n))
		clear(b.Data[b.filled:at])
		m := copy(b.Data[at:], p[n:])
		b.filled = at + int64(m)
		n += m
	}
	return len(p), nil
}

// blockAt makes the block of the disk's offset off the current one.
func (s *Blocks) blockAt(off int64) (b *Block, at int64) {
	index, at := off/s.o.BlockSize, off%s.o.BlockSize
	if s.current != nil && s.current.Index != index {
		s.send()
	}
	if s.current == nil {
		s.current = <-s.free
		if s.current.Data == nil {
			s.current.Data = make([]byte, s.o.BlockSize)
		}
		s.current.Index, s.current.filled = index, 0
	}
	return s.current, at
}

// send gives the current block, if any, to a worker and the container.
func (s *Blocks) send() {
	if b := s.current; b != nil {
		clear(b.Data[b.filled:])
		s.jobs <- b
		s.ordered <- b
		s.current = nil
	}
}

// encode is a worker. All share one block of zeros.
func (s *Blocks) encode(encode func(*Block) error, zeros []byte) {
	for b := range s.jobs {
		b.Stored, b.err = nil, nil
		if !bytes.Equal(b.Data, zeros) {
			b.err = encode(b)
		}
		b.ready <- struct{}{}
	}
}

// commit is the container's goroutine. After an error it only drains.
func (s *Blocks) commit() {
	for b := range s.ordered {
		<-b.ready
		if s.failure.Load() == nil {
			s.add(b)
		}
		s.free <- b
	}
}

func (s *Blocks) add(b *Block) {
	err := b.err
	if err == nil && len(b.Stored) > 0 {
		err = s.o.Container.Add(b)
	}
	if err != nil {
		s.fail(err)
	}
}

func (s *Blocks) wrap(err error) error { return fmt.Errorf("%s: %w", s.o.What, err) }

func (s *Blocks) fail(err error) {
	err = s.wrap(err)
	s.failure.CompareAndSwap(nil, &err)
}

func (s *Blocks) failed() error {
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Close hands over what is left and finishes the container.
func (s *Blocks) Close() error {
	if s.closed {
		return s.wrap(s.o.Closed)
	}
	s.send()
	s.stop()
	if s.failed() == nil {
		if err := s.o.Container.Finish(); err != nil {
			s.fail(err)
		}
	}
	return s.failed()
}

// Abort ends the goroutines and leaves the container as it is. After Close it
// does nothing.
func (s *Blocks) Abort() {
	if !s.closed {
		s.fail(s.o.Closed)
		s.stop()
	}
}

func (s *Blocks) stop() {
	s.closed = true
	close(s.jobs)
	close(s.ordered)
	s.done.Wait()
}

var _ io.WriterAt = (*Blocks)(nil)
