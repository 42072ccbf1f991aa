package deflate

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

func newEncoder(t testing.TB, window int) *Encoder {
	t.Helper()
	e, err := NewEncoder(window)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// inputs are blocks of every kind that an encoder meets.
func inputs() (all [][]byte) {
	all = append(all, nil, []byte{}, []byte("a"), []byte("ab"), []byte("abc"), []byte("aaaa"), []byte("abcdabcdabcdabcdX"))
	rnd := rand.New(rand.NewPCG(4, 4))
	for i := range 90 {
		n := 1 + rnd.IntN(1<<rnd.IntN(18))
		if i%10 == 0 {
			n = 64 << 10
		}
		b := make([]byte, n)
		period, noise, mask := 1+rnd.IntN(n), 2+rnd.IntN(200), byte(1)<<rnd.IntN(8)-1
		for j := range b {
			switch {
			case i%9 == 1: // zeros
			case i%9 == 2:
				b[j] = byte(rnd.Uint32())
			case i%9 == 3: // another kind of data now and then
				b[j] = byte(rnd.Uint32()) & (byte(1)<<(1+j>>13&7) - 1)
			case j >= period && rnd.IntN(noise) > 0:
				b[j] = b[j-period]
			default:
				b[j] = byte(rnd.Uint32()) & mask
			}
		}
		all = append(all, b)
	}
	all = append(all, skewed(200_000), bytes.Repeat([]byte{7}, 300_000))
	return all
}

// skewed has symbols so rare that their codes would be longer than is allowed.
func skewed(n int) []byte {
	rnd := rand.New(rand.NewPCG(5, 5))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1)
		for rnd.IntN(3) == 0 {
			b[i]++
		}
		b[i] *= 17
	}
	return b
}

func inflate(b []byte) ([]byte, error) {
	r := bytes.NewReader(b)
	out, err := io.ReadAll(flate.NewReader(r))
	if err == nil && r.Len() > 0 {
		return nil, fmt.Errorf("%d bytes are left", r.Len())
	}
	return out, err
}

func TestRoundTrip(t *testing.T) {
	for _, window := range []int{MinWindow, 4096, MaxWindow} {
		e := newEncoder(t, window)
		for i, src := range inputs() {
			packed := e.Encode([]byte("before"), src)
			if string(packed[:6]) != "before" {
				t.Fatalf("input %d: the bytes before are gone", i)
			}
			packed = packed[6:]
			if got, err := inflate(packed); err != nil || !bytes.Equal(got, src) {
				t.Fatalf("window %d, input %d of %d bytes: %d bytes inflated (%v)", window, i, len(src), len(got), err)
			}
			if far, err := farthest(packed); err != nil || far > window {
				t.Errorf("window %d, input %d: distance %d (%v)", window, i, far, err)
			}
			if most := len(src) + 16 + len(src)/10_000; len(packed) > most {
				t.Errorf("window %d, input %d of %d bytes: %d bytes", window, i, len(src), len(packed))
			}
		}
	}
}

// TestForgets encodes with a used encoder and a fresh one.
func TestForgets(t *testing.T) {
	used := newEncoder(t, 4096)
	for i, src := range inputs() {
		if i == 50 { // as after a gigabyte
			used.find.base = 1<<30 - 10
		}
		if !bytes.Equal(used.Encode(nil, src), newEncoder(t, 4096).Encode(nil, src)) {
			t.Errorf("input %d: a used encoder gives other bytes", i)
		}
	}
}

// TestGzipReads lets zlib's own decoder read the streams.
func TestGzipReads(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatalf("%v: install python3", err)
	}
	e := newEncoder(t, 4096)
	for i, src := range inputs() {
		if i%5 != 0 {
			continue
		}
		cmd := exec.Command(python, "-c", `
import sys, zlib
b, d = sys.stdin.buffer.read(), zlib.decompressobj(-12)
for i in range(0, len(b), 1000):
    sys.stdout.buffer.write(d.decompress(b[i:i+1000]))
assert d.eof and not d.unused_data
`)
		cmd.Stdin = bytes.NewReader(e.Encode(nil, src))
		got, err := cmd.Output()
		if err != nil || !bytes.Equal(got, src) {
			t.Errorf("input %d: zlib reads %d of %d bytes (%v)", i, len(got), len(src), err)
		}
	}
}

func TestWindows(t *testing.T) {
	for _, window := range []int{0, -4096, 128, 5000, 1 << 16} {
		if _, err := NewEncoder(window); !errors.Is(err, ErrWindow) {
			t.Errorf("window %d: error = %v", window, err)
		}
	}
}

// TestCodesAreComplete builds codes for counts that make deep trees.
func TestCodesAreComplete(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 3))
	var h huffman
	for range 2000 {
		counts := make([]uint32, 19+rnd.IntN(267))
		for i := range counts {
			if rnd.IntN(3) > 0 {
				counts[i] = rnd.Uint32() >> rnd.IntN(32)
			}
		}
		for _, most := range []int{maxCodeBits, 9} {
			codes := make([]symbolCode, len(counts))
			h.build(codes, counts, most)
			sum := 0
			for i, c := range codes {
				if c.length != 0 {
					sum += 1 << most >> c.length
				}
				if counts[i] != 0 && c.length == 0 || int(c.length) > most {
					t.Fatalf("symbol %d of count %d has a code of %d bits", i, counts[i], c.length)
				}
			}
			if sum != 1<<most {
				t.Fatalf("the code takes %d of %d places", sum, 1<<most)
			}
		}
	}
}

func FuzzEncode(f *testing.F) {
	for _, src := range inputs() {
		if len(src) < 1000 {
			f.Add(src)
		}
	}
	e := newEncoder(f, 4096)
	f.Fuzz(func(t *testing.T, src []byte) {
		got, err := inflate(e.Encode(nil, src))
		if err != nil || !bytes.Equal(got, src) {
			t.Errorf("%d bytes inflate to %d (%v)", len(src), len(got), err)
		}
	})
}

// BenchmarkEncode compresses the file DEFLATE_BENCH names, or noise of words,
// in blocks of 64 KiB.
func BenchmarkEncode(b *testing.B) {
	path := os.Getenv("DEFLATE_BENCH")
	data, err := os.ReadFile(path)
	if path == "" {
		data, err = skewed(16<<20), nil
	}
	if err != nil {
		b.Fatal(err)
	}
	for _, window := range []int{4096, MaxWindow} {
		b.Run(fmt.Sprint(window), func(b *testing.B) {
			e := newEncoder(b, window)
			var out []byte
			zero := make([]byte, 64<<10)
			size := 0
			var before, after syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			for b.Loop() {
				size = 0
				for at := 0; at+64<<10 <= len(data); at += 64 << 10 {
					if c := data[at : at+64<<10]; !bytes.Equal(c, zero) {
						out = e.Encode(out[:0], c)
						size += min(len(out), 64<<10)
					}
				}
			}
			b.SetBytes(int64(len(data)))
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			b.ReportMetric(float64(after.Utime.Nano()-before.Utime.Nano())/1e9/float64(b.N), "cpu-s/op")
			b.ReportMetric(float64(size), "bytes")
		})
	}
}
