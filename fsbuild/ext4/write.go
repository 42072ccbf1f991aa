package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
)

// Sizes of the pipeline that fills buffers ahead of the one writer.
const (
	chunkSize    = 256 << 10 // of a buffer, whole blocks of any size
	workerChunks = 4         // buffers of one worker
	maxWorkers   = 8
)

// Write emits the image. Offsets of successive WriteAt calls ascend strictly
// and never overlap; what is skipped reads as zeros, up to [Layout.Size]. All
// calls come from the calling goroutine. Contents are read ahead by several
// goroutines, which have ended when Write returns, with at most 9 MiB of
// buffers; the bytes do not depend on their number.
//
// A content that is shorter or longer than its Size is an error that names the
// path, and so is one that cannot be read. An error of w is returned wrapped.
// After an error the image is incomplete.
func (l *Layout) Write(ctx context.Context, w io.WriterAt) (Summary, error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	p := pipeline{l: l, todo: make(chan *job), order: make(chan *job, 2*maxWorkers)}
	wg.Go(func() { p.feed(ctx) })
	for range max(1, min(runtime.GOMAXPROCS(0), maxWorkers)) {
		wg.Go(func() { p.work(ctx) })
	}
	if err := p.drain(ctx, w); err != nil {
		return Summary{}, fmt.Errorf("write ext4: %w", err)
	}
	return l.Summary(), nil
}

// job is a range of the layout's segments that ends with a file, and the
// group metadata between them.
type job struct {
	segs, meta []segment
	out        chan chunk // never blocks: it has room for all buffers of a worker
}

// chunk is a filled buffer, or an error.
type chunk struct {
	offset int64
	data   []byte
	free   chan []byte // where the buffer goes back to
	err    error
}

// pipeline carries jobs in order to workers, and their chunks in the same
// order to the writer. It cannot deadlock: the first unfinished job belongs to
// a worker whose buffers are either free or on their way to the writer.
type pipeline struct {
	l     *Layout
	todo  chan *job
	order chan *job
}

// feed cuts the layout into jobs of about one chunk.
func (p *pipeline) feed(ctx context.Context) {
	defer close(p.order)
	defer close(p.todo)
	segs, meta, chunkBlocks := p.l.segs, p.l.meta, uint32(chunkSize/p.l.blockSize)
	for len(segs) > 0 || len(meta) > 0 {
		n, blocks := 0, uint32(0)
		for n < len(segs) && (blocks < chunkBlocks || sameOwner(segs[n-1], segs[n])) {
			blocks += segs[n].count
			n++
		}
		m := 0
		for m < len(meta) && (n == len(segs) || meta[m].start < segs[n].start) {
			m++
		}
		j := &job{segs: segs[:n], meta: meta[:m], out: make(chan chunk, workerChunks+1)}
		segs, meta = segs[n:], meta[m:]
		select {
		case p.order <- j:
		case <-ctx.Done():
			return
		}
		select {
		case p.todo <- j:
		case <-ctx.Done():
			return
		}
	}
}

// sameOwner tells whether two segments belong to one file and its extent tree,
// which one worker makes.
func sameOwner(a, b segment) bool {
	return a.owner == b.owner && (a.kind == b.kind || b.kind == segIndex) && a.kind != segXattr
}

// drain writes the chunks of all jobs in order.
func (p *pipeline) drain(ctx context.Context, w io.WriterAt) error {
	for j := range p.order {
		for open := true; open; {
			var c chunk
			select {
			case c, open = <-j.out:
			case <-ctx.Done():
				return ctx.Err()
			}
			if !open {
				break
			}
			if c.err != nil {
				return c.err
			}
			n, err := w.WriteAt(c.data, c.offset)
			if err == nil && n < len(c.data) {
				err = io.ErrShortWrite
			}
			if err != nil {
				return fmt.Errorf("%d bytes at %d: %w", len(c.data), c.offset, err)
			}
			c.free <- c.data
		}
	}
	return ctx.Err()
}

