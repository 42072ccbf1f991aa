package vfat

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"cairn/fsbuild/tree"
)

// sliceWriter keeps what is written to it.
type sliceWriter []byte

func (s *sliceWriter) WriteAt(b []byte, off int64) (int, error) {
	if need := int(off) + len(b) - len(*s); need > 0 {
		*s = append(*s, make([]byte, need)...)
	}
	return copy((*s)[off:], b), nil
}

// bytesOf returns the whole image of a layout.
func bytesOf(t testing.TB, l *Layout) []byte {
	t.Helper()
	var s sliceWriter
	if _, err := l.Write(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	return append(s, make([]byte, l.Size()-int64(len(s)))...)
}

// sampleTree has in directory D (of more than a cluster) a file of 5 clusters,
// in the root a file of 3 clusters with a long name, and one in lower case.
func sampleTree(t testing.TB) *tree.Tree {
	t.Helper()
	tr := tree.New()
	nodes := []tree.Node{
		{Path: "D", Type: tree.Directory},
		{Path: "D/LARGE", Type: tree.Regular, Size: 5 * 512, Content: tree.Bytes(bytes.Repeat([]byte("large"), 512))},
		{Path: "lower", Type: tree.Regular, Size: 5, Content: tree.Bytes([]byte("lower"))},
		{Path: "with a long name", Type: tree.Regular, Size: 1100, Content: tree.Bytes(bytes.Repeat([]byte("f"), 1100))},
		{Path: "D/SUB", Type: tree.Directory},
	}
	for i := range 20 {
		nodes = append(nodes, tree.Node{Path: fmt.Sprintf("D/E%d", i), Type: tree.Regular})
	}
	for _, n := range nodes {
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

// samples are layouts of every type with clusters of 512 bytes: the root at
// cluster 2 (FAT32 only), D at 3 and 4, SUB at 5, lower at 6, the long name from
// 7, LARGE from 10; for FAT12 and FAT16 one less.
func samples(t testing.TB) map[Type]*Layout {
	t.Helper()
	out := map[Type]*Layout{FAT32: smallFAT32(t, sampleTree(t))}
	for _, typ := range []Type{FAT12, FAT16} {
		l, err := Plan(sampleTree(t), Params{Type: typ, ClusterSize: 512, Label: "SMALL", Serial: 1})
		if err != nil {
			t.Fatal(err)
		}
		out[typ] = l
	}
	return out
}

// setFAT changes an entry in both FATs.
func setFAT(l *Layout, b []byte, cluster, value uint32) {
	g := &l.geo
	for i := range uint64(fats) {
		f := b[(g.reserved+i*g.fat)*g.sector:]
		switch g.typ {
		case FAT12:
			p := f[cluster*3/2:]
			v := le.Uint16(p)
			if cluster%2 == 1 {
				v = v&0xf | uint16(value)<<4
			} else {
				v = v&0xf000 | uint16(value)&0xfff
			}
			le.PutUint16(p, v)
		case FAT16:
			le.PutUint16(f[2*cluster:], uint16(value))
		default:
			le.PutUint32(f[4*cluster:], value)
		}
	}
}

// smallFAT32 plans a FAT32 with few clusters, which Plan does not make but
// readers meet.
func smallFAT32(t testing.TB, tr *tree.Tree) *Layout {
	t.Helper()
	l, err := Plan(tr, Params{Type: FAT32, Label: "SMALL", Serial: 1})
	if err != nil {
		t.Fatal(err)
	}
	g := &l.geo
	g.clusters = uint64(l.used) + 3
	g.fat = fatSectors(FAT32, g.clusters, g.sector)
	g.total = g.dataStart() + g.clusters*g.perCluster
	return l
}

// readAll opens an image and reads everything in it.
func readAll(b []byte) (string, *Volume, error) {
	v, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return "", nil, err
	}
	var s strings.Builder
	err = v.Tree.WriteText(&s)
	return s.String(), v, err
}

// FuzzOpen damages images (run it with -fuzzminimizetime 5x: inputs are large,
// and making them smaller takes longer than finding them). Opening one must not fail but by an error, and what
// opens and can be written again reads back the same.
func FuzzOpen(f *testing.F) {
	for _, l := range samples(f) {
		b := bytesOf(f, l)
		f.Add(b[:l.geo.offset(firstCluster+l.used)], uint32(len(b)))
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint32) {
		v, err := Open(zeros(b), int64(size%(64<<20)))
		if err != nil {
			return
		}
		var first strings.Builder
		if err = v.Tree.WriteText(&first); err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("contents: %v", err)
			}
			return
		}
		p := Params{ClusterSize: 4096, RootEntries: maxRootEntries, Label: "FUZZ"}
		l, err := Plan(v.Tree, p)
		if err != nil {
			return // a name that others allow
		}
		again, _, err := readAll(bytesOf(t, l))
		if again = strings.ReplaceAll(again, " 0444 ", " 0644 "); err != nil || again != strings.ReplaceAll(first.String(), " 0444 ", " 0644 ") {
			t.Fatalf("written again: %v\n%s\nwas:\n%s", err, again, first.String())
		}
	})
}
