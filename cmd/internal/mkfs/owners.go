package mkfs

import (
	"context"
	"fmt"
	"os"

	"cairn/fsbuild/tree"
)

// own sets the owners that were asked for.
func (s *source) own(ctx context.Context, r *Request) error {
	if r.OwnersOf != "" {
		return s.ownAs(ctx, r)
	}
	for n := range s.tree.All() {
		if r.Owner != nil {
			n.UID, n.GID = r.Owner.UID, r.Owner.GID
		}
	}
	return nil
}

// ownAs gives a directory what unpacking an archive into it as an ordinary user
// has lost. What the archive does not have, or not with the same type, was put
// there since: it is Request.Owner's, or else root's.
func (s *source) ownAs(ctx context.Context, r *Request) error {
	if !s.isDirectory {
		return refuse("leave it out: the source has owners of its own", "option --owner-from-tar: %s is not a directory", r.Source)
	}
	archive, err := s.owners(ctx, r)
	if err != nil {
		return fmt.Errorf("option --owner-from-tar: %w", err)
	}
	var rest Owner
	if r.Owner != nil {
		rest = *r.Owner
	}
	first := map[uint64]*tree.Node{} // names of one file agree
	for n := range s.tree.All() {
		a := archive.Lookup(n.Path)
		if f, ok := first[n.Inode]; ok {
			a = f
		}
		if a != nil && a.Type == n.Type {
			n.UID, n.GID, n.Mode, n.Xattrs = a.UID, a.GID, a.Mode, a.Xattrs
		} else {
			n.UID, n.GID = rest.UID, rest.GID
		}
		if n.Inode != 0 && first[n.Inode] == nil {
			first[n.Inode] = n
		}
	}
	return s.addDevices(archive)
}

// addDevices adds the device nodes of an archive for which there is a directory.
func (s *source) addDevices(archive *tree.Tree) error {
	for a := range archive.All() {
		if a.Type != tree.CharDevice && a.Type != tree.BlockDevice {
			continue
		}
		parent := s.tree.Lookup(a.Parent())
		if parent == nil || parent.Type != tree.Directory || s.tree.Lookup(a.Path) != nil {
			continue
		}
		a.Inode = 0 // the number is another file's here
		if err := s.tree.Add(*a); err != nil {
			return err
		}
	}
	return nil
}

// owners reads the archive that Request.OwnersOf names.
func (s *source) owners(ctx context.Context, r *Request) (*tree.Tree, error) {
	if r.OwnersOf == "-" {
		return s.archive(ctx, r, r.Stdin, "standard input")
	}
	f, err := os.Open(r.OwnersOf)
	if err != nil {
		return nil, err
	}
	s.files = append(s.files, f)
	head, err := firstBytes(f)
	if err != nil {
		return nil, err
	}
	if !isArchive(head) {
		return nil, refuse("", "%s is not a tar archive", r.OwnersOf)
	}
	return s.file(ctx, r, f, head)
}
