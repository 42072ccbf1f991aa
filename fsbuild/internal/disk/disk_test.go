package disk

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/tree"
)

func TestReadAt(t *testing.T) {
	disk := []byte("0123456789")
	for name, tc := range map[string]struct {
		off  int64
		n    int
		want string
		err  error
	}{
		"all":              {0, 10, "0123456789", nil},
		"a middle":         {3, 4, "3456", nil},
		"nothing":          {5, 0, "", nil},
		"nothing at end":   {10, 0, "", io.EOF},
		"over the end":     {8, 5, "89", io.EOF},
		"behind the end":   {11, 5, "", io.EOF},
		"far behind":       {1<<63 - 1, 5, "", io.EOF},
		"before the start": {-1, 5, "", ErrOffset},
	} {
		t.Run(name, func(t *testing.T) {
			p := make([]byte, tc.n)
			n, err := ReadAt(p, tc.off, 10, func(p []byte, off int64) (int, error) {
				return copy(p[:min(3, len(p))], disk[off:]), nil
			})
			if string(p[:n]) != tc.want || !errors.Is(err, tc.err) {
				t.Errorf("read %q, %v; want %q, %v", p[:n], err, tc.want, tc.err)
			}
		})
	}
}

func TestData(t *testing.T) {
	bad := errors.New("bad")
	for name, tc := range map[string]struct {
		disk string
		want []tree.Extent
		err  error
	}{
		"empty":     {"", nil, nil},
		"hole":      {"....", nil, nil},
		"data":      {"####", []tree.Extent{{Off: 0, Len: 4}}, nil},
		"runs":      {"##..#..###", []tree.Extent{{Off: 0, Len: 2}, {Off: 4, Len: 1}, {Off: 7, Len: 3}}, nil},
		"then fail": {"#..##.!", []tree.Extent{{Off: 0, Len: 1}, {Off: 3, Len: 2}}, bad},
	} {
		t.Run(name, func(t *testing.T) {
			var got []tree.Extent
			var last error
			for e, err := range Data(int64(len(tc.disk)), func(off int64) (int64, bool, error) {
				if tc.disk[off] == '!' {
					return 0, false, bad
				}
				return 1, tc.disk[off] == '#', nil
			}) {
				if err == nil {
					got = append(got, e)
				}
				last = err
			}
			if diff := cmp.Diff(tc.want, got); diff != "" || !errors.Is(last, tc.err) {
				t.Errorf("error %v, runs (-want +got):\n%s", last, diff)
			}
		})
	}
	for _, err := range Data(4, func(off int64) (int64, bool, error) { return 1, off%2 == 0, nil }) {
		if err != nil {
			t.Error(err)
		}
		break
	}
}

func TestFull(t *testing.T) {
	r := bytes.NewReader([]byte("0123"))
	p := make([]byte, 2)
	if err := Full(r, 4, p, 2); err != nil || string(p) != "23" {
		t.Errorf("read %q, %v", p, err)
	}
	for _, off := range []int64{3, 5, -1, 1<<63 - 1} {
		if err := Full(r, 4, p, off); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("at %d: error = %v", off, err)
		}
	}
	if err := Full(r, 9, p, 3); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("file that shrank: error = %v", err)
	}
}

func TestCache(t *testing.T) {
	c := NewCache(2)
	loads := ""
	get := func(key int64) {
		b, err := c.Get(key, func() ([]byte, error) {
			loads += string(rune('a' + key))
			return []byte{byte(key)}, nil
		})
		if err != nil || b[0] != byte(key) {
			t.Errorf("block %d: %v, %v", key, b, err)
		}
	}
	for _, key := range []int64{0, 1, 0, 2, 0, 1} {
		get(key)
	}
	if loads != "abcb" {
		t.Errorf("loaded %q, want %q", loads, "abcb")
	}
	bad := errors.New("bad")
	if _, err := c.Get(9, func() ([]byte, error) { return nil, bad }); !errors.Is(err, bad) {
		t.Errorf("error = %v", err)
	}
}

func TestOrder(t *testing.T) {
	o := Order{Size: 100}
	for _, tc := range []struct {
		n   int
		off int64
		ok  bool
	}{
		{10, 0, true},
		{5, 10, true},
		{1, 14, false},
		{0, 15, true},
		{1, -1, false},
		{86, 15, false},
		{1, 1<<63 - 1, false},
		{85, 15, true},
		{0, 100, true},
		{1, 100, false},
	} {
		if err := o.Check(tc.n, tc.off); (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrOrder) {
			t.Errorf("%d bytes at %d: error = %v", tc.n, tc.off, err)
		}
	}
}

func TestPieces(t *testing.T) {
	const limit = 4 * holeSize
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		off := rnd.Int64N(3 * limit)
		p := make([]byte, rnd.IntN(5*limit))
		for range rnd.IntN(8) {
			if len(p) > 0 {
				p[rnd.IntN(len(p))] = 1
			}
		}
		got := make([]byte, len(p))
		end := int64(0)
		err := Pieces(p, off, limit, func(b []byte, at int64) error {
			if at < end || at/limit != (at+int64(len(b))-1)/limit || bytes.Equal(b, make([]byte, len(b))) {
				t.Errorf("piece of %d bytes at %d behind %d", len(b), at, end)
			}
			end = at + int64(len(b))
			copy(got[at-off:], b)
			return nil
		})
		if err != nil || !bytes.Equal(got, p) {
			t.Fatalf("the pieces are not the whole (%v)", err)
		}
	}
	bad := errors.New("bad")
	if err := Pieces([]byte{1}, 0, limit, func([]byte, int64) error { return bad }); !errors.Is(err, bad) {
		t.Errorf("error = %v", err)
	}
}
