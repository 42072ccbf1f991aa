package lock

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"cairn/reproducibility/store"
)

// Diff returns the differences between two locks for people to read, a line
// for each thing that was added (+), removed (-) or changed (~); "" if there
// are none.
func Diff(before, after *Lock) string {
	lines := diffLines(before, after)
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

func diffLines(before, after *Lock) []string {
	a, b := facts(before), facts(after)
	var names []string
	for name := range a {
		names = append(names, name)
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var lines []string
	for _, name := range names {
		was, had := a[name]
		is, has := b[name]
		switch {
		case !had:
			lines = append(lines, fmt.Sprintf("+ %s: %s", name, is))
		case !has:
			lines = append(lines, fmt.Sprintf("- %s: %s", name, was))
		case was != is:
			lines = append(lines, fmt.Sprintf("~ %s: %s -> %s", name, was, is))
		}
	}
	return lines
}

// facts returns what a lock says as pairs of a name and a value.
func facts(l *Lock) map[string]string {
	f := map[string]string{
		"epoch":            moment(l.Epoch),
		"request arch":     l.Request.Arch,
		"request elements": strings.Join(l.Request.Elements, " "),
		"request packages": strings.Join(l.Request.Packages, " "),
		"request types":    strings.Join(slices.Sorted(slices.Values(l.Request.Types)), " "),
		"seed":             short(l.Seed),
	}
	for k, v := range l.Request.Options {
		f["request option "+k] = fmt.Sprintf("%q", v)
	}
	for _, r := range l.Releases {
		name := "release " + r.URL + " " + r.Suite
		f[name] = moment(r.Date) + " " + digits(r.Digest)
		for _, x := range r.Indexes {
			f[name+" "+x.Path] = digits(x.Digest)
		}
	}
	baseFacts(f, "base", &l.Base)
	baseFacts(f, "tools", l.Tools)
	for _, e := range l.Elements {
		f["element "+e.Name] = e.Origin + " " + digits(e.Digest)
	}
	for _, x := range l.Fetched {
		f["fetched "+x.URL] = fmt.Sprint(x.Status, " ", digits(x.Digest))
	}
	for _, o := range l.Outputs {
		f["output "+o.name()] = digits(o.Digest)
	}
	return f
}

func baseFacts(f map[string]string, name string, b *Base) {
	if b == nil {
		return
	}
	f[name] = strings.TrimSpace(b.Kind + " " + b.Reference + " " + digits(b.Digest))
	for _, p := range b.Packages {
		f[name+" package "+p.Name+":"+p.Arch] = p.Version + " " + digits(p.Digest)
	}
	for i, y := range b.Layers {
		f[fmt.Sprintf("%s layer %d", name, i)] = digits(y.Digest)
	}
}

func moment(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }

// digits returns enough of a digest to tell it from others.
func digits(d store.Digest) string { return short(d.Hex()) }

func short(hex string) string { return hex[:min(12, len(hex))] }
