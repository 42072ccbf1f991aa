package boot

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"
)

// orphanVariable makes this test binary start a machine from the image that it
// names, print QEMU's process id and wait to be killed.
const orphanVariable = "CAIRN_BOOT_TEST_ORPHAN"

func TestMain(m *testing.M) {
	if Relay() {
		return
	}
	if image := os.Getenv(orphanVariable); image != "" {
		machine, err := Start(context.Background(), Config{Image: image, MemoryMiB: 64, CPUs: 1})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(machine.command.Process.Pid)
		time.Sleep(2 * patience)
		return
	}
	os.Exit(m.Run())
}
