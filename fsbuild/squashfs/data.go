package squashfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"cairn/fsbuild/internal/contents"
	"cairn/fsbuild/tree"
)

// stored is the flag of a size in the image: the block is not compressed.
const stored = 1 << 24

// block is one unit of compression, on its way from the reader of contents to
// the writer of the image.
type block struct {
	raw  []byte
	out  []byte
	size uint32 // as the image has it
	err  error
	done chan struct{}
	put  func(start int64, size uint32) // called by the writer
}

// writeData writes the contents of all files. One goroutine reads and decides
// what goes where, several compress, and the caller writes in that order.
func (fs *fileSystem) writeData(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	workers := runtime.GOMAXPROCS(0)
	p := &packer{
		fs: fs, ctx: ctx, todo: make(chan *block, workers), order: make(chan *block, 2*workers),
		free: make(chan *block, 3*workers+2), known: map[identity]*data{},
	}
	for range cap(p.free) {
		p.free <- &block{raw: make([]byte, 0, fs.p.BlockSize)}
	}
	var wg sync.WaitGroup
	for range workers {
		e, err := fs.p.encoder()
		if err != nil {
			close(p.todo)
			cancel(err)
			wg.Wait()
			return err
		}
		wg.Go(func() { p.compress(e) })
	}
	wg.Go(func() {
		defer close(p.order)
		defer close(p.todo)
		if err := p.all(); err != nil {
			cancel(err)
		}
	})
	for b := range p.order {
		if err := fs.writeBlock(b); err != nil {
			cancel(err)
		}
		p.free <- b
	}
	wg.Wait()
	fs.summary.Fragments = int64(len(fs.fragments))
	err := context.Cause(ctx)
	cancel(nil)
	return err
}

func (fs *fileSystem) writeBlock(b *block) error {
	<-b.done
	if b.err != nil {
		return b.err
	}
	b.put(fs.pos, b.size)
	return fs.write(b.out)
}

// identity is what files of equal content share.
type identity struct {
	size int64
	sum  [sha256.Size]byte
}

// packer turns contents into blocks.
type packer struct {
	fs    *fileSystem
	ctx   context.Context //nolint:containedctx // of the one call that the packer lives in
	todo  chan *block
	order chan *block
	free  chan *block
	known map[identity]*data
	tails *block // the fragment block that is being filled
	tail  uint32 // its number
}

func (p *packer) compress(e encoder) {
	for b := range p.todo {
		var packed bool
		b.out, packed, b.err = pack(e, b.out[:0], b.raw)
		if b.size = uint32(len(b.out)); !packed {
			b.size |= stored
		}
		close(b.done)
	}
}

// take returns an empty block, when one is free.
func (p *packer) take() (*block, error) {
	select {
	case b := <-p.free:
		b.raw, b.done = b.raw[:0], make(chan struct{})
		return b, nil
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	}
}

// send puts a block in line. It may wait, but not forever: the receivers of
// both channels go on until they are closed, also after an error.
func (p *packer) send(b *block, put func(start int64, size uint32)) {
	b.put = put
	p.todo <- b
	p.order <- b
}

func (p *packer) all() error {
	same := map[int64]int{}
	for _, ino := range p.fs.files {
		same[ino.node.Size]++
	}
	for _, ino := range p.fs.files {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		if err := p.file(ino, same[ino.node.Size] > 1); err != nil {
			return fmt.Errorf("%q: %w", ino.node.Path, err)
		}
	}
	p.flushTails()
	return nil
}

// file stores the content of a file unless one that is equal is stored.
func (p *packer) file(ino *inode, twins bool) error {
	n := ino.node
	ino.data = &data{fragment: none}
	if n.Size < int64(p.fs.p.BlockSize) {
		return p.small(ino)
	}
	if twins {
		sum, err := digest(n)
		if err != nil {
			return err
		}
		if p.seen(ino, sum) {
			return nil
		}
	}
	return p.large(ino)
}

