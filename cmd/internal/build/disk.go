package build

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"cairn/cmd/internal/disk"
	"cairn/elements"
	"cairn/elements/blockdevice"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/tree"
	"cairn/reproducibility"
	"cairn/sandbox/shim"
)

// blockDevice is the block-device configuration of a build.
type blockDevice struct {
	text   []byte
	plan   *blockdevice.Plan
	origin string // for people
	given  bool   // in a file by the caller
}

// findBlockDevice reads the configuration that the caller gives, or else that
// of the elements.
func (p *parent) findBlockDevice(s *elements.Selection) (*blockDevice, error) {
	b := &blockDevice{}
	var err error
	config := p.variable("DIB_BLOCK_DEVICE_CONFIG")
	file, isFile := strings.CutPrefix(config, "file://")
	switch {
	case isFile:
		p.tell(Event{Kind: Message, Text: "Using file-based block-device config: " + file})
		if b.text, err = os.ReadFile(file); err != nil {
			return nil, refuse("it is the YAML itself, or file:// and the path of a file with it", "DIB_BLOCK_DEVICE_CONFIG: %v", err)
		}
		b.origin, b.given = file, true
	case config != "":
		p.tell(Event{Kind: Message, Text: "User specified block-device config from DIB_BLOCK_DEVICE_CONFIG"})
		b.text, b.origin = []byte(config), "the variable DIB_BLOCK_DEVICE_CONFIG"
	default:
		b.origin, b.text, err = s.BlockDevice(p.req.Arch)
		if err != nil {
			return nil, withHint(err)
		}
		if b.text == nil {
			b.text, b.origin = []byte(blockdevice.Fallback), "the default without a block-device element: one file system"
		}
	}
	if b.plan, err = parseBlockDevice(b.text, p.req); err == nil {
		_, err = disk.Images(b.plan, tree.New(), disk.Params{Size: p.req.DiskSize})
	}
	if err != nil {
		return nil, refuse("it comes from "+b.origin, "%v", err)
	}
	for _, key := range b.plan.Ignored {
		p.tell(Event{Kind: Message, Text: "block-device configuration: " + key + " means nothing"})
	}
	return b, nil
}

// parseBlockDevice reads a configuration with what the request adds to it.
func parseBlockDevice(text []byte, r *Request) (*blockdevice.Plan, error) {
	params := blockdevice.Params{RootLabel: r.RootLabel, RootOpts: r.MkfsOptions}
	for _, kv := range r.Env {
		name, value, _ := strings.Cut(kv, "=")
		switch name {
		case "FS_TYPE":
			params.RootType = value
		case "DIB_BLOCK_SIZE":
			n, err := strconv.Atoi(value)
			if value != "" && err != nil {
				return nil, errors.New("DIB_BLOCK_SIZE is not a number of bytes")
			}
			params.BlockSize = n
		}
	}
	return blockdevice.Parse(text, params)
}

// root is the root file system.
func root(plan *blockdevice.Plan) blockdevice.FileSystem {
	fs, _ := plan.At("/")
	return fs
}

// diskNames are the names of the disks as outputs have them: "" for the image.
func diskNames(plan *blockdevice.Plan) []string {
	names := []string{""}
	for _, d := range plan.Disks[1:] {
		names = append(names, d.Name)
	}
	return names
}

// seenPartitions are the disks and their partitions as IMAGE_BLOCK_DEVICES
// names them.
func seenPartitions(plan *blockdevice.Plan) string {
	list := ""
	for i, d := range plan.Disks {
		list += fmt.Sprintf("[%s]=%s%d ", d.Name, seenDevices, i)
		for _, p := range d.Partitions {
			list += fmt.Sprintf("[%s]=%s%dp%d ", p.Name, seenDevices, i, p.Number)
		}
	}
	return list
}

// mountPoints are DIB_MOUNTPOINTS.
func mountPoints(plan *blockdevice.Plan) []string {
	var points []string
	for _, m := range plan.Mounts {
		points = append(points, m.Point)
	}
	return points
}

// bootLabel is DIB_BOOT_LABEL, "" when /boot is no file system of its own.
func bootLabel(plan *blockdevice.Plan) string {
	fs, _ := plan.At("/boot")
	return fs.Label
}

// seenDisk is what grub-probe says of the disks to be.
func seenDisk(plan *blockdevice.Plan, seed reproducibility.Seed) shim.Disk {
	var d shim.Disk
	for _, v := range disk.Volumes(plan, seed) {
		i := slices.IndexFunc(plan.Disks, func(d blockdevice.Disk) bool { return d.Name == v.Disk })
		d.FileSystems = append(d.FileSystems, shim.FileSystem{
			Disk: i, PartMap: map[partition.Label]string{partition.MBR: "msdos", partition.GPT: "gpt"}[plan.Disks[i].Label],
			Point: v.Point, Label: v.Label, UUID: v.UUID, PartUUID: v.PartUUID, Type: v.Type, Partition: v.Partition,
		})
	}
	return d
}
