package compress_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"cairn/fsbuild/compress"
	"cairn/tests/require"
)

// packer is a tool of somebody else that makes our input.
type packer struct {
	format, tool, pkg string
	args              []string
}

var packers = []packer{
	{compress.Gzip, "gzip", "gzip", []string{"-6nc"}},
	{compress.XZ, "xz", "xz-utils", []string{"-6c"}},
	{compress.Zstd, "zstd", "zstd", []string{"-qc"}},
}

func (p packer) pack(t testing.TB, data []byte, more ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(p.tool)
	if err != nil {
		t.Fatalf("%v: install %s", err, p.pkg)
	}
	cmd := exec.Command(path, append(p.args, more...)...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v", p.tool, cmd.Args, err)
	}
	return out
}

// sample is text-like, noisy and empty in turn.
func sample(size int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for b.Len() < size {
		switch rnd.IntN(3) {
		case 0:
			fmt.Fprintf(&b, "line %d of some text\n", rnd.IntN(1000))
		case 1:
			for range 40 {
				b.WriteByte(byte(rnd.Uint32()))
			}
		default:
			b.Write(make([]byte, 100))
		}
	}
	return b.Bytes()[:size]
}

func decode(name string, r io.Reader) ([]byte, error) {
	rc, err := compress.NewReader(name, r)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func TestReadersAgreeWithTools(t *testing.T) {
	for _, p := range packers {
		for _, size := range []int{0, 1, 1000, 3 << 20} {
			t.Run(fmt.Sprintf("%s/%d", p.format, size), func(t *testing.T) {
				data := sample(size)
				packed := p.pack(t, data)
				for name, r := range map[string]io.Reader{
					"plain":    bytes.NewReader(packed),
					"data+EOF": iotest.DataErrReader(bytes.NewReader(packed)),
					"halves":   iotest.HalfReader(bytes.NewReader(packed)),
				} {
					got, err := decode(p.format, r)
					if err != nil || !bytes.Equal(got, data) {
						t.Errorf("%s: got %d bytes, %v; want %d", name, len(got), err, size)
					}
				}
			})
		}
	}
}

func TestXZFilters(t *testing.T) {
	data := sample(1 << 20)
	for _, args := range [][]string{
		{"--x86", "--lzma2=preset=6"},
		{"--delta=dist=4", "--lzma2"},
		{"--check=sha256"},
		{"--check=crc32"},
		{"--check=none"},
		{"-9e"},
		{"--block-size=65536"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			got, err := decode(compress.XZ, bytes.NewReader(packers[1].pack(t, data, args...)))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d bytes, %v; want %d", len(got), err, len(data))
			}
		})
	}
}

func TestConcatenatedMembers(t *testing.T) {
	a, b := sample(70000), []byte("second member\n")
	for _, p := range packers {
		t.Run(p.format, func(t *testing.T) {
			got, err := decode(p.format, bytes.NewReader(append(p.pack(t, a), p.pack(t, b)...)))
			if want := append(bytes.Clone(a), b...); err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %d bytes, %v; want %d", len(got), err, len(want))
			}
		})
	}
}

func TestDamageIsAnError(t *testing.T) {
	data := sample(200000)
	for _, p := range packers {
		packed := p.pack(t, data)
		flipped := bytes.Clone(packed)
		flipped[len(flipped)/2] ^= 0x10
		for name, in := range map[string][]byte{
			"empty":            nil,
			"one byte":         packed[:1],
			"cut in half":      packed[:len(packed)/2],
			"last byte gone":   packed[:len(packed)-1],
			"flipped bit":      flipped,
			"trailing garbage": append(bytes.Clone(packed), "garbage"...),
			"other format":     []byte("this is certainly no compressed stream at all"),
		} {
			t.Run(p.format+"/"+name, func(t *testing.T) {
				if _, err := decode(p.format, bytes.NewReader(in)); !errors.Is(err, compress.ErrCorrupt) {
					t.Errorf("error = %v, want ErrCorrupt", err)
				}
			})
		}
	}
}

func TestEveryTruncationIsAnError(t *testing.T) {
	data := sample(600)
	for _, p := range packers {
		packed := p.pack(t, data)
		for n := range packed {
			if _, err := decode(p.format, bytes.NewReader(packed[:n])); !errors.Is(err, compress.ErrCorrupt) {
				t.Errorf("%s: first %d of %d bytes: error = %v, want ErrCorrupt", p.format, n, len(packed), err)
			}
		}
	}
}

func TestSourceErrorIsKept(t *testing.T) {
	broken := errors.New("connection reset")
	for _, p := range packers {
		packed := p.pack(t, sample(200000))
		for _, n := range []int{0, 3, len(packed) / 2} {
			r := io.MultiReader(bytes.NewReader(packed[:n]), iotest.ErrReader(broken))
			if _, err := decode(p.format, r); !errors.Is(err, broken) || errors.Is(err, compress.ErrCorrupt) {
				t.Errorf("%s after %d bytes: error = %v, want only the source's", p.format, n, err)
			}
		}
	}
}

