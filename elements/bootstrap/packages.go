package bootstrap

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"cairn/reproducibility/store"
)

// Package is one binary package in one version, as a Packages index has it.
type Package struct {
	Name         string
	Version      string
	Architecture string // as the index says: "all" or the archive's
	Essential    bool
	Priority     string // "required", "important", "standard", "optional", "extra"
	MultiArch    string // "", "same", "foreign", "allowed"
	Filename     string // path below the archive's URL
	Size         int64  // bytes of the .deb
	Digest       store.Digest

	// Base says that Resolve put the package into the base: it is essential or
	// needed by an essential package, and dpkg itself needs it to run.
	Base bool
	// Auto says that the package was not asked for but is a dependency of what
	// was; apt records it as automatically installed.
	Auto bool

	preDepends, depends, recommends, suggests string
	conflicts, breaks, provides               string

	important bool // Protected: yes, or Important: yes
	pin       int  // apt priority of the release it comes from
	origin    *origin
}

// CanonicalURL is where the package is by the archive's canonical prefix.
func (p *Package) CanonicalURL() string { return p.origin.canonical + "/" + p.Filename }

// universe is all packages of the indexes read, by name, and what else the
// resolver must know about names.
type universe struct {
	arch  string
	names map[string]*name
	count int
}

// name is a package name, as apt's cache knows packages: those that exist,
// those that are only provided or mentioned, and those with a qualifier such
// as "perl:any".
type name struct {
	text     string
	id       int        // in the order of first mention: apt's last tie-breaker
	versions []*Package // as read; the newest of the best pin is the candidate
	provided []provision
}

// provision is one Provides of a package.
type provision struct {
	by      *Package
	version string // "" if unversioned
}

func newUniverse(arch string) *universe {
	return &universe{arch: arch, names: make(map[string]*name, 80_000)}
}

// name returns the entry for text, made if need be.
func (u *universe) name(text string) *name {
	n := u.names[text]
	if n == nil {
		text = strings.Clone(text)
		n = &name{text: text, id: u.count}
		u.count++
		u.names[text] = n
	}
	return n
}

// origin is where an index comes from.
type origin struct {
	canonical, mirror string // archive prefixes
	pin               int
}

// rawPackage holds the fields that only the order of mention needs.
type rawPackage struct {
	Package
	replaces, enhances string
}

// read adds the packages of one Packages index. Packages of other
// architectures are skipped.
func (u *universe) read(r io.Reader, o *origin) error {
	s := newStanzaScanner(r)
	shared := make(map[string]string)
	for s.scan() {
		p, err := parsePackage(s.fields, shared)
		if err != nil {
			return fmt.Errorf("line %d: %w", s.line, err)
		}
		if p.Architecture != u.arch && p.Architecture != "all" {
			continue
		}
		p.pin, p.origin = o.pin, o
		u.add(p)
	}
	return s.error()
}

// add enters one package; a second record of the same file is dropped.
func (u *universe) add(raw *rawPackage) {
	n := u.name(raw.Name)
	for _, v := range n.versions {
		if v.Version == raw.Version && v.Digest == raw.Digest {
			v.pin = max(v.pin, raw.pin)
			return
		}
	}
	p := new(Package)
	*p = raw.Package
	n.versions = append(n.versions, p)
	u.mention(raw)
	u.provide(p)
}

// mention gives ids to the names in the order in which apt meets them.
func (u *universe) mention(p *rawPackage) {
	for _, list := range [...]string{
		p.preDepends, p.depends, p.conflicts, p.breaks,
		p.recommends, p.suggests, p.replaces, p.enhances,
	} {
		for list != "" {
			i := strings.IndexAny(list, ",|")
			item := list
			if i >= 0 {
				item, list = list[:i], list[i+1:]
			} else {
				list = ""
			}
			item = strings.TrimLeft(item, " \n")
			if j := strings.IndexAny(item, " (\n"); j >= 0 {
				item = item[:j]
			}
			if item != "" {
				u.name(item)
			}
		}
	}
}

