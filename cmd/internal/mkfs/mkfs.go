// Package mkfs makes a file system or an archive of a directory, a tar archive,
// a container image or the file system in another image, without privileges. It is what the
// command "cairn mkfs" does; the formats themselves are fsbuild's.
package mkfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/fsbuild"
	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
	"cairn/fsbuild/vfat"
	"cairn/reproducibility"
)

// A Request says what to make, and of what.
type Request struct {
	Type string // one of Types
	// Source is a directory, a tar archive, an image of a disk or file system,
	// "oci:DIR[:TAG]" for an OCI image layout, or "-" for a tar archive from
	// Stdin.
	Source string
	Output string // a file; "-" is Stdout, for archives only
	Stdin  io.Reader
	Stdout io.Writer
	TmpDir string // where an archive that cannot be read twice is kept meanwhile
	// Progress, if not nil, is told the bytes written and how many there will
	// be, 0 if unknown. Calls do not overlap.
	Progress func(done, total int64)

	Arch      string            // of the image to take from an OCI image layout
	Partition int               // number of the partition of Source, 0 when it is a file system itself
	Label     string            // "" for none
	Size      Size              // file systems of changeable size only
	GrowTo    int64             // bytes to which it can be grown; 0 promises nothing
	Epoch     *time.Time        // latest time of anything; nil for the latest in the tree
	Owner     *Owner            // of everything; nil leaves owners as they are
	OwnersOf  string            // a tar archive whose entries tell owners, modes, attributes and devices of the directory Source
	Seed      string            // hexadecimal; "" for one that follows from the tree
	Set       map[string]string // settings of the type, see Settings
}

// Size is how large a file system becomes.
type Size struct {
	Bytes  int64   // exactly, 0 for minimal
	Extra  int64   // free bytes beyond the minimal size
	Factor float64 // of the minimal size, 0 for 1
}

// Owner is a user and a group by number.
type Owner struct{ UID, GID uint32 }

// A Summary says what was made. Fields that a type does not have are zero.
type Summary struct {
	Type      string `json:"type"`
	Path      string `json:"path"`
	Size      int64  `json:"size"` // in bytes
	SHA256    string `json:"sha256,omitempty"`
	Label     string `json:"label,omitempty"`
	UUID      string `json:"uuid,omitempty"`
	Manifest  string `json:"manifest,omitempty"`   // digest of the container image that it was made of
	BlockSize int64  `json:"block_size,omitempty"` // of a vfat the cluster size
	Inodes    int64  `json:"inodes,omitempty"`     // in all
	FreeBytes int64  `json:"free,omitempty"`
	MaxSize   int64  `json:"grows_to,omitempty"` // bytes to which it can be grown

	UsedInodes int64 `json:"inodes_used,omitempty"`
	Entries    int64 `json:"entries,omitempty"` // of an archive
}

// An Error is wrong input, with what to do about it.
type Error struct {
	What, Hint string
}

func (e *Error) Error() string { return e.What }

func refuse(hint, format string, args ...any) error {
	return &Error{What: fmt.Sprintf(format, args...), Hint: hint}
}

// Types are the names that Request.Type knows, sorted.
func Types() []string { return slices.Sorted(maps.Keys(kinds)) }

// Settings are what Request.Set knows for a type, sorted by name.
func Settings(kind string) []Setting { return kinds[kind].settings }

// Run makes it. The output appears under its name when it is complete.
func Run(ctx context.Context, r Request) (Summary, error) {
	k, ok := kinds[r.Type]
	if !ok {
		return Summary{}, refuse("", "type %q is not one of %s", r.Type, strings.Join(Types(), ", "))
	}
	if err := r.check(k); err != nil {
		return Summary{}, err
	}
	src, err := Open(ctx, r)
	if err != nil {
		return Summary{}, err
	}
	defer src.Close()
	j := &job{Request: &r, tree: src.Tree, seed: src.Seed, time: src.Time}
	s, err := j.make(ctx, k)
	s.Type, s.Path, s.Label, s.Manifest = r.Type, r.Output, r.Label, src.Manifest
	return s, err
}

// A Source is an open source of a request, with what follows from it.
type Source struct {
	Tree     *tree.Tree
	Time     time.Time            // latest time of anything
	Seed     reproducibility.Seed // of identifiers
	Manifest string               // digest of the container image that it is, "" if it is none

	from *source
}

// Close closes the files that contents of the tree are read from.
func (s *Source) Close() { s.from.close() }