// seen makes a file share the data of an equal one, if there is one.
func (p *packer) seen(ino *inode, sum [sha256.Size]byte) bool {
	id := identity{ino.node.Size, sum}
	if d, ok := p.known[id]; ok {
		ino.data = d
		p.fs.summary.Duplicates++
		return true
	}
	p.known[id] = ino.data
	return false
}

func digest(n *tree.Node) (sum [sha256.Size]byte, err error) {
	if d, ok := n.Content.(tree.Digester); ok {
		if known, ok := d.SHA256(); ok {
			return known, nil
		}
	}
	h := sha256.New()
	out := contents.NewOutput(h)
	if err := errors.Join(out.Copy(n), out.Flush()); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// small puts a whole file into the fragment block. It is read to the block's
// end, and stays there if it is new.
func (p *packer) small(ino *inode) error {
	size := int(ino.node.Size)
	if err := p.room(size); err != nil {
		return err
	}
	r, err := contents.Open(ino.node)
	if err != nil {
		return err
	}
	defer r.Close()
	from := len(p.tails.raw)
	b := p.tails.raw[from : from+size]
	if err := readAll(r, b); err != nil {
		return err
	}
	if size == 0 || p.seen(ino, sha256.Sum256(b)) {
		return nil
	}
	p.tails.raw = p.tails.raw[:from+size]
	ino.data.fragment, ino.data.fragOffset = p.tail, uint32(from)
	return nil
}

// readAll fills b with all of a content.
func readAll(r *contents.Reader, b []byte) error {
	if len(b) > 0 {
		if _, err := r.Read(b); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	var more [1]byte
	if _, err := r.Read(more[:]); !errors.Is(err, io.EOF) {
		return err // more than there should be
	}
	return nil
}

// room makes sure that size bytes fit into the fragment block.
func (p *packer) room(size int) error {
	if p.tails != nil && len(p.tails.raw)+size <= p.fs.p.BlockSize {
		return nil
	}
	p.flushTails()
	var err error
	p.tails, err = p.take()
	return err
}

// flushTails puts the fragment block in line.
func (p *packer) flushTails() {
	if p.tails == nil || len(p.tails.raw) == 0 {
		return
	}
	p.tail++
	p.send(p.tails, func(start int64, size uint32) {
		p.fs.fragments = append(p.fs.fragments, fragment{start, size})
	})
	p.tails = nil
}

// large stores a file of a block or more, its tail in the fragment block.
func (p *packer) large(ino *inode) error {
	r, err := contents.Open(ino.node)
	if err != nil {
		return err
	}
	defer r.Close()
	d := ino.data
	size := int64(p.fs.p.BlockSize)
	d.blocks = make([]uint32, ino.node.Size/size)
	for i := range d.blocks {
		if err := p.block(d, i, r); err != nil {
			return err
		}
	}
	tail := int(ino.node.Size % size)
	if tail == 0 {
		return readAll(r, nil)
	}
	if err := p.room(tail); err != nil {
		return err
	}
	from := len(p.tails.raw)
	if err := readAll(r, p.tails.raw[from:from+tail]); err != nil {
		return err
	}
	p.tails.raw = p.tails.raw[:from+tail]
	d.fragment, d.fragOffset = p.tail, uint32(from)
	return nil
}

var zeros [maxBlock]byte

// block stores the i-th block of a file.
func (p *packer) block(d *data, i int, r *contents.Reader) error {
	b, err := p.take()
	if err != nil {
		return err
	}
	b.raw = b.raw[:cap(b.raw)]
	if _, err := r.Read(b.raw); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if bytes.Equal(b.raw, zeros[:len(b.raw)]) {
		d.sparse += int64(len(b.raw))
		p.free <- b
		return nil
	}
	p.send(b, func(start int64, size uint32) {
		if d.start == 0 {
			d.start = start
		}
		d.blocks[i] = size
	})
	return nil
}
