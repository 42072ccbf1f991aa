package ext4_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
)

const (
	blockBytes    = 4096
	journalLength = 1040 // blocks
)

// sum32c continues a CRC-32C without the inversions of hash/crc32.
func sum32c(seed uint32, b []byte) uint32 {
	return ^crc32.Update(^seed, crc32.MakeTable(crc32.Castagnoli), b)
}

// sum32 is the checksum of version 1, bit by bit.
func sum32(c uint32, b []byte) uint32 {
	for _, v := range b {
		for i := 7; i >= 0; i-- {
			bit := c>>31 ^ uint32(v)>>i&1
			c = c<<1 ^ 0x04c11db7*bit
		}
	}
	return c
}

// logWriter writes transactions into the journal of an image in memory.
type logWriter struct {
	img     []byte
	super   []byte // of the journal
	base    int    // offset of the journal
	version int    // of its checksums, 0 to 3
	wide    bool   // 64-bit numbers
	at      int    // next block of the log
	id      uint32
	seed    uint32
	v1      uint32
	time    uint64
}

var magic = []byte{0xc0, 0x3b, 0x39, 0x98}

// newLog turns an empty journal into one that needs recovery, whose log begins
// at a block.
func newLog(t testing.TB, img []byte, version int, wide bool, start int) *logWriter {
	t.Helper()
	l := &logWriter{img: img, version: version, wide: wide, at: start, id: 0xffffffff, base: -1, time: 1000}
	for off := 0; off < len(img); off += blockBytes {
		if bytes.Equal(img[off:off+8], append(bytes.Clone(magic), 0, 0, 0, 4)) {
			l.base = off
		}
	}
	if l.base < 0 {
		t.Fatal("image has no journal")
	}
	l.super = img[l.base:][:1024]
	compat, incompat := uint32(0), uint32(1)
	switch version {
	case 1:
		compat = 1
	case 2:
		incompat |= 8
	case 3:
		incompat |= 0x10
	}
	if wide {
		incompat |= 2
	}
	be := binary.BigEndian
	be.PutUint32(l.super[0x18:], l.id) // sequence numbers run over
	be.PutUint32(l.super[0x1c:], uint32(start))
	be.PutUint32(l.super[0x24:], compat)
	be.PutUint32(l.super[0x28:], incompat)
	if version > 1 {
		l.super[0x50] = 4 // CRC-32C
		l.seed = sum32c(1<<32-1, l.super[0x30:0x40])
	}
	l.sealSuper()
	sb := img[1024:2048]
	sb[0x60] |= 4 // needs_recovery
	binary.LittleEndian.PutUint32(sb[0x3fc:], sum32c(1<<32-1, sb[:0x3fc]))
	return l
}

func (l *logWriter) sealSuper() {
	if l.version > 1 {
		clear(l.super[0xfc:0x100])
		binary.BigEndian.PutUint32(l.super[0xfc:], sum32c(1<<32-1, l.super))
	}
}

// next returns the next block of the log, zeroed, with a head unless kind is 0.
func (l *logWriter) next(kind uint32) []byte {
	b := l.img[l.base+l.at*blockBytes:][:blockBytes]
	if l.at++; l.at == journalLength {
		l.at = 1
	}
	clear(b)
	if kind != 0 {
		copy(b, magic)
		binary.BigEndian.PutUint32(b[4:], kind)
		binary.BigEndian.PutUint32(b[8:], l.id)
	}
	return b
}

func (l *logWriter) sealTail(b []byte) {
	if l.version > 1 {
		binary.BigEndian.PutUint32(b[blockBytes-4:], sum32c(l.seed, b))
	}
}

