package dir_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"cairn/fsbuild/tree/dir"
)

// A directory is read as if root owned all of it.
func Example() {
	root, err := os.MkdirTemp("", "example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(root) }()
	if err = os.WriteFile(filepath.Join(root, "motd"), []byte("hello\n"), 0o644); err != nil {
		fmt.Println(err)
		return
	}
	toRoot := func(uint32) (uint32, error) { return 0, nil }
	t, err := dir.Read(context.Background(), root, dir.Options{ID: toRoot})
	if err != nil {
		fmt.Println(err)
		return
	}
	n := t.Lookup("motd")
	fmt.Println(n.Path, n.Type, n.UID, n.Size)
	// Output: motd f 0 6
}
