package vhd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"cairn/fsbuild/internal/disk"
)

// Writer makes one image. Its methods must not be called concurrently. It
// starts no goroutine and keeps only the table, at most 4 MiB, in memory.
type Writer struct {
	out    io.WriterAt
	opts   Options
	size   int64 // of the virtual disk
	order  disk.Order
	table  []uint32 // dynamic: first sector of each block's bits, or unused
	next   int64    // dynamic: where the next block goes
	closed bool
}

// NewWriter starts an image of a disk of size bytes, a positive multiple of 512
// up to MaxSize, in w, which must be empty (or read as zeros).
func NewWriter(w io.WriterAt, size int64, o Options) (*Writer, error) {
	size, err := o.plan(size)
	if err != nil {
		return nil, fmt.Errorf("write vhd: %w", err)
	}
	v := &Writer{out: w, opts: o, size: size, order: disk.Order{Size: size}}
	if o.Kind == Dynamic {
		v.table = make([]uint32, (size+blockSize-1)/blockSize)
		for i := range v.table {
			v.table[i] = unused
		}
		v.next = tableOffset + v.tableSize()
	}
	return v, nil
}

// tableSize is the table's, in whole sectors.
func (w *Writer) tableSize() int64 {
	return (int64(len(w.table))*4 + sectorSize - 1) / sectorSize * sectorSize
}

// VirtualSize returns the size of the disk in bytes, which Geometry may have
// rounded up.
func (w *Writer) VirtualSize() int64 { return w.size }

// WriteAt implements io.WriterAt for ascending, non-overlapping ranges. It
// keeps no reference to p. Zeros are not written.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	err := ErrClosed
	if !w.closed {
		if err = w.order.Check(len(p), off); err == nil {
			err = disk.Pieces(p, off, blockSize, w.piece)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("write vhd: %w", err)
	}
	return len(p), nil
}

// piece writes what lies within one block and is not all zeros.
func (w *Writer) piece(p []byte, off int64) error {
	if w.opts.Kind == Fixed {
		_, err := w.out.WriteAt(p, off)
		return err
	}
	start, err := w.block(off / blockSize)
	if err != nil {
		return err
	}
	_, err = w.out.WriteAt(p, start+off%blockSize)
	return err
}

// block returns where a block's data is. A new one gets all its bits set, as
// QEMU and Hyper-V do.
func (w *Writer) block(i int64) (int64, error) {
	if w.table[i] == unused {
		w.table[i] = uint32(w.next / sectorSize)
		if err := disk.Fill(w.out, 0xff, w.next, bitmapSize); err != nil {
			return 0, err
		}
		w.next += bitmapSize + blockSize
	}
	return int64(w.table[i])*sectorSize + bitmapSize, nil
}

// Close writes what is left. The image is complete, if not yet synced, when
// Close returns nil.
func (w *Writer) Close() error {
	if w.closed {
		return fmt.Errorf("write vhd: %w", ErrClosed)
	}
	w.closed = true
	if err := w.finish(); err != nil {
		return fmt.Errorf("write vhd: %w", err)
	}
	return nil
}

func (w *Writer) finish() error {
	footer, err := w.opts.footer(w.size)
	if err != nil {
		return err
	}
	if w.opts.Kind == Dynamic {
		table := bytes.Repeat([]byte{0xff}, int(w.tableSize()))
		for i, sector := range w.table {
			binary.BigEndian.PutUint32(table[4*i:], sector)
		}
		head := append(bytes.Clone(footer), header(int64(len(w.table)))...)
		if _, err = w.out.WriteAt(append(head, table...), 0); err != nil {
			return err
		}
	}
	_, err = w.out.WriteAt(footer, w.Size()-footerSize)
	return err
}

// Abort leaves the output as it is, which is no valid image. After Close it
// does nothing.
func (w *Writer) Abort() { w.closed = true }

// Size returns the size of the file in bytes, after Close.
func (w *Writer) Size() int64 {
	if w.opts.Kind == Fixed {
		return w.size + footerSize
	}
	return w.next + footerSize
}