// work fills the chunks of jobs until there are none.
func (p *pipeline) work(ctx context.Context) {
	f := &filler{l: p.l, done: ctx.Done(), free: make(chan []byte, workerChunks)}
	for range workerChunks {
		f.free <- make([]byte, chunkSize+maxBlockSize)[:0] // room to look one byte beyond a file
	}
	for j := range p.todo {
		err := f.run(j)
		if err != nil {
			j.out <- chunk{err: err}
		}
		close(j.out)
		if err != nil {
			return
		}
	}
}

// filler makes the blocks of a job into chunks, each a run of adjacent blocks.
type filler struct {
	l      *Layout
	done   <-chan struct{} // closed when the writer has given up
	free   chan []byte
	out    chan chunk
	buf    []byte // the current chunk, nil before the first block
	offset int64  // of buf

	file     fileReader
	dir      *dirWriter
	index    [][]byte  // blocks of the current extent tree
	blockMap *blockMap // the current one
}

// run merges the job's segments and metadata by position.
func (f *filler) run(j *job) error {
	f.out = j.out
	defer f.file.close()
	segs, meta := j.segs, j.meta
	for len(segs) > 0 || len(meta) > 0 {
		var s segment
		if len(segs) == 0 || len(meta) > 0 && meta[0].start < segs[0].start {
			s, meta = meta[0], meta[1:]
		} else {
			s, segs = segs[0], segs[1:]
		}
		if err := f.segment(s); err != nil {
			return err
		}
	}
	f.flush()
	return nil
}

// segment makes the blocks of one segment.
func (f *filler) segment(s segment) error {
	if s.kind == segData {
		return f.data(s)
	}
	if s.kind == segJournal {
		if s.logical > 0 {
			return nil
		}
		s.count = 1 // the rest of an empty journal is zero
	}
	for i := range s.count {
		b, err := f.block(s.start + uint64(i))
		if err != nil {
			return err
		}
		if err := f.fill(b, s, i); err != nil {
			return err
		}
		if s.kind <= segInodeTable && allZero(b) {
			f.buf = f.buf[:len(f.buf)-f.l.blockSize]
		}
	}
	return nil
}

// fill makes the i-th block of a segment other than file data.
func (f *filler) fill(b []byte, s segment, i uint32) error {
	l := f.l
	switch s.kind {
	case segSuper:
		if s.owner == 0 && l.firstBlock == 0 {
			b = b[superOffset:]
		}
		l.putSuper(b[:superSize], uint64(s.owner))
	case segDescriptors:
		l.putDescriptors(b, uint64(s.owner)+uint64(i))
	case segBlockBitmap:
		l.putBlockBitmap(b, uint64(s.owner))
	case segInodeBitmap:
		l.putInodeBitmap(b, uint64(s.owner))
	case segInodeTable:
		return l.putInodes(b, uint64(s.owner), uint64(i))
	case segDir:
		if s.logical+i == 0 {
			f.dir = l.newDirWriter(&l.dirs[l.inodes[s.owner].dir])
		}
		f.dir.block(b, s.logical+i)
	case segXattr:
		return l.xattrBlockAt(b, &l.xattrs[s.owner])
	case segSymlink:
		copy(b, l.inodes[s.owner].node.Target)
	case segJournal:
		l.putJournal(b)
	case segIndex:
		f.treeBlock(b, l.fileOf(s), s.logical+i)
	case segData:
	}
	return nil
}

// treeBlock makes the k-th block of a file's extent tree or block map.
func (f *filler) treeBlock(b []byte, ino *inode, k uint32) {
	switch {
	case !f.l.modern && k == 0:
		f.blockMap = f.l.newBlockMap(ino)
	case f.l.modern && k == 0:
		_, f.index = f.l.extentTree(ino)
	}
	if f.l.modern {
		copy(b, f.index[k])
	} else {
		f.blockMap.block(b, k)
	}
}

func allZero(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if le.Uint64(b) != 0 {
			return false
		}
	}
	return true
}

