package bootstrap

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// miniature reads packages written as "name version: field=value; …".
func miniature(t *testing.T, text string) *Index {
	t.Helper()
	u := newUniverse("amd64")
	if err := u.read(strings.NewReader(miniatureStanzas(text)), &origin{canonical, canonical, 500}); err != nil {
		t.Fatal(err)
	}
	return &Index{universe: u}
}

func miniatureStanzas(text string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		head, fields, _ := strings.Cut(strings.TrimSpace(line), ":=")
		name, version, _ := strings.Cut(strings.TrimSpace(head), " ")
		var more strings.Builder
		for f := range strings.SplitSeq(fields, ";") {
			if strings.TrimSpace(f) != "" {
				more.WriteString(strings.TrimSpace(f) + "\n")
			}
		}
		b.WriteString(debStanza(name, version, more.String(), debBody(name+version, 10)) + "\n")
	}
	return b.String()
}

func names(list []Package) string {
	var s []string
	for _, p := range list {
		s = append(s, p.Name+"="+p.Version)
	}
	slices.Sort(s)
	return strings.Join(s, " ")
}

// scenarios are judged by apt too.
var scenarios = []struct {
	name, packages string
	include        string
	want           string // names, or part of the error after "!"
}{
	{"newest", "a 1\na 2~\na 1.9", "a", "a=2~"},
	{"chain", "a 1:=Depends: b (>= 2)\nb 2:=Pre-Depends: c\nc 1", "a", "a=1 b=2 c=1"},
	{"first alternative", "a 1:=Depends: b | c\nb 1\nc 1", "a", "a=1 b=1"},
	{"second, first is missing", "a 1:=Depends: b | c\nc 1", "a", "a=1 c=1"},
	{"second, first is too old", "a 1:=Depends: b (>> 1) | c\nb 1\nc 1", "a", "a=1 c=1"},
	{"second, first needs what is missing", "a 1:=Depends: b | c\nb 1:=Depends: x\nc 1", "a", "a=1 c=1"},
	{"second is asked for", "a 1:=Depends: b | c\nb 1\nc 1", "a c", "a=1 c=1"},
	{"real before virtual", "a 1:=Depends: v\nv 1\nw 1:=Provides: v", "a", "a=1 v=1"},
	{"virtual by priority", "a 1:=Depends: v\nx 1:=Provides: v; Priority: optional\ny 1:=Provides: v; Priority: standard\nz 1:=Provides: v; Priority: extra", "a", "a=1 y=1"},
	{"virtual by last mention", "x 1:=Provides: v\ny 1:=Provides: v\na 1:=Depends: v", "a", "a=1 y=1"},
	{"virtual by order of mention, not of record", "y 1:=Provides: v; Suggests: z\nx 1:=Provides: v\na 1:=Depends: v\nz 1:=Provides: v", "a", "a=1 x=1"},
	{"essential provider", "a 1:=Depends: v\nx 1:=Provides: v; Essential: yes\ny 1:=Provides: v", "a", "a=1 x=1"},
	{"versioned provides", "a 1:=Depends: v (>= 2)\nx 1:=Provides: v (= 1)\ny 1:=Provides: v\nw 1:=Provides: v (= 2)", "a", "a=1 w=1"},
	{"only one provides, asked for", "x 1:=Provides: v", "v", "x=1"},
	{"two provide, asked for", "x 1:=Provides: v\ny 1:=Provides: v", "v", "!choose one of x, y"},
	{"any", "a 1:=Depends: p:any\np 1:=Multi-Arch: allowed", "a", "a=1 p=1"},
	{"any, not allowed", "a 1:=Depends: p:any\np 1", "a", "!depends on p:any"},
	{"native", "a 1:=Depends: p:native\np 1", "a", "a=1 p=1"},
	{"own architecture", "a 1:=Depends: p:amd64\np 1", "a", "a=1 p=1"},
	{"foreign architecture", "a 1:=Depends: p:i386\np 1", "a", "!depends on p:i386"},
	{"conflict of the wanted", "a 1:=Conflicts: b\nb 1\nc 1:=Depends: b | d\nd 1", "a c", "a=1 c=1 d=1"},
	{"conflict with a provider", "a 1:=Conflicts: v\nb 1:=Provides: v\nc 1:=Depends: v\nd 1:=Provides: v\ne 1", "a e", "a=1 e=1"},
	{"self conflict by provides", "a 1:=Provides: v; Conflicts: v", "a", "a=1"},
	{"versioned conflict does not apply", "a 1:=Conflicts: b (<< 1)\nb 1", "a b", "a=1 b=1"},
	{"breaks", "a 1:=Depends: b | c\nb 1\nc 1\nd 1:=Breaks: b", "d a", "a=1 c=1 d=1"},
	{"wanted conflict", "a 1:=Conflicts: b\nb 1", "a b", "!conflicts with b"},
	{"missing", "a 1", "b", "!no package b"},
	{"unmet", "a 1:=Depends: b (>= 2)\nb 1", "a", "!a 1 depends on b (>= 2)"},
	{"unmet deeply", "a 1:=Depends: b\nb 1:=Depends: c\nc 1:=Depends: x", "a", "!depends on "},
	{"cycle", "a 1:=Depends: b\nb 1:=Depends: a", "a", "a=1 b=1"},
	{"recommends are left", "a 1:=Recommends: b\nb 1", "a", "a=1"},
	{"single solution is protected", "a 1:=Depends: b\nb 1:=Conflicts: c\nd 1:=Depends: c | e\nc 1\ne 1", "a d", "a=1 b=1 d=1 e=1"},
	{"old operators", "a 1:=Depends: b (< 2)\nb 2", "a", "a=1 b=2"},
}

