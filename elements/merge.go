package elements

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

var errNotDirectory = syscall.ENOTDIR

// MergeOptions are the parameters of [Selection.Merge].
type MergeOptions struct {
	// Time becomes the modification time of all that is written, because the times in an element's directory are
	// those of its checkout. The zero value is 1970-01-01.
	Time time.Time
}

// Merge writes the hooks directory dst, which must not exist or be empty: the first-level directories of all elements
// joined, and their top-level files. Files of an element replace those of elements before it, but for a file directly
// in a first-level directory, which is a [*DuplicateError].
//
// Permissions are those of the element, less write permission for group and others, so that the umask of a checkout
// does not reach the image.
//
// diskimage_builder/lib/common-functions:generate_hooks.
func (s *Selection) Merge(dst string, o MergeOptions) error {
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return fmt.Errorf("merge elements: %w", err)
	}
	m := merger{dst: dst, time: o.Time, owner: map[string]string{}}
	if o.Time.IsZero() {
		m.time = time.Unix(0, 0)
	}
	for _, e := range s.Elements {
		if err := m.element(e); err != nil {
			return err
		}
	}
	return m.stampDirectories()
}

// WriteBuiltin writes the built-in elements below b.Dir, which must not exist or be empty. Elements that the catalog
// takes from elsewhere are written too.
func WriteBuiltin(b Builtin, o MergeOptions) error {
	c, err := Load(nil, b)
	if err != nil {
		return err
	}
	for _, name := range c.Names() {
		e := c.elements[name]
		if err := os.MkdirAll(e.Dir, 0o755); err != nil {
			return fmt.Errorf("write element: %s: %w", name, err)
		}
		m := merger{dst: e.Dir, time: o.Time, owner: map[string]string{}}
		if o.Time.IsZero() {
			m.time = time.Unix(0, 0)
		}
		if err := m.all(e); err != nil {
			return fmt.Errorf("write element: %s: %w", name, err)
		}
		if err := m.stampDirectories(); err != nil {
			return err
		}
	}
	return nil
}

// A merger copies files of elements into one directory.
type merger struct {
	dst   string
	time  time.Time
	owner map[string]string // path below dst -> element that wrote it
}

// element merges one element.
func (m *merger) element(e *Element) error {
	entries, err := fs.ReadDir(e.files, ".")
	if err != nil {
		return fmt.Errorf("merge element: %s: %w", e.Name, err)
	}
	for _, entry := range entries {
		info, err := fs.Stat(e.files, entry.Name()) // links are followed
		switch {
		case err != nil && entry.Type()&fs.ModeSymlink != 0:
			continue // a dangling link
		case err != nil:
		case info.IsDir() && entry.Name() != "tests" && entry.Name() != "__pycache__":
			err = m.directory(e, entry.Name())
		case info.Mode().IsRegular() && !strings.HasSuffix(entry.Name(), ".pyc"):
			err = m.copy(e, entry.Name())
		}
		if err != nil {
			return wrapMerge(e, err)
		}
	}
	return nil
}

func wrapMerge(e *Element, err error) error {
	var duplicate *DuplicateError
	if errors.As(err, &duplicate) {
		return err
	}
	return fmt.Errorf("merge element: %s: %w", e.Name, err)
}

// directory merges a first-level directory.
func (m *merger) directory(e *Element, dir string) error {
	if err := os.MkdirAll(filepath.Join(m.dst, dir), 0o755); err != nil {
		return err
	}
	entries, err := fs.ReadDir(e.files, dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := path.Join(dir, entry.Name())
		if strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		if st, err := os.Stat(filepath.Join(m.dst, name)); err == nil && st.Mode().IsRegular() {
			return &DuplicateError{Path: name, First: m.owner[name], Second: e.Name}
		}
		if err := m.copy(e, name); err != nil {
			return err
		}
	}
	return nil
}

// all copies an element as it is.
func (m *merger) all(e *Element) error {
	entries, err := fs.ReadDir(e.files, ".")
	for _, entry := range entries {
		err = errors.Join(err, m.copy(e, entry.Name()))
	}
	return err
}

// copy copies name and everything below it. Links stay links.
func (m *merger) copy(e *Element, name string) error {
	return e.walk(name, func(f file) error {
		dst := filepath.Join(m.dst, f.path)
		m.owner[f.path] = e.Name
		switch {
		case f.mode.IsDir():
			return m.mkdir(dst, f.mode)
		case f.mode&fs.ModeSymlink != 0:
			return m.symlink(dst, f.target)
		}
		return m.write(e, f, dst)
	})
}

func (m *merger) mkdir(dst string, mode fs.FileMode) error {
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return err
	}
	return os.Chmod(dst, mode|0o700)
}

