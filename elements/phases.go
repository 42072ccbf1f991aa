package elements

// Where tells in which world the hooks of a phase run.
type Where uint8

// The two worlds.
const (
	Host   Where = iota // the tools root, as mapped root, beside the image's tree
	Target              // inside the image's tree
)

// String returns "host" or "target".
func (w Where) String() string {
	if w == Target {
		return "target"
	}
	return "host"
}

// A Phase is one step of a build in which hooks run.
type Phase struct {
	Name  string // without ".d", as break points name it
	Where Where
	// TargetRoot says that TARGET_ROOT is set. TMP_MOUNT_PATH, with the same value, always is.
	TargetRoot bool
	// BlockDevice says that IMAGE_BLOCK_DEVICE and IMAGE_BLOCK_DEVICES are set: the tree is the final file system.
	BlockDevice bool
	// SizeInKiB says that DIB_IMAGE_SIZE holds the final size in KiB rather than what the caller gave.
	SizeInKiB bool
}

// Dir is the name of the phase's hook directory.
func (p Phase) Dir() string { return p.Name + ".d" }

// Cwd is the working directory of the phase's hooks, given the caller's.
func (p Phase) Cwd(caller string) string {
	if p.Where == Target {
		return "/"
	}
	return caller
}

// Phases returns all phases in the order of a build.
//
// diskimage_builder/lib/disk-image-create; columns as observed with diskimage-builder 3.42, whose documentation
// differs for block-device.d.
func Phases() []Phase {
	return []Phase{
		{Name: "root", Where: Host, TargetRoot: true},
		{Name: "extra-data", Where: Host},
		{Name: "pre-install", Where: Target},
		{Name: "install", Where: Target},
		{Name: "post-install", Where: Target},
		{Name: "post-root", Where: Host},
		{Name: "block-device", Where: Host, SizeInKiB: true},
		{Name: "pre-finalise", Where: Host, BlockDevice: true, SizeInKiB: true},
		{Name: "finalise", Where: Target, BlockDevice: true, SizeInKiB: true},
		{Name: "cleanup", Where: Host, TargetRoot: true, BlockDevice: true, SizeInKiB: true},
	}
}
