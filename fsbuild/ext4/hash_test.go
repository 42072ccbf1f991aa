package ext4

import (
	"fmt"
	"strings"
	"testing"

	"cairn/fsbuild/tree"
)

// TestDirHash compares with what debugfs 1.47 says: dx_hash -h half_md4.
func TestDirHash(t *testing.T) {
	seed := [16]byte{1, 2, 3, 4, 5, 6, 0x47, 8, 0x89, 10, 11, 12, 13, 14, 15, 16}
	for _, c := range []struct {
		name       string
		plain, own uint32
	}{
		{"a", 0xd5fa7d7a, 0x78aa1ca2},
		{"lost+found", 0x591de422, 0x58e537b2},
		{strings.Repeat("x", 31), 0x415798c2, 0xce8468},
		{strings.Repeat("x", 32), 0xae38ae70, 0x7b5f57a},
		{strings.Repeat("x", 33), 0xebd0861e, 0x273266c6},
		{strings.Repeat("x", 255), 0x2aa7169e, 0x68ab0c80},
		{"\xc3\xa4\xff", 0x1bd45aaa, 0xd6e32060},
	} {
		if got := newDirHasher([16]byte{}).hash(c.name); got != c.plain {
			t.Errorf("%q: hash %#x with the default seed, want %#x", c.name, got, c.plain)
		}
		if got := newDirHasher(seed).hash(c.name); got != c.own {
			t.Errorf("%q: hash %#x with a seed, want %#x", c.name, got, c.own)
		}
	}
}

// TestHashCollision: when names of equal hash fall into two leaves, the index
// entry of the second has the lowest bit set, so that a lookup goes on there.
func TestHashCollision(t *testing.T) {
	h := newDirHasher([16]byte{})
	filler := strings.Repeat("f", 200)
	seen := map[uint32]string{}
	for i := 0; ; i++ {
		name := fmt.Sprintf("%d%s", i, filler)
		other, ok := seen[h.hash(name)]
		seen[h.hash(name)] = name
		if ok {
			checkCollision(t, h, []string{name, other}, seen)
			return
		}
	}
}

// checkCollision builds a directory in which names of lower hashes push the
// first of a pair to the end of the first leaf.
func checkCollision(t *testing.T, h dirHasher, pair []string, others map[uint32]string) {
	t.Helper()
	perLeaf := (defaultBlockSize - dirTailSize) / entrySize(len(pair[0]))
	tr := tree.New()
	add := func(name string) {
		if err := tr.Add(tree.Node{Path: name, Type: tree.FIFO}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for hash, name := range others {
		if hash < h.hash(pair[0]) && len(name) == len(pair[0]) && n < perLeaf-1 {
			add(name)
			n++
		}
	}
	add(pair[0])
	add(pair[1])
	if n != perLeaf-1 {
		t.Fatalf("%d names are before the pair, want %d", n, perLeaf-1)
	}
	tr.Lookup(pair[0]).Mode = 0o600
	l, err := Plan(tr, Params{UUID: [16]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	w := l.newDirWriter(&l.dirs[0])
	if len(w.hashes) != 2 || w.hashes[1] != h.hash(pair[0])|1 {
		t.Errorf("hashes of leaves are %#x, want the second to be %#x", w.hashes, h.hash(pair[0])|1)
	}
}
