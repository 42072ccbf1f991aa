package ext4_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/fsbuild/ext4"
)

// TestReadJournal: what a reader sees before recovery is what e2fsck makes of
// a copy.
func TestReadJournal(t *testing.T) {
	for version := range 4 {
		for _, wide := range []bool{false, true} {
			for _, start := range []int{1, journalLength - 5} {
				t.Run(fmt.Sprintf("v%d wide=%v from %d", version, wide, start), func(t *testing.T) {
					img := journaled(t, version, wide, start)
					r := openBytes(t, img)
					if n := r.Info().Replayed; n != 5 {
						t.Errorf("%d transactions", n)
					}
					if r.Info().Clean {
						t.Error("a file system that needs recovery is clean")
					}
					got := readTree(t, r)
					content := read(t, got.Lookup("f").Content)
					for i, want := range []string{"first", "\xc0\x3b\x39\x98", "mark of f 2 ", "first", "\xc0\x3b\x39\x98", "after", "mark of f 6 ", "mark of f 7 "} {
						if !bytes.HasPrefix(content[i*blockBytes:], []byte(want)) {
							t.Errorf("block %d: %q, want %q", i, content[i*blockBytes:][:20], want)
						}
					}
					recovered := fsckCopy(t, img)
					if openImage(t, recovered).Info().Replayed != 0 {
						t.Error("e2fsck has not recovered the journal")
					}
					if diff := firstDiff(text(t, readTree(t, openImage(t, recovered))), text(t, got)); diff != "" {
						t.Error(diff)
					}
				})
			}
		}
	}
}

// fsckCopy repairs a copy of an image.
func fsckCopy(t testing.TB, img []byte) string {
	t.Helper()
	name := filepath.Join(scratchDir(t), "copy.img")
	if err := os.WriteFile(name, img, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("e2fsck", "-fy", name).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 1) {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "orrupt") {
		t.Fatalf("e2fsck finds damage:\n%s", out)
	}
	return name
}

// TestReadJournalDamage: what Linux does not recover is an error, and old
// blocks after the end are none.
func TestReadJournalDamage(t *testing.T) {
	be := binary.BigEndian
	for name, c := range map[string]struct {
		version int
		damage  func(l *logWriter)
		is      error
		want    string
	}{
		"clean":           {3, func(*logWriter) {}, nil, ""},
		"superblock sum":  {3, func(l *logWriter) { l.super[0x60] ^= 1 }, ext4.ErrCorrupt, "checksum"},
		"block size":      {0, func(l *logWriter) { l.super[0x0e] = 0x20 }, ext4.ErrCorrupt, "blocks of"},
		"length":          {0, func(l *logWriter) { be.PutUint32(l.super[0x10:], 1041) }, ext4.ErrCorrupt, "1041"},
		"start":           {0, func(l *logWriter) { be.PutUint32(l.super[0x1c:], 1040) }, ext4.ErrCorrupt, "1040"},
		"magic":           {0, func(l *logWriter) { l.super[0] = 0 }, ext4.ErrCorrupt, "magic"},
		"feature":         {0, func(l *logWriter) { be.PutUint32(l.super[0x28:], 0x100) }, ext4.ErrUnsupported, "0x100"},
		"data v3":         {3, func(l *logWriter) { l.block(2)[100] ^= 1 }, ext4.ErrCorrupt, "transaction 4294967295"},
		"data v2":         {2, func(l *logWriter) { l.block(2)[100] ^= 1 }, ext4.ErrCorrupt, "checksum"},
		"data v1":         {1, func(l *logWriter) { l.block(2)[100] ^= 1 }, ext4.ErrCorrupt, "checksum"},
		"data":            {0, func(l *logWriter) { l.block(2)[100] ^= 1 }, nil, ""},
		"descriptor":      {3, func(l *logWriter) { l.block(1)[300] ^= 1 }, ext4.ErrCorrupt, "checksum"},
		"commit":          {3, func(l *logWriter) { l.block(6)[100] ^= 1 }, ext4.ErrCorrupt, "checksum"},
		"old commit":      {3, func(l *logWriter) { be.PutUint64(l.block(10)[0x30:], 1) }, nil, ""},
		"revocation":      {3, func(l *logWriter) { l.block(11)[20] ^= 1 }, ext4.ErrCorrupt, "checksum"},
		"revoked bytes":   {0, func(l *logWriter) { be.PutUint32(l.block(11)[12:], 5000) }, ext4.ErrCorrupt, "5000"},
		"beyond the end":  {0, func(l *logWriter) { be.PutUint32(l.block(1)[12:], 1<<30) }, ext4.ErrCorrupt, "beyond"},
		"fast commits":    {0, fastCommit(4), ext4.ErrUnsupported, "fast commits"},
		"old fast commit": {0, fastCommit(3), nil, ""},
		"circle": {0, func(l *logWriter) {
			for i := 1; i < journalLength; i++ {
				l.at, l.id = i, 1<<32-1
				l.next(5)[15] = 16
			}
		}, ext4.ErrCorrupt, "circle"},
	} {
		t.Run(name, func(t *testing.T) {
			img := journaled(t, c.version, false, 1)
			l := &logWriter{img: img, version: c.version, base: -1}
			for off := 0; off < len(img); off += blockBytes {
				if bytes.Equal(img[off:off+8], append(bytes.Clone(magic), 0, 0, 0, 4)) {
					l.base, l.super = off, img[off:][:1024]
				}
			}
			c.damage(l)
			r, err := ext4.Open(bytes.NewReader(img), int64(len(img)))
			if !errors.Is(err, c.is) || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Open: %v, want %v, %q", err, c.is, c.want)
			}
			if name == "old commit" && r.Info().Replayed != 1 {
				t.Errorf("%d transactions before an old one", r.Info().Replayed)
			}
		})
	}
}

