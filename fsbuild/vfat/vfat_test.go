package vfat_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
)

// stamp is the time of the images of tests.
var stamp = time.Date(2023, 11, 14, 22, 13, 21, 0, time.UTC)

func params() vfat.Params {
	return vfat.Params{Label: "CAIRN", Serial: 0x1234abcd, Time: stamp}
}

// scratchDir returns a directory in memory where there is one.
func scratchDir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("/dev/shm", "vfat-test-") //nolint:usetesting // in memory
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(d) })
	return d
}

// run returns the standard output of a program, which must succeed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// image writes a tree to a new file and returns its name.
func image(t testing.TB, tr *tree.Tree, p vfat.Params) (string, vfat.Summary) {
	t.Helper()
	f, err := os.CreateTemp(scratchDir(t), "*.img")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := vfat.Write(t.Context(), &strictWriter{t: t, f: f}, tr, p)
	if err == nil {
		err = f.Truncate(s.Size)
	}
	if err != nil {
		t.Fatalf("Write: %v", err)
	}
	return f.Name(), s
}

// strictWriter checks that offsets ascend and calls do not overlap.
type strictWriter struct {
	t   testing.TB
	f   *os.File
	end int64
}

func (s *strictWriter) WriteAt(b []byte, off int64) (int, error) {
	if off < s.end || len(b) == 0 {
		s.t.Errorf("WriteAt of %d bytes at %d, but %d was reached", len(b), off, s.end)
	}
	s.end = off + int64(len(b))
	return s.f.WriteAt(b, off)
}

// open reads an image with this package.
func open(t testing.TB, name string) *vfat.Volume {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	v, err := vfat.Open(f, info.Size())
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return v
}

