package blockdevice

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"cairn/fsbuild/partition"
)

// Parse reads a configuration. Its errors are *[ConfigError].
func Parse(text []byte, params Params) (*Plan, error) {
	nodes, err := flatten(text)
	if err != nil {
		return nil, err
	}
	p := &parser{params: params, kinds: map[string]string{}, taken: map[string]string{}, labels: map[string]bool{}}
	for _, step := range []func([]*node) error{p.declare, p.disks, p.partitionings, p.fileSystems, p.mounts, p.fstabs} {
		if err := step(nodes); err != nil {
			return nil, err
		}
	}
	return &p.plan, p.finish()
}

type parser struct {
	params Params
	plan   Plan
	kinds  map[string]string // plugin of each node by name; a partition's is "partition"
	taken  map[string]string // what lies on a disk or partition, or has a mount's line, by the base's name
	labels map[string]bool   // of file systems
}

// declare collects the names of all nodes, which must be different, and refuses what is not supported. A partitioning
// node has no name of its own for others.
func (p *parser) declare(nodes []*node) error {
	for _, n := range nodes {
		if n.plugin == "lvm" || n.plugin == "luks" {
			return n.fail("", ErrUnsupported)
		}
		all := append([]*node{n}, n.parts...)
		if n.plugin == "partitioning" {
			all = n.parts
		}
		for _, m := range all {
			if p.kinds[m.name] != "" {
				return m.fail("name", fmt.Errorf("duplicate node name: %s", m.name))
			}
			p.kinds[m.name] = m.plugin
		}
	}
	return nil
}

// on checks that the base of n is one of some kinds, and that nothing else lies on it.
func (p *parser) on(n *node, kinds ...string) error {
	kind := p.kinds[n.base]
	switch {
	case n.base == "":
		return n.fail("base", errors.New("is missing"))
	case kind == "":
		return n.fail("base", fmt.Errorf("edge not defined: %s->%s", n.base, n.name))
	case !slices.Contains(kinds, kind):
		return n.fail("base", fmt.Errorf("%s is a %s, not a %s", n.base, kind, strings.Join(kinds, " or ")))
	case p.taken[n.base] != "":
		return n.fail("base", fmt.Errorf("%s has %s on it already", n.base, p.taken[n.base]))
	}
	p.taken[n.base] = n.plugin + " " + n.name
	return nil
}

