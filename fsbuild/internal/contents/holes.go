package contents

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"cairn/fsbuild/tree"
)

// Files from HolesFrom bytes on are searched for holes: units of holeUnit
// bytes, the last one of a file shorter, that are all zero. The rule looks at
// bytes only, so it gives the same answer on every file system and in every
// archive. Programs and libraries have such units between their segments: in a
// Debian system all but a few of the units that are zero lie in one tenth of
// the files, those that are this large. Of most units only the first probe bytes
// are read.
const (
	HolesFrom = 64 << 10
	holeUnit  = 4 << 10
	probe     = 64
)

var (
	zeros   [holeUnit]byte
	buffers = sync.Pool{New: func() any { return new([holeUnit]byte) }}
)

// FindData returns the runs of a file of size bytes that are not holes. It
// reads ascending ranges, none twice. next, if not nil, tells from an offset
// on where there may be data, and so spares reading what is before it.
func FindData(r io.ReaderAt, size int64, next func(off int64) int64) (data []tree.Extent, err error) {
	buf, ok := buffers.Get().(*[holeUnit]byte)
	if !ok {
		buf = new([holeUnit]byte)
	}
	defer buffers.Put(buf)
	for off := int64(0); off < size; {
		n := min(holeUnit, size-off)
		hole, err := isZero(r, buf[:min(probe, n)], off)
		if hole && err == nil && next != nil {
			if to := next(off) &^ (holeUnit - 1); to > off {
				off = to
				continue
			}
		}
		if hole && err == nil && n > probe {
			hole, err = isZero(r, buf[probe:n], off+probe)
		}
		if err != nil {
			return nil, fmt.Errorf("search for holes: %w", err)
		}
		if !hole {
			data = join(data, tree.Extent{Off: off, Len: n})
		}
		off += n
	}
	return data, nil
}

// isZero reads b, at off, and tells whether it is all zero.
func isZero(r io.ReaderAt, b []byte, off int64) (bool, error) {
	if n, err := r.ReadAt(b, off); n < len(b) {
		return false, err
	}
	return bytes.Equal(b, zeros[:len(b)]), nil
}

// join adds a run behind the others.
func join(data []tree.Extent, e tree.Extent) []tree.Extent {
	if last := len(data) - 1; last >= 0 && data[last].Off+data[last].Len == e.Off {
		data[last].Len += e.Len
		return data
	}
	return append(data, e)
}