// fastCommit gives the journal ten blocks for fast commits, and the head of
// one that follows a transaction.
func fastCommit(id uint32) func(*logWriter) {
	return func(l *logWriter) {
		be := binary.BigEndian
		be.PutUint32(l.super[0x28:], 0x21)
		be.PutUint32(l.super[0x54:], 10)
		b := l.block(journalLength - 10 + 1)
		binary.LittleEndian.PutUint16(b, 9)
		binary.LittleEndian.PutUint32(b[8:], id)
	}
}

// TestReadMounted copies images of file systems that are mounted and have
// been written with fsync, and compares with what e2fsck makes of the copy.
func TestReadMounted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: no mount")
		return
	}
	img := filepath.Join(scratchDir(t), "fs.img")
	for _, c := range []struct{ mkfs, mount string }{
		{"-t ext4 -J size=4", ",data=journal"},
		{"-t ext4 -O metadata_csum_seed -J size=4", ""},
		{"-t ext4 -b 1024 -O ^metadata_csum,^64bit -J size=1", ",journal_checksum"},
		{"-t ext3 -b 1024 -J size=1", ",data=journal"},
		{"-t ext4 -O inline_data,orphan_file", ",journal_async_commit,data=writeback"},
	} {
		mke2fs(t, img, strings.Fields(c.mkfs)...)
		root, unmount := mount(t, img, c.mount)
		churn(t, root)
		dirty, err := os.ReadFile(img)
		if err != nil {
			t.Fatal(err)
		}
		unmount()
		r := openBytes(t, dirty)
		if r.Info().Replayed == 0 {
			t.Errorf("%v: the copy of a mounted file system needs no recovery", c)
		}
		want := text(t, readTree(t, openImage(t, fsckCopy(t, dirty))))
		if diff := firstDiff(want, text(t, readTree(t, r))); diff != "" {
			t.Errorf("%v: %s", c, diff)
		}
		if !strings.Contains(want, "round9/") || !strings.Contains(want, " committed ") {
			t.Errorf("%v: the last file is not in the tree", c)
		}
	}
}

