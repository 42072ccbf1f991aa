package lock

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/reproducibility/store"
)

// Version is the version of the format that this package reads and writes.
const Version = 1

// Kinds of bases.
const (
	KindDeb  = "deb"  // installed from packages
	KindOCI  = "oci"  // layers of an image
	KindNone = "none" // empty
)

// A Lock is the content of a lock file. The package's comment describes the
// fields.
type Lock struct {
	Version  int       `json:"version"`
	Request  Request   `json:"request"`
	Epoch    int64     `json:"epoch"`
	Seed     string    `json:"seed"`
	Releases []Release `json:"releases"`
	Base     Base      `json:"base"`
	Tools    *Base     `json:"tools,omitempty"`
	Elements []Element `json:"elements"`
	Fetched  []Fetched `json:"fetched"`
	Outputs  []Output  `json:"outputs,omitempty"`
}

// A Request is what was asked for.
type Request struct {
	Elements []string          `json:"elements"`
	Arch     string            `json:"arch"`
	Types    []string          `json:"types"`
	Packages []string          `json:"packages"`
	Options  map[string]string `json:"options"`
}

// A Release is a signed state of a suite of a Debian archive.
type Release struct {
	URL     string       `json:"url"`
	Suite   string       `json:"suite"`
	Digest  store.Digest `json:"digest"`
	Size    int64        `json:"size"`
	Date    int64        `json:"date"`
	Indexes []Index      `json:"indexes"`
}

// An Index is a file that a Release names.
type Index struct {
	Path   string       `json:"path"`
	Digest store.Digest `json:"digest"`
	Size   int64        `json:"size"`
}

// A Base is where a tree comes from: which fields are set depends on Kind.
type Base struct {
	Kind      string       `json:"kind"`
	Packages  []Package    `json:"packages,omitempty"`
	Reference string       `json:"reference,omitempty"`
	Digest    store.Digest `json:"digest,omitempty"`
	Layers    []Layer      `json:"layers,omitempty"`
}

// A Package is a Debian package.
type Package struct {
	Name    string       `json:"name"`
	Version string       `json:"version"`
	Arch    string       `json:"arch"`
	URL     string       `json:"url"`
	Digest  store.Digest `json:"digest"`
	Size    int64        `json:"size"`
}

// A Layer is a layer of an OCI image, as it is in the registry.
type Layer struct {
	Digest store.Digest `json:"digest"`
	Size   int64        `json:"size"`
}

// An Element is a diskimage-builder element.
type Element struct {
	Name   string       `json:"name"`
	Digest store.Digest `json:"digest"`
	Origin string       `json:"origin"`
}

// OriginBuiltin is the Origin of elements that are part of the program.
const OriginBuiltin = "builtin"

// A Fetched is a response that a hook got from the network.
type Fetched struct {
	URL     string            `json:"url"`
	Status  int               `json:"status"`
	Digest  store.Digest      `json:"digest"`
	Size    int64             `json:"size"`
	Headers map[string]string `json:"headers,omitempty"`
}

// An Output is a finished disk.
type Output struct {
	Format string       `json:"format"`
	Disk   string       `json:"disk,omitempty"` // name, unless it is the image
	Size   int64        `json:"size"`
	Digest store.Digest `json:"digest"`
}

func compareReleases(a, b Release) int {
	return cmp.Or(cmp.Compare(a.URL, b.URL), cmp.Compare(a.Suite, b.Suite))
}

func compareIndexes(a, b Index) int { return cmp.Compare(a.Path, b.Path) }

func comparePackages(a, b Package) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Arch, b.Arch), cmp.Compare(a.Version, b.Version))
}

func compareElements(a, b Element) int { return cmp.Compare(a.Name, b.Name) }

func compareFetched(a, b Fetched) int { return cmp.Compare(a.URL, b.URL) }

func compareOutputs(a, b Output) int {
	return cmp.Or(cmp.Compare(a.Disk, b.Disk), cmp.Compare(a.Format, b.Format))
}

// name tells an output from the others.
func (o Output) name() string { return strings.TrimPrefix(o.Disk+" "+o.Format, " ") }

// sorted returns a copy of list in order, [] for nil.
func sorted[T any](list []T, compare func(a, b T) int) []T {
	c := append([]T{}, list...)
	slices.SortFunc(c, compare)
	return c
}

