// Package elements finds, resolves, orders and merges diskimage-builder elements, and computes what their
// hooks need: the phases, the environment, package lists and package names.
//
// An element is a directory of hook directories and data files. [Load] finds the elements of a search path, built-in
// ones last; [Catalog.Resolve] expands a request into a [Selection] in a stable order; [Selection.Merge] writes the
// one hooks directory that every phase runs from; [Phases] lists the phases; [Environment] makes the variables a hook
// sees. Where diskimage-builder leaves the order of elements to a hash function, this package fixes it: dependencies
// first, then by name.
//
// It starts no program and reads neither clock nor environment. Running hooks is the work of the sandbox and of
// elements/runparts; fetching packages is the work of elements/bootstrap.
//
// Behaviour follows diskimage-builder 3.42, of which each file here names the part it answers to.
package elements
