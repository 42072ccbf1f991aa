package vfat_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
	"cairn/tests/require"
)

// fsck runs fsck.vfat -n and fails the test unless it succeeds and has nothing
// to say.
func fsck(t testing.TB, image string) {
	t.Helper()
	out, err := exec.Command(require.Tool(t, "fsck.vfat", "dosfstools"), "-n", image).CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	silent := len(lines) == 2 && strings.HasPrefix(lines[0], "fsck.fat 4.") && strings.Contains(lines[1], " files, ")
	if err != nil || !silent {
		t.Fatalf("fsck.vfat: %v\n%s", err, out)
	}
}

func sortedLines(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// mtoolsName is how mdir prints a path: it has no characters beyond 16 bits.
func mtoolsName(n *tree.Node) string {
	var b strings.Builder
	for _, r := range n.Path {
		if r > 0xffff {
			b.WriteString("__")
		} else {
			b.WriteRune(r)
		}
	}
	if n.Type == tree.Directory {
		b.WriteByte('/')
	}
	return "::/" + b.String()
}

func contentOf(t testing.TB, n *tree.Node) []byte {
	t.Helper()
	if n.Content == nil {
		return []byte{}
	}
	r, err := n.Content.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBlkid: label and serial number are found, or are not there.
func TestBlkid(t *testing.T) {
	blkid := require.Tool(t, "blkid", "util-linux")
	for name, p := range kinds() {
		for label, want := range map[string]string{"config-2": "config-2", "CIDATA": "CIDATA", "A B": "A B", "": ""} {
			p.Label = label
			img, s := image(t, tree.New(), p)
			fsck(t, img)
			out := run(t, blkid, "-p", "-o", "export", img)
			got := map[string]string{}
			for line := range strings.Lines(out) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				got[key] = strings.ReplaceAll(value, `\ `, " ")
			}
			if got["LABEL"] != want || got["UUID"] != "1234-ABCD" || s.Serial != got["UUID"] || got["VERSION"] != p.Type.String() {
				t.Errorf("%s, label %q: %s", name, label, out)
			}
			if v := open(t, img); v.Label != label || v.Serial != p.Serial {
				t.Errorf("%s: Open: label %q, serial number %#x", name, v.Label, v.Serial)
			}
		}
	}
}

// TestMinfo: mtools' view of the geometry.
func TestMinfo(t *testing.T) {
	for name, p := range kinds() {
		p.Size, p.ClusterSize, p.HiddenSectors = 0, 0, 2048
		switch p.Type {
		case vfat.FAT12:
			p.Size = 4 << 20
		case vfat.FAT16:
			p.Size = 128 << 20 // minfo fails an assertion at 4092 clusters
		case vfat.FAT32:
			p.Size = 512 << 20
		}
		img, s := image(t, tree.New(), p)
		got := run(t, require.Tool(t, "minfo", "mtools"), "-i", img, "::")
		for _, want := range []string{
			fmt.Sprintf("sector size: %d bytes\n", s.SectorSize),
			fmt.Sprintf("cluster size: %d sectors\n", s.ClusterSize/s.SectorSize),
			"reserved (boot) sectors: ", "fats: 2\n", "hidden sectors: 2048\n", "media descriptor byte: 0xf8\n",
			"serial number: 1234ABCD\n", fmt.Sprintf("disk type=\"%s   \"\n", s.Type),
		} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: minfo lacks %q:\n%s", name, want, got)
			}
		}
	}
}

