package swap_test

import (
	"fmt"

	"cairn/fsbuild/swap"
)

// The header of an area of 512 MiB goes to the start of a partition or file of
// that size.
func Example() {
	b, err := swap.Header(swap.Params{Size: 512 << 20, UUID: [16]byte{0xca, 0x12, 15: 1}, Label: "swap"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%d bytes, ending in %s\n", len(b), b[len(b)-10:])
	// Output: 4096 bytes, ending in SWAPSPACE2
}