func TestResolve(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			got, err := miniature(t, s.packages).Resolve(Request{Include: strings.Fields(s.include), Bare: true})
			text, fails := strings.CutPrefix(s.want, "!")
			switch {
			case fails && (!is[*ResolveError](err) || !strings.Contains(err.Error(), text)):
				t.Errorf("%q, %v, want error with %q", names(got), err, text)
			case !fails && (err != nil || names(got) != text):
				t.Errorf("%q, %v, want %q", names(got), err, text)
			}
		})
	}
}

func TestResolveBase(t *testing.T) {
	x := miniature(t, `
		bash 1:=Essential: yes; Pre-Depends: libc
		libc 1:=Priority: optional
		apt 1:=Priority: required; Depends: libapt
		libapt 1:=Depends: libc; Recommends: keyring
		keyring 1
		tool 1:=Priority: important
		unrelated 1`)
	var got []string
	list, err := x.Resolve(Minbase())
	for _, p := range list {
		got = append(got, fmt.Sprintf("%s %v %v", p.Name, p.Base, p.Auto))
	}
	if want := "libc true false,libapt false true,apt false false,bash true false"; err != nil || strings.Join(got, ",") != want {
		t.Errorf("%q, %v, want %q", strings.Join(got, ","), err, want)
	}
	list, err = x.Resolve(Request{Include: []string{"apt"}, Priorities: []string{"required", "important"}, Recommends: true})
	if want := "apt=1 bash=1 keyring=1 libapt=1 libc=1 tool=1"; err != nil || names(list) != want {
		t.Errorf("%q, %v, want %q", names(list), err, want)
	}
}

func TestCandidatePins(t *testing.T) {
	u := newUniverse("amd64")
	for _, o := range []struct {
		pin     int
		version string
	}{{500, "1"}, {1, "9"}, {100, "5"}, {500, "2"}} {
		if err := u.read(strings.NewReader(debStanza("a", o.version, "", debBody(o.version, 10))), &origin{canonical, canonical, o.pin}); err != nil {
			t.Fatal(err)
		}
	}
	if p := u.names["a"].candidate(); p.Version != "2" {
		t.Errorf("candidate %s", p.Version)
	}
}

// aptRoot is a private installation of apt's state with nothing installed.
type aptRoot struct{ dir string }

