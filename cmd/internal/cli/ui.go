package cli

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"cairn/cmd/internal/build"
)

// Rules of the terminal: results go to stdout, everything else to stderr;
// messages begin in lower case and end without a period; errors are
// "cairn: error: …" and, where there is something to do, "cairn: hint: …".
//
// A person on a terminal sees one live line (step, hook, then amount and time
// left or what the hook said last)
// and, when a hook fails, the end of what it printed. In CI each line is
// printed as it comes, with the time in UTC, as diskimage-builder does.

// display shows a build's events.
type display interface {
	event(e build.Event)
	close()
}

// plainDisplay prints a time-stamped line for each thing that happens.
type plainDisplay struct {
	w     io.Writer
	clock func() time.Time
	quiet bool
	stamp bool
	last  string // unit and step of the last progress line
	until time.Time
}

func (d *plainDisplay) event(e build.Event) {
	switch e.Kind {
	case build.StepStarted:
		d.line("step " + e.Step)
	case build.Line, build.Message:
		d.line(e.Text)
	case build.Progress:
		d.progress(e)
	case build.StepDone, build.HookStarted, build.HookDone:
		// The hook runner's own lines say so already.
	}
}

// progress prints at most one line in five seconds, and the last one.
func (d *plainDisplay) progress(e build.Event) {
	now := d.clock()
	key := e.Step + e.Unit
	if key == d.last && now.Before(d.until) && e.Done != e.Total {
		return
	}
	d.last, d.until = key, now.Add(5*time.Second)
	d.line(e.Step + ": " + amount(e))
}

func (d *plainDisplay) line(text string) {
	if d.quiet {
		return
	}
	if d.stamp {
		text = d.clock().UTC().Format("2006-01-02 15:04:05.000") + " | " + text
	}
	fmt.Fprintln(d.w, text)
}

func (d *plainDisplay) close() {}

// liveDisplay keeps one line of state at the bottom of a terminal.
type liveDisplay struct {
	w       io.Writer
	clock   func() time.Time
	width   func() int
	verbose bool
	tail    []string // the last lines that hooks printed
	step    string
	hook    string
	amount  string
	said    string    // the last line that a hook printed
	begun   time.Time // of the progress shown
	key     string
	drawn   time.Time
}

// tailLines is how many lines of a failed hook are shown.
const tailLines = 40

func (d *liveDisplay) event(e build.Event) {
	switch e.Kind {
	case build.StepStarted:
		d.step, d.hook, d.amount, d.said = e.Step, "", "", ""
		d.tail = nil
		d.draw(true)
	case build.StepDone:
		d.print(fmt.Sprintf("  %s", e.Text))
	case build.HookStarted:
		d.hook, d.amount, d.said = e.Hook, "", ""
		d.draw(true)
	case build.HookDone:
		d.hook = ""
	case build.Line:
		d.keep(e.Text)
	case build.Message:
		d.print(e.Text)
	case build.Progress:
		d.progress(e)
	}
}

func (d *liveDisplay) keep(text string) {
	d.said, d.amount = printable(text), "" // what was counted is over
	if d.verbose {
		d.print(text)
		return
	}
	if len(d.tail) == tailLines {
		d.tail = d.tail[1:]
	}
	d.tail = append(d.tail, text)
	d.draw(false)
}

// printable is text that keeps to its line.
func printable(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text))
}

func (d *liveDisplay) progress(e build.Event) {
	if key := e.Step + e.Unit; key != d.key {
		d.key, d.begun = key, d.clock()
	}
	d.step, d.said = e.Step, ""
	d.amount = amount(e) + left(d.clock().Sub(d.begun), e.Done, e.Total)
	d.draw(e.Done == e.Total)
}

// print writes a line above the live one.
func (d *liveDisplay) print(text string) {
	fmt.Fprintf(d.w, "\r\x1b[K%s\n", text)
	d.draw(true)
}

// draw writes the live line, at most ten times a second unless forced.
func (d *liveDisplay) draw(force bool) {
	now := d.clock()
	if !force && now.Sub(d.drawn) < 100*time.Millisecond {
		return
	}
	d.drawn = now
	text := d.step
	for _, part := range []string{d.hook, d.amount, d.said} {
		if part != "" {
			text += " · " + part
		}
	}
	if w := d.width(); w > 1 && len([]rune(text)) >= w {
		text = string([]rune(text)[:w-1])
	}
	fmt.Fprintf(d.w, "\r\x1b[K%s", text)
}

func (d *liveDisplay) close() { fmt.Fprint(d.w, "\r\x1b[K") }

// dumpTail prints what the step under way had printed last.
func (d *liveDisplay) dumpTail() {
	fmt.Fprint(d.w, "\r\x1b[K")
	for _, l := range d.tail {
		fmt.Fprintln(d.w, l)
	}
}

// amount says how far a progress event is.
func amount(e build.Event) string {
	if e.Unit == "bytes" {
		if e.Total == 0 {
			return size(e.Done)
		}
		return size(e.Done) + " of " + size(e.Total)
	}
	if e.Total == 0 {
		return fmt.Sprintf("%d %s", e.Done, e.Unit)
	}
	return fmt.Sprintf("%d of %d %s", e.Done, e.Total, e.Unit)
}

// left estimates the time that the rest takes, from the pace so far.
func left(elapsed time.Duration, done, total int64) string {
	if done <= 0 || total <= done || elapsed < 2*time.Second {
		return ""
	}
	rest := time.Duration(float64(elapsed) * float64(total-done) / float64(done))
	return ", " + rest.Round(time.Second).String() + " left"
}

// size prints bytes with a binary unit.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, suffix := float64(n)/unit, 0
	for value >= unit && suffix < 5 {
		value /= unit
		suffix++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTPE"[suffix])
}

// report prints what a build made.
func report(w io.Writer, s *build.Summary) {
	if s.MinimalSize > 0 {
		fmt.Fprintf(w, "root file system %s, grows to %s\n", size(s.MinimalSize), size(s.GrowLimit))
	}
	var times []string
	for _, t := range s.Steps {
		if t.Elapsed >= 50*time.Millisecond {
			times = append(times, fmt.Sprintf("%s %.1fs", t.Name, t.Elapsed.Seconds()))
		}
	}
	fmt.Fprintf(w, "time: %s\n", strings.Join(times, ", "))
	fmt.Fprintf(w, "lock: %s\n", s.LockPath)
	for _, o := range s.Outputs {
		fmt.Fprintf(w, "%s: %s, %s on disk\n", o.Path, size(o.Size), size(o.Allocated))
	}
	for _, o := range s.Outputs {
		fmt.Fprintf(w, "sha256:%s  %s\n", o.SHA256, o.Path)
	}
}
