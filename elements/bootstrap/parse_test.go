package bootstrap

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var versionPairs = []struct {
	a, b string
	want int
}{
	{"1.0", "1.0", 0},
	{"1.0", "1.1", -1},
	{"1.9", "1.10", -1},
	{"1.0~rc1", "1.0", -1},
	{"1.0~~", "1.0~", -1},
	{"1.0~~a", "1.0~", -1},
	{"1.0-1", "1.0-1+b1", -1},
	{"1.0-1+deb12u1", "1.0-1+b1", 1},
	{"1:0.9", "2.0", 1},
	{"0:1.0", "1.0", 0},
	{"1.0-0", "1.0", 0},
	{"1.007", "1.7", 0},
	{"1.a", "1.+", -1},
	{"1.Z", "1.a", -1},
	{"1-2-3", "1-2-4", -1},
	{"99999999999999999999999", "100000000000000000000000", -1},
	{"5.36.0-7+deb12u4", "5.36.0-7+deb12u3", 1},
}

func TestCompareVersions(t *testing.T) {
	tool(t, "dpkg", "dpkg")
	for _, p := range versionPairs {
		if got := sign3(CompareVersions(p.a, p.b)); got != p.want {
			t.Errorf("CompareVersions(%q, %q) = %d, want %d", p.a, p.b, got, p.want)
		}
		if got := sign3(CompareVersions(p.b, p.a)); got != -p.want {
			t.Errorf("CompareVersions(%q, %q) = %d, want %d", p.b, p.a, got, -p.want)
		}
		op := map[int]string{-1: "lt", 0: "eq", 1: "gt"}[p.want]
		if err := exec.Command("dpkg", "--compare-versions", p.a, op, p.b).Run(); err != nil {
			t.Errorf("dpkg --compare-versions %s %s %s: %v", p.a, op, p.b, err)
		}
	}
}

func sign3(c int) int {
	switch {
	case c < 0:
		return -1
	case c > 0:
		return 1
	}
	return 0
}

func scanAll(text string, comments bool) ([]map[string]string, error) {
	s := newStanzaScanner(strings.NewReader(text))
	s.comments = comments
	var list []map[string]string
	for s.scan() {
		m := make(map[string]string)
		for _, f := range s.fields {
			m[string(f.name)] = string(f.value)
		}
		list = append(list, m)
	}
	return list, s.error()
}

