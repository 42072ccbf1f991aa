package qcow2_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/internal/disktest"
	"cairn/fsbuild/qcow2"
)

// run starts a tool of somebody else, which must be there.
func run(t testing.TB, pkg, tool string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Fatalf("%v: install %s", err, pkg)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", tool, args, err, out)
	}
	return string(out)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write is one WriteAt call.
type write struct {
	off  int64
	data []byte
}

// content makes n bytes of a kind that a file system holds.
func content(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	switch rnd.IntN(6) {
	case 0: // zeros
	case 1: // noise
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
	case 2: // one byte only
		b = bytes.Repeat([]byte{byte(rnd.Uint32())}, n)
	case 3: // noise and zeros in turn
		for i := range b {
			if i/4096%2 == 0 {
				b[i] = byte(rnd.Uint32())
			}
		}
	default: // words, repeated at all distances
		words := make([][]byte, 400)
		for i := range words {
			words[i] = fmt.Appendf(nil, "%x ", rnd.Uint64()>>rnd.IntN(60))
		}
		var s []byte
		for len(s) < n {
			s = append(s, words[rnd.IntN(len(words))]...)
		}
		copy(b, s)
	}
	return b
}

// pattern makes ascending writes onto a disk of size bytes, of at most limit
// bytes in all.
func pattern(rnd *rand.Rand, size int64, limit int) (ws []write) {
	for pos := int64(0); pos < size && limit > 0; {
		if rnd.IntN(3) > 0 {
			pos += rnd.Int64N(1 << rnd.IntN(21))
		}
		if rnd.IntN(20) == 0 {
			pos += rnd.Int64N(size/4 + 1)
		}
		n := int(min(rnd.Int64N(1<<rnd.IntN(20))+1, size-pos, int64(limit)))
		if n <= 0 {
			break
		}
		ws = append(ws, write{pos, content(rnd, n)})
		pos, limit = pos+int64(n), limit-n
	}
	return ws
}

func create(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// build writes the image of ws and returns its path.
func build(t testing.TB, size int64, ws []write, o qcow2.Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.qcow2")
	f := create(t, path)
	must(t, feed(f, size, ws, o))
	return path
}

func feed(out io.WriterAt, size int64, ws []write, o qcow2.Options) error {
	w, err := qcow2.NewWriter(out, size, o)
	if err != nil {
		return err
	}
	defer w.Abort()
	for _, c := range ws {
		if _, err := w.WriteAt(c.data, c.off); err != nil {
			return err
		}
	}
	return w.Close()
}

// raw writes ws to a sparse file and returns its path.
func raw(t testing.TB, size int64, ws []write) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f := create(t, path)
	must(t, f.Truncate(size))
	for _, c := range ws {
		_, err := f.WriteAt(c.data, c.off)
		must(t, err)
	}
	return path
}

// judge lets QEMU check an image and compare it with a raw disk.
func judge(t testing.TB, image, disk string) {
	t.Helper()
	if out := run(t, "qemu-utils", "qemu-img", "check", "-f", "qcow2", image); !strings.Contains(out, "No errors were found") {
		t.Errorf("qemu-img check: %s", out)
	}
	run(t, "qemu-utils", "qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, disk)
}

// variants are the kinds of image that must be right.
var variants = map[string]qcow2.Options{
	"default":        {},
	"version 2":      {Version: 2},
	"zstd":           {Compression: qcow2.Zstd},
	"uncompressed":   {Compression: qcow2.None},
	"512":            {ClusterSize: 512},
	"512 zstd":       {ClusterSize: 512, Compression: qcow2.Zstd},
	"4 KiB":          {ClusterSize: 4096},
	"4 KiB plain v2": {ClusterSize: 4096, Compression: qcow2.None, Version: 2},
	"2 MiB":          {ClusterSize: 2 << 20},
	"32 KiB window":  {Window: 32 << 10},
	"2 MiB zstd":     {ClusterSize: 2 << 20, Compression: qcow2.Zstd},
}

func TestQEMUAgrees(t *testing.T) {
	for name, o := range variants {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(4) {
				rnd := rand.New(rand.NewPCG(seed, 7))
				size := (1 + rnd.Int64N(1<<16)) * 512
				if seed == 0 {
					size = 3 << 30 // several L2 tables
				}
				ws := pattern(rnd, size, 8<<20)
				judge(t, build(t, size, ws, o), raw(t, size, ws))
			}
		})
	}
}

