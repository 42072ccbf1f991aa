package reproducibility

import (
	"bytes"
	"strings"

	"cairn/fsbuild/tree"
)

// Rules returns what [Normalise] does, in order. What a rule removes is made
// again by the image itself when it needs it.
func Rules() []Rule { return append([]Rule(nil), rules...) }

func isRegular(_ *state, n *tree.Node) bool { return n.Type == tree.Regular }

func dropsAptCache(s *state, _ *tree.Node) bool { return !s.p.KeepAptCache }

var rules = []Rule{
	{
		Name: "run", Patterns: []string{"run/*"}, Action: Remove,
		Reason: "process state of the build; a tmpfs covers it at boot",
	},
	{
		Name: "tmp", Patterns: []string{"tmp/*"}, Action: Remove,
		Reason: "diskimage-builder empties it (lib/img-functions finalise_base)",
	},
	{
		Name: "dev", Patterns: []string{"dev/**"}, Action: Remove,
		Reason: "devices made by hooks depend on privileges; a devtmpfs covers them at boot",
		when:   func(s *state, n *tree.Node) bool { return !s.dev[n.Path] },
	},
	{
		Name: "journal", Patterns: []string{"var/log/journal/*"}, Action: Remove,
		Reason: "named by the machine id",
		when:   func(_ *state, n *tree.Node) bool { return isMachineID(n.Name()) },
	},
	{
		Name: "log", Patterns: []string{"var/log/**"}, Action: Truncate,
		Reason: "times and progress of installations; diskimage-builder truncates them",
		when:   isRegular,
	},
	{
		Name: "root-log", Patterns: []string{"root/**/*.log"}, Action: Remove,
		Reason: "diskimage-builder deletes them",
		when:   isRegular,
	},
	{
		Name: "root-cache", Patterns: []string{"root/.cache/*"}, Action: Remove,
		Reason: "caches of pip and others hold times and random names",
	},
	{
		Name: "container", Patterns: []string{".dockerenv", "run/.containerenv"}, Action: Remove,
		Reason: "says that the system is a container",
	},
	{
		Name: "resolv.conf", Patterns: []string{"etc/resolv.conf"}, Action: Remove,
		Reason: "the name server of the build",
		when:   isBuildResolver,
	},
	{
		Name: "resolv.conf.ORIG", Patterns: []string{"etc/resolv.conf.ORIG"}, Action: Remove,
		Reason: "diskimage-builder's keeping place for the duration of a build",
	},
	{
		Name: "apt-lists", Patterns: []string{"var/lib/apt/lists/*"}, Action: Remove,
		Reason: "stale at the first boot, large, and with the mirror's times",
		when:   func(s *state, n *tree.Node) bool { return dropsAptCache(s, n) && n.Name() != "partial" },
	},
	{
		Name: "apt-lists-partial", Patterns: []string{"var/lib/apt/lists/partial/*"}, Action: Remove,
		Reason: "interrupted downloads",
	},
	{
		Name: "apt-archives", Patterns: []string{"var/cache/apt/archives/*.deb"}, Action: Remove,
		Reason: "downloads, as apt-get clean removes them",
		when:   dropsAptCache,
	},
	{
		Name: "apt-cache", Patterns: []string{"var/cache/apt/*.bin", "var/cache/apt/archives/partial/*"}, Action: Remove,
		Reason: "memory images of indexes, with times and addresses",
	},
	{
		Name: "ldconfig-cache", Patterns: []string{"var/cache/ldconfig/aux-cache"}, Action: Remove,
		Reason: "inode numbers and ctimes of the build's file system",
	},
	{
		Name: "fontconfig-cache", Patterns: []string{"var/cache/fontconfig/*.cache-*"}, Action: Remove,
		Reason: "modification times of directories before they are clamped",
	},
	{
		Name: "backups",
		Patterns: []string{
			"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-",
			"var/lib/dpkg/*-old", "var/cache/debconf/*-old", "var/lib/ucf/hashfile.*", "var/lib/ucf/registry.*",
		},
		Action: Remove,
		Reason: "one state in the middle of the build, with its dates",
	},
	{
		Name: "password-lock", Patterns: []string{"etc/.pwd.lock"}, Action: Remove,
		Reason: "lock file of the password tools",
	},
	{
		Name: "ssh-host-keys", Patterns: []string{"etc/ssh/ssh_host_*_key", "etc/ssh/ssh_host_*_key.pub"}, Action: Remove,
		Reason: "random, and no two machines may share them; made at the first boot",
	},
	{
		Name: "machine-id", Patterns: []string{"etc/machine-id"}, Action: Truncate,
		Reason: "random, and no two machines may share it; see machineID",
		when:   hasMachineID,
	},
	{
		Name: "machine-id-missing", Patterns: []string{"usr/lib/systemd/systemd"}, Action: Rewrite,
		Reason: "without the file systemd cannot start from a read-only root; see machineID",
		apply:  addMachineID,
	},
	{
		Name: "dbus-machine-id", Patterns: []string{"var/lib/dbus/machine-id"}, Action: Rewrite,
		Reason: "systemd would take it for the machine's",
		apply:  linkDBusMachineID,
	},
	{
		Name: "systemd-state",
		Patterns: []string{
			"var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "var/lib/systemd/timers/*",
			"var/lib/systemd/timesync/clock", "var/lib/systemd/pstore/*", "var/lib/systemd/coredump/*",
			"var/lib/systemd/linger/.#*",
		},
		Action: Remove,
		Reason: "random, secret, or times of the build; no two machines may share the first two",
	},
	{
		Name: "iscsi-initiator", Patterns: []string{"etc/iscsi/initiatorname.iscsi"}, Action: Rewrite,
		Reason: "random, and no two machines may share it; open-iscsi makes one where it reads GenerateName=yes",
		apply:  resetInitiator,
	},
	{
		Name: "nvme-host", Patterns: []string{"etc/nvme/hostid", "etc/nvme/hostnqn"}, Action: Remove,
		Reason: "random, and no two machines may share it; nvme-cli falls back to the firmware's UUID",
	},
	{
		Name: "shadow", Patterns: []string{"etc/shadow"}, Action: Rewrite,
		Reason: "date of the last password change, of which chpasswd ignores SOURCE_DATE_EPOCH",
		when:   isRegular,
		apply:  rewriteShadow,
	},
	{
		Name: "java-keystore", Patterns: []string{"etc/ssl/certs/java/cacerts"}, Action: Rewrite,
		Reason: "date of each certificate's import",
		when:   isRegular,
		apply:  rewriteKeystore,
	},
	{
		Name: "python-cache", Patterns: []string{"**/*.pyc"}, Action: Rewrite,
		Reason: "the source's modification time before it is clamped, against which Python checks it",
		when:   isRegular,
		apply:  rewritePyc,
	},
	{
		Name: "mtime", Patterns: []string{".", "**"}, Action: Clamp,
		Reason: "times of the build",
		apply:  clamp,
	},
}

// machineID explains what becomes of etc/machine-id.
//
// An empty file makes systemd (252 in bookworm, 257 in trixie; machine-id(5),
// "First Boot Semantics") set the id at the first boot, from the hypervisor's
// UUID if there is one, and keep it, but not count that boot as a first one.
// With "uninitialized", or without the file, ConditionFirstBoot would hold: then
// systemd-firstboot asks for time zone and root password on the console, which
// stops a cloud guest, and presets enable again the services that a hook has
// disabled. cloud-init knows its own first boot by the instance id and does not
// look at this file. It is also what diskimage-builder's sysprep element leaves.
// An element that wants systemd's first boot can write "uninitialized"; that
// stays.
const machineID = "etc/machine-id"

const idDigits = 32 // of a machine id

func isMachineID(s string) bool {
	return len(s) == idDigits && strings.Trim(s, "0123456789abcdef") == ""
}

func hasMachineID(_ *state, n *tree.Node) bool {
	if n.Type != tree.Regular {
		return false
	}
	b, err := readHead(n, 64)
	return err != nil || strings.TrimSpace(string(b)) != "uninitialized"
}

// addMachineID is applied to systemd itself.
func addMachineID(s *state, _ *tree.Node) (Action, error) {
	if s.t.Lookup(machineID) != nil || s.t.Lookup("etc") == nil {
		return "", nil
	}
	return Rewrite, s.t.Add(tree.Node{Path: machineID, Type: tree.Regular, Mode: 0o444, MTime: s.epoch})
}

func linkDBusMachineID(s *state, n *tree.Node) (Action, error) {
	if n.Type != tree.Regular {
		return "", nil
	}
	link := tree.Node{Path: n.Path, Type: tree.Symlink, Mode: 0o777, MTime: s.epoch, Target: "/" + machineID}
	s.t.Remove(n.Path)
	return Rewrite, s.t.Add(link)
}

func isBuildResolver(s *state, n *tree.Node) bool {
	if s.p.ResolvConf == nil || n.Type != tree.Regular || n.Size != int64(len(s.p.ResolvConf)) {
		return false
	}
	b, err := read(n)
	return err == nil && bytes.Equal(b, s.p.ResolvConf)
}

func resetInitiator(s *state, n *tree.Node) (Action, error) {
	if n.Type != tree.Regular {
		return "", nil
	}
	b, err := read(n)
	if err != nil || !bytes.HasPrefix(b, []byte("InitiatorName=")) && !bytes.Contains(b, []byte("\nInitiatorName=")) {
		return "", err
	}
	s.setContent(n, []byte("GenerateName=yes\n"))
	return Rewrite, nil
}

// clamp is applied to every node last.
func clamp(s *state, n *tree.Node) (Action, error) {
	if !s.isStamp(n.MTime) {
		return "", nil
	}
	n.MTime = s.epoch
	return Clamp, nil
}
