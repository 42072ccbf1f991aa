package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/convert"
	"cairn/cmd/internal/disk"
	"cairn/fsbuild"
)

const diskHelp = `Lay a tree out on a disk, without root: partitions, file systems (ext2, ext3, ext4, vfat, swap) and what is
mounted where come from a block-device configuration in diskimage-builder's YAML. SOURCE is what mkfs takes. Where it
has GRUB's boot.img and core.img in /boot/grub/i386-pc or /boot/grub2/i386-pc, and the disk a place for them, a BIOS
boots from the disk. /etc/fstab is taken as it is; the summary has the lines that the configuration asks for. Of several
disks, OUT is the one called image0, and each other one appears beside it, with "-" and its name before OUT's suffix.

Without --size the disk is as small as its content allows: partitions with a percentage get what they need.

`

// diskFlags are the options of disk that need reading.
type diskFlags struct {
	mkfsFlags
	config  string
	options []string
}

func (p *program) diskCommand() *cobra.Command {
	var f diskFlags
	var r disk.Request
	c := &cobra.Command{
		Use: "disk --config FILE [OPTION]... SOURCE OUT", Short: "Lay a tree out on a disk as a block-device configuration says",
		Long: diskHelp + "Options (-o NAME=VALUE[,NAME=VALUE]...):" + settingsTable(fsbuild.Formats(), convert.Options),
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Source.Source, r.Source.Output = args[0], args[1]
			r.Source.Stdin, r.Source.TmpDir = os.Stdin, p.value("TMPDIR", "/tmp")
			if err := p.readDisk(&f, &r); err != nil {
				return err
			}
			progress, done := p.mediaProgress("write disk")
			s, err := disk.Run(cmd.Context(), r, progress)
			done()
			if err != nil {
				return mediaError(err)
			}
			return p.printDisk(s, f.json)
		},
	}
	flags := c.Flags()
	flags.StringVarP(&f.config, "config", "c", "", "file with the configuration, - for standard input")
	flags.StringVarP(&r.Format, "type", "t", "qcow2", "format of OUT")
	flags.StringSliceVarP(&f.options, "option", "o", nil, "NAME=VALUE, an option of the format; may be repeated")
	flags.StringVar(&f.size, "size", "minimal", "of the disk: minimal, BYTES, or +BYTES (free in each ext file system of minimal size)")
	flags.StringVar(&r.Defaults.RootLabel, "root-label", "", "label of the root file system, unless the configuration has one")
	flags.StringVar(&r.Defaults.RootType, "root-type", "", "type of the root file system, unless the configuration has one (default: ext4)")
	flags.StringVar(&r.Defaults.RootOpts, "mkfs-options", "", "options of mkfs for the root file system, unless the configuration has some")
	p.sourceFlags(flags, &f.mkfsFlags, &r.Source)
	flags.BoolVar(&f.json, "json", false, "print the summary as JSON")
	_ = c.MarkFlagRequired("config") // it exists
	return c
}

func (p *program) readDisk(f *diskFlags, r *disk.Request) (err error) {
	if err := p.readMkfs(&f.mkfsFlags, &r.Source); err != nil {
		return err
	}
	size := r.Source.Size
	if size.Factor != 0 {
		return errors.New("option --size: a disk has no size by factor: give BYTES, or +BYTES")
	}
	r.DiskSize, r.ExtraSize, r.Output = size.Bytes, size.Extra, r.Source.Output
	if r.Options, err = pairs("-o", f.options); err != nil {
		return err
	}
	switch {
	case f.config == "-" && r.Source.Source == "-":
		return errors.New("option --config: standard input is the source already")
	case f.config == "-":
		r.Config, err = io.ReadAll(os.Stdin)
	default:
		r.Config, err = os.ReadFile(p.abs(f.config))
	}
	if err != nil {
		return fmt.Errorf("option --config: %w", err)
	}
	return nil
}

func (p *program) printDisk(s disk.Summary, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(p.stdout).Encode(s)
	}
	all := append([]disk.File{s.File}, s.Others...)
	for _, f := range all {
		fmt.Fprintf(p.stdout, "%s: %s, %s for %s\n", f.Path, f.Format, size(f.Size), size(f.VirtualSize))
		for _, v := range s.Volumes {
			if v.Disk == f.Disk {
				fmt.Fprintf(p.stdout, "  %s: %s, label %s, UUID %s\n", v.Point, v.Type, v.Label, v.UUID)
			}
		}
	}
	for _, f := range all {
		fmt.Fprintf(p.stdout, "sha256:%s  %s\n", f.SHA256, f.Path)
	}
	return nil
}
