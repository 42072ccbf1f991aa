package entry

import (
	"archive/tar"
	"fmt"
	"path"
	"strings"
)

// Names of whiteouts, section "Whiteouts" of the OCI Image Layer Filesystem
// Changeset.
const (
	whiteoutPrefix = ".wh."
	OpaqueName     = ".wh..wh..opq"
)

// Whiteout is what an entry of a layer hides: Path, or all that is in it.
type Whiteout struct {
	Path   string // "" for no whiteout
	Opaque bool
}

// ParseWhiteout returns what the entry with a clean name hides, and the zero
// Whiteout for one that hides nothing.
func ParseWhiteout(name string, typeflag byte) (Whiteout, error) {
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	if strings.HasPrefix(dir, whiteoutPrefix) || strings.Contains(dir, "/"+whiteoutPrefix) {
		return Whiteout{}, fmt.Errorf("%w: a whiteout is used as a directory", ErrUnsafe)
	}
	hidden, ok := strings.CutPrefix(base, whiteoutPrefix)
	if !ok {
		return Whiteout{}, nil
	}
	if typeflag != tar.TypeReg && typeflag != tar.TypeLink { // aufs made them hard links
		return Whiteout{}, fmt.Errorf("%w: a whiteout of type %q", ErrUnsafe, typeflag)
	}
	if base == OpaqueName {
		return Whiteout{Path: dir, Opaque: true}, nil
	}
	// An empty name, the directory itself, its parent, or a whiteout.
	if hidden == "" || hidden == "." || hidden == ".." || strings.HasPrefix(hidden, whiteoutPrefix) {
		return Whiteout{}, fmt.Errorf("%w: a whiteout of %q", ErrUnsafe, hidden)
	}
	return Whiteout{Path: path.Join(dir, hidden)}, nil
}
