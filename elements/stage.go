package elements

import (
	"fmt"
	"os"
	"strings"
)

// Write writes all files of the element to the directory dst, which must not
// exist or be empty: a copy that hooks can read wherever and whoseever the
// original is. Permissions and times are as [Selection.Merge] has them.
func (e *Element) Write(dst string, o MergeOptions) error {
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return fmt.Errorf("write element: %s: %w", e.Name, err)
	}
	m := merger{dst: dst, time: o.Time, owner: map[string]string{}}
	if err := m.all(e); err != nil {
		return fmt.Errorf("write element: %s: %w", e.Name, err)
	}
	return m.stampDirectories()
}

// Definitions are the variables and the function that describe the selection,
// for a shell to evaluate.
//
// diskimage_builder/element_dependencies.py:main, with --env.
func (s *Selection) Definitions() string {
	return "export IMAGE_ELEMENT=" + quoteShell(strings.Join(s.Names(), " ")) + "\n" +
		"export IMAGE_ELEMENT_YAML=" + quoteShell(s.yaml()) + "\n" +
		"function get_image_element_array {\n    echo " + quoteShell(s.array()) + "\n}\n" +
		"export -f get_image_element_array\n"
}
