package vfat_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
	"cairn/tests/vm"
)

// guestScript mounts every image and tells what it sees: an image's name, then
// for each node type, size of a file, time, path, and for each file
// "= SHA256  PATH".
const guestScript = `
for i in /images/*.img; do
    echo "image ${i##*/}"
    truncate -s $(cat $i.size) $i
    mount -t vfat -o ro,loop,utf8=1,iocharset=utf8,tz=UTC $i /mnt || echo "no mount"
    cd /mnt
    find . -mindepth 1 -type d -print0 | xargs -0 -r stat -c '%F %Y %n'
    find . -type f -print0 | xargs -0 -r stat -c '%F %s %Y %n'
    find . -type f -print0 | xargs -0 -r sha256sum | sed 's/^/= /'
    cd /
    umount /mnt
done
`

// TestKernel lets Linux list and read the images of generated trees. Many
// kernels of CI machines lack FAT, so it boots one that has it.
func TestKernel(t *testing.T) {
	t.Parallel()
	root := scratchDir(t)
	want := map[string]string{}
	seed := uint64(20)
	for name, p := range kinds() {
		tr := generate(t, seed)
		seed++
		name = strings.ReplaceAll(name, "/", "-") + ".img"
		want[name] = kernelText(t, asFAT(t, tr, p.Time))
		guestImage(t, filepath.Join(root, "images", name), tr, p)
	}
	said := vm.Guest{Root: root, Modules: []string{"nls_cp437", "nls_utf8", "nls_ascii", "fat", "vfat", "loop"}, Script: guestScript}.Run(t)
	got := map[string]string{}
	for part := range strings.SplitSeq(said, "image ") {
		if name, lines, ok := strings.Cut(part, "\n"); ok {
			got[name] = lines
		}
	}
	for name, w := range want {
		if diff := firstDiff(sortedLines(w), sortedLines(got[name])); diff != "" {
			t.Errorf("%s: Linux sees %s", name, diff)
		}
	}
}

// kernelText is what guestScript says about a tree.
func kernelText(t *testing.T, tr *tree.Tree) string {
	var s strings.Builder
	for n := range tr.All() {
		switch {
		case n.Path == ".":
		case n.Type == tree.Directory: // Linux makes up a size
			fmt.Fprintf(&s, "directory %d ./%s\n", n.MTime.Sec, n.Path)
		default:
			kind := "regular file"
			if n.Size == 0 {
				kind = "regular empty file"
			}
			fmt.Fprintf(&s, "%s %d %d ./%s\n", kind, n.Size, n.MTime.Sec, n.Path)
			fmt.Fprintf(&s, "= %x  ./%s\n", sha256.Sum256(contentOf(t, n)), n.Path)
		}
	}
	return s.String()
}

// guestImage writes an image, as long as what was written, and beside it the
// size that it has.
func guestImage(t *testing.T, name string, tr *tree.Tree, p vfat.Params) {
	t.Helper()
	var m memory
	s, err := vfat.Write(t.Context(), &m, tr, p)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(name), 0o755)
	}
	if err == nil {
		err = os.WriteFile(name, m.data, 0o644)
	}
	if err == nil {
		err = os.WriteFile(name+".size", fmt.Append(nil, s.Size), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
