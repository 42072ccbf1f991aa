package qcow2_test

import (
	"bytes"
	"fmt"
	"os"

	"cairn/fsbuild/qcow2"
)

func ExampleWriter() {
	f, err := os.CreateTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(f.Name())
	defer f.Close()

	w, err := qcow2.NewWriter(f, 1<<30, qcow2.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer w.Abort()
	if _, err = w.WriteAt(bytes.Repeat([]byte("boot"), 128), 0); err == nil {
		_, err = w.WriteAt(bytes.Repeat([]byte("data"), 1<<20), 512<<20)
	}
	if err == nil {
		err = w.Close()
	}
	fmt.Println("a disk of 1 GiB in a file of", w.Size()>>10, "KiB:", err)
	// Output:
	// a disk of 1 GiB in a file of 448 KiB: <nil>
}
