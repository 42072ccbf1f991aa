package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"golang.org/x/sync/errgroup"

	"cairn/fsbuild/compress"
	"cairn/reproducibility/store"
)

// Index is a set of archives in one state: verified Release files and the
// packages that they list. Its methods may be used concurrently.
type Index struct {
	config   Config
	fetcher  *fetcher
	suites   []*suite
	universe *universe

	mu    sync.Mutex
	extra map[string]Blob // pool files of indexes read on demand, by canonical URL
	read  map[store.Digest]bool
}

// suite is one suite in use.
type suite struct {
	archive Archive
	name    string
	file    File // its InRelease
	release *Release
	hashes  map[string]string // path by "directory/SHA256 digits", for by-hash
}

// url returns where a path below the suite is, by one of the prefixes.
func (s *suite) url(prefix, path string) string { return prefix + "/dists/" + s.name + "/" + path }

// Open fetches and verifies the current state of all suites. Errors are of the
// types SignatureError, ExpiredError, NotYetValidError, SuiteError, HashError,
// FetchError, MissingError.
func Open(ctx context.Context, config Config) (*Index, error) {
	config, err := config.complete()
	if err != nil {
		return nil, err
	}
	keyring, err := readKeyring(config.Keyring)
	if err != nil {
		return nil, err
	}
	x := newIndex(config)
	for _, a := range config.Archives {
		for _, name := range a.Suites {
			x.suites = append(x.suites, &suite{archive: a, name: name})
		}
	}
	err = x.each(ctx, func(ctx context.Context, s *suite) error { return x.open(ctx, s, keyring) })
	if err != nil {
		return nil, err
	}
	return x, x.readPackages(ctx)
}

// open fetches and verifies the InRelease of s.
func (x *Index) open(ctx context.Context, s *suite, keyring openpgp.EntityList) error {
	location := s.url(s.archive.Mirror, "InRelease")
	data, err := x.fetcher.fetchText(ctx, location, s.archive.Mirror, maxRelease)
	if err != nil {
		return err
	}
	location = withoutUser(location)
	text, err := verifyClearsigned(location, data, keyring, x.config.Now)
	if err != nil {
		return err
	}
	if err = s.use(location, data, text); err != nil {
		return err
	}
	if err = s.release.CheckDates(location, x.config.Now, x.config.AllowExpired); err != nil {
		return err
	}
	_, err = x.config.Store.PutBytes(ctx, data)
	return err
}

// OpenPinned opens exactly the given state. The digests are the authority: a
// signature is verified, at the time when it was made, if config.Keyring is not
// empty, and neither Valid-Until nor the later expiry of a key matters. Files come from the store, or else
// from the mirrors if config.Client is not nil and they still have them.
// config.Archives may be empty or say which mirror serves a canonical prefix.
func OpenPinned(ctx context.Context, config Config, pins []PinnedRelease) (*Index, error) {
	if len(pins) == 0 {
		return nil, errors.New("open archives: no pinned release")
	}
	mirrors := make(map[string]string)
	for _, a := range config.Archives {
		mirrors[strings.TrimRight(a.Canonical, "/")] = a.Mirror
	}
	config.Archives = nil
	for _, p := range pins {
		canonical := strings.TrimRight(p.Canonical, "/")
		config.Archives = append(config.Archives, Archive{
			Canonical: canonical, Mirror: mirrors[canonical], Suites: []string{p.Suite}, Components: p.Components,
		})
	}
	config, err := config.complete()
	if err != nil {
		return nil, err
	}
	x := newIndex(config)
	for i, a := range config.Archives {
		x.suites = append(x.suites, &suite{archive: a, name: pins[i].Suite, file: File{pins[i].InRelease, pins[i].Size}})
	}
	if err := x.each(ctx, x.openPinned); err != nil {
		return nil, err
	}
	return x, x.readPackages(ctx)
}

func newIndex(config Config) *Index {
	return &Index{
		config:   config,
		fetcher:  newFetcher(config),
		universe: newUniverse(config.Arch),
		extra:    make(map[string]Blob),
		read:     make(map[store.Digest]bool),
	}
}

// each runs f for all suites at once.
func (x *Index) each(ctx context.Context, f func(context.Context, *suite) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(x.config.Transfer.Parallel)
	for _, s := range x.suites {
		group.Go(func() error { return f(ctx, s) })
	}
	return group.Wait()
}

// openPinned reads the pinned InRelease of s.
func (x *Index) openPinned(ctx context.Context, s *suite) error {
	url := s.url(s.archive.Canonical, "InRelease")
	blob := Blob{
		Digest: s.file.Digest, Size: s.file.Size, Canonical: url,
		URL: s.url(s.archive.Mirror, "InRelease"), mirror: s.archive.Mirror, name: s.name + "/InRelease",
	}
	if err := x.fetcher.fetchAll(ctx, []Blob{blob}); err != nil {
		return err
	}
	data, err := x.config.Store.ReadAll(s.file.Digest, maxRelease)
	if err != nil {
		return fmt.Errorf("read %s: %w", url, err)
	}
	text, err := signedText(url, data, x.config.Keyring)
	if err != nil {
		return err
	}
	return s.use(url, data, text)
}

