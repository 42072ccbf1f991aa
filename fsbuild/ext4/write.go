package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"cairn/fsbuild/internal/contents"
)

const (
	chunkSize  = 1 << 20 // of a worker's buffer, whole blocks of any size
	maxWorkers = 9
)

// Write emits the image. Offsets of successive WriteAt calls ascend strictly
// and never overlap; what is skipped reads as zeros, up to [Layout.Size]. The
// calls come from several goroutines, one after the other. These have ended
// when Write returns. Each fills a buffer of its own, at most 9 MiB together,
// while others write; the bytes do not depend on their number.
//
// A content that is shorter or longer than its Size is an error that names the
// path, and so is one that cannot be read. An error of w is returned wrapped.
// After an error the image is incomplete.
func (l *Layout) Write(ctx context.Context, w io.WriterAt) (Summary, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	jobs := make(chan job)
	var failure error // only who has the turn sets it, and then gives it to nobody
	var wg sync.WaitGroup
	wg.Go(func() { l.feed(ctx, jobs) })
	for range min(runtime.GOMAXPROCS(0)+1, maxWorkers) { // one more than can run, since one waits for its turn
		wg.Go(func() {
			f := &filler{l: l, w: w, done: ctx.Done(), buf: make([]byte, 0, chunkSize+maxBlockSize)}
			for j := range jobs {
				err := f.run(j)
				if errors.Is(err, errStopped) || f.wait() != nil {
					return
				}
				if err != nil {
					failure = err
					cancel()
					return
				}
				close(j.next)
			}
		})
	}
	wg.Wait()
	if failure == nil {
		failure = ctx.Err()
	}
	if failure != nil {
		return Summary{}, fmt.Errorf("write ext4: %w", failure)
	}
	return l.Summary(), nil
}

// job is a range of the layout's segments that ends with a file, and the
// group metadata between them. Jobs are made at the same time and written in
// order: turn is closed when the one before is written, next when this one is.
type job struct {
	segs, meta []segment
	turn       <-chan struct{}
	next       chan<- struct{}
}

// feed cuts the layout into jobs of about one chunk.
func (l *Layout) feed(ctx context.Context, jobs chan<- job) {
	defer close(jobs)
	turn := make(chan struct{})
	close(turn)
	segs, meta, chunkBlocks := l.segs, l.meta, uint32(chunkSize/l.blockSize)
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
		next := make(chan struct{})
		select {
		case jobs <- job{segs: segs[:n], meta: meta[:m], turn: turn, next: next}:
		case <-ctx.Done():
			return
		}
		segs, meta, turn = segs[n:], meta[m:], next
	}
}

// sameOwner tells whether two segments belong to one file and its extent tree,
// which one worker makes.
func sameOwner(a, b segment) bool {
	return a.owner == b.owner && (a.kind == b.kind || b.kind == segIndex) && a.kind != segXattr
}

// filler makes the blocks of a job into chunks, each a run of adjacent blocks,
// and writes them.
type filler struct {
	l      *Layout
	w      io.WriterAt
	done   <-chan struct{} // closed when writing is to stop
	turn   <-chan struct{} // of the job
	buf    []byte          // the current chunk, with room to look one byte beyond a file
	offset int64           // of buf

	file     fileReader
	dir      *dirWriter
	index    [][]byte  // blocks of the current extent tree
	blockMap *blockMap // the current one
}

// run merges the job's segments and metadata by position.
func (f *filler) run(j job) error {
	f.turn, f.buf = j.turn, f.buf[:0]
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
	return f.flush()
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
	if n := len(f.buf); n > 0 && n < chunkSize && offset == f.offset+int64(n) {
		return nil
	}
	err := f.flush()
	f.offset = offset
	return err
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

// flush writes the current chunk if there is anything in it.
func (f *filler) flush() error {
	b := f.buf
	f.buf = b[:0]
	if len(b) == 0 {
		return nil
	}
	if err := f.wait(); err != nil {
		return err
	}
	n, err := f.w.WriteAt(b, f.offset)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("%d bytes at %d: %w", len(b), f.offset, err)
	}
	return nil
}

// errStopped is the cause when another worker failed, or the caller gave up.
var errStopped = errors.New("stopped")

// wait waits for the job's turn.
func (f *filler) wait() error {
	select {
	case <-f.turn:
		return nil
	case <-f.done:
		return errStopped
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
		return fmt.Errorf("%w: it has %d bytes, not %d", contents.ErrChanged, r.offset, r.ino.node.Size)
	case n > want:
		return fmt.Errorf("%w: it has more than %d bytes", contents.ErrChanged, r.ino.node.Size)
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
		return fmt.Errorf("%w: it has %d bytes, not %d: %w", contents.ErrChanged, r.offset+n, r.ino.node.Size, err)
	}
	return nil
}
