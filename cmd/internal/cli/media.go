package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"cairn/cmd/internal/build"
	"cairn/cmd/internal/convert"
	"cairn/cmd/internal/mkfs"
	"cairn/fsbuild"
)

// mkfsFlags are the options of mkfs that need reading.
type mkfsFlags struct {
	size, growTo, owner, epoch string
	set                        []string
	numeric, json              bool
}

func (p *program) mkfsCommand() *cobra.Command {
	var f mkfsFlags
	r := mkfs.Request{}
	c := &cobra.Command{
		Use: "mkfs -t TYPE [OPTION]... SOURCE OUT", Short: "Make a file system or an archive of a directory, a tar archive or an image",
		Long: mkfsHelp + settingsHelp(),
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Source, r.Output = args[0], args[1]
			r.Stdin, r.Stdout, r.TmpDir = os.Stdin, p.stdout, p.value("TMPDIR", "/tmp")
			if err := p.readMkfs(&f, &r); err != nil {
				return err
			}
			show, _, err := p.display(&flags{cairn: true})
			if err != nil {
				return err
			}
			r.Progress = func(done, total int64) {
				show.event(build.Event{Kind: build.Progress, Step: "write " + r.Type, Unit: "bytes", Done: done, Total: total})
			}
			s, err := mkfs.Run(cmd.Context(), r)
			show.close()
			if err != nil {
				return mediaError(err)
			}
			return p.printMkfs(s, f.json)
		},
	}
	flags := c.Flags()
	flags.StringVarP(&r.Type, "type", "t", "", "one of "+strings.Join(mkfs.Types(), ", "))
	flags.StringVarP(&r.Label, "label", "L", "", "label of the file system")
	flags.StringVar(&f.size, "size", "minimal", "minimal, BYTES, +BYTES (free beside what is needed) or xFACTOR; K, M, G, T and P count in 1024s")
	flags.StringVar(&f.growTo, "grow-to", "", "size to which resize2fs is to be able to grow it, up to 1P")
	p.sourceFlags(flags, &f, &r)
	flags.StringArrayVar(&f.set, "set", nil, "NAME=VALUE, a setting of the type; may be repeated")
	flags.BoolVar(&f.json, "json", false, "print the summary as JSON")
	_ = c.MarkFlagRequired("type") // it exists
	return c
}

// sourceFlags are the options about what a command reads.
func (p *program) sourceFlags(flags *pflag.FlagSet, f *mkfsFlags, r *mkfs.Request) {
	flags.IntVar(&r.Partition, "partition", 0, "number of the partition of the image SOURCE")
	flags.StringVar(&r.Arch, "arch", p.arch(), "architecture of the image to take from an OCI image layout")
	flags.StringVar(&f.owner, "owner", "", "UID:GID of everything, instead of the source's, or with --owner-from-tar of the rest")
	flags.StringVar(&r.OwnersOf, "owner-from-tar", "", "a tar archive (- for standard input) that tells owners, modes, attributes and devices of the directory SOURCE")
	flags.BoolVar(&f.numeric, "numeric", true, "owners are numbers, names in archives are not looked up; there is no other way")
	flags.StringVar(&f.epoch, "source-date-epoch", "", "latest time of anything, in seconds since 1970 (default: $SOURCE_DATE_EPOCH, else the source's latest)")
	flags.StringVar(&r.Seed, "seed", "", "64 hexadecimal digits that UUIDs follow from (default: from the source)")
}

// mediaError has the hint of an error shown.
func mediaError(err error) error {
	var wrong *mkfs.Error
	if errors.As(err, &wrong) {
		return &build.Failure{What: err.Error(), Hint: wrong.Hint, Code: exitFailure}
	}
	var hinting interface{ Hint() string }
	if errors.As(err, &hinting) {
		return &build.Failure{What: err.Error(), Hint: hinting.Hint(), Code: exitFailure}
	}
	return err
}

