package bootstrap

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Request says which packages to resolve.
type Request struct {
	// Include are names of packages, or of virtual packages that exactly one
	// package provides.
	Include []string
	// Priorities adds every package with one of these priorities, such as
	// "required", "important", "standard".
	Priorities []string
	// Recommends follows Recommends as well.
	Recommends bool
	// Bare leaves out the base: only Include, Priorities and what they need,
	// like apt-get install on a system where nothing is installed.
	Bare bool
}

// Minbase is the request whose result has the package set of mmdebstrap's
// variant minbase (also called required): the essential packages, those of
// priority required, and apt.
func Minbase() Request {
	return Request{Include: []string{"apt"}, Priorities: []string{"required"}}
}

// Resolve returns the packages that the request needs, dependencies before
// what depends on them as far as that is possible. The choice is apt's; see the
// package comment for how it is compared. The error is a *ResolveError.
func (x *Index) Resolve(r Request) ([]Package, error) {
	s := newSolver(x.universe, r.Recommends)
	if !r.Bare {
		if err := s.install(s.essential()); err != nil {
			return nil, err
		}
		s.settle()
	}
	wanted, err := s.requested(r)
	if err != nil {
		return nil, err
	}
	if err := s.install(wanted); err != nil {
		return nil, err
	}
	return s.result(), nil
}

// dependencyKind orders as apt's cache does the dependencies of one version.
type dependencyKind uint8

const (
	preDepends dependencyKind = iota
	depends
	conflicts
	breaks
	recommends
	suggests
)

func (k dependencyKind) negative() bool { return k == conflicts || k == breaks }
func (k dependencyKind) critical() bool { return k != recommends && k != suggests }

// followed reports whether dependencies of a kind are installed.
func (s *solver) followed(k dependencyKind) bool {
	return k.critical() || k == recommends && s.recommends
}

// alternative is a target with its name looked up; name is nil if there is no
// such package.
type alternative struct {
	target
	name *name
}

// dependency is one group of alternatives, or one negative target.
type dependency struct {
	kind         dependencyKind
	alternatives []alternative
}

// status is what is planned for one name.
type status struct {
	original  *Package // the candidate at the start of this step
	candidate *Package // what could be installed; nil: nothing (any more)
	planned   *Package // what will be installed; nil: nothing
	current   *Package // what an earlier step has installed
	protected bool     // only the user may change it
	auto      bool
	marked    bool // to be installed in this step
	base      bool
}

// solver plans an installation by apt's rules: every choice is made once, in
// order, and the first solution that works is kept. Names of its methods say
// which step of apt 2.6 they do.
type solver struct {
	universe   *universe
	recommends bool
	state      map[*name]*status
	parsed     map[*Package][]dependency
	problems   []string
}

func newSolver(u *universe, recommends bool) *solver {
	return &solver{universe: u, recommends: recommends, state: make(map[*name]*status), parsed: make(map[*Package][]dependency)}
}

// of returns the state of n.
func (s *solver) of(n *name) *status {
	st := s.state[n]
	if st == nil {
		best := n.candidate()
		st = &status{original: best, candidate: best}
		s.state[n] = st
	}
	return st
}

// owner returns the name of the package p.
func (s *solver) owner(p *Package) *name { return s.universe.names[p.Name] }

// essential lists the essential packages in order of mention.
func (s *solver) essential() []*name {
	return s.matching(func(p *Package) bool { return p.Essential })
}

// matching lists the names whose candidate has a property, in order of mention.
func (s *solver) matching(want func(*Package) bool) []*name {
	var list []*name
	for _, n := range s.universe.names {
		if p := n.candidate(); p != nil && want(p) {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b *name) int { return cmp.Compare(a.id, b.id) })
	return list
}

// requested turns a request into names.
func (s *solver) requested(r Request) ([]*name, error) {
	var wanted []*name
	for _, text := range r.Include {
		n, problem := s.find(text)
		if problem != "" {
			s.problems = append(s.problems, problem)
			continue
		}
		wanted = append(wanted, n)
	}
	if len(s.problems) > 0 {
		return nil, &ResolveError{Problems: s.problems}
	}
	if len(r.Priorities) > 0 {
		wanted = append(wanted, s.matching(func(p *Package) bool {
			return !p.Essential && slices.Contains(r.Priorities, p.Priority)
		})...)
	}
	return dedupe(wanted), nil
}

// find returns the package with this name, or the only one that provides it.
func (s *solver) find(text string) (*name, string) {
	n := s.universe.lookup(text)
	if n == nil {
		return nil, fmt.Sprintf("no package %s", text)
	}
	if n.candidate() != nil {
		return n, ""
	}
	providers := make(map[string]*name)
	for _, v := range n.provided {
		if o := s.owner(v.by); o.candidate() == v.by {
			providers[o.text] = o
		}
	}
	if len(providers) == 1 {
		for _, only := range providers {
			return only, ""
		}
	}
	if len(providers) == 0 {
		return nil, fmt.Sprintf("no package %s", text)
	}
	return nil, fmt.Sprintf("%s is a virtual package; choose one of %s", text,
		strings.Join(slices.Sorted(maps.Keys(providers)), ", "))
}

func dedupe(list []*name) []*name {
	seen := make(map[*name]bool)
	return slices.DeleteFunc(list, func(n *name) bool {
		was := seen[n]
		seen[n] = true
		return was
	})
}

// install plans one run of apt-get install.
func (s *solver) install(wanted []*name) error {
	for _, n := range wanted {
		s.of(n).protected = true
		s.markInstall(n, false, 0, true)
	}
	for _, n := range wanted {
		s.markInstall(n, true, 0, true)
	}
	s.sweep()
	if broken := s.broken(); len(broken) > 0 {
		return s.explain(broken)
	}
	return nil
}

