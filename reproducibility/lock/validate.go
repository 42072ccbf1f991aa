package lock

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"cairn/reproducibility/store"
)

// A FieldError tells which field of a lock is not valid.
type FieldError struct {
	Field string // such as "base.packages[3].digest"
	Err   error
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap returns what is wrong.
func (e *FieldError) Unwrap() error { return e.Err }

// A checker keeps the first thing found wrong.
type checker struct{ err error }

func (c *checker) fail(field, format string, args ...any) {
	if c.err == nil {
		c.err = &FieldError{field, fmt.Errorf(format, args...)}
	}
}

// text checks a string that must not be empty.
func (c *checker) text(field, s string) {
	if s == "" {
		c.fail(field, "is empty")
	}
	c.plain(field, s)
}

func (c *checker) plain(field, s string) {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		c.fail(field, "%q is not printable text", s)
	}
}

// name checks a word: neither empty nor with a slash or white space.
func (c *checker) name(field, s string) {
	c.text(field, s)
	if strings.ContainsFunc(s, unicode.IsSpace) || strings.Contains(s, "/") || s == "." || s == ".." {
		c.fail(field, "%q is not a plain name", s)
	}
}

func (c *checker) digest(field string, d store.Digest) {
	if _, err := store.ParseDigest(string(d)); err != nil {
		c.fail(field, "%w", err)
	}
}

func (c *checker) notNegative(field string, n int64) {
	if n < 0 {
		c.fail(field, "%d is negative", n)
	}
}

func (c *checker) file(field string, d store.Digest, size int64) {
	c.digest(field+".digest", d)
	c.notNegative(field+".size", size)
	if (d == store.Of(nil)) != (size == 0) {
		c.fail(field+".size", "%d does not go with %s", size, d)
	}
}

// url checks an absolute http or https URL without credentials.
func (c *checker) url(field, s string) {
	c.text(field, s)
	u, err := url.Parse(s)
	switch {
	case err != nil:
		c.fail(field, "%q is not a URL", s)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "":
		c.fail(field, "%q is not an http or https URL", s)
	case u.User != nil:
		c.fail(field, "URL of %s contains credentials", u.Host)
	case u.Fragment != "":
		c.fail(field, "%q has a fragment", s)
	}
}

// inOrder checks that list is strictly ascending.
func inOrder[T any](c *checker, field string, list []T, compare func(a, b T) int) {
	for i := 1; i < len(list); i++ {
		switch d := compare(list[i-1], list[i]); {
		case d == 0:
			c.fail(fmt.Sprintf("%s[%d]", field, i), "is listed twice")
		case d > 0:
			c.fail(fmt.Sprintf("%s[%d]", field, i), "is not in order")
		}
	}
}

// each calls check with the field name and value of every element of list.
func each[T any](field string, list []T, check func(field string, v T)) {
	for i, v := range list {
		check(fmt.Sprintf("%s[%d]", field, i), v)
	}
}

// validate checks l, whose lists must be in order.
func (l *Lock) validate() error {
	c := &checker{}
	if l.Version != Version {
		c.fail("version", "is %d, not %d", l.Version, Version)
	}
	c.request(l.Request)
	c.notNegative("epoch", l.Epoch)
	if _, err := store.FromHex(l.Seed); err != nil {
		c.fail("seed", "%q is not 64 hexadecimal digits", l.Seed)
	}
	each("releases", l.Releases, c.release)
	inOrder(c, "releases", l.Releases, compareReleases)
	c.base("base", l.Base)
	if l.Tools != nil {
		c.base("tools", *l.Tools)
	}
	each("elements", l.Elements, c.element)
	inOrder(c, "elements", l.Elements, compareElements)
	each("fetched", l.Fetched, c.fetched)
	inOrder(c, "fetched", l.Fetched, compareFetched)
	each("outputs", l.Outputs, func(field string, o Output) {
		c.name(field+".format", o.Format)
		if o.Disk != "" {
			c.name(field+".disk", o.Disk)
		}
		c.file(field, o.Digest, o.Size)
	})
	inOrder(c, "outputs", l.Outputs, compareOutputs)
	return c.err
}

