package vfat

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"cairn/fsbuild/tree"
)

// slot returns the first slot with a short name in an image.
func slot(t testing.TB, b []byte, name string) []byte {
	t.Helper()
	i := bytes.Index(b, []byte(name))
	if i < 0 {
		t.Fatalf("no entry %q", name)
	}
	return b[i:][:slotSize]
}

// TestDamage: every lie is an error that wraps ErrDamaged and says where.
func TestDamage(t *testing.T) {
	const large, long = "LARGE      ", "WITHAL~1   "
	start := func(l *Layout, cluster uint32) uint32 { // of FAT32's numbering
		if l.geo.typ == FAT32 {
			return cluster
		}
		return cluster - 1
	}
	for name, c := range map[string]struct {
		damage func(l *Layout, b []byte)
		want   string
	}{
		"signature":        {func(_ *Layout, b []byte) { b[510] = 0 }, "signature"},
		"jump":             {func(_ *Layout, b []byte) { b[0] = 0 }, "jump"},
		"sector size 0":    {func(_ *Layout, b []byte) { le.PutUint16(b[11:], 0) }, "sectors of 0 bytes"},
		"sector size":      {func(_ *Layout, b []byte) { le.PutUint16(b[11:], 8192) }, "sectors of 8192 bytes"},
		"cluster size":     {func(_ *Layout, b []byte) { b[13] = 3 }, "clusters of 3 sectors"},
		"cluster size 0":   {func(_ *Layout, b []byte) { b[13] = 0 }, "clusters of 0 sectors"},
		"no FAT":           {func(_ *Layout, b []byte) { b[16] = 0 }, "0 FATs"},
		"many FATs":        {func(_ *Layout, b []byte) { b[16] = 255 }, "precede the clusters"},
		"no reserved":      {func(_ *Layout, b []byte) { le.PutUint16(b[14:], 0) }, "0 reserved"},
		"large":            {func(_ *Layout, b []byte) { le.PutUint16(b[19:], 0xffff); le.PutUint32(b[32:], 1<<32-1) }, "but the image has"},
		"much reserved":    {func(l *Layout, b []byte) { le.PutUint16(b[14:], uint16(l.geo.total)+1) }, "precede the clusters"},
		"chain out":        {func(l *Layout, b []byte) { setFAT(l, b, start(l, 11), 0xffe0) }, `"D/LARGE"`},
		"chain free":       {func(l *Layout, b []byte) { setFAT(l, b, start(l, 11), 0) }, `"D/LARGE"`},
		"chain one":        {func(l *Layout, b []byte) { setFAT(l, b, start(l, 11), 1) }, `"D/LARGE"`},
		"bad cluster":      {func(l *Layout, b []byte) { setFAT(l, b, start(l, 11), 1<<28-9) }, `"D/LARGE"`},
		"chain short":      {func(l *Layout, b []byte) { setFAT(l, b, start(l, 11), 1<<28-1) }, "ends 1536 bytes before"},
		"chain long":       {func(l *Layout, b []byte) { setFAT(l, b, start(l, 9), start(l, 15)) }, `"with a long name"`},
		"chain cycle":      {func(l *Layout, b []byte) { setFAT(l, b, start(l, 11), start(l, 10)) }, "goes on behind"},
		"chain of itself":  {func(l *Layout, b []byte) { setFAT(l, b, start(l, 10), start(l, 10)) }, "goes on behind"},
		"directory cycle":  {func(l *Layout, b []byte) { setFAT(l, b, start(l, 3), start(l, 3)) }, `"D": `},
		"directory out":    {func(l *Layout, b []byte) { setFAT(l, b, start(l, 3), 0xffe0) }, `"D": `},
		"file start":       {func(_ *Layout, b []byte) { le.PutUint16(slotOf(b, large)[26:], 0xfff0) }, `"D/LARGE": not a sound`},
		"file start 0":     {func(_ *Layout, b []byte) { le.PutUint16(slotOf(b, large)[26:], 0) }, `starts in cluster 0`},
		"file start 1":     {func(_ *Layout, b []byte) { le.PutUint16(slotOf(b, long)[26:], 1) }, `"with a long name"`},
		"file size":        {func(_ *Layout, b []byte) { le.PutUint32(slotOf(b, large)[28:], 1<<32-1) }, "4294967295 bytes are more"},
		"directory start":  {func(_ *Layout, b []byte) { le.PutUint16(slotOf(b, "SUB        ")[26:], 0) }, `"D/SUB"`},
		"directory parent": {func(l *Layout, b []byte) { le.PutUint16(slotOf(b, "SUB        ")[26:], uint16(start(l, 3))) }, `belongs to "D" too`},
		"same name":        {func(_ *Layout, b []byte) { copy(slotOf(b, "E7         "), "E8") }, `"D/E8": path exists`},
		"slash":            {func(_ *Layout, b []byte) { slotOf(b, "E7         ")[0] = '/' }, `"/7"`},
		"NUL":              {func(_ *Layout, b []byte) { slotOf(b, "E7         ")[1] = 0 }, `"E\x00"`},
		"blank":            {func(_ *Layout, b []byte) { copy(slotOf(b, "E7         "), "  ") }, `the name ""`},
	} {
		t.Run(name, func(t *testing.T) {
			for typ, l := range samples(t) {
				b := bytesOf(t, l)
				if _, _, err := readAll(b); err != nil {
					t.Fatalf("%s: undamaged: %v", typ, err)
				}
				slot(t, b, large)
				c.damage(l, b)
				_, _, err := readAll(b)
				if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %v, want damage with %s", typ, err, c.want)
				}
			}
		})
	}
}

