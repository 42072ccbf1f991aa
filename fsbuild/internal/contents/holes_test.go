package contents_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/internal/contents"
	"cairn/fsbuild/tree"
)

// counter counts the bytes that are read, in ascending ranges.
type counter struct {
	t         *testing.T
	r         io.ReaderAt
	at, bytes int64
}

func (c *counter) ReadAt(b []byte, off int64) (int, error) {
	if off < c.at {
		c.t.Errorf("read at %d behind %d", off, c.at)
	}
	c.at = off + int64(len(b))
	c.bytes += int64(len(b))
	return c.r.ReadAt(b, off)
}

// TestFindData: a unit of 4 KiB is data when any of its bytes is not zero.
func TestFindData(t *testing.T) {
	const unit = 4 << 10
	rng := rand.New(rand.NewPCG(3, 3))
	for range 200 {
		b := make([]byte, rng.IntN(90*unit))
		for range rng.IntN(40) {
			if len(b) > 0 {
				b[rng.IntN(len(b))] = 1
			}
		}
		var want []tree.Extent
		for off := 0; off < len(b); off += unit {
			u := b[off:min(off+unit, len(b))]
			switch last := len(want) - 1; {
			case bytes.IndexByte(u, 1) < 0:
			case last >= 0 && want[last].Off+want[last].Len == int64(off):
				want[last].Len += int64(len(u))
			default:
				want = append(want, tree.Extent{Off: int64(off), Len: int64(len(u))})
			}
		}
		next := func(off int64) int64 { // as lseek(2) does, in pages
			if i := bytes.IndexByte(b[off:], 1); i >= 0 {
				return max(off, (off+int64(i))&^4095)
			}
			return 1 << 62
		}
		for _, next := range []func(int64) int64{nil, func(off int64) int64 { return off }, next} {
			got, err := contents.FindData(&counter{t: t, r: bytes.NewReader(b)}, int64(len(b)), next)
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Fatalf("data of %d bytes, %v (-want +got):\n%s", len(b), err, diff)
			}
		}
	}
}

// TestFindDataReads: a hole that is known is not read as a whole.
func TestFindDataReads(t *testing.T) {
	const size = 8 << 20
	r := &counter{t: t, r: bytes.NewReader(make([]byte, size))}
	if _, err := contents.FindData(r, size, func(int64) int64 { return size }); err != nil || r.bytes > size/10 {
		t.Errorf("%d of %d bytes are read, %v", r.bytes, size, err)
	}
	fault := errors.New("fault")
	if _, err := contents.FindData(broken{fault}, size, nil); !errors.Is(err, fault) {
		t.Errorf("error is %v", err)
	}
}

type broken struct{ err error }

func (b broken) ReadAt([]byte, int64) (int, error) { return 0, b.err }
