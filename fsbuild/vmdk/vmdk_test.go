package vmdk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/internal/disktest"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/vmdk"
)

func build(t testing.TB, size int64, ws []disktest.Write, o vmdk.Options) string {
	t.Helper()
	return disktest.Build(t, ws, func(f *os.File) (disktest.Writer, error) { return vmdk.NewWriter(f, size, o) })
}

func open(t testing.TB, path string) *vmdk.Reader {
	t.Helper()
	b, err := os.ReadFile(path)
	disktest.Must(t, err)
	r, err := vmdk.Open(bytes.NewReader(b), int64(len(b)))
	disktest.Must(t, err)
	return r
}

var kinds = map[string]vmdk.Kind{"streamOptimized": vmdk.StreamOptimized, "monolithicSparse": vmdk.MonolithicSparse}

func TestQEMUAgrees(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			for seed, size := range []int64{9<<20 + 512, 512, 64 << 10, 100 << 20, 32 << 20, 1 << 20} {
				ws := disktest.Pattern(uint64(seed), size, 4<<20)
				switch seed {
				case 1:
					ws = []disktest.Write{{Off: 10, Data: []byte("x")}}
				case 5:
					ws = nil
				}
				image := build(t, size, ws, vmdk.Options{Kind: kind, CID: 0x1234abcd})
				virtual, info := disktest.Info(t, "vmdk", image)
				if virtual != size || info["create-type"] != name || info["cid"] != float64(0x1234abcd) || info["parent-cid"] != float64(1<<32-1) {
					t.Errorf("QEMU sees %d bytes of %d, %v", virtual, size, info)
				}
				raw := disktest.Raw(t, size, ws)
				disktest.Check(t, "vmdk", image)
				disktest.Compare(t, "vmdk", image, raw)
				want, err := os.ReadFile(raw)
				disktest.Must(t, err)
				disktest.CheckDisk(t, open(t, image), want)
			}
		})
	}
}

func TestReadsWhatQEMUWrote(t *testing.T) {
	size := int64(40<<20) + 512
	ws := disktest.Pattern(3, size, 3<<20)
	raw := disktest.Raw(t, size, ws)
	want, err := os.ReadFile(raw)
	disktest.Must(t, err)
	for _, options := range []string{"subformat=streamOptimized", "subformat=monolithicSparse", "subformat=monolithicSparse,zeroed_grain=on"} {
		t.Run(options, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image")
			disktest.QEMU(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", options, raw, image)
			if strings.Contains(options, "zeroed") {
				disktest.QEMU(t, "qemu-io", "-f", "vmdk", "-c", "write -z 0 1M", image)
				clear(want[:1<<20])
			}
			disktest.CheckDisk(t, open(t, image), want)
		})
	}
}

func TestReaderRefuses(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	disktest.QEMU(t, "qemu-img", "create", "-q", "-f", "vmdk", base, "1M")
	for name, args := range map[string][]string{
		"flat":   {"-o", "subformat=monolithicFlat"},
		"parts":  {"-o", "subformat=twoGbMaxExtentSparse"},
		"parent": {"-F", "vmdk", "-b", base},
	} {
		path := filepath.Join(dir, name)
		disktest.QEMU(t, "qemu-img", append(append([]string{"create", "-q", "-f", "vmdk"}, args...), path, "1M")...)
		files, err := filepath.Glob(path + "*")
		disktest.Must(t, err)
		for _, file := range files {
			b, err := os.ReadFile(file)
			disktest.Must(t, err)
			_, err = vmdk.Open(bytes.NewReader(b), int64(len(b)))
			if want := !strings.HasSuffix(file, "-flat.vmdk") && !strings.HasSuffix(file, "-flat"); want && !errors.Is(err, vmdk.ErrUnsupported) {
				t.Errorf("%s: error = %v, want ErrUnsupported", filepath.Base(file), err)
			}
		}
	}
}

func TestHolesStayHoles(t *testing.T) {
	ws := []disktest.Write{{Off: 5 << 20, Data: []byte("x")}}
	for name, kind := range kinds {
		path := build(t, 1<<40, ws, vmdk.Options{Kind: kind})
		f, err := os.Open(path)
		disktest.Must(t, err)
		defer f.Close()
		info, err := f.Stat()
		disktest.Must(t, err)
		r, err := vmdk.Open(f, info.Size())
		disktest.Must(t, err)
		if diff := cmp.Diff([]tree.Extent{{Off: 5 << 20, Len: 64 << 10}}, disktest.Extents(t, r)); diff != "" {
			t.Errorf("%s: runs of data (-want +got):\n%s", name, diff)
		}
	}
}

