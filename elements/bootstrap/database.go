package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	adminDir = "var/lib/dpkg"
	infoDir  = adminDir + "/info"
)

// treeDir is a tree on disk. Nothing outside it is reached, whatever links
// packages have brought.
type treeDir struct {
	path string
	fs   *os.Root
	o    UnpackOptions
}

func openTree(path string, o UnpackOptions) (*treeDir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open tree: %w", err)
	}
	return &treeDir{path: path, fs: root, o: o}, nil
}

func (t *treeDir) close() { _ = t.fs.Close() } // a directory, only looked through

// own gives name to the image's root.
func (t *treeDir) own(name string) error {
	if t.o.IDShift < 0 {
		return nil
	}
	return t.fs.Lchown(name, t.o.IDShift, t.o.IDShift)
}

// mkdirAll makes the directory name and its parents where they are missing.
func (t *treeDir) mkdirAll(name string, mode fs.FileMode) error {
	if info, err := t.fs.Stat(name); err == nil && info.IsDir() {
		return nil
	}
	if parent := path.Dir(name); parent != "." {
		if err := t.mkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	err := t.fs.Mkdir(name, 0o700)
	if err == nil {
		err = errors.Join(t.own(name), t.fs.Chmod(name, mode))
	}
	if err != nil {
		return fmt.Errorf("make directory in tree: %w", err)
	}
	return nil
}

func (t *treeDir) symlink(target, name string) error {
	if err := t.fs.Symlink(target, name); err != nil {
		return fmt.Errorf("make link in tree: %w", err)
	}
	if err := t.own(name); err != nil {
		return fmt.Errorf("make link in tree: %w", err)
	}
	return nil
}

// write makes a new file; it fails if there is one.
func (t *treeDir) write(name string, mode fs.FileMode, r io.Reader) error {
	err := t.writeFile(name, mode, r)
	if err != nil {
		return fmt.Errorf("write into tree: %w", err)
	}
	return nil
}

func (t *treeDir) writeFile(name string, mode fs.FileMode, r io.Reader) error {
	f, err := t.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if t.o.IDShift >= 0 {
		err = errors.Join(err, f.Chown(t.o.IDShift, t.o.IDShift))
	}
	return errors.Join(err, f.Chmod(mode), f.Close())
}

func (t *treeDir) writeText(name, text string) error {
	return t.write(name, 0o644, strings.NewReader(text))
}

// skeleton makes the directories and files that dpkg and apt expect and no
// package brings in time.
func (t *treeDir) skeleton() error {
	for _, dir := range []string{
		"dev/pts", "dev/shm", "etc/apt/apt.conf.d", "etc/apt/preferences.d",
		"etc/apt/sources.list.d", "etc/apt/trusted.gpg.d", "var/cache/apt/archives",
		"var/lib/apt/lists", "var/log/apt", infoDir, adminDir + "/alternatives",
		adminDir + "/parts", adminDir + "/triggers", adminDir + "/updates", "proc", "run", "sys",
	} {
		if err := t.mkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := t.mkdirAll("tmp", 0o1777|fs.ModeSticky); err != nil {
		return err
	}
	for _, link := range [...][2]string{
		{"/proc/self/fd", "dev/fd"},
		{"/proc/self/fd/0", "dev/stdin"},
		{"/proc/self/fd/1", "dev/stdout"},
		{"/proc/self/fd/2", "dev/stderr"},
	} {
		if err := t.symlink(link[0], link[1]); err != nil {
			return err
		}
	}
	return t.writeText("etc/fstab", "# UNCONFIGURED FSTAB FOR BASE SYSTEM\n")
}

// writeDatabase makes dpkg's database say that the base is unpacked, and apt's
// what was installed only as a dependency.
func (t *treeDir) writeDatabase(base, all []*packageFile) error {
	var status bytes.Buffer
	triggers := make(map[string][]string)
	for _, p := range base {
		conffiles, err := p.newConffiles()
		if err == nil {
			err = t.writeInfo(p)
		}
		if err == nil {
			err = t.stageConffiles(conffiles)
		}
		if err == nil {
			err = p.control.addInterests(triggers)
		}
		if err != nil {
			return p.fail(err)
		}
		p.control.writeStatus(&status, conffiles)
	}
	if err := t.writeTriggers(triggers); err != nil {
		return err
	}
	for name, text := range map[string]string{
		adminDir + "/status":            status.String(),
		adminDir + "/available":         "",
		infoDir + "/format":             "1\n",
		"var/lib/apt/extended_states":   autoInstalled(all, t.o.Arch),
		adminDir + "/triggers/Unincorp": "",
	} {
		if err := t.writeText(name, text); err != nil {
			return err
		}
	}
	return nil
}

// newConffiles lists the conffiles that the data archive really has.
func (p *packageFile) newConffiles() ([]string, error) {
	list, err := p.control.conffiles()
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		if !slices.Contains(p.paths, c) {
			return nil, fmt.Errorf("conffile %q is not in the package", c)
		}
	}
	return list, nil
}

// writeInfo writes the package's files in dpkg's info directory.
func (t *treeDir) writeInfo(p *packageFile) error {
	prefix := infoDir + "/" + p.control.infoName() + "."
	for _, f := range p.control.files {
		if err := t.write(prefix+f.name, fileMode(f.mode), bytes.NewReader(f.data)); err != nil {
			return err
		}
	}
	var list strings.Builder
	for _, name := range p.paths {
		if strings.Contains(name, "\n") {
			return fmt.Errorf("file name with a newline: %q", name)
		}
		list.WriteString("/" + name + "\n")
	}
	return t.writeText(prefix+"list", list.String())
}

// fileMode converts permission bits.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	return m
}