// TestForeign: what mkfs.fat and mcopy made reads back, case bits and code
// page included.
func TestForeign(t *testing.T) {
	t.Parallel()
	mkfs, mcopy := require.Tool(t, "mkfs.fat", "dosfstools"), require.Tool(t, "mcopy", "mtools")
	src := t.TempDir()
	kept := tree.New()
	for n := range generate(t, 14).All() {
		if n.Path == "." || strings.ContainsFunc(n.Path, func(r rune) bool { return r > 0xffff || r == '\u0301' || r == '~' }) {
			continue // mtools 4.0.32 drops the first two and may write a NUL for the last
		}
		if err := kept.Add(*n); err != nil {
			t.Fatal(err)
		}
	}
	for n := range kept.All() {
		name := filepath.Join(src, n.Path)
		var err error
		if n.Type == tree.Directory {
			err = os.MkdirAll(name, 0o755)
		} else if err = os.WriteFile(name, contentOf(t, n), 0o600); err == nil {
			err = os.Chtimes(name, stamp, stamp)
		}
		if err != nil {
			t.Fatal(err)
		}
		n.MTime.Sec = stamp.Unix()
	}
	top, err := filepath.Glob(src + "/*")
	if err != nil {
		t.Fatal(err)
	}
	want := text(t, filesOnly(t, asFAT(t, kept, time.Time{})))
	for name, args := range map[string][]string{
		"FAT12":          {"-F", "12"},
		"FAT12, one FAT": {"-F", "12", "-f", "1", "-s", "32"},
		"FAT16":          {"-F", "16", "-s", "2", "-R", "5", "-r", "1024"},
		"FAT32":          {"-F", "32", "-s", "1"},
		"FAT32, 3 FATs":  {"-F", "32", "-s", "1", "-f", "3"},
		"FAT12, 4096":    {"-F", "12", "-S", "4096"},
		"FAT32, 4096":    {"-F", "32", "-S", "4096"},
	} {
		img, size := filepath.Join(scratchDir(t), "img"), int64(36<<20)
		if name == "FAT32, 4096" {
			size = 272 << 20 // for 65525 clusters: mtools reads no others
		}
		if err := os.WriteFile(img, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(img, size); err != nil {
			t.Fatal(err)
		}
		run(t, mkfs, append(args, "-n", "FOREIGN", "-i", "cafe0001", img)...)
		run(t, mcopy, slices.Concat([]string{"-s", "-m", "-Q", "-i", img}, top, []string{"::"})...)
		v := open(t, img)
		if diff := firstDiff(want, text(t, filesOnly(t, v.Tree))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if v.Label != "FOREIGN" || v.Serial != 0xcafe0001 || v.Type.String() != name[:5] {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// TestSlots: the slots of long names are, byte for byte but for times, those of
// mcopy.
func TestSlots(t *testing.T) {
	for _, name := range []string{"The quick brown.fox", "twelve chars", "thirteen char", "fourteen chars", strings.Repeat("26", 13), strings.Repeat("Ω", 127)} {
		src := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(src, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		img := filepath.Join(t.TempDir(), "img")
		run(t, require.Tool(t, "mkfs.fat", "dosfstools"), "-C", img, "64")
		run(t, require.Tool(t, "mcopy", "mtools"), "-i", img, src, "::")
		ours, _ := image(t, build(t, file(name, "")), vfat.Params{Size: 64 << 10})
		var dumps [2]string
		for i, img := range []string{img, ours} {
			b, err := os.ReadFile(img)
			if err != nil {
				t.Fatal(err)
			}
			for at := 3 * 512; b[at] != 0; at += 32 {
				if s := b[at : at+32]; s[11] != 0x0f {
					clear(s[11:]) // attributes and times
				}
				dumps[i] += fmt.Sprintf("% x\n", b[at:at+32])
			}
		}
		if diff := firstDiff(dumps[0], dumps[1]); diff != "" {
			t.Errorf("%q: %s", name, diff)
		}
	}
}

// filesOnly sets the times of directories, which mcopy does not keep, to 0.
func filesOnly(t testing.TB, tr *tree.Tree) *tree.Tree {
	t.Helper()
	for n := range tr.All() {
		if n.Type == tree.Directory {
			n.MTime = tree.Time{}
		}
	}
	return tr
}
