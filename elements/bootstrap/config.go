package bootstrap

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"cairn/reproducibility/store"
)

// Archive is one Debian archive and the suites of it that are used.
type Archive struct {
	// Canonical is the URL prefix, without trailing slash, that locks, errors
	// and the image's sources.list name.
	Canonical string
	// Mirror is the prefix that files are fetched from; "" means Canonical.
	Mirror     string
	Suites     []string // "bookworm", "bookworm-updates"
	Components []string // "main"; none means main
}

// Config says what to open and how.
type Config struct {
	// Archives in the order of preference: of equal versions the first wins,
	// as with the order of apt's sources.
	Archives []Archive
	Arch     string // Debian's name: "amd64"
	// Keyring holds OpenPGP public keys: binary or armored keyring files, one
	// after the other.
	Keyring []byte
	// Now is the time for Date, Valid-Until and the expiry of keys.
	Now          time.Time
	AllowExpired bool // accept a Release past its Valid-Until
	Store        *store.Store
	// Client makes all requests; its transport decides on proxies, TLS and
	// redirects, and should keep Transfer.Parallel idle connections per host.
	// Nil means no network: what is not in the store is a *MissingError.
	Client   *http.Client
	Auth     Auth     // credentials for mirrors
	Transfer Transfer // zero fields mean defaults
	// Progress is called while files are fetched, never concurrently. It must
	// be quick; it may be nil.
	Progress func(Progress)
}

// Transfer tunes fetching.
type Transfer struct {
	Parallel int           // files at a time; 0 means 8
	Tries    int           // tries without progress before giving up; 0 means 4
	Stall    time.Duration // a try without a byte for so long has failed; 0 means 30 s
	Backoff  time.Duration // wait before the second try, doubled each time; 0 means 500 ms
}

// Progress tells how far a set of files is.
type Progress struct {
	Files, TotalFiles int
	Bytes, TotalBytes int64  // of files that have to be fetched
	Name              string // of the file that moved last: a package or index path
}

// PinnedRelease names exactly one state of one suite.
type PinnedRelease struct {
	Canonical  string // archive prefix
	Suite      string
	Components []string
	InRelease  store.Digest
	Size       int64 // of the InRelease file, in bytes
	Date       time.Time
}

// DefaultArchives returns the archives that Debian's own mirrors serve for a
// suite: the suite and its -updates at ftp.debian.org, its -security at
// security.debian.org. Unstable and experimental have neither.
func DefaultArchives(suite string) []Archive {
	archive := Archive{Canonical: "http://ftp.debian.org/debian", Suites: []string{suite}, Components: []string{"main"}}
	switch suite {
	case "sid", "unstable", "experimental", "rc-buggy":
		return []Archive{archive}
	}
	archive.Suites = append(archive.Suites, suite+"-updates")
	return []Archive{archive, {
		Canonical:  "http://security.debian.org/debian-security",
		Suites:     []string{suite + "-security"},
		Components: []string{"main"},
	}}
}

// KeyringPaths returns where keyrings with Debian's archive keys usually are,
// the preferred first; the last one is a directory.
func KeyringPaths() []string {
	return []string{
		"/usr/share/keyrings/debian-archive-keyring.gpg",
		"/usr/share/keyrings/debian-archive-keyring.pgp",
		"/etc/apt/trusted.gpg",
		"/etc/apt/trusted.gpg.d",
	}
}

// complete checks c and fills in defaults.
func (c Config) complete() (Config, error) {
	if c.Store == nil || c.Arch == "" || strings.ContainsAny(c.Arch, "/ ") || len(c.Archives) == 0 {
		return c, errors.New("open archives: no store, architecture or archive given")
	}
	archives := make([]Archive, len(c.Archives))
	for i, a := range c.Archives {
		if a.Mirror == "" {
			a.Mirror = a.Canonical
		}
		if len(a.Components) == 0 {
			a.Components = []string{"main"}
		}
		if err := a.check(); err != nil {
			return c, fmt.Errorf("open archives: %w", err)
		}
		a.Canonical, a.Mirror = strings.TrimRight(a.Canonical, "/"), strings.TrimRight(a.Mirror, "/")
		archives[i] = a
	}
	c.Archives = archives
	c.Transfer = c.Transfer.complete()
	return c, nil
}

func (t Transfer) complete() Transfer {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	if t.Parallel <= 0 {
		t.Parallel = 8
	}
	if t.Tries <= 0 {
		t.Tries = 4
	}
	set(&t.Stall, 30*time.Second)
	set(&t.Backoff, 500*time.Millisecond)
	return t
}

func (a Archive) check() error {
	for _, prefix := range []string{a.Canonical, a.Mirror} {
		u, err := url.Parse(prefix)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("invalid archive URL %q: want http://HOST/PATH or https://HOST/PATH", withoutUser(prefix))
		}
	}
	if len(a.Suites) == 0 {
		return fmt.Errorf("%s: no suite given", a.Canonical)
	}
	for _, s := range append(append([]string{}, a.Suites...), a.Components...) {
		if !cleanRelative(s) || strings.ContainsAny(s, " ?#%\\") {
			return fmt.Errorf("%s: invalid suite or component %q", a.Canonical, s)
		}
	}
	return nil
}

// withoutUser removes user and password from a URL.
func withoutUser(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(invalid URL)"
	}
	u.User = nil
	return u.String()
}
