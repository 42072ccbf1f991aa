package vhd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/internal/disktest"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/vhd"
)

var params = vhd.Options{UUID: [16]byte{1, 2, 3, 15: 9}, Time: time.Unix(1_700_000_000, 0)}

func build(t testing.TB, size int64, ws []disktest.Write, o vhd.Options) string {
	t.Helper()
	return disktest.Build(t, ws, func(f *os.File) (disktest.Writer, error) { return vhd.NewWriter(f, size, o) })
}

func open(t testing.TB, path string) *vhd.Reader {
	t.Helper()
	b, err := os.ReadFile(path)
	disktest.Must(t, err)
	r, err := vhd.Open(bytes.NewReader(b), int64(len(b)))
	disktest.Must(t, err)
	return r
}

var variants = map[string]vhd.Options{
	"dynamic":           {},
	"fixed":             {Kind: vhd.Fixed, UUID: params.UUID, Time: params.Time},
	"dynamic, geometry": {Sizing: vhd.Geometry, UUID: params.UUID},
	"fixed, geometry":   {Kind: vhd.Fixed, Sizing: vhd.Geometry},
}

func TestQEMUAgrees(t *testing.T) {
	for name, o := range variants {
		t.Run(name, func(t *testing.T) {
			for seed, size := range []int64{9<<20 + 512, 512, 2 << 20, 16 << 20} {
				ws := disktest.Pattern(uint64(seed), size, 4<<20)
				if seed == 1 {
					ws = []disktest.Write{{Off: 10, Data: []byte("x")}}
				}
				image := build(t, size, ws, o)
				virtual, _ := disktest.Info(t, "vpc", image)
				if o.Sizing == vhd.Exact && virtual != size || virtual < size || virtual > size+4<<20 {
					t.Errorf("QEMU sees %d bytes of %d", virtual, size)
				}
				raw := disktest.Raw(t, virtual, ws)
				disktest.Compare(t, "vpc", image, raw)
				want, err := os.ReadFile(raw)
				disktest.Must(t, err)
				disktest.CheckDisk(t, open(t, image), want)
			}
		})
	}
}

// TestSameSizesAsQEMU has QEMU make images and compares geometries and sizes.
func TestSameSizesAsQEMU(t *testing.T) {
	dir := t.TempDir()
	for _, force := range []string{"off", "on"} {
		for _, size := range []int64{512, 1 << 20, 10<<20 + 512, 4096 * 17 << 9, 1024 * 16 * 17 << 9, 1024 * 16 * 31 << 9, 504 << 20, 1 << 30, 33 << 30, 127<<30 + 512, 128 << 30, 2040 << 30} {
			theirs := filepath.Join(dir, fmt.Sprint(force, size))
			disktest.QEMU(t, "qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=dynamic,force_size="+force, theirs, fmt.Sprint(size))
			o := vhd.Options{Sizing: vhd.Geometry}
			if force == "on" {
				o.Sizing = vhd.Exact
			}
			ours := build(t, size, nil, o)
			a, b := footer(t, theirs), footer(t, ours)
			clear(a[24:28]) // the time
			clear(a[64:84]) // checksum and identity
			clear(b[64:84])
			if diff := cmp.Diff(a, b); diff != "" {
				t.Errorf("force_size=%s, %d bytes (-QEMU +ours):\n%s", force, size, diff)
			}
		}
	}
}

// footer returns the last 512 bytes.
func footer(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	disktest.Must(t, err)
	return b[len(b)-512:]
}

func TestReadsWhatQEMUWrote(t *testing.T) {
	size := int64(9 << 20)
	ws := disktest.Pattern(3, size, 3<<20)
	raw := disktest.Raw(t, size, ws)
	want, err := os.ReadFile(raw)
	disktest.Must(t, err)
	for _, sub := range []string{"dynamic", "fixed"} {
		t.Run(sub, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image")
			disktest.QEMU(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat="+sub+",force_size=on", raw, image)
			disktest.CheckDisk(t, open(t, image), want)
		})
	}
}

func TestHolesStayHoles(t *testing.T) {
	ws := []disktest.Write{{Off: 5 << 20, Data: []byte("x")}}
	got := disktest.Extents(t, open(t, build(t, 64<<20, ws, vhd.Options{})))
	if diff := cmp.Diff([]tree.Extent{{Off: 4 << 20, Len: 2 << 20}}, got); diff != "" {
		t.Errorf("runs of data (-want +got):\n%s", diff)
	}
	path := build(t, 64<<20, ws, vhd.Options{})
	info, err := os.Stat(path)
	disktest.Must(t, err)
	if want := int64(1536 + 512 + 512 + 2<<20 + 512); info.Size() != want {
		t.Errorf("file of %d bytes, want %d", info.Size(), want)
	}
}