func TestConvertedBackIsTheSame(t *testing.T) {
	size := int64(40<<20) + 512
	ws := pattern(rand.New(rand.NewPCG(9, 9)), size, 20<<20)
	want, err := os.ReadFile(raw(t, size, ws))
	must(t, err)
	for name, o := range variants {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "back.raw")
			run(t, "qemu-utils", "qemu-img", "convert", "-f", "qcow2", "-O", "raw", build(t, size, ws, o), out)
			got, err := os.ReadFile(out)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes differ from the %d written (%v)", len(got), len(want), err)
			}
		})
	}
}

func TestEdges(t *testing.T) {
	full := bytes.Repeat([]byte("edge"), 1<<20)
	for name, tc := range map[string]struct {
		size int64
		ws   []write
	}{
		"nothing written":      {1 << 30, nil},
		"smallest disk":        {512, []write{{0, full[:512]}}},
		"only zeros":           {1 << 20, []write{{0, make([]byte, 1<<20)}}},
		"first and last byte":  {5 << 30, []write{{0, full[:1]}, {5<<30 - 1, full[:1]}}},
		"a cluster in pieces":  {1 << 20, []write{{10, full[:5]}, {15, full[:3]}, {70, full[:1]}, {65535, full[:2]}}},
		"empty writes":         {1 << 20, []write{{0, nil}, {100, full[:1]}, {101, nil}, {1 << 20, nil}}},
		"last cluster cut off": {1<<20 + 1536, []write{{1 << 20, full[:1536]}}},
		"whole disk":           {4 << 20, []write{{0, full}}},
		"far apart":            {1 << 50, []write{{1 << 30, full[:100]}, {1 << 40, full[:100]}, {1<<50 - 100, full[:100]}}},
	} {
		t.Run(name, func(t *testing.T) {
			image := build(t, tc.size, tc.ws, qcow2.Options{})
			if tc.size > 1<<43 { // no raw file to compare with: ask QEMU for the pieces
				for _, c := range tc.ws {
					out := run(t, "qemu-utils", "qemu-io", "-r", "-f", "qcow2", "-c", fmt.Sprintf("read -v %d %d", c.off, len(c.data)), image)
					if !strings.Contains(out, "edgeedgeedge") {
						t.Errorf("at %d: %s", c.off, out)
					}
				}
				return
			}
			judge(t, image, raw(t, tc.size, tc.ws))
		})
	}
}

// TestRefcountGroups fills several refcount blocks, with compressed, plain and
// no clusters in turn, so that every way across the end of a block occurs.
func TestRefcountGroups(t *testing.T) {
	for _, cs := range []int{512, 1024} {
		for seed := range uint64(3) {
			rnd := rand.New(rand.NewPCG(seed, 3))
			size := int64(2 << 20)
			var ws []write
			for pos := int64(0); pos < size; pos += int64(cs) {
				data := content(rnd, cs)
				if seed == 0 {
					data = bytes.Repeat([]byte{1}, cs)
				}
				ws = append(ws, write{pos, data})
			}
			judge(t, build(t, size, ws, qcow2.Options{ClusterSize: cs}), raw(t, size, ws))
		}
	}
}

// TestLargeL1Table has an L1 table longer than a refcount block covers.
func TestLargeL1Table(t *testing.T) {
	size := int64(1) << 38
	ws := []write{{0, []byte("a")}, {size / 2, []byte("b")}, {size - 1, []byte("c")}}
	image := build(t, size, ws, qcow2.Options{ClusterSize: 2048})
	judge(t, image, raw(t, size, ws))
	info, err := os.Stat(image)
	must(t, err)
	if info.Size() < 4<<20 {
		t.Errorf("image has %d bytes, less than its L1 table", info.Size())
	}
}

