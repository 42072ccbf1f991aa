package fsbuild

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/qcow2"
	"cairn/fsbuild/tree"
	"cairn/tests/require"
)

// fakeFS writes given pieces.
type fakeFS struct {
	pieces []partition.Region
	fail   error // after the pieces
	each   func(i int)
}

func (f *fakeFS) Write(ctx context.Context, w io.WriterAt) (ext4.Summary, error) {
	for i, p := range f.pieces {
		if f.each != nil {
			f.each(i)
		}
		if err := ctx.Err(); err != nil {
			return ext4.Summary{}, err
		}
		if _, err := w.WriteAt(p.Data, p.Offset); err != nil {
			return ext4.Summary{}, fmt.Errorf("write fake: %w", err)
		}
	}
	return ext4.Summary{}, f.fail
}

// fill makes n bytes, some of them in blocks of zeros.
func fill(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for at := 0; at < n; at += 1024 {
		if rnd.IntN(3) > 0 {
			for i := at; i < min(at+1024, n); i++ {
				b[i] = byte(rnd.Uint32()) & 0x1f
			}
		}
	}
	return b
}

// pieces makes ascending writes on a disk of size bytes, of limit bytes in all.
func pieces(seed uint64, size int64, limit int) (all []partition.Region) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	for pos := int64(0); pos < size && limit > 0; {
		if rnd.IntN(2) == 0 {
			pos += rnd.Int64N(1 << rnd.IntN(23))
		}
		n := int(min(1+rnd.Int64N(1<<rnd.IntN(21)), size-pos, int64(limit)))
		if n <= 0 {
			break
		}
		all = append(all, partition.Region{Offset: pos, Data: fill(rnd, n)})
		pos, limit = pos+int64(n), limit-n
	}
	return all
}

// outputs makes a raw, a compressed and a plain qcow2 output in a folder.
func outputs(t testing.TB, dir string) []Output {
	t.Helper()
	outs := []Output{
		{Format: FormatRaw},
		{Format: FormatQCOW2, Compress: true},
		{Format: FormatQCOW2},
		{Format: FormatQCOW2, Compress: true, QCOW2: qcow2.Options{Compression: qcow2.Zstd}},
		{Format: FormatVHD},
		{Format: FormatVHDFixed},
		{Format: FormatVMDK},
		{Format: FormatVMDK, Compress: true},
	}
	for i := range outs {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("%d.%s", i, outs[i].Format)), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		outs[i].File = f
	}
	return outs
}

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

// TestOutputsHoldTheDisk compares the raw file with the bytes that went in, and
// lets QEMU compare the others with it.
func TestOutputsHoldTheDisk(t *testing.T) {
	for seed := range uint64(3) {
		size := int64(48<<20) + int64(seed)*4096
		d := disk{size: size + mib, fsOffset: mib, regions: []partition.Region{
			{Offset: 0, Data: fill(rand.New(rand.NewPCG(seed, 1)), 512)},
			{Offset: 512, Data: fill(rand.New(rand.NewPCG(seed, 2)), 300000)},
		}}
		fs := &fakeFS{pieces: pieces(seed, size, 24<<20)}
		want := make([]byte, d.size)
		for _, r := range d.regions {
			copy(want[r.Offset:], r.Data)
		}
		for _, r := range fs.pieces {
			copy(want[mib+r.Offset:], r.Data)
		}
		outs := outputs(t, t.TempDir())
		results, err := d.write(t.Context(), fs, outs, nil)
		must(t, err)
		got, err := os.ReadFile(outs[0].File.Name())
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("seed %d: raw differs (%v)", seed, err)
		}
		judgeOutputs(t, outs, results, d.size)
	}
}

