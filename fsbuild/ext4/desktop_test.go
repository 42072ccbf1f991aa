package ext4_test

import (
	"os"
	"testing"

	"cairn/fsbuild/internal/fstest"
	"cairn/fsbuild/tree"
)

// TestDesktop writes a tree of the size and shape of a desktop's /usr and
// compares all of it with what Linux shows, where the test may mount, else with
// what debugfs does.
func TestDesktop(t *testing.T) {
	tr := fstest.Desktop()
	img, s := image(t, tr, noClamp())
	fsck(t, img)
	if s.UsedInodes < 150_000 {
		t.Errorf("only %d inodes", s.UsedInodes)
	}
	var got *tree.Tree
	if os.Geteuid() == 0 {
		root, _ := mount(t, img, ",ro")
		got = describe(t, root)
	} else {
		got = readBack(t, img, s)
	}
	got.Remove("lost+found") // unless describe did
	if diff := firstDiff(text(t, tr), text(t, got)); diff != "" {
		t.Errorf("tree read back: %s", diff)
	}
}
