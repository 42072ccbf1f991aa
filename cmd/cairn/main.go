// Command cairn builds operating-system images from diskimage-builder
// elements. Under the name disk-image-create, element-info or dib-run-parts it
// behaves as that program.
package main

import (
	"os"

	"cairn/cmd/internal/build"
	"cairn/cmd/internal/cli"
	"cairn/sandbox"
)

func main() {
	sandbox.Main(build.Worker)
	os.Exit(cli.Main(os.Args))
}
