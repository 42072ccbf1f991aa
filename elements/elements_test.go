package elements

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// write makes files below a new directory: a name that ends in "/" is a directory, a content that starts with "->"
// is a link, and one that starts with "#!" is executable.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(full, 0o755)
		case strings.HasPrefix(text, "->"):
			err = os.Symlink(text[2:], full)
		case strings.HasPrefix(text, "#!"):
			err = os.WriteFile(full, []byte(text), 0o775)
		default:
			err = os.WriteFile(full, []byte(text), 0o664)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t *testing.T, dirs ...string) *Catalog {
	t.Helper()
	c, err := Load(dirs, Builtin{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// resolverElements are the fixture of the dependency tests, name by "deps > provides".
var resolverElements = map[string]string{
	"os":               "> operating-system",
	"os2":              "> operating-system",
	"plain":            "",
	"a":                "b c",
	"b":                "c",
	"c":                "",
	"self":             "self",
	"loop1":            "loop2 a",
	"loop2":            "loop1",
	"missing-dep":      "nosuch",
	"vm":               "block-device bootloader",
	"bootloader":       "",
	"zipl":             "> bootloader",
	"needs-virt":       "virt",
	"provides-v":       "> virt",
	"virt":             "missing-dep",
	"os-by-dep":        "os",
	"block-device-mbr": "> block-device",
	"block-device-gpt": "> block-device",
	"block-device-efi": "> block-device",
	"comment":          "# comment",
	"two":              "plain > x y",
	"x-user":           "x y z-last",
	"z-last":           "x",
}

func resolverCatalog(t *testing.T) *Catalog {
	t.Helper()
	files := map[string]string{}
	for name, text := range resolverElements {
		deps, provides, _ := strings.Cut(text, ">")
		files[name+"/README.md"] = name
		if strings.HasPrefix(deps, "#") {
			files[name+"/element-deps"] = deps + "\n"
		} else {
			files[name+"/element-deps"] = "\n" + strings.Join(strings.Fields(deps), "  \n\n") + "\n"
		}
		if provides != "" {
			files[name+"/element-provides"] = strings.Join(strings.Fields(provides), "\n")
		}
	}
	return load(t, write(t, files))
}

func TestResolve(t *testing.T) {
	c := resolverCatalog(t)
	tests := []struct {
		name, request, arch, want string
	}{
		{"order is by dependency, then by name", "os a plain", "amd64", "c b a os plain"},
		{"order does not follow the request", "plain a os", "amd64", "c b a os plain"},
		{"duplicates of a plain element", "os plain plain", "amd64", "os plain"},
		{"dependency on itself", "os self", "amd64", "os self"},
		{"cycle", "os loop1", "amd64", "c b a loop1 loop2 os"},
		{"provided names are not merged", "os provides-v needs-virt", "amd64", "os provides-v needs-virt"},
		{"operating system by dependency", "os-by-dep", "amd64", "os os-by-dep"},
		{"vm on amd64", "os vm", "amd64", "block-device-mbr bootloader os vm"},
		{"vm on arm64", "os vm", "arm64", "block-device-efi bootloader os vm"},
		{"vm with a block device", "os vm block-device-gpt", "arm64", "block-device-gpt bootloader os vm"},
		{"edges through what is provided", "os x-user two", "amd64", "os plain two z-last x-user"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := c.Resolve(strings.Fields(tt.request), tt.arch)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Fields(tt.want), s.Names()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestResolveErrors(t *testing.T) {
	c := resolverCatalog(t)
	tests := []struct {
		name, request, want, hint string
	}{
		{"unknown element", "os nosuch", "Element 'nosuch' not found", "ELEMENTS_PATH"},
		{"typing error", "os plian", "Element 'plian' not found", "did you mean plain"},
		{"unknown dependency", "os missing-dep", "Element 'nosuch' not found (needed by 'missing-dep')", "ELEMENTS_PATH"},
		{"comment", "os comment", "Element '# comment' not found (needed by 'comment')", "no comments"},
		{"no operating system", "plain", "Please include an operating system element", "one of: os, os2"},
		{"two operating systems", "os os2", "operating-system: already provided by ['os']", "either 'os' or 'os2'"},
		{"the same operating system twice", "os os", "operating-system: already provided by ['os']", "once"},
		{"two block devices", "os vm block-device-mbr block-device-gpt", "block-device: already provided by ['block-device-mbr']", ""},
		{
			"virtual and provider", "os bootloader zipl",
			"The following elements are already provided by another element\nbootloader : already provided by ['zipl']", "leave out bootloader",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := c.Resolve(strings.Fields(tt.request), "amd64")
			if err == nil || err.Error() != tt.want {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if !strings.Contains(Hint(err), tt.hint) {
				t.Errorf("hint %q, want %q in it", Hint(err), tt.hint)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	target := write(t, map[string]string{"bar/element-deps": "dep"})
	first := write(t, map[string]string{"e/first": "", "foo": "->" + target + "/bar", "file": "x", "dangling": "->nowhere"})
	second := write(t, map[string]string{"e/second": "", "bar/second": ""})
	builtin := Builtin{Dir: "/usr/share/elements", FS: fstest.MapFS{"e/builtin": {}, "own/install.d/50-x": {Data: []byte("#!/bin/bash\n")}, "x.go": {}}}
	c, err := Load([]string{first, "", second}, builtin)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"bar", "e", "own"}, c.Names()); diff != "" {
		t.Error(diff)
	}
	want := []string{
		"Element <" + target + "/bar> overrides <" + second + "/bar>",
		"Element <" + first + "/e> overrides <" + second + "/e>",
		"Element <" + first + "/e> overrides </usr/share/elements/e>",
	}
	if diff := cmp.Diff(want, c.Warnings()); diff != "" {
		t.Error(diff)
	}
	if e := c.Lookup("own"); e == nil || !e.Builtin || e.Dir != "/usr/share/elements/own" {
		t.Errorf("own: %+v", e)
	}
	if e := c.Lookup("bar"); e.Dir != target+"/bar" || len(e.Deps) != 1 {
		t.Errorf("bar: %+v", e)
	}
	for _, bad := range []string{"/nonexist", first + "/file"} {
		_, err = Load([]string{bad}, Builtin{})
		var path *SearchPathError
		if !errors.As(err, &path) || err.Error() != "ELEMENTS_PATH entry '"+bad+"' is not a directory " {
			t.Errorf("%s: error %q", bad, err)
		}
	}
}

func merge(t *testing.T, files map[string]string, names string) (string, error) {
	t.Helper()
	c := load(t, write(t, files))
	s, err := c.Resolve(strings.Fields(names), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join(t.TempDir(), "hooks")
	return dst, s.Merge(dst, MergeOptions{Time: time.Unix(1700000000, 0)})
}

// list returns path -> "mode content" of what is below dir.
func list(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return nil
		case d.Type()&fs.ModeSymlink != 0:
			target, linkErr := os.Readlink(p)
			out[rel] = "->" + target
			return linkErr
		}
		if info.ModTime().Unix() != 1700000000 {
			t.Errorf("%s: time %v", rel, info.ModTime())
		}
		text, err := os.ReadFile(p)
		out[rel] = info.Mode().String()[7:] + info.Mode().String()[1:4] + " " + string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestMerge(t *testing.T) {
	dir, err := merge(t, map[string]string{
		"os/element-provides":  "operating-system",
		"os/root.d/10-x":       "#!x",
		"os/.hidden":           "h",
		"os/x.pyc":             "p",
		"os/install.d/.dot":    "d",
		"os/install.d/50-link": "->../files/real",
		"os/files/real":        "#!real",
		"os/tests/t":           "t",
		"os/__pycache__/t":     "t",
		"os/static/etc/f":      "from os",
		"os/linked":            "->files",
		"os/notes.txt":         "os",
		"z/static/etc/f":       "from z",
		"z/static/etc/g":       "g",
		"z/notes.txt":          "z",
		"z/odd/sub/deep":       "deep",
		"z/element-deps":       "os",
	}, "os z")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"element-provides": "r--rw- operating-system", "element-deps": "r--rw- os", ".hidden": "r--rw- h", "notes.txt": "r--rw- z",
		"root.d/10-x": "r-xrwx #!x", "install.d/50-link": "->../files/real", "files/real": "r-xrwx #!real", "linked/real": "r-xrwx #!real",
		"static/etc/f": "r--rw- from z", "static/etc/g": "r--rw- g", "odd/sub/deep": "r--rw- deep",
	}
	if diff := cmp.Diff(want, list(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestMergeDuplicate(t *testing.T) {
	for _, name := range []string{"install.d/50-same", "static/same"} {
		t.Run(name, func(t *testing.T) {
			_, err := merge(t, map[string]string{"os/element-provides": "operating-system", "os/" + name: "1", "p/" + name: "2"}, "os p")
			var duplicate *DuplicateError
			if !errors.As(err, &duplicate) || duplicate.First != "os" || duplicate.Second != "p" {
				t.Fatalf("error %v", err)
			}
			if want := "There is a duplicated hook in your elements: p/" + name + " (also in os)"; err.Error() != want {
				t.Errorf("error %q, want %q", err, want)
			}
		})
	}
}

func TestDigest(t *testing.T) {
	base := map[string]string{"os/element-provides": "operating-system", "os/install.d/1": "#!x", "os/l": "->a"}
	digest := func(change map[string]string) string {
		files := map[string]string{}
		for k, v := range base {
			files[k] = v
		}
		for k, v := range change {
			files[k] = v
		}
		s, err := load(t, write(t, files)).Resolve([]string{"os"}, "amd64")
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	first := digest(nil)
	if again := digest(map[string]string{"os/x.pyc": "1", "os/__pycache__/x.pyc": "2"}); again != first {
		t.Error("digest depends on what is not merged")
	}
	if digest(nil) != first {
		t.Error("digest depends on the directory")
	}
	for name, change := range map[string]map[string]string{
		"content": {"os/install.d/1": "#!y"}, "file": {"os/install.d/2": ""}, "link": {"os/l": "->b"}, "mode": {"os/install.d/1": "x"},
	} {
		if digest(change) == first {
			t.Errorf("digest does not depend on %s", name)
		}
	}
}

func TestWriteBuiltin(t *testing.T) {
	dir := t.TempDir()
	b := Builtin{Dir: dir, FS: fstest.MapFS{"own/install.d/50-x": {Data: []byte("#!/bin/bash\n"), Mode: 0o444}, "own/README": {Data: []byte("r"), Mode: 0o444}}}
	if err := WriteBuiltin(b, MergeOptions{Time: time.Unix(1700000000, 0)}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"own/install.d/50-x": "r-xrwx #!/bin/bash\n", "own/README": "r--rw- r"}
	if diff := cmp.Diff(want, list(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestPhases(t *testing.T) {
	var got []string
	for _, p := range Phases() {
		got = append(got, strings.Join([]string{p.Dir(), p.Where.String(), p.Cwd("/caller")}, " "))
	}
	want := []string{
		"root.d host /caller", "extra-data.d host /caller", "pre-install.d target /", "install.d target /", "post-install.d target /",
		"post-root.d host /caller", "block-device.d host /caller", "pre-finalise.d host /caller", "finalise.d target /", "cleanup.d host /caller",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