// TestBitsCount has a block of which one sector is marked as not stored.
func TestBitsCount(t *testing.T) {
	path := build(t, 4<<20, []disktest.Write{{Off: 0, Data: bytes.Repeat([]byte{7}, 2<<20)}}, vhd.Options{})
	b, err := os.ReadFile(path)
	disktest.Must(t, err)
	b[2048] &^= 0x40 // the second sector's
	r, err := vhd.Open(bytes.NewReader(b), int64(len(b)))
	disktest.Must(t, err)
	want := append(append(bytes.Repeat([]byte{7}, 512), make([]byte, 512)...), bytes.Repeat([]byte{7}, 2<<20-1024)...)
	disktest.CheckDisk(t, r, append(want, make([]byte, 2<<20)...))
}

func TestSameBytes(t *testing.T) {
	size := int64(9 << 20)
	data := make([]byte, size)
	for _, w := range disktest.Pattern(5, size, 5<<20) {
		copy(data[w.Off:], w.Data)
	}
	for name, o := range variants {
		var want string
		for _, step := range []int{1 << 20, 1000, 9 << 20} {
			old := runtime.GOMAXPROCS(1 + step%16)
			var ws []disktest.Write
			for at := 0; at < len(data); at += step {
				ws = append(ws, disktest.Write{Off: int64(at), Data: data[at:min(at+step, len(data))]})
			}
			got := disktest.Digest(t, build(t, size, ws, o))
			runtime.GOMAXPROCS(old)
			if want == "" {
				want = got
			}
			if got != want {
				t.Errorf("%s: digest depends on the pieces", name)
			}
		}
	}
}

func TestParameters(t *testing.T) {
	b := footer(t, build(t, 1<<20, nil, params))
	if !bytes.Equal(b[68:84], params.UUID[:]) {
		t.Errorf("identity is %x", b[68:84])
	}
	if got := time.Date(2000, 1, 1, 0, 0, int(binary.BigEndian.Uint32(b[24:])), 0, time.UTC); !got.Equal(params.Time) {
		t.Errorf("time is %s", got)
	}
	for _, early := range []time.Time{{}, time.Unix(0, 0), time.Unix(946684800, 0)} {
		if b := footer(t, build(t, 1<<20, nil, vhd.Options{Time: early})); binary.BigEndian.Uint32(b[24:]) != 0 {
			t.Errorf("%s is second %d", early, binary.BigEndian.Uint32(b[24:]))
		}
	}
}

func TestBadOptions(t *testing.T) {
	for name, tc := range map[string]struct {
		size int64
		o    vhd.Options
		want error
	}{
		"size 0":     {0, vhd.Options{}, vhd.ErrSize},
		"odd size":   {1000, vhd.Options{}, vhd.ErrSize},
		"large size": {vhd.MaxSize + 512, vhd.Options{}, vhd.ErrSize},
		"kind":       {512, vhd.Options{Kind: 9}, vhd.ErrOption},
		"sizing":     {512, vhd.Options{Sizing: 9}, vhd.ErrOption},
		"late":       {512, vhd.Options{Time: time.Unix(1<<33, 0)}, vhd.ErrOption},
	} {
		if _, err := vhd.NewWriter(nil, tc.size, tc.o); !errors.Is(err, tc.want) {
			t.Errorf("%s: error = %v, want %v", name, err, tc.want)
		}
	}
}

// TestGlanceAccepts: OpenStack's image service takes a dynamic image.
func TestGlanceAccepts(t *testing.T) {
	if got := disktest.Inspect(t, build(t, 8<<20, disktest.Pattern(1, 8<<20, 1<<20), params)); got != "vhd 8388608 safe" {
		t.Errorf("it is %q", got)
	}
}

func TestFailingOutput(t *testing.T) {
	size := int64(9 << 20)
	ws := disktest.Pattern(8, size, 3<<20)
	for name, o := range variants {
		t.Run(name, func(t *testing.T) {
			disktest.CheckFull(t, func(out io.WriterAt) error {
				w, err := vhd.NewWriter(out, size, o)
				if err != nil {
					return err
				}
				for _, c := range ws {
					if _, err := w.WriteAt(c.Data, c.Off); err != nil {
						return err
					}
				}
				return w.Close()
			})
		})
	}
}

