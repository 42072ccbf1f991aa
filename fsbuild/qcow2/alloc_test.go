package qcow2

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// TestAllocatorCounts takes clusters at random, as a committer does, and counts
// them again from what was handed out.
func TestAllocatorCounts(t *testing.T) {
	const cs = 512
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		a := newAllocator(cs)
		want := map[int64]uint16{}
		take := func(offset, size int64) {
			for c := offset / cs; c <= (offset+size-1)/cs; c++ {
				want[c]++
			}
		}
		run := 1 + rnd.Int64N(1000)
		take(a.alloc(run)*cs, run*cs)
		var blocks []block
		end := int64(0) // of the packed data
		for range rnd.IntN(30000) {
			blocks = append(blocks, a.settle()...)
			if rnd.IntN(3) == 0 {
				take(a.alloc(1)*cs, cs)
				continue
			}
			size := 1 + rnd.Int64N(cs-1)
			offset := a.pack(size)
			if offset < end {
				t.Fatalf("seed %d: packed at %d, before %d", seed, offset, end)
			}
			take(offset, size)
			end = offset + size
		}
		blocks = append(blocks, a.settle()...)
		table, at, last := a.finish()
		take(at, int64(len(table)))
		checkRefcounts(t, seed, a, want, table, append(blocks, last...))
	}
}

// checkRefcounts reads table and blocks and compares them with want.
func checkRefcounts(t *testing.T, seed uint64, a *allocator, want map[int64]uint16, table []byte, blocks []block) {
	t.Helper()
	byOffset := map[int64][]byte{}
	for _, b := range blocks {
		want[b.offset/a.clusterSize]++
		byOffset[b.offset] = b.data
	}
	for c := range int64(len(table)) / 8 * a.perGroup {
		var got uint16
		if at := int64(binary.BigEndian.Uint64(table[c/a.perGroup*8:])); at != 0 {
			got = binary.BigEndian.Uint16(byOffset[at][c%a.perGroup*2:])
		}
		if got != want[c] {
			t.Fatalf("seed %d: cluster %d has refcount %d, want %d", seed, c, got, want[c])
		}
		delete(want, c)
	}
	if len(want) > 0 {
		t.Fatalf("seed %d: %d clusters are beyond the refcount table", seed, len(want))
	}
}
