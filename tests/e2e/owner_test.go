package e2e

import (
	"io/fs"
	"syscall"
)

// owner is the uid that a file belongs to.
func owner(fi fs.FileInfo) uint32 {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 1<<32 - 1
	}
	return st.Uid
}
