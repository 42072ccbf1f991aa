package bootstrap

import (
	"cmp"
	"slices"
)

// maxDepth ends a chain of dependencies as apt does.
const maxDepth = 3000

// mayChange reports whether something other than the user may set n to be
// installed (install) or not.
func (s *solver) mayChange(n *name, install bool, depth int, byUser bool) bool {
	if depth > maxDepth || len(n.versions) == 0 {
		return false
	}
	st := s.of(n)
	return byUser || st.marked == install || !st.protected
}

// markInstall plans to install n, with what it needs if follow is set. It
// reports whether that worked out; if not, and n was not asked for by the user,
// n is not planned and can no longer be a candidate.
func (s *solver) markInstall(n *name, follow bool, depth int, byUser bool) bool {
	st := s.of(n)
	keeping := st.protected && !st.marked && st.candidate != nil && st.candidate == st.current
	if !keeping && !s.mayChange(n, true, depth, byUser) || st.candidate == nil {
		return false
	}
	if !st.protected && !s.isBroken(n, true) && (st.candidate == st.current || st.marked) {
		return true
	}
	if follow && !s.satisfiable(n) {
		return false
	}
	if byUser {
		s.plan(n, true)
	}
	if !follow {
		if !byUser {
			s.plan(n, false)
		}
		return true
	}
	return s.markWithDependencies(n, depth, byUser)
}

// markWithDependencies is the part of markInstall that changes other packages.
func (s *solver) markWithDependencies(n *name, depth int, byUser bool) bool {
	st := s.of(n)
	protected := st.protected
	failEarly := !protected && !byUser
	wanted, unwanted := s.openDependencies(st.candidate, protected)
	ok := s.removeConflicts(st.candidate, unwanted, depth, protected, byUser)
	if !ok && failEarly {
		return false
	}
	if !byUser {
		s.plan(n, false)
	}
	st.protected = true
	done := s.installDependencies(st.planned, wanted, depth, protected, byUser)
	st.protected = protected
	if !done && failEarly {
		s.discard(n)
		return false
	}
	return ok && done
}

// plan sets n to be installed in its candidate version.
func (s *solver) plan(n *name, byUser bool) {
	st := s.of(n)
	if st.protected && st.planned == st.candidate {
		return
	}
	st.planned = st.candidate
	st.marked = st.candidate != st.current
	if st.current == nil {
		st.auto = !byUser
	}
}

// keep undoes the plan to install n; false if that is protected.
func (s *solver) keep(n *name, depth int) bool {
	if !s.mayChange(n, false, depth, false) {
		return false
	}
	st := s.of(n)
	st.marked, st.planned = false, st.current
	return true
}

// discard undoes the plan to install n and takes it off the candidates.
func (s *solver) discard(n *name) {
	st := s.of(n)
	st.marked, st.planned, st.candidate = false, st.current, st.current
}

// satisfiable reports whether each dependency of n's candidate could be met
// by some candidate; if not, n stops being one, unless it is protected. Packages
// that have stopped being candidates meanwhile still count, as in apt, whose
// record of this is not refreshed.
func (s *solver) satisfiable(n *name) bool {
	st := s.of(n)
	if st.candidate == st.current {
		return true
	}
	for _, d := range s.dependenciesOf(st.candidate) {
		if !d.kind.critical() || d.kind.negative() {
			continue
		}
		if s.met(st.candidate, d, planned) || s.met(st.candidate, d, original) {
			continue
		}
		if !st.protected {
			st.candidate, st.marked = st.current, false
		}
		return false
	}
	return true
}

// openDependencies lists the dependencies of p that do not hold yet: those to
// be met and the conflicts to be removed. For a protected package they are all
// listed, because protection spreads to what it needs.
func (s *solver) openDependencies(p *Package, protected bool) (wanted, unwanted []dependency) {
	for _, d := range s.dependenciesOf(p) {
		if !s.followed(d.kind) || s.met(p, d, planned) && !protected {
			continue
		}
		if d.kind.negative() {
			unwanted = append(unwanted, d)
		} else {
			wanted = append(wanted, d)
		}
	}
	return wanted, unwanted
}

// removeConflicts makes sure that nothing that p conflicts with gets installed.
func (s *solver) removeConflicts(p *Package, unwanted []dependency, depth int, protected, byUser bool) bool {
	ok := true
	for _, d := range unwanted {
		for _, n := range s.solutions(p, d, candidate) {
			st := s.of(n)
			switch {
			case st.current == st.candidate:
				ok = false // what the base needs is never removed again
			case st.marked && !s.keep(n, depth):
				ok = false
			case protected:
				st.candidate = st.planned
				if st.current == nil {
					st.protected = true
				}
			}
			if !ok && !protected && !byUser {
				return false
			}
		}
	}
	return ok
}