// each calls f for the nodes of a plugin.
func each(nodes []*node, plugin string, f func(*node) error) error {
	for _, n := range nodes {
		if n.plugin == plugin {
			if err := f(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// known are the keys of a node and what reads them. A key that is not there is one that diskimage-builder ignores.
type known map[string]func(text string) error

// read reads the values of n, each of them a single one.
func (p *parser) read(n *node, keys known) error {
	for _, v := range n.values {
		set, ok := keys[v.key]
		if !ok {
			p.plan.Ignored = append(p.plan.Ignored, n.plugin+" "+n.name+": "+v.key)
			continue
		}
		text, err := scalar(v.y)
		if err == nil {
			err = set(text)
		}
		if err != nil {
			return n.fail(v.key, err)
		}
	}
	return nil
}

// into stores a text that is not empty.
func into(s *string) func(string) error {
	return func(text string) error {
		if text == "" {
			return errors.New("is empty")
		}
		*s = text
		return nil
	}
}

// number stores a number of up to a million.
func number(n *int) func(string) error {
	return func(text string) error {
		v, err := strconv.ParseUint(text, 10, 32)
		if err != nil || v > 1_000_000 {
			return fmt.Errorf("%q is no whole number", text)
		}
		*n = int(v)
		return nil
	}
}

// bytes stores a size that is not relative.
func bytes(n *int64) func(string) error {
	return func(text string) error {
		size, err := partition.ParseSize(text)
		if err == nil && size.Percent != 0 {
			err = fmt.Errorf("size %q is relative", text)
		}
		*n = size.Bytes
		return err
	}
}

// disks reads local_loop.
func (p *parser) disks(nodes []*node) error {
	return each(nodes, "local_loop", func(n *node) error {
		d := Disk{Name: n.name, BlockSize: 512}
		if !isName(n.name) {
			return n.fail("name", fmt.Errorf("%q is not of letters and digits, with . _ - between them", n.name))
		}
		if err := p.read(n, known{"size": bytes(&d.Size), "block_size": number(&d.BlockSize)}); err != nil {
			return err
		}
		d.BlockSize = cmp.Or(p.params.BlockSize, d.BlockSize)
		if d.BlockSize != 512 && d.BlockSize != 4096 {
			return n.fail("block_size", fmt.Errorf("%d is neither 512 nor 4096: %w", d.BlockSize, ErrUnsupported))
		}
		p.plan.Disks = append(p.plan.Disks, d)
		return nil
	})
}

// partitionings reads partitioning with its partitions.
func (p *parser) partitionings(nodes []*node) error {
	return each(nodes, "partitioning", func(n *node) error {
		if err := p.on(n, "local_loop"); err != nil {
			return err
		}
		i := slices.IndexFunc(p.plan.Disks, func(d Disk) bool { return d.Name == n.base })
		d := &p.plan.Disks[i]
		d.Align = partition.DefaultAlign
		var label string
		if err := p.read(n, known{"label": into(&label), "align": bytes(&d.Align)}); err != nil {
			return err
		}
		switch label {
		case "":
			return n.fail("label", errors.New("partitioning config needs 'label'"))
		case "mbr":
			d.Label = partition.MBR
		case "gpt":
			d.Label, d.Align = partition.GPT, partition.DefaultAlign
		default:
			return n.fail("label", errors.New("label must be 'mbr' or 'gpt'"))
		}
		if n.parts == nil {
			return n.fail("partitions", errors.New("partitioning config needs 'partitions'"))
		}
		for _, part := range n.parts {
			if err := p.partition(d, part); err != nil {
				return err
			}
		}
		return nil
	})
}

// partition reads one entry of partitions.
func (p *parser) partition(d *Disk, n *node) error {
	entry := Partition{Name: n.name, Number: len(d.Partitions) + 1, Logical: d.Label == partition.MBR}
	kind, sized := map[partition.Label]string{partition.MBR: "0x83", partition.GPT: "8300"}[d.Label], false
	var flags *yaml.Node
	n.values = slices.DeleteFunc(n.values, func(v value) bool {
		if v.key == "flags" {
			flags = v.y
		}
		return v.key == "flags"
	})
	if err := entry.flags(flags, d.Label); err != nil {
		return n.fail("flags", err)
	}
	err := p.read(n, known{"type": into(&kind), "size": func(text string) (err error) {
		entry.Size, err = partition.ParseSize(text)
		sized = true
		return err
	}})
	if err != nil {
		return err
	}
	if !sized {
		return n.fail("size", errors.New("is missing"))
	}
	if d.Label == partition.GPT {
		entry.Type, err = partition.ParseType(kind)
	} else {
		entry.MBRType, err = partition.ParseMBRType(kind)
	}
	if err != nil {
		return n.fail("type", err)
	}
	if err := entry.number(d.Partitions); err != nil {
		return n.fail("flags", err)
	}
	d.Partitions = append(d.Partitions, entry)
	return nil
}

// flags reads the list of flags.
func (e *Partition) flags(list *yaml.Node, label partition.Label) error {
	if list == nil || list.Kind == yaml.ScalarNode && list.ShortTag() == "!!null" {
		return nil
	}
	if list.Kind != yaml.SequenceNode {
		return errors.New("is not a list")
	}
	for _, y := range list.Content {
		switch {
		case y.Kind != yaml.ScalarNode || y.Value != "boot" && y.Value != "primary":
			return fmt.Errorf("unknown flag: %s", y.Value)
		case y.Value == "boot":
			e.Boot = true
		case label == partition.GPT:
			return errors.New("primary flag not supported for GPT partitions")
		default:
			e.Logical = false
		}
	}
	return nil
}

// number gives e the number that follows those before it.
func (e *Partition) number(before []Partition) error {
	if len(before) == 0 || !before[len(before)-1].Logical {
		if e.Logical {
			e.Number = 5
		}
		return nil
	}
	if !e.Logical {
		return errors.New("all primary partitions must be given first")
	}
	e.Number = before[len(before)-1].Number + 1
	return nil
}

// maxLabel returns the longest label of a type of file system, in bytes, or 0 when that is not known.
func maxLabel(kind string) int {
	switch kind {
	case "ext2", "ext3", "ext4", swap:
		return 16
	case "xfs":
		return 12
	case "vfat", "fat":
		return 11
	}
	return 0
}

// fileSystems reads mkfs.
func (p *parser) fileSystems(nodes []*node) error {
	return each(nodes, "mkfs", func(n *node) error {
		if err := p.on(n, "partition", "local_loop"); err != nil {
			return err
		}
		fs, opts := FileSystem{Name: n.name, Base: n.base}, ""
		err := p.read(n, known{"type": into(&fs.Type), "label": into(&fs.Label), "uuid": into(&fs.UUID), "opts": into(&opts)})
		if err != nil {
			return err
		}
		if n.name == "mkfs_root" {
			fs.Type = cmp.Or(fs.Type, p.params.RootType, "ext4")
			byType := map[bool]string{true: "img-rootfs", false: "cloudimg-rootfs"}[fs.Type == "xfs"]
			fs.Label = cmp.Or(fs.Label, p.params.RootLabel, byType)
			opts = cmp.Or(opts, p.params.RootOpts)
		}
		if fs.Type == "" {
			return n.fail("type", errors.New("mkfs config needs [type]"))
		}
		fs.Label, fs.Opts = cmp.Or(fs.Label, fs.Name), strings.Fields(opts)
		if fs.Type == "vfat" || fs.Type == "fat" {
			fs.Label = strings.ToUpper(fs.Label)
		}
		if err := p.checkLabel(fs); err != nil {
			return n.fail("label", err)
		}
		p.plan.FileSystems = append(p.plan.FileSystems, fs)
		return nil
	})
}

func (p *parser) checkLabel(fs FileSystem) error {
	switch {
	case p.labels[fs.Label]:
		return fmt.Errorf("file system label [%s] used more than once", fs.Label)
	case !isText(fs.Label) || !isWord(fs.Type):
		return fmt.Errorf("label %q or type %q has characters that fstab cannot hold", fs.Label, fs.Type)
	}
	p.labels[fs.Label] = true
	if most := maxLabel(fs.Type); most > 0 && len(fs.Label) > most {
		return fmt.Errorf("Label [%s] too long for filesystem [%s]: %d > %d", fs.Label, fs.Type, len(fs.Label), most) //nolint:staticcheck // diskimage-builder's words
	}
	return nil
}

// isText reports whether s can be a field of fstab, where blanks are escaped.
func isText(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// isWord reports whether s is such a text without blanks.
func isWord(s string) bool { return isText(s) && !strings.Contains(s, " ") }

// isName reports whether s can name a disk: it becomes a part of a file's name and a word of hooks' shells.
func isName(s string) bool {
	other := func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && r != '.' && r != '_' && r != '-'
	}
	return s != "" && !strings.ContainsFunc(s, other) && strings.Trim(s, "._-") == s
}

// mounts reads mount.
func (p *parser) mounts(nodes []*node) error {
	points := map[string]bool{}
	err := each(nodes, "mount", func(n *node) error {
		if err := p.on(n, "mkfs"); err != nil {
			return err
		}
		m := Mount{Name: n.name, FileSystem: n.base}
		if err := p.read(n, known{"mount_point": into(&m.Point)}); err != nil {
			return err
		}
		isSwap := p.plan.fileSystem(n.base).Type == swap
		switch {
		case m.Point == "":
			return n.fail("mount_point", errors.New("mount needs [mount_point]"))
		case points[m.Point]:
			return n.fail("mount_point", fmt.Errorf("mount point [%s] specified more than once", m.Point))
		case !isSwap && (!strings.HasPrefix(m.Point, "/") || !isText(m.Point) || slices.Contains(strings.Split(m.Point, "/"), "..")):
			return n.fail("mount_point", fmt.Errorf("%q is no absolute path", m.Point))
		}
		points[m.Point] = true
		p.plan.Mounts = append(p.plan.Mounts, m)
		return nil
	})
	slices.SortFunc(p.plan.Mounts, func(a, b Mount) int { return cmp.Compare(a.Point, b.Point) })
	for i := range p.plan.Mounts {
		if m := &p.plan.Mounts[i]; p.plan.fileSystem(m.FileSystem).Type == swap {
			m.Point = "none"
		}
	}
	return err
}

// fstabs reads fstab.
func (p *parser) fstabs(nodes []*node) error {
	return each(nodes, "fstab", func(n *node) error {
		if err := p.on(n, "mount"); err != nil {
			return err
		}
		f := &Fstab{Options: "defaults", Passno: 2}
		err := p.read(n, known{"options": into(&f.Options), "dump-freq": number(&f.DumpFreq), "fsck-passno": number(&f.Passno)})
		if err != nil {
			return err
		}
		if !isWord(f.Options) {
			return n.fail("options", fmt.Errorf("%q has characters that fstab cannot hold", f.Options))
		}
		i := slices.IndexFunc(p.plan.Mounts, func(m Mount) bool { return m.Name == n.base })
		p.plan.Mounts[i].Fstab = f
		return nil
	})
}

// image is the name of the disk that is the image when there are several.
const image = "image0"

// finish checks the whole.
func (p *parser) finish() error {
	disks := p.plan.Disks
	i := slices.IndexFunc(disks, func(d Disk) bool { return d.Name == image })
	switch {
	case i > 0:
		p.plan.Disks = slices.Concat(disks[i:i+1], disks[:i], disks[i+1:])
	case i < 0 && len(disks) > 1:
		return &ConfigError{Node: "local_loop", Key: "name", Err: fmt.Errorf("none of %d disks is called %s, which is the image", len(disks), image)}
	}
	if _, ok := p.plan.At("/"); !ok {
		return &ConfigError{Node: "mount", Key: "mount_point", Err: errors.New("no file system is mounted at /")}
	}
	return nil
}