func TestSameBytes(t *testing.T) {
	size := int64(70 << 20)
	data := make([]byte, size)
	for _, w := range disktest.Pattern(5, size, 8<<20) {
		copy(data[w.Off:], w.Data)
	}
	for name, kind := range kinds {
		var want string
		for _, step := range []int{1 << 20, 100_000, 70 << 20} {
			for _, procs := range []int{1, 16} {
				old := runtime.GOMAXPROCS(procs)
				var ws []disktest.Write
				for at := 0; at < len(data); at += step {
					ws = append(ws, disktest.Write{Off: int64(at), Data: data[at:min(at+step, len(data))]})
				}
				got := disktest.Digest(t, build(t, size, ws, vmdk.Options{Kind: kind, Workers: step % 3}))
				runtime.GOMAXPROCS(old)
				if want == "" {
					want = got
				}
				if got != want {
					t.Errorf("%s: digest depends on pieces, processors or workers", name)
				}
			}
		}
	}
}

// TestStreamIsSequential reads a stream from its start by the markers alone, as
// an importer does that has only a pipe.
func TestStreamIsSequential(t *testing.T) {
	size := int64(70 << 20)
	b, err := os.ReadFile(build(t, size, disktest.Pattern(6, size, 4<<20), vmdk.Options{}))
	disktest.Must(t, err)
	le := binary.LittleEndian
	grains, last, kinds := 0, int64(-1), ""
	at := 128 * 512
	for at < len(b) {
		value, length, kind := int64(le.Uint64(b[at:])), int(le.Uint32(b[at+8:])), le.Uint32(b[at+12:])
		if length > 0 {
			if value <= last || value%128 != 0 {
				t.Errorf("grain of sector %d behind %d", value, last)
			}
			grains, last = grains+1, value
			at += (12 + length + 511) / 512 * 512
			continue
		}
		kinds += fmt.Sprint(kind)
		if kind == 3 && le.Uint64(b[at+512+56:]) == 1<<64-1 {
			t.Error("the footer does not say where the directory is")
		}
		at += 512 + int(value)*512
	}
	if at != len(b) || grains == 0 || !strings.HasSuffix(kinds, "230") || strings.Trim(kinds, "1") != "230" {
		t.Errorf("%d of %d bytes, %d grains, markers %s", at, len(b), grains, kinds)
	}
}

func TestBadOptions(t *testing.T) {
	for name, tc := range map[string]struct {
		size int64
		o    vmdk.Options
		want error
	}{
		"size 0":     {0, vmdk.Options{}, vmdk.ErrSize},
		"odd size":   {1000, vmdk.Options{}, vmdk.ErrSize},
		"large size": {vmdk.MaxSize + 512, vmdk.Options{}, vmdk.ErrSize},
		"kind":       {512, vmdk.Options{Kind: 9}, vmdk.ErrOption},
		"negative":   {512, vmdk.Options{Workers: -1}, vmdk.ErrOption},
	} {
		if _, err := vmdk.NewWriter(nil, tc.size, tc.o); !errors.Is(err, tc.want) {
			t.Errorf("%s: error = %v, want %v", name, err, tc.want)
		}
	}
}

func feed(out io.WriterAt, kind vmdk.Kind, ws []disktest.Write) error {
	w, err := vmdk.NewWriter(out, 8<<20, vmdk.Options{Kind: kind, Workers: 2})
	if err != nil {
		return err
	}
	defer w.Abort()
	for _, c := range ws {
		if _, err := w.WriteAt(c.Data, c.Off); err != nil {
			return err
		}
	}
	return w.Close()
}

// TestGlanceAccepts: OpenStack's image service takes a monolithic image. It reads
// no footer, so that a stream is nothing to it.
func TestGlanceAccepts(t *testing.T) {
	o := vmdk.Options{Kind: vmdk.MonolithicSparse}
	if got := disktest.Inspect(t, build(t, 8<<20, disktest.Pattern(1, 8<<20, 1<<20), o)); got != "vmdk 8388608 safe" {
		t.Errorf("it is %q", got)
	}
}

func TestFailingOutput(t *testing.T) {
	ws := disktest.Pattern(8, 8<<20, 2<<20)
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			disktest.CheckFull(t, func(w io.WriterAt) error { return feed(w, kind, ws) })
		})
	}
}

func TestBadWritesAndAbort(t *testing.T) {
	w, err := vmdk.NewWriter(&disktest.Full{Left: 1 << 40}, 1<<20, vmdk.Options{})
	disktest.Must(t, err)
	_, err = w.WriteAt([]byte("abc"), 100)
	disktest.Must(t, err)
	for _, off := range []int64{102, -1, 1<<20 - 2} {
		if _, err := w.WriteAt([]byte("abc"), off); !errors.Is(err, vmdk.ErrOrder) {
			t.Errorf("at %d: error = %v", off, err)
		}
	}
	w.Abort()
	w.Abort()
	if _, err := w.WriteAt([]byte("abc"), 200); !errors.Is(err, vmdk.ErrClosed) {
		t.Errorf("after Abort: error = %v", err)
	}
	if err := w.Close(); !errors.Is(err, vmdk.ErrClosed) {
		t.Errorf("Close after Abort: error = %v", err)
	}
}

