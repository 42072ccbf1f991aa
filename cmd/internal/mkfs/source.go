package mkfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"cairn/fsbuild"
	"cairn/fsbuild/compress"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/tar"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
	"cairn/fsbuild/vfat"
	"cairn/oci"
)

// source is an open tree.
type source struct {
	tree        *tree.Tree
	isDirectory bool
	manifest    string      // digest of a container image
	files       []io.Closer // that its contents are read from
}

func (s *source) close() {
	for _, f := range s.files {
		_ = f.Close() // only read
	}
}

// isLayout tells references to OCI image layouts from paths.
func isLayout(name string) bool { return strings.HasPrefix(name, "oci:") }

// openSource reads the tree of what the request names.
func openSource(ctx context.Context, r *Request) (*source, error) {
	s := &source{}
	err := s.open(ctx, r)
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *source) open(ctx context.Context, r *Request) (err error) {
	switch {
	case r.Source == "-":
		s.tree, err = s.archive(ctx, r, r.Stdin, "standard input")
		return err
	case isLayout(r.Source):
		return s.layout(ctx, r)
	}
	f, err := os.Open(r.Source)
	if err != nil {
		return refuse(sources, "%v", err)
	}
	s.files = append(s.files, f)
	st, err := f.Stat()
	switch {
	case err != nil:
		return err
	case st.IsDir() && r.Partition != 0:
		return refuse("", "option --partition: %s is a directory", r.Source)
	case st.IsDir():
		s.isDirectory = true
		s.tree, err = dir.ReadFrom(ctx, f, dir.Options{})
		return err
	case !st.Mode().IsRegular():
		return refuse(sources, "%s is neither a file nor a directory", r.Source)
	}
	head, err := firstBytes(f)
	switch {
	case err != nil:
		return err
	case !isArchive(head):
		return s.image(ctx, r, f, st.Size())
	case r.Partition != 0:
		return refuse("", "option --partition: %s is an archive", r.Source)
	}
	s.tree, err = s.file(ctx, r, f, head)
	return err
}

const sources = "the source is a directory, a tar archive, an image, or oci:DIRECTORY for an OCI image layout"

// firstBytes returns what tells the kinds of files, less where a file is short.
func firstBytes(f *os.File) ([]byte, error) {
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return head[:n], err
}

// isArchive reports whether a file that begins so is taken for a tar archive.
func isArchive(head []byte) bool { return isTar(head) || isPacked(head) }

func isPacked(head []byte) bool { return compress.Detect(head) != compress.None }

// layout takes the tree of a container image. Its owners are those of the
// layers' archives.
func (s *source) layout(ctx context.Context, r *Request) error {
	image, err := oci.OpenLayout(ctx, r.Source, r.Arch, func() (*os.File, error) { return scratch(r.TmpDir) })
	if err != nil {
		return err
	}
	s.files = append(s.files, image)
	s.tree, s.manifest = image.Tree, string(image.Image.ManifestDigest)
	return nil
}

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
	for a := range archive.All() {
		parent := s.tree.Lookup(a.Parent())
		if (a.Type == tree.CharDevice || a.Type == tree.BlockDevice) && parent != nil && parent.Type == tree.Directory && s.tree.Lookup(a.Path) == nil {
			a.Inode = 0 // means another file there
			if err := s.tree.Add(*a); err != nil {
				return err
			}
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

// file reads an archive where it is, if it is not compressed.
func (s *source) file(ctx context.Context, r *Request, f *os.File, head []byte) (*tree.Tree, error) {
	if isPacked(head) {
		return s.archive(ctx, r, f, f.Name())
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	t, err := tar.Read(ctx, f, st.Size(), tar.Options{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return t, nil
}

// isTar knows the magic of POSIX and GNU archives.
func isTar(head []byte) bool { return len(head) == 512 && bytes.Equal(head[257:262], []byte("ustar")) }

// archive keeps a stream in a file without a name, since contents are read
// where they are.
func (s *source) archive(ctx context.Context, r *Request, stream io.Reader, name string) (*tree.Tree, error) {
	in, _, err := compress.NewDetectingReader(stream)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer in.Close()
	f, err := scratch(r.TmpDir)
	if err != nil {
		return nil, err
	}
	s.files = append(s.files, f)
	size, err := io.Copy(f, in)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	t, err := tar.Read(ctx, f, size, tar.Options{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return t, nil
}

// scratch makes a file without a name, of which nothing is left whatever
// happens.
func scratch(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".cairn-mkfs-*")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// image reads the file system in an image of whatever format.
func (s *source) image(ctx context.Context, r *Request, f *os.File, size int64) error {
	disk, _, err := fsbuild.OpenDisk(f, size, "")
	if err != nil {
		return fmt.Errorf("%s: %w", r.Source, err)
	}
	if r.Partition == 0 && hasFileSystem(disk) {
		return s.fileSystem(ctx, r, disk, disk.Size())
	}
	table, err := partition.Read(disk, disk.Size())
	if errors.Is(err, partition.ErrNoTable) && r.Partition == 0 {
		return s.fileSystem(ctx, r, disk, disk.Size()) // says what is wrong
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.Source, err)
	}
	p, err := choose(r, table)
	if err != nil {
		return err
	}
	sector := int64(table.SectorSize)
	size = int64(p.Sectors) * sector
	return s.fileSystem(ctx, r, io.NewSectionReader(disk, int64(p.Start)*sector, size), size)
}

// choose returns the partition that was asked for, or the only one.
func choose(r *Request, t partition.Table) (partition.Partition, error) {
	var numbers []string
	for i, p := range t.Partitions {
		if p.Sectors == 0 {
			continue
		}
		if r.Partition == i+1 {
			return p, nil
		}
		numbers = append(numbers, strconv.Itoa(i+1))
	}
	if r.Partition == 0 && len(numbers) == 1 {
		n, _ := strconv.Atoi(numbers[0])
		return t.Partitions[n-1], nil
	}
	there := "partitions: " + strings.Join(numbers, ", ")
	if r.Partition == 0 {
		return partition.Partition{}, refuse(there, "%s has several partitions: name one with --partition", r.Source)
	}
	return partition.Partition{}, refuse(there, "option --partition: %s has no partition %d", r.Source, r.Partition)
}

// hasFileSystem tells a boot sector with a file system's parameters, which
// looks like a partition table, from a partition table.
func hasFileSystem(r io.ReaderAt) bool {
	var magic [2]byte
	if _, err := r.ReadAt(magic[:], 1024+0x38); err == nil && magic == [2]byte{0x53, 0xef} {
		return true
	}
	var head [3]byte
	_, err := r.ReadAt(head[:], 0x36)
	if err == nil && string(head[:]) == "FAT" {
		return true
	}
	_, err = r.ReadAt(head[:], 0x52)
	return err == nil && string(head[:]) == "FAT"
}

func (s *source) fileSystem(ctx context.Context, r *Request, at io.ReaderAt, size int64) error {
	fs, err := ext4.Open(at, size)
	if err == nil {
		s.tree, err = fs.Tree(ctx)
		return err
	}
	if !errors.Is(err, ext4.ErrFormat) {
		return fmt.Errorf("%s: %w", r.Source, err)
	}
	v, err := vfat.Open(at, size)
	if err != nil {
		return refuse("ext2, ext3, ext4 and FAT file systems and tar archives can be read", "%s: no file system that is known: %v", r.Source, err)
	}
	s.tree = v.Tree
	return nil
}
