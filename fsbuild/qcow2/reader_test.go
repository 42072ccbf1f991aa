package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/internal/disktest"
	"cairn/fsbuild/qcow2"
	"cairn/fsbuild/tree"
)

func open(t testing.TB, path string) *qcow2.Reader {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	must(t, err)
	r, err := qcow2.Open(f, info.Size())
	must(t, err)
	return r
}

// scribble lets qemu-io write, zero and discard at random. Compressed clusters
// come first: QEMU compresses none that is allocated.
func scribble(t testing.TB, image string, rnd *rand.Rand, size, cluster int64, compressed bool) {
	t.Helper()
	args := []string{"-f", "qcow2", "-t", "unsafe"}
	add := func(format string, a ...any) { args = append(args, "-c", fmt.Sprintf(format, a...)) }
	clusters := rnd.Perm(int(size / cluster))
	for _, c := range clusters[:min(len(clusters)*2/3, 5)] {
		if compressed {
			add("write -c -P %d %d %d", 1+rnd.IntN(255), int64(c)*cluster, cluster)
		}
	}
	for i := range 30 {
		off := rnd.Int64N(size) &^ 511
		n := min(1+rnd.Int64N(1<<rnd.IntN(21)), size-off)
		aligned := int64(rnd.IntN(len(clusters))) * cluster
		switch i % 6 {
		case 0:
			add("write -z %d %d", off, n)
		case 1:
			add("write -z -u %d %d", aligned, cluster)
		case 2:
			add("discard %d %d", aligned, cluster)
		default:
			add("write -P %d %d %d", rnd.IntN(256), off, n)
		}
	}
	run(t, "qemu-utils", "qemu-io", append(args, image)...)
}

// mapped are the runs of data that QEMU sees.
func mapped(t testing.TB, image string) (all []tree.Extent) {
	t.Helper()
	var runs []struct {
		Start, Length int64
		Data          bool
	}
	must(t, json.Unmarshal([]byte(run(t, "qemu-utils", "qemu-img", "map", "-f", "qcow2", "--output=json", image)), &runs))
	for _, r := range runs {
		last := len(all) - 1
		switch {
		case !r.Data:
		case last >= 0 && all[last].Off+all[last].Len == r.Start:
			all[last].Len += r.Length
		default:
			all = append(all, tree.Extent{Off: r.Start, Len: r.Length})
		}
	}
	return all
}