func TestBadWrites(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	disktest.Must(t, err)
	defer f.Close()
	w, err := vhd.NewWriter(f, 1<<20, vhd.Options{})
	disktest.Must(t, err)
	_, err = w.WriteAt([]byte("abc"), 100)
	disktest.Must(t, err)
	for _, off := range []int64{102, -1, 1<<20 - 2} {
		if _, err := w.WriteAt([]byte("abc"), off); !errors.Is(err, vhd.ErrOrder) {
			t.Errorf("at %d: error = %v", off, err)
		}
	}
	disktest.Must(t, w.Close())
	if _, err := w.WriteAt([]byte("abc"), 200); !errors.Is(err, vhd.ErrClosed) {
		t.Errorf("after Close: error = %v", err)
	}
	if err := w.Close(); !errors.Is(err, vhd.ErrClosed) {
		t.Errorf("second Close: error = %v", err)
	}
	f.Close()
	w, err = vhd.NewWriter(f, 1<<20, vhd.Options{})
	disktest.Must(t, err)
	if _, err := w.WriteAt([]byte("abc"), 200); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed file: error = %v", err)
	}
}

// TestDamaged damages a good image in one place.
func TestDamaged(t *testing.T) {
	good, err := os.ReadFile(build(t, 8<<20, []disktest.Write{{Off: 0, Data: []byte("x")}}, params))
	disktest.Must(t, err)
	end := len(good) - 512
	for name, tc := range map[string]struct {
		damage func(b []byte) []byte
		want   error
	}{
		"empty":            {func([]byte) []byte { return nil }, vhd.ErrCorrupt},
		"no footer at all": {func(b []byte) []byte { b[end], b[0] = 'X', 'X'; return b }, vhd.ErrCorrupt},
		"only one footer":  {func(b []byte) []byte { return b[:end] }, nil},
		"checksums":        {func(b []byte) []byte { b[end+70]++; b[70]++; return b }, vhd.ErrCorrupt},
		"version":          {func(b []byte) []byte { return sum(sum(b, end, 13, 2), 0, 13, 2) }, vhd.ErrUnsupported},
		"type":             {func(b []byte) []byte { return sum(b, end, 63, 9) }, vhd.ErrUnsupported},
		"parent":           {func(b []byte) []byte { return sum(b, end, 63, 4) }, vhd.ErrUnsupported},
		"size":             {func(b []byte) []byte { return sum(b, end, 48, 0x80) }, vhd.ErrCorrupt},
		"large size":       {func(b []byte) []byte { return sum(b, end, 49, 1) }, vhd.ErrCorrupt},
		"too large, fixed": {func(b []byte) []byte { return sum(b, end, 63, 2) }, vhd.ErrCorrupt},
		"no header":        {func(b []byte) []byte { b[512] = 'X'; return b }, vhd.ErrCorrupt},
		"header checksum":  {func(b []byte) []byte { b[600]++; return b }, vhd.ErrCorrupt},
		"header outside":   {func(b []byte) []byte { return sum(b, end, 16, 1) }, vhd.ErrCorrupt},
		"block outside":    {func(b []byte) []byte { b[1536] = 1; return b }, vhd.ErrCorrupt},
		"block half there": {func(b []byte) []byte { return append(b[:1<<20], b[end:]...) }, vhd.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			b := tc.damage(bytes.Clone(good))
			r, err := vhd.Open(bytes.NewReader(b), int64(len(b)))
			if err == nil {
				_, err = io.Copy(io.Discard, io.NewSectionReader(r, 0, r.Size()))
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("error = %v, want %v", err, tc.want)
			}
		})
	}
}

// sum changes a byte of the footer at offset at and mends its checksum.
func sum(b []byte, at, i int, value byte) []byte {
	b[at+i] = value
	clear(b[at+64 : at+68])
	n := uint32(0)
	for _, c := range b[at : at+512] {
		n += uint32(c)
	}
	binary.BigEndian.PutUint32(b[at+64:], ^n)
	return b
}

// FuzzOpen reads damaged images: an error is fine, a panic or much memory not.
func FuzzOpen(f *testing.F) {
	for _, o := range []vhd.Options{{}, {Kind: vhd.Fixed}} {
		b, err := os.ReadFile(build(f, 8<<10, []disktest.Write{{Off: 600, Data: []byte("x")}}, o))
		disktest.Must(f, err)
		if len(b) > 1<<16 {
			b = append(b[:4096:4096], b[len(b)-512:]...)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for at := 0; at+512 <= len(b); at += max(512, len(b)-512) { // let it come past the checksum
			sum(b, at, 0, b[at])
		}
		if r, err := vhd.Open(bytes.NewReader(b), int64(len(b))); err == nil {
			disktest.Probe(t, r)
		}
	})
}

func ExampleWriter() {
	f, err := os.CreateTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(f.Name())
	defer f.Close()

	w, err := vhd.NewWriter(f, 1<<30, vhd.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err = w.WriteAt([]byte("boot"), 0); err == nil {
		err = w.Close()
	}
	fmt.Println("a disk of 1 GiB in a file of", w.Size(), "bytes:", err)
	// Output:
	// a disk of 1 GiB in a file of 2101760 bytes: <nil>
}
