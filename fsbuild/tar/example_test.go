package tar_test

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"cairn/fsbuild/tar"
	"cairn/fsbuild/tree"
)

// A tree becomes an archive, and the archive a tree.
func Example() {
	t := tree.New()
	if err := t.Add(tree.Node{Path: "etc", Type: tree.Directory, Mode: 0o755}); err != nil {
		fmt.Println(err)
		return
	}
	if err := t.Add(tree.Node{Path: "etc/hostname", Type: tree.Regular, Mode: 0o644, Size: 6, Content: tree.Bytes([]byte("cairn\n"))}); err != nil {
		fmt.Println(err)
		return
	}
	var archive bytes.Buffer
	s, err := tar.Write(context.Background(), &archive, t, tar.Params{})
	fmt.Println(s.Entries, s.Size, err)
	again, err := tar.Read(context.Background(), bytes.NewReader(archive.Bytes()), s.Size, tar.Options{})
	if err == nil {
		err = again.WriteText(os.Stdout)
	}
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// 3 3072 <nil>
	// cairn-tree 1
	// d 0755 0:0 0.000000000 .
	// d 0755 0:0 0.000000000 etc
	// f 0644 0:0 0.000000000 etc/hostname size=6 sha256=6c8523c2413fcac1f4963d4e9e9f6b3b33060dd965e7f6c0324406fe433dadfe
}