func (c *checker) request(r Request) {
	each("request.elements", r.Elements, c.name)
	c.name("request.arch", r.Arch)
	each("request.types", r.Types, c.name)
	inOrder(c, "request.types", r.Types, strings.Compare)
	each("request.packages", r.Packages, c.text)
	for _, k := range sortedKeys(r.Options) {
		c.name("request.options", k)
		c.plain("request.options."+k, strings.ReplaceAll(r.Options[k], "\n", ""))
	}
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (c *checker) release(field string, r Release) {
	c.url(field+".url", r.URL)
	c.text(field+".suite", r.Suite)
	if !isRelative(r.Suite) {
		c.fail(field+".suite", "%q is not a relative path", r.Suite)
	}
	c.file(field, r.Digest, r.Size)
	c.notNegative(field+".date", r.Date)
	each(field+".indexes", r.Indexes, func(field string, x Index) {
		c.text(field+".path", x.Path)
		if !isRelative(x.Path) {
			c.fail(field+".path", "%q is not a relative path", x.Path)
		}
		c.file(field, x.Digest, x.Size)
	})
	inOrder(c, field+".indexes", r.Indexes, compareIndexes)
}

// isRelative reports whether p is a path in its shortest form that stays below
// where it begins.
func isRelative(p string) bool {
	return p == path.Clean(p) && !path.IsAbs(p) && p != "." && p != ".." && !strings.HasPrefix(p, "../")
}

func (c *checker) base(field string, b Base) {
	deb := len(b.Packages) > 0
	oci := b.Reference != "" || b.Digest != "" || len(b.Layers) > 0
	switch b.Kind {
	case KindDeb:
		each(field+".packages", b.Packages, c.pkg)
		inOrder(c, field+".packages", b.Packages, comparePackages)
		deb = false
	case KindOCI:
		c.text(field+".reference", b.Reference)
		c.digest(field+".digest", b.Digest)
		each(field+".layers", b.Layers, func(field string, y Layer) { c.file(field, y.Digest, y.Size) })
		oci = false
	case KindNone:
	default:
		c.fail(field+".kind", "%q is neither %s, %s nor %s", b.Kind, KindDeb, KindOCI, KindNone)
	}
	if deb || oci {
		c.fail(field, "has fields of another kind than %q", b.Kind)
	}
}

func (c *checker) pkg(field string, p Package) {
	c.name(field+".name", p.Name)
	c.name(field+".version", p.Version)
	c.name(field+".arch", p.Arch)
	c.url(field+".url", p.URL)
	c.file(field, p.Digest, p.Size)
}

func (c *checker) element(field string, e Element) {
	c.name(field+".name", e.Name)
	c.digest(field+".digest", e.Digest)
	c.text(field+".origin", e.Origin)
	if strings.Contains(e.Origin, "/") {
		c.fail(field+".origin", "%q is a path", e.Origin)
	}
}

func (c *checker) fetched(field string, f Fetched) {
	c.url(field+".url", f.URL)
	if f.Status < 200 || f.Status > 499 {
		c.fail(field+".status", "%d is not between 200 and 499", f.Status)
	}
	c.file(field, f.Digest, f.Size)
	for _, k := range sortedKeys(f.Headers) {
		c.name(field+".headers", k)
		c.text(field+".headers."+k, f.Headers[k])
	}
}

// Validate returns nil if l can be encoded, else a [*FieldError].
func (l *Lock) Validate() error { return l.canonical().validate() }

// A StaleError tells that a lock does not stand for what is asked for now.
type StaleError struct {
	Changes []string // one line for each difference
}

func (e *StaleError) Error() string {
	return "lock is stale: " + strings.Join(e.Changes, "; ")
}

// Verify returns a [*StaleError] if the request or the elements, both resolved
// now, are other than those that were locked.
func (l *Lock) Verify(request Request, elements []Element) error {
	now := *l
	now.Request, now.Elements = request, elements
	if changes := diffLines(l, &now); len(changes) > 0 {
		return &StaleError{changes}
	}
	return nil
}

// An OutputError tells that a build did not give what its lock says.
type OutputError struct {
	Name      string       // format, behind the disk's name unless it is the image
	Want, Got store.Digest // Got is "" if there is no such output
}

func (e *OutputError) Error() string {
	if e.Got == "" {
		return fmt.Sprintf("output %s of the lock was not built", e.Name)
	}
	return fmt.Sprintf("output %s has digest %s, the lock says %s", e.Name, e.Got, e.Want)
}

// VerifyOutputs compares what was built with the outputs that were locked. It
// returns an [*OutputError] for each that is not the same, joined. What was not
// locked is not compared.
func (l *Lock) VerifyOutputs(built []Output) error {
	var errs []error
	for _, want := range l.Outputs {
		e := &OutputError{Name: want.name(), Want: want.Digest}
		for _, o := range built {
			if compareOutputs(o, want) == 0 {
				e.Got = o.Digest
			}
		}
		if e.Got != e.Want {
			errs = append(errs, e)
		}
	}
	return errors.Join(errs...)
}

// A Blob is content that a lock names.
type Blob struct {
	URL    string // where it came from, "" for layers
	Digest store.Digest
	Size   int64 // bytes
}

// Blobs returns all content that a build from the lock needs: each digest once,
// sorted by digest, without the empty one.
func (l *Lock) Blobs() []Blob {
	var all []Blob
	for _, r := range l.Releases {
		suite := r.URL + "/dists/" + r.Suite + "/"
		all = append(all, Blob{suite + "InRelease", r.Digest, r.Size})
		for _, x := range r.Indexes {
			all = append(all, Blob{suite + x.Path, x.Digest, x.Size})
		}
	}
	bases := []Base{l.Base}
	if l.Tools != nil {
		bases = append(bases, *l.Tools)
	}
	for _, b := range bases {
		for _, p := range b.Packages {
			all = append(all, Blob{p.URL, p.Digest, p.Size})
		}
		for _, y := range b.Layers {
			all = append(all, Blob{"", y.Digest, y.Size})
		}
	}
	for _, f := range l.Fetched {
		all = append(all, Blob{f.URL, f.Digest, f.Size})
	}
	slices.SortStableFunc(all, func(a, b Blob) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	all = slices.CompactFunc(all, func(a, b Blob) bool { return a.Digest == b.Digest })
	return slices.DeleteFunc(all, func(b Blob) bool { return b.Size == 0 })
}
