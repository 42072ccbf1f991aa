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

// TestDeflateWindow takes clusters through every window; that distances stay
// within it is tested where the streams are made.
func TestDeflateWindow(t *testing.T) {
	for window, reach := range map[int]int{0: 4 << 10, 256: 256, 32 << 10: 32 << 10} {
		g, err := newGeometry(1<<20, Options{Window: window})
		if err != nil {
			t.Fatal(err)
		}
		e, err := newEncoder(g)
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
		}
		if g.window != reach {
			t.Errorf("window %d reaches %d bytes, want %d", window, g.window, reach)
		}
	}
}
