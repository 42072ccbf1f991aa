package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/cmd/internal/build"
)

// steps is a clock that goes on by d with each look.
func steps(d time.Duration) func() time.Time {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	return func() time.Time {
		now = now.Add(d)
		return now
	}
}

func TestPlainDisplay(t *testing.T) {
	var out bytes.Buffer
	d := &plainDisplay{w: &out, clock: steps(time.Second), stamp: true}
	d.event(build.Event{Kind: build.StepStarted, Step: "root.d"})
	d.event(build.Event{Kind: build.Line, Text: "hello"})
	for i := int64(0); i <= 20; i++ {
		d.event(build.Event{Kind: build.Progress, Step: "download", Unit: "bytes", Done: i << 20, Total: 20 << 20})
	}
	got := out.String()
	for _, want := range []string{"2026-11-21 12:00:01.000 | step root.d\n", " | hello\n", " | download: 20.0 MiB of 20.0 MiB\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("output lacks %q:\n%s", want, got)
		}
	}
	if n := strings.Count(got, "download"); n > 8 {
		t.Errorf("%d lines of progress in 21 seconds", n)
	}
}

func TestLiveDisplay(t *testing.T) {
	var out bytes.Buffer
	d := &liveDisplay{w: &out, clock: steps(time.Second), width: func() int { return 100 }}
	d.event(build.Event{Kind: build.StepStarted, Step: "install.d"})
	d.event(build.Event{Kind: build.HookStarted, Step: "install.d", Hook: "01-package-installs"})
	for i := int64(1); i <= 3; i++ {
		d.event(build.Event{Kind: build.Progress, Step: "download", Unit: "packages", Done: i * 10, Total: 100})
	}
	d.event(build.Event{Kind: build.Line, Text: "Setting\tup \x1b[1mx"})
	got := out.String()
	for _, want := range []string{"install.d · 01-package-installs", "20 of 100 packages, ", " left", "· Setting up  [1mx"} {
		if !strings.Contains(got, want) {
			t.Errorf("output lacks %q: %q", want, got)
		}
	}
	if strings.Contains(got, "\n") {
		t.Errorf("the live line broke: %q", got)
	}
	d.dumpTail()
	if !strings.HasSuffix(out.String(), "Setting\tup \x1b[1mx\n") {
		t.Errorf("the failed hook's line is not shown: %q", out.String())
	}
}

// TestReport: a build says how large its root is and how far it can be grown.
func TestReport(t *testing.T) {
	var out bytes.Buffer
	report(&out, &build.Summary{
		MinimalSize: 910 << 20, GrowLimit: 168 << 40, LockPath: "x.lock.json",
		Steps:   []build.StepTime{{Name: "root.d", Elapsed: 1500 * time.Millisecond}, {Name: "cleanup.d", Elapsed: time.Millisecond}},
		Outputs: []build.Output{{Path: "x.raw", Size: 1 << 30, Allocated: 800 << 20, SHA256: "abc"}},
	})
	const want = `root file system 910.0 MiB, grows to 168.0 TiB
time: root.d 1.5s
lock: x.lock.json
x.raw: 1.0 GiB, 800.0 MiB on disk
sha256:abc  x.raw
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 911 << 20: "911.0 MiB", 3 << 40: "3.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for text, want := range map[string]int64{"1": gib, "0.3": 322122547, "2.5": 5 * gib / 2, "": 0} {
		if got, err := sizeOf("image-size", text, gib); got != want || err != nil {
			t.Errorf("sizeOf(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"-1", "big", "1e3", "1/2"} {
		if got, err := sizeOf("image-size", text, gib); err == nil {
			t.Errorf("sizeOf(%q) = %d, want an error", text, got)
		}
	}
}