// Open opens what a request names, as its owner, epoch and seed say.
func Open(ctx context.Context, r Request) (*Source, error) {
	src, err := openSource(ctx, &r)
	if err != nil {
		return nil, err
	}
	s := &Source{Tree: src.tree, Manifest: src.manifest, from: src}
	if err = src.own(ctx, &r); err == nil {
		err = s.identify(&r)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (r *Request) check(k kind) error {
	var known []string
	for _, s := range k.settings {
		known = append(known, s.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Set)) {
		if !slices.Contains(known, name) {
			return refuse("settings of "+r.Type+": "+strings.Join(known, ", "), "option --set: %s does not know %q", r.Type, name)
		}
	}
	switch {
	case r.Output == "-" && !k.archive:
		return refuse("name a file", "%s cannot be written to standard output: it is not written in a row", r.Type)
	case r.Label != "" && !k.label:
		return refuse("", "option --label: %s has no label", r.Type)
	case r.Size != Size{} && !k.sized:
		return refuse("", "option --size: %s is as large as its content", r.Type)
	case r.GrowTo != 0 && !k.grows:
		return refuse("use ext4", "option --grow-to: %s does not say how far it grows", r.Type)
	case r.Partition != 0 && r.Source == "-":
		return refuse("", "option --partition: standard input is a tar archive")
	case r.Partition != 0 && isLayout(r.Source):
		return refuse("", "option --partition: %s is a container image", r.Source)
	}
	return nil
}

// job is a request with what was found out.
type job struct {
	*Request
	tree *tree.Tree
	seed reproducibility.Seed
	time time.Time
}

// identify settles time and seed. Without one given, the seed is a digest of
// the tree's metadata and of what else decides the bytes, so that two images
// differ and the same image made again does not.
func (s *Source) identify(r *Request) (err error) {
	var latest tree.Time
	h := sha256.New()
	for n := range s.Tree.All() {
		if n.MTime.Sec > latest.Sec {
			latest = n.MTime
		}
		fmt.Fprintf(h, "%q %d %o %d %d %d.%d %d %d %d %q\n", n.Path, n.Type, n.Mode, n.UID, n.GID, n.MTime.Sec, n.MTime.Nsec, n.Size, n.Major, n.Minor, n.Target)
	}
	s.Time = time.Unix(max(latest.Sec, 0), 0).UTC()
	if latest.Nsec > 0 {
		s.Time = s.Time.Add(time.Second) // clamps nothing
	}
	if r.Epoch != nil {
		s.Time = *r.Epoch
	}
	if r.Seed != "" {
		if s.Seed, err = reproducibility.ParseSeed(r.Seed); err != nil {
			return refuse("64 hexadecimal digits, as sha256sum prints them", "option --seed: %v", err)
		}
		return nil
	}
	fmt.Fprintf(h, "%s %q %d\n", r.Type, r.Label, s.Time.Unix())
	s.Seed = reproducibility.NewSeed(h.Sum(nil))
	return nil
}

// make writes the output.
func (j *job) make(ctx context.Context, k kind) (Summary, error) {
	if j.Output == "-" {
		h := sha256.New()
		s, err := k.write(ctx, j, j.sink(io.MultiWriter(j.Stdout, h), nil))
		s.SHA256 = hex.EncodeToString(h.Sum(nil))
		return s, err
	}
	out, err := fsbuild.CreateOutput(j.Output)
	if err != nil {
		return Summary{}, err
	}
	defer out.Abort() //nolint:errcheck // after Commit it does nothing, and before it another error is on its way
	s, err := k.write(ctx, j, j.sink(out.File(), out.File()))
	if err != nil {
		return Summary{}, explain(err)
	}
	// What lies beyond the last byte written is a hole.
	if err := out.File().Truncate(s.Size); err != nil {
		return Summary{}, err
	}
	if s.SHA256, err = digest(out.File(), s.Size); err != nil {
		return Summary{}, err
	}
	return s, out.Commit()
}

// sink is where a type is written to: in a row, or at ascending offsets. It
// tells how far that is.
type sink struct {
	w      io.Writer
	at     io.WriterAt // nil for a stream
	report func(done, total int64)

	mu          sync.Mutex
	done, total int64
}

// sink starts with the size of all contents, which is that of an archive but
// for its headers.
func (j *job) sink(w io.Writer, at io.WriterAt) *sink {
	s := &sink{w: w, at: at, report: j.Progress}
	seen := map[uint64]bool{0: false}
	for n := range j.tree.All() {
		if !seen[n.Inode] {
			s.total += n.Size
		}
		seen[n.Inode] = n.Inode != 0
	}
	return s
}

// Write implements io.Writer.
func (s *sink) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	s.advance(s.done + int64(n))
	return n, err
}

// WriteAt implements io.WriterAt.
func (s *sink) WriteAt(b []byte, off int64) (int, error) {
	n, err := s.at.WriteAt(b, off)
	s.advance(off + int64(n))
	return n, err
}

func (s *sink) advance(to int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = max(s.done, to)
	if s.report != nil && s.total > 0 {
		s.report(min(s.done, s.total), s.total)
	} else if s.report != nil {
		s.report(s.done, 0)
	}
}

func digest(f *os.File, size int64) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, size)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// explain adds what to do.
func explain(err error) error {
	if errors.Is(err, ext4.ErrTooSmall) || errors.Is(err, vfat.ErrTooSmall) {
		return refuse("give a larger --size, or leave it out for the smallest that holds everything", "%v", err)
	}
	return err
}