func digest(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	must(t, err)
	return fmt.Sprintf("%x", h.Sum(nil))
}

func TestSameBytesForAnyWorkers(t *testing.T) {
	size := int64(1 << 30)
	ws := pattern(rand.New(rand.NewPCG(5, 5)), size, 32<<20)
	for name, o := range variants {
		t.Run(name, func(t *testing.T) {
			var want string
			for _, procs := range []int{1, 16} {
				old := runtime.GOMAXPROCS(procs)
				for _, workers := range []int{1, 0, 3, 16} {
					o.Workers = workers
					got := digest(t, build(t, size, ws, o))
					if want == "" {
						want = got
					}
					if got != want {
						t.Errorf("%d processors, %d workers: digest differs", procs, workers)
					}
				}
				runtime.GOMAXPROCS(old)
			}
		})
	}
}

// TestSameBytesForAnyPieces writes the same disk in whole and in crumbs.
func TestSameBytesForAnyPieces(t *testing.T) {
	rnd := rand.New(rand.NewPCG(8, 1))
	size := int64(4 << 20)
	data := append(content(rnd, 1<<20), content(rnd, 3<<20)...)
	want := digest(t, build(t, size, []write{{0, data}}, qcow2.Options{}))
	var crumbs []write
	for pos := 0; pos < len(data); {
		n := min(1+rnd.IntN(1<<rnd.IntN(18)), len(data)-pos)
		if !bytes.Equal(data[pos:pos+n], make([]byte, n)) {
			crumbs = append(crumbs, write{int64(pos), data[pos : pos+n]})
		}
		pos += n
	}
	if got := digest(t, build(t, size, crumbs, qcow2.Options{})); got != want {
		t.Error("digest depends on how the disk was cut into writes")
	}
}

// TestGlanceAccepts: OpenStack's image service takes every kind of image, and
// not one that refers to another file.
func TestGlanceAccepts(t *testing.T) {
	ws := []write{{1 << 20, bytes.Repeat([]byte("text "), 50000)}}
	for name, o := range variants {
		image := build(t, 8<<20, ws, o)
		if got := disktest.Inspect(t, image); got != "qcow2 8388608 safe" {
			t.Errorf("%s: it is %q", name, got)
		}
		run(t, "qemu-utils", "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname", image)
		if got := disktest.Inspect(t, image); got != "qcow2 8388608 unsafe" {
			t.Errorf("%s, with a backing file: it is %q", name, got)
		}
	}
}

// TestHeaderPassesInspection reads the header as image services do, which
// refuse images that refer to other files.
func TestHeaderPassesInspection(t *testing.T) {
	type fields struct {
		Version, BackingLen, ClusterBits, Crypt, Snapshots uint32
		Backing, Size, Incompatible, Compatible, Autoclear uint64
		RefcountOrder, HeaderLen                           uint32
		Extension                                          uint64
	}
	for name, tc := range map[string]struct {
		options qcow2.Options
		want    fields
	}{
		"default": {qcow2.Options{}, fields{Version: 3, ClusterBits: 16, Size: 1 << 20, RefcountOrder: 4, HeaderLen: 104}},
		"zstd":    {qcow2.Options{Compression: qcow2.Zstd}, fields{Version: 3, ClusterBits: 16, Size: 1 << 20, Incompatible: 8, RefcountOrder: 4, HeaderLen: 112}},
		"v2":      {qcow2.Options{Version: 2}, fields{Version: 2, ClusterBits: 16, Size: 1 << 20}},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(build(t, 1<<20, nil, tc.options))
			must(t, err)
			be := binary.BigEndian
			got := fields{
				Version: be.Uint32(b[4:]), Backing: be.Uint64(b[8:]), BackingLen: be.Uint32(b[16:]),
				ClusterBits: be.Uint32(b[20:]), Size: be.Uint64(b[24:]), Crypt: be.Uint32(b[32:]),
				Snapshots: be.Uint32(b[60:]), Incompatible: be.Uint64(b[72:]), Compatible: be.Uint64(b[80:]),
				Autoclear: be.Uint64(b[88:]), RefcountOrder: be.Uint32(b[96:]), HeaderLen: be.Uint32(b[100:]),
				Extension: be.Uint64(b[max(72, be.Uint32(b[100:])):]),
			}
			if string(b[:4]) != "QFI\xfb" {
				t.Errorf("magic = %q", b[:4])
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
		})
	}
}

