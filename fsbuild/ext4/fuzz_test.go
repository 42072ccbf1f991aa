package ext4_test

import (
	"path/filepath"
	"testing"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/internal/fstest"
)

// FuzzParams: whatever the parameters, Plan refuses them with an error or makes
// a layout whose sizes agree; e2fsck finds nothing wrong with an image that is
// not too large to look at.
func FuzzParams(f *testing.F) {
	f.Add(uint64(0), uint8(0), uint8(2), uint8(1), int64(0), int64(0), int64(0), int64(0), int64(0), uint32(0), uint16(0))
	f.Add(uint64(1), uint8(1), uint8(0), uint8(1), int64(64<<20), int64(0), int64(0), int64(1<<20), int64(0), uint32(0), uint16(0x102))
	f.Add(uint64(2), uint8(2), uint8(1), uint8(0), int64(0), int64(1<<20), int64(0), int64(-1), int64(8192), uint32(0), uint16(0x203))
	f.Add(uint64(5), uint8(0), uint8(2), uint8(2), int64(0), int64(0), int64(1<<50), int64(0), int64(0), uint32(5000), uint16(0x304))
	f.Add(uint64(6), uint8(0), uint8(0), uint8(3), int64(0), int64(1<<62), int64(1<<45), int64(0), int64(1024), uint32(0), uint16(1))
	f.Add(uint64(7), uint8(0), uint8(2), uint8(1), int64(1<<45), int64(0), int64(0), int64(0), int64(0), uint32(1<<31), uint16(0))
	scratch := scratchDir(f)
	f.Fuzz(func(t *testing.T, seed uint64, kind, block, inode uint8, size, slack, growTo, journal, ratio int64, inodes uint32, more uint16) {
		if seed%10 == 3 || size>>(block%4) > 1<<43 { // too slow for many rounds
			return
		}
		v := variant{kind: ext4.Type(kind), blockSize: 1024 << (block % 4), inodeSize: 128 << (inode % 8)}
		p := v.params()
		p.Size, p.Slack, p.GrowTo, p.JournalSize, p.InodeRatio, p.Inodes = size, slack, growTo, journal, ratio, inodes
		p.LargeDir, p.JournalBySize, p.KernelReserve = more&1 != 0, more&2 != 0, more&4 != 0
		p.Factor, p.ReservedPercent = float64(more>>8)/16, float64(more>>4&0xf)*4
		tr := v.suit(fstest.Generate(seed))
		l, err := ext4.Plan(tr, p)
		if err != nil {
			return
		}
		s := l.Summary()
		switch {
		case s.Size != l.Size() || s.FreeBlocks > s.Blocks || s.Blocks*s.BlockSize > s.Size:
			t.Errorf("sizes do not agree: %+v", s)
		case size != 0 && s.Size != size, s.MaxSize < growTo, s.Inodes < int64(inodes), s.UsedInodes > s.Inodes:
			t.Errorf("not as asked for: %+v", s)
		case s.KernelReserved > 0 && p.KernelReserve && s.FreeBlocks*s.BlockSize-s.KernelReserved < slack:
			t.Errorf("%d bytes are not free: %+v", slack, s)
		}
		if s.Blocks > 1<<20 || s.Inodes > 1<<20 {
			return
		}
		img := filepath.Join(scratch, "fs.img")
		if _, err := writeImage(t, img, tr, p); err != nil {
			t.Fatal(err)
		}
		fsck(t, img)
	})
}
