package mkfs

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"cairn/fsbuild/cpio"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/squashfs"
	"cairn/fsbuild/tar"
	"cairn/fsbuild/vfat"
	"cairn/reproducibility"
)

// kind is a type of output.
type kind struct {
	archive             bool // can be written in a row
	label, sized, grows bool
	settings            []Setting
	write               func(context.Context, *job, *sink) (Summary, error)
}

// Setting is a value that a type takes by name.
type Setting struct{ Name, Help string }

var (
	extSettings = []Setting{
		{"block-size", "bytes of a block: 1K, 2K or 4K (default: 4K)"},
		{"hash-seed", "UUID that the hashes of directories depend on (default: from --seed)"},
		{"inode-ratio", "bytes for each inode, 1K to 64M (default: the inodes that SOURCE needs, and some more)"},
		{"inode-size", "bytes of an inode: a power of two from 128 to a block (default: 256)"},
		{"inodes", "least number of inodes"},
		{"journal-size", "bytes, 0 for none, auto for what mke2fs takes (default: 16M; ext2 has none)"},
		{"kernel-reserve", "true: --size +BYTES are free beside what Linux withholds from everybody (ext4 only)"},
		{"large-dir", "true: directories may have three levels of index (ext4 only)"},
		{"reserved-percent", "share of the blocks for root alone, 0 to 50 (default: 0)"},
		{"uuid", "of the file system (default: from --seed)"},
	}
	fatSettings = []Setting{
		{"cluster-size", "bytes of a cluster: 1 to 128 sectors, a power of two (default: by size, as mkfs.fat)"},
		{"fat", "12, 16 or 32 (default: by size, as mkfs.fat)"},
		{"hidden-sectors", "first sector of the partition that it is for (default: 0)"},
		{"media", "media descriptor, f0 or f8 to ff (default: f8)"},
		{"root-entries", "least size of the root directory of FAT12 and FAT16 (default: 512)"},
		{"sector-size", "bytes of a sector: 512, 1K, 2K or 4K (default: 512)"},
		{"serial", "volume serial number, like 1234-ABCD (default: from --seed)"},
	}
	squashSettings = []Setting{
		{"block-size", "bytes of a block: a power of two from 4K to 1M (default: 128K)"},
		{"compression", "gzip, xz or zstd (default: gzip)"},
		{"level", "of gzip 1 to 9 (default: 7), of zstd 1 to 4 (default: 4)"},
		{"skip-xattrs", "true: leave out attributes that the format has no place for, such as POSIX ACLs"},
	}

	kinds = map[string]kind{
		"ext4":     {label: true, sized: true, grows: true, settings: extSettings, write: ext(ext4.Ext4)},
		"ext3":     {label: true, sized: true, grows: true, settings: extSettings, write: ext(ext4.Ext3)},
		"ext2":     {label: true, sized: true, grows: true, settings: extSettings, write: ext(ext4.Ext2)},
		"vfat":     {label: true, sized: true, settings: fatSettings, write: fat},
		"squashfs": {settings: squashSettings, write: squash},
		"cpio":     {archive: true, settings: []Setting{{"align", "bytes that the archive is a multiple of: 4 to 1M (default: 512)"}}, write: newc},
		"tar":      {archive: true, settings: []Setting{{"skip-sockets", "true: leave out sockets, which archives cannot have"}}, write: pax},
	}
)

func ext(t ext4.Type) func(context.Context, *job, *sink) (Summary, error) {
	return func(ctx context.Context, j *job, out *sink) (Summary, error) {
		name := reproducibility.FileSystem(j.Label)
		p := ext4.Params{
			Type: t, Label: j.Label, Time: j.time, UUID: j.seed.UUID(name), HashSeed: j.seed.HashSeed(name),
			Size: j.Size.Bytes, Slack: j.Size.Extra, Factor: j.Size.Factor, GrowTo: j.GrowTo,
		}
		set := settings{values: j.Set}
		set.uuid("uuid", &p.UUID)
		set.uuid("hash-seed", &p.HashSeed)
		set.integer("block-size", &p.BlockSize)
		set.integer("inode-size", &p.InodeSize)
		set.count("inode-ratio", &p.InodeRatio)
		set.float("reserved-percent", &p.ReservedPercent)
		set.boolean("large-dir", &p.LargeDir)
		set.boolean("kernel-reserve", &p.KernelReserve)
		var inodes int64
		set.count("inodes", &inodes)
		p.Inodes = uint32(min(inodes, 1<<32-1))
		set.journal("journal-size", &p)
		if set.err != nil {
			return Summary{}, set.err
		}
		l, err := ext4.Plan(j.tree, p)
		if err != nil {
			return Summary{}, err
		}
		out.total = l.Size()
		s, err := l.Write(ctx, out)
		return Summary{
			Size: s.Size, UUID: s.UUID, BlockSize: s.BlockSize, Inodes: s.Inodes, UsedInodes: s.UsedInodes,
			FreeBytes: s.FreeBlocks * s.BlockSize, MaxSize: s.MaxSize,
		}, err
	}
}