// newAptRoot makes one for indexes, each the text of a Packages file.
func newAptRoot(t *testing.T, indexes ...[]byte) aptRoot {
	t.Helper()
	tool(t, "apt-get", "apt")
	a := aptRoot{t.TempDir()}
	var sources strings.Builder
	for i, index := range indexes {
		dir := filepath.Join(a.dir, fmt.Sprintf("repo%d", i))
		write(t, filepath.Join(dir, "Packages"), string(index))
		fmt.Fprintf(&sources, "deb [trusted=yes] copy:%s ./\n", dir)
	}
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial", "etc/preferences.d"} {
		if err := os.MkdirAll(filepath.Join(a.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(a.dir, "status"), "")
	write(t, filepath.Join(a.dir, "etc/sources.list"), sources.String())
	write(t, filepath.Join(a.dir, "apt.conf"), strings.ReplaceAll(`
Dir "@"; Dir::Etc "@/etc"; Dir::Etc::main "/dev/null"; Dir::Etc::parts "/dev/null";
Dir::State "@/state"; Dir::State::status "@/status"; Dir::Cache "@/cache";
APT::Architecture "amd64"; APT::Architectures { "amd64"; };
APT::Install-Recommends "false"; APT::Solver "internal";
Acquire::Languages "none"; APT::Sandbox::User "root";
`, "@", a.dir))
	if out, err := a.run("update"); err != nil {
		t.Fatalf("apt-get update: %v\n%s", err, out)
	}
	return a
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (a aptRoot) run(args ...string) (string, error) {
	cmd := exec.Command("apt-get", args...)
	cmd.Env = []string{"APT_CONFIG=" + filepath.Join(a.dir, "apt.conf"), "LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// choose is what apt would install, without simulating how, which takes most
// of the time for many packages. The packages must not be there to be read.
func (a aptRoot) choose(include []string) (list string, plain bool, err error) {
	out, err := a.run(append([]string{"-qq", "--print-uris", "-o", "Debug::pkgProblemResolver=1", "install"}, include...)...)
	plain = strings.Contains(out, "Starting pkgProblemResolver with broken count: 0\n")
	if err != nil {
		return "", plain, errors.New(out)
	}
	var found []string
	for line := range strings.SplitSeq(out, "\n") {
		if f := strings.Fields(line); len(f) > 2 && f[0][0] == '\'' {
			part := strings.Split(f[1], "_")
			found = append(found, part[0]+"="+strings.ReplaceAll(part[1], "%3a", ":"))
		}
	}
	slices.Sort(found)
	return strings.Join(found, " "), plain, nil
}

// install is what apt would install, or an error. plain says that apt had
// nothing broken when its first pass was over, so that its second, scoring
// solver had nothing to do.
func (a aptRoot) install(include []string) (list string, plain bool, err error) {
	out, err := a.run(append([]string{"-s", "-o", "Debug::pkgProblemResolver=1", "install"}, include...)...)
	plain = !strings.Contains(out, "Starting pkgProblemResolver with broken count:") ||
		strings.Contains(out, "Starting pkgProblemResolver with broken count: 0\n")
	if err != nil {
		return "", plain, errors.New(out)
	}
	var found []string
	for line := range strings.SplitSeq(out, "\n") {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "Inst" {
			found = append(found, f[1]+"="+strings.TrimPrefix(f[2], "("))
		}
	}
	slices.Sort(found)
	return strings.Join(found, " "), plain, nil
}

func TestScenariosEqualApt(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			got, _, err := newAptRoot(t, []byte(miniatureStanzas(s.packages))).install(strings.Fields(s.include))
			if fails := strings.HasPrefix(s.want, "!"); fails != (err != nil) || !fails && got != s.want {
				t.Errorf("apt: %q, %v, want %q", got, err, s.want)
			}
		})
	}
}

// generated makes a small archive full of alternatives, virtual packages,
// versions and conflicts, and requests for it. It has no Pre-Depends: cycles of
// them make apt fail after it has resolved, when it orders.
func generated(seed uint64, requests int) (string, [][]string) {
	r := rand.New(rand.NewPCG(seed, 7))
	name := func() string { return fmt.Sprintf("p%d", r.IntN(120)) }
	target := func() string {
		switch r.IntN(6) {
		case 0:
			return fmt.Sprintf("v%d", r.IntN(12))
		case 1:
			return fmt.Sprintf("%s (%s %d)", name(), []string{">=", "<<", "=", ">>", "<="}[r.IntN(5)], 1+r.IntN(4))
		}
		return name()
	}
	var b strings.Builder
	for i := range 120 {
		var f []string
		var groups []string
		for range r.IntN(4) {
			group := []string{target()}
			for range r.IntN(3) {
				group = append(group, target())
			}
			groups = append(groups, strings.Join(group, " | "))
		}
		if len(groups) > 0 {
			f = append(f, "Depends: "+strings.Join(groups, ", "))
		}
		if r.IntN(8) == 0 {
			f = append(f, []string{"Conflicts: ", "Breaks: "}[r.IntN(2)]+target())
		}
		if r.IntN(5) == 0 {
			f = append(f, fmt.Sprintf("Provides: v%d%s", r.IntN(12), []string{"", " (= 2)"}[r.IntN(2)]))
		}
		f = append(f, "Priority: "+[]string{"required", "important", "standard", "optional", "optional", "extra"}[r.IntN(6)])
		for v := range 1 + r.IntN(2) {
			fmt.Fprintf(&b, "p%d %d:=%s\n", i, v+1+r.IntN(3), strings.Join(f, ";"))
		}
	}
	list := make([][]string, requests)
	for i := range list {
		for range 1 + r.IntN(3) {
			list[i] = append(list[i], name())
		}
	}
	return miniatureStanzas(b.String()), list
}

// asker is one of the ways to ask apt.
type asker func([]string) (list string, plain bool, err error)

// compareWithApt runs requests through both solvers. The one excluded case
// (see the package comment) is that apt's second solver had something to mend:
// then the result may differ or be an error, but if there is one, apt must
// find it consistent and complete. It returns how many those were.
func compareWithApt(t *testing.T, x *Index, ask asker, requests [][]string) (excluded int) {
	t.Helper()
	var mu sync.Mutex
	var group sync.WaitGroup
	queue := make(chan []string)
	for range 2 {
		group.Go(func() {
			for include := range queue {
				want, plain, aptErr := ask(include)
				packages, err := x.Resolve(Request{Include: include, Bare: true})
				got := names(packages)
				mu.Lock()
				switch {
				case (err != nil) == (aptErr != nil) && got == want:
				case plain:
					t.Errorf("%v: %v\n    %s\napt %s %v", include, err, got, want, aptErr)
				case err != nil:
					excluded++
				default:
					excluded++
					// Asked for by name and version, everything must stay.
					if again, _, err := ask(strings.Fields(got)); again != got {
						t.Errorf("%v: %s: inconsistent, apt makes it %s, %v", include, got, again, err)
					}
				}
				mu.Unlock()
			}
		})
	}
	for _, r := range requests {
		queue <- r
	}
	close(queue)
	group.Wait()
	return excluded
}

// TestResolveEqualsAptOnHardOnes uses generated archives that are much harder
// than Debian's.
func TestResolveEqualsAptOnHardOnes(t *testing.T) {
	const seeds, requests = 5, 60
	excluded := 0
	for seed := range uint64(seeds) {
		text, list := generated(seed, requests)
		u := newUniverse("amd64")
		if err := u.read(strings.NewReader(text), &origin{canonical, canonical, 500}); err != nil {
			t.Fatal(err)
		}
		excluded += compareWithApt(t, &Index{universe: u}, newAptRoot(t, []byte(text)).install, list)
	}
	t.Logf("%d of %d requests differ because of apt's second solver", excluded, seeds*requests)
}

// TestResolveEqualsApt uses Debian: a part of the index that is closed under
// dependencies, so that apt answers quickly, with the real order of records.
func TestResolveEqualsApt(t *testing.T) {
	config := realConfig(t, "bookworm")
	x, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(2026, 11))
	wanted, part := closure(x.universe, r, 120)
	var indexes [][]byte
	u := newUniverse("amd64")
	for _, s := range x.suites {
		files, err := s.packagesFiles("amd64")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, _ := s.blob(f)
			index := filterIndex(t, x, b, part)
			indexes = append(indexes, index)
			if err := u.read(bytes.NewReader(index), &origin{s.archive.Canonical, "", 500}); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d of %d names", len(part), len(x.universe.names))
	const simulated = 5
	requests := make([][]string, 210)
	for i := range requests {
		for range 1 + r.IntN(4) {
			requests[i] = append(requests[i], wanted[r.IntN(len(wanted))])
		}
	}
	small := &Index{universe: u}
	apt := newAptRoot(t, indexes...)
	excluded := compareWithApt(t, small, apt.install, requests[:simulated])
	excluded += compareWithApt(t, small, apt.choose, requests[simulated:])
	if t.Logf("%d requests differ because of apt's second solver", excluded); excluded > len(requests)/50 {
		t.Errorf("too many requests cannot be compared")
	}
}

// closure picks some packages and everything that their dependencies name.
func closure(u *universe, r *rand.Rand, n int) (picked []string, part map[string]bool) {
	var all []string
	for text, entry := range u.names {
		if entry.candidate() != nil {
			all = append(all, text)
		}
	}
	slices.Sort(all)
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	picked = all[:n]
	part = make(map[string]bool)
	s := newSolver(u, false)
	queue := slices.Clone(picked)
	for len(queue) > 0 {
		entry := u.names[queue[0]]
		queue = queue[1:]
		if entry == nil || part[entry.text] {
			continue
		}
		part[entry.text] = true
		for _, p := range entry.provided {
			queue = append(queue, p.by.Name)
		}
		for _, p := range entry.versions {
			for _, d := range s.dependenciesOf(p) {
				for _, a := range d.alternatives {
					if a.name != nil && !d.kind.negative() {
						queue = append(queue, a.name.text)
					}
				}
			}
		}
	}
	return picked, part
}

// filterIndex returns the records of an index whose package is in part.
func filterIndex(t *testing.T, x *Index, b Blob, part map[string]bool) []byte {
	t.Helper()
	var out bytes.Buffer
	err := x.readIndex(b, func(r io.Reader) error {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxStanza)
		keep := false
		for lines.Scan() {
			if name, ok := strings.CutPrefix(lines.Text(), "Package: "); ok {
				keep = part[name]
			}
			if keep {
				out.Write(lines.Bytes())
				out.WriteByte('\n')
			}
		}
		return lines.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
