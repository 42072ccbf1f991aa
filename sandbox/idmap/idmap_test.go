package idmap_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/sandbox/idmap"
)

func TestRanges(t *testing.T) {
	text := "root:1:2\nbuilder:100000:65536\n# builder:1:2\n1001:300000:10\nbuilder:x:1\nbuilder:4294967290:100\nbuilder:5:0\n:1:1\n\nbuilder : 7:1\nbuilder:200000:3"
	got := idmap.Ranges([]byte(text), "builder", "1001")
	want := []idmap.Range{{First: 100000, Count: 65536}, {First: 300000, Count: 10}, {First: 200000, Count: 3}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("Ranges (-want +got):\n%s", d)
	}
}

func TestForUser(t *testing.T) {
	type ranges = []idmap.Range
	tests := []struct {
		name string
		in   ranges
		want []idmap.Extent
	}{
		{"one range", ranges{{100000, 65536}}, []idmap.Extent{{0, 1001, 1}, {1, 100000, 65536}}},
		{"more than needed", ranges{{100000, 1 << 20}}, []idmap.Extent{{0, 1001, 1}, {1, 100000, 65536}}},
		{"two ranges", ranges{{100000, 65530}, {300000, 65536}}, []idmap.Extent{{0, 1001, 1}, {1, 100000, 65530}, {65531, 300000, 6}}},
		{"overlap counts once", ranges{{100000, 40000}, {120000, 65536}}, []idmap.Extent{{0, 1001, 1}, {1, 100000, 40000}, {40001, 140000, 25536}}},
		{"own id inside", ranges{{1000, 65537}}, []idmap.Extent{{0, 1001, 1}, {1, 1000, 1}, {2, 1002, 65535}}},
		{"one too few", ranges{{100000, 65535}}, nil},
		{"none", nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := idmap.ForUser(1001, 1001, tt.in, tt.in)
			if tt.want == nil {
				if !errors.Is(err, idmap.ErrNoRange) {
					t.Fatalf("ForUser = %v, %v, want ErrNoRange", m, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(idmap.Map{UID: tt.want, GID: tt.want}, m); d != "" {
				t.Errorf("ForUser (-want +got):\n%s", d)
			}
		})
	}
}

func TestForRoot(t *testing.T) {
	tests := []struct {
		name, own string
		want      idmap.Extent
	}{
		{"host", "         0          0 4294967295\n", idmap.Extent{Inside: 1, Outside: idmap.RootBase, Count: 65536}},
		{"container with many ids", "0 100000 1000000", idmap.Extent{Inside: 1, Outside: 1000000 - 65536, Count: 65536}},
		{"container with 65536 ids", "0 100000 65536", idmap.Extent{Inside: 1, Outside: 1, Count: 65535}},
		{"caller and range", "0 1001 1\n1 100000 65536", idmap.Extent{Inside: 1, Outside: 1, Count: 65536}},
		{"too few", "0 0 65535", idmap.Extent{}},
		{"one", "0 1001 1", idmap.Extent{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := idmap.ForRoot([]byte(tt.own), []byte(tt.own))
			if tt.want.Count == 0 {
				if !errors.Is(err, idmap.ErrNoRange) {
					t.Fatalf("ForRoot = %v, %v, want ErrNoRange", m, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff([]idmap.Extent{{Inside: 0, Outside: 0, Count: 1}, tt.want}, m.UID); d != "" {
				t.Errorf("ForRoot (-want +got):\n%s", d)
			}
		})
	}
}

func TestParseExtentsRefusesNoise(t *testing.T) {
	for _, in := range []string{"0 0", "a b c", "0 0 4294967296", "-1 0 1"} {
		if got, err := idmap.ParseExtents([]byte(in)); err == nil {
			t.Errorf("ParseExtents(%q) = %v, want an error", in, got)
		}
	}
}

func TestImageID(t *testing.T) {
	id := idmap.ImageID(1)
	for outer, want := range map[uint32]uint32{1: 0, 65536: 65535} {
		if got, err := id(outer); err != nil || got != want {
			t.Errorf("ImageID(%d) = %d, %v, want %d", outer, got, err, want)
		}
	}
	for _, outer := range []uint32{0, 65537, 1<<32 - 1} {
		if got, err := id(outer); err == nil {
			t.Errorf("ImageID(%d) = %d, want an error", outer, got)
		}
	}
}

// FuzzInner checks the invariant that the kernel demands: an extent of the
// inner map lies in one extent of the outer, and the two agree on every id.
func FuzzInner(f *testing.F) {
	f.Add(uint32(100000), uint32(65530), uint32(300000), uint32(65536), uint32(1))
	f.Add(uint32(1000), uint32(65537), uint32(0), uint32(0), uint32(2))
	f.Fuzz(func(t *testing.T, a, an, b, bn, shift uint32) {
		r := []idmap.Range{{First: a, Count: an}, {First: b, Count: bn}}
		if uint64(a)+uint64(an) > 1<<32-2 || uint64(b)+uint64(bn) > 1<<32-2 {
			return
		}
		m, err := idmap.ForUser(1001, 1001, r, r)
		if err != nil {
			return
		}
		for _, e := range m.Inner(shift % 8).UID {
			first, ok1 := idmap.ToOutside(m.UID, e.Outside)
			last, ok2 := idmap.ToOutside(m.UID, e.Outside+e.Count-1)
			if !ok1 || !ok2 || last-first != e.Count-1 {
				t.Errorf("extent %+v is not inside one of %v", e, m.UID)
			}
			if e.Inside+e.Count > idmap.Size || e.Outside != e.Inside+shift%8 {
				t.Errorf("extent %+v is not a shift by %d", e, shift%8)
			}
		}
	})
}

func ExampleMap_Inner() {
	text := []byte("builder:100000:65530\nbuilder:300000:65536\n")
	r := idmap.Ranges(text, "builder", "1001")
	outer, _ := idmap.ForUser(1001, 1001, r, r)
	fmt.Print(idmap.Text(outer.UID), "--\n", idmap.Text(outer.Inner(1).UID))
	fmt.Println(outer.Base())
	// Output:
	// 0 1001 1
	// 1 100000 65530
	// 65531 300000 6
	// --
	// 0 1 65530
	// 65530 65531 6
	// 0:100000:65530,65530:300000:6
}
