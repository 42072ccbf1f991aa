package grub_test

import (
	"strings"
	"testing"

	"cairn/fsbuild/grub"
)

// FuzzEarlyConfig: no label, UUID or directory becomes more than one word of the
// two commands.
func FuzzEarlyConfig(f *testing.F) {
	f.Add("cloudimg-rootfs", "", "/boot/grub")
	f.Add("my $root; x\"y", "", "/boot dir")
	f.Add("", "0a1b2c3d-0000-4000-8000-0123456789ab", "/grub")
	f.Add("a\nreboot", "", "/'")
	f.Fuzz(func(t *testing.T, label, uuid, dir string) {
		text, err := grub.EarlyConfig(grub.Root{Label: label, UUID: uuid}, dir)
		if err != nil {
			return
		}
		want := []string{"search.fs_label", label, "root"}
		if label == "" {
			want = []string{"search.fs_uuid", uuid, "root"}
		}
		first, second, _ := strings.Cut(text, "\n")
		if got := words(t, first); strings.Join(got, "\x00") != strings.Join(want, "\x00") {
			t.Errorf("%q is %q, want %q", first, got, want)
		}
		path, ok := strings.CutPrefix(strings.TrimSuffix(second, "\n"), "set prefix=($root)")
		if got := words(t, path); !ok || len(got) != 1 || got[0] != dir {
			t.Errorf("%q is %q, want the directory %q", second, got, dir)
		}
	})
}

// words splits a line as GRUB does. What is outside of quotes has no meaning of
// its own.
func words(t *testing.T, line string) (list []string) {
	t.Helper()
	var word strings.Builder
	quoted := false
	for _, c := range []byte(line + " ") {
		switch {
		case c == '\'':
			quoted = !quoted
		case c == ' ' && !quoted:
			list = append(list, word.String())
			word.Reset()
		case !quoted && strings.IndexByte("\\\"$;{}|&<>#\t\n", c) >= 0:
			t.Fatalf("%q has %q outside of quotes", line, c)
		default:
			word.WriteByte(c)
		}
	}
	if quoted {
		t.Fatalf("%q has an open quote", line)
	}
	return list
}
