package ext4_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
)

// image writes a tree to a new file and returns its name.
func image(t testing.TB, tr *tree.Tree, p ext4.Params) (string, ext4.Summary) {
	t.Helper()
	name := filepath.Join(scratchDir(t), "fs.img")
	s, err := writeImage(t, name, tr, p)
	if err != nil {
		t.Fatalf("Write: %v", err)
	}
	return name, s
}

// writeImage writes a tree to a file, new or emptied.
func writeImage(t testing.TB, name string, tr *tree.Tree, p ext4.Params) (s ext4.Summary, err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if s, err = ext4.Write(t.Context(), &strictWriter{t: t, w: f}, tr, p); err != nil {
		return s, err
	}
	return s, f.Truncate(s.Size)
}

// strictWriter checks that offsets ascend and calls do not overlap.
type strictWriter struct {
	t    testing.TB
	w    io.WriterAt
	busy atomic.Bool
	end  int64
}

func (s *strictWriter) WriteAt(b []byte, off int64) (int, error) {
	if !s.busy.CompareAndSwap(false, true) {
		s.t.Errorf("WriteAt of %d bytes at %d beside another", len(b), off)
	}
	defer s.busy.Store(false)
	if off < s.end || len(b) == 0 {
		s.t.Errorf("WriteAt of %d bytes at %d, but %d was reached", len(b), off, s.end)
	}
	s.end = off + int64(len(b))
	return s.w.WriteAt(b, off)
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

// noClamp are parameters that keep every time of a generated tree.
func noClamp() ext4.Params {
	p := params()
	p.Time = time.Time{}
	return p
}

// firstDiff describes where two texts differ first.
func firstDiff(want, got string) string {
	if want == got {
		return ""
	}
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		if i == len(w) || i == len(g) {
			return fmt.Sprintf("%d lines, want %d", len(g), len(w))
		}
		if w[i] != g[i] {
			k := 0
			for k < min(len(w[i]), len(g[i])) && w[i][k] == g[i][k] {
				k++
			}
			from := max(0, k-80)
			return fmt.Sprintf("line %d: got … %.200s\nwant … %.200s", i, g[i][from:], w[i][from:])
		}
	}
	return ""
}
