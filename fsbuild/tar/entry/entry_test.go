package entry_test

import (
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	"cairn/fsbuild/tar/entry"
)

// FuzzClean compares with package path.
func FuzzClean(f *testing.F) {
	for _, name := range []string{
		"a/b", "./a", "a/", "/", "", ".", "./", "/.", "./.", "..", "a/..", "./..", "a/../b", "a//b", "/a/./b//", ".//a", "././a",
		"...", "..a", "a./.b", "./.a/", "a\x00", "a/b/c/d", "a/./b/./c/", strings.Repeat("n", 31), "a/b/c/d/../..",
	} {
		f.Add(name)
	}
	limits := entry.Limits{NameBytes: 30, Depth: 3}
	f.Fuzz(func(t *testing.T, name string) {
		got, err := limits.Clean(name)
		want := path.Clean("/" + name)[1:]
		var cause error
		switch {
		case len(name) > limits.NameBytes:
			cause = entry.ErrLimit
		case strings.Contains(name, "\x00"), slices.Contains(strings.Split(name, "/"), ".."):
			cause = entry.ErrUnsafe
		case want == "":
			want = "."
		case strings.Count(want, "/") >= limits.Depth:
			cause = entry.ErrLimit
		}
		if cause != nil {
			want = ""
		}
		if got != want || !errors.Is(err, cause) || (err == nil) != (cause == nil) {
			t.Errorf("Clean(%q) is %q, %v; want %q, %v", name, got, err, want, cause)
		}
	})
}