// signedText returns the signed text of a pinned InRelease, verified if there
// is a keyring.
func signedText(url string, data, keys []byte) ([]byte, error) {
	if len(keys) == 0 {
		return unverifiedText(url, data)
	}
	keyring, err := readKeyring(keys)
	if err != nil {
		return nil, err
	}
	return verifyClearsigned(url, data, keyring, time.Time{})
}

// use takes the text of an InRelease file as that of s.
func (s *suite) use(url string, data, text []byte) error {
	release, err := ParseRelease(text)
	if err != nil {
		return fmt.Errorf("read %s: %w", url, err)
	}
	if s.name != release.Suite && s.name != release.Codename {
		return &SuiteError{URL: url, Want: s.name, Suite: release.Suite, Codename: release.Codename}
	}
	s.release = release
	s.file = File{store.Of(data), int64(len(data))}
	s.hashes = make(map[string]string, len(release.Files))
	for path, f := range release.Files {
		dir := path[:strings.LastIndexByte(path, '/')+1]
		if old, ok := s.hashes[dir+f.Digest.Hex()]; !ok || path < old {
			s.hashes[dir+f.Digest.Hex()] = path
		}
	}
	return nil
}

// packagesFormats are the forms of an index in order of preference.
var packagesFormats = [...]string{".xz", ".gz", ".zst", ""}

// packagesFiles lists the Packages indexes of s, each in the best form that
// the Release names.
func (s *suite) packagesFiles(arch string) ([]string, error) {
	var list []string
	for _, component := range s.archive.Components {
		arches := []string{arch}
		if s.release.SeparateArchitectureAll {
			arches = append(arches, "all")
		}
		for i, a := range arches {
			base := component + "/binary-" + a + "/Packages"
			ext := slices.IndexFunc(packagesFormats[:], func(ext string) bool {
				_, ok := s.release.Files[base+ext]
				return ok
			})
			switch {
			case ext >= 0:
				list = append(list, base+packagesFormats[ext])
			case i == 0:
				return nil, &ComponentError{
					URL: s.url(s.archive.Canonical, "InRelease"), Component: component, Arch: arch,
					Components: s.release.Components, Architectures: s.release.Architectures,
				}
			}
		}
	}
	return list, nil
}

// readPackages fetches the Packages indexes of all suites and reads them in
// order, because the order decides between equal packages.
func (x *Index) readPackages(ctx context.Context) error {
	var blobs []Blob
	var origins []*origin
	for _, s := range x.suites {
		files, err := s.packagesFiles(x.config.Arch)
		if err != nil {
			return err
		}
		for _, path := range files {
			blob, _ := s.blob(path)
			blobs = append(blobs, blob)
			origins = append(origins, &origin{s.archive.Canonical, s.archive.Mirror, s.release.priority()})
		}
	}
	if err := x.fetcher.fetchAll(ctx, blobs); err != nil {
		return err
	}
	for i, b := range blobs {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := x.readIndex(b, func(r io.Reader) error { return x.universe.read(r, origins[i]) })
		if err != nil {
			return err
		}
		x.read[b.Digest] = true
	}
	return nil
}

// readIndex opens an index in the store, verified and uncompressed.
func (x *Index) readIndex(b Blob, parse func(io.Reader) error) error {
	f, _, err := x.config.Store.OpenVerified(b.Digest)
	if err != nil {
		return fmt.Errorf("read %s: %w", b.Canonical, err)
	}
	defer f.Close()
	r, _, err := compress.NewDetectingReader(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", b.Canonical, err)
	}
	defer r.Close()
	if err := readingAhead(r, parse); err != nil {
		return fmt.Errorf("read %s: %w", b.Canonical, err)
	}
	return nil
}

// Pins returns the state that is open, for OpenPinned.
func (x *Index) Pins() []PinnedRelease {
	pins := make([]PinnedRelease, len(x.suites))
	for i, s := range x.suites {
		pins[i] = PinnedRelease{
			Canonical: s.archive.Canonical, Suite: s.name, Components: slices.Clone(s.archive.Components),
			InRelease: s.file.Digest, Size: s.file.Size, Date: s.release.Date,
		}
	}
	return pins
}

// Date returns the date of the newest Release.
func (x *Index) Date() time.Time {
	var newest time.Time
	for _, s := range x.suites {
		if s.release.Date.After(newest) {
			newest = s.release.Date
		}
	}
	return newest
}

// Fetch brings the packages into the store, several at a time. Each is
// verified against the digest of its index before it is kept. Errors are
// HashError, FetchError, MissingError, or that of ctx or the store.
func (x *Index) Fetch(ctx context.Context, packages []Package) error {
	blobs := make([]Blob, len(packages))
	for i := range packages {
		blobs[i] = packages[i].blob()
	}
	return x.fetcher.fetchAll(ctx, blobs)
}

// Ensure brings one file into the store. A Packages or Sources index that was
// not read yet is read, so that Locate knows what it lists.
func (x *Index) Ensure(ctx context.Context, b Blob) error {
	if err := x.fetcher.fetchAll(ctx, []Blob{b}); err != nil {
		return err
	}
	if b.lists == nil {
		return nil
	}
	return x.readExtra(b)
}

// unverifiedText returns the text of a clearsigned message.
func unverifiedText(url string, data []byte) ([]byte, error) {
	text, rest := clearsignedText(data)
	if text == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("read %s: not a clearsigned message", url)
	}
	return text, nil
}
