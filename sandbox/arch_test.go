package sandbox_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cairn/sandbox"
	"cairn/tests/require"
)

// TestCheckArch asks with a binfmt_misc of its own, which knows nothing that
// this machine may know.
func TestCheckArch(t *testing.T) {
	if !require.InNamespace(t) {
		return
	}
	binfmt := t.TempDir()
	if err := unix.Mount("binfmt_misc", binfmt, "binfmt_misc", 0, ""); err != nil {
		t.Fatalf("mount binfmt_misc in a user namespace (Linux 6.7 or newer): %v", err)
	}
	defer unix.Unmount(binfmt, unix.MNT_DETACH) //nolint:errcheck // the namespace ends with the test
	dir := t.TempDir()
	check := func(arch string) *sandbox.ArchError {
		t.Helper()
		err := sandbox.CheckArch(t.Context(), arch, dir)
		var foreign *sandbox.ArchError
		if err != nil && (!errors.As(err, &foreign) || foreign.Hint() == "") {
			t.Errorf("%s: %v", arch, err)
		}
		return foreign
	}
	const magic = `\x7fELF\x02\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x16` // s390x
	busybox := require.Tool(t, "busybox", "busybox-static")
	for _, test := range []struct {
		name, interpreter string // with flags; "" for none
		want              *sandbox.ArchError
	}{
		{"no emulator", "", &sandbox.ArchError{Arch: "s390x"}},
		{"emulator", busybox + ":F", nil},
		{"path of the emulator", busybox + ":", &sandbox.ArchError{Arch: "s390x", Outside: true}},
		{"dynamic emulator", "/bin/true:F", &sandbox.ArchError{Arch: "s390x", Outside: true}},
	} {
		if test.interpreter != "" {
			if err := os.WriteFile(filepath.Join(binfmt, "register"), []byte(":test:M::"+magic+"::"+test.interpreter), 0); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(test.want, check("s390x")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
		if test.interpreter != "" {
			if err := os.WriteFile(filepath.Join(binfmt, "test"), []byte("-1"), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, arch := range []string{runtime.GOARCH, "unheard-of"} {
		if err := check(arch); err != nil {
			t.Errorf("%s: %v", arch, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if err := sandbox.CheckArch(t.Context(), "s390x", filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
}
