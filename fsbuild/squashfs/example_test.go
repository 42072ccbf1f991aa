package squashfs_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"cairn/fsbuild/squashfs"
	"cairn/fsbuild/tree"
)

// A tree becomes a read-only root file system.
func Example() {
	t := tree.New()
	motd := tree.Node{Path: "motd", Type: tree.Regular, Mode: 0o644, Size: 6, Content: tree.Bytes([]byte("hello\n"))}
	if err := t.Add(motd); err != nil {
		fmt.Println(err)
		return
	}
	f, err := os.CreateTemp("", "example-*.squashfs")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.Remove(f.Name()) }()
	s, err := squashfs.Write(context.Background(), f, t, squashfs.Params{
		Compression: squashfs.Zstd,
		Time:        time.Unix(1_700_000_000, 0),
	})
	if err == nil {
		err = f.Close()
	}
	fmt.Println(s.Inodes, s.Fragments, s.Size, err)
	// Output: 2 1 4096 <nil>
}
