package bootstrap

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"cairn/fsbuild/compress"
)

const (
	arMagic      = "!<arch>\n"
	arHeaderSize = 60
	// maxControl bounds the control archive of a package, uncompressed, in
	// bytes. The largest known, a kernel's, has 2 MB.
	maxControl = 64 << 20
	// maxControlFiles bounds how many files it has.
	maxControlFiles = 256
)

// arMember is one member of an ar archive.
type arMember struct {
	name string
	*io.SectionReader
}

// readAr lists the members of an ar archive (deb(5)): no long names, no gaps.
// Members after the data archive are of no meaning to dpkg and not listed.
func readAr(r io.ReaderAt, size int64) ([]arMember, error) {
	magic := make([]byte, len(arMagic))
	if _, err := r.ReadAt(magic, 0); err != nil || string(magic) != arMagic {
		return nil, errors.New("not a Debian package: no ar archive")
	}
	var members []arMember
	header := make([]byte, arHeaderSize)
	for at := int64(len(arMagic)); at < size; {
		if _, err := r.ReadAt(header, at); err != nil {
			return nil, fmt.Errorf("read ar header at byte %d: %w", at, err)
		}
		name, n, err := parseArHeader(header)
		if err != nil {
			return nil, fmt.Errorf("read ar header at byte %d: %w", at, err)
		}
		at += arHeaderSize
		if n > size-at {
			return nil, fmt.Errorf("member %s: truncated", name)
		}
		members = append(members, arMember{name, io.NewSectionReader(r, at, n)})
		if strings.HasPrefix(name, "data.tar") {
			break
		}
		at += n + n%2
	}
	return members, nil
}

// parseArHeader returns the name and the size in bytes of a member.
func parseArHeader(h []byte) (string, int64, error) {
	if string(h[58:60]) != "`\n" {
		return "", 0, errors.New("bad magic")
	}
	name := strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/")
	if name == "" || strings.ContainsAny(name, "/\x00\n") {
		return "", 0, fmt.Errorf("bad member name %q", name)
	}
	size, err := strconv.ParseUint(strings.TrimRight(string(h[48:58]), " "), 10, 40)
	if err != nil {
		return "", 0, fmt.Errorf("member %s: bad size", name)
	}
	return name, int64(size), nil
}

// archive is a compressed tar member.
type archive struct {
	format string // as compress.NewReader wants it
	*io.SectionReader
}

// open returns the tar stream.
func (a archive) open() (io.ReadCloser, error) {
	return compress.NewReader(a.format, io.NewSectionReader(a.SectionReader, 0, a.Size()))
}

// readDeb finds control and data archive of a Debian package (deb(5), format
// 2.x): debian-binary first, then control, then data; members whose name
// begins with an underscore may be between them.
func readDeb(r io.ReaderAt, size int64) (control, data archive, err error) {
	members, err := readAr(r, size)
	if err != nil {
		return control, data, err
	}
	if len(members) == 0 || members[0].name != "debian-binary" {
		return control, data, errors.New("not a Debian package: no debian-binary")
	}
	version := make([]byte, 2)
	if _, err = members[0].ReadAt(version, 0); err != nil || string(version) != "2." {
		return control, data, errors.New("unknown version of the package format")
	}
	var parts []arMember
	for _, m := range members[1:] {
		if m.name[0] != '_' {
			parts = append(parts, m)
		}
	}
	if len(parts) != 2 {
		return control, data, fmt.Errorf("%d archives where control and data are wanted", len(parts))
	}
	if control, err = newArchive(parts[0], "control.tar"); err != nil {
		return control, data, err
	}
	data, err = newArchive(parts[1], "data.tar")
	return control, data, err
}

// newArchive checks the name of a member and tells its compression.
func newArchive(m arMember, want string) (archive, error) {
	ext, ok := strings.CutPrefix(m.name, want)
	format := map[string]string{"": compress.None, ".gz": compress.Gzip, ".xz": compress.XZ, ".zst": compress.Zstd}[ext]
	if !ok || format == "" {
		return archive{}, fmt.Errorf("member %s where %s, uncompressed or with .gz, .xz or .zst, is wanted", m.name, want)
	}
	return archive{format, m.SectionReader}, nil
}

// controlFile is one file of a control archive.
type controlFile struct {
	name string
	mode uint32 // 0..07777
	data []byte
}

// control is the control archive of a package.
type control struct {
	name, version, arch, multiArch string

	stanza []byte        // the control file as it is
	files  []controlFile // the others, by name as archived
}

// file returns the content of a control file, nil if there is none.
func (c *control) file(name string) []byte {
	for _, f := range c.files {
		if f.name == name {
			return f.data
		}
	}
	return nil
}

// infoName is the package's name in dpkg's database.
func (c *control) infoName() string {
	if c.multiArch == "same" {
		return c.name + ":" + c.arch
	}
	return c.name
}

// readControl reads a control archive. Names become names in dpkg's
// database, so they are restricted.
func readControl(r io.Reader) (*control, error) {
	c := new(control)
	archive := tar.NewReader(io.LimitReader(r, maxControl))
	seen := make(map[string]bool)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read control archive: %w", err)
		}
		name := strings.TrimPrefix(h.Name, "./")
		if h.Typeflag == tar.TypeDir && (name == "" || name == ".") {
			continue
		}
		if h.Typeflag != tar.TypeReg || !validControlName(name) || seen[name] || len(seen) == maxControlFiles {
			return nil, fmt.Errorf("read control archive: unexpected entry %.80q", h.Name)
		}
		seen[name] = true
		data, err := io.ReadAll(archive)
		if err != nil {
			return nil, fmt.Errorf("read control archive: %s: %w", name, err)
		}
		if name == "control" {
			c.stanza = data
			continue
		}
		c.files = append(c.files, controlFile{name, uint32(h.Mode & 0o7777), data})
	}
	return c, c.parse()
}

// parse reads the control file itself.
func (c *control) parse() error {
	s := newStanzaScanner(bytes.NewReader(c.stanza))
	if !s.scan() {
		return fmt.Errorf("read control file: %w", errors.Join(s.error(), errors.New("empty")))
	}
	c.name, c.version, c.arch, c.multiArch = s.get("package"), s.get("version"), s.get("architecture"), s.get("multi-arch")
	switch {
	case s.get("status") != "" || s.get("conffiles") != "":
		return errors.New("read control file: has fields of dpkg's database")
	case !validPackageName(c.name) || !validPackageName(c.arch) || c.version == "" || strings.ContainsAny(c.version, "\n/ "):
		return fmt.Errorf("read control file: invalid package %.60q, version %.60q or architecture %.60q", c.name, c.version, c.arch)
	case s.scan():
		return errors.New("read control file: more than one paragraph")
	}
	return s.error()
}

// validPackageName accepts names of packages and architectures: Debian Policy
// 5.6.1 without its minimum of two characters.
func validPackageName(s string) bool {
	if s == "" || !isLower(s[0]) {
		return false
	}
	for i := range len(s) {
		if !isLower(s[i]) && !strings.ContainsRune("+-.", rune(s[i])) {
			return false
		}
	}
	return true
}

func isLower(c byte) bool { return isDigit(c) || 'a' <= c && c <= 'z' }

// validControlName accepts names that can be the last part of a file name in
// dpkg's info directory, and are not of its own making.
func validControlName(s string) bool {
	return validPackageName(s) && s != "list" && !strings.Contains(s, ".")
}