// slotOf is slot for names that are known to be there.
func slotOf(b []byte, name string) []byte { return b[bytes.Index(b, []byte(name)):][:slotSize] }

// TestDamage32 is about what only FAT32 has.
func TestDamage32(t *testing.T) {
	l := smallFAT32(t, sampleTree(t))
	for name, c := range map[string]struct {
		damage func(b []byte)
		want   string // "" when it reads well
	}{
		"root cluster":  {func(b []byte) { le.PutUint32(b[44:], 0) }, "root directory in cluster 0"},
		"FAT size":      {func(b []byte) { le.PutUint32(b[36:], 0) }, "FATs of 0 sectors"},
		"active FAT":    {func(b []byte) { b[40] = 0x82 }, "FAT 2 of 2"},
		"second FAT":    {func(b []byte) { b[40] = 0x81; clear(b[32*512:][:l.geo.fat*512]) }, ""},
		"first FAT":     {func(b []byte) { b[40] = 0x80; clear(b[(32+l.geo.fat)*512:][:l.geo.fat*512]) }, ""},
		"mirrored":      {func(b []byte) { b[40] = 0x01; clear(b[(32+l.geo.fat)*512:][:l.geo.fat*512]) }, ""},
		"reserved bits": {func(b []byte) { setFAT(l, b, 10, 11|0xa<<28) }, ""},
		"high word":     {func(b []byte) { slotOf(b, "LARGE      ")[21] = 1 }, "it starts in cluster 16777226"},
		"no BPB":        {func(b []byte) { clear(b) }, "signature"},
	} {
		b := bytesOf(t, l)
		c.damage(b)
		_, _, err := readAll(b)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestFragmented: a chain may go anywhere, and a reader may ask for any number
// of bytes.
func TestFragmented(t *testing.T) {
	for typ, l := range samples(t) {
		b := bytesOf(t, l)
		first := uint32(le.Uint16(slotOf(b, "LARGE      ")[26:]))
		content := bytes.Repeat([]byte("large"), 512)
		order := []uint32{0, 3, 4, 1, 2}
		for i, k := range order {
			copy(b[l.geo.offset(first+k):], content[i*512:][:512])
			next := uint32(1<<28 - 1)
			if i+1 < len(order) {
				next = first + order[i+1]
			}
			setFAT(l, b, first+k, next)
		}
		v, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{1, 7, 511, 512, 513, 1024, 1025, 2559, 2560, 4096} {
			r, err := v.Tree.Lookup("D/LARGE").Content.Open()
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			buf := make([]byte, size)
			for err == nil {
				var n int
				n, err = r.Read(buf)
				got = append(got, buf[:n]...)
			}
			if !errors.Is(err, io.EOF) || !bytes.Equal(got, content) {
				t.Errorf("%s: reads of %d bytes: %d bytes, equal %v, %v", typ, size, len(got), bytes.Equal(got, content), err)
			}
		}
	}
}

// TestSmallFAT: the FAT has an entry for every cluster.
func TestSmallFAT(t *testing.T) {
	b := bytesOf(t, samples(t)[FAT16])
	le.PutUint16(b[22:], 15)
	if _, _, err := readAll(b); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "a FAT of 15 sectors for") {
		t.Errorf("Open: %v", err)
	}
}

// TestTruncated: an image that ends anywhere is an error or reads well, and so
// is a reader that has less than it says.
func TestTruncated(t *testing.T) {
	for typ, l := range samples(t) {
		b := bytesOf(t, l)
		for n := 0; n < len(b); n += 1 + n/7 {
			if _, err := Open(bytes.NewReader(b[:n]), int64(n)); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: %d bytes: %v", typ, n, err)
			}
			v, err := Open(bytes.NewReader(b[:n]), int64(len(b)))
			if err == nil {
				err = v.Tree.WriteText(io.Discard)
			}
			if used := int(l.geo.offset(firstCluster + l.used)); (err == nil) != (n >= used) || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: reader of %d bytes: %v", typ, n, err)
			}
		}
	}
}

