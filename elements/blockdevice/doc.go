// Package blockdevice reads diskimage-builder's block-device configuration: the YAML of DIB_BLOCK_DEVICE_CONFIG and of
// elements' block-device-default.yaml. [Parse] turns it into a [Plan] of values: disks, their partitions, file systems,
// mounts and the lines of fstab. It opens nothing and decides no sector; [Disk.Wishes] is what
// cairn/fsbuild/partition lays out.
//
// Both forms are read, mixed as one likes: the list, where an entry names another one as its base, and the tree, where it
// lies inside it. Plugins are local_loop, partitioning, mkfs, mount and fstab; lvm and luks are refused with
// [ErrUnsupported].
//
// diskimage_builder/block_device (3.42): config.py, blockdevice.py and level0 to level4. Unlike diskimage-builder, a
// configuration is checked as a whole before anything is done, so that a base of the wrong kind, two file systems in one
// place and a size that is none are errors here.
package blockdevice
