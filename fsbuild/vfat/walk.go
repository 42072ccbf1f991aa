package vfat

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"

	"cairn/fsbuild/tree"
)

// walker reads the directories of an image.
type walker struct {
	im   *image
	v    *Volume
	seen map[uint32]string // clusters of directories → path
	fat  *fatReader

	labelled bool // the root directory has a label
}

// maxReadPath bounds the memory for paths of a hostile image, in bytes.
const maxReadPath = 1024

// found is a directory that is to be read.
type found struct {
	path  string
	start uint32 // 0 for FAT12's and FAT16's root
}

func (w *walker) walk() error {
	w.fat = newFATReader(w.im)
	todo := []found{{".", w.im.rootAt}}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		slots, err := w.slots(d)
		if err != nil {
			return fmt.Errorf("%q: %w", d.path, err)
		}
		below, err := w.directory(d.path, slots)
		if err != nil {
			return err
		}
		todo = append(todo, below...)
	}
	return nil
}

// slots reads a directory up to its end mark.
func (w *walker) slots(d found) ([]byte, error) {
	g := &w.im.geo
	if d.start == 0 {
		b := make([]byte, g.rootEntries*slotSize)
		err := readAt(w.im.r, b, int64(g.rootStart()*g.sector), w.im.size)
		return untilEnd(b, 0), err
	}
	var b []byte
	for cluster := d.start; cluster != 0; {
		if other, ok := w.seen[cluster]; ok {
			return nil, damaged("cluster %d of the directory belongs to %q too", cluster, other)
		}
		w.seen[cluster] = d.path
		n := len(b)
		b = append(b, make([]byte, g.clusterSize())...)
		if err := readAt(w.im.r, b[n:], g.offset(cluster), w.im.size); err != nil {
			return nil, err
		}
		if end := untilEnd(b, n); len(end) < len(b) {
			return end, nil
		}
		next, err := w.fat.next(cluster)
		if err != nil {
			return nil, err
		}
		if cluster = next; cluster != 0 && len(b) >= maxSlots*slotSize {
			return nil, damaged("the directory has more than %d entries", maxSlots)
		}
	}
	return b, nil
}

// untilEnd cuts slots at the end mark, which is at from or later.
func untilEnd(b []byte, from int) []byte {
	for i := from; i < len(b); i += slotSize {
		if b[i] == 0 {
			return b[:i]
		}
	}
	return b
}

// directory adds what is in the slots of a directory to the tree and returns
// the directories among it.
func (w *walker) directory(path string, slots []byte) (below []found, err error) {
	var long longReader
	for ; len(slots) >= slotSize; slots = slots[slotSize:] {
		s := slots[:slotSize]
		attr := s[11] & attrMask
		switch {
		case s[0] == 0xe5: // deleted
			long.reset()
			continue
		case attr == attrLongName:
			long.add(s)
			continue
		case attr&attrVolumeID != 0:
			if path == "." && !w.labelled {
				w.v.Label, w.labelled = labelText(unescaped(s)), true
			}
			long.reset()
			continue
		}
		name, ok := long.name(shortName(s[:11]))
		if !ok {
			name = shortText(s)
		}
		long.reset()
		if name == "." || name == ".." {
			continue
		}
		d, err := w.add(path, name, s)
		if err != nil {
			return nil, err
		}
		if d.start != 0 {
			below = append(below, d)
		}
	}
	return below, nil
}

