package elements

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// TargetPath is PATH in target phases. diskimage-builder has the same directories, after a literal "$PATH".
const TargetPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// An Environment holds what the variables of hooks are made of. Values that are empty are not set, unless a field
// says otherwise.
type Environment struct {
	// Caller is the caller's environment, of which hooks see what [Passed] names.
	Caller []string
	// Pass names more of the caller's variables to pass on; a final "*" stands for any ending.
	Pass []string
	// Set holds further variables; they win over all others but those that depend on the phase.
	Set map[string]string

	Elements     *Selection
	ElementsPath []string // ELEMENTS_PATH: all search paths as hooks see them, the built-in elements' last
	Arch         string   // ARCH
	ImageName    string   // IMAGE_NAME: the output path without its suffix; "image" when empty
	RootFSType   string   // DIB_ROOT_FSTYPE and FS_TYPE; "ext4" when empty
	RootLabel    string   // DIB_ROOT_LABEL
	BootLabel    string   // DIB_BOOT_LABEL
	MountPoints  []string // DIB_MOUNTPOINTS
	ImageCache   string   // DIB_IMAGE_CACHE
	LockFiles    string   // DIB_LOCKFILES
	Offline      bool     // DIB_OFFLINE=1; the variable is always set
	Trace        int      // DIB_DEBUG_TRACE
	Epoch        int64    // SOURCE_DATE_EPOCH, in seconds

	Lib       string // _LIB
	BuildDir  string // TMP_BUILD_DIR
	ImageDir  string // TMP_IMAGE_DIR
	HooksPath string // TMP_HOOKS_PATH
	MountPath string // TMP_MOUNT_PATH, and TARGET_ROOT where a phase has it
	Home      string // HOME of host hooks
	HostPath  string // PATH of host hooks
	Python    string // DIB_PYTHON_EXEC
	Socket    string // CAIRN_SOCKET of host hooks

	BlockDevice  string // IMAGE_BLOCK_DEVICE
	BlockDevices string // IMAGE_BLOCK_DEVICES, as pairs "[name]=device "
	SizeKiB      int64  // DIB_IMAGE_SIZE once the size is known

	// Args and Env are the command line and the DIB_ variables for manifests: see [CanonicalArgs] and [CanonicalEnv].
	Args, Env string
	// FullArgs and FullEnv are the same with nothing left out, for host hooks, which keep them beside the output.
	FullArgs, FullEnv string
}

// passed are the variables of the caller that hooks see: those that diskimage-builder and the published elements read.
var passed = []string{
	"DIB_*", "IMAGE_*", "ARCH", "DISTRO_NAME", "FS_TYPE", "ROOT_LABEL", "MAX_ONLINE_RESIZE", "QEMU_IMG_OPTIONS",
	"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
	"REG_*", "GENTOO_*", "YUM*", "BASE_IMAGE_FILE", "BASE_IMAGE_TAR", "SHA256SUMS", "IPA_*", "PYPI_MIRROR_URL*",
	"NO_SOURCE_REPOSITORIES", "DRACUT_VERSION", "UBOOT_KERNEL_*", "RUN_PARTS_REGEX", "OVERWRITE_OLD_IMAGE",
	"ACI_MANIFEST", "DOCKER_TARGET", "SIMPLE_INIT_*",
	"break", "break_cmd", "break_outside_target", "break_after_error",
}

