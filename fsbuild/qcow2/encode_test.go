package qcow2

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// clusters are of every kind that an encoder meets.
func clusters(rnd *rand.Rand, size, n int) (all [][]byte) {
	for i := range n {
		b := make([]byte, size)
		period := 1 + rnd.IntN(size) // repeats at distances up to a cluster
		for j := range b {
			switch {
			case i%3 == 0:
				b[j] = byte(rnd.Uint32())
			case j >= period && rnd.IntN(50) > 0:
				b[j] = b[j-period]
			default:
				b[j] = byte(rnd.Uint32()) & 0x3f
			}
		}
		all = append(all, b)
	}
	return all
}

// TestEncodersForget compresses clusters with a used encoder and a fresh one.
func TestEncodersForget(t *testing.T) {
	for _, method := range []Compression{Deflate, Zstd} {
		g, err := newGeometry(1<<20, Options{Compression: method})
		if err != nil {
			t.Fatal(err)
		}
		used, err := newEncoder(g)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range clusters(rand.New(rand.NewPCG(1, uint64(method))), DefaultClusterSize, 60) {
			fresh, err := newEncoder(g)
			if err != nil {
				t.Fatal(err)
			}
			a, errA := used.encode(nil, c)
			b, errB := fresh.encode(nil, c)
			if err := errors.Join(errA, errB); err != nil || !bytes.Equal(a, b) {
				t.Errorf("method %d, cluster %d: a used encoder gives other bytes (%v)", method, i, err)
			}
		}
	}
}

// TestDeflateDistances inflates in small pieces through a window that holds
// only 4 KiB, as a reader may.
func TestDeflateDistances(t *testing.T) {
	e, err := newDeflater()
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range clusters(rand.New(rand.NewPCG(2, 2)), DefaultClusterSize, 60) {
		packed, err := e.encode(nil, c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(flate.NewReader(bytes.NewReader(packed)))
		if err != nil || !bytes.Equal(got, c) {
			t.Errorf("cluster %d does not inflate to itself: %v", i, err)
		}
		far, err := farthest(packed)
		if err != nil || far > deflateWindow {
			t.Errorf("cluster %d: distance %d, want at most %d (%v)", i, far, deflateWindow, err)
		}
	}
}
