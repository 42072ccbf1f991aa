package fstest

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/fsbuild/tree"
)

// BenchTree returns the directory that benchmarks compare on: the one that
// CAIRN_BENCH_TREE names, else [DebianTree] written below scratch. It was read
// once, and a file of its size was below scratch, so that the first to be
// measured does not pay for a cold cache or memory that was not in use before.
func BenchTree(t testing.TB, scratch string) string {
	t.Helper()
	root := os.Getenv("CAIRN_BENCH_TREE") //nolint:forbidigo // chosen by who measures
	if root == "" {
		root = filepath.Join(scratch, "tree")
		for n := range DebianTree().All() {
			if err := writeNode(n, filepath.Join(root, n.Path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	warm := filepath.Join(scratch, "warm")
	Cat(t, root, warm)
	if err := os.Remove(warm); err != nil {
		t.Fatal(err)
	}
	return root
}

// Cat copies the regular files of a directory into one, as cat does.
func Cat(t testing.TB, root, out string) {
	t.Helper()
	script := "find " + root + " -type f -print0 | xargs -0 cat >" + out
	if msg, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("cat: %v\n%s", err, msg)
	}
}

func writeNode(n *tree.Node, path string) error {
	switch n.Type {
	case tree.Directory:
		return os.Mkdir(path, 0o755)
	case tree.Symlink:
		return os.Symlink(n.Target, path)
	default:
		r, err := n.Content.Open()
		if err != nil {
			return err
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		return os.WriteFile(path, b, 0o644)
	}
}

// Of DebianTree. The median of its small files is of a few KiB, their mean of
// 20 KiB.
const (
	debianDirs  = 8_000
	debianLinks = 12_000
	debianSmall = 79_972
	debianBytes = 2 << 30
	largest     = 16 << 20
	maxDepth    = 6
)

// DebianTree returns a tree like a Debian system with many packages: 100,000
// inodes, 2 GiB that compress about as well as programs, with contents in
// memory. It is always the same.
func DebianTree() *tree.Tree {
	rng := rand.New(rand.NewPCG(100_000, 2))
	t, dirs := tree.New(), []string{""}
	add := func(n tree.Node) {
		n.Path = dirs[rng.IntN(len(dirs))] + n.Path
		if err := t.Add(n); err != nil {
			panic("BUG: generated an invalid node: " + err.Error())
		}
		if n.Type == tree.Directory && strings.Count(n.Path, "/") < maxDepth {
			dirs = append(dirs, n.Path+"/")
		}
	}
	for i := range debianDirs {
		add(tree.Node{Path: fmt.Sprintf("dir-%d", i), Type: tree.Directory, Mode: 0o755})
	}
	for i := range debianLinks {
		add(tree.Node{Path: fmt.Sprintf("link-%d", i), Type: tree.Symlink, Mode: 0o777, Target: fmt.Sprintf("library-%d.so.1", i)})
	}
	data, left := words(2*largest), debianBytes
	for i := 0; left > 0; i++ {
		size := largest
		if i < debianSmall {
			size = int(3500 * math.Exp(1.9*rng.NormFloat64()))
		}
		size = min(size, left, largest)
		left -= size
		from := rng.IntN(len(data) - size)
		add(tree.Node{Path: fmt.Sprintf("file-%d", i), Type: tree.Regular, Mode: 0o644, Size: int64(size), Content: tree.Bytes(data[from : from+size])})
	}
	return t
}

// words returns n bytes that compress like programs do.
func words(n int) []byte {
	data := make([]byte, n)
	state := uint32(1)
	for i := range data {
		state = state*1664525 + 1013904223
		if data[i] = byte(state >> 24); i > 64 && state>>8&3 != 0 {
			data[i] = data[i-1-int(data[i-1]&63)]
		}
	}
	return data
}