// judgeOutputs checks results against the files, and qcow2 against raw.
func judgeOutputs(t *testing.T, outs []Output, results []Result, size int64) {
	t.Helper()
	for i, o := range outs {
		b, err := os.ReadFile(o.File.Name())
		must(t, err)
		virtual := size
		if o.Format == FormatVHD || o.Format == FormatVHDFixed {
			virtual = (size + mib - 1) / mib * mib
		}
		want := Result{Format: o.Format, Size: int64(len(b)), VirtualSize: virtual, SHA256: fmt.Sprintf("%x", sha256.Sum256(b))}
		got := results[i]
		if got.Allocated <= 0 || got.Allocated > got.Size+mib {
			t.Errorf("output %d: %d bytes allocated of %d", i, got.Allocated, got.Size)
		}
		got.Allocated, got.FileSystem = 0, ext4.Summary{}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("output %d (-want +got):\n%s", i, diff)
		}
		format := map[string]string{FormatRaw: "raw", FormatVHD: "vpc", FormatVHDFixed: "vpc"}[o.Format]
		if format == "" {
			format = o.Format
			run(t, "qemu-utils", "qemu-img", "check", "-q", "-f", format, o.File.Name())
		}
		run(t, "qemu-utils", "qemu-img", "compare", "-q", "-f", format, "-F", "raw", o.File.Name(), outs[0].File.Name())
	}
}

// counted is a content that counts how often it is opened, and its bytes.
type counted struct {
	data        []byte
	opens, read atomic.Int64
}

func (c *counted) Open() (io.ReadCloser, error) {
	c.opens.Add(1)
	return &countedReader{c, bytes.NewReader(c.data)}, nil
}

type countedReader struct {
	c *counted
	r *bytes.Reader
}

func (r *countedReader) Close() error { return nil }

func (r *countedReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.c.read.Add(int64(n))
	return n, err
}

// TestEverythingIsReadOnce: however many outputs there are, each file is opened
// once and each of its bytes read once.
func TestEverythingIsReadOnce(t *testing.T) {
	tr := tree.New()
	var all []*counted
	for i, size := range []int{1, 5000, 300_000, 3 << 20} {
		c := &counted{data: fill(rand.New(rand.NewPCG(uint64(i), 3)), size)}
		all = append(all, c)
		for _, name := range []string{"file", "link"} { // both are one file
			must(t, tr.Add(tree.Node{Path: fmt.Sprint(name, i), Type: tree.Regular, Inode: uint64(i + 1), Size: int64(size), Content: c}))
		}
	}
	img := Image{Tree: tr, FS: ext4.Params{UUID: [16]byte{1}, JournalSize: -1}, Table: MBR}
	outs := outputs(t, t.TempDir())
	results, err := Build(t.Context(), img, outs, nil)
	must(t, err)
	for i, c := range all {
		if opens, read := c.opens.Load(), c.read.Load(); opens != 1 || read != int64(len(c.data)) {
			t.Errorf("file %d of %d bytes is opened %d times, %d bytes are read", i, len(c.data), opens, read)
		}
	}
	judgeOutputs(t, outs, results, results[0].VirtualSize)
}

func TestCompressOnRequestOnly(t *testing.T) {
	outs := outputs(t, t.TempDir())
	_, err := disk{size: 16 << 20}.write(t.Context(), &fakeFS{pieces: pieces(7, 16<<20, 8<<20)}, outs, nil)
	must(t, err)
	for _, o := range outs[1:4] {
		info := run(t, "qemu-utils", "qemu-img", "check", "--output=json", o.File.Name())
		if got := strings.Contains(info, `"compressed-clusters"`); got != o.Compress {
			t.Errorf("Compress %v, but qemu-img check says %s", o.Compress, info)
		}
	}
}

func TestRawIsSparse(t *testing.T) {
	d := disk{size: 1 << 40}
	data := bytes.Repeat([]byte("data"), 1024)
	block := append(append(make([]byte, 64<<10), data...), make([]byte, 200<<10)...)
	outs := outputs(t, t.TempDir())[1:2]
	raw := outputs(t, t.TempDir())[:1]
	fs := &fakeFS{pieces: []partition.Region{{Offset: 1 << 20, Data: block}, {Offset: 1 << 30, Data: block}}}
	// The digest of a raw disk of 1 TiB takes too long: look at the sink alone.
	must(t, raw[0].File.Truncate(d.size))
	s := &rawSink{out: raw[0]}
	for _, p := range fs.pieces {
		must(t, s.write(t.Context(), &chunk{offset: p.Offset, data: p.Data}))
	}
	var r Result
	must(t, r.measure(raw[0]))
	if r.Allocated == 0 || r.Allocated > 64<<10 {
		t.Errorf("raw: %d bytes allocated, want about 8192", r.Allocated)
	}
	results, err := d.write(t.Context(), fs, outs, nil)
	must(t, err)
	if results[0].Size > 1<<20 {
		t.Errorf("qcow2: %d bytes for 8192 bytes of data", results[0].Size)
	}
}

