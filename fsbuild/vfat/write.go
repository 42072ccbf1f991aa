package vfat

import (
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/fsbuild/internal/contents"
	"cairn/fsbuild/tree"
)

// chunkSize is the size of the write buffer, in bytes.
const chunkSize = 1 << 20

// fatChunk is how much of a FAT is made at a time; FAT12's fits.
const fatChunk = 64 << 10

// Write emits the image. Offsets of successive WriteAt calls ascend strictly
// and never overlap; what is skipped reads as zeros, up to [Layout.Size]. All
// calls come from the calling goroutine, and there is no other.
//
// A content that is shorter or longer than its Size is an error that names the
// path, and so is one that cannot be read. An error of w is returned wrapped.
// After an error the image is incomplete.
func (l *Layout) Write(ctx context.Context, w io.WriterAt) (Summary, error) {
	e := &emitter{ctx: ctx, w: w, buf: make([]byte, 0, chunkSize)}
	for _, step := range []func(*emitter) error{l.writeBoot, l.writeFATs, l.writeDirectories, l.writeFiles} {
		if err := step(e); err != nil {
			return Summary{}, fmt.Errorf("write vfat: %w", err)
		}
	}
	if err := e.flush(); err != nil {
		return Summary{}, fmt.Errorf("write vfat: %w", err)
	}
	return l.Summary(), nil
}

func (l *Layout) writeBoot(e *emitter) error {
	at := []int64{0}
	if l.geo.typ == FAT32 {
		at = append(at, backupSector)
	}
	for _, sector := range at {
		b, err := e.zeros(sector*int64(l.geo.sector), bootSize)
		if err != nil {
			return err
		}
		l.putBoot(b)
		if l.geo.typ != FAT32 {
			continue
		}
		if b, err = e.zeros((sector+infoSector)*int64(l.geo.sector), bootSize); err != nil {
			return err
		}
		l.putInfo(b)
	}
	return nil
}

func (l *Layout) writeFATs(e *emitter) error {
	b := make([]byte, fatChunk)
	for i := range uint64(fats) {
		offset := int64((l.geo.reserved + i*l.geo.fat) * l.geo.sector)
		c := fatCursor{l: l}
		for c.index < firstCluster+l.used {
			clear(b)
			n := c.put(b)
			if err := e.write(offset, b[:n]); err != nil {
				return err
			}
			offset += int64(n)
		}
	}
	return nil
}

func (l *Layout) writeDirectories(e *emitter) error {
	for _, d := range l.dirs {
		offset := int64(l.geo.rootStart() * l.geo.sector)
		if d.start != 0 {
			offset = l.geo.offset(d.start)
		}
		b := make([]byte, d.bytes())
		l.putDirectory(b, d)
		if err := e.write(offset, b); err != nil {
			return err
		}
	}
	return nil
}

func (l *Layout) writeFiles(e *emitter) error {
	for _, f := range l.files {
		if err := e.copy(l.geo.offset(f.start), f.node); err != nil {
			return err
		}
	}
	return nil
}

// emitter collects bytes into large writes.
type emitter struct {
	ctx    context.Context //nolint:containedctx // it lives for one call
	w      io.WriterAt
	buf    []byte
	offset int64 // of buf
}

// seek makes offset the next one: the buffer grows by zeros or is flushed.
func (e *emitter) seek(offset int64) error {
	gap := offset - e.offset - int64(len(e.buf))
	if len(e.buf) > 0 && gap < int64(cap(e.buf)-len(e.buf))/4 {
		n := len(e.buf)
		e.buf = e.buf[:n+int(gap)]
		clear(e.buf[n:])
		return nil
	}
	if err := e.flush(); err != nil {
		return err
	}
	e.offset = offset
	return nil
}

// flush writes the buffer.
func (e *emitter) flush() error {
	if err := e.ctx.Err(); err != nil {
		return err
	}
	if len(e.buf) == 0 {
		return nil
	}
	n, err := e.w.WriteAt(e.buf, e.offset)
	if err == nil && n < len(e.buf) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("%d bytes at %d: %w", len(e.buf), e.offset, err)
	}
	e.offset += int64(n)
	e.buf = e.buf[:0]
	return nil
}

// room flushes a full buffer and returns what is free of it.
func (e *emitter) room() ([]byte, error) {
	if len(e.buf) == cap(e.buf) {
		if err := e.flush(); err != nil {
			return nil, err
		}
	}
	return e.buf[len(e.buf):cap(e.buf)], nil
}

func (e *emitter) write(offset int64, b []byte) error {
	if err := e.seek(offset); err != nil {
		return err
	}
	for len(b) > 0 {
		free, err := e.room()
		if err != nil {
			return err
		}
		n := copy(free, b)
		e.buf, b = e.buf[:len(e.buf)+n], b[n:]
	}
	return nil
}

// zeros returns the next n bytes, to be filled before the next call.
func (e *emitter) zeros(offset int64, n int) ([]byte, error) {
	if err := e.seek(offset); err != nil {
		return nil, err
	}
	if cap(e.buf)-len(e.buf) < n {
		if err := e.flush(); err != nil {
			return nil, err
		}
	}
	e.buf = e.buf[:len(e.buf)+n]
	b := e.buf[len(e.buf)-n:]
	clear(b)
	return b, nil
}

// copy writes the content of a file.
func (e *emitter) copy(offset int64, n *tree.Node) error {
	if err := e.seek(offset); err != nil {
		return err
	}
	r, err := contents.Open(n)
	if err != nil {
		return fmt.Errorf("%q: %w", n.Path, err)
	}
	defer r.Close()
	for {
		free, err := e.room()
		if err != nil {
			return err
		}
		k, err := r.Read(free)
		e.buf = e.buf[:len(e.buf)+k]
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%q: %w", n.Path, err)
		}
	}
}
