// Package builtin holds the elements that come with the program, written for it to the same contract as
// diskimage-builder's own. Each directory is one element with its README; there is no Go in them.
//
// Embedding loses permissions, so a file that starts with "#!" is executable and others are not, and there are no
// links. Package elements restores that when it merges or writes elements.
package builtin

import "embed"

//go:embed all:*
var files embed.FS

// FS returns the elements, a directory each. Files at the top level belong to this package.
func FS() embed.FS { return files }
