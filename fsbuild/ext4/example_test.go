package ext4_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
)

// A tree put together in memory becomes a file system of minimal size.
func Example() {
	t := tree.New()
	motd := tree.Node{Path: "motd", Type: tree.Regular, Mode: 0o644, Size: 6, Content: tree.Bytes([]byte("hello\n"))}
	if err := t.Add(motd); err != nil {
		fmt.Println(err)
		return
	}
	l, err := ext4.Plan(t, ext4.Params{
		UUID:        [16]byte{0xca, 0x12, 15: 1},
		Label:       "root",
		Time:        time.Unix(1_700_000_000, 0),
		Slack:       1 << 20,
		JournalSize: 4 << 20,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	f, err := os.CreateTemp("", "example-*.img")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.Remove(f.Name()) }()
	s, err := l.Write(context.Background(), f)
	if err == nil {
		err = f.Truncate(s.Size) // free space at the end is not written
	}
	if err == nil {
		err = f.Close()
	}
	fmt.Println(s.UUID, s.Size, s.FreeBlocks, err)
	// Output: ca120000-0000-0000-0000-000000000001 5808128 256 <nil>
}

// A directory becomes a file system for a first boot: 32 MiB can be used,
// besides what Linux reserves.
func Example_directory() {
	src, err := os.MkdirTemp("", "example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(src) }()
	if err = os.Mkdir(filepath.Join(src, "etc"), 0o755); err != nil {
		fmt.Println(err)
		return
	}
	t, err := dir.Read(context.Background(), src, dir.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	l, err := ext4.Plan(t, ext4.Params{UUID: [16]byte{1}, Slack: 32 << 20, KernelReserve: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	s := l.Summary()
	usable := s.FreeBlocks*4096 - ext4.KernelReserved(s.Size)
	fmt.Println(usable>>20, "MiB usable; grows to", s.MaxSize>>40, "TiB")
	// Output: 32 MiB usable; grows to 255 TiB
}

// A promise to grow to 1 PiB costs groups, which are holes for the most part.
func Example_growth() {
	for _, growTo := range []int64{0, 1 << 50} {
		l, err := ext4.Plan(tree.New(), ext4.Params{UUID: [16]byte{1}, Inodes: 18_000, GrowTo: growTo})
		if err != nil {
			fmt.Println(err)
			return
		}
		s := l.Summary()
		fmt.Println(s.Groups, "groups of", s.InodesPerGroup, "inodes grow to", s.MaxSize>>40, "TiB")
	}
	// Output:
	// 1 groups of 18000 inodes grow to 29 TiB
	// 37 groups of 496 inodes grow to 1057 TiB
}

// Ext2 with small blocks, as small file systems have them.
func Example_ext2() {
	l, err := ext4.Plan(tree.New(), ext4.Params{UUID: [16]byte{1}, Type: ext4.Ext2, BlockSize: 1024, Inodes: 16})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(l.Size(), "bytes,", l.Summary().JournalSize, "of them for a journal")
	// Output: 22528 bytes, 0 of them for a journal
}