func TestQEMUInfo(t *testing.T) {
	ws := []write{{1 << 20, bytes.Repeat([]byte("text "), 50000)}}
	for name, tc := range map[string]struct {
		options qcow2.Options
		want    map[string]any
	}{
		"default": {qcow2.Options{}, map[string]any{"compat": "1.1", "compression-type": "zlib", "lazy-refcounts": false, "refcount-bits": 16.0, "corrupt": false, "extended-l2": false}},
		"zstd":    {qcow2.Options{Compression: qcow2.Zstd}, map[string]any{"compat": "1.1", "compression-type": "zstd", "lazy-refcounts": false, "refcount-bits": 16.0, "corrupt": false, "extended-l2": false}},
		"v2":      {qcow2.Options{Version: 2}, map[string]any{"compat": "0.10", "compression-type": "zlib", "refcount-bits": 16.0}},
	} {
		t.Run(name, func(t *testing.T) {
			var info struct {
				Size    int64 `json:"virtual-size"`
				Backing any   `json:"backing-filename"`
				Dirty   bool  `json:"dirty-flag"`
				Format  struct {
					Data map[string]any
				} `json:"format-specific"`
			}
			out := run(t, "qemu-utils", "qemu-img", "info", "--output=json", build(t, 8<<20, ws, tc.options))
			must(t, json.Unmarshal([]byte(out), &info))
			if diff := cmp.Diff(tc.want, info.Format.Data); diff != "" {
				t.Errorf("format-specific (-want +got):\n%s", diff)
			}
			if info.Size != 8<<20 || info.Backing != nil || info.Dirty {
				t.Errorf("size %d, backing file %v, dirty %v", info.Size, info.Backing, info.Dirty)
			}
		})
	}
}

// limited fails when a write goes beyond n bytes, as a full disk does.
type limited struct {
	n   int64
	err error
}

func (l *limited) WriteAt(p []byte, _ int64) (int, error) {
	if l.n -= int64(len(p)); l.n < 0 {
		return 0, l.err
	}
	return len(p), nil
}

func TestFailingOutput(t *testing.T) {
	full := errors.New("no space left on device")
	size := int64(64 << 20)
	ws := pattern(rand.New(rand.NewPCG(6, 6)), size, 8<<20)
	total := &limited{n: 1 << 40, err: full}
	must(t, feed(total, size, ws, qcow2.Options{}))
	need := int64(1<<40) - total.n
	before := runtime.NumGoroutine()
	for i := range int64(40) {
		out := &limited{n: need * i / 40, err: full}
		if err := feed(out, size, ws, qcow2.Options{}); !errors.Is(err, full) {
			t.Errorf("room for %d of %d bytes: error = %v, want %v", need*i/40, need, err, full)
		}
	}
	if err := feed(&limited{n: need - 1, err: full}, size, ws, qcow2.Options{}); !errors.Is(err, full) {
		t.Errorf("one byte short: error = %v, want %v", err, full)
	}
	noLeak(t, before)
}

func noLeak(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if runtime.NumGoroutine() <= before {
			return
		}
	}
	t.Errorf("%d goroutines are left of %d", runtime.NumGoroutine(), before)
}

func TestAbort(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 20 {
		w, err := qcow2.NewWriter(&limited{n: 1 << 40}, 1<<30, qcow2.Options{Workers: 4})
		must(t, err)
		_, err = w.WriteAt(make([]byte, 1<<20), 77)
		must(t, err)
		w.Abort()
		w.Abort()
		if _, err := w.WriteAt([]byte{1}, 1<<29); !errors.Is(err, qcow2.ErrClosed) {
			t.Errorf("write after abort: error = %v, want ErrClosed", err)
		}
		if err := w.Close(); !errors.Is(err, qcow2.ErrClosed) {
			t.Errorf("close after abort: error = %v, want ErrClosed", err)
		}
	}
	noLeak(t, before)
}

