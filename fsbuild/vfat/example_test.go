package vfat_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
)

// A NoCloud seed is written, then read.
func Example() {
	t := tree.New()
	for name, content := range map[string]string{"meta-data": "instance-id: i-1\n", "user-data": "#cloud-config\n"} {
		n := tree.Node{Path: name, Type: tree.Regular, Mode: 0o644, Size: int64(len(content)), Content: tree.Bytes([]byte(content))}
		if err := t.Add(n); err != nil {
			fmt.Println(err)
			return
		}
	}
	f, err := os.CreateTemp("", "seed-*.img")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.Remove(f.Name()) }()
	s, err := vfat.Write(context.Background(), f, t, vfat.Params{
		Label:  "CIDATA",
		Serial: 0xCAFE0001,
		Time:   time.Unix(1_700_000_000, 0),
	})
	if err == nil {
		err = f.Truncate(s.Size) // free space at the end is not written
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(s.Type, s.Size, s.Serial)

	v, err := vfat.Open(f, s.Size)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(v.Label)
	for n := range v.Tree.Children(".") {
		fmt.Println(n.Path, n.Size)
	}
	// Output:
	// FAT12 24576 CAFE-0001
	// CIDATA
	// meta-data 17
	// user-data 14
}

// An EFI system partition for a disk: FAT32 of 64 MiB that starts at 1 MiB.
func Example_esp() {
	t := tree.New()
	for _, p := range []string{"EFI", "EFI/BOOT"} {
		if err := t.Add(tree.Node{Path: p, Type: tree.Directory, Mode: 0o755}); err != nil {
			fmt.Println(err)
			return
		}
	}
	l, err := vfat.Plan(t, vfat.Params{Label: "ESP", Serial: 1, Type: vfat.FAT32, Size: 64 << 20, HiddenSectors: 2048})
	if err != nil {
		fmt.Println(err)
		return
	}
	s := l.Summary()
	fmt.Println(s.Type, s.Size, s.ClusterSize, s.Clusters, s.FreeClusters)
	// Output: FAT32 67108864 512 129022 129019
}