// provide enters what p provides: its Provides field, and "name:any" for
// packages that allow it.
func (u *universe) provide(p *Package) {
	if p.provides != "" {
		groups, err := parseRelations(p.provides)
		if err != nil {
			groups = nil // nothing can come to depend on what cannot be read
		}
		for _, g := range groups {
			for _, t := range g {
				u.provideOne(p, t)
			}
		}
	}
	if p.MultiArch == "allowed" {
		n := u.name(p.Name + ":any")
		n.provided = append(n.provided, provision{p, p.Version})
	}
}

func (u *universe) provideOne(p *Package, t target) {
	if t.rel != anyVersion && t.rel != equal {
		return
	}
	text, arch, qualified := strings.Cut(t.name, ":")
	if qualified && arch != u.arch && arch != "any" {
		return
	}
	if text == p.Name && (t.version == "" || t.version == p.Version) && !qualified {
		return
	}
	n := u.name(text)
	n.provided = append(n.provided, provision{p, t.version})
	if p.MultiArch == "allowed" || arch == "any" {
		n = u.name(text + ":any")
		n.provided = append(n.provided, provision{p, t.version})
	}
}

// parsePackage turns a paragraph into a package. Short values that repeat are
// shared.
func parsePackage(fields []field, shared map[string]string) (*rawPackage, error) {
	p := new(rawPackage)
	share := func(b []byte) string {
		if v, ok := shared[string(b)]; ok {
			return v
		}
		v := string(b)
		shared[v] = v
		return v
	}
	var err error
	for _, f := range fields {
		switch string(f.name) {
		case "package":
			p.Name = string(f.value)
		case "version":
			p.Version = string(f.value)
		case "architecture":
			p.Architecture = share(f.value)
		case "essential":
			p.Essential = string(f.value) == "yes"
		case "protected", "important":
			p.important = p.important || string(f.value) == "yes"
		case "priority":
			p.Priority = share(f.value)
		case "multi-arch":
			p.MultiArch = share(f.value)
		case "filename":
			p.Filename = string(f.value)
		case "size":
			p.Size, err = strconv.ParseInt(string(f.value), 10, 64)
		case "sha256":
			p.Digest, err = store.FromHex(string(f.value))
		default:
			p.setRelations(string(f.name), f.value)
		}
		if err != nil {
			return nil, fmt.Errorf("package %s: %s: %w", p.Name, f.name, err)
		}
	}
	return p, p.check()
}

// setRelations keeps the fields that relate packages.
func (p *rawPackage) setRelations(field string, value []byte) {
	switch field {
	case "pre-depends":
		p.preDepends = string(value)
	case "depends":
		p.depends = string(value)
	case "recommends":
		p.recommends = string(value)
	case "suggests":
		p.suggests = string(value)
	case "conflicts":
		p.conflicts = string(value)
	case "breaks":
		p.breaks = string(value)
	case "provides":
		p.provides = string(value)
	case "replaces":
		p.replaces = string(value)
	case "enhances":
		p.enhances = string(value)
	}
}

// check refuses what could not be fetched safely.
func (p *rawPackage) check() error {
	switch {
	case !validTargetName(p.Name) || strings.Contains(p.Name, ":"):
		return fmt.Errorf("invalid package name %.60q", p.Name)
	case p.Version == "" || strings.ContainsAny(p.Version, " /\n"):
		return fmt.Errorf("package %s: invalid version %.60q", p.Name, p.Version)
	case !cleanRelative(p.Filename):
		return fmt.Errorf("package %s: invalid file name %.120q", p.Name, p.Filename)
	case p.Digest == "" || p.Size <= 0:
		return fmt.Errorf("package %s: no SHA256 or size", p.Name)
	}
	return nil
}

// candidate returns the version that apt's default policy chooses when
// nothing is installed: the newest of those with the highest pin, the first
// read among equals.
func (n *name) candidate() *Package {
	var best *Package
	for _, p := range n.versions {
		if best == nil || p.pin > best.pin || p.pin == best.pin && CompareVersions(p.Version, best.Version) > 0 {
			best = p
		}
	}
	return best
}

// lookup finds the name that a target means; nil when nothing has it.
// ":native", and the archive's own architecture, mean the package itself.
func (u *universe) lookup(text string) *name {
	base, arch, qualified := strings.Cut(text, ":")
	if qualified && (arch == "native" || arch == u.arch) {
		return u.names[base]
	}
	return u.names[text]
}
