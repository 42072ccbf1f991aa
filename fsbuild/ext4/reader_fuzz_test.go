package ext4_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
)

// seedImages returns small images of different kinds.
func seedImages(t testing.TB) [][]byte {
	t.Helper()
	p := params()
	p.JournalSize = -1
	tr := build(t, directory("d"), file("d/f", strings.Repeat("x", 5000)), tree.Node{Path: "l", Type: tree.Symlink, Target: strings.Repeat("l", 100)},
		tree.Node{Path: "x", Type: tree.Regular, Xattrs: xattrs("user.a", strings.Repeat("v", 600))})
	list := [][]byte{written(t, tr, p)}
	src, img := t.TempDir(), filepath.Join(t.TempDir(), "fs.img")
	materialise(t, src, tr)
	for _, args := range []string{
		"-t ext2 -b 1024", "-t ext4 -b 1024 -O inline_data,^has_journal,^metadata_csum", "-t ext4 -b 1024 -O ea_inode,inline_data -J size=1",
		"-t ext4 -b 1024 -O ^metadata_csum,^64bit -J size=1",
	} {
		size := "512K"
		if strings.Contains(args, "size=1") {
			size = "4M"
		}
		_ = os.Remove(img)
		run(t, "mke2fs", append(append([]string{"-q", "-F", "-N", "32", "-d", src}, strings.Fields(args)...), img, size)...)
		b, err := os.ReadFile(img)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, b)
	}
	return append(list, journaled(t, 0, false, 1), journaled(t, 3, true, 1))
}

// readDamaged reads what can be read, at most some of each file.
func readDamaged(t testing.TB, img []byte) {
	t.Helper()
	r, err := ext4.Open(bytes.NewReader(img), int64(len(img)))
	if err == nil {
		var tr *tree.Tree
		if tr, err = r.Tree(t.Context()); err == nil {
			for n := range tr.All() {
				readSome(t, n)
			}
		}
	}
	for _, known := range []error{nil, ext4.ErrFormat, ext4.ErrCorrupt, ext4.ErrUnsupported} {
		if errors.Is(err, known) {
			return
		}
	}
	t.Errorf("error of no kind: %v", err)
}

func readSome(t testing.TB, n *tree.Node) {
	t.Helper()
	if n.Content == nil {
		return
	}
	if s, ok := n.Content.(tree.Sparse); ok {
		end := int64(0)
		data, err := s.Data()
		for _, e := range data {
			if err == nil && (e.Off < end || e.Len <= 0 || e.Off+e.Len > n.Size) {
				t.Errorf("%q: data %v of %d bytes", n.Path, data, n.Size)
			}
			end = e.Off + e.Len
		}
	}
	c, err := n.Content.Open()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.CopyN(io.Discard, c, 1<<20)
}

// FuzzReader damages images: a list of changes, each of an offset of 4 bytes
// and 4 bytes to be put there.
func FuzzReader(f *testing.F) {
	images := seedImages(f)
	for i := range images {
		f.Add(uint8(i), []byte{0x00, 0x04, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff})
		f.Add(uint8(i), []byte{})
	}
	f.Fuzz(func(t *testing.T, which uint8, changes []byte) {
		img := bytes.Clone(images[int(which)%len(images)])
		for ; len(changes) >= 8; changes = changes[8:] {
			at := int(binary.LittleEndian.Uint32(changes)) % (len(img) - 4)
			copy(img[at:], changes[4:8])
		}
		if len(img) >= 2048 {
			sb := img[1024:2048]
			binary.LittleEndian.PutUint32(sb[0x3fc:], sum32c(1<<32-1, sb[:0x3fc]))
		}
		readDamaged(t, img)
	})
}

// TestReadDamaged changes each word of the metadata of images, in turn, to
// values that are wrong most often.
func TestReadDamaged(t *testing.T) {
	for k, img := range seedImages(t) {
		for at := 1024; at < min(len(img), 128<<10)-4; at += 4 {
			old := binary.LittleEndian.Uint32(img[at:])
			if old == 0 && at%64 != 0 {
				continue
			}
			for _, v := range []uint32{0, 1, old + 1, old ^ 1<<31, 1<<32 - 1, 0xfffe0001}[(at/4+k)%5:][:2] {
				binary.LittleEndian.PutUint32(img[at:], v)
				readDamaged(t, img)
			}
			binary.LittleEndian.PutUint32(img[at:], old)
		}
	}
}

// TestReadChecksums: with metadata_csum, no change of metadata goes unnoticed.
func TestReadChecksums(t *testing.T) {
	var many []tree.Node
	for i := range 200 {
		many = append(many, file(strings.Repeat("n", 100)+string(rune('a'+i%26))+string(rune('a'+i/26)), ""))
	}
	many = append(many, tree.Node{Path: "x", Type: tree.Regular, Xattrs: xattrs("user.a", strings.Repeat("v", 2000))}, fragments())
	img := written(t, build(t, many...), params())
	openBytes(t, img)
	blocks := map[string][]int{"superblock": {1024 + 0x78}, "descriptor": {4096 + 8}}
	for off := 8192; off < len(img); off += 4096 {
		b := img[off : off+4096]
		switch {
		case binary.LittleEndian.Uint32(b) == 0xea020000:
			blocks["xattr"] = append(blocks["xattr"], off+40)
		case binary.LittleEndian.Uint16(b) == 0xf30a:
			blocks["extents"] = append(blocks["extents"], off+16)
		case bytes.HasPrefix(b[8:], []byte("nnnn")):
			blocks["leaf"] = append(blocks["leaf"], off+10)
		case b[0] == 2 && b[8] == '.':
			blocks["index"] = append(blocks["index"], off+0x28)
		case binary.LittleEndian.Uint16(b[256:])&0xf000 == 0x4000:
			blocks["inode"] = append(blocks["inode"], off+256+4)
		}
	}
	for _, kind := range []string{"superblock", "descriptor", "xattr", "extents", "leaf", "index", "inode"} {
		if len(blocks[kind]) == 0 {
			t.Errorf("no %s was found", kind)
		}
		for _, at := range blocks[kind] {
			img[at] ^= 4
			r, err := ext4.Open(bytes.NewReader(img), int64(len(img)))
			var tr *tree.Tree
			if err == nil {
				tr, err = r.Tree(t.Context())
			}
			if err == nil {
				err = tr.WriteText(io.Discard)
			}
			if !errors.Is(err, ext4.ErrCorrupt) || !strings.Contains(err.Error(), "checksum") {
				t.Errorf("%s at %d: %v", kind, at, err)
			}
			img[at] ^= 4
		}
	}
}

// fragments is a file whose extents do not fit into its inode.
func fragments() tree.Node {
	n := tree.Node{Path: "fragments", Type: tree.Regular, Size: 20 * 8192}
	h := &holes{size: n.Size}
	for i := range int64(20) {
		h.data = append(h.data, tree.Extent{Off: i * 8192, Len: 4096})
	}
	n.Content = h
	return n
}

// holes is a content of zeros that claims to have data.
type holes struct {
	size int64
	data []tree.Extent
}

func (h *holes) Open() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(make([]byte, h.size))), nil
}
func (h *holes) Data() ([]tree.Extent, error) { return h.data, nil }