// at makes block the next one of the current chunk: it starts a new chunk when
// the block does not follow or there is no room.
func (f *filler) at(block uint64) error {
	offset := int64(block) * int64(f.l.blockSize)
	if f.buf != nil && len(f.buf) < chunkSize && (offset == f.offset+int64(len(f.buf))) {
		return nil
	}
	f.flush()
	if f.buf == nil {
		select {
		case f.buf = <-f.free:
		case <-f.done:
			return context.Canceled
		}
	}
	f.buf, f.offset = f.buf[:0], offset
	return nil
}

// block returns the next block of the current chunk, zeroed.
func (f *filler) block(number uint64) ([]byte, error) {
	if err := f.at(number); err != nil {
		return nil, err
	}
	n := len(f.buf)
	f.buf = f.buf[:n+f.l.blockSize]
	b := f.buf[n:]
	clear(b)
	return b, nil
}

// flush hands the current chunk to the writer if there is anything in it.
func (f *filler) flush() {
	if len(f.buf) > 0 {
		f.out <- chunk{offset: f.offset, data: f.buf, free: f.free}
		f.buf = nil
	}
}

// data copies a run of a file's blocks into chunks.
func (f *filler) data(s segment) error {
	ino := f.l.fileOf(s)
	if err := f.file.open(ino); err != nil {
		return fmt.Errorf("%q: %w", ino.node.Path, err)
	}
	size := int64(f.l.blockSize)
	from := int64(s.logical) * size
	to := min(from+int64(s.count)*size, ino.node.Size)
	block := s.start
	for from < to {
		if err := f.at(block); err != nil {
			return err
		}
		n := len(f.buf)
		k := int(min(to-from, int64(chunkSize-n)))
		if err := f.file.read(f.buf[n:n+k+1], from); err != nil {
			return fmt.Errorf("%q: %w", ino.node.Path, err)
		}
		end := int(f.l.sizeInBlocks(int64(n+k)) * uint64(size))
		f.buf = f.buf[:end]
		clear(f.buf[n+k:])
		from += int64(k)
		block += uint64(end-n) / uint64(size)
	}
	return nil
}

// errChanged is the cause when a content is not as long as its node says.
var errChanged = errors.New("content changed while it was read")

// fileReader reads the content of one file after the other.
type fileReader struct {
	ino    *inode
	r      io.ReadCloser
	offset int64
}

// open makes ino the current file, at its beginning.
func (r *fileReader) open(ino *inode) error {
	if r.ino == ino {
		return nil
	}
	r.close()
	c, err := ino.node.Content.Open()
	if err != nil {
		return err
	}
	*r = fileReader{ino: ino, r: c}
	return nil
}

func (r *fileReader) close() {
	if r.r != nil {
		_ = r.r.Close() // it was only read
	}
	*r = fileReader{}
}

// read fills all of b but its last byte from an offset. That byte is scratch:
// at the end of the file it shows whether there is more.
func (r *fileReader) read(b []byte, offset int64) error {
	if err := r.seek(offset); err != nil {
		return err
	}
	want := len(b) - 1
	last := offset+int64(want) == r.ino.node.Size
	if !last {
		b = b[:want]
	}
	n, err := 0, error(nil)
	for idle := 0; err == nil && (n < want || last && n == want); idle++ {
		var k int
		if k, err = r.r.Read(b[n:]); k > 0 {
			idle = 0
		} else if idle > 100 {
			return io.ErrNoProgress
		}
		n += k
	}
	r.offset = offset + int64(n)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return err
	case n < want:
		return fmt.Errorf("%w: it has %d bytes, not %d", errChanged, r.offset, r.ino.node.Size)
	case n > want:
		return fmt.Errorf("%w: it has more than %d bytes", errChanged, r.ino.node.Size)
	}
	return nil
}

// seek skips a hole.
func (r *fileReader) seek(offset int64) error {
	if r.offset == offset {
		return nil
	}
	if s, ok := r.r.(io.Seeker); ok {
		_, err := s.Seek(offset, io.SeekStart)
		return err
	}
	if n, err := io.CopyN(io.Discard, r.r, offset-r.offset); err != nil {
		return fmt.Errorf("%w: it has %d bytes, not %d: %w", errChanged, r.offset+n, r.ino.node.Size, err)
	}
	return nil
}