// write logs blocks: number of the block and data, in turn.
func (l *logWriter) write(blocks []int, data []byte) {
	be := binary.BigEndian
	l.v1 = 1<<32 - 1
	d := l.next(1)
	var logged [][]byte
	tags := d[12:]
	for i, block := range blocks {
		b := l.next(0)
		copy(b, data)
		flags := uint32(0)
		if bytes.HasPrefix(data, magic) {
			flags |= 1
			clear(b[:4])
		}
		if i > 0 {
			flags |= 2
		}
		if i == len(blocks)-1 {
			flags |= 8
		}
		logged = append(logged, b)
		var id [4]byte
		be.PutUint32(id[:], l.id)
		sum := sum32c(sum32c(l.seed, id[:]), b)
		size := 8
		be.PutUint32(tags, uint32(block))
		switch l.version {
		case 3:
			be.PutUint32(tags[4:], flags)
			be.PutUint32(tags[12:], sum)
			size = 16
		default:
			be.PutUint16(tags[6:], uint16(flags))
			if l.version == 2 {
				be.PutUint16(tags[4:], uint16(sum))
				size = 10
			}
			if l.wide {
				size += 4
			}
		}
		tags = tags[size:]
		if i == 0 {
			copy(tags, "uuid of the file")
			tags = tags[16:]
		}
	}
	l.sealTail(d)
	for _, b := range append([][]byte{d}, logged...) {
		l.v1 = sum32(l.v1, b)
	}
}

// revoke logs that a block is revoked.
func (l *logWriter) revoke(block int) {
	b := l.next(5)
	if l.wide {
		binary.BigEndian.PutUint32(b[12:], 24)
		binary.BigEndian.PutUint64(b[16:], uint64(block))
	} else {
		binary.BigEndian.PutUint32(b[12:], 20)
		binary.BigEndian.PutUint32(b[16:], uint32(block))
	}
	l.sealTail(b)
}

func (l *logWriter) commit() []byte {
	b := l.next(2)
	l.time++
	binary.BigEndian.PutUint64(b[0x30:], l.time)
	switch l.version {
	case 1:
		b[12], b[13] = 1, 4
		binary.BigEndian.PutUint32(b[16:], l.v1)
	case 2, 3:
		binary.BigEndian.PutUint32(b[16:], sum32c(l.seed, b))
	}
	l.id++
	l.v1 = 1<<32 - 1
	return b
}

// patterned is a file of blocks that each begin with a mark of their own.
func patterned(path string, blocks int) tree.Node {
	var b []byte
	for i := range blocks {
		b = append(b, fmt.Sprintf("%-4095s\n", fmt.Sprintf("mark of %s %d", path, i))...)
	}
	return file(path, string(b))
}

// marked returns the number of the block with a mark.
func marked(t testing.TB, img []byte, path string, i int) int {
	t.Helper()
	at := bytes.Index(img, fmt.Appendf(nil, "mark of %s %d ", path, i))
	if at < 0 || at%blockBytes != 0 {
		t.Fatalf("mark %d of %s is at %d", i, path, at)
	}
	return at / blockBytes
}

// blockOf is a block of data.
func blockOf(s string) []byte { return []byte(fmt.Sprintf("%-4095s\n", s)) }

// journaled makes an image whose log has five transactions and one that was
// not committed.
func journaled(t testing.TB, version int, wide bool, start int) []byte {
	t.Helper()
	img := written(t, build(t, patterned("f", 8)), func() ext4.Params { p := params(); p.JournalSize = journalLength * blockBytes; return p }())
	f := func(i int) int { return marked(t, img, "f", i) }
	at := [8]int{f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)}
	l := newLog(t, img, version, wide, start)
	l.write([]int{at[0], at[1], at[2], at[3]}, blockOf("first"))
	l.commit()
	l.write([]int{at[1], at[4]}, append(bytes.Clone(magic), blockOf(" escaped")[4:]...))
	l.commit()
	l.revoke(at[2])
	l.revoke(at[5])
	l.commit()
	l.write([]int{at[5]}, blockOf("after its revocation"))
	l.commit()
	l.write([]int{at[6]}, blockOf("last"))
	l.revoke(at[6])
	l.commit()
	l.write([]int{at[7]}, blockOf("not committed"))
	return img
}

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

// block returns a block of the journal.
func (l *logWriter) block(i int) []byte { return l.img[l.base+i*blockBytes:][:blockBytes] }

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
