package cli

import (
	"fmt"
	"math/big"
	"strings"
)

// flags are the options that `cairn build` and disk-image-create share, as
// they were given.
type flags struct {
	arch                                   string
	output                                 string
	types                                  []string
	trace                                  int
	plainQcow2                             bool // -u
	skipBase                               bool // -n
	packages                               []string
	checksum                               bool
	imageSize                              string // GiB, fractions allowed
	extraSize                              string // MiB
	imageCache                             string
	noTmpfs                                bool
	tmpfs                                  bool
	minTmpfs                               string
	offline                                bool
	locked                                 bool
	lockFile                               string
	rootLabel                              string
	mkfsOptions, journalSize, onlineResize string
	logfile                                string
	mirror                                 string
	expired                                bool
	epoch                                  string
	help                                   bool
	version                                bool
	cairn                                  bool // the options are those of `cairn build`
}

// options lists them for getopt, in the order of the help.
func (f *flags) options() []option {
	list := func(to *[]string) func(string) error {
		return func(v string) error {
			for part := range strings.SplitSeq(v, ",") {
				if part = strings.TrimSpace(part); part != "" {
					*to = append(*to, part)
				}
			}
			return nil
		}
	}
	text := func(to *string) func(string) error { return func(v string) error { *to = v; return nil } }
	on := func(to *bool) func(string) error { return func(string) error { *to = true; return nil } }
	options := []option{
		{'a', "", true, text(&f.arch)},
		{'o', "", true, text(&f.output)},
		{'t', "", true, func(v string) error { f.types = nil; return list(&f.types)(v) }},
		{'x', "", false, func(string) error { f.trace++; return nil }},
		{'u', "", false, on(&f.plainQcow2)},
		{'n', "", false, on(&f.skipBase)},
		{'p', "", true, list(&f.packages)},
		{'h', "help", false, on(&f.help)},
		{0, "version", false, on(&f.version)},
		{0, "checksum", false, on(&f.checksum)},
		{0, "image-size", true, text(&f.imageSize)},
		{0, "image-extra-size", true, text(&f.extraSize)},
		{0, "image-cache", true, text(&f.imageCache)},
		{0, "min-tmpfs", true, text(&f.minTmpfs)},
		{0, "no-tmpfs", false, on(&f.noTmpfs)},
		{0, "offline", false, on(&f.offline)},
		{0, "root-label", true, text(&f.rootLabel)},
		{0, "logfile", true, text(&f.logfile)},
		{0, "max-online-resize", true, text(&f.onlineResize)},
		{0, "mkfs-journal-size", true, text(&f.journalSize)},
		{0, "mkfs-options", true, text(&f.mkfsOptions)},
	}
	if !f.cairn {
		return options
	}
	return append(options,
		option{0, "arch", true, text(&f.arch)},
		option{0, "output", true, text(&f.output)},
		option{0, "type", true, list(&f.types)},
		option{0, "packages", true, list(&f.packages)},
		option{0, "tmpfs", false, on(&f.tmpfs)},
		option{0, "locked", false, on(&f.locked)},
		option{0, "lock", true, text(&f.lockFile)},
		option{0, "image-mirror", true, text(&f.mirror)},
		option{0, "allow-expired-release", false, on(&f.expired)},
		option{0, "source-date-epoch", true, text(&f.epoch)},
	)
}

// Help texts. What an option means is said once, here.
const (
	commonHelp = `
  -a ARCH             architecture of the image (default: this machine's)
  -o NAME             output path without suffix (default: image)
  -t TYPE[,TYPE…]     output formats: qcow2, raw, vhd, vhd-fixed (for
                      Azure), vmdk (default: qcow2)
  -x                  trace the hooks; twice for more
  -u                  do not compress qcow2 and vmdk
  -n                  do not add the element base
  -p PKG[,PKG…]       further packages to install; may be repeated
  --checksum          write NAME.TYPE.md5 and NAME.TYPE.sha256
  --image-size N      size of the disk in GiB, fractions allowed (default: as small as its content allows)
  --image-extra-size N  free MiB to add to the smallest size
  --image-cache DIR   content store and caches (default: ~/.cache/cairn)
  --min-tmpfs N       accepted for compatibility
  --no-tmpfs          keep the work directory on disk (the default)
  --offline           use what the cache holds, no network
  --root-label LABEL  label of the root file system (default: cloudimg-rootfs)
  --mkfs-options STR  options of mkfs for the root file system, such as "-m 0"
  --mkfs-journal-size N  journal of the root file system, in MiB
  --max-online-resize N  blocks of 4 KiB to which it is to be able to grow
  --logfile FILE      write the output to FILE, with times
  -h, --help          print this help
  --version           print the version
`
	cairnHelp = `
  --tmpfs             keep the work directory in memory
  --locked            use exactly the inputs that the lock file names
  --lock FILE         the lock file (default: NAME.lock.json)
  --image-mirror URL  Debian mirror that the image's own sources.list names
  --allow-expired-release  accept package indexes past their date of expiry
  --source-date-epoch N    time stamp of everything in the image (default: that of the newest input)
`
)

// sizeOf reads a decimal number of units, such as "2.5" GiB, into bytes.
func sizeOf(option, text string, unit int64) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, ok := new(big.Rat).SetString(text)
	if !ok || n.Sign() < 0 || strings.ContainsAny(text, "/eE") {
		return 0, fmt.Errorf("option --%s: %q is not a size: give a number such as 4 or 2.5", option, text)
	}
	n.Mul(n, new(big.Rat).SetInt64(unit))
	whole := new(big.Int).Quo(n.Num(), n.Denom())
	if !whole.IsInt64() {
		return 0, fmt.Errorf("option --%s: %s is too large", option, text)
	}
	return whole.Int64(), nil
}