// installDependencies plans what p needs.
func (s *solver) installDependencies(p *Package, wanted []dependency, depth int, protected, byUser bool) bool {
	ok := true
	for _, d := range wanted {
		if s.met(p, d, planned) {
			if protected && d.kind.critical() && !s.protectOnly(p, d, depth) {
				ok = false
			}
			continue
		}
		if s.installFirst(p, d, depth, protected) || !d.kind.critical() {
			continue
		}
		ok = false
		if !protected && !byUser {
			break
		}
	}
	return ok
}

// protectOnly protects the package that satisfies d if it is the only one
// that can.
func (s *solver) protectOnly(p *Package, d dependency, depth int) bool {
	list := append(s.solutions(p, d, candidate), s.solutions(p, d, current)...)
	slices.SortFunc(list, func(a, b *name) int { return cmp.Compare(a.id, b.id) })
	list = slices.Compact(list)
	if len(list) != 1 || s.of(list[0]).protected {
		return true
	}
	s.of(list[0]).protected = true
	return s.markInstall(list[0], true, depth+1, false)
}

// installFirst plans the first of the packages that satisfy d that works out.
func (s *solver) installFirst(p *Package, d dependency, depth int, protected bool) bool {
	list := s.solutions(p, d, candidate)
	for _, n := range list {
		st := s.of(n)
		if st.candidate == nil || !s.isSolution(p, d, n) {
			continue
		}
		if protected && d.kind.critical() && len(list) == 1 {
			if !s.markInstall(n, false, depth+1, false) {
				continue
			}
			st.protected = true
		}
		if s.markInstall(n, true, depth+1, false) {
			return true
		}
	}
	return false
}

// isSolution reports whether n's candidate still satisfies d: attempts with
// earlier solutions may have changed it.
func (s *solver) isSolution(p *Package, d dependency, n *name) bool {
	for _, a := range d.alternatives {
		if slices.Contains(s.matches(p, d.kind, a, candidate), n) {
			return true
		}
	}
	return false
}

// solutions lists the packages that satisfy d, the preferred first: what is
// installed already, then by alternative, then by preference.
func (s *solver) solutions(p *Package, d dependency, w which) []*name {
	var installed, others []*name
	for _, a := range d.alternatives {
		list := s.matches(p, d.kind, a, w)
		slices.SortFunc(list, func(x, y *name) int { return s.prefer(a.name, x, y) })
		for _, n := range list {
			if s.of(n).current != nil {
				installed = append(installed, n)
			} else {
				others = append(others, n)
			}
		}
	}
	list := slices.Compact(append(installed, others...))
	if d.kind.negative() {
		return list
	}
	return slices.DeleteFunc(list, func(n *name) bool {
		st := s.of(n)
		return st.protected && !st.marked && st.current == nil
	})
}

// prefer orders two packages that satisfy a dependency on want: negative if x
// is to be tried first.
func (s *solver) prefer(want, x, y *name) int {
	a, b := s.of(x), s.of(y)
	for _, first := range [...][2]bool{
		{a.protected, b.protected},
		{a.current != nil, b.current != nil},
		{x == want, y == want},
		{a.candidate.Essential, b.candidate.Essential},
		{a.candidate.important, b.candidate.important},
	} {
		if first[0] != first[1] {
			if first[0] {
				return -1
			}
			return 1
		}
	}
	if c := cmp.Compare(priorityRank(a.candidate.Priority), priorityRank(b.candidate.Priority)); c != 0 {
		return c
	}
	return cmp.Compare(y.id, x.id)
}

// priorityRank is the order of priorities; unknown ones come last.
func priorityRank(p string) int {
	list := [...]string{"required", "important", "standard", "optional", "extra"}
	if i := slices.Index(list[:], p); i >= 0 {
		return i
	}
	return len(list) - 1
}

// sweep drops what was planned for an attempt that failed: everything that
// neither the user wants nor anything wanted needs, recommends or suggests.
func (s *solver) sweep() {
	used := make(map[*name]bool)
	var queue []*name
	use := func(n *name) {
		if st := s.of(n); st.planned != nil && !used[n] {
			used[n] = true
			queue = append(queue, n)
		}
	}
	var roots []*name
	for n, st := range s.state {
		if p := st.planned; p != nil && (!st.auto || p.Essential || p.important) {
			roots = append(roots, n)
		}
	}
	for _, n := range roots {
		use(n)
	}
	for len(queue) > 0 {
		p := s.of(queue[0]).planned
		queue = queue[1:]
		for _, d := range s.dependenciesOf(p) {
			if d.kind.negative() {
				continue
			}
			for _, a := range d.alternatives {
				for _, m := range s.matches(p, d.kind, a, planned) {
					use(m)
				}
			}
		}
	}
	for n, st := range s.state {
		if st.planned != nil && !used[n] {
			st.planned, st.marked = st.current, false
		}
	}
}