func TestReadsWhatQEMUWrote(t *testing.T) {
	const size = 9<<20 + 512
	for name, tc := range map[string]struct {
		options string
		cluster int64
	}{
		"default":              {"compat=1.1", 64 << 10},
		"version 2":            {"compat=0.10", 64 << 10},
		"version 2, 512":       {"compat=0.10,cluster_size=512", 512},
		"512":                  {"cluster_size=512", 512},
		"4 KiB":                {"cluster_size=4096", 4096},
		"2 MiB":                {"cluster_size=2M", 2 << 20},
		"zstd":                 {"compression_type=zstd", 64 << 10},
		"zstd, 512":            {"compression_type=zstd,cluster_size=512", 512},
		"zstd, 2 MiB":          {"compression_type=zstd,cluster_size=2M", 2 << 20},
		"refcounts of 1 bit":   {"refcount_bits=1", 64 << 10},
		"refcounts of 64 bits": {"refcount_bits=64", 64 << 10},
		"lazy refcounts":       {"lazy_refcounts=on", 64 << 10},
		"subclusters":          {"extended_l2=on", 64 << 10},
		"subclusters, 16 KiB":  {"extended_l2=on,cluster_size=16k", 16 << 10},
		"subclusters, 2 MiB":   {"extended_l2=on,cluster_size=2M,compression_type=zstd", 2 << 20},
		"metadata":             {"preallocation=metadata", 64 << 10},
		"metadata, sub":        {"preallocation=metadata,extended_l2=on", 64 << 10},
		"falloc":               {"preallocation=falloc", 64 << 10},
		"full":                 {"preallocation=full", 64 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			image, back := filepath.Join(dir, "image"), filepath.Join(dir, "raw")
			run(t, "qemu-utils", "qemu-img", "create", "-q", "-f", "qcow2", "-o", tc.options, image, fmt.Sprint(size))
			rnd := rand.New(rand.NewPCG(uint64(len(name)), 4))
			// with refcounts of one bit two compressed clusters cannot share one
			prealloc := strings.HasPrefix(tc.options, "preallocation")
			scribble(t, image, rnd, size, tc.cluster, !prealloc && name != "refcounts of 1 bit")
			run(t, "qemu-utils", "qemu-img", "convert", "-t", "unsafe", "-f", "qcow2", "-O", "raw", image, back)
			want, err := os.ReadFile(back)
			must(t, err)
			r := open(t, image)
			disktest.CheckDisk(t, r, want)
			if !prealloc { // where QEMU looks for holes in the file
				if diff := cmp.Diff(mapped(t, image), disktest.Extents(t, r)); diff != "" {
					t.Errorf("runs of data (-QEMU +ours):\n%s", diff)
				}
			}
			if !prealloc && name != "refcounts of 1 bit" {
				small := filepath.Join(dir, "compressed")
				run(t, "qemu-utils", "qemu-img", "convert", "-t", "unsafe", "-c", "-f", "raw", "-O", "qcow2", "-o", tc.options, back, small)
				disktest.CheckDisk(t, open(t, small), want)
			}
		})
	}
}

func TestReadsWhatWeWrote(t *testing.T) {
	size := int64(20<<20) + 1536
	ws := pattern(rand.New(rand.NewPCG(3, 9)), size, 8<<20)
	want, err := os.ReadFile(raw(t, size, ws))
	must(t, err)
	for name, o := range variants {
		t.Run(name, func(t *testing.T) {
			image := build(t, size, ws, o)
			r := open(t, image)
			disktest.CheckDisk(t, r, want)
			if diff := cmp.Diff(mapped(t, image), disktest.Extents(t, r)); diff != "" {
				t.Errorf("runs of data (-QEMU +ours):\n%s", diff)
			}
		})
	}
}

func TestConcurrentReads(t *testing.T) {
	size := int64(8 << 20)
	ws := pattern(rand.New(rand.NewPCG(3, 1)), size, 8<<20)
	want, err := os.ReadFile(raw(t, size, ws))
	must(t, err)
	for _, o := range []qcow2.Options{{ClusterSize: 4096}, {Compression: qcow2.Zstd}, {Compression: qcow2.None}} {
		r := open(t, build(t, size, ws, o))
		var all sync.WaitGroup
		for i := range uint64(8) {
			all.Go(func() {
				rnd := rand.New(rand.NewPCG(i, 2))
				p := make([]byte, 100_000)
				for range 100 {
					off := rnd.Int64N(size - int64(len(p)))
					if _, err := r.ReadAt(p, off); err != nil || !bytes.Equal(p, want[off:off+int64(len(p))]) {
						t.Errorf("at %d: other bytes (%v)", off, err)
						return
					}
				}
			})
		}
		all.Wait()
	}
}

func TestReadOutside(t *testing.T) {
	r := open(t, build(t, 1024, []write{{0, bytes.Repeat([]byte{7}, 1024)}}, qcow2.Options{}))
	p := make([]byte, 1000)
	if n, err := r.ReadAt(p, 1000); n != 24 || err != io.EOF { //nolint:errorlint // io.ReaderAt's contract
		t.Errorf("over the end: %d, %v", n, err)
	}
	if _, err := r.ReadAt(p, -1); err == nil {
		t.Error("before the start: no error")
	}
}