// canonical returns a copy of l with its lists in order and none of them nil.
func (l *Lock) canonical() *Lock {
	c := *l
	c.Version = Version
	c.Request.Elements = append([]string{}, l.Request.Elements...)
	c.Request.Types = sorted(l.Request.Types, cmp.Compare[string])
	c.Request.Packages = append([]string{}, l.Request.Packages...)
	if c.Request.Options == nil {
		c.Request.Options = map[string]string{}
	}
	c.Releases = sorted(l.Releases, compareReleases)
	for i := range c.Releases {
		c.Releases[i].Indexes = sorted(c.Releases[i].Indexes, compareIndexes)
	}
	c.Base.Packages = sorted(l.Base.Packages, comparePackages)
	if l.Tools != nil {
		tools := *l.Tools
		tools.Packages = sorted(tools.Packages, comparePackages)
		c.Tools = &tools
	}
	c.Elements = sorted(l.Elements, compareElements)
	c.Fetched = sorted(l.Fetched, compareFetched)
	c.Outputs = sorted(l.Outputs, compareOutputs)
	return &c
}

// Encode returns the file's bytes. Lists may be in any order; it is an error,
// which is a [*FieldError], if l is otherwise not valid.
func (l *Lock) Encode() ([]byte, error) {
	c := l.canonical()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("encode lock: %w", err)
	}
	b, err := marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode lock: %w", err)
	}
	return b, nil
}

func marshal(l *Lock) ([]byte, error) {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(l)
	return buf.Bytes(), err
}

// Inputs returns the canonical bytes of all inputs: the file without seed and
// outputs. Locks with equal inputs stand for equal images.
func (l *Lock) Inputs() ([]byte, error) {
	c := *l
	c.Seed, c.Outputs = noSeed, nil
	return c.Encode()
}

// Plan returns the canonical bytes of the inputs that are known before the
// first hook runs: [Lock.Inputs] without what hooks fetched.
func (l *Lock) Plan() ([]byte, error) {
	c := *l
	c.Fetched = nil
	return c.Inputs()
}

// noSeed stands where a seed is to be computed.
const noSeed = "0000000000000000000000000000000000000000000000000000000000000000"

// A VersionError tells that a lock file is of another version of the format.
type VersionError struct {
	Version int // of the file
}

func (e *VersionError) Error() string {
	if e.Version > Version {
		return fmt.Sprintf("lock file has version %d, this program knows %d: it was written by a newer program", e.Version, Version)
	}
	return fmt.Sprintf("lock file has version %d, this program knows only %d", e.Version, Version)
}

// Parse returns the content of a lock file. Anything but the canonical form is
// an error: a [*VersionError], or a [*FieldError] where a field can be named.
func Parse(b []byte) (*Lock, error) {
	l, err := parse(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")))
	if err != nil {
		return nil, fmt.Errorf("parse lock: %w", err)
	}
	return l, nil
}

func parse(b []byte) (*Lock, error) {
	var head struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, jsonError(b, err)
	}
	if head.Version == nil {
		return nil, &FieldError{"version", errors.New("is missing")}
	}
	if *head.Version != Version {
		return nil, &VersionError{*head.Version}
	}
	var l Lock
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return nil, jsonError(b, err)
	}
	if err := l.validate(); err != nil {
		return nil, err
	}
	return &l, l.sameBytes(b)
}

// sameBytes refuses what the decoder lets pass: double and missing fields,
// other spellings, other spacing.
func (l *Lock) sameBytes(b []byte) error {
	want, err := marshal(l.canonical())
	if err != nil || bytes.Equal(b, want) {
		return err
	}
	line := 1
	for i := 0; i < len(b) && i < len(want) && b[i] == want[i]; i++ {
		if b[i] == '\n' {
			line++
		}
	}
	return fmt.Errorf("line %d: not in the canonical form (a field is missing, given twice, misplaced or spelled otherwise)", line)
}

// jsonError says where in b an error of the JSON decoder is.
func jsonError(b []byte, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("line %d: %w", 1+bytes.Count(b[:min(int(syntax.Offset), len(b))], []byte("\n")), err)
	case errors.As(err, &kind) && kind.Field != "":
		return &FieldError{kind.Field, fmt.Errorf("has the type %s", kind.Value)}
	}
	return err
}