// stageConffiles puts a second copy of each conffile where dpkg's
// configuration looks for the new version. The first stays in place, because
// essential packages must work before they are configured.
func (t *treeDir) stageConffiles(list []string) error {
	for _, name := range list {
		if err := t.stageConffile(name); err != nil {
			return fmt.Errorf("stage conffile /%s: %w", name, err)
		}
	}
	return nil
}

func (t *treeDir) stageConffile(name string) error {
	info, err := t.fs.Lstat(name)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	uid, gid := owner(info)
	f, err := t.fs.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	staged := name + ".dpkg-new"
	if err := t.writeFile(staged, 0o600, f); err != nil {
		return err
	}
	if t.o.IDShift >= 0 {
		if err := t.fs.Lchown(staged, uid, gid); err != nil {
			return err
		}
	}
	return errors.Join(t.fs.Chmod(staged, info.Mode()), t.fs.Chtimes(staged, time.Time{}, info.ModTime()))
}

// writeStatus writes the package's paragraph of the status file.
func (c *control) writeStatus(w *bytes.Buffer, conffiles []string) {
	w.WriteString(strings.TrimRight(string(c.stanza), "\n"))
	w.WriteString("\nStatus: install ok unpacked\n")
	if len(conffiles) > 0 {
		w.WriteString("Conffiles:\n")
		for _, name := range conffiles {
			w.WriteString(" /" + name + " newconffile\n")
		}
	}
	w.WriteString("\n")
}

// addInterests enters which triggers the package is interested in (deb-triggers(5)).
func (c *control) addInterests(triggers map[string][]string) error {
	for line := range bytes.Lines(c.file("triggers")) {
		text, _, _ := strings.Cut(string(line), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		if len(words) != 2 {
			return fmt.Errorf("invalid triggers line %.120q", text)
		}
		name, who := words[1], c.infoName()
		switch words[0] {
		case "interest", "interest-await":
		case "interest-noawait":
			who += "/noawait"
		case "activate", "activate-await", "activate-noawait":
			continue
		default:
			return fmt.Errorf("unknown directive in triggers line %.120q", text)
		}
		if name[0] != '/' && !validTriggerName(name) {
			return fmt.Errorf("invalid trigger name %.120q", name)
		}
		triggers[name] = append(triggers[name], who)
	}
	return nil
}

// validTriggerName accepts what can be a file of the triggers directory and is
// not one of dpkg's own.
func validTriggerName(s string) bool {
	return !strings.ContainsAny(s, "/\x00") && s != "." && s != ".." && s != "File" && s != "Unincorp" && s != "Lock"
}

// writeTriggers writes the database of interests: one file per named trigger,
// and one for those that are paths.
func (t *treeDir) writeTriggers(triggers map[string][]string) error {
	var files strings.Builder
	names := make([]string, 0, len(triggers))
	for name := range triggers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if name[0] == '/' {
			for _, who := range triggers[name] {
				files.WriteString(name + " " + who + "\n")
			}
			continue
		}
		if err := t.writeText(adminDir+"/triggers/"+name, strings.Join(triggers[name], "\n")+"\n"); err != nil {
			return err
		}
	}
	return t.writeText(adminDir+"/triggers/File", files.String())
}

// autoInstalled is the content of apt's extended_states.
func autoInstalled(all []*packageFile, arch string) string {
	var b strings.Builder
	for _, p := range all {
		if p.deb.Auto {
			a := p.control.arch
			if a == "all" {
				a = arch
			}
			fmt.Fprintf(&b, "Package: %s\nArchitecture: %s\nAuto-Installed: 1\n\n", p.control.name, a)
		}
	}
	return b.String()
}
