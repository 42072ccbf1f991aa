package fsbuild

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// The disk streams from one producer to all sinks, each in a goroutine of its
// own, in chunks that are copied once and shared.
const (
	chunkSize  = 256 << 10
	chunkCount = 32
)

// chunk is a range of the disk. The sinks that still read it are counted.
type chunk struct {
	offset int64
	data   []byte
	users  atomic.Int32
}

// sink consumes the disk's chunks, ascending and not overlapping. What lies
// between them is zero.
type sink interface {
	write(ctx context.Context, c *chunk) error
	// finish is called once behind the last chunk.
	finish(ctx context.Context) error
	// abort frees what the sink holds; it is called always, as the last.
	abort()
}

// stream is the producer's side. It is an io.WriterAt that joins the pieces it
// gets into chunks.
type stream struct {
	ctx      context.Context //nolint:containedctx // io.WriterAt has no room for it; the stream lives within one call
	current  *chunk
	free     chan *chunk
	sinks    []chan *chunk
	progress func(done int64)
}

// write streams the disk into outs.
func (d disk) write(ctx context.Context, fs fileSystem, outs []Output, progress func(done, total int64)) ([]Result, error) {
	results := make([]Result, len(outs))
	sinks, err := d.sinks(outs, results)
	defer func() {
		for _, s := range sinks {
			s.abort()
		}
	}()
	if err != nil {
		return nil, err
	}
	report := func(done int64) {
		if progress != nil {
			progress(done, d.size)
		}
	}
	if err := d.pump(ctx, fs, sinks, report); err != nil {
		return nil, err
	}
	for i := range results {
		if err := results[i].measure(outs[i]); err != nil {
			return nil, err
		}
	}
	report(d.size)
	return results, nil
}

// pump runs the producer and all sinks to their end.
func (d disk) pump(parent context.Context, fs fileSystem, sinks []sink, report func(int64)) error {
	g, ctx := errgroup.WithContext(parent)
	st := &stream{ctx: ctx, free: make(chan *chunk, chunkCount), progress: report}
	for range chunkCount {
		st.free <- &chunk{}
	}
	for _, s := range sinks {
		in := make(chan *chunk, chunkCount)
		st.sinks = append(st.sinks, in)
		g.Go(func() error { return st.drain(ctx, s, in) })
	}
	g.Go(func() error { return st.produce(d, fs) })
	err := g.Wait()
	if cause := context.Cause(parent); cause != nil && err != nil {
		return cause
	}
	return err
}

// produce writes the disk into the stream. Only a complete disk closes the
// sinks' channels.
func (st *stream) produce(d disk, fs fileSystem) error {
	for _, s := range d.steps(fs) {
		if err := s.write(st.ctx, st); err != nil {
			return err
		}
	}
	if err := st.send(); err != nil {
		return err
	}
	for _, in := range st.sinks {
		close(in)
	}
	return nil
}

// step writes what begins at an offset of the disk.
type step struct {
	offset int64
	write  func(ctx context.Context, w io.WriterAt) error
}

// steps returns all that is to be written, ascending. A disk without the root
// has no fs.
func (d disk) steps(fs fileSystem) []step {
	var steps []step
	if fs != nil {
		steps = append(steps, step{d.fsOffset, func(ctx context.Context, w io.WriterAt) error {
			_, err := fs.Write(ctx, shifted{w, d.fsOffset})
			return err
		}})
	}
	for _, r := range d.regions {
		steps = append(steps, step{r.Offset, func(_ context.Context, w io.WriterAt) error {
			_, err := w.WriteAt(r.Data, r.Offset)
			return err
		}})
	}
	for _, p := range d.contents {
		steps = append(steps, step{p.offset, func(ctx context.Context, w io.WriterAt) error {
			if err := p.content.WriteTo(ctx, window{w, p.offset, p.content.Size()}); err != nil {
				return p.fail(err)
			}
			return nil
		}})
	}
	slices.SortStableFunc(steps, func(a, b step) int { return cmp.Compare(a.offset, b.offset) })
	return steps
}

// shifted is a WriterAt that begins at base of another.
type shifted struct {
	w    io.WriterAt
	base int64
}

func (s shifted) WriteAt(p []byte, off int64) (int, error) { return s.w.WriteAt(p, s.base+off) }

// WriteAt implements io.WriterAt for ascending, non-overlapping ranges.
func (st *stream) WriteAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		if err := st.open(off + int64(n)); err != nil {
			return n, err
		}
		c := st.current
		m := min(len(p)-n, chunkSize-len(c.data))
		c.data = append(c.data, p[n:n+m]...)
		n += m
	}
	return len(p), nil
}

// open makes a chunk current that ends at off and has room.
func (st *stream) open(off int64) error {
	if c := st.current; c != nil {
		end := c.offset + int64(len(c.data))
		if off < end {
			return fmt.Errorf("write disk: offset %d is before %d: %w", off, end, errOrder)
		}
		if off == end && len(c.data) < chunkSize {
			return nil
		}
		if err := st.send(); err != nil {
			return err
		}
	}
	select {
	case c := <-st.free:
		if c.data == nil {
			c.data = make([]byte, 0, chunkSize)
		}
		c.offset, c.data = off, c.data[:0]
		st.current = c
		return nil
	case <-st.ctx.Done():
		return st.ctx.Err()
	}
}

// send gives the current chunk to all sinks.
func (st *stream) send() error {
	c := st.current
	if c == nil {
		return nil
	}
	st.current = nil
	c.users.Store(int32(len(st.sinks)))
	end := c.offset + int64(len(c.data)) // c is not ours any more when sent
	for _, in := range st.sinks {
		select {
		case in <- c:
		case <-st.ctx.Done():
			return st.ctx.Err()
		}
	}
	st.progress(end)
	return nil
}

// drain feeds one sink.
func (st *stream) drain(ctx context.Context, s sink, in <-chan *chunk) error {
	for {
		select {
		case c, ok := <-in:
			if !ok {
				return s.finish(ctx)
			}
			if err := s.write(ctx, c); err != nil {
				return err
			}
			if c.users.Add(-1) == 0 {
				st.free <- c
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
