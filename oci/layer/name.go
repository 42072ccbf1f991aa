package layer

import (
	"fmt"
	"path"
	"strings"
)

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
)

// whiteout is what a whiteout file hides: path, or all that is in it.
type whiteout struct {
	path   string // "" for no whiteout
	opaque bool
}

// parseWhiteout returns what a clean name hides, and the zero whiteout for the
// name of an ordinary entry.
func parseWhiteout(name string) (whiteout, error) {
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	if strings.HasPrefix(dir, whiteoutPrefix) || strings.Contains(dir, "/"+whiteoutPrefix) {
		return whiteout{}, fmt.Errorf("%w: a whiteout is used as a directory", ErrUnsafe)
	}
	if base == opaqueName {
		return whiteout{path: dir, opaque: true}, nil
	}
	hidden, ok := strings.CutPrefix(base, whiteoutPrefix)
	if !ok {
		return whiteout{}, nil
	}
	// An empty name, the directory itself, its parent, or a whiteout.
	if hidden == "" || hidden == "." || hidden == ".." || strings.HasPrefix(hidden, whiteoutPrefix) {
		return whiteout{}, fmt.Errorf("%w: a whiteout of %q", ErrUnsafe, hidden)
	}
	return whiteout{path: path.Join(dir, hidden)}, nil
}
