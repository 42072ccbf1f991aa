package fstest

import (
	"bytes"
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"testing"
	"time"
)

// Usage is what something took.
type Usage struct {
	Wall, CPU time.Duration
	// Peak is by how many bytes the memory of this process grew meanwhile, at
	// most. What other processes took is not in it.
	Peak int64
}

// Add adds what something else took after it.
func (u *Usage) Add(v Usage) {
	u.Wall += v.Wall
	u.CPU += v.CPU
	u.Peak = max(u.Peak, v.Peak)
}

// Report gives a benchmark the ratios of our use to theirs, who are named.
func (u *Usage) Report(b *testing.B, theirs Usage, who string) {
	b.Helper()
	n := float64(b.N)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(u.Wall.Seconds()/n, "wall-s")
	b.ReportMetric(u.CPU.Seconds()/n, "cpu-s")
	b.ReportMetric(theirs.Wall.Seconds()/n, who+"-wall-s")
	b.ReportMetric(theirs.CPU.Seconds()/n, who+"-cpu-s")
	b.ReportMetric(u.Wall.Seconds()/theirs.Wall.Seconds(), "wall-ratio")
	b.ReportMetric(u.CPU.Seconds()/theirs.CPU.Seconds(), "cpu-ratio")
	b.ReportMetric(float64(u.Peak)/(1<<20), "peak-MiB")
}

// Measure runs f and returns what it took, the time of child processes
// included.
func Measure(t testing.TB, f func()) Usage {
	t.Helper()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // forget the peak: proc(5)
		t.Fatal(err)
	}
	m0, c0, w0 := peakMemory(t), cpuTime(t), time.Now() //nolint:forbidigo // measures a test
	f()
	return Usage{time.Since(w0), cpuTime(t) - c0, peakMemory(t) - m0} //nolint:forbidigo // measures a test
}

// peakMemory is the peak of this process's resident set, in bytes.
func peakMemory(t testing.TB) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := bytes.Cut(status, []byte("VmHWM:"))
	var kib int64
	if _, err := fmt.Sscan(string(line), &kib); err != nil {
		t.Fatalf("VmHWM in /proc/self/status: %v", err)
	}
	return kib << 10
}

func cpuTime(t testing.TB) (sum time.Duration) {
	t.Helper()
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var r syscall.Rusage
		if err := syscall.Getrusage(who, &r); err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return sum
}
