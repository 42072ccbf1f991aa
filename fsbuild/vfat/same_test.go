package vfat_test

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
)

// TestSameBytes: neither the order of Add nor the number of processors, nor
// what else a node has, shows.
func TestSameBytes(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for name, p := range kinds() {
		var want []byte
		tr := generate(t, 30)
		var nodes []tree.Node
		for n := range tr.All() {
			if n.Path != "." {
				nodes = append(nodes, *n)
			}
		}
		for round := range uint64(4) {
			runtime.GOMAXPROCS([]int{1, 16}[round%2])
			rng := rand.New(rand.NewPCG(round, 0))
			rng.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
			shuffled := tree.New()
			for left := nodes; len(left) > 0; {
				left = slices.DeleteFunc(slices.Clone(left), func(n tree.Node) bool {
					if shuffled.Lookup(n.Parent()) == nil {
						return false
					}
					n.UID, n.Mode = uint32(round), 0o700
					if err := shuffled.Add(n); err != nil {
						t.Fatal(err)
					}
					return true
				})
			}
			var m memory
			if _, err := vfat.Write(t.Context(), &m, shuffled, p); err != nil {
				t.Fatal(err)
			}
			if want == nil {
				want = m.data
			} else if !bytes.Equal(want, m.data) {
				t.Errorf("%s: other bytes in round %d", name, round)
			}
		}
	}
}

// TestHoles: a content with holes gives the bytes that its zeros give, and
// hard links are files with equal content.
func TestHoles(t *testing.T) {
	holes := &fstest.Holes{Bytes: 100_000, Runs: []fstest.Run{{Off: 5000, Data: []byte("data")}, {Off: 90_000, Data: []byte("more")}}}
	plain := make([]byte, holes.Bytes)
	copy(plain[5000:], "data")
	copy(plain[90_000:], "more")
	node := tree.Node{Path: "a", Type: tree.Regular, Mode: 0o644, Size: holes.Bytes, Content: holes, Inode: 1}
	link := node
	link.Path = "b"
	img, _ := image(t, build(t, node, link), params())
	fsck(t, img)
	want := build(t, file("a", string(plain)), file("b", string(plain)))
	if diff := firstDiff(text(t, asFAT(t, want, stamp)), text(t, open(t, img).Tree)); diff != "" {
		t.Error(diff)
	}
}

// TestMedia: media descriptor and hidden sectors are where asked for.
func TestMedia(t *testing.T) {
	p := params()
	p.Media, p.HiddenSectors = 0xf0, 0x01020304
	var m memory
	if _, err := vfat.Write(t.Context(), &m, tree.New(), p); err != nil {
		t.Fatal(err)
	}
	if got := m.data[21]; got != 0xf0 {
		t.Errorf("BPB_Media is %#x", got)
	}
	if got := m.data[28:32]; !bytes.Equal(got, []byte{4, 3, 2, 1}) {
		t.Errorf("BPB_HiddSec is % x", got)
	}
	if got := m.data[512:515]; !bytes.Equal(got, []byte{0xf0, 0xff, 0xff}) {
		t.Errorf("the FAT starts with % x", got)
	}
	if got := m.data[36]; got != 0 {
		t.Errorf("BS_DrvNum is %#x", got)
	}
}
