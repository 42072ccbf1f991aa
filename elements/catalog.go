package elements

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// An Element is one directory of hooks and data. It does not change after [Load].
type Element struct {
	// Name is the last component of the directory's real path: a link to a directory is known by its target's name.
	Name string
	// Dir is where hooks see the directory: its real path, or for a built-in element the path given to [Load].
	Dir string
	// Builtin says that the files are embedded in the program and have to be written to Dir before a hook runs.
	Builtin bool
	// Deps and Provides are the names in element-deps and element-provides, sorted, each once.
	Deps, Provides []string

	files fs.FS
}

// A Builtin holds the elements that come with the program.
type Builtin struct {
	FS  fs.FS  // one directory for each element; files that start with "#!" are executable, whatever their mode
	Dir string // the path under which hooks will see them, see [WriteBuiltin]
}

// A Catalog is the set of known elements.
type Catalog struct {
	elements map[string]*Element
	warnings []string
}

// Load reads the elements of a search path and then the built-in ones. The first element of a name wins. An entry
// that is not a directory is a [*SearchPathError]; empty entries are ignored.
//
// diskimage_builder/element_dependencies.py:_find_all_elements.
func Load(paths []string, builtin Builtin) (*Catalog, error) {
	c := &Catalog{elements: map[string]*Element{}}
	for _, p := range paths {
		if p == "" {
			continue
		}
		if err := c.addDir(p); err != nil {
			return nil, err
		}
	}
	if builtin.FS != nil {
		if err := c.addBuiltin(builtin); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Catalog) addDir(path string) error {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotDirectory) {
			err = nil
		}
		return &SearchPathError{Path: path, Err: err}
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("read elements: %w", err)
	}
	for _, entry := range entries {
		full := filepath.Join(path, entry.Name())
		if st, statErr := os.Stat(full); statErr != nil || !st.IsDir() {
			continue // neither a file nor a dangling link is an element
		}
		if full, err = realPath(full); err != nil {
			return fmt.Errorf("read elements: %w", err)
		}
		if err := c.add(&Element{Name: filepath.Base(full), Dir: full, files: os.DirFS(full)}); err != nil {
			return err
		}
	}
	return nil
}

func (c *Catalog) addBuiltin(b Builtin) error {
	entries, err := fs.ReadDir(b.FS, ".")
	if err != nil {
		return fmt.Errorf("read built-in elements: %w", err)
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		files, err := fs.Sub(b.FS, entry.Name())
		if err != nil {
			return fmt.Errorf("read built-in elements: %w", err)
		}
		e := &Element{Name: entry.Name(), Dir: filepath.Join(b.Dir, entry.Name()), Builtin: true, files: files}
		if err := c.add(e); err != nil {
			return err
		}
	}
	return nil
}

// add enters e unless its name is taken by an entry nearer to the start of the search path.
func (c *Catalog) add(e *Element) error {
	var err error
	if e.Deps, err = readNames(e.files, "element-deps"); err != nil {
		return fmt.Errorf("read element: %s: %w", e.Dir, err)
	}
	if e.Provides, err = readNames(e.files, "element-provides"); err != nil {
		return fmt.Errorf("read element: %s: %w", e.Dir, err)
	}
	first, taken := c.elements[e.Name]
	switch {
	case !taken:
		c.elements[e.Name] = e
	case first.Dir != e.Dir:
		c.warnings = append(c.warnings, fmt.Sprintf("Element <%s> overrides <%s>", first.Dir, e.Dir))
	}
	return nil
}

// Warnings returns one text for each element that hides another, in search order.
func (c *Catalog) Warnings() []string { return slices.Clone(c.warnings) }

// Names returns the names of all elements, sorted.
func (c *Catalog) Names() []string { return slices.Sorted(maps.Keys(c.elements)) }

// Lookup returns the element of that name, or nil.
func (c *Catalog) Lookup(name string) *Element { return c.elements[name] }

// providers returns the sorted names of the elements that provide name.
func (c *Catalog) providers(name string) []string {
	var out []string
	for _, n := range c.Names() {
		if slices.Contains(c.elements[n].Provides, name) {
			out = append(out, n)
		}
	}
	return out
}

// ReadFile returns the content of a file of the element. A missing file is fs.ErrNotExist.
func (e *Element) ReadFile(name string) ([]byte, error) { return fs.ReadFile(e.files, name) }

// readNames reads one of the files element-deps and element-provides: a name a line, no comments.
func readNames(files fs.FS, name string) ([]string, error) {
	text, err := fs.ReadFile(files, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" {
			names = append(names, line)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func realPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}