// settle makes what is planned what is installed, as the start of a next step.
func (s *solver) settle() {
	next := make(map[*name]*status)
	for n, st := range s.state {
		if st.planned != nil {
			best := n.candidate()
			next[n] = &status{original: best, candidate: best, planned: st.planned, current: st.planned, base: true}
		}
	}
	s.state = next
}

// dependenciesOf parses the relations of p once. Fields that cannot be parsed
// become a dependency that nothing satisfies.
func (s *solver) dependenciesOf(p *Package) []dependency {
	if list, ok := s.parsed[p]; ok {
		return list
	}
	var list []dependency
	for _, f := range [...]struct {
		kind dependencyKind
		text string
	}{
		{preDepends, p.preDepends},
		{depends, p.depends},
		{conflicts, p.conflicts},
		{breaks, p.breaks},
		{recommends, p.recommends},
		{suggests, p.suggests},
	} {
		if f.text != "" {
			list = s.appendRelations(list, f.kind, f.text)
		}
	}
	s.parsed[p] = list
	return list
}

func (s *solver) appendRelations(list []dependency, kind dependencyKind, text string) []dependency {
	groups, err := parseRelations(text)
	if err != nil {
		return append(list, dependency{kind: depends, alternatives: []alternative{{target: target{name: err.Error()}}}})
	}
	for _, group := range groups {
		d := dependency{kind: kind}
		for _, t := range group {
			d.alternatives = append(d.alternatives, alternative{t, s.universe.lookup(t.name)})
		}
		list = append(list, d)
	}
	return list
}

// which selects one of the versions of a status.
type which uint8

const (
	planned which = iota
	candidate
	current
	original // the candidate at the start of the step
)

func (s *solver) version(n *name, w which) *Package {
	st := s.of(n)
	switch w {
	case candidate:
		return st.candidate
	case current:
		return st.current
	case original:
		return st.original
	default:
		return st.planned
	}
}

// matches lists the packages, among the chosen version of each, that the
// alternative a of a dependency of by means. A package never conflicts with
// itself.
func (s *solver) matches(by *Package, k dependencyKind, a alternative, w which) []*name {
	if a.name == nil {
		return nil
	}
	var list []*name
	if v := s.version(a.name, w); v != nil && (!k.negative() || v.Name != by.Name) && a.rel.satisfied(v.Version, a.version) {
		list = append(list, a.name)
	}
	for _, p := range a.name.provided {
		if k.negative() && p.by.Name == by.Name {
			continue
		}
		if o := s.owner(p.by); s.version(o, w) == p.by && a.rel.satisfied(p.version, a.version) {
			list = append(list, o)
		}
	}
	return list
}

// met reports whether a dependency of by holds with the chosen versions.
func (s *solver) met(by *Package, d dependency, w which) bool {
	for _, a := range d.alternatives {
		if len(s.matches(by, d.kind, a, w)) > 0 {
			return !d.kind.negative()
		}
	}
	return d.kind.negative()
}

// isBroken reports whether n is to be installed and a critical dependency of
// it, or with policy any dependency that is followed, does not hold.
func (s *solver) isBroken(n *name, policy bool) bool {
	p := s.of(n).planned
	return p != nil && slices.ContainsFunc(s.dependenciesOf(p), func(d dependency) bool {
		return (d.kind.critical() || policy && s.followed(d.kind)) && !s.met(p, d, planned)
	})
}

// broken lists what isBroken, by name.
func (s *solver) broken() []*name {
	var list []*name
	for n := range s.state {
		if s.isBroken(n, false) {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b *name) int { return strings.Compare(a.text, b.text) })
	return list
}

// explain turns broken packages into an error.
func (s *solver) explain(broken []*name) error {
	for _, n := range broken {
		p := s.of(n).planned
		for _, d := range s.dependenciesOf(p) {
			if d.kind.critical() && !s.met(p, d, planned) {
				s.problems = append(s.problems, describe(p, d))
			}
		}
	}
	return &ResolveError{Problems: s.problems}
}

func describe(p *Package, d dependency) string {
	var names []string
	for _, a := range d.alternatives {
		text := a.target.name
		if a.rel != anyVersion {
			text += " (" + a.rel.String() + " " + a.version + ")"
		}
		names = append(names, text)
	}
	verb := map[dependencyKind]string{
		preDepends: "pre-depends on", depends: "depends on", conflicts: "conflicts with", breaks: "breaks",
	}[d.kind]
	return fmt.Sprintf("%s %s %s %s", p.Name, p.Version, verb, strings.Join(names, " | "))
}

// result lists what is planned, dependencies first.
func (s *solver) result() []Package {
	var roots []*name
	for n, st := range s.state {
		if st.planned != nil {
			roots = append(roots, n)
		}
	}
	slices.SortFunc(roots, func(a, b *name) int { return strings.Compare(a.text, b.text) })
	var list []Package
	seen := make(map[*name]bool)
	var visit func(n *name)
	visit = func(n *name) {
		if seen[n] {
			return
		}
		seen[n] = true
		st := s.of(n)
		for _, d := range s.dependenciesOf(st.planned) {
			for _, a := range d.alternatives {
				if d.kind.negative() || !d.kind.critical() {
					continue
				}
				for _, m := range s.matches(st.planned, d.kind, a, planned) {
					visit(m)
				}
			}
		}
		p := *st.planned
		p.Auto, p.Base = st.auto, st.base
		list = append(list, p)
	}
	for _, n := range roots {
		visit(n)
	}
	return list
}