// TestLongNames: a long name counts only when it is whole, belongs to its
// short name, and can be a name.
func TestLongNames(t *testing.T) {
	const short = "WITHAL~1"
	for name, c := range map[string]struct {
		damage func(slots []byte) // two of the long name, then the short one's, then a free one
		want   string
	}{
		"good":          {func([]byte) {}, "with a long name"},
		"checksum":      {func(b []byte) { b[13]++ }, short},
		"checksums":     {func(b []byte) { b[32+13]++ }, short},
		"other name":    {func(b []byte) { b[64] = 'X' }, "XITHAL~1"},
		"order":         {func(b []byte) { b[32] = 2 }, short},
		"no start":      {func(b []byte) { b[0] = 2 }, short},
		"start missing": {func(b []byte) { b[0] = 0xe5 }, short},
		"end missing":   {func(b []byte) { b[32] = 0xe5 }, short},
		"many":          {func(b []byte) { b[0] = 0x40 | 21 }, short},
		"none":          {func(b []byte) { b[0] = 0x40 }, short},
		"empty":         {func(b []byte) { b[32+1] = 0 }, short},
		"slash":         {func(b []byte) { b[32+1] = '/' }, short},
		"dot":           {func(b []byte) { b[32+1], b[32+3] = '.', 0 }, short},
		"dot dot":       {func(b []byte) { b[32+1], b[32+3], b[32+5] = '.', '.', 0 }, short},
		"surrogate":     {func(b []byte) { b[32+2] = 0xd8 }, short},
		"low surrogate": {func(b []byte) { b[32+2] = 0xdc }, short},
		"ends early":    {func(b []byte) { b[32+9] = 0 }, "with"},
		"cut":           {func(b []byte) { copy(b[32:64], b[64:]); b[64] = 0xe5 }, short},
		"old between":   {func(b []byte) { copy(b[96:], b[64:96]); b[64] = 0xe5 }, short},
		"label between": {func(b []byte) { copy(b[32:64], b[64:]); b[32+11] = attrVolumeID }, short},
		"read-only":     {func(b []byte) { b[64+11] |= attrReadOnly }, "with a long name"},
		"code page":     {func(b []byte) { b[64], b[65] = 0x05, 0x80 }, "σÇTHAL~1"},
	} {
		t.Run(name, func(t *testing.T) {
			b := bytesOf(t, samples(t)[FAT12])
			at := bytes.Index(b, []byte(short)) - 2*slotSize
			c.damage(b[at:][:4*slotSize])
			_, v, err := readAll(b)
			if err != nil {
				t.Fatal(err)
			}
			n := v.Tree.Lookup(c.want)
			if n == nil {
				t.Fatalf("there is no %q", c.want)
			}
			if want := map[bool]uint32{false: 0o644, true: 0o444}[name == "read-only"]; n.Mode != want {
				t.Errorf("mode %#o, want %#o", n.Mode, want)
			}
		})
	}
}