func TestBadWrites(t *testing.T) {
	for name, ws := range map[string][]write{
		"backwards":         {{100, make([]byte, 10)}, {50, make([]byte, 1)}},
		"overlap":           {{100, make([]byte, 10)}, {109, make([]byte, 1)}},
		"negative":          {{-1, make([]byte, 1)}},
		"beyond the end":    {{1<<20 - 1, make([]byte, 2)}},
		"far beyond":        {{1<<63 - 1, make([]byte, 2)}},
		"more than it hold": {{0, make([]byte, 1<<20+1)}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := feed(&limited{n: 1 << 40}, 1<<20, ws, qcow2.Options{}); !errors.Is(err, qcow2.ErrOrder) {
				t.Errorf("error = %v, want ErrOrder", err)
			}
		})
	}
}

func TestBadOptions(t *testing.T) {
	for name, tc := range map[string]struct {
		size int64
		o    qcow2.Options
		want error
	}{
		"size 0":             {0, qcow2.Options{}, qcow2.ErrSize},
		"negative size":      {-512, qcow2.Options{}, qcow2.ErrSize},
		"odd size":           {1000, qcow2.Options{}, qcow2.ErrSize},
		"too large":          {1 << 62, qcow2.Options{}, qcow2.ErrSize},
		"too large for 512":  {1 << 40, qcow2.Options{ClusterSize: 512}, qcow2.ErrSize},
		"version":            {512, qcow2.Options{Version: 4}, qcow2.ErrOption},
		"small clusters":     {512, qcow2.Options{ClusterSize: 256}, qcow2.ErrOption},
		"large clusters":     {512, qcow2.Options{ClusterSize: 4 << 20}, qcow2.ErrOption},
		"odd clusters":       {512, qcow2.Options{ClusterSize: 65535}, qcow2.ErrOption},
		"negative clusters":  {512, qcow2.Options{ClusterSize: -512}, qcow2.ErrOption},
		"zstd in version 2":  {512, qcow2.Options{Version: 2, Compression: qcow2.Zstd}, qcow2.ErrOption},
		"odd window":         {512, qcow2.Options{Window: 5000}, qcow2.ErrOption},
		"large window":       {512, qcow2.Options{Window: 64 << 10}, qcow2.ErrOption},
		"unknown method":     {512, qcow2.Options{Compression: 9}, qcow2.ErrOption},
		"fewer than no work": {512, qcow2.Options{Workers: -1}, qcow2.ErrOption},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := qcow2.NewWriter(nil, tc.size, tc.o); !errors.Is(err, tc.want) {
				t.Errorf("error = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestSizeIsTheFilesSize(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "i"))
	w, err := qcow2.NewWriter(f, 1<<30, qcow2.Options{})
	must(t, err)
	_, err = w.WriteAt(content(rand.New(rand.NewPCG(1, 1)), 1<<20), 1<<28)
	must(t, err)
	must(t, w.Close())
	info, err := f.Stat()
	must(t, err)
	if info.Size() != w.Size() {
		t.Errorf("Size() = %d, file has %d bytes", w.Size(), info.Size())
	}
}

// TestMemoryIsBounded streams data and looks at the heap meanwhile.
func TestMemoryIsBounded(t *testing.T) {
	for _, cs := range []int{0, 2 << 20} {
		w, err := qcow2.NewWriter(&limited{n: 1 << 50}, 1<<40, qcow2.Options{Workers: 16, ClusterSize: cs})
		must(t, err)
		defer w.Abort()
		data := content(rand.New(rand.NewPCG(4, 4)), 1<<20)
		var most uint64
		for i := range int64(60) {
			_, err := w.WriteAt(data, i<<32)
			must(t, err)
			if i%20 == 19 {
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
		must(t, w.Close())
		if most > 64<<20 {
			t.Errorf("cluster size %d: %d MiB of heap in use", cs, most>>20)
		}
	}
}
