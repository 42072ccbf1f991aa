package disk

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/vfat"
)

// Features of mke2fs -O that the writer always or never has, or has in ext4
// alone, so that asking for them is no change.
var (
	alwaysOn  = []string{"ext_attr", "dir_index", "filetype", "sparse_super", "large_file"}
	ext4Only  = []string{"extent", "extents", "64bit", "flex_bg", "huge_file", "dir_nlink", "extra_isize", "metadata_csum", "meta_bg"}
	alwaysOff = []string{"resize_inode", "metadata_csum_seed", "orphan_file", "bigalloc", "quota", "project", "encrypt", "verity", "casefold", "inline_data", "ea_inode", "sparse_super2", "uninit_bg", "mmp", "large_dir", "journal_dev"}
)

// extOptions reads options of mke2fs.
func extOptions(opts []string, p *ext4.Params) error {
	return eachOption(opts, "bEiIJmNOT", func(name byte, value string) (err error) {
		switch name {
		case 'b':
			p.BlockSize, err = strconv.Atoi(value)
		case 'i':
			p.InodeRatio, err = strconv.ParseInt(value, 10, 64)
		case 'I':
			p.InodeSize, err = strconv.Atoi(value)
		case 'm':
			p.ReservedPercent, err = strconv.ParseFloat(value, 64)
		case 'N':
			var n uint64
			n, err = strconv.ParseUint(value, 10, 32)
			p.Inodes = uint32(n)
		case 'J':
			return journalOption(value, p)
		case 'O':
			return featureOptions(value, p)
		case 'E':
			return extendedOptions(value, p)
		case 'j':
			return featureOptions("has_journal", p)
		case 'F', 'q', 'v', 'D', 'K':
			return nil
		default:
			return errUnknown
		}
		return err
	})
}

// journalOption reads size=N, in MiB.
func journalOption(value string, p *ext4.Params) error {
	size, ok := strings.CutPrefix(value, "size=")
	n, err := strconv.ParseUint(strings.TrimSuffix(size, "M"), 10, 20)
	if !ok || err != nil || n == 0 {
		return fmt.Errorf("journal %q is not size=MEGABYTES", value)
	}
	p.JournalSize, p.JournalBySize = int64(n)<<20, false
	return nil
}

func featureOptions(value string, p *ext4.Params) error {
	for f := range strings.SplitSeq(value, ",") {
		off, no := strings.CutPrefix(f, "^")
		switch {
		case no && off == "has_journal":
			p.JournalSize, p.JournalBySize = -1, false
		case f == "large_dir":
			p.LargeDir = true
		case f == "has_journal" && p.Type != ext4.Ext2:
		case no && slices.Contains(alwaysOff, off), slices.Contains(alwaysOn, f):
		case slices.Contains(ext4Only, off) && no == (p.Type != ext4.Ext4):
		default:
			return fmt.Errorf("feature %q cannot be chosen for %v", f, p.Type)
		}
	}
	return nil
}

// extendedOptions reads -E. How far a file system can be grown online is in
// mke2fs's blocks of 4096 bytes, and more than that is always possible.
func extendedOptions(value string, p *ext4.Params) error {
	for o := range strings.SplitSeq(value, ",") {
		name, text, _ := strings.Cut(o, "=")
		switch name {
		case "resize":
			blocks, err := strconv.ParseUint(text, 10, 40)
			if err != nil {
				return fmt.Errorf("resize=%s is no number of blocks", text)
			}
			if size := int64(blocks) * 4096; size > 64<<40 {
				p.GrowTo = size
			}
		case "lazy_itable_init", "lazy_journal_init", "discard", "nodiscard", "assume_storage_prezeroed", "stride", "stripe_width", "stripe-width":
		default:
			return fmt.Errorf("extended option %q is not known", o)
		}
	}
	return nil
}

// fatOptions reads options of mkfs.fat.
func fatOptions(opts []string, p *vfat.Params) error {
	sectors := 0 // of a cluster
	err := eachOption(opts, "FrsSi", func(name byte, value string) error {
		if strings.IndexByte("aIv", name) >= 0 {
			return nil
		}
		base := map[byte]int{'i': 16, 'F': 10, 'r': 10, 's': 10, 'S': 10}[name]
		if base == 0 {
			return errUnknown
		}
		n, err := strconv.ParseUint(value, base, 32)
		switch name {
		case 'F':
			p.Type = vfat.Type(min(n, 255))
		case 'i':
			p.Serial = uint32(n)
		case 'r':
			p.RootEntries = int(n)
		case 's':
			sectors = int(n)
		case 'S':
			p.SectorSize = int(n)
		}
		return err
	})
	p.ClusterSize = sectors * p.SectorSize
	return err
}

var errUnknown = errors.New("is not known")

// eachOption calls f for the options of a command line of mkfs. Those in
// valued have a value, in the same word or the next.
func eachOption(words []string, valued string, f func(name byte, value string) error) error {
	for i := 0; i < len(words); i++ {
		flags, ok := strings.CutPrefix(words[i], "-")
		if !ok || flags == "" {
			return fmt.Errorf("%q is no option", words[i])
		}
		for flags != "" {
			name, value := flags[0], ""
			flags = flags[1:]
			if strings.IndexByte(valued, name) >= 0 {
				if value, flags = flags, ""; value == "" && i+1 < len(words) {
					i++
					value = words[i]
				}
			}
			if err := f(name, value); err != nil {
				return fmt.Errorf("option -%c: %w", name, err)
			}
		}
	}
	return nil
}

// parseUUID reads the usual form.
func parseUUID(text string) (id [16]byte, err error) {
	g, err := partition.ParseGUID(text)
	return [16]byte(g), err
}
