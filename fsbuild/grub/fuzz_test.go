package grub_test

import (
	"bytes"
	"strings"
	"testing"

	"cairn/fsbuild/grub"
)

// FuzzEmbed embeds whatever looks like GRUB's images: what comes out fits into
// its place, and embedding it again changes nothing.
func FuzzEmbed(f *testing.F) {
	boot, core := make([]byte, 512), make([]byte, 1301)
	boot[0x66], boot[0x67], boot[0x1fe], boot[0x1ff] = 0xeb, 0x05, 0x55, 0xaa
	core[0x1fe], core[0x1ff] = 0x20, 0x08
	f.Add(boot, core, uint64(1), uint64(2048))
	f.Add(boot, core, uint64(40), uint64(43))
	f.Add(boot, core[:600], uint64(1)<<63, ^uint64(0))
	f.Add(boot, core, uint64(9), uint64(1))
	f.Fuzz(func(t *testing.T, boot, core []byte, start, end uint64) {
		e, err := grub.Embed(boot, core, start, end)
		if err != nil {
			return
		}
		sectors := uint64(len(e.Core) / 512)
		if len(e.BootCode) != 440 || len(e.Core)%512 != 0 || len(e.Core) < len(core) || e.CoreLBA != start || sectors > end-start {
			t.Fatalf("%d bytes of boot code, %d of core.img at %d, in sectors %d to %d", len(e.BootCode), len(e.Core), e.CoreLBA, start, end)
		}
		again, err := grub.Embed(append(e.BootCode, boot[440:]...), e.Core, start, end)
		if err != nil || !bytes.Equal(again.BootCode, e.BootCode) || !bytes.Equal(again.Core, e.Core) {
			t.Fatalf("embedded again: error %v, the same: %v", err, bytes.Equal(again.Core, e.Core))
		}
	})
}

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
