package reproducibility

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"cairn/fsbuild/tree"
)

// Params say what a tree is normalised to.
type Params struct {
	Epoch time.Time // no time in the image is later

	// Started and Ended are when the build began and ended by the clock that
	// hooks saw; zero if not known. Times between them were set by the build
	// and become Epoch even if that is later, as with a wrong clock.
	Started, Ended time.Time

	// Dev are the paths below dev that the base came with; others are
	// removed.
	Dev []string

	// ResolvConf is what the build put into etc/resolv.conf; a file with
	// exactly this content is removed. nil for nothing.
	ResolvConf []byte

	// KeepAptCache keeps downloaded packages and indexes of apt.
	KeepAptCache bool
}

// Action says what a rule does to the files that it is about.
type Action string

// The actions of rules.
const (
	Remove   Action = "remove"   // the file, with all below it
	Truncate Action = "truncate" // a regular file to length 0
	Rewrite  Action = "rewrite"  // part of what it says
	Clamp    Action = "clamp"    // its modification time
)

// A Rule is one thing that normalisation does.
type Rule struct {
	Name     string
	Patterns []string // paths; * is any name or part of one, ** any number of directories
	Action   Action
	Reason   string

	when  func(*state, *tree.Node) bool            // further condition, nil for none
	apply func(*state, *tree.Node) (Action, error) // of Rewrite and Clamp; returns what it did, "" for nothing
}

// A Change is what a rule did to a file.
type Change struct {
	Rule   string
	Action Action
	Path   string
}

// A Report lists changes in the order of the rules, then of paths.
type Report struct {
	Changes []Change
}

// String returns a line for each change.
func (r Report) String() string {
	var b strings.Builder
	for _, c := range r.Changes {
		fmt.Fprintf(&b, "%s: %s %q\n", c.Rule, c.Action, c.Path)
	}
	return b.String()
}

// Count returns how many files the named rule changed.
func (r Report) Count(rule string) int {
	n := 0
	for _, c := range r.Changes {
		if c.Rule == rule {
			n++
		}
	}
	return n
}

// state is one run of Normalise.
type state struct {
	t      *tree.Tree
	p      Params
	epoch  tree.Time
	dev    map[string]bool
	links  map[uint64][]*tree.Node // names of each hard-linked file
	report Report
}

// Normalise applies [Rules] to t, which is an image's final tree. What it
// changes it reports. The error is one of reading a file's content.
func Normalise(t *tree.Tree, p Params) (Report, error) {
	return normalise(t, p, rules)
}

func normalise(t *tree.Tree, p Params, rules []Rule) (Report, error) {
	s := &state{t: t, p: p, epoch: tree.Time{Sec: p.Epoch.Unix()}, dev: map[string]bool{}}
	for _, name := range p.Dev {
		for ; name != "." && name != "dev"; name = path.Dir(name) {
			s.dev[name] = true
		}
	}
	s.findLinks()
	for _, r := range rules {
		if err := s.run(r); err != nil {
			return s.report, fmt.Errorf("normalise: %s: %w", r.Name, err)
		}
	}
	return s.report, nil
}

func (s *state) findLinks() {
	s.links = map[uint64][]*tree.Node{}
	for n := range s.t.All() {
		if n.Inode != 0 {
			s.links[n.Inode] = append(s.links[n.Inode], n)
		}
	}
}

// run applies one rule to all files that it is about.
func (s *state) run(r Rule) error {
	var nodes []*tree.Node // first, since the tree may change
	for _, pattern := range r.Patterns {
		nodes = s.match(nodes, ".", strings.Split(pattern, "/"))
	}
	for _, n := range nodes {
		if s.t.Lookup(n.Path) != n || r.when != nil && !r.when(s, n) {
			continue // gone with its directory, or not meant
		}
		path := n.Path
		did, err := s.act(r, n)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if did != "" {
			s.report.Changes = append(s.report.Changes, Change{r.Name, did, path})
		}
	}
	return nil
}

func (s *state) act(r Rule, n *tree.Node) (Action, error) {
	switch r.Action {
	case Remove:
		s.t.Remove(n.Path)
		return Remove, nil
	case Truncate:
		if n.Type != tree.Regular || n.Size == 0 {
			return "", nil
		}
		s.setContent(n, nil)
		return Truncate, nil
	case Rewrite, Clamp:
		return r.apply(s, n)
	}
	return "", fmt.Errorf("unknown action %q", r.Action)
}

// match appends to nodes those below dir whose paths match the components of
// a pattern, in canonical order. Symlinks are not followed.
func (s *state) match(nodes []*tree.Node, dir string, pattern []string) []*tree.Node {
	first, rest := pattern[0], pattern[1:]
	if first != "**" && !strings.Contains(first, "*") {
		return s.step(nodes, s.t.Lookup(path.Join(dir, first)), rest)
	}
	if first == "**" && len(rest) > 0 {
		nodes = s.match(nodes, dir, rest)
	}
	for n := range s.t.Children(dir) {
		switch ok, _ := path.Match(first, n.Name()); {
		case first == "**" && len(rest) == 0:
			nodes = append(nodes, n)
			nodes = s.match(nodes, n.Path, pattern)
		case first == "**":
			nodes = s.match(nodes, n.Path, pattern)
		case ok:
			nodes = s.step(nodes, n, rest)
		}
	}
	return nodes
}

func (s *state) step(nodes []*tree.Node, n *tree.Node, rest []string) []*tree.Node {
	switch {
	case n == nil:
		return nodes
	case len(rest) == 0:
		return append(nodes, n)
	}
	return s.match(nodes, n.Path, rest)
}

// names returns all names of the file n.
func (s *state) names(n *tree.Node) []*tree.Node {
	if n.Inode == 0 {
		return []*tree.Node{n}
	}
	return s.links[n.Inode]
}

// setContent gives the file n other content, and the epoch as its time.
func (s *state) setContent(n *tree.Node, b []byte) {
	var c tree.Content
	if len(b) > 0 {
		c = tree.Bytes(b)
	}
	for _, m := range s.names(n) {
		m.Size, m.Content, m.MTime = int64(len(b)), c, s.epoch
	}
}

// isStamp reports whether t was set by the build.
func (s *state) isStamp(t tree.Time) bool {
	if t.Compare(s.epoch) > 0 {
		return true
	}
	if s.p.Started.IsZero() || s.p.Ended.IsZero() {
		return false
	}
	return t.Sec >= s.p.Started.Unix() && t.Sec <= s.p.Ended.Unix()
}

// maxRead is the largest file, in bytes, whose content a rule looks at.
const maxRead = 16 << 20

// read returns the content of the regular file n, nil if it is too large to be
// what a rule is about.
func read(n *tree.Node) ([]byte, error) {
	if n.Size > maxRead {
		return nil, nil
	}
	return readHead(n, n.Size)
}

// readHead returns the first limit bytes of n, or all if there are fewer.
func readHead(n *tree.Node, limit int64) ([]byte, error) {
	if n.Size == 0 {
		return nil, nil
	}
	r, err := n.Content.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var b bytes.Buffer
	_, err = io.CopyN(&b, r, min(limit, n.Size))
	return b.Bytes(), err
}