func (m *merger) symlink(dst, target string) error {
	if err := m.clear(dst); err != nil {
		return err
	}
	return os.Symlink(target, dst)
}

func (m *merger) write(e *Element, f file, dst string) (err error) {
	if err = m.clear(dst); err != nil {
		return err
	}
	in, err := e.files.Open(f.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	err = errors.Join(err, out.Chmod(f.mode), out.Close())
	if err == nil {
		err = os.Chtimes(dst, m.time, m.time)
	}
	return err
}

// clear removes a file or link that the next one replaces. A directory is not replaced.
func (m *merger) clear(dst string) error {
	st, err := os.Lstat(dst)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && st.IsDir() {
		return &fs.PathError{Op: "replace directory", Path: dst, Err: syscall.EISDIR}
	}
	return errors.Join(err, os.Remove(dst))
}

// stampDirectories sets the times of directories, which each file written into them has moved.
func (m *merger) stampDirectories() error {
	err := filepath.WalkDir(m.dst, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return os.Chtimes(p, m.time, m.time)
	})
	if err != nil {
		return fmt.Errorf("merge elements: %w", err)
	}
	return nil
}

// A file is one file, directory or link of an element as it is merged.
type file struct {
	path   string
	mode   fs.FileMode // type, permission and set-id bits; write permission for the owner only
	target string      // of a link
}

// walk calls fn for name and all below it in lexical order. Links are not followed, but in the directory of name.
func (e *Element) walk(name string, fn func(file) error) error {
	info, err := fs.Lstat(e.files, name)
	if err != nil {
		return err
	}
	return e.visit(name, fs.FileInfoToDirEntry(info), fn)
}

func (e *Element) visit(name string, d fs.DirEntry, fn func(file) error) error {
	f, err := e.file(name, d)
	if err == nil {
		err = fn(f)
	}
	if err != nil || !d.IsDir() {
		return err
	}
	entries, err := fs.ReadDir(e.files, name)
	for i := 0; err == nil && i < len(entries); i++ {
		err = e.visit(path.Join(name, entries[i].Name()), entries[i], fn)
	}
	return err
}

func (e *Element) file(p string, d fs.DirEntry) (file, error) {
	info, err := d.Info()
	if err != nil {
		return file{}, err
	}
	f := file{path: p, mode: info.Mode()}
	switch {
	case f.mode&fs.ModeSymlink != 0:
		f.target, err = fs.ReadLink(e.files, p)
		return f, err
	case f.mode.IsDir():
		if e.Builtin {
			f.mode |= 0o755
		}
	case !f.mode.IsRegular():
		return file{}, &fs.PathError{Op: "copy", Path: p, Err: errors.New("not a file, directory or link")}
	case e.Builtin:
		f.mode, err = embeddedMode(e.files, p)
	}
	if f.mode&fs.ModeSticky == 0 {
		f.mode &^= 0o022
	}
	return f, err
}

// embeddedMode replaces the mode that embedding loses.
func embeddedMode(files fs.FS, p string) (fs.FileMode, error) {
	in, err := files.Open(p)
	if err != nil {
		return 0, err
	}
	head := make([]byte, 2)
	n, err := io.ReadFull(in, head)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	if err = errors.Join(err, in.Close()); err != nil {
		return 0, err
	}
	if bytes.Equal(head[:n], []byte("#!")) {
		return 0o755, nil
	}
	return 0o644, nil
}

// Digest is a digest of all that the element is made of: names, types, permissions, links and contents of its files,
// but neither where it lies nor its times. It is "sha256:" and 64 hexadecimal digits.
func (e *Element) Digest() (string, error) {
	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "element %q\n", e.Name)
	err := e.walk(".", func(f file) error {
		if strings.HasSuffix(f.path, ".pyc") || path.Base(f.path) == "__pycache__" {
			return nil
		}
		_, _ = fmt.Fprintf(sum, "%s %q %q\n", f.mode, f.path, f.target)
		if !f.mode.IsRegular() {
			return nil
		}
		in, err := e.files.Open(f.path)
		if err != nil {
			return err
		}
		content := sha256.New()
		_, err = io.Copy(content, in)
		_, _ = fmt.Fprintf(sum, "%x\n", content.Sum(nil))
		return errors.Join(err, in.Close())
	})
	if err != nil {
		return "", fmt.Errorf("digest element: %s: %w", e.Name, err)
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// Digest is a digest of the digests of all elements in their order.
func (s *Selection) Digest() (string, error) {
	sum := sha256.New()
	for _, e := range s.Elements {
		d, err := e.Digest()
		if err != nil {
			return "", err
		}
		_, _ = fmt.Fprintf(sum, "%s %s\n", d, e.Name)
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}
