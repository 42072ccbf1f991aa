package vfat

import (
	"errors"
	"fmt"

	"cairn/fsbuild/tree"
)

// firstCluster is the number of the first cluster.
const firstCluster = 2

// entry is a name in a directory.
type entry struct {
	node     *tree.Node
	long     []uint16 // nil when the short name says all
	short    shortName
	caseBits byte
	start    uint32 // first cluster, 0 for none
	dir      *directory
}

// slots returns how many slots the entry takes.
func (e *entry) slots() int { return 1 + (len(e.long)+unitsPerSlot-1)/unitsPerSlot }

// directory is a directory with what is in it, by name.
type directory struct {
	node    *tree.Node
	parent  *directory // nil for the root
	entries []entry
	units   int // of the path, in UTF-16
	slots   int
	start   uint32 // first cluster, 0 for FAT12's and FAT16's root
}

func (d *directory) bytes() uint64 { return uint64(d.slots) * slotSize }

// chain is a run of clusters of one owner.
type chain struct {
	start, count uint32
}

// Layout is a planned file system. It refers to the tree, which must not be
// modified while the layout is in use. A Layout is immutable: it may be written
// any number of times, also concurrently.
type Layout struct {
	params Params
	geo    geometry
	stamp  dosTime
	latest tree.Time // of a modification; zero for any

	dirs   []*directory // the root first, parents before what is in them
	files  []*entry     // those with content
	chains []chain      // ascending, without gaps
	used   uint32       // clusters
}

// Plan computes the layout of a tree. Errors name the path and the limit; a
// Params.Size that is too small gives a *[SizeError].
func Plan(t *tree.Tree, p Params) (*Layout, error) {
	l, err := plan(t, p)
	if err != nil {
		return nil, fmt.Errorf("plan vfat: %w", err)
	}
	return l, nil
}

func plan(t *tree.Tree, p Params) (*Layout, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	l := &Layout{params: p}
	if !p.Time.IsZero() {
		l.latest = tree.Time{Sec: p.Time.Unix(), Nsec: uint32(p.Time.Nanosecond())}
		l.stamp = toDOS(l.latest)
	} else {
		l.stamp = toDOS(tree.Time{})
	}
	if err := l.collect(t); err != nil {
		return nil, err
	}
	for _, d := range l.dirs {
		if err := d.nameEntries(); err != nil {
			return nil, err
		}
		if err := l.count(d); err != nil {
			return nil, err
		}
	}
	if err := l.fit(); err != nil {
		return nil, err
	}
	l.place()
	return l, nil
}

// Size returns the size of the image in bytes. Write does not emit what is zero
// at the end, so a file must be extended to it.
func (l *Layout) Size() int64 {
	if l.params.Size != 0 {
		return l.params.Size
	}
	return int64(l.geo.total * l.geo.sector)
}

// Summary says what the layout is like.
func (l *Layout) Summary() Summary {
	return Summary{
		Size:         l.Size(),
		Type:         l.geo.typ,
		SectorSize:   int64(l.geo.sector),
		ClusterSize:  int64(l.geo.clusterSize()),
		Clusters:     int64(l.geo.clusters),
		FreeClusters: int64(l.geo.clusters) - int64(l.used),
		Serial:       serialText(l.params.Serial),
	}
}

func serialText(serial uint32) string { return fmt.Sprintf("%04X-%04X", serial>>16, serial&0xffff) }

// collect sorts the tree into directories.
func (l *Layout) collect(t *tree.Tree) error {
	byPath := map[string]*directory{}
	for n := range t.All() {
		err := n.Check()
		if err == nil {
			err = checkNode(n)
		}
		if err == nil {
			err = l.add(n, byPath)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", n.Path, err)
		}
	}
	return nil
}

// checkNode refuses what FAT has no form for.
func checkNode(n *tree.Node) error {
	switch {
	case n.Type != tree.Regular && n.Type != tree.Directory:
		return fmt.Errorf("FAT has no %s, only files and directories", typeName(n.Type))
	case len(n.Xattrs) > 0:
		return fmt.Errorf("FAT has no extended attributes such as %q", n.Xattrs[0].Name)
	case n.Size > maxFile:
		return fmt.Errorf("size %d is above the limit of %d bytes", n.Size, int64(maxFile))
	}
	return nil
}

func typeName(t tree.Type) string {
	switch t {
	case tree.Symlink:
		return "symlinks"
	case tree.CharDevice, tree.BlockDevice:
		return "devices"
	case tree.FIFO:
		return "FIFOs"
	case tree.Socket:
		return "sockets"
	default:
		return "type " + t.String()
	}
}

