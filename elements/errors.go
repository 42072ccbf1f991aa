package elements

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Hint returns the advice that err or one of the errors it wraps carries, or "" when there is none.
func Hint(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// A SearchPathError says that an entry of the search path is not a directory.
type SearchPathError struct {
	Path string // the entry as given
	Err  error  // why it cannot be read; nil when it is something else than a directory
}

// Error ends in a blank after the quoted text, as diskimage-builder's message does, unless a cause follows.
func (e *SearchPathError) Error() string {
	text := fmt.Sprintf("ELEMENTS_PATH entry '%s' is not a directory ", e.Path)
	if e.Err == nil {
		return text
	}
	return strings.TrimSuffix(text, " ") + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *SearchPathError) Unwrap() error { return e.Err }

// Hint says what the caller can do.
func (e *SearchPathError) Hint() string {
	return "name existing directories in ELEMENTS_PATH, separated by colons"
}

// A NotFoundError says that a requested element, or a dependency of one, is in no search path.
type NotFoundError struct {
	Name     string
	WantedBy string   // the element whose element-deps names it; "" when the request does
	Near     []string // known names that look alike, nearest first
}

// Error is the text that diskimage-builder prints, and the element that asked, if any.
func (e *NotFoundError) Error() string {
	text := fmt.Sprintf("Element '%s' not found", e.Name)
	if e.WantedBy != "" {
		text += fmt.Sprintf(" (needed by '%s')", e.WantedBy)
	}
	return text
}

// Hint names elements that look alike, or says where elements are searched.
func (e *NotFoundError) Hint() string {
	switch {
	case strings.HasPrefix(e.Name, "#"):
		return fmt.Sprintf("element-deps of '%s' has no comments: remove the line", e.WantedBy)
	case len(e.Near) > 0:
		return "did you mean " + strings.Join(e.Near, " or ") + "?"
	}
	return "add the directory that holds it to ELEMENTS_PATH"
}

// A ProvidedError says that an element provides what another selected element provides already.
type ProvidedError struct {
	Name string // what is provided, for example "operating-system"
	By   string // who provided it first
	Also string // who provides it too
}

// Error is the text that diskimage-builder prints.
func (e *ProvidedError) Error() string {
	return fmt.Sprintf("%s: already provided by ['%s']", e.Name, e.By)
}

// Hint says which of the two to leave out.
func (e *ProvidedError) Hint() string {
	if e.By == e.Also {
		return fmt.Sprintf("name '%s' once", e.By)
	}
	return fmt.Sprintf("use either '%s' or '%s'", e.By, e.Also)
}

// A ConflictError says that the request names something that a selected element provides in its place.
type ConflictError struct {
	Conflicts []ProvidedError // sorted by Name
}

// Error holds the lines that diskimage-builder logs.
func (e *ConflictError) Error() string {
	lines := []string{"The following elements are already provided by another element"}
	for _, c := range e.Conflicts {
		lines = append(lines, fmt.Sprintf("%s : already provided by ['%s']", c.Name, c.By))
	}
	return strings.Join(lines, "\n")
}

// Hint names what to remove from the request.
func (e *ConflictError) Hint() string {
	var names []string
	for _, c := range e.Conflicts {
		names = append(names, c.Name)
	}
	return "leave out " + strings.Join(names, " and ")
}

// A NoSystemError says that no selected element provides operating-system.
type NoSystemError struct {
	Known []string // known elements that provide it, sorted
}

// Error is the text that diskimage-builder prints.
func (e *NoSystemError) Error() string { return "Please include an operating system element" }

// Hint names elements that would do.
func (e *NoSystemError) Hint() string {
	if len(e.Known) == 0 {
		return ""
	}
	return "one of: " + strings.Join(e.Known, ", ")
}

// A DuplicateError says that two elements hold the same hook, which diskimage-builder refuses because one of them
// would be lost.
type DuplicateError struct {
	Path          string // below the hooks directory, for example "install.d/50-same"
	First, Second string // the two elements
}

// Error is the text that diskimage-builder means to print, and the element that it does not name.
func (e *DuplicateError) Error() string {
	return fmt.Sprintf("There is a duplicated hook in your elements: %s/%s (also in %s)", e.Second, e.Path, e.First)
}

// Hint says what to do about it.
func (e *DuplicateError) Hint() string {
	return fmt.Sprintf("rename the file in '%s' or '%s', or leave one of them out", e.First, e.Second)
}

// nearest returns up to three of names that resemble name, nearest first.
func nearest(name string, names []string) []string {
	limit := max(2, len(name)/3)
	distance := map[string]int{}
	var near []string
	for _, n := range names {
		d := editDistance(name, n)
		if len(name) > 3 && strings.Contains(n, name) {
			d = min(d, limit)
		}
		if d <= limit {
			distance[n] = d
			near = append(near, n)
		}
	}
	slices.SortFunc(near, func(a, b string) int {
		if d := distance[a] - distance[b]; d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return near[:min(3, len(near))]
}

// editDistance is the Levenshtein distance of a and b in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