func TestNextData(t *testing.T) {
	b := make([]byte, 5*holeSize+100)
	b[holeSize], b[3*holeSize-1], b[5*holeSize+99] = 1, 1, 1
	var got [][2]int
	for at := 0; at < len(b); {
		start, end := nextData(b, at)
		got = append(got, [2]int{start, end})
		at = end
	}
	want := [][2]int{{holeSize, 3 * holeSize}, {5 * holeSize, 5*holeSize + 100}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ranges (-want +got):\n%s", diff)
	}
	if start, end := nextData(make([]byte, 100), 0); start != 100 || end != 100 {
		t.Errorf("of zeros only: %d, %d", start, end)
	}
}

// TestSameBytes varies processors and the way the file system cuts its writes.
func TestSameBytes(t *testing.T) {
	size := int64(32 << 20)
	whole := pieces(11, size, 16<<20)
	var crumbs []partition.Region
	for _, p := range whole {
		for at := 0; at < len(p.Data); at += 5000 {
			end := min(at+5000, len(p.Data))
			crumbs = append(crumbs, partition.Region{Offset: p.Offset + int64(at), Data: p.Data[at:end]})
		}
	}
	var want []Result
	for _, procs := range []int{1, 16} {
		old := runtime.GOMAXPROCS(procs)
		for _, in := range [][]partition.Region{whole, crumbs} {
			got, err := disk{size: size}.write(t.Context(), &fakeFS{pieces: in}, outputs(t, t.TempDir()), nil)
			must(t, err)
			for i := range got {
				got[i].Allocated = 0
			}
			if want == nil {
				want = got
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%d processors, %d writes (-first +this):\n%s", procs, len(in), diff)
			}
		}
		runtime.GOMAXPROCS(old)
	}
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

func TestFailingFileSystem(t *testing.T) {
	before := runtime.NumGoroutine()
	broken := errors.New("read /etc/passwd: input/output error")
	all := pieces(3, 32<<20, 8<<20)
	for _, n := range []int{0, 1, len(all) / 2, len(all)} {
		fs := &fakeFS{pieces: all[:n], fail: broken}
		_, err := disk{size: 32 << 20}.write(t.Context(), fs, outputs(t, t.TempDir()), nil)
		if !errors.Is(err, broken) {
			t.Errorf("after %d pieces: error = %v, want %v", n, err, broken)
		}
	}
	noLeak(t, before)
}

func TestDisorderlyFileSystem(t *testing.T) {
	fs := &fakeFS{pieces: []partition.Region{{Offset: 100, Data: []byte("abc")}, {Offset: 50, Data: []byte("d")}}}
	_, err := disk{size: 1 << 20}.write(t.Context(), fs, outputs(t, t.TempDir()), nil)
	if !errors.Is(err, errOrder) {
		t.Errorf("error = %v, want errOrder", err)
	}
}

func TestCancel(t *testing.T) {
	before := runtime.NumGoroutine()
	interrupted := errors.New("interrupted")
	all := pieces(4, 64<<20, 32<<20)
	for _, at := range []int{0, len(all) / 3, len(all) - 1} {
		ctx, cancel := context.WithCancelCause(t.Context())
		fs := &fakeFS{pieces: all, each: func(i int) {
			if i == at {
				cancel(interrupted)
			}
		}}
		_, err := disk{size: 64 << 20}.write(ctx, fs, outputs(t, t.TempDir()), nil)
		if !errors.Is(err, interrupted) {
			t.Errorf("cancelled at piece %d: error = %v, want the cause", at, err)
		}
	}
	noLeak(t, before)
}

// TestCancelInTheTail interrupts the digest of the zeros behind the data.
func TestCancelInTheTail(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := disk{size: 1 << 40}.write(ctx, &fakeFS{}, outputs(t, t.TempDir())[:1], nil)
	if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > 5*time.Minute { // a TiB takes longer
		t.Errorf("error = %v after %v, want the deadline's", err, took)
	}
}

func TestProgress(t *testing.T) {
	var calls []int64
	d := disk{size: 32 << 20}
	_, err := d.write(t.Context(), &fakeFS{pieces: pieces(5, d.size, 16<<20)}, outputs(t, t.TempDir()), func(done, total int64) {
		if total != d.size || len(calls) > 0 && done <= calls[len(calls)-1] && done != d.size {
			t.Errorf("progress(%d, %d) after %d", done, total, calls[len(calls)-1])
		}
		calls = append(calls, done)
	})
	must(t, err)
	if len(calls) < 3 || calls[len(calls)-1] != d.size {
		t.Errorf("progress was %v, want it to end with %d", calls, d.size)
	}
}

// TestOutputThatRefusesWrites has one output among good ones that is opened for
// reading only.
func TestOutputThatRefusesWrites(t *testing.T) {
	before := runtime.NumGoroutine()
	for i := range outputs(t, t.TempDir()) {
		outs := outputs(t, t.TempDir())
		f, err := os.Open(outs[i].File.Name())
		must(t, err)
		defer f.Close()
		outs[i].File = f
		_, err = disk{size: 16 << 20}.write(t.Context(), &fakeFS{pieces: pieces(6, 16<<20, 8<<20)}, outs, nil)
		var oe *OutputError
		if !errors.As(err, &oe) || oe.Path != f.Name() || oe.Op != "write "+outs[i].Format {
			t.Errorf("output %d: error = %v, want an *OutputError for %s", i, err, f.Name())
		}
	}
	noLeak(t, before)
}

// TestFullDisk writes to a small file system.
func TestFullDisk(t *testing.T) {
	if !require.InNamespace(t) {
		return
	}
	noise := make([]byte, 8<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	for i := range outputs(t, t.TempDir()) {
		dir := t.TempDir()
		must(t, syscall.Mount("none", dir, "tmpfs", 0, "size=1m"))
		defer syscall.Unmount(dir, syscall.MNT_DETACH)
		outs := outputs(t, dir)[i : i+1]
		d := disk{size: 64 << 20}
		_, err := d.write(t.Context(), &fakeFS{pieces: []partition.Region{{Offset: 0, Data: noise}}}, outs, nil)
		checkOutputError(t, err, outs[0].File.Name(), syscall.ENOSPC, "free some space in "+dir)
	}
}

// TestDiskFillsUp builds an image on ever larger disks, until it fits: wherever
// the space ends, in the table, a file system or the container's own tables, the
// error says so.
func TestDiskFillsUp(t *testing.T) {
	if !require.InNamespace(t) {
		return
	}
	dir := t.TempDir()
	must(t, syscall.Mount("none", dir, "tmpfs", 0, ""))
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	tr := tree.New()
	data := fill(rand.New(rand.NewPCG(9, 9)), 200_000)
	must(t, tr.Add(tree.Node{Path: "f", Type: tree.Regular, Size: int64(len(data)), Content: tree.Bytes(data)}))
	img := Image{Tree: tr, FS: ext4.Params{UUID: [16]byte{1}, JournalSize: -1}, Table: GPT, DiskGUID: partition.GUID{1}}
	kind, err := partition.ParseType("linux-generic")
	must(t, err)
	img.Partitions = []Partition{{Root: true, Entry: partition.Partition{TypeGUID: kind, GUID: partition.GUID{2}}}}
	for i, o := range outputs(t, t.TempDir()) {
		failed := 0
		for pages := 1; ; pages += 1 + pages/4 {
			must(t, syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", pages*os.Getpagesize())))
			f, err := os.Create(filepath.Join(dir, "image"))
			must(t, err)
			o.File = f
			_, err = Build(t.Context(), img, []Output{o}, nil)
			f.Close()
			must(t, os.Remove(f.Name()))
			if err == nil {
				break
			}
			checkOutputError(t, err, f.Name(), syscall.ENOSPC, "free some space in "+dir)
			failed++
		}
		if failed < 5 {
			t.Errorf("output %d, %s, failed only %d times", i, o.Format, failed)
		}
	}
}

func TestArrange(t *testing.T) {
	for name, tc := range map[string]struct {
		img                  Image
		fsSize               int64
		size, offset, length int64
	}{
		"bare, minimal":     {Image{}, 5*mib + 4096, 6 * mib, 0, 0},
		"bare, exact":       {Image{}, 5 * mib, 5 * mib, 0, 0},
		"bare, given":       {Image{DiskSize: 9*mib + 512}, 9 * mib, 9*mib + 512, 0, 0},
		"MBR, minimal":      {Image{Table: MBR}, 5*mib + 4096, 7 * mib, mib, 6 * mib},
		"MBR, exact":        {Image{Table: MBR}, 5 * mib, 6 * mib, mib, 5 * mib},
		"MBR, given":        {Image{Table: MBR, DiskSize: 100 * mib}, 98 * mib, 100 * mib, mib, 98 * mib},
		"MBR, smaller fs":   {Image{Table: MBR, DiskSize: 100 * mib}, 50 * mib, 100 * mib, mib, 98 * mib},
		"MBR, odd size":     {Image{Table: MBR, DiskSize: 100*mib + 512}, 98 * mib, 100*mib + 512, mib, 98 * mib},
		"MBR, not a block":  {Image{Table: MBR, DiskSize: 100*mib - 512}, 97 * mib, 100*mib - 512, mib, 98*mib - 4096},
		"MBR, 2 TiB - 512B": {Image{Table: MBR, DiskSize: 2<<40 - 512}, mib, 2<<40 - 512, mib, 2<<40 - 2*mib - 4096},
	} {
		t.Run(name, func(t *testing.T) {
			tc.img.Tree, tc.img.FS = tree.New(), ext4.Params{UUID: [16]byte{1}, Size: tc.fsSize, JournalSize: -1}
			d, _, err := planDisk(tc.img)
			must(t, err)
			if d.size != tc.size || d.fsOffset != tc.offset {
				t.Errorf("size %d, offset %d; want %d, %d", d.size, d.fsOffset, tc.size, tc.offset)
			}
			var length int64
			if tc.img.Table == MBR {
				b := d.regions[0].Data
				length = 512 * (int64(b[458]) | int64(b[459])<<8 | int64(b[460])<<16 | int64(b[461])<<24)
			}
			if length != tc.length {
				t.Errorf("partition has %d bytes, want %d", length, tc.length)
			}
		})
	}
	for name, img := range map[string]Image{
		"fs too large":  {DiskSize: 4 * mib},
		"fs in MBR":     {Table: MBR, DiskSize: 6 * mib},
		"beyond 2 TiB":  {Table: MBR, DiskSize: 3 << 40},
		"not boot code": {Table: MBR, Boot: []byte("boot"), Core: []byte("core")},
	} {
		img.Tree, img.FS = tree.New(), ext4.Params{UUID: [16]byte{1}, Size: 5 * mib, JournalSize: -1}
		if _, _, err := planDisk(img); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestCheckOutputs(t *testing.T) {
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	must(t, os.WriteFile(full, []byte("x"), 0o600))
	f, err := os.OpenFile(full, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	must(t, err)
	defer null.Close()
	for name, tc := range map[string]struct {
		outs []Output
		want string
	}{
		"none":      {nil, "no output"},
		"format":    {[]Output{{Format: "vhdx", File: f}}, `"vhdx" is not known`},
		"no file":   {[]Output{{Format: FormatRaw}}, "has no file"},
		"not empty": {[]Output{{Format: FormatRaw, File: f}}, "not an empty"},
		"device":    {[]Output{{Format: FormatRaw, File: null}}, "/dev/null is not an empty"},
	} {
		_, err := Build(t.Context(), Image{}, tc.outs, nil)
		if !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error = %v, want ErrImage with %q", name, err, tc.want)
		}
	}
}