// zeros is an image that goes on with zeros.
type zeros []byte

func (z zeros) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if off < int64(len(z)) {
		copy(b, z[off:])
	}
	return len(b), nil
}

// TestHuge: a boot sector that claims the largest volume costs no memory for
// what is not there.
func TestHuge(t *testing.T) {
	b := bytesOf(t, smallFAT32(t, tree.New()))[:512]
	le.PutUint32(b[32:], 1<<32-1)
	le.PutUint32(b[36:], 1<<25)
	v, err := Open(zeros(b), 1<<50)
	if err != nil || v.Tree.Len() != 1 {
		t.Errorf("Open: %v", err)
	}
}

// TestLongDirectory: a directory has at most 65,536 entries.
func TestLongDirectory(t *testing.T) {
	tr := tree.New()
	if err := tr.Add(tree.Node{Path: "F", Type: tree.Regular, Size: maxSlots*slotSize + 512, Content: deleted{}}); err != nil {
		t.Fatal(err)
	}
	l, err := Plan(tr, Params{Type: FAT16, ClusterSize: 512})
	if err != nil {
		t.Fatal(err)
	}
	b := bytesOf(t, l)
	slotOf(b, "F          ")[11] = attrDirectory
	if _, _, err := readAll(b); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "65536") {
		t.Errorf("Open: %v", err)
	}
	setFAT(l, b, firstCluster+maxSlots*slotSize/512-1, 0xffff)
	if _, v, err := readAll(b); err != nil || v.Tree.Len() != 2 {
		t.Errorf("Open: %v", err)
	}
}

// deleted is a content of deleted entries.
type deleted struct{}

func (deleted) Open() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(bytes.Repeat([]byte{0xe5}, maxSlots*slotSize+512))), nil
}

// TestDeep: a path that never ends is an error.
func TestDeep(t *testing.T) {
	tr := tree.New()
	path := "D"
	for range 100 {
		if err := tr.Add(tree.Node{Path: path, Type: tree.Directory}); err != nil {
			t.Fatal(err)
		}
		path += "/D"
	}
	l, err := Plan(tr, Params{ClusterSize: 512, Type: FAT16})
	if err != nil {
		t.Fatal(err)
	}
	b := bytesOf(t, l)
	for i := range b { // eleven characters instead of one
		if bytes.HasPrefix(b[i:], []byte("D          \x10")) {
			copy(b[i:], "DDDDDDDDDDD")
		}
	}
	if _, _, err := readAll(b); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "1024") {
		t.Errorf("Open: %v", err)
	}
}

// TestLabel: the root directory's label counts before the boot sector's, and a
// second one does not.
func TestLabel(t *testing.T) {
	for typ, l := range samples(t) {
		b := bytesOf(t, l)
		at := bytes.LastIndex(b, []byte("SMALL      \x08"))
		copy(b[at:], "ROOT ")
		copy(slotOf(b, "LOWER      ")[11:], []byte{attrVolumeID})
		for _, want := range []string{"ROOT", "LOWER", "SMALL"} {
			_, v, err := readAll(b)
			if err != nil {
				t.Fatalf("%s: %v", typ, err)
			}
			if v.Label != want {
				t.Fatalf("%s: label %q, want %q", typ, v.Label, want)
			}
			if at = bytes.Index(b, []byte(want + "       ")[:11]); want == "ROOT" || want == "LOWER" {
				b[at] = 0xe5
			}
		}
	}
}
