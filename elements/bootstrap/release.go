package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"cairn/reproducibility/store"
)

// maxRelease bounds an InRelease file in bytes; unstable's has 0.2 MB.
const maxRelease = 16 << 20

// allowedSkew is how far in the future a Release file may be dated, for
// clocks that differ a little.
const allowedSkew = 5 * time.Minute

// Release is what a Release or InRelease file says (the archive format of
// apt; https://wiki.debian.org/DebianRepository/Format).
type Release struct {
	Origin, Label           string
	Suite, Codename         string
	Version                 string // of the distribution; "" for unstable
	Date                    time.Time
	ValidUntil              time.Time // zero: no limit
	Architectures           []string
	Components              []string
	ByHash                  bool            // files can be fetched by their hash
	NotAutomatic            bool            // not chosen unless asked for (experimental)
	ButAutomaticUpgrades    bool            // with NotAutomatic: backports
	SeparateArchitectureAll bool            // packages of architecture all have an index of their own
	Files                   map[string]File // by path below the suite's directory
}

// File is one index file that a Release names.
type File struct {
	Digest store.Digest
	Size   int64 // bytes
}

// ParseRelease parses the text of a Release file, or the signed text of an
// InRelease file. It verifies nothing.
func ParseRelease(text []byte) (*Release, error) {
	s := newStanzaScanner(bytes.NewReader(text))
	if !s.scan() {
		return nil, fmt.Errorf("parse Release: %w", errors.Join(s.error(), errors.New("empty")))
	}
	r := &Release{Files: make(map[string]File)}
	noAllPackages := false
	for _, f := range s.fields {
		value := string(f.value)
		var err error
		switch string(f.name) {
		case "origin":
			r.Origin = value
		case "label":
			r.Label = value
		case "suite":
			r.Suite = value
		case "codename":
			r.Codename = value
		case "version":
			r.Version = value
		case "date":
			r.Date, err = parseDate(value)
		case "valid-until":
			r.ValidUntil, err = parseDate(value)
		case "architectures":
			r.Architectures = strings.Fields(value)
		case "components":
			r.Components = strings.Fields(value)
		case "acquire-by-hash":
			r.ByHash = value == "yes"
		case "notautomatic":
			r.NotAutomatic = value == "yes"
		case "butautomaticupgrades":
			r.ButAutomaticUpgrades = value == "yes"
		case "no-support-for-architecture-all":
			noAllPackages = strings.Contains(" "+value+" ", " Packages ")
		case "sha256":
			err = r.addFiles(value)
		}
		if err != nil {
			return nil, fmt.Errorf("parse Release: %s: %w", f.name, err)
		}
	}
	if s.scan() || s.error() != nil {
		return nil, errors.New("parse Release: more than one paragraph")
	}
	if len(r.Files) == 0 {
		return nil, errors.New("parse Release: no SHA256 entries")
	}
	r.SeparateArchitectureAll = !noAllPackages && slices.Contains(r.Architectures, "all")
	return r, nil
}

// addFiles parses the lines "digest size path" of the SHA256 field.
func (r *Release) addFiles(value string) error {
	for line := range strings.SplitSeq(value, "\n") {
		part := strings.Fields(line)
		if len(part) == 0 {
			continue
		}
		if len(part) != 3 {
			return fmt.Errorf("invalid line %.120q", line)
		}
		digest, err := store.FromHex(part[0])
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(part[1], 10, 64)
		if err != nil || size < 0 {
			return fmt.Errorf("invalid size in %.120q", line)
		}
		if !cleanRelative(part[2]) {
			return fmt.Errorf("invalid path %.120q", part[2])
		}
		r.Files[part[2]] = File{Digest: digest, Size: size}
	}
	return nil
}

// CheckDates applies the rules of Date and Valid-Until. The error is a
// *NotYetValidError, or an *ExpiredError unless allowExpired. url only serves
// the errors.
func (r *Release) CheckDates(url string, now time.Time, allowExpired bool) error {
	if r.Date.After(now.Add(allowedSkew)) {
		return &NotYetValidError{URL: url, Date: r.Date, Now: now}
	}
	if !allowExpired && !r.ValidUntil.IsZero() && now.After(r.ValidUntil) {
		return &ExpiredError{URL: url, Suite: r.name(), ValidUntil: r.ValidUntil, Now: now}
	}
	return nil
}

// name is the suite's codename if it has one.
func (r *Release) name() string {
	if r.Codename != "" {
		return r.Codename
	}
	return r.Suite
}

// priority is the default pin of apt (apt_preferences(5)) for packages of
// this release.
func (r *Release) priority() int {
	switch {
	case !r.NotAutomatic:
		return 500
	case r.ButAutomaticUpgrades:
		return 100
	}
	return 1
}

// parseDate parses the date format of Release files, which is that of
// RFC 1123 with UTC or a numeric zone.
func parseDate(s string) (time.Time, error) {
	for _, layout := range [...]string{
		"Mon, _2 Jan 2006 15:04:05 MST",
		"Mon, _2 Jan 2006 15:04:05 -0700",
	} {
		t, err := time.Parse(layout, s)
		if err != nil {
			continue
		}
		if zone, offset := t.Zone(); offset != 0 || zone == "UTC" || zone == "GMT" || zone == "Z" || strings.HasSuffix(layout, "-0700") {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("invalid date %.60q", s)
}

// cleanRelative reports whether p is a relative slash-separated path without
// any step that would leave or stay in place.
func cleanRelative(p string) bool {
	return p != "" && p != "." && p != ".." && p[0] != '/' && path.Clean(p) == p && !strings.HasPrefix(p, "../") && !strings.ContainsAny(p, "\x00\n")
}