func fat(ctx context.Context, j *job, out *sink) (Summary, error) {
	p := vfat.Params{Label: j.Label, Serial: j.seed.VolumeSerial(reproducibility.FileSystem(j.Label)), Time: j.time, Size: j.Size.Bytes, Slack: j.Size.Extra}
	set := settings{values: j.Set}
	set.serial("serial", &p.Serial)
	set.integer("sector-size", &p.SectorSize)
	set.integer("cluster-size", &p.ClusterSize)
	set.integer("root-entries", &p.RootEntries)
	set.media("media", &p.Media)
	var bits, hidden int64
	set.count("fat", &bits)
	set.count("hidden-sectors", &hidden)
	p.Type, p.HiddenSectors = vfat.Type(min(bits, 255)), uint32(min(hidden, 1<<32-1))
	if set.err != nil {
		return Summary{}, set.err
	}
	if j.Size.Factor != 0 {
		return Summary{}, refuse("use --size +BYTES", "option --size: vfat has no size by factor")
	}
	l, err := vfat.Plan(j.tree, p)
	if err != nil {
		return Summary{}, err
	}
	out.total = l.Size()
	s, err := l.Write(ctx, out)
	return Summary{Size: s.Size, UUID: s.Serial, BlockSize: s.ClusterSize, FreeBytes: s.FreeClusters * s.ClusterSize}, err
}

func squash(ctx context.Context, j *job, out *sink) (Summary, error) {
	p := squashfs.Params{Time: j.time}
	set := settings{values: j.Set}
	set.integer("block-size", &p.BlockSize)
	set.integer("level", &p.Level)
	set.boolean("skip-xattrs", &p.SkipXattrs)
	set.compression("compression", &p.Compression)
	if set.err != nil {
		return Summary{}, set.err
	}
	out.total = 0 // nobody knows how small it gets
	s, err := squashfs.Write(ctx, out, j.tree, p)
	return Summary{Size: s.Size, Inodes: s.Inodes}, err
}

func newc(ctx context.Context, j *job, out *sink) (Summary, error) {
	p := cpio.Params{Time: j.time}
	set := settings{values: j.Set}
	set.integer("align", &p.Align)
	if set.err != nil {
		return Summary{}, set.err
	}
	s, err := cpio.Write(ctx, out, j.tree, p)
	return Summary{Size: s.Size, Entries: s.Entries}, err
}

func pax(ctx context.Context, j *job, out *sink) (Summary, error) {
	p := tar.Params{Time: j.time}
	set := settings{values: j.Set}
	set.boolean("skip-sockets", &p.SkipSockets)
	if set.err != nil {
		return Summary{}, set.err
	}
	s, err := tar.Write(ctx, out, j.tree, p)
	return Summary{Size: s.Size, Entries: s.Entries}, err
}

// settings are values of --set. The first that is wrong is err.
type settings struct {
	values map[string]string
	err    error
}

// set converts a value, if it is there.
func set[T any](s *settings, name, want string, to *T, convert func(string) (T, error)) {
	text, ok := s.values[name]
	if !ok || s.err != nil {
		return
	}
	v, err := convert(text)
	if err != nil {
		s.err = refuse("it is to be "+want, "option --set: %s=%s: not %s", name, text, want)
		return
	}
	*to = v
}

func (s *settings) integer(name string, to *int) {
	set(s, name, "a size in bytes", to, func(text string) (int, error) {
		n, err := ParseBytes(text)
		if err == nil && n > 1<<30 {
			err = strconv.ErrRange
		}
		return int(n), err
	})
}

func (s *settings) count(name string, to *int64) { set(s, name, "a number", to, ParseBytes) }

func (s *settings) boolean(name string, to *bool) {
	set(s, name, "true or false", to, strconv.ParseBool)
}

func (s *settings) float(name string, to *float64) {
	set(s, name, "a number", to, func(text string) (float64, error) { return strconv.ParseFloat(text, 64) })
}

func (s *settings) uuid(name string, to *[16]byte) {
	set(s, name, "a UUID", to, func(text string) (id [16]byte, err error) {
		b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
		if err == nil && len(b) != len(id) {
			err = strconv.ErrSyntax
		}
		copy(id[:], b)
		return id, err
	})
}

// journal takes a size, 0 for none, or auto for what mke2fs chooses.
func (s *settings) journal(name string, p *ext4.Params) {
	text, ok := s.values[name]
	if p.JournalBySize = text == "auto"; p.JournalBySize || !ok {
		return
	}
	if s.count(name, &p.JournalSize); p.JournalSize == 0 {
		p.JournalSize = -1
	}
}

func (s *settings) compression(name string, to *squashfs.Compression) {
	set(s, name, "gzip, xz or zstd", to, func(text string) (squashfs.Compression, error) {
		c, ok := map[string]squashfs.Compression{"gzip": squashfs.Gzip, "xz": squashfs.XZ, "zstd": squashfs.Zstd}[text]
		if !ok {
			return 0, strconv.ErrSyntax
		}
		return c, nil
	})
}

func (s *settings) media(name string, to *byte) {
	set(s, name, "two hexadecimal digits", to, func(text string) (byte, error) {
		n, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 8)
		return byte(n), err
	})
}

func (s *settings) serial(name string, to *uint32) {
	set(s, name, "eight hexadecimal digits", to, func(text string) (uint32, error) {
		n, err := strconv.ParseUint(strings.ReplaceAll(text, "-", ""), 16, 32)
		return uint32(n), err
	})
}

// ParseBytes reads a number of bytes: a whole number with K, M, G, T or P
// behind it for powers of 1024, and an optional "iB" or "B" behind that.
func ParseBytes(text string) (int64, error) {
	digits := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(text), "B"), "I")
	shift := 0
	if n := len(digits); n > 0 {
		if i := strings.IndexByte("KMGTP", digits[n-1]); i >= 0 {
			shift, digits = 10*(i+1), digits[:n-1]
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || n > (1<<63-1)>>shift {
		return 0, fmt.Errorf("%q is not a number of bytes, like 512M", text)
	}
	return int64(n) << shift, nil
}
