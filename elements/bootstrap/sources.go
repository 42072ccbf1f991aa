package bootstrap

import (
	"bytes"
	"fmt"
	"net/url"
	"strings"
)

// Source is one entry of apt's sources (sources.list(5)) for binary packages.
type Source struct {
	URIs, Suites, Components, Architectures []string
	// SignedBy are paths of keyrings, or fingerprints; Key is an armored key
	// given in place of them.
	SignedBy []string
	Key      []byte
}

// ParseSources parses a file in deb822 style (*.sources). Entries that are
// disabled or for source packages only are left out.
func ParseSources(data []byte) ([]Source, error) {
	s := newStanzaScanner(bytes.NewReader(data))
	s.comments = true
	var list []Source
	for s.scan() {
		if !enabled(s.get("enabled")) || !strings.Contains(" "+strings.Join(strings.Fields(s.get("types")), " ")+" ", " deb ") {
			continue
		}
		e := Source{
			URIs: strings.Fields(s.get("uris")), Suites: strings.Fields(s.get("suites")),
			Components: strings.Fields(s.get("components")), Architectures: strings.Fields(s.get("architectures")),
		}
		if len(e.URIs) == 0 || len(e.Suites) == 0 {
			return nil, fmt.Errorf("parse sources: line %d: entry without URIs or Suites", s.line)
		}
		e.setSignedBy(s.get("signed-by"))
		list = append(list, e)
	}
	if err := s.error(); err != nil {
		return nil, fmt.Errorf("parse sources: %w", err)
	}
	return list, nil
}

// enabled reads apt's spelling of a truth value; the default is yes.
func enabled(v string) bool {
	switch strings.ToLower(v) {
	case "no", "false", "without", "off", "disable", "0":
		return false
	}
	return true
}

// setSignedBy takes the value of Signed-By: a key, or paths and fingerprints.
func (e *Source) setSignedBy(v string) {
	if !strings.Contains(v, armorBegin) {
		e.SignedBy = strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' })
		return
	}
	var key strings.Builder
	for line := range strings.SplitSeq(strings.TrimLeft(v, "\n"), "\n") {
		if strings.TrimSpace(line) == "." {
			line = ""
		}
		key.WriteString(strings.TrimSpace(line) + "\n")
	}
	e.Key = []byte(key.String())
}

// ParseSourcesList parses a file in one-line style (sources.list, *.list).
func ParseSourcesList(data []byte) ([]Source, error) {
	var list []Source
	for i, line := range strings.Split(string(data), "\n") {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '\t' && rest[0] != '[' {
			continue // empty, deb-src, or a type that apt may learn
		}
		e, err := parseSourceLine(strings.TrimSpace(rest))
		if err != nil {
			return nil, fmt.Errorf("parse sources.list: line %d: %w", i+1, err)
		}
		list = append(list, e)
	}
	return list, nil
}

// parseSourceLine parses "[options] URI suite component…".
func parseSourceLine(s string) (Source, error) {
	var e Source
	if strings.HasPrefix(s, "[") {
		options, rest, ok := strings.Cut(s[1:], "]")
		if !ok {
			return e, fmt.Errorf("options without end")
		}
		s = rest
		for option := range strings.FieldsSeq(options) {
			key, value, _ := strings.Cut(option, "=")
			switch strings.ToLower(key) {
			case "arch":
				e.Architectures = strings.Split(value, ",")
			case "signed-by":
				e.setSignedBy(value)
			}
		}
	}
	words := strings.Fields(s)
	if len(words) < 2 {
		return e, fmt.Errorf("entry without URI or suite")
	}
	e.URIs, e.Suites, e.Components = words[:1], words[1:2], words[2:]
	return e, nil
}

// Auth is the credentials of apt's auth.conf.
type Auth []Credentials

// Credentials are one entry of auth.conf.
type Credentials struct {
	Scheme          string // "" means any that encrypts
	Host            string // with the port, if one is given
	Path            string // prefix
	Login, Password string
}

// ParseAuth parses a file in the format of apt_auth.conf(5), which is that of
// netrc with URL prefixes for machines.
func ParseAuth(data []byte) (Auth, error) {
	var auth Auth
	var words []string
	for line := range strings.SplitSeq(string(data), "\n") {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			words = append(words, strings.Fields(line)...)
		}
	}
	for i := 0; i < len(words); i += 2 {
		if i+1 == len(words) {
			return nil, fmt.Errorf("parse auth.conf: nothing after %.20q", words[i])
		}
		value := words[i+1]
		switch {
		case words[i] == "machine":
			auth = append(auth, parseMachine(value))
		case words[i] == "login" && len(auth) > 0:
			auth[len(auth)-1].Login = value
		case words[i] == "password" && len(auth) > 0:
			auth[len(auth)-1].Password = value
		default:
			return nil, fmt.Errorf("parse auth.conf: want machine, login or password, found another word (%d of %d)", i+1, len(words))
		}
	}
	return auth, nil
}

func parseMachine(s string) Credentials {
	var c Credentials
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		c.Scheme, s = strings.ToLower(scheme), rest
	}
	host, path, _ := strings.Cut(s, "/")
	c.Host = strings.ToLower(host)
	if path != "" {
		c.Path = "/" + path
	}
	return c
}

// Find returns the credentials for a URL: of the entries that match, the first.
func (a Auth) Find(rawURL string) (login, password string, ok bool) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", "", false
	}
	for _, c := range a {
		if c.matches(u) {
			return c.Login, c.Password, true
		}
	}
	return "", "", false
}

func (c Credentials) matches(u *url.URL) bool {
	if c.Scheme != u.Scheme && (c.Scheme != "" || u.Scheme != "https") {
		return false
	}
	if host := strings.ToLower(u.Host); c.Host != host && c.Host != strings.ToLower(u.Hostname()) {
		return false
	}
	rest, ok := strings.CutPrefix(u.Path, strings.TrimSuffix(c.Path, "/"))
	return ok && (rest == "" || rest[0] == '/')
}
