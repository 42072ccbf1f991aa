package grub_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/grub"
)

// FuzzEmbed: what is embedded fits its place, is the given core.img but for its
// first sector, and embedding it again changes nothing.
func FuzzEmbed(f *testing.F) {
	boot := edit(edit(make([]byte, 512), 0x66, 0xeb, 0x05), 0x1fe, 0x55, 0xaa)
	core := edit(make([]byte, 1500), 0x1fe, 0x20, 0x08)
	f.Add(boot, core, uint64(1), uint64(2048))
	f.Add(boot, inPieces(core, 2), uint64(34), uint64(37))
	f.Add(boot, inPieces(core, 42), uint64(1), uint64(1)<<63)
	f.Add(boot, edit(core, 0x1fc, 9), uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, boot, core []byte, start, end uint64) {
		e, err := grub.Embed(boot, core, start, end)
		if err != nil {
			return
		}
		if uint64(len(e.Core)) > (end-start)*512 || len(e.Core)-len(core) >= 512 || e.CoreLBA != start {
			t.Errorf("%d bytes of %d at %d, for sectors %d to %d", len(e.Core), len(core), e.CoreLBA, start, end)
		}
		if !bytes.Equal(e.Core[512:len(core)], core[512:]) {
			t.Error("core.img changed behind its first sector")
		}
		again, err := grub.Embed(append(bytes.Clone(e.BootCode), boot[440:]...), e.Core, start, end)
		if diff := cmp.Diff(e, again); err != nil || diff != "" {
			t.Errorf("embedding it again: %v (-first +again):\n%s", err, diff)
		}
	})
}
