package ext4_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
)

// corpusTrees is how many generated trees a test run writes and reads back;
// CAIRN_TEST_TREES sets another number.
const corpusTrees = 1000

// variant is one way to write a file system.
type variant struct {
	name                 string
	kind                 ext4.Type
	blockSize, inodeSize int
}

// variants are all types and block sizes, and old and large inodes.
var variants = []variant{
	{"ext4 4K", ext4.Ext4, 4096, 256},
	{"ext4 2K", ext4.Ext4, 2048, 256},
	{"ext4 1K", ext4.Ext4, 1024, 256},
	{"ext3 4K", ext4.Ext3, 4096, 256},
	{"ext3 2K", ext4.Ext3, 2048, 256},
	{"ext3 1K", ext4.Ext3, 1024, 256},
	{"ext2 4K", ext4.Ext2, 4096, 256},
	{"ext2 2K", ext4.Ext2, 2048, 256},
	{"ext2 1K", ext4.Ext2, 1024, 256},
	{"ext4 4K, old inodes", ext4.Ext4, 4096, 128},
	{"ext2 1K, old inodes", ext4.Ext2, 1024, 128},
	{"ext4 4K, large inodes", ext4.Ext4, 4096, 1024},
	{"ext3 1K, large inodes", ext4.Ext3, 1024, 1024},
}

// params are those of the variant.
func (v variant) params() ext4.Params {
	p := noClamp()
	p.Type, p.BlockSize, p.InodeSize = v.kind, v.blockSize, v.inodeSize
	return p
}

// suit changes a generated tree to what the variant can hold. Names of one
// file stay equal.
func (v variant) suit(tr *tree.Tree) *tree.Tree {
	for n := range tr.All() {
		if len(n.Target) >= v.blockSize {
			n.Target = n.Target[:v.blockSize-1]
		}
		if v.inodeSize == 128 {
			n.MTime = tree.Time{Sec: min(n.MTime.Sec, math.MaxInt32)}
		}
		room := v.blockSize - 36
		for i := 0; i < len(n.Xattrs); i++ {
			x := n.Xattrs[i]
			size := 24 + len(x.Name) + len(x.Value) // a little more than it takes
			if size > room {
				n.Xattrs = append(n.Xattrs[:i:i], n.Xattrs[i+1:]...)
				i--
				continue
			}
			room -= size
		}
		if len(n.Xattrs) == 0 {
			n.Xattrs = nil
		}
	}
	return tr
}

// TestGenerated writes generated trees in every variant and reads each back
// with e2fsprogs.
func TestGenerated(t *testing.T) {
	count := corpusTrees
	if s := os.Getenv("CAIRN_TEST_TREES"); s != "" {
		var err error
		if count, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	var next atomic.Int64
	for shard := range runtime.GOMAXPROCS(0) {
		t.Run(fmt.Sprint("shard ", shard), func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(scratchDir(t), "fs.img")
			for i := next.Add(1) - 1; i < int64(count) && !t.Failed(); i = next.Add(1) - 1 {
				checkGenerated(t, img, uint64(i))
			}
		})
	}
}

// checkGenerated writes and reads the i-th tree. Directories of thousands of
// entries cost as much as twenty other trees, so only one in a hundred has them.
func checkGenerated(t *testing.T, img string, i uint64) {
	seed := i
	if i%10 == 3 && i%100 != 3 {
		seed += 1_000_001
	}
	v := variants[i%uint64(len(variants))]
	tr, p := v.suit(fstest.Generate(seed)), v.params()
	clamp := i/2%2 == 1
	if clamp {
		p.Time = params().Time
		for n := range tr.All() { // as Params.Time does, so that the comparison sees it
			if n.MTime.Sec >= p.Time.Unix() {
				n.MTime = tree.Time{Sec: p.Time.Unix()}
			}
		}
	}
	s, err := writeImage(t, img, tr, p)
	if err != nil {
		t.Errorf("tree %d as %s: %v", seed, v.name, err)
		return
	}
	fsck(t, img)
	got := readBack(t, img, s)
	if !clamp {
		got.Remove("lost+found") // stamped with the other time
	}
	if diff := firstDiff(text(t, tr), text(t, got)); diff != "" {
		t.Errorf("tree %d as %s, read back: %s", seed, v.name, diff)
	}
}