// TestReaderRefuses has images that QEMU makes and we do not read. For LUKS
// qemu-img would measure the processor first, which fails on a busy machine:
// its number is written over that of the older encryption.
func TestReaderRefuses(t *testing.T) {
	dir := t.TempDir()
	base, key := filepath.Join(dir, "base"), filepath.Join(dir, "key")
	run(t, "qemu-utils", "qemu-img", "create", "-q", "-f", "raw", base, "1M")
	must(t, os.WriteFile(key, []byte("secret"), 0o600))
	for name, args := range map[string][]string{
		"backing file":       {"-F", "raw", "-b", base},
		"external data file": {"-o", "data_file=" + filepath.Join(dir, "data")},
		"encrypted":          {"--object", "secret,id=s,file=" + key, "-o", "encrypt.format=aes,encrypt.key-secret=s"},
		"snapshots":          nil,
	} {
		t.Run(name, func(t *testing.T) {
			image := filepath.Join(dir, name)
			run(t, "qemu-utils", "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), image, "1M")...)
			if name == "snapshots" {
				run(t, "qemu-utils", "qemu-img", "snapshot", "-c", "one", image)
			}
			b, err := os.ReadFile(image)
			must(t, err)
			refused := func() {
				if _, err := qcow2.Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, qcow2.ErrUnsupported) {
					t.Errorf("error = %v, want ErrUnsupported", err)
				}
			}
			refused()
			if name == "encrypted" {
				binary.BigEndian.PutUint32(b[32:], 2) // crypt_method: LUKS
				refused()
			}
		})
	}
}

// TestDamaged damages a good image in one place.
func TestDamaged(t *testing.T) {
	be := binary.BigEndian
	ws := []write{{0, bytes.Repeat([]byte("text "), 50000)}}
	for name, tc := range map[string]struct {
		options qcow2.Options
		damage  func(b []byte) []byte
		want    error
	}{
		"empty":               {qcow2.Options{}, func([]byte) []byte { return nil }, qcow2.ErrCorrupt},
		"magic":               {qcow2.Options{}, func(b []byte) []byte { b[0] = 'X'; return b }, qcow2.ErrCorrupt},
		"version 1":           {qcow2.Options{}, func(b []byte) []byte { b[7] = 1; return b }, qcow2.ErrUnsupported},
		"version 4":           {qcow2.Options{}, func(b []byte) []byte { b[7] = 4; return b }, qcow2.ErrUnsupported},
		"cluster bits":        {qcow2.Options{}, func(b []byte) []byte { b[23] = 60; return b }, qcow2.ErrCorrupt},
		"size":                {qcow2.Options{}, func(b []byte) []byte { b[24] = 0x80; return b }, qcow2.ErrCorrupt},
		"large size":          {qcow2.Options{}, func(b []byte) []byte { b[24] = 0x7f; return b }, qcow2.ErrCorrupt},
		"large tables":        {qcow2.Options{}, func(b []byte) []byte { be.PutUint32(b[36:], 1<<31); be.PutUint64(b[24:], 1<<60); return b }, qcow2.ErrCorrupt},
		"L1 outside":          {qcow2.Options{}, func(b []byte) []byte { be.PutUint64(b[40:], 1<<40); return b }, qcow2.ErrCorrupt},
		"L1 off its cluster":  {qcow2.Options{}, func(b []byte) []byte { b[47] = 8; return b }, qcow2.ErrCorrupt},
		"L2 outside":          {qcow2.Options{}, func(b []byte) []byte { be.PutUint64(b[1<<16:], 1<<40); return b }, qcow2.ErrCorrupt},
		"L2 off its cluster":  {qcow2.Options{}, func(b []byte) []byte { be.PutUint64(b[1<<16:], 1<<16+512); return b }, qcow2.ErrCorrupt},
		"corrupt bit":         {qcow2.Options{}, func(b []byte) []byte { b[79] = 2; return b }, qcow2.ErrUnsupported},
		"unknown feature":     {qcow2.Options{}, func(b []byte) []byte { b[78] = 1; return b }, qcow2.ErrUnsupported},
		"compression type":    {qcow2.Options{Compression: qcow2.Zstd}, func(b []byte) []byte { b[104] = 2; return b }, qcow2.ErrUnsupported},
		"compression feature": {qcow2.Options{}, func(b []byte) []byte { b[79] = 8; return b }, qcow2.ErrCorrupt},
		"header length":       {qcow2.Options{}, func(b []byte) []byte { b[103] = 1; return b }, qcow2.ErrCorrupt},
		"cut header":          {qcow2.Options{}, func(b []byte) []byte { return b[:90] }, qcow2.ErrCorrupt},
		"deflate stream":      {qcow2.Options{}, func(b []byte) []byte { return fill(b, 2<<16) }, qcow2.ErrCorrupt},
		"zstd stream":         {qcow2.Options{Compression: qcow2.Zstd}, func(b []byte) []byte { return fill(b, 2<<16) }, qcow2.ErrCorrupt},
		"cut data":            {qcow2.Options{Compression: qcow2.None}, func(b []byte) []byte { return b[:2<<16+5] }, qcow2.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(build(t, 1<<20, ws, tc.options))
			must(t, err)
			b = tc.damage(b)
			r, err := qcow2.Open(bytes.NewReader(b), int64(len(b)))
			if err == nil {
				_, err = io.Copy(io.Discard, io.NewSectionReader(r, 0, r.Size()))
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("error = %v, want %v", err, tc.want)
			}
		})
	}
}