// TestDamaged damages a good image in one place.
func TestDamaged(t *testing.T) {
	le := binary.LittleEndian
	data := disktest.Write{Off: 0, Data: bytes.Repeat([]byte("text "), 50_000)}
	for name, tc := range map[string]struct {
		kind   vmdk.Kind
		damage func(b []byte) []byte
		want   error
	}{
		"empty":          {0, func([]byte) []byte { return nil }, vmdk.ErrCorrupt},
		"magic":          {0, func(b []byte) []byte { b[0] = 'X'; return b }, vmdk.ErrCorrupt},
		"version":        {0, func(b []byte) []byte { b[4] = 4; return b }, vmdk.ErrUnsupported},
		"newlines":       {0, func(b []byte) []byte { b[75] = '\n'; return b }, vmdk.ErrCorrupt},
		"capacity":       {0, func(b []byte) []byte { b[19] = 1; return b }, vmdk.ErrCorrupt},
		"large capacity": {0, func(b []byte) []byte { b[18] = 0x10; return b }, vmdk.ErrCorrupt},
		"grain size":     {0, func(b []byte) []byte { b[20] = 3; return b }, vmdk.ErrCorrupt},
		"table size":     {0, func(b []byte) []byte { b[47] = 3; return b }, vmdk.ErrCorrupt},
		"method":         {0, func(b []byte) []byte { b[77] = 2; return b }, vmdk.ErrUnsupported},
		"no descriptor":  {0, func(b []byte) []byte { b[28] = 0; return b }, vmdk.ErrUnsupported},
		"long text":      {0, func(b []byte) []byte { b[40] = 1; return b }, vmdk.ErrCorrupt},
		"text outside":   {0, func(b []byte) []byte { b[32] = 1; return b }, vmdk.ErrCorrupt},
		"type":           {0, func(b []byte) []byte { return bytes.Replace(b, []byte("streamO"), []byte("streamX"), 1) }, vmdk.ErrUnsupported},
		"parent":         {0, func(b []byte) []byte { return bytes.Replace(b, []byte("ffffffff"), []byte("fffffff0"), 1) }, vmdk.ErrUnsupported},
		"footer":         {0, func(b []byte) []byte { return b[:len(b)-512] }, vmdk.ErrCorrupt},
		"directory":      {0, func(b []byte) []byte { b[len(b)-1024+60] = 1; return b }, vmdk.ErrCorrupt},
		"table outside":  {1, func(b []byte) []byte { le.PutUint32(b[le.Uint64(b[56:])*512:], 1<<30); return b }, vmdk.ErrCorrupt},
		"grain outside":  {1, func(b []byte) []byte { le.PutUint32(b[(le.Uint64(b[56:])+1)*512:], 1<<30); return b }, vmdk.ErrCorrupt},
		"zlib header":    {0, func(b []byte) []byte { b[128*512+12] = 0; return b }, vmdk.ErrCorrupt},
		"zlib stream":    {0, func(b []byte) []byte { b[128*512+30] ^= 0x55; return b }, vmdk.ErrCorrupt},
		"grain length":   {0, func(b []byte) []byte { b[128*512+11] = 0x40; return b }, vmdk.ErrCorrupt},
		"cut":            {1, func(b []byte) []byte { return b[:len(b)-70_000] }, vmdk.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(build(t, 8<<20, []disktest.Write{data}, vmdk.Options{Kind: tc.kind}))
			disktest.Must(t, err)
			b = tc.damage(b)
			r, err := vmdk.Open(bytes.NewReader(b), int64(len(b)))
			if err == nil {
				_, err = io.Copy(io.Discard, io.NewSectionReader(r, 0, r.Size()))
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("error = %v, want %v", err, tc.want)
			}
		})
	}
}

// FuzzOpen reads damaged images: an error is fine, a panic or much memory not.
func FuzzOpen(f *testing.F) {
	for _, kind := range kinds {
		b, err := os.ReadFile(build(f, 128<<10, []disktest.Write{{Off: 600, Data: []byte("x")}}, vmdk.Options{Kind: kind}))
		disktest.Must(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := vmdk.Open(bytes.NewReader(b), int64(len(b))); err == nil {
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

	w, err := vmdk.NewWriter(f, 1<<30, vmdk.Options{CID: 0xcafe})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer w.Abort()
	if _, err = w.WriteAt(bytes.Repeat([]byte("data"), 1<<20), 0); err == nil {
		err = w.Close()
	}
	fmt.Println("4 MiB of a disk of 1 GiB in a file of", w.Size()>>10, "KiB:", err)
	// Output:
	// 4 MiB of a disk of 1 GiB in a file of 101 KiB: <nil>
}
