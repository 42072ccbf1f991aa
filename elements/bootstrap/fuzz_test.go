package bootstrap

import (
	"bytes"
	"strings"
	"testing"
)

func FuzzCompareVersions(f *testing.F) {
	for i, p := range versionPairs {
		f.Add(p.a, p.b, versionPairs[(i+1)%len(versionPairs)].a)
	}
	f.Fuzz(func(t *testing.T, a, b, c string) {
		ab, ba, bc, ac := sign3(CompareVersions(a, b)), sign3(CompareVersions(b, a)), sign3(CompareVersions(b, c)), sign3(CompareVersions(a, c))
		if ab != -ba || CompareVersions(a, a) != 0 {
			t.Errorf("%q %q: %d, %d", a, b, ab, ba)
		}
		if ab <= 0 && bc <= 0 && (ac > 0 || ac == 0 && (ab < 0 || bc < 0)) {
			t.Errorf("%q %q %q: %d %d %d", a, b, c, ab, bc, ac)
		}
	})
}

func FuzzStanzas(f *testing.F) {
	f.Add("A: 1\n b\n\nB: 2\n", true)
	f.Add(someRelease, false)
	f.Fuzz(func(t *testing.T, text string, comments bool) {
		list, err := scanAll(text, comments)
		if err != nil {
			return
		}
		for _, m := range list {
			if len(m) == 0 {
				t.Error("paragraph without fields")
			}
			for name := range m {
				if name == "" || strings.ContainsAny(name, ": \t\n") {
					t.Errorf("field name %q", name)
				}
			}
		}
	})
}

func FuzzRelations(f *testing.F) {
	f.Add("a, b (>= 1:2~) | c:any (<< 3)")
	f.Fuzz(func(t *testing.T, text string) {
		groups, err := parseRelations(text)
		if err != nil {
			return
		}
		var parts []string
		for _, g := range groups {
			var alternatives []string
			for _, a := range g {
				s := a.name
				if a.rel != anyVersion {
					s += " (" + a.rel.String() + " " + a.version + ")"
				}
				alternatives = append(alternatives, s)
			}
			parts = append(parts, strings.Join(alternatives, " | "))
		}
		again, err := parseRelations(strings.Join(parts, ", "))
		if err != nil || len(again) != len(groups) {
			t.Errorf("%q: %v, %v", text, again, err)
		}
	})
}

func FuzzRelease(f *testing.F) {
	f.Add([]byte(someRelease))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ParseRelease(text)
		if err != nil {
			return
		}
		for path, file := range r.Files {
			if !cleanRelative(path) || file.Size < 0 || !file.Digest.Valid() {
				t.Errorf("%q: %+v", path, file)
			}
		}
	})
}

func FuzzDeb(f *testing.F) {
	control := arEntry("control.tar.gz", gzipped(f, nil))
	f.Add(append(append([]byte(arMagic), arEntry("debian-binary", []byte("2.0\n"))...), control...))
	f.Add([]byte(arMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		control, body, err := readDeb(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		if control.Size()+body.Size() > int64(len(data)) {
			t.Errorf("members larger than the file")
		}
		if r, err := control.open(); err == nil {
			_, _ = readControl(r)
			_ = r.Close()
		}
	})
}

func FuzzControl(f *testing.F) {
	f.Add([]byte(alphaControl), []byte("/etc/x\n"), []byte("interest x\n"))
	f.Fuzz(func(t *testing.T, stanza, conffiles, triggers []byte) {
		c := &control{stanza: stanza, files: []controlFile{{"conffiles", 0, conffiles}, {"triggers", 0, triggers}}}
		if c.parse() != nil {
			return
		}
		if strings.ContainsAny(c.infoName(), "/\x00\n") {
			t.Errorf("name %q", c.infoName())
		}
		if list, err := c.conffiles(); err == nil {
			for _, name := range list {
				if !cleanRelative(name) {
					t.Errorf("conffile %q", name)
				}
			}
		}
		_ = c.addInterests(make(map[string][]string))
	})
}

func FuzzSources(f *testing.F) {
	f.Add([]byte("Types: deb\nURIs: http://x\nSuites: y\n"), []byte("deb [a=b] http://x y z"), []byte("machine a login b password c"))
	f.Fuzz(func(_ *testing.T, deb822, list, auth []byte) {
		_, _ = ParseSources(deb822)
		_, _ = ParseSourcesList(list)
		if a, err := ParseAuth(auth); err == nil {
			a.Find("https://a/b")
		}
	})
}