// Passed tells whether hooks see a variable of the caller, given further patterns.
func Passed(name string, patterns []string) bool {
	for _, p := range slices.Concat(passed, patterns) {
		prefix, any := strings.CutSuffix(p, "*")
		if name == p || any && strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// Variables returns the environment of the hooks of a phase, sorted by name.
func (e Environment) Variables(p Phase) []string {
	v := map[string]string{}
	for _, kv := range e.Caller {
		if name, value, ok := strings.Cut(kv, "="); ok && Passed(name, e.Pass) {
			v[name] = value
		}
	}
	e.defaults(v)
	e.common(v)
	if p.Where == Host {
		e.host(v)
	} else {
		e.target(v)
	}
	maps.Copy(v, e.Set)
	e.phase(v, p)
	out := make([]string, 0, len(v))
	for _, name := range slices.Sorted(maps.Keys(v)) {
		out = append(out, name+"="+v[name])
	}
	return out
}

// defaults sets what the caller has not.
//
// diskimage_builder/lib/common-defaults, lib/img-defaults, lib/disk-image-create.
func (e Environment) defaults(v map[string]string) {
	for name, value := range map[string]string{
		"IMAGE_TYPE": "qcow2", "DIB_NO_TMPFS": "0", "DIB_MIN_TMPFS": "2", "DIB_CHECKSUM": "0", "DIB_DEFAULT_INSTALLTYPE": "source",
		"DIB_JOURNAL_SIZE": "64", "DIB_GZIP_BIN": "gzip", "DIB_QUIET": "0", "DIB_NO_TIMESTAMP": "0", "DIB_SHOW_IMAGE_USAGE": "0",
		"FS_TYPE": "ext4", "DIB_OFFLINE": "",
	} {
		if _, ok := v[name]; !ok {
			v[name] = value
		}
	}
	if v["IMAGE_NAME"] = e.ImageName; e.ImageName == "" {
		v["IMAGE_NAME"] = "image"
	}
}

// common sets what all hooks see.
func (e Environment) common(v map[string]string) {
	for name, value := range map[string]string{
		"ARCH": e.Arch, "FS_TYPE": e.RootFSType, "DIB_ROOT_FSTYPE": e.RootFSType, "DIB_ROOT_LABEL": e.RootLabel, "DIB_BOOT_LABEL": e.BootLabel,
		"DIB_MOUNTPOINTS": strings.Join(e.MountPoints, "|"), "DIB_IMAGE_CACHE": e.ImageCache, "DIB_LOCKFILES": e.LockFiles,
		"_LIB": e.Lib, "TMP_BUILD_DIR": e.BuildDir, "TMP_IMAGE_DIR": e.ImageDir, "TMP_HOOKS_PATH": e.HooksPath, "TMP_MOUNT_PATH": e.MountPath,
		"ELEMENTS_PATH": strings.Join(e.ElementsPath, ":"), "DIB_PYTHON_EXEC": e.Python, "DIB_ARGS": e.Args, "DIB_ENV": e.Env,
	} {
		if value != "" {
			v[name] = value
		}
	}
	if e.Offline {
		v["DIB_OFFLINE"] = "1"
	}
	v["DIB_DEBUG_TRACE"] = strconv.Itoa(e.Trace)
	v["SOURCE_DATE_EPOCH"] = strconv.FormatInt(e.Epoch, 10)
	v["LC_ALL"], v["TZ"] = "C", "UTC"
	v["USER"], v["LOGNAME"] = "root", "root"
	if e.Elements != nil {
		v["IMAGE_ELEMENT"] = strings.Join(e.Elements.Names(), " ")
		v["IMAGE_ELEMENT_YAML"] = e.Elements.yaml()
	}
}

// host sets what only hooks outside the image see.
func (e Environment) host(v map[string]string) {
	v["PATH"] = e.HostPath
	v["HOME"] = e.Home
	v["CAIRN_SOCKET"] = e.Socket
	v["CAIRN_DIB_ARGS"], v["CAIRN_DIB_ENV"] = e.FullArgs, e.FullEnv
	for _, name := range []string{"PATH", "HOME", "CAIRN_SOCKET", "CAIRN_DIB_ARGS", "CAIRN_DIB_ENV"} {
		if v[name] == "" {
			delete(v, name)
		}
	}
	// Unlike diskimage-builder's, this die never ends with success.
	v["BASH_FUNC_die%%"] = "() {  local status=$?\n echo \"$@\"\n [ $status -ne 0 ] || status=1\n exit $status\n}"
	if e.Elements != nil {
		v["BASH_FUNC_get_image_element_array%%"] = "() {  echo " + quoteShell(e.Elements.array()) + "\n}"
	}
}

// target sets what only hooks inside the image see.
func (e Environment) target(v map[string]string) {
	v["PATH"], v["HOME"] = TargetPath, "/root"
	delete(v, "TMPDIR")
	delete(v, "VIRTUAL_ENV")
}

// phase sets what depends on the phase.
func (e Environment) phase(v map[string]string, p Phase) {
	delete(v, "TARGET_ROOT")
	delete(v, "IMAGE_BLOCK_DEVICE")
	delete(v, "IMAGE_BLOCK_DEVICES")
	if p.TargetRoot {
		v["TARGET_ROOT"] = e.MountPath
	}
	if p.BlockDevice {
		v["IMAGE_BLOCK_DEVICE"], v["IMAGE_BLOCK_DEVICES"] = e.BlockDevice, e.BlockDevices
	}
	if p.SizeInKiB && e.SizeKiB > 0 {
		v["DIB_IMAGE_SIZE"] = strconv.FormatInt(e.SizeKiB, 10)
	}
}

// yaml is the map of names to directories.
func (s *Selection) yaml() string {
	dirs := map[string]string{}
	for _, e := range s.Elements {
		dirs[e.Name] = e.Dir
	}
	text, err := yaml.Marshal(dirs)
	if err != nil { // strings always marshal
		return ""
	}
	return string(text)
}

// array is what get_image_element_array prints: the body of a bash associative array.
func (s *Selection) array() string {
	var out strings.Builder
	for _, e := range s.Elements {
		fmt.Fprintf(&out, "[%s]=%s ", e.Name, e.Dir)
	}
	return out.String()
}

// quoteShell makes one word of the shell of text.
func quoteShell(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