const mkfsHelp = `Make a file system or an archive, without root. SOURCE is one of
  DIRECTORY       as it is on disk
  FILE            a tar archive, compressed or not (- for standard input), or an image with an ext2, ext3, ext4 or FAT
                  file system in any format that convert reads
  oci:DIR[:TAG]   a container image in an OCI image layout; its layers are put together, its digests verified
OUT is a file; for cpio and tar - is standard output. The same source and options give the same bytes.

Owners are numbers, those that the source has: a directory's on disk, an archive's in its headers. As an ordinary
user, unpack an archive into a directory, change what you like, and give the archive with --owner-from-tar: owners,
modes, attributes and device nodes are then the archive's, contents and times the directory's, and what the archive
does not have belongs to root, or to --owner.
`

// settingsHelp is a table of all settings. Types that have the same share it.
func settingsHelp() string {
	var b strings.Builder
	b.WriteString("\nSettings (--set NAME=VALUE), numbers with K, M, G, T or P for powers of 1024:")
	for types := mkfs.Types(); len(types) > 0; {
		settings := mkfs.Settings(types[0])
		same := 1
		for same < len(types) && slices.Equal(mkfs.Settings(types[same]), settings) {
			same++
		}
		fmt.Fprintf(&b, "\n  %s\n", strings.Join(types[:same], ", "))
		for _, s := range settings {
			fmt.Fprintf(&b, "    %-17s %s\n", s.Name, s.Help)
		}
		types = types[same:]
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// readMkfs turns options into values.
func (p *program) readMkfs(f *mkfsFlags, r *mkfs.Request) (err error) {
	if r.Size, err = parseSize(f.size); err != nil {
		return err
	}
	if f.growTo != "" {
		if r.GrowTo, err = mkfs.ParseBytes(f.growTo); err != nil {
			return fmt.Errorf("option --grow-to: %w", err)
		}
	}
	if !f.numeric {
		return errors.New("option --numeric: names of users are not looked up: they mean others on each machine")
	}
	if f.owner != "" {
		uid, gid, ok := strings.Cut(f.owner, ":")
		u, err1 := strconv.ParseUint(uid, 10, 32)
		g, err2 := strconv.ParseUint(gid, 10, 32)
		if !ok || err1 != nil || err2 != nil {
			return fmt.Errorf("option --owner: %q is not UID:GID in numbers, like 0:0", f.owner)
		}
		r.Owner = &mkfs.Owner{UID: uint32(u), GID: uint32(g)}
	}
	if r.Set, err = pairs("--set", f.set); err != nil {
		return err
	}
	var request build.Request
	if err := p.epoch(&flags{epoch: f.epoch}, &request); err != nil {
		return err
	}
	r.Epoch = request.Epoch
	if r.Output != "-" {
		r.Output = p.abs(r.Output)
	}
	if layout, ok := strings.CutPrefix(r.Source, "oci:"); ok {
		r.Source = "oci:" + p.abs(layout)
	} else if r.Source != "-" {
		r.Source = p.abs(r.Source)
	}
	if r.OwnersOf != "" && r.OwnersOf != "-" {
		r.OwnersOf = p.abs(r.OwnersOf)
	}
	return nil
}

func parseSize(text string) (s mkfs.Size, err error) {
	switch {
	case text == "minimal" || text == "":
	case text[0] == 'x':
		if s.Factor, err = strconv.ParseFloat(text[1:], 64); err != nil || s.Factor < 1 {
			err = fmt.Errorf("%q is not a factor of 1 or more, like x1.5", text)
		}
	case text[0] == '+':
		s.Extra, err = mkfs.ParseBytes(text[1:])
	default:
		if s.Bytes, err = mkfs.ParseBytes(text); err == nil && s.Bytes == 0 {
			err = fmt.Errorf("%q is nothing; minimal is the smallest size", text)
		}
	}
	if err != nil {
		return s, fmt.Errorf("option --size: %w", err)
	}
	return s, nil
}

// pairs reads options of the form NAME=VALUE.
func pairs(option string, list []string) (map[string]string, error) {
	values := make(map[string]string, len(list))
	for _, text := range list {
		name, value, ok := strings.Cut(text, "=")
		if _, twice := values[name]; !ok || twice {
			return nil, fmt.Errorf("option %s: %q is not NAME=VALUE, or is given twice", option, text)
		}
		values[name] = value
	}
	return values, nil
}

func (p *program) printMkfs(s mkfs.Summary, asJSON bool) error {
	w := p.stdout
	if s.Path == "-" {
		w = p.stderr
	}
	if asJSON {
		return json.NewEncoder(w).Encode(s)
	}
	fmt.Fprintf(w, "%s: %s, %s", s.Path, s.Type, size(s.Size))
	if s.MaxSize != 0 {
		fmt.Fprintf(w, ", grows to %s", size(s.MaxSize))
	}
	if s.UUID != "" {
		fmt.Fprintf(w, ", UUID %s", s.UUID)
	}
	fmt.Fprintln(w)
	if s.SHA256 != "" {
		fmt.Fprintf(w, "sha256:%s  %s\n", s.SHA256, s.Path)
	}
	return nil
}

func (p *program) convertCommand() *cobra.Command {
	var r convert.Request
	var set []string
	var asJSON bool
	c := &cobra.Command{
		Use: "convert [OPTION]... IN OUT", Short: "Convert a disk image into another format",
		Long: "Convert a disk image, in one pass and without a temporary file. Formats: " + strings.Join(fsbuild.Formats(), ", ") + ".\n" +
			"The same disk and options give the same bytes.\n\n" + optionsHelp(),
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if r.Options, err = pairs("-o", set); err != nil {
				return err
			}
			r.Source, r.Output = p.abs(args[0]), p.abs(args[1])
			show, _, err := p.display(&flags{cairn: true})
			if err != nil {
				return err
			}
			result, err := convert.Run(cmd.Context(), r, func(done, total int64) {
				show.event(build.Event{Kind: build.Progress, Step: "convert", Unit: "bytes", Done: done, Total: total})
			})
			show.close()
			if err != nil {
				return mediaError(err)
			}
			return p.printConvert(r.Output, result, asJSON)
		},
	}
	f := c.Flags()
	f.StringVarP(&r.To, "type", "t", "", "format of OUT")
	f.StringVarP(&r.From, "from", "f", "", "format of IN (default: by its first bytes; name it for a raw disk that a stranger wrote)")
	f.StringSliceVarP(&set, "option", "o", nil, "NAME=VALUE, an option of the format; may be repeated")
	f.StringVar(&r.Seed, "seed", "", "64 hexadecimal digits that identifiers follow from (default: from the disk)")
	f.BoolVar(&asJSON, "json", false, "print the summary as JSON")
	_ = c.MarkFlagRequired("type") // it exists
	return c
}

func optionsHelp() string {
	var b strings.Builder
	b.WriteString("Options (-o NAME=VALUE):\n")
	for _, format := range fsbuild.Formats() {
		if names := convert.Options(format); len(names) > 0 {
			fmt.Fprintf(&b, "  %-9s  %s\n", format, strings.Join(names, ", "))
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (p *program) printConvert(path string, r fsbuild.Result, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(p.stdout).Encode(struct {
			Path        string `json:"path"`
			Format      string `json:"format"`
			Size        int64  `json:"size"`
			VirtualSize int64  `json:"virtual_size"`
			SHA256      string `json:"sha256"`
		}{path, r.Format, r.Size, r.VirtualSize, r.SHA256})
	}
	fmt.Fprintf(p.stdout, "%s: %s, %s for %s\nsha256:%s  %s\n", path, r.Format, size(r.Size), size(r.VirtualSize), r.SHA256, path)
	return nil
}
