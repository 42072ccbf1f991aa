package layer

import (
	"maps"
	"slices"
	"strings"

	"cairn/fsbuild/tree"
)

// Ledger lists the device nodes of an unpacked tree, which are not on disk
// since user namespaces refuse mknod: type, mode, owner, time and numbers as
// the image has them. Their paths go through no symlinks; their directories
// are on disk. The order is canonical.
type Ledger []tree.Node

// ledger is a Ledger by path.
type ledger map[string]tree.Node

func newLedger(nodes Ledger) ledger {
	l := make(ledger, len(nodes))
	for _, n := range nodes {
		l[n.Path] = n
	}
	return l
}

func (l ledger) has(path string) bool {
	_, ok := l[path]
	return ok
}

func (l ledger) drop(path string) { delete(l, path) }

// dropBelow drops path and all that is below it.
func (l ledger) dropBelow(path string) {
	l.dropIf(func(p string) bool { return within(p, path) })
}

func (l ledger) dropIf(gone func(path string) bool) {
	maps.DeleteFunc(l, func(p string, _ tree.Node) bool { return gone(p) })
}

// within reports that path is dir or below it.
func within(path, dir string) bool {
	if dir == "." {
		return true
	}
	rest, ok := strings.CutPrefix(path, dir)
	return ok && (rest == "" || rest[0] == '/')
}

// nodes returns the nodes in canonical order, nil for none.
func (l ledger) nodes() Ledger {
	if len(l) == 0 {
		return nil
	}
	return slices.SortedFunc(maps.Values(l), func(a, b tree.Node) int {
		return slices.Compare(strings.Split(a.Path, "/"), strings.Split(b.Path, "/"))
	})
}