func TestStanzas(t *testing.T) {
	long := strings.Repeat("x", 600<<10)
	tests := map[string]struct {
		text     string
		comments bool
		want     []map[string]string
		fails    bool
	}{
		"empty":             {text: "\n\n"},
		"two":               {text: "A: 1\nB: 2\n\nA: 3\n", want: []map[string]string{{"a": "1", "b": "2"}, {"a": "3"}}},
		"no last newline":   {text: "A: 1", want: []map[string]string{{"a": "1"}}},
		"blank separators":  {text: "A: 1\n \t\nA: 2\n\n\n", want: []map[string]string{{"a": "1"}, {"a": "2"}}},
		"continuation":      {text: "A:\n one\n  two\n .\nB: 2\n", want: []map[string]string{{"a": "\none\n two\n.", "b": "2"}}},
		"carriage returns":  {text: "A: 1\r\n\r\nB: 2\r\n", want: []map[string]string{{"a": "1"}, {"b": "2"}}},
		"comments":          {text: "# x\nA: 1\n#B: 2\n", comments: true, want: []map[string]string{{"a": "1"}}},
		"no comments":       {text: "#B: 2\n", want: []map[string]string{{"#b": "2"}}},
		"long line":         {text: "A: " + long + "\nB: 2\n", want: []map[string]string{{"a": long, "b": "2"}}},
		"no colon":          {text: "A: 1\nnonsense\n", fails: true},
		"blank in name":     {text: "A b: 1\n", fails: true},
		"lone continuation": {text: " x\n", fails: true},
		"too long":          {text: "A: " + strings.Repeat("y", maxStanza), fails: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := scanAll(test.text, test.comments)
			if (err != nil) != test.fails {
				t.Fatalf("error = %v", err)
			}
			if diff := cmp.Diff(test.want, got); !test.fails && diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseRelations(t *testing.T) {
	got, err := parseRelations("a, b (>= 1:2~) | c:any(<<3) ,, d\n (= 1), e (< 2)|f (> 2)")
	if err != nil {
		t.Fatal(err)
	}
	want := [][]target{
		{{name: "a"}},
		{{"b", laterEqual, "1:2~"}, {"c:any", earlier, "3"}},
		{{"d", equal, "1"}},
		{{"e", earlierEqual, "2"}, {"f", laterEqual, "2"}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(target{})); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"a (", "a (>= 1", "a )", "a (1)", "a (>=)", "a |", "a b", "a (>= 1 2)", "a (= 1) x", "-a", "a [i386]", "a/b"} {
		if got, err := parseRelations(bad); err == nil {
			t.Errorf("parseRelations(%q) = %v, want an error", bad, got)
		}
	}
}

const someRelease = `Origin: Debian
Suite: stable
Codename: test
Date: Sat, 11 Jul 2026 10:16:37 UTC
Valid-Until: Sat, 18 Jul 2026 10:16:37 UTC
Acquire-By-Hash: yes
Architectures: all amd64
Components: main
SHA256:
 515e692f2c4121c6fcec444ef100cc18f79a991910615f3a88c8b7becfc94d2f 50060337 main/binary-amd64/Packages
`

func TestParseRelease(t *testing.T) {
	r, err := ParseRelease([]byte(someRelease))
	if err != nil {
		t.Fatal(err)
	}
	if !r.ByHash || r.Codename != "test" || !r.SeparateArchitectureAll || r.priority() != 500 ||
		r.Files["main/binary-amd64/Packages"].Size != 50060337 {
		t.Errorf("%+v", r)
	}
	if want := time.Date(2026, 7, 11, 10, 16, 37, 0, time.UTC); !r.Date.Equal(want) {
		t.Errorf("Date = %v", r.Date)
	}
	for name, change := range map[string][2]string{
		"path above":     {"main/binary-amd64/Packages", "../Packages"},
		"absolute path":  {"main/binary-amd64/Packages", "/etc/passwd"},
		"short digest":   {"515e", "15e"},
		"negative size":  {"50060337", "-1"},
		"two paragraphs": {"Components", "\nComponents"},
		"bad date":       {"11 Jul 2026", "31 Jux 2026"},
		"local zone":     {"UTC\nValid", "CEST\nValid"},
		"no files":       {"SHA256", "MD5Sum"},
	} {
		text := strings.Replace(someRelease, change[0], change[1], 1)
		if r, err := ParseRelease([]byte(text)); err == nil || text == someRelease {
			t.Errorf("%s: %+v, want an error", name, r)
		}
	}
}

func TestReleasePriority(t *testing.T) {
	for text, want := range map[string]int{
		"":                    500,
		"NotAutomatic: yes\n": 1,
		"NotAutomatic: yes\nButAutomaticUpgrades: yes\n": 100,
	} {
		r, err := ParseRelease([]byte(text + someRelease))
		if err != nil || r.priority() != want {
			t.Errorf("%q: %v, %v, want %d", text, r.priority(), err, want)
		}
	}
}

func TestCheckDates(t *testing.T) {
	r, err := ParseRelease([]byte(someRelease))
	if err != nil {
		t.Fatal(err)
	}
	var expired *ExpiredError
	var early *NotYetValidError
	if err := r.CheckDates("u", r.Date, false); err != nil {
		t.Error(err)
	}
	late := r.ValidUntil.Add(49 * time.Hour)
	if err := r.CheckDates("u", late, false); !errors.As(err, &expired) || !strings.Contains(err.Error(), "49h") || !strings.Contains(expired.Hint(), "stale") {
		t.Errorf("%v", err)
	}
	if err := r.CheckDates("u", late, true); err != nil {
		t.Errorf("allowed: %v", err)
	}
	if err := r.CheckDates("u", r.Date.Add(-time.Hour), true); !errors.As(err, &early) {
		t.Errorf("%v", err)
	}
	r.ValidUntil = time.Time{}
	if err := r.CheckDates("u", late.AddDate(10, 0, 0), false); err != nil {
		t.Errorf("no limit: %v", err)
	}
}

func TestParseSources(t *testing.T) {
	got, err := ParseSources([]byte(`# comment
Types: deb deb-src
URIs: http://a.example/debian  https://b.example/debian/
Suites: bookworm bookworm-updates
Components: main
 contrib
Architectures: amd64
Signed-By: /usr/share/keyrings/x.gpg

Types: deb-src
URIs: http://a.example/debian
Suites: bookworm

Enabled: no
Types: deb
URIs: http://c.example
Suites: ./

Types: deb
URIs: http://d.example
Suites: ./
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Source{
		{
			URIs: []string{"http://a.example/debian", "https://b.example/debian/"}, Suites: []string{"bookworm", "bookworm-updates"},
			Components: []string{"main", "contrib"}, Architectures: []string{"amd64"}, SignedBy: []string{"/usr/share/keyrings/x.gpg"},
		},
		{
			URIs: []string{"http://d.example"}, Suites: []string{"./"}, Components: []string{}, Architectures: []string{},
			Key: []byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabc\n-----END PGP PUBLIC KEY BLOCK-----\n"),
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := ParseSources([]byte("Types: deb\nURIs: http://x\n")); err == nil {
		t.Error("no error for an entry without suites")
	}
}

func TestParseSourcesList(t *testing.T) {
	got, err := ParseSourcesList([]byte(`
# deb http://no.example x main
deb http://a.example/debian bookworm main contrib # why
deb-src http://a.example/debian bookworm main
deb [ arch=amd64,i386 signed-by=/k.gpg,/l.gpg ] https://b.example/ stable main
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Source{
		{URIs: []string{"http://a.example/debian"}, Suites: []string{"bookworm"}, Components: []string{"main", "contrib"}},
		{
			URIs: []string{"https://b.example/"}, Suites: []string{"stable"}, Components: []string{"main"},
			Architectures: []string{"amd64", "i386"}, SignedBy: []string{"/k.gpg", "/l.gpg"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"deb http://x", "deb [arch=x http://x y z"} {
		if _, err := ParseSourcesList([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestAuth(t *testing.T) {
	a, err := ParseAuth([]byte(`machine a.example/debian login u password p
# comment
machine http://b.example:8080
  login v
  password q
machine c.example login w password r
`))
	if err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"https://a.example/debian/dists": "u:p",
		"https://a.example/debian":       "u:p",
		"https://a.example/debianx":      "",
		"https://a.example/other":        "",
		"http://a.example/debian/dists":  "",
		"http://b.example:8080/x":        "v:q",
		"https://b.example:8080/x":       "",
		"https://C.example:444/x":        "w:r",
		"https://cc.example/x":           "",
	} {
		login, password, ok := a.Find(url)
		if got := login + ":" + password; ok != (want != "") || ok && got != want {
			t.Errorf("Find(%q) = %q, %v, want %q", url, got, ok, want)
		}
	}
	for _, bad := range []string{"login x", "machine", "machine a secret b"} {
		if _, err := ParseAuth([]byte(bad)); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("ParseAuth(%q): %v", bad, err)
		}
	}
}