// TestReadFastCommit: Linux makes fast commits, which are refused.
func TestReadFastCommit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: no mount")
		return
	}
	img := filepath.Join(scratchDir(t), "fs.img")
	mke2fs(t, img, "-t", "ext4", "-O", "fast_commit", "-J", "size=8")
	root, unmount := mount(t, img, "")
	churn(t, root)
	for i := range 5 {
		syncFile(t, filepath.Join(root, "committed"), i)
	}
	dirty, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	unmount()
	if _, err := ext4.Open(bytes.NewReader(dirty), int64(len(dirty))); !errors.Is(err, ext4.ErrUnsupported) {
		t.Errorf("Open: %v", err)
	}
	readTree(t, openImage(t, img)) // unmounted, there are none
}

// churn writes, commits and removes files, so that blocks are revoked and the
// log runs over its end.
func churn(t testing.TB, root string) {
	t.Helper()
	for round := range 10 {
		d := filepath.Join(root, fmt.Sprint("round", round))
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range 40 {
			name := filepath.Join(d, fmt.Sprintf("%d%s", i, strings.Repeat("n", 100)))
			if err := os.WriteFile(name, append(bytes.Clone(magic), bytes.Repeat([]byte{byte(i)}, i*300)...), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		syncFile(t, filepath.Join(root, "committed"), round)
		if round%3 != 0 {
			if err := os.RemoveAll(filepath.Join(root, fmt.Sprint("round", round-1))); err != nil {
				t.Fatal(err)
			}
		}
	}
	syncFile(t, filepath.Join(root, "committed"), 10)
}

func syncFile(t testing.TB, name string, round int) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, strings.Repeat(fmt.Sprint(round), 20_000)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestReadDebugfsJournal: debugfs writes transactions into the journal. With
// -v 2, debugfs 1.47.0 writes checksums of version 1, and for a revocation one
// that neither e2fsck nor Linux accepts.
func TestReadDebugfsJournal(t *testing.T) {
	dir := scratchDir(t)
	img := filepath.Join(dir, "fs.img")
	data := filepath.Join(dir, "data")
	if err := os.WriteFile(data, bytes.Repeat(append(bytes.Clone(magic), bytes.Repeat([]byte("new"), 340)...), 3)[:2048], 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mkfs, open string
		revoke     bool
	}{{"-O ^metadata_csum,^64bit", "jo", true}, {"-O ^metadata_csum", "jo -c -v 2", false}, {"-O metadata_csum", "jo -c -v 3", true}} {
		src := t.TempDir()
		materialise(t, src, build(t, file("f", strings.Repeat("old", 1000))))
		mke2fs(t, img, append(strings.Fields("-t ext4 -b 1024 -d "+src), strings.Fields(c.mkfs)...)...)
		f := strings.Fields(run(t, "debugfs", "-R", "blocks /f", img))
		f = f[len(f)-3:]
		script := filepath.Join(dir, "script")
		commands := []string{c.open, "jw -b " + f[0] + "," + f[1] + " " + data, "jw -b " + f[2] + "," + f[0] + " " + data}
		want := 2
		if c.revoke {
			commands = append(commands, "jw -r "+f[2]+" /dev/null")
			want = 3
		}
		commands = append(commands, "jc")
		if err := os.WriteFile(script, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "debugfs", "-w", "-f", script, img)
		dirty, err := os.ReadFile(img)
		if err != nil {
			t.Fatal(err)
		}
		r := openBytes(t, dirty)
		got := readTree(t, r)
		content := string(read(t, got.Lookup("f").Content))
		if r.Info().Replayed != want || !strings.Contains(content[:2048], "new") || strings.Contains(content[2048:], "old") != c.revoke {
			t.Errorf("%v: %d transactions, content %.20q", c, r.Info().Replayed, content)
		}
		if diff := firstDiff(text(t, readTree(t, openImage(t, fsckCopy(t, dirty)))), text(t, got)); diff != "" {
			t.Errorf("%v: %s", c, diff)
		}
	}
}
