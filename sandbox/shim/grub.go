package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// DiskFile is where the builder puts the description of the image's disks in target phases.
const DiskFile = "/dev/.cairn/disk.json"

// A Disk is what the final disk, or disks, will be, of which nothing exists while hooks run.
type Disk struct {
	FileSystems []FileSystem `json:"filesystems"` // that are mounted in the image
}

// A FileSystem is one of the file systems.
type FileSystem struct {
	Disk      int    `json:"disk"`      // number of its disk, from 0 on
	PartMap   string `json:"partmap"`   // of the disk: "msdos", "gpt" or ""
	Point     string `json:"point"`     // where it is mounted
	Label     string `json:"label"`     // "" for none
	UUID      string `json:"uuid"`      // as blkid prints it
	PartUUID  string `json:"partuuid"`  // of its partition, as the kernel names it; "" without a partition table
	Type      string `json:"type"`      // "ext4", "vfat", "xfs" ...
	Partition int    `json:"partition"` // number of its partition
}

// grubProbe answers what grub-probe finds out from devices, for the file systems of the image only.
//
// util/grub-probe.c of GRUB 2.06.
func grubProbe(p Process) int {
	target, version, device := "", false, false
	var place string
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
		case "-d", "--device":
			device = true
			place = value
		default:
			if !strings.HasPrefix(name, "-") {
				place = args[i]
			}
		}
	}
	if version {
		_, _ = fmt.Fprintln(p.Stdout, "grub-probe (cairn) 2")
		return 0
	}
	d := p.disk()
	fs := d.holding(place)
	if device {
		fs = d.on(place)
	}
	text, err := fs.answer(target)
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
		_, _ = fmt.Fprintf(p.Stderr, "%s: warning: no description of the disk: %v\n", filepath.Base(p.Args[0]), err)
	}
	return d
}

// holding returns the file system that a path is on.
func (d Disk) holding(path string) FileSystem {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	var fs FileSystem
	for _, f := range d.FileSystems {
		if len(f.Point) > len(fs.Point) && (path == f.Point || strings.HasPrefix(path, strings.TrimSuffix(f.Point, "/")+"/")) {
			fs = f
		}
	}
	return fs
}

// on returns the file system of a device that answer has named, or else the root.
func (d Disk) on(device string) FileSystem {
	for _, f := range d.FileSystems {
		if f.UUID != "" && device == f.device() {
			return f
		}
	}
	return d.holding("/")
}

// device is the name by which udev will know the file system.
func (f FileSystem) device() string { return "/dev/disk/by-uuid/" + f.UUID }

// answer returns the line that grub-probe prints for a target.
func (f FileSystem) answer(target string) (string, error) {
	switch target {
	case "fs", "":
		return f.module(), nil
	case "fs_uuid":
		return f.UUID, missing(f.UUID, "file system UUID")
	case "fs_label":
		return f.Label, missing(f.Label, "label")
	case "partuuid":
		return f.PartUUID, nil
	case "partmap":
		return f.PartMap, nil
	case "device", "disk":
		return f.device(), missing(f.UUID, "file system UUID")
	case "drive":
		return "(" + f.drive("hd") + ")", nil
	case "compatibility_hint", "bios_hints", "efi_hints":
		return f.drive("hd"), nil
	case "baremetal_hints":
		return f.drive("ahci"), nil
	case "hints_string":
		return fmt.Sprintf("--hint-bios=%s --hint-efi=%s --hint-baremetal=%s ", f.drive("hd"), f.drive("hd"), f.drive("ahci")), nil
	case "msdos_parttype":
		if f.PartMap == "msdos" {
			return "83", nil
		}
		return "", nil
	}
	if slices.Contains([]string{"abstraction", "cryptodisk_uuid", "arc_hint", "ieee1275_hints", "gpt_parttype", "zero_check"}, target) {
		return "", nil // there is none
	}
	return "", fmt.Errorf("unknown target: %s", target)
}

// drive is GRUB's name of the file system's place on disks of a kind.
func (f FileSystem) drive(kind string) string {
	disk := kind + strconv.Itoa(f.Disk)
	if f.PartMap == "" {
		return disk
	}
	return fmt.Sprintf("%s,%s%d", disk, f.PartMap, max(f.Partition, 1))
}

// module is GRUB's name of the file system.
func (f FileSystem) module() string {
	switch f.Type {
	case "ext2", "ext3", "ext4", "":
		return "ext2"
	case "vfat":
		return "fat"
	}
	return f.Type
}

func missing(value, what string) error {
	if value == "" {
		return fmt.Errorf("the disk has no %s", what)
	}
	return nil
}

// grubMkrelpath answers what grub-mkrelpath finds out from the mount table: a path relative to the root of its file
// system. The mount table shows where the tree lies on the build host, so that the description of the disk is asked.
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
	real = strings.TrimPrefix(real, strings.TrimSuffix(p.disk().holding(real).Point, "/"))
	_, _ = fmt.Fprintln(p.Stdout, strings.TrimSuffix(real, "/"))
	return 0
}
