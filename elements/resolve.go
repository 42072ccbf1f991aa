package elements

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// OperatingSystem is what exactly one selected element has to provide.
const OperatingSystem = "operating-system"

// A Selection is the set of elements of one image, in the order in which they are merged: what an element depends on
// comes before it, and of those that may come next the first by name does.
type Selection struct {
	Elements []*Element
	// Requested is the request with the default block device added, see [Request].
	Requested []string
}

// Names returns the names of the elements in their order.
func (s *Selection) Names() []string {
	var names []string
	for _, e := range s.Elements {
		names = append(names, e.Name)
	}
	return names
}

// Has tells whether the selection holds an element of that name.
func (s *Selection) Has(name string) bool { return slices.Contains(s.Names(), name) }

// BlockDevice returns the block-device configuration of the selected elements and its path as hooks see it, or no text
// when they have none: the file for the architecture of the first element that has one, or its default.
//
// diskimage_builder/lib/common-functions, 469 to 551.
func (s *Selection) BlockDevice(arch string) (path string, text []byte, err error) {
	if arch == "ppc64le" {
		arch = "ppc64el"
	}
	for _, e := range s.Elements {
		for _, name := range []string{"block-device-" + arch + ".yaml", "block-device-default.yaml"} {
			text, err := e.ReadFile(name)
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return filepath.Join(e.Dir, name), text, err
			}
		}
	}
	return "", nil, nil
}

// Request adds to the named elements what diskimage-builder adds before it looks for dependencies: a block device
// for "vm" when the request names none.
//
// diskimage_builder/lib/common-functions:arg_to_elements.
func Request(names []string, arch string) []string {
	out := slices.Clone(names)
	isBlockDevice := func(name string) bool { return strings.HasPrefix(name, "block-device-") }
	if !slices.Contains(names, "vm") || slices.ContainsFunc(names, isBlockDevice) {
		return out
	}
	if arch == "arm64" || arch == "aarch64" {
		return append(out, "block-device-efi")
	}
	return append(out, "block-device-mbr")
}

// Resolve expands the named elements with their dependencies. Its errors are [*NotFoundError], [*ProvidedError],
// [*ConflictError] and [*NoSystemError].
//
// diskimage_builder/element_dependencies.py:_expand_element_dependencies.
func (c *Catalog) Resolve(names []string, arch string) (*Selection, error) {
	requested := Request(names, arch)
	x := expansion{catalog: c, selected: map[string]bool{}, providedBy: map[string]string{}, wantedBy: map[string]string{}}
	if err := x.run(requested); err != nil {
		return nil, err
	}
	if err := x.check(requested); err != nil {
		return nil, err
	}
	s := &Selection{Requested: requested}
	for _, name := range x.order() {
		s.Elements = append(s.Elements, c.elements[name])
	}
	return s, nil
}

// An expansion is the state of one dependency search.
type expansion struct {
	catalog    *Catalog
	selected   map[string]bool   // requested names and dependencies, provided or not
	providedBy map[string]string // provided name -> element
	wantedBy   map[string]string // dependency -> the element that named it first
}

func (x *expansion) run(requested []string) error {
	for _, name := range requested {
		x.selected[name] = true
	}
	queue := slices.Clone(requested)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if x.providedBy[name] != "" {
			continue
		}
		e := x.catalog.elements[name]
		if e == nil {
			return &NotFoundError{Name: name, WantedBy: x.wantedBy[name], Near: nearest(name, x.catalog.Names())}
		}
		if err := x.provide(e); err != nil {
			return err
		}
		queue = append(queue, x.want(e)...)
	}
	return nil
}

func (x *expansion) provide(e *Element) error {
	for _, p := range e.Provides {
		if by := x.providedBy[p]; by != "" {
			return &ProvidedError{Name: p, By: by, Also: e.Name}
		}
	}
	for _, p := range e.Provides {
		x.providedBy[p] = e.Name
	}
	return nil
}

// want selects the dependencies of e and returns those that have to be looked at.
func (x *expansion) want(e *Element) []string {
	var next []string
	for _, d := range e.Deps {
		if !x.selected[d] && x.providedBy[d] == "" {
			next = append(next, d)
			x.wantedBy[d] = e.Name
		}
		x.selected[d] = true
	}
	return next
}

// check finds what only the whole set shows.
func (x *expansion) check(requested []string) error {
	names := slices.Clone(requested)
	slices.Sort(names)
	var conflicts []ProvidedError
	for _, name := range slices.Compact(names) {
		if by := x.providedBy[name]; by != "" {
			conflicts = append(conflicts, ProvidedError{Name: name, By: by, Also: name})
		}
	}
	if len(conflicts) > 0 {
		return &ConflictError{Conflicts: conflicts}
	}
	if x.providedBy[OperatingSystem] == "" {
		return &NoSystemError{Known: x.catalog.providers(OperatingSystem)}
	}
	return nil
}

// order sorts the selected names that are not provided: at each step the first by name whose remaining dependencies
// all depend on it in turn. Without cycles that is a topological order; the elements of a cycle come next to each
// other as far as names allow.
func (x *expansion) order() []string {
	remaining := map[string]bool{}
	for name := range x.selected {
		if x.providedBy[name] == "" {
			remaining[name] = true
		}
	}
	var out []string
	for len(remaining) > 0 {
		next := x.first(remaining)
		delete(remaining, next)
		out = append(out, next)
	}
	return out
}

func (x *expansion) first(remaining map[string]bool) string {
	reach := map[string]map[string]bool{}
	for name := range remaining {
		reach[name] = map[string]bool{}
		x.follow(name, remaining, reach[name])
	}
	first := ""
	for name := range remaining {
		free := true
		for dep := range reach[name] {
			free = free && (dep == name || reach[dep][name])
		}
		if free && (first == "" || name < first) {
			first = name
		}
	}
	return first
}

// follow adds to seen what name depends on, directly or not, within the remaining elements.
func (x *expansion) follow(name string, remaining, seen map[string]bool) {
	for _, dep := range x.catalog.elements[name].Deps {
		if by := x.providedBy[dep]; by != "" {
			dep = by
		}
		if remaining[dep] && !seen[dep] {
			seen[dep] = true
			x.follow(dep, remaining, seen)
		}
	}
}
