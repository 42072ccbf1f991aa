package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DiskFile is where the builder puts the description of the image's disk in target phases.
const DiskFile = "/dev/.cairn/disk.json"

// A Disk is what the final disk will be, of which nothing exists while hooks run.
type Disk struct {
	Label    string `json:"label"`    // of the root file system
	UUID     string `json:"uuid"`     // of the root file system, with dashes
	PartUUID string `json:"partuuid"` // of its partition, as the kernel names it; "" without a partition table
	FS       string `json:"fs"`       // "ext4", "xfs", "btrfs", ...
	PartMap  string `json:"partmap"`  // "msdos", "gpt" or ""
	// Partition is the number of the root partition; 1 when 0.
	Partition int `json:"partition"`
}

// grubProbe answers what grub-probe finds out from devices, for the root file system of the image only.
//
// util/grub-probe.c of GRUB 2.06.
func grubProbe(p Process) int {
	target, version := "", false
	args := p.Args[1:]
	for i := 0; i < len(args); i++ {
		name, value, attached := strings.Cut(args[i], "=")
		switch name {
		case "-t", "--target", "-m", "--device-map":
			if !attached && i+1 < len(args) {
				i++
				value = args[i]
			}
			if name == "-t" || name == "--target" {
				target = value
			}
		case "-V", "--version":
			version = true
		}
	}
	if version {
		_, _ = fmt.Fprintln(p.Stdout, "grub-probe (cairn) 2")
		return 0
	}
	text, err := p.disk().answer(target)
	if err != nil {
		_, _ = fmt.Fprintf(p.Stderr, "grub-probe: error: %v\n", err)
		return 1
	}
	if text != "" {
		_, _ = fmt.Fprint(p.Stdout, text, "\n")
	}
	return 0
}

// disk reads the description. Without one the answers are those for a disk about which nothing is known.
func (p Process) disk() Disk {
	path := p.Disk
	if path == "" {
		path = DiskFile
	}
	var d Disk
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	if err != nil {
		_, _ = fmt.Fprintf(p.Stderr, "grub-probe: warning: no description of the disk: %v\n", err)
	}
	if d.Partition == 0 {
		d.Partition = 1
	}
	return d
}

// answer returns the line that grub-probe prints for a target.
func (d Disk) answer(target string) (string, error) {
	switch target {
	case "fs", "":
		return d.module(), nil
	case "fs_uuid":
		return d.UUID, missing(d.UUID, "file system UUID")
	case "fs_label":
		return d.Label, missing(d.Label, "label")
	case "partuuid":
		return d.PartUUID, nil
	case "partmap":
		return d.PartMap, nil
	case "device":
		return "/dev/disk/by-uuid/" + d.UUID, missing(d.UUID, "file system UUID")
	case "disk":
		return "/dev/disk/by-uuid/" + d.UUID, missing(d.UUID, "file system UUID")
	case "drive":
		return "(" + d.drive("hd0") + ")", nil
	case "compatibility_hint", "bios_hints", "efi_hints":
		return d.drive("hd0"), nil
	case "baremetal_hints":
		return d.drive("ahci0"), nil
	case "hints_string":
		return fmt.Sprintf("--hint-bios=%s --hint-efi=%s --hint-baremetal=%s ", d.drive("hd0"), d.drive("hd0"), d.drive("ahci0")), nil
	case "msdos_parttype":
		if d.PartMap == "msdos" {
			return "83", nil
		}
		return "", nil
	}
	if slices.Contains([]string{"abstraction", "cryptodisk_uuid", "arc_hint", "ieee1275_hints", "gpt_parttype", "zero_check"}, target) {
		return "", nil // there is none
	}
	return "", fmt.Errorf("unknown target: %s", target)
}

// drive is GRUB's name of the root partition on a disk.
func (d Disk) drive(disk string) string {
	switch d.PartMap {
	case "":
		return disk
	case "gpt":
		return fmt.Sprintf("%s,gpt%d", disk, d.Partition)
	}
	return fmt.Sprintf("%s,%s%d", disk, d.PartMap, d.Partition)
}

// module is GRUB's name of the file system.
func (d Disk) module() string {
	switch d.FS {
	case "ext2", "ext3", "ext4", "":
		return "ext2"
	case "vfat":
		return "fat"
	}
	return d.FS
}

func missing(value, what string) error {
	if value == "" {
		return fmt.Errorf("the disk has no %s", what)
	}
	return nil
}

// grubMkrelpath answers what grub-mkrelpath finds out from the mount table: a path relative to the root of its file
// system. In the image everything is on the root file system, while the mount table shows where the tree lies on the
// build host.
//
// util/grub-mkrelpath.c of GRUB 2.06.
func grubMkrelpath(p Process) int {
	var path string
	for _, a := range p.Args[1:] {
		if a == "-V" || a == "--version" {
			fmt.Fprintln(p.Stdout, "grub-mkrelpath (cairn) 2") //nolint:errcheck // nobody reads it, then
			return 0
		}
		if !strings.HasPrefix(a, "-") {
			path = a
		}
	}
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if path == "" || err != nil {
		_, _ = fmt.Fprintf(p.Stderr, "grub-mkrelpath: error: cannot resolve %q: %v\n", path, err)
		return 1
	}
	_, _ = fmt.Fprintln(p.Stdout, strings.TrimSuffix(real, "/"))
	return 0
}
