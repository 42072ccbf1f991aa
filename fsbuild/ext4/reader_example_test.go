package ext4_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
)

// memoryFile is an image in memory.
type memoryFile []byte

func (m memoryFile) WriteAt(b []byte, off int64) (int, error) { return copy(m[off:], b), nil }

// An image, here one made just before, becomes a tree again. For a file, pass
// the *os.File and its size to Open.
func ExampleOpen() {
	t := tree.New()
	motd := tree.Node{Path: "motd", Type: tree.Regular, Mode: 0o644, Size: 6, Content: tree.Bytes([]byte("hello\n"))}
	if err := t.Add(motd); err != nil {
		fmt.Println(err)
		return
	}
	l, err := ext4.Plan(t, ext4.Params{UUID: [16]byte{0xca, 0x12, 15: 1}, Label: "root", Time: time.Unix(1_700_000_000, 0)})
	if err != nil {
		fmt.Println(err)
		return
	}
	img := make(memoryFile, l.Size())
	if _, err := l.Write(context.Background(), img); err != nil {
		fmt.Println(err)
		return
	}

	r, err := ext4.Open(bytes.NewReader(img), int64(len(img)))
	if err != nil {
		fmt.Println(err)
		return
	}
	info := r.Info()
	fmt.Println(info.Kind, info.Label, info.UUID, "clean:", info.Clean)
	found, err := r.Tree(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := found.WriteText(os.Stdout); err != nil {
		fmt.Println(err)
	}
	// Output:
	// ext4 root ca120000-0000-0000-0000-000000000001 clean: true
	// cairn-tree 1
	// d 0755 0:0 0.000000000 .
	// f 0644 0:0 0.000000000 motd size=6 sha256=5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03
}
