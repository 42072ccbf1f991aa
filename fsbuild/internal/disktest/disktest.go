// Package disktest helps to test disk containers: it generates disks, runs
// QEMU's tools as the judge, and checks readers. It is for tests only.
package disktest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/fsbuild/tree"
)

// Must fails the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// QEMU runs qemu-img or qemu-io, which must be there and succeed.
func QEMU(t testing.TB, tool string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Fatalf("%v: install qemu-utils", err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", tool, args, err, out)
	}
	return string(out)
}

// glance is where tests/install-tools puts the inspector of OpenStack's image
// service.
const glance = "/var/lib/cairn-test/glance"

const inspect = `
import logging, sys, types
sys.modules["oslo_log"] = types.SimpleNamespace(log=logging)
sys.path.insert(0, sys.argv[1])
import format_inspector
i = format_inspector.detect_file_format(sys.argv[2])
print(i, i.virtual_size, "safe" if i.safety_check() else "unsafe")
`

// Inspect is what OpenStack's image service says of an image before it takes it:
// format, virtual size in bytes, and "safe" or "unsafe".
func Inspect(t testing.TB, image string) string {
	t.Helper()
	if _, err := os.Stat(glance); err != nil {
		t.Fatalf("%v: run tests/install-tools as root", err)
	}
	out, err := exec.Command("python3", "-B", "-c", inspect, glance, image).CombinedOutput()
	if err != nil {
		t.Fatalf("format_inspector: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// ErrFull is the error of a Full.
var ErrFull = errors.New("no space left on device")

// Full fails when writes go beyond what is left, in bytes, as a full disk does.
type Full struct{ Left int64 }

// WriteAt drops b.
func (f *Full) WriteAt(b []byte, _ int64) (int, error) {
	if f.Left -= int64(len(b)); f.Left < 0 {
		return 0, ErrFull
	}
	return len(b), nil
}

// CheckFull checks that write gives the error of its output back, wherever that
// becomes full.
func CheckFull(t *testing.T, write func(io.WriterAt) error) {
	t.Helper()
	total := &Full{Left: 1 << 50}
	Must(t, write(total))
	need := 1<<50 - total.Left
	for i := range int64(41) {
		room := min(need*i/40, need-1)
		if err := write(&Full{Left: room}); !errors.Is(err, ErrFull) {
			t.Errorf("room for %d of %d bytes: error = %v", room, need, err)
		}
	}
}

// Write is one WriteAt call.
type Write struct {
	Off  int64
	Data []byte
}

// content makes n bytes of a kind that a file system holds.
func content(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	switch rnd.IntN(4) {
	case 0: // zeros
	case 1: // noise
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
	case 2: // noise and zeros in turn
		for i := range b {
			if i/4096%2 == 0 {
				b[i] = byte(rnd.Uint32())
			}
		}
	default: // words
		for i := 0; i < n; {
			i += copy(b[i:], fmt.Sprintf("%x ", rnd.Uint64()>>(40+rnd.IntN(20))))
		}
	}
	return b
}

// Pattern makes ascending writes onto a disk of size bytes, of at most limit
// bytes in all.
func Pattern(seed uint64, size int64, limit int) (ws []Write) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	for pos := int64(0); pos < size && limit > 0; {
		if rnd.IntN(3) > 0 {
			pos += rnd.Int64N(1 << rnd.IntN(22))
		}
		if rnd.IntN(20) == 0 {
			pos += rnd.Int64N(size/4 + 1)
		}
		n := int(min(rnd.Int64N(1<<rnd.IntN(20))+1, size-pos, int64(limit)))
		if n <= 0 {
			break
		}
		ws = append(ws, Write{pos, content(rnd, n)})
		pos, limit = pos+int64(n), limit-n
	}
	return ws
}

// Raw writes ws to a sparse file of size bytes and returns its path.
func Raw(t testing.TB, size int64, ws []Write) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	Must(t, err)
	defer f.Close()
	Must(t, f.Truncate(size))
	for _, w := range ws {
		_, err := f.WriteAt(w.Data, w.Off)
		Must(t, err)
	}
	return path
}

// Writer is a writer of a container.
type Writer interface {
	io.WriterAt
	Close() error
}

// Build makes a file that start turns into a container, feeds ws to that, and
// returns its path.
func Build(t testing.TB, ws []Write, start func(f *os.File) (Writer, error)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	Must(t, err)
	defer f.Close()
	w, err := start(f)
	Must(t, err)
	for _, c := range ws {
		_, err := w.WriteAt(c.Data, c.Off)
		Must(t, err)
	}
	Must(t, w.Close())
	return path
}

// Digest returns the SHA-256 of a file.
func Digest(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	Must(t, err)
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

// Info is what qemu-img says about an image.
func Info(t testing.TB, format, image string) (virtualSize int64, specific map[string]any) {
	t.Helper()
	var info struct {
		Size   int64 `json:"virtual-size"`
		Format struct {
			Data map[string]any
		} `json:"format-specific"`
	}
	Must(t, json.Unmarshal([]byte(QEMU(t, "qemu-img", "info", "-f", format, "--output=json", image)), &info))
	return info.Size, info.Format.Data
}

// Compare lets QEMU compare an image with a raw disk .
func Compare(t testing.TB, format, image, raw string) {
	t.Helper()
	QEMU(t, "qemu-img", "compare", "-f", format, "-F", "raw", image, raw)
}

// Check lets QEMU check the consistency of an image.
func Check(t testing.TB, format, image string) {
	t.Helper()
	if out := QEMU(t, "qemu-img", "check", "-f", format, image); !strings.Contains(out, "No errors were found") {
		t.Errorf("qemu-img check: %s", out)
	}
}

// Reader is a reader of a container.
type Reader interface {
	io.ReaderAt
	Size() int64
	Data() iter.Seq2[tree.Extent, error]
}

// Extents collects the runs of data.
func Extents(t testing.TB, r Reader) (all []tree.Extent) {
	t.Helper()
	for e, err := range r.Data() {
		Must(t, err)
		all = append(all, e)
	}
	return all
}

// CheckDisk reads all of r, whole and in pieces, compares it with want, and
// sees that nothing but zeros is outside the runs of data.
func CheckDisk(t testing.TB, r Reader, want []byte) {
	t.Helper()
	if r.Size() != int64(len(want)) {
		t.Fatalf("Size() = %d, want %d", r.Size(), len(want))
	}
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	Must(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the disk has other bytes")
	}
	end := int64(0)
	for _, e := range append(Extents(t, r), tree.Extent{Off: r.Size()}) {
		if e.Off < end || len(bytes.TrimLeft(want[end:e.Off], "\x00")) > 0 {
			t.Errorf("data between %d and %d is in no run", end, e.Off)
		}
		end = e.Off + e.Len
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		off := rnd.Int64N(r.Size())
		p := make([]byte, min(rnd.Int64N(200_000), r.Size()-off))
		if _, err := r.ReadAt(p, off); err != nil || !bytes.Equal(p, want[off:off+int64(len(p))]) {
			t.Fatalf("%d bytes at %d differ (%v)", len(p), off, err)
		}
	}
}

// Probe reads here and there in a disk that may be damaged, and its map. Errors
// are fine; what contradicts itself fails the test.
func Probe(t testing.TB, r Reader) {
	t.Helper()
	p := make([]byte, 64<<10)
	for _, off := range []int64{0, r.Size() / 2, max(0, r.Size()-100)} {
		if n, err := r.ReadAt(p, off); err == nil && int64(n) > r.Size()-off {
			t.Error("read more than the disk has")
		}
	}
	left, end := 1000, int64(0)
	for e, err := range r.Data() {
		if err != nil {
			return
		}
		if e.Off < end || e.Len <= 0 || e.Len > r.Size()-e.Off {
			t.Errorf("run %+v in a disk of %d, behind %d", e, r.Size(), end)
		}
		if left--; left == 0 {
			return
		}
		end = e.Off + e.Len
	}
}