// add gives a node its entry and, if it is one, its directory.
func (l *Layout) add(n *tree.Node, byPath map[string]*directory) error {
	if n.Path == "." {
		byPath["."] = &directory{node: n}
		l.dirs = append(l.dirs, byPath["."])
		return nil
	}
	long, err := longName(n.Name())
	if err != nil {
		return err
	}
	parent := byPath[n.Parent()]
	units := parent.units + len(long)
	if parent.parent != nil {
		units++ // the separator
	}
	if units > maxPath {
		return fmt.Errorf("path has %d UTF-16 units, the limit is %d", units, maxPath)
	}
	e := entry{node: n, long: long}
	if n.Type == tree.Directory {
		e.dir = &directory{node: n, parent: parent, units: units}
		byPath[n.Path] = e.dir
		l.dirs = append(l.dirs, e.dir)
	}
	parent.entries = append(parent.entries, e)
	return nil
}

// nameEntries gives the entries of a directory their short names. Names that
// are short names themselves come first, so that no alias takes one.
func (d *directory) nameEntries() error {
	folded := make(map[string]*tree.Node, len(d.entries))
	names := newAliases()
	var rest []*entry
	for i := range d.entries {
		e := &d.entries[i]
		key := foldName(e.node.Name())
		if other, ok := folded[key]; ok {
			return fmt.Errorf("%q: name differs from %q in case only", e.node.Path, other.Path)
		}
		folded[key] = e.node
		short, caseBits, whole, ok := parseShort(e.node.Name())
		if !ok {
			rest = append(rest, e)
			continue
		}
		names.used[short] = true
		e.short = short
		if whole {
			e.caseBits, e.long = caseBits, nil
		}
	}
	for _, e := range rest {
		var err error
		if e.short, err = names.alias(e.node.Name()); err != nil {
			return fmt.Errorf("%q: %w", e.node.Path, err)
		}
	}
	return nil
}

// count counts the slots of a directory: the label's in the root, or "." and
// "..", then the entries'.
func (l *Layout) count(d *directory) error {
	switch {
	case d.parent != nil:
		d.slots = 2
	case l.params.Label != "":
		d.slots = 1
	}
	for i := range d.entries {
		e := &d.entries[i]
		d.slots += e.slots()
		if e.dir == nil && e.node.Size > 0 {
			l.files = append(l.files, e)
		}
	}
	if d.slots > maxSlots {
		return fmt.Errorf("%q: directory needs %d entries of %d bytes, the limit is %d", d.node.Path, d.slots, slotSize, maxSlots)
	}
	return nil
}

// need counts the clusters of a geometry's size and type that the tree and the
// slack take.
func (l *Layout) need(g *geometry) uint64 {
	size := g.clusterSize()
	n := ceil(uint64(l.params.Slack), size)
	for i, d := range l.dirs {
		if i > 0 {
			n += ceil(d.bytes(), size)
		} else if g.typ == FAT32 {
			n += max(ceil(d.bytes(), size), 1)
		}
	}
	for _, e := range l.files {
		n += ceil(uint64(e.node.Size), size)
	}
	return n
}

var errTooLarge = errors.New("the tree needs more clusters than the type and the cluster size have")

// fit chooses the geometry.
func (l *Layout) fit() error {
	p := l.params
	var ok bool
	if p.Size == 0 {
		if p.RootEntries == 0 {
			p.RootEntries = defaultRootEntries // also when the size is a floppy's
		}
		l.geo, ok = p.minimal(l.need)
	} else {
		sectors := uint64(p.Size) / p.sector()
		var v verdict
		if l.geo, v = p.choose(sectors); v == fits && l.need(&l.geo) <= l.geo.clusters {
			return l.checkRoot()
		}
		if l.geo, ok = p.fit(sectors, l.need); ok {
			return &SizeError{Size: p.Size, Missing: int64(l.geo.total*l.geo.sector) - p.Size}
		}
	}
	if !ok {
		return errTooLarge
	}
	return l.checkRoot()
}

// checkRoot looks whether the root of FAT12 and FAT16 has room.
func (l *Layout) checkRoot() error {
	d := l.dirs[0]
	if l.geo.typ == FAT32 || uint64(d.slots) <= l.geo.rootEntries {
		return nil
	}
	return fmt.Errorf("%q: root directory needs %d entries of %d bytes, the limit is %d on this %s (Params.RootEntries)",
		d.node.Path, d.slots, slotSize, l.geo.rootEntries, l.geo.typ)
}

// place gives every directory and file its clusters.
func (l *Layout) place() {
	size := l.geo.clusterSize()
	take := func(bytes uint64) uint32 {
		c := chain{firstCluster + l.used, uint32(ceil(bytes, size))}
		l.chains = append(l.chains, c)
		l.used += c.count
		return c.start
	}
	for i, d := range l.dirs {
		if i > 0 {
			d.start = take(d.bytes())
		} else if l.geo.typ == FAT32 {
			d.start = take(max(d.bytes(), 1))
		}
	}
	for _, e := range l.files {
		e.start = take(uint64(e.node.Size))
	}
}
