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
// the files, those that are this large.
const (
	HolesFrom = 64 << 10
	holeUnit  = 4 << 10

	searchSize = 64 << 10 // that are read at once: one call for it costs less than one for each unit
)

var (
	zeros   [holeUnit]byte
	buffers = sync.Pool{New: func() any { return new([searchSize]byte) }}
)

// FindData returns the runs of a file of size bytes that are not holes. It
// reads ascending ranges, none twice. next, if not nil, tells from an offset
// on where there may be data, and so spares reading what is before it.
func FindData(r io.ReaderAt, size int64, next func(off int64) int64) (data []tree.Extent, err error) {
	buf, ok := buffers.Get().(*[searchSize]byte)
	if !ok {
		buf = new([searchSize]byte)
	}
	defer buffers.Put(buf)
	for off := int64(0); off < size; {
		b := buf[:min(searchSize, size-off)]
		if n, err := r.ReadAt(b, off); n < len(b) {
			return nil, fmt.Errorf("search for holes: %w", err)
		}
		for end := off + int64(len(b)); off < end; {
			unit := b[len(b)-int(end-off):]
			unit = unit[:min(holeUnit, len(unit))]
			to := off + int64(len(unit))
			if !bytes.Equal(unit, zeros[:len(unit)]) {
				data = join(data, tree.Extent{Off: off, Len: to - off})
			} else if next != nil {
				to = max(to, next(off)&^(holeUnit-1))
			}
			off = to
		}
	}
	return data, nil
}

// join adds a run behind the others.
func join(data []tree.Extent, e tree.Extent) []tree.Extent {
	if last := len(data) - 1; last >= 0 && data[last].Off+data[last].Len == e.Off {
		data[last].Len += e.Len
		return data
	}
	return append(data, e)
}
