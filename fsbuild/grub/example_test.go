package grub_test

import (
	"fmt"

	"cairn/fsbuild/grub"
)

// GRUB goes between the table and the first partition of an MBR disk. Its
// images are files of Debian's grub-pc-bin, or grub-mkimage's; these here only
// look like them.
func ExampleEmbed() {
	boot, core := make([]byte, 512), make([]byte, 1500)
	copy(boot[0x66:], "\xeb\x05")     // the check of the drive
	copy(boot[0x1fe:], "\x55\xaa")    // the signature of a boot sector
	copy(core[0x1fe:512], "\x20\x08") // the segment in the block list
	e, err := grub.Embed(boot, core, 1, 2048)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(e.BootCode), "bytes for sector 0,", len(e.Core)/512, "sectors from sector", e.CoreLBA)
	// Output: 440 bytes for sector 0, 3 sectors from sector 1
}
