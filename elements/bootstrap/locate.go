package bootstrap

import (
	"fmt"
	"io"
	"net/url"
	"path"
	"strconv"
	"strings"

	"cairn/reproducibility/store"
)

// Blob is one file of an archive: what it must be, and where it is.
type Blob struct {
	Digest    store.Digest
	Size      int64  // bytes
	Canonical string // URL by the canonical prefix
	URL       string // URL at the mirror

	fallback string // another URL at the mirror, tried if URL does not exist
	mirror   string // the mirror's prefix, for errors
	name     string // for progress
	lists    *suite // set if the file lists pool files of this suite's archive
}

func (p *Package) blob() Blob {
	return Blob{
		Digest: p.Digest, Size: p.Size, Canonical: p.CanonicalURL(), URL: joinURL(p.origin.mirror, p.Filename),
		mirror: p.origin.mirror, name: p.Name,
	}
}

// Blob returns the package's .deb as a file of its archive.
func (p *Package) Blob() Blob { return p.blob() }

// blob returns the index file at path below the suite.
func (s *suite) blob(file string) (Blob, bool) {
	f, ok := s.release.Files[file]
	if !ok {
		return Blob{}, false
	}
	b := Blob{
		Digest: f.Digest, Size: f.Size, Canonical: s.url(s.archive.Canonical, file),
		URL: joinURL(s.archive.Mirror, "dists/"+s.name+"/"+file), mirror: s.archive.Mirror, name: s.name + "/" + file,
	}
	if s.release.ByHash {
		b.fallback = b.URL
		b.URL = joinURL(s.archive.Mirror, "dists/"+s.name+"/"+path.Dir(file)+"/by-hash/SHA256/"+f.Digest.Hex())
	}
	base := strings.TrimSuffix(path.Base(file), path.Ext(file))
	if base == "Packages" || base == "Sources" || path.Base(file) == "Packages" || path.Base(file) == "Sources" {
		b.lists = s
	}
	return b, true
}

// Locate finds the file with a canonical URL: an InRelease, an index file that
// one names, by its path or by its hash, or a file of the pool that an index
// in use lists. Everything else does not exist, Release and Release.gpg
// included: apt asks for InRelease first. The scheme of the URL does not
// matter. Nothing is fetched; Ensure does that.
func (x *Index) Locate(canonicalURL string) (Blob, bool) {
	want, ok := splitURL(canonicalURL)
	if !ok {
		return Blob{}, false
	}
	for _, s := range x.suites {
		prefix, _ := splitURL(s.archive.Canonical)
		rest, ok := strings.CutPrefix(want, prefix+"/")
		if !ok {
			continue
		}
		if b, ok := x.locateIn(s, rest); ok {
			return b, true
		}
	}
	return Blob{}, false
}

// splitURL returns host and unescaped path of a URL, as a key.
func splitURL(raw string) (string, bool) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return "", false
	}
	host := strings.ToLower(u.Host)
	if u.Scheme == "http" {
		host = strings.TrimSuffix(host, ":80")
	}
	if u.Scheme == "https" {
		host = strings.TrimSuffix(host, ":443")
	}
	return host + u.Path, true
}

// locateIn finds the file at rest below the archive of s.
func (x *Index) locateIn(s *suite, rest string) (Blob, bool) {
	if below, ok := strings.CutPrefix(rest, "dists/"+s.name+"/"); ok {
		return s.locateIndex(below)
	}
	if p := x.universe.file(s.archive.Canonical, rest); p != nil {
		return p.blob(), true
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	b, ok := x.extra[s.archive.Canonical+"/"+rest]
	return b, ok
}

// locateIndex finds a file below the directory of the suite.
func (s *suite) locateIndex(file string) (Blob, bool) {
	if file == "InRelease" {
		return Blob{
			Digest: s.file.Digest, Size: s.file.Size, Canonical: s.url(s.archive.Canonical, file),
			URL: s.url(s.archive.Mirror, file), mirror: s.archive.Mirror, name: s.name + "/" + file,
		}, true
	}
	if dir, hash, ok := strings.Cut(file, "/by-hash/SHA256/"); ok {
		file = s.hashes[dir+"/"+strings.ToLower(hash)]
	}
	return s.blob(file)
}

// file finds the package whose .deb is at path below the archive.
func (u *universe) file(canonical, file string) *Package {
	text, _, ok := strings.Cut(path.Base(file), "_")
	if !ok || u.names[text] == nil {
		return nil
	}
	for _, p := range u.names[text].versions {
		if p.Filename == file && p.origin.canonical == canonical {
			return p
		}
	}
	return nil
}

// readExtra reads an index that is not part of the universe, for Locate.
func (x *Index) readExtra(b Blob) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.read[b.Digest] {
		return nil
	}
	list := func(r io.Reader) error { return x.listFiles(r, b.lists.archive) }
	if err := x.readIndex(b, list); err != nil {
		return err
	}
	x.read[b.Digest] = true
	return nil
}

// listFiles enters the files that a Packages or Sources index lists.
func (x *Index) listFiles(r io.Reader, a Archive) error {
	s := newStanzaScanner(r)
	for s.scan() {
		if file := s.get("filename"); file != "" {
			if err := x.addFile(a, s.get("sha256"), s.get("size"), file); err != nil {
				return err
			}
			continue
		}
		for line := range strings.SplitSeq(s.get("checksums-sha256"), "\n") {
			if part := strings.Fields(line); len(part) == 3 {
				if err := x.addFile(a, part[0], part[1], path.Join(s.get("directory"), part[2])); err != nil {
					return err
				}
			}
		}
	}
	return s.error()
}

func (x *Index) addFile(a Archive, hash, size, file string) error {
	digest, err := store.FromHex(hash)
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil || n < 0 || !cleanRelative(file) {
		return fmt.Errorf("invalid file entry %.120q", file)
	}
	x.extra[a.Canonical+"/"+file] = Blob{
		Digest: digest, Size: n, Canonical: a.Canonical + "/" + file,
		URL: joinURL(a.Mirror, file), mirror: a.Mirror, name: path.Base(file),
	}
	return nil
}

// joinURL appends an unescaped path to a URL prefix. Plus is escaped too, as
// apt does, because some servers read it as a blank.
func joinURL(prefix, path string) string {
	escaped := (&url.URL{Path: path}).EscapedPath()
	return prefix + "/" + strings.ReplaceAll(escaped, "+", "%2B")
}
