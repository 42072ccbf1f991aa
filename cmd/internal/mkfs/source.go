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
)

// source is an open tree.
type source struct {
	tree  *tree.Tree
	files []*os.File // that its contents are read from
}

func (s *source) close() {
	for _, f := range s.files {
		_ = f.Close() // only read
	}
}

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
	if r.Source == "-" {
		return s.archive(ctx, r, r.Stdin)
	}
	f, err := os.Open(r.Source)
	if err != nil {
		return refuse("the source is a directory, a tar archive or an image", "%v", err)
	}
	s.files = append(s.files, f)
	st, err := f.Stat()
	switch {
	case err != nil:
		return err
	case st.IsDir() && r.Partition != 0:
		return refuse("", "option --partition: %s is a directory", r.Source)
	case st.IsDir():
		s.tree, err = dir.ReadFrom(ctx, f, dir.Options{})
		return err
	case !st.Mode().IsRegular():
		return refuse("the source is a directory, a tar archive or an image", "%s is neither a file nor a directory", r.Source)
	}
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	head = head[:n]
	packed := compress.Detect(head) != compress.None
	switch {
	case r.Partition != 0 && (packed || isTar(head)):
		return refuse("", "option --partition: %s is an archive", r.Source)
	case packed:
		return s.archive(ctx, r, f)
	case isTar(head):
		s.tree, err = tar.Read(ctx, f, st.Size(), tar.Options{})
		return err
	}
	return s.image(ctx, r, f, st.Size())
}

// isTar knows the magic of POSIX and GNU archives.
func isTar(head []byte) bool { return len(head) == 512 && bytes.Equal(head[257:262], []byte("ustar")) }

// archive keeps a stream in a file without a name, since contents are read
// where they are.
func (s *source) archive(ctx context.Context, r *Request, stream io.Reader) error {
	in, _, err := compress.NewDetectingReader(stream)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := os.CreateTemp(r.TmpDir, ".cairn-mkfs-*")
	if err != nil {
		return err
	}
	s.files = append(s.files, f)
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	size, err := io.Copy(f, in)
	if err != nil {
		return fmt.Errorf("read %s: %w", r.Source, err)
	}
	s.tree, err = tar.Read(ctx, f, size, tar.Options{})
	return err
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