// text is the text form of a tree.
func text(t testing.TB, tr *tree.Tree) string {
	t.Helper()
	var b bytes.Buffer
	if err := tr.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// asFAT returns what is left of a tree when it went through FAT.
func asFAT(t testing.TB, tr *tree.Tree, clamp time.Time) *tree.Tree {
	t.Helper()
	out := tree.New()
	least := time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	most := time.Date(2107, 12, 31, 23, 59, 58, 0, time.UTC).Unix()
	for n := range tr.All() {
		if n.Path == "." {
			continue
		}
		c := tree.Node{Path: n.Path, Type: n.Type, Mode: 0o644, Size: n.Size, Content: n.Content}
		if n.Type == tree.Directory {
			c.Mode = 0o755
		}
		c.MTime.Sec = n.MTime.Sec
		if !clamp.IsZero() {
			c.MTime.Sec = min(c.MTime.Sec, clamp.Unix())
		}
		c.MTime.Sec = min(max(c.MTime.Sec, least), most) &^ 1
		if err := out.Add(c); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// firstDiff describes where two texts differ first.
func firstDiff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		switch {
		case i >= len(w):
			return fmt.Sprintf("line %d: got %q, want nothing", i, g[i])
		case i >= len(g):
			return fmt.Sprintf("line %d: got nothing, want %q", i, w[i])
		case w[i] != g[i]:
			return fmt.Sprintf("line %d: got %q\nwant %q", i, g[i], w[i])
		}
	}
	return ""
}

// build makes a tree of nodes.
func build(t testing.TB, nodes ...tree.Node) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for _, n := range nodes {
		if err := tr.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func file(path, content string) tree.Node {
	return tree.Node{Path: path, Type: tree.Regular, Mode: 0o644, Size: int64(len(content)), Content: tree.Bytes([]byte(content))}
}

func directory(path string) tree.Node {
	return tree.Node{Path: path, Type: tree.Directory, Mode: 0o755}
}

// generate returns a tree that is a function of the seed: names that readers
// get wrong, sizes around the limits of clusters; every fifth seed has a wide
// directory, every fifth a deep one.
func generate(t testing.TB, seed uint64) *tree.Tree {
	t.Helper()
	g := &generator{rng: rand.New(rand.NewPCG(seed, 7)), t: tree.New(), dirs: []string{"."}, folded: map[string]bool{}}
	for range 20 + g.rng.IntN(100) {
		dir := g.dirs[g.rng.IntN(len(g.dirs))]
		g.add(dir, g.name(), g.rng.IntN(4) == 0)
	}
	switch seed % 5 {
	case 2:
		g.add(".", "wide", true)
		for i := range 600 + g.rng.IntN(600) {
			g.add("wide", fmt.Sprintf("wide and long name %d.text", i*7919), false)
		}
	case 4:
		dir := "."
		for i := range 1 + g.rng.IntN(60) {
			name := []string{"d", "EE", "Long name"}[g.rng.IntN(3)]
			if g.add(dir, name, true); dir == "." {
				dir = name
			} else {
				dir += "/" + name
			}
			if len(dir) > 200 || i == 59 {
				g.add(dir, "at the end", false)
				break
			}
		}
	}
	return g.t
}

type generator struct {
	rng    *rand.Rand
	t      *tree.Tree
	dirs   []string
	folded map[string]bool // paths in upper case
}

// add adds a node unless its path is too long or taken.
func (g *generator) add(dir, name string, isDir bool) {
	n := tree.Node{Path: name, Type: tree.Regular, Mode: 0o600, UID: 1000}
	if dir != "." {
		n.Path = dir + "/" + name
	}
	if key := strings.ToUpper(n.Path); g.folded[key] || len([]rune(n.Path)) > 240 || g.t.Lookup(dir) == nil {
		return
	} else {
		g.folded[key] = true
	}
	n.MTime = tree.Time{Sec: []int64{0, 315532800, 1_600_000_001, 1_700_000_000, 4_354_819_198, 9e9}[g.rng.IntN(6)], Nsec: 5e8}
	if isDir {
		n.Type = tree.Directory
		g.dirs = append(g.dirs, n.Path)
	} else {
		size := []int{0, 1, 511, 512, 513, 2047, 2048, 2049, 4095, 4096, 4097, 16383, 16384, 16385, 50_000}[g.rng.IntN(15)]
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(g.rng.Uint32())
		}
		n.Size, n.Content = int64(size), tree.Bytes(b)
	}
	if err := g.t.Add(n); err != nil {
		panic("BUG: generated an invalid node: " + err.Error())
	}
}

func (g *generator) name() string {
	n := g.rng.IntN(10_000)
	switch g.rng.IntN(12) {
	case 0:
		return fmt.Sprintf("lower%d.txt", n%100)
	case 1:
		return fmt.Sprintf("UPPER%d.TXT", n%100)
	case 2:
		return fmt.Sprintf("lower%d.TXT", n%100)
	case 3:
		return fmt.Sprintf("Mixed%d.Txt", n%100)
	case 4:
		return fmt.Sprintf("MIXED~%d.x", n%10)
	case 5:
		return strings.Repeat(string(rune('a'+n%26)), 1+n%200)
	case 6: // around the slots of long names
		return strings.Repeat("Ω", 11+n%5) + strings.Repeat("x", 13*(n%3))
	case 7:
		return []string{".hidden", "..two", "a b c", " leading", "a+b,c;d=e[f]", "%x", "ümlaut", "ÄÖÜ.TXT", "日本語.txt", "long.name.with.dots", "x.", "~", "_", "\u00a0", "é", "NUL", "e\u0301"}[n%17] + "z"
	case 8:
		return fmt.Sprintf("😀 astral %d \U00020000", n)
	case 9:
		b := make([]rune, 1+n%30)
		for i := range b {
			for b[i] = 0; b[i] == 0 || strings.ContainsRune(`"*/:<>?\|`, b[i]); {
				b[i] = rune(' ' + g.rng.IntN(0x5f))
				if g.rng.IntN(2) == 0 {
					b[i] = rune(0x4e00 + g.rng.IntN(0x5000))
				}
			}
		}
		return string(b) + "q"
	}
	return fmt.Sprintf("file-%d", n)
}

// kinds are the formats that the judges judge.
func kinds() map[string]vfat.Params {
	out := map[string]vfat.Params{}
	for _, typ := range []vfat.Type{vfat.FAT12, vfat.FAT16, vfat.FAT32} {
		for _, sector := range []int{512, 4096} {
			p := params()
			p.Type, p.SectorSize = typ, sector
			if typ != vfat.FAT32 {
				p.ClusterSize = 4096
			}
			out[fmt.Sprintf("%s/%d", typ, sector)] = p
		}
	}
	return out
}

// TestGenerated: generated trees of every type are sound for fsck, and this
// package, mtools and the source agree on names, sizes, times and contents.
func TestGenerated(t *testing.T) {
	t.Parallel()
	for name, p := range kinds() {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(10) {
				tr := generate(t, seed)
				if seed%2 == 0 {
					p.Time = time.Time{}
				} else {
					p.Time = stamp
				}
				img, s := image(t, tr, p)
				fsck(t, img)
				if s.Type != p.Type || s.FreeClusters < 0 {
					t.Fatalf("seed %d: %+v", seed, s)
				}
				want := asFAT(t, tr, p.Time)
				v := open(t, img)
				if diff := firstDiff(text(t, want), text(t, v.Tree)); diff != "" {
					t.Fatalf("seed %d: own reader: %s", seed, diff)
				}
				if v.Label != p.Label || v.Serial != p.Serial || v.Type != s.Type || v.ClusterSize != s.ClusterSize || v.Clusters != s.Clusters {
					t.Fatalf("seed %d: own reader: %+v of %+v", seed, v, s)
				}
				if seed > 4 {
					mtools(t, img, want)
				}
				if err := os.Remove(img); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// mtools compares what mdir lists and mcopy copies with a tree.
func mtools(t *testing.T, img string, want *tree.Tree) {
	t.Helper()
	var names strings.Builder
	for n := range want.All() {
		if n.Path != "." {
			names.WriteString(mtoolsName(n) + "\n")
		}
	}
	got := strings.Split(strings.TrimSuffix(run(t, "mdir", "-a", "-b", "-/", "-i", img, "::"), "\n"), "\n")
	if diff := firstDiff(sortedLines(names.String()), sortedLines(strings.Join(got, "\n")+"\n")); diff != "" {
		t.Fatalf("mdir: %s", diff)
	}
	dst := t.TempDir()
	run(t, "mcopy", "-s", "-n", "-m", "-Q", "-i", img, "::*", dst)
	for n := range want.All() {
		if n.Type != tree.Regular {
			continue
		}
		name := filepath.Join(dst, strings.TrimPrefix(mtoolsName(n), "::"))
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, contentOf(t, n)) {
			t.Fatalf("mcopy: %q has other content", n.Path)
		}
		if past2099 := n.MTime.Sec > 4_102_444_799; info.ModTime().Unix() != n.MTime.Sec && !past2099 { // mtools takes 2100 for a leap year
			t.Fatalf("mcopy: %q is of %s, want %s", n.Path, info.ModTime().UTC(), time.Unix(n.MTime.Sec, 0).UTC())
		}
	}
}
