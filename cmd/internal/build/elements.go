package build

import (
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cairn/elements"
	"cairn/elements/builtin"
	"cairn/elements/runparts"
	"cairn/sandbox/shim"
)

// builtins are the elements that come with the program, as hooks see them.
func builtins() elements.Builtin { return elements.Builtin{FS: builtin.FS(), Dir: seenElements} }

// openElements finds the elements and expands the request.
func openElements(req *Request) (*elements.Catalog, *elements.Selection, error) {
	c, err := elements.Load(req.ElementPaths, builtins())
	if err != nil {
		return nil, nil, err
	}
	s, err := c.Resolve(req.Elements, req.Arch)
	return c, s, err
}

// An Element is a line of `cairn elements list`.
type Element struct {
	Name   string
	Origin string // its directory, or "built-in"
}

// Elements lists what a request may name.
func Elements(paths []string) ([]Element, error) {
	c, err := elements.Load(paths, builtins())
	if err != nil {
		return nil, err
	}
	var list []Element
	for _, name := range c.Names() {
		e := c.Lookup(name)
		origin := e.Dir
		if e.Builtin {
			origin = "built-in"
		}
		list = append(list, Element{name, origin})
	}
	return list, nil
}

// ElementInfo is what the command element-info prints: the expanded set, or
// shell definitions of it.
func ElementInfo(paths, names []string, arch string, env bool) (string, error) {
	c, err := elements.Load(paths, builtins())
	if err != nil {
		return "", err
	}
	s, err := c.Resolve(names, arch)
	if err != nil {
		return "", err
	}
	if !env {
		return strings.Join(s.Names(), " "), nil
	}
	return s.Definitions(), nil
}

// RunParts is dib-run-parts.
func RunParts(args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(stderr, "dib-run-parts:", err)
		return 1
	}
	return runparts.Main(runparts.Process{
		Args: args, Env: env, Stdin: stdin, Stdout: stdout, Stderr: stderr, Self: self, Now: time.Now,
	})
}

// ShimNames are the names under which hooks find the program.
func ShimNames() []string {
	names := shim.HostNames()
	for _, path := range shim.TargetPaths() {
		if name := filepath.Base(path); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Shim is the program under one of them.
func Shim(args, env []string) int {
	verbs := make(map[string]shim.Verb)
	for name, verb := range elements.Verbs() {
		verbs[name] = verb
	}
	return shim.Main(shim.Process{Args: args, Env: env, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}, verbs)
}

// environment is what hooks see in each phase.
func (w *worker) environment(s *elements.Selection) elements.Environment {
	r := w.req
	paths := slices.Clone(r.ElementPaths)
	return elements.Environment{
		Caller: r.Env, Elements: s, ElementsPath: append(paths, seenElements), Arch: r.Arch, ImageName: r.Output,
		RootFSType: root(w.plan).Type, RootLabel: root(w.plan).Label, BootLabel: bootLabel(w.plan),
		MountPoints: mountPoints(w.plan), ImageCache: seenCache, LockFiles: path.Join(seenBuild, "locks"),
		Offline: r.Offline, Trace: r.Trace, Epoch: w.job.Epoch.Unix(), Lib: seenLib, BuildDir: seenBuild, ImageDir: seenImage,
		HooksPath: seenHooks, MountPath: seenMnt, Home: r.Home, Python: "/usr/bin/python3", Socket: path.Join(seenShared, "socket"),
		HostPath:    seenBin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		BlockDevice: seenDevices + "0", BlockDevices: seenPartitions(w.plan),
		Args: elements.CanonicalArgs(r.Args, places(r)), Env: elements.CanonicalEnv(r.Env, places(r)),
		FullArgs: strings.Join(r.Args, " "), FullEnv: elements.FullEnv(r.Env),
		Set: w.phaseVariables(),
	}
}

// seenDevices begins the names of the disks that hooks see: the image is 0.
// There are no such devices: what would write to them is done when the image is
// written.
const seenDevices = "/dev/cairn"

// phaseVariables are variables that depend on the request's Debian settings.
func (w *worker) phaseVariables() map[string]string {
	vars := make(map[string]string)
	if m := w.req.Debian.ImageMirror; m != "" {
		vars["DIB_DEBIAN_IMAGE_MIRROR"] = m
	}
	return vars
}

// hookEnv gives each phase its environment.
type hookEnv struct{ base elements.Environment }

// of is the environment of a phase, named by its directory.
func (h hookEnv) of(dir string) []string {
	for _, p := range elements.Phases() {
		if p.Dir() == dir {
			return h.variables(p)
		}
	}
	return h.variables(elements.Phase{Name: dir, Where: elements.Target})
}

func (h hookEnv) variables(p elements.Phase) []string {
	vars := h.base.Variables(p)
	if p.Where == elements.Target {
		return append(append(vars, certificates(seenTarget)...), "APT_CONFIG="+seenAptConf)
	}
	return append(vars, certificates(outTarget)...)
}

// stageElements writes a copy of each selected element, so that hooks can read
// them whatever their modes and owners are.
func (w *worker) stageElements(s *elements.Selection) error {
	for _, e := range s.Elements {
		if err := e.Write(filepath.Join(w.dirs.stage, "elements", e.Name), elements.MergeOptions{Time: w.job.Epoch}); err != nil {
			return fmt.Errorf("element %s: copy it for the hooks: %w", e.Name, err)
		}
	}
	return s.Merge(w.dirs.hooks, elements.MergeOptions{Time: w.job.Epoch})
}
