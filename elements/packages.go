package elements

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Dir is an element's name and the directory in which to read its files.
type Dir struct{ Name, Path string }

// DirsOf reads the variables IMAGE_ELEMENT_YAML and IMAGE_ELEMENT, of which the second gives the order.
func DirsOf(imageElementYAML, imageElement string) ([]Dir, error) {
	paths := map[string]string{}
	if err := yaml.Unmarshal([]byte(imageElementYAML), &paths); err != nil {
		return nil, fmt.Errorf("read IMAGE_ELEMENT_YAML: %w", err)
	}
	var dirs []Dir
	for _, name := range strings.Fields(imageElement) {
		if path, ok := paths[name]; ok {
			dirs = append(dirs, Dir{name, path})
			delete(paths, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(paths)) {
		dirs = append(dirs, Dir{name, paths[name]})
	}
	return dirs, nil
}

// A Package is a package name before pkg-map, and the element that asks for it.
type Package struct{ Name, Element string }

// MarshalJSON writes the pair that diskimage-builder writes.
func (p Package) MarshalJSON() ([]byte, error) { return json.Marshal([]string{p.Name, p.Element}) }

// PackageLists are the packages of a phase directory ("install.d"), those to install and those to remove afterwards,
// in the order of elements and of their files.
type PackageLists map[string]*PackageList

// A PackageList is one phase of [PackageLists].
type PackageList struct {
	Install   []Package `json:"install,omitempty"`
	Uninstall []Package `json:"uninstall,omitempty"`
}

// Text is a line "PHASE install|uninstall ELEMENT PACKAGE" for each entry, sorted by phase, for programs that read no
// JSON.
func (l PackageLists) Text() string {
	var out strings.Builder
	for _, phase := range slices.Sorted(maps.Keys(l)) {
		for _, p := range l[phase].Install {
			fmt.Fprintf(&out, "%s install %s %s\n", phase, p.Element, p.Name)
		}
		for _, p := range l[phase].Uninstall {
			fmt.Fprintf(&out, "%s uninstall %s %s\n", phase, p.Element, p.Name)
		}
	}
	return out.String()
}

// PackageInstalls joins the files package-installs.json and package-installs.yaml of elements. The conditions in them
// are evaluated with env, which returns the value of a variable and whether it is set.
//
// diskimage_builder/elements/package-installs/bin/package-installs-squash, but that names in a list of architectures
// may have blanks around them, and that of elements of one name only the selected one counts.
func PackageInstalls(dirs []Dir, env func(string) (string, bool)) (PackageLists, error) {
	s := squash{env: env, lists: PackageLists{}, kept: map[string]bool{}}
	for _, dir := range dirs {
		for _, name := range []string{"package-installs.json", "package-installs.yaml"} {
			path := filepath.Join(dir.Path, name)
			text, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = s.file(dir.Name, text)
			}
			if err != nil {
				return nil, fmt.Errorf("read package list: %s: %w", path, err)
			}
		}
	}
	for phase, list := range s.lists {
		list.Uninstall = slices.DeleteFunc(list.Uninstall, func(p Package) bool { return s.kept[phase+" "+p.Name] })
	}
	return s.lists, nil
}

// A squash is the state of [PackageInstalls].
type squash struct {
	env   func(string) (string, bool)
	lists PackageLists
	kept  map[string]bool // "PHASE PACKAGE" that some element installs for good
}

func (s *squash) file(element string, text []byte) error {
	if json.Valid(text) {
		text = bytes.ReplaceAll(text, []byte("\t"), []byte(" ")) // blanks in JSON, forbidden in YAML
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return err
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: not a map of packages", root.Line)
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if err := s.entries(element, root.Content[i].Value, root.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// entries handles what one package name is mapped to: nothing, a map or a list of maps.
func (s *squash) entries(element, name string, value *yaml.Node) error {
	if value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	nodes := []*yaml.Node{value}
	switch {
	case value.Kind == yaml.SequenceNode && len(value.Content) > 0:
		nodes = value.Content
	case value.Kind == yaml.ScalarNode && (value.Tag == "!!null" || value.Value == ""):
		nodes = []*yaml.Node{{Kind: yaml.MappingNode}}
	case value.Kind == yaml.SequenceNode:
		nodes = []*yaml.Node{{Kind: yaml.MappingNode}}
	}
	for _, node := range nodes {
		if node.Kind != yaml.MappingNode {
			return fmt.Errorf("line %d: package [%s] is mapped to something else than options", node.Line, name)
		}
		entry := map[string]any{}
		if err := node.Decode(&entry); err != nil {
			return fmt.Errorf("package [%s]: %w", name, err)
		}
		if err := s.entry(element, name, entry); err != nil {
			return err
		}
	}
	return nil
}

// entry adds one package unless its conditions fail.
func (s *squash) entry(element, name string, entry map[string]any) error {
	wanted, err := s.wanted(element, name, entry)
	if err != nil || !wanted {
		return err
	}
	phase := text(entry["phase"])
	if phase == "" {
		phase = "install.d"
	}
	list := s.lists[phase]
	if list == nil {
		list = &PackageList{}
		s.lists[phase] = list
	}
	_, uninstall := entry["uninstall"]
	_, both := entry["build-only"]
	if both || !uninstall {
		list.Install = append(list.Install, Package{name, element})
	}
	if both || uninstall {
		list.Uninstall = append(list.Uninstall, Package{name, element})
	} else {
		s.kept[phase+" "+name] = true
	}
	return nil
}

func (s *squash) wanted(element, name string, entry map[string]any) (bool, error) {
	if t, ok := entry["installtype"]; ok && t != nil && text(t) != s.installType(element) {
		return false, nil
	}
	arch, notArch := text(entry["arch"]), text(entry["not-arch"])
	if arch != "" && notArch != "" {
		return false, fmt.Errorf("package-installs configuration error: arch and not_arch given for package [%s]", name)
	}
	current, _ := s.env("ARCH")
	if arch != "" && !inList(current, arch) || notArch != "" && inList(current, notArch) {
		return false, nil
	}
	version, _ := s.env("DIB_PYTHON_VERSION")
	if v := text(entry["dib_python_version"]); v != "" && v != version {
		return false, nil
	}
	return s.when(entry["when"])
}

func (s *squash) installType(element string) string {
	if v, ok := s.env("DIB_INSTALLTYPE_" + strings.ReplaceAll(element, "-", "_")); ok {
		return v
	}
	if v, ok := s.env("DIB_DEFAULT_INSTALLTYPE"); ok {
		return v
	}
	return "source"
}

var whenLine = regexp.MustCompile(`^(\w+)\s*(!=|=)\s*(.*)`)

// when evaluates a condition or a list of them, of which all have to hold.
func (s *squash) when(value any) (bool, error) {
	lines, ok := value.([]any)
	switch {
	case value == nil:
		return true, nil
	case !ok:
		lines = []any{value}
	}
	holds := true
	for _, line := range lines {
		m := whenLine.FindStringSubmatch(text(line))
		if m == nil {
			return false, fmt.Errorf("Malformed when line: <%s>", text(line)) //nolint:staticcheck // the text scripts look for
		}
		v, set := s.env(m[1])
		if !set {
			return false, fmt.Errorf("The variable <%s> is not set", m[1]) //nolint:staticcheck // the text scripts look for
		}
		holds = holds && (v == m[3]) == (m[2] == "=")
	}
	return holds, nil
}

func inList(value, list string) bool {
	for item := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(item) == value {
			return true
		}
	}
	return false
}

// text is the value of a scalar as it was written.
func text(value any) string {
	if value == nil {
		return ""
	}
	return fmt.Sprint(value)
}
