package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
)

// makeRoot writes a file system that holds one file and 64 MiB of free space.
func makeRoot(path string) (ext4.Summary, error) {
	hello := []byte("hello\n")
	t := tree.New()
	err := t.Add(tree.Node{Path: "motd", Type: tree.Regular, Mode: 0o644, Size: int64(len(hello)), Content: tree.Bytes(hello)})
	if err != nil {
		return ext4.Summary{}, err
	}
	f, err := os.Create(path)
	if err != nil {
		return ext4.Summary{}, err
	}
	defer f.Close()
	s, err := ext4.Write(context.Background(), f, t, ext4.Params{
		Label: "root", UUID: [16]byte{0xca, 0x12, 15: 1}, Time: time.Unix(1_700_000_000, 0), Slack: 64 << 20, GrowTo: 1 << 50,
	})
	if err != nil {
		return s, err
	}
	return s, f.Truncate(s.Size) // free space at the end is a hole
}

func main() {
	s, err := makeRoot("root.img")
	fmt.Println(s.UUID, s.Size, err)
}