// add adds a file or directory to the tree.
func (w *walker) add(dir, name string, s []byte) (found, error) {
	path := name
	if dir != "." {
		path = dir + "/" + name
	}
	if strings.ContainsAny(name, "/\x00") || name == "" {
		return found{}, fmt.Errorf("%q: %w", dir, damaged("an entry has the name %q", name))
	}
	if len(path) > maxReadPath {
		return found{}, fmt.Errorf("%q: %w", dir, damaged("a path in it has %d bytes, the limit is %d", len(path), maxReadPath))
	}
	n := tree.Node{Path: path, Type: tree.Regular, Mode: 0o644, MTime: fromDOS(le.Uint16(s[24:]), le.Uint16(s[22:]))}
	start := uint32(le.Uint16(s[26:]))
	if w.im.geo.typ == FAT32 {
		start |= uint32(le.Uint16(s[20:])) << 16
	}
	var below found
	if s[11]&attrDirectory != 0 {
		n.Type, n.Mode = tree.Directory, 0o755
		below = found{path, start}
	} else {
		n.Size = int64(le.Uint32(s[28:]))
		if s[11]&attrReadOnly != 0 {
			n.Mode = 0o444
		}
	}
	clusters := ceil(uint64(n.Size), w.im.geo.clusterSize())
	switch {
	case (n.Size > 0 || n.Type == tree.Directory) && !w.im.valid(start):
		return found{}, fmt.Errorf("%q: %w", path, damaged("it starts in cluster %d of %d", start, w.im.geo.clusters))
	case clusters > w.im.geo.clusters:
		return found{}, fmt.Errorf("%q: %w", path, damaged("%d bytes are more than all clusters hold", n.Size))
	case n.Size > 0:
		n.Content = &content{im: w.im, start: start, size: n.Size}
	}
	if err := w.v.Tree.Add(n); err != nil {
		return found{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return below, nil
}

// longReader collects the slots of a long name.
type longReader struct {
	units []uint16 // filled from the end
	left  int      // slots that are still missing, 0 for none
	sum   byte
	ok    bool
}

func (l *longReader) reset() { *l = longReader{units: l.units[:0]} }

// add takes a slot. One that does not continue the name makes it invalid.
func (l *longReader) add(s []byte) {
	number := int(s[0] & 0x3f)
	if s[0]&0x40 != 0 {
		l.reset()
		if number == 0 || number > (maxUnits+unitsPerSlot-1)/unitsPerSlot {
			return
		}
		l.left, l.sum, l.ok = number+1, s[13], true
		l.units = append(l.units, make([]uint16, number*unitsPerSlot)...)
	}
	if !l.ok || number == 0 || number != l.left-1 || s[13] != l.sum {
		l.ok = false
		return
	}
	l.left = number
	for k, off := range unitOffsets {
		l.units[(number-1)*unitsPerSlot+k] = le.Uint16(s[off:])
	}
}

// name returns the long name if it is complete, belongs to a short name, and
// can be a name. Without its first slots it is empty, since they are zero.
func (l *longReader) name(short shortName) (string, bool) {
	if !l.ok || l.sum != short.checksum() {
		return "", false
	}
	units := l.units
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	if len(units) == 0 || len(units) > maxUnits {
		return "", false
	}
	runes := utf16.Decode(units)
	if !slices.Equal(utf16.Encode(runes), units) || slices.Contains(runes, '/') {
		return "", false
	}
	name := string(runes)
	return name, name != "." && name != ".."
}

// unescaped returns the 11 bytes of a short name. The first may stand for
// 0xE5, which marks a deleted entry.
func unescaped(s []byte) []byte {
	b := append([]byte(nil), s[:11]...)
	if b[0] == 0x05 {
		b[0] = 0xe5
	}
	return b
}

// shortText returns the name that a short entry shows.
func shortText(s []byte) string {
	b := unescaped(s)
	base := strings.TrimRight(oemText(b[:8]), " ")
	ext := strings.TrimRight(oemText(b[8:]), " ")
	if s[12]&lowerBase != 0 {
		base = strings.ToLower(base)
	}
	if s[12]&lowerExt != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		return base + "." + ext
	}
	return base
}

// cp437 are the characters 0x80 to 0xFF of code page 437.
const cp437 = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐" +
	"└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0"

func oemText(b []byte) string {
	high := []rune(cp437)
	var s strings.Builder
	for _, c := range b {
		if c < 0x80 {
			s.WriteByte(c)
		} else {
			s.WriteRune(high[c-0x80])
		}
	}
	return s.String()
}
