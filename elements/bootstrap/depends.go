package bootstrap

import (
	"fmt"
	"strings"
)

// target is one alternative of a dependency: a package name, which may carry
// ":any", ":native" or an architecture, and a version relation.
type target struct {
	name    string // with its qualifier, as written
	rel     relation
	version string
}

// parseRelations parses a Depends-like field (Debian Policy 7.1): groups
// separated by commas, alternatives by bars. Empty groups, which occur in
// practice, are dropped. Architecture restrictions and build profiles belong
// to source packages and are errors here.
func parseRelations(field string) ([][]target, error) {
	var groups [][]target
	for group := range strings.SplitSeq(field, ",") {
		if strings.TrimSpace(group) == "" {
			continue
		}
		var alternatives []target
		for alternative := range strings.SplitSeq(group, "|") {
			t, err := parseTarget(alternative)
			if err != nil {
				return nil, fmt.Errorf("parse relation %.80q: %w", strings.TrimSpace(group), err)
			}
			alternatives = append(alternatives, t)
		}
		groups = append(groups, alternatives)
	}
	return groups, nil
}

// parseTarget parses "name", "name:any (>= 1.2)".
func parseTarget(s string) (target, error) {
	s = strings.Trim(s, " \t\n")
	name, rest, versioned := strings.Cut(s, "(")
	name = strings.TrimRight(name, " \t\n")
	if !validTargetName(name) {
		return target{}, fmt.Errorf("invalid package name %.60q", name)
	}
	if !versioned {
		return target{name: name}, nil
	}
	inner, after, closed := strings.Cut(rest, ")")
	if !closed || strings.TrimSpace(after) != "" {
		return target{}, fmt.Errorf("unbalanced or misplaced parentheses in %.60q", s)
	}
	rel, version := parseRelation(strings.TrimSpace(inner))
	if rel == anyVersion || version == "" || strings.ContainsAny(version, " \t\n") {
		return target{}, fmt.Errorf("invalid version relation (%.60s)", inner)
	}
	return target{name: name, rel: rel, version: version}, nil
}

// parseRelation splits the text between the parentheses. The old single
// characters < and > mean <= and >=, as for dpkg and apt.
func parseRelation(s string) (relation, string) {
	for _, op := range [...]struct {
		text string
		rel  relation
	}{
		{"<<", earlier},
		{"<=", earlierEqual},
		{">>", later},
		{">=", laterEqual},
		{"=", equal},
		{"<", earlierEqual},
		{">", laterEqual},
	} {
		if rest, ok := strings.CutPrefix(s, op.text); ok {
			return op.rel, strings.TrimLeft(rest, " \t\n")
		}
	}
	return anyVersion, ""
}

// validTargetName accepts what apt accepts: no blanks or control characters,
// starting with a letter or digit.
func validTargetName(name string) bool {
	if name == "" || !isAlnum(name[0]) {
		return false
	}
	for i := range len(name) {
		if c := name[i]; !isAlnum(c) && !strings.ContainsRune("+-.:_", rune(c)) {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