func TestWindowLimit(t *testing.T) {
	zstd := packers[2].pack(t, sample(1<<20), "--ultra", "--long=31", "--no-content-size")
	for name, in := range map[string][]byte{
		compress.XZ:   packers[1].pack(t, []byte("small"), "--lzma2=dict=128MiB"),
		compress.Zstd: zstd,
	} {
		if _, err := decode(name, bytes.NewReader(in)); !errors.Is(err, compress.ErrWindow) {
			t.Errorf("%s: error = %v, want ErrWindow", name, err)
		}
	}
}

func TestDetect(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"", compress.None},
		{"\x1f", compress.None},
		{"\x1f\x8b\x08", compress.Gzip},
		{"\xfd7zXZ\x00", compress.XZ},
		{"\xfd7zXZ", compress.None},
		{"\x28\xb5\x2f\xfd\x04", compress.Zstd},
		{"\x5a\x2a\x4d\x18", compress.Zstd},
		{"ustar", compress.None},
	} {
		if got := compress.Detect([]byte(tc.in)); got != tc.want {
			t.Errorf("Detect(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

func TestNewDetectingReader(t *testing.T) {
	data := sample(5000)
	inputs := map[string][]byte{compress.None: data}
	for _, p := range packers {
		inputs[p.format] = p.pack(t, data)
	}
	for want, in := range inputs {
		rc, name, err := compress.NewDetectingReader(iotest.OneByteReader(bytes.NewReader(in)))
		if err != nil || name != want {
			t.Fatalf("%s: name %q, %v", want, name, err)
		}
		if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: got %d bytes, %v", want, len(got), err)
		}
		if err := rc.Close(); err != nil {
			t.Errorf("%s: close: %v", want, err)
		}
	}
	rc, name, err := compress.NewDetectingReader(strings.NewReader(""))
	if err != nil || name != compress.None {
		t.Fatalf("empty: name %q, %v", name, err)
	}
	if got, err := io.ReadAll(rc); err != nil || len(got) != 0 {
		t.Errorf("empty: got %q, %v", got, err)
	}
}

func TestUnknownName(t *testing.T) {
	if _, err := compress.NewReader("bzip2", nil); !errors.Is(err, compress.ErrUnknown) {
		t.Errorf("error = %v, want ErrUnknown", err)
	}
}

func TestReadAfterClose(t *testing.T) {
	for _, p := range packers {
		rc, err := compress.NewReader(p.format, bytes.NewReader(p.pack(t, sample(1000))))
		if err != nil {
			t.Fatal(err)
		}
		rc.Close()
		if n, err := rc.Read(make([]byte, 10)); n != 0 || err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: read after close = %d, %v; want an error", p.format, n, err)
		}
	}
}

// FuzzReader looks for panics, hangs and memory beyond the window.
func FuzzReader(f *testing.F) {
	for _, p := range packers {
		f.Add(p.format, p.pack(f, sample(300)))
	}
	f.Fuzz(func(_ *testing.T, name string, in []byte) {
		rc, err := compress.NewReader(name, bytes.NewReader(in))
		if err != nil {
			return
		}
		defer rc.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(rc, 1<<20))
	})
}

func ExampleNewReader() {
	packed := strings.NewReader("\x28\xb5\x2f\xfd\x20\x06\x31\x00\x00hello\n")
	r, err := compress.NewReader(compress.Zstd, packed)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	fmt.Printf("%s%v\n", text, err)
	// Output:
	// hello
	// <nil>
}

func BenchmarkReader(b *testing.B) {
	data := sample(16 << 20)
	for _, p := range packers {
		packed := p.pack(b, data)
		b.Run(p.format, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := decode(p.format, bytes.NewReader(packed)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestAppendXZ: xz, which is somebody else's, lists and decodes the streams.
func TestAppendXZ(t *testing.T) {
	for _, size := range []int{0, 1, 5000, 300_000} {
		data := sample(size)
		packed, err := compress.AppendXZ([]byte("before"), data, 64<<10)
		if err != nil {
			t.Fatal(err)
		}
		rest, ok := bytes.CutPrefix(packed, []byte("before"))
		if !ok {
			t.Fatal("what was there is gone")
		}
		name := filepath.Join(t.TempDir(), "x.xz")
		if err = os.WriteFile(name, rest, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(require.Tool(t, "xz", "xz-utils"), "-dc", name).Output()
		if err != nil || !bytes.Equal(out, data) {
			t.Errorf("%d bytes: xz -d gives %d bytes, %v", size, len(out), err)
		}
		list, err := exec.Command("xz", "--robot", "--list", "-vv", name).Output()
		if err != nil || !bytes.Contains(list, []byte("\tCRC32\t")) || size > 0 && !bytes.Contains(list, []byte("dict=64KiB")) {
			t.Errorf("%d bytes: xz --list: %v\n%s", size, err, list)
		}
	}
}
