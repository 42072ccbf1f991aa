package tree_test

import (
	"fmt"
	"os"

	"cairn/fsbuild/tree"
)

func Example() {
	t := tree.New()
	for _, n := range []tree.Node{
		{Path: "etc", Type: tree.Directory, Mode: 0o755},
		{Path: "etc/hostname", Type: tree.Regular, Mode: 0o644, Size: 6, Content: tree.Bytes([]byte("cairn\n"))},
		{Path: "bin", Type: tree.Symlink, Mode: 0o777, Target: "usr/bin"},
	} {
		if err := t.Add(n); err != nil {
			fmt.Println(err)
		}
	}
	if err := t.WriteText(os.Stdout); err != nil {
		fmt.Println(err)
	}
	// Output:
	// cairn-tree 1
	// d 0755 0:0 0.000000000 .
	// l 0777 0:0 0.000000000 bin target=usr/bin
	// d 0755 0:0 0.000000000 etc
	// f 0644 0:0 0.000000000 etc/hostname size=6 sha256=6c8523c2413fcac1f4963d4e9e9f6b3b33060dd965e7f6c0324406fe433dadfe
}
