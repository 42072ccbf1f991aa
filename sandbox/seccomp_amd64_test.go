package sandbox

import (
	"encoding/binary"
	"math"
	"testing"

	"golang.org/x/sys/unix"
)

// seccompData is struct seccomp_data.
func seccompData(arch, nr uint32, arg0 uint64) []byte {
	b := make([]byte, 64)
	binary.NativeEndian.PutUint32(b[dataNR:], nr)
	binary.NativeEndian.PutUint32(b[dataArch:], arch)
	binary.NativeEndian.PutUint64(b[dataArg0:], arg0)
	return b
}

// TestFilterX86 checks the verdicts for ABIs, most of which this test cannot
// use itself. The numbers are written down here a second time, from the
// kernel's tables.
func TestFilterX86(t *testing.T) {
	const x8664, i386, aarch64 = 0xc000003e, 0x40000003, 0xc00000b7
	const eperm, enosys, enofamily = actErrno | 1, actErrno | 38, actErrno | 97
	tests := []struct {
		name            string
		arch, nr        uint32
		arg0            uint64
		hook, container uint32
	}{
		{"x86_64 read", x8664, 0, 0, actAllow, actAllow},
		{"x86_64 fsync", x8664, 74, 0, actErrno, actErrno},
		{"x86_64 fdatasync", x8664, 75, 0, actErrno, actErrno},
		{"x86_64 sync", x8664, 162, 0, actErrno, actErrno},
		{"x86_64 syncfs", x8664, 306, 0, actErrno, actErrno},
		{"x86_64 sync_file_range", x8664, 277, 0, actErrno, actErrno},
		{"x86_64 msync", x8664, 26, 0, actErrno, actErrno},
		{"x86_64 mount", x8664, 165, 0, actAllow, eperm},
		{"x86_64 ptrace", x8664, 101, 0, actAllow, eperm},
		{"x86_64 bpf", x8664, 321, 0, actAllow, eperm},
		{"x86_64 setns", x8664, 308, 0, actAllow, eperm},
		{"x86_64 open_tree_attr", x8664, 467, 0, actAllow, eperm},
		{"x86_64 clone3", x8664, 435, 0, actAllow, enosys},
		{"x86_64 chroot", x8664, 161, 0, actAllow, actAllow},
		{"x86_64 unshare of files", x8664, 272, unix.CLONE_FILES, actAllow, actAllow},
		{"x86_64 unshare of users", x8664, 272, unix.CLONE_NEWUSER, actAllow, eperm},
		{"x86_64 socket inet", x8664, 41, unix.AF_INET, actAllow, actAllow},
		{"x86_64 socket vsock", x8664, 41, afVSOCK, enofamily, enofamily},
		{"x32 read", x8664, 1<<30 + 0, 0, enosys, enosys},
		{"x32 mount", x8664, 1<<30 + 165, 0, enosys, enosys},
		{"x32 ptrace", x8664, 1<<30 + 521, 0, enosys, enosys},
		{"number -1", x8664, math.MaxUint32, 0, enosys, enosys},
		{"i386 read", i386, 3, 0, actAllow, actAllow},
		{"i386 fsync", i386, 118, 0, actErrno, actErrno},
		{"i386 mount", i386, 21, 0, actAllow, eperm},
		{"i386 umount", i386, 22, 0, actAllow, eperm},
		{"i386 ptrace", i386, 26, 0, actAllow, eperm},
		{"i386 x86_64's mount", i386, 165, 0, actAllow, actAllow},
		{"i386 clock_settime64", i386, 404, 0, actAllow, eperm},
		{"i386 unshare", i386, 310, unix.CLONE_NEWNS, actAllow, eperm},
		{"i386 vsock", i386, 359, afVSOCK, enofamily, enofamily},
		{"another machine", aarch64, 0, 0, actKill, actKill},
	}
	for _, tt := range tests {
		data := seccompData(tt.arch, tt.nr, tt.arg0)
		if got := hookFilter().run(data); got != tt.hook {
			t.Errorf("%s: host hooks get %#x, want %#x", tt.name, got, tt.hook)
		}
		if got := containerFilter().run(data); got != tt.container {
			t.Errorf("%s: containers get %#x, want %#x", tt.name, got, tt.container)
		}
	}
}
