package cpio_test

import (
	"bytes"
	"context"
	"fmt"

	"cairn/fsbuild/cpio"
	"cairn/fsbuild/tree"
)

// An initramfs with a program and the console that Linux opens for it.
func Example() {
	t := tree.New()
	for _, n := range []tree.Node{
		{Path: "dev", Type: tree.Directory, Mode: 0o755},
		{Path: "dev/console", Type: tree.CharDevice, Mode: 0o600, Major: 5, Minor: 1},
		{Path: "init", Type: tree.Regular, Mode: 0o755, Size: 10, Content: tree.Bytes([]byte("#!/bin/sh\n"))},
	} {
		if err := t.Add(n); err != nil {
			fmt.Println(err)
			return
		}
	}
	var initramfs bytes.Buffer
	s, err := cpio.Write(context.Background(), &initramfs, t, cpio.Params{})
	fmt.Println(s.Entries, s.Size, err)
	// Output: 4 1024 <nil>
}