// fill makes noise of the bytes from at on, for as long as a small stream is.
func fill(b []byte, at int) []byte {
	for i := at; i < min(at+2000, len(b)); i++ {
		b[i] = 0xff
	}
	return b
}

// FuzzOpen reads damaged images: an error is fine, a panic or much memory not.
func FuzzOpen(f *testing.F) {
	ws := []write{{0, bytes.Repeat([]byte("text "), 500)}, {60_000, []byte("x")}}
	for _, o := range []qcow2.Options{
		{ClusterSize: 512},
		{ClusterSize: 512, Version: 2, Compression: qcow2.None},
		{ClusterSize: 512, Compression: qcow2.Zstd},
		{ClusterSize: 1024, Compression: qcow2.None},
	} {
		b, err := os.ReadFile(build(f, 64<<10, ws, o))
		must(f, err)
		f.Add(b)
	}
	extended, err := os.ReadFile(extendedImage(f))
	must(f, err)
	f.Add(extended)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := qcow2.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		disktest.Probe(t, r)
	})
}

// extendedImage is a small image with subclusters.
func extendedImage(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "extended")
	run(t, "qemu-utils", "qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=16k", path, "64k")
	run(t, "qemu-utils", "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 512", "-c", "write -z 20k 4k", path)
	return path
}

// TestReaderMemoryIsBounded reads a large image, and one whose tables say more
// than there is.
func TestReaderMemoryIsBounded(t *testing.T) {
	var ws []write
	for i := range int64(64) {
		ws = append(ws, write{i << 32, []byte("data")})
	}
	for _, cs := range []int{4096, 2 << 20} {
		size := int64(1) << 39
		if cs == 4096 {
			size, ws = 64<<30, ws[:16]
		}
		r := open(t, build(t, size, ws, qcow2.Options{ClusterSize: cs}))
		for _, w := range ws {
			p := make([]byte, 4)
			_, err := r.ReadAt(p, w.off)
			must(t, err)
			if string(p) != "data" {
				t.Fatalf("at %d: %q", w.off, p)
			}
		}
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		if m.HeapAlloc > 48<<20 {
			t.Errorf("cluster size %d: %d MiB of heap in use", cs, m.HeapAlloc>>20)
		}
		runtime.KeepAlive(r)
		ws = nil
		for i := range int64(64) {
			ws = append(ws, write{i << 32, []byte("data")})
		}
	}
}
