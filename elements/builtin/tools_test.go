package builtin_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/elements"
	"cairn/elements/builtin"
)

// written is the directory of all built-in elements as hooks see it.
func written(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := elements.WriteBuiltin(elements.Builtin{FS: builtin.FS(), Dir: dir}, elements.MergeOptions{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

type result struct {
	Status int
	Stdout string
}

// run runs a program with an environment of its own and the directories first on PATH.
func run(t *testing.T, dir string, path, env []string, args ...string) (result, string) {
	t.Helper()
	var out, errs bytes.Buffer
	c := exec.Command(args[0], args[1:]...)
	c.Dir = dir
	c.Env = append([]string{"PATH=" + strings.Join(append(path, os.Getenv("PATH")), ":"), "LC_ALL=C", "DIB_DEBUG_TRACE=0"}, env...)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil && c.ProcessState == nil {
		t.Fatal(err)
	}
	return result{c.ProcessState.ExitCode(), out.String()}, errs.String()
}

func save(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

const pkgMap = `{
	"release": {"debian": {"bookworm": {"a": "a-bookworm", "only-release": "r"}}, "centos": {"8": {"a": "a-8"}}},
	"distro": {"debian": {"a": "a-debian", "b": "b-debian", "skip": ""}},
	"family": {"debian": {"a": "a-family", "b": "b-family", "c": "c1 c2"}, "redhat": {"c": "c-red"}},
	"default": {"a": "a-default", "b": "b-default", "c": "c-default", "d": "d-default", "skip": "x", "quote\"d": "q\"q"}
}`

func TestPkgMap(t *testing.T) {
	dir := written(t)
	tool := filepath.Join(dir, "pkg-map/bin/pkg-map")
	file := filepath.Join(t.TempDir(), "map")
	save(t, file, pkgMap, 0o644)
	tests := []struct {
		name, env, args string
		status          int
		want            string
	}{
		{"release wins", "DISTRO_NAME=debian DIB_RELEASE=bookworm", "a b c d only-release", 0, "a-bookworm\nb-debian\nc1 c2\nd-default\nr\n"},
		{"distribution wins", "DISTRO_NAME=debian DIB_RELEASE=trixie", "a b c", 0, "a-debian\nb-debian\nc1 c2\n"},
		{"family", "DISTRO_NAME=ubuntu", "a b c", 0, "a-family\nb-family\nc1 c2\n"},
		{"default", "DISTRO_NAME=gentoo", "a b c", 0, "a-default\nb-default\nc-default\n"},
		{"options", "DISTRO_NAME=gentoo", "--distro=debian --release bookworm --prefix - a b", 0, "-a-bookworm\n-b-debian\n"},
		{"stream", "DISTRO_NAME=centos DIB_RELEASE=8-stream", "a", 0, "a-8\n"},
		{"empty mapping", "DISTRO_NAME=debian", "skip d", 0, "d-default\n"},
		{"unmapped", "DISTRO_NAME=debian", "d nosuch", 1, "d-default\n"},
		{"unmapped is fine", "DISTRO_NAME=debian", "--missing-ok d nosuch", 0, "d-default\nnosuch\n"},
		{"escapes", "DISTRO_NAME=debian", `quote"d`, 0, "q\"q\n"},
		{"no distribution", "X=1", "d", 1, ""},
		{"no names", "DISTRO_NAME=debian", "", 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{tool, "--pkg-map", file}, strings.Fields(tt.args)...)
			got, errs := run(t, "", nil, strings.Fields(tt.env), args...)
			if diff := cmp.Diff(result{tt.status, tt.want}, got); diff != "" {
				t.Errorf("%s%s", diff, errs)
			}
		})
	}
	for args, want := range map[string]result{
		"":                           {1, ""},
		"--element nosuch-element x": {2, ""},
		"--element nosuch-element x --missing-ok": {0, "x\n"},
		"--element e --pkg-map m x":               {1, ""},
	} {
		got, _ := run(t, "", nil, []string{"DISTRO_NAME=debian"}, append([]string{tool}, strings.Fields(args)...)...)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", args, diff)
		}
	}
	save(t, file, `{"default": [1]}`, 0o644)
	if got, errs := run(t, "", nil, []string{"DISTRO_NAME=debian"}, tool, "--pkg-map", file, "a"); got.Status != 1 || !strings.Contains(errs, "Unable to parse") {
		t.Errorf("damaged map: %v %s", got, errs)
	}
}

// TestPkgMapOracle compares with diskimage-builder's own tool on generated maps.
func TestPkgMapOracle(t *testing.T) {
	const oracle = "/usr/lib/python3/dist-packages/diskimage_builder/elements/pkg-map/bin/pkg-map"
	if _, err := os.Stat(oracle); err != nil {
		t.Fatalf("install python3-diskimage-builder: %v", err)
	}
	tool := filepath.Join(written(t), "pkg-map/bin/pkg-map")
	file := filepath.Join(t.TempDir(), "map")
	for seed := range uint64(25) {
		r := rand.New(rand.NewPCG(seed, 2))
		pick := func(s ...string) string { return s[r.IntN(len(s))] }
		names := func() string {
			var items []string
			for _, n := range []string{"a", "b", "c"} {
				if r.IntN(2) == 0 {
					items = append(items, fmt.Sprintf("%q:%s%q", n, pick("", " ", "\n\t"), pick("", "x", "y z", "p-1.2")))
				}
			}
			return "{" + strings.Join(items, pick(",", " , ", ",\n")) + "}"
		}
		text := fmt.Sprintf(`{"distro": {"debian": %s, "fedora": %s}, "family": {"debian": %s, "redhat": %s}, "release": {"debian": {"9": %s}}, "default": %s}`,
			names(), names(), names(), names(), names(), names())
		save(t, file, text, 0o644)
		args := []string{"--pkg-map", file, "--distro", pick("debian", "ubuntu", "fedora", "gentoo"), "--release", pick("9", "10"), "a", "b", "c"}
		if r.IntN(2) == 0 {
			args = append(args, "--missing-ok")
		}
		want, _ := run(t, "", nil, nil, append([]string{oracle}, args...)...)
		got, _ := run(t, "", nil, nil, append([]string{tool}, args...)...)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v of %s: %s", args, text, diff)
		}
	}
}

func TestPackageInstallsTool(t *testing.T) {
	dir := written(t)
	bin := t.TempDir()
	save(t, filepath.Join(bin, "install-packages"), "#!/bin/sh\necho install-packages \"$@\"\nexit ${STATUS:-0}\n", 0o755)
	list := filepath.Join(t.TempDir(), "package-installs")
	save(t, list+".list", "install.d install one a\ninstall.d install two b\ninstall.d install one c\ninstall.d install two a\ninstall.d uninstall one d\n", 0o644)
	path := []string{bin, filepath.Join(dir, "pkg-map/bin")}
	tool := filepath.Join(dir, "package-installs/bin/package-installs-v2")
	for _, tt := range []struct {
		name, args, env string
		status          int
		want            string
	}{
		{"install", "--phase install.d", "", 0, "Map install for one: a c\nMap install for two: b a\ninstall-packages a c b\n"},
		{"uninstall", "--phase install.d --uninstall", "", 0, "Map uninstall for one: d\ninstall-packages -e d\n"},
		{"nothing", "--phase post-install.d", "", 0, "Nothing to install\n"},
		{"noop", "--noop --phase install.d --uninstall", "", 0, "Map uninstall for one: d\ninstall-packages -e d\n"},
		{"failure", "--phase install.d --uninstall", "STATUS=100", 1, "Map uninstall for one: d\ninstall-packages -e d\ninstall-packages failed with returncode 100\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append(append([]string{tool}, strings.Fields(tt.args)...), list+".json")
			got, errs := run(t, "", path, append(strings.Fields(tt.env), "DISTRO_NAME=debian"), args...)
			if diff := cmp.Diff(result{tt.status, tt.want}, got); diff != "" {
				t.Errorf("%s%s", diff, errs)
			}
		})
	}
	hooks := t.TempDir()
	save(t, filepath.Join(hooks, "package-installs-x"), "# comment\none\n-two\n\n", 0o644)
	for tool, want := range map[string]string{"package-installs": "install-packages one two\n", "package-uninstalls": "install-packages -e two\n"} {
		got, errs := run(t, "", path, nil, filepath.Join(dir, "package-installs/bin", tool), "-d", hooks)
		if diff := cmp.Diff(result{0, want}, got); diff != "" {
			t.Errorf("%s: %s%s", tool, diff, errs)
		}
	}
}

func TestInstallTypes(t *testing.T) {
	hook := filepath.Join(written(t), "install-types/extra-data.d/99-enable-install-types")
	for _, tt := range []struct{ name, env, want string }{
		{"default", "DIB_DEFAULT_INSTALLTYPE=source", "10-foo-source 20-bar-source"},
		{"one chosen", "DIB_DEFAULT_INSTALLTYPE=source DIB_INSTALLTYPE_foo_bar=package", "10-foo-package 20-bar-source"},
		{"other default", "DIB_DEFAULT_INSTALLTYPE=package", "10-foo-package"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hooks := t.TempDir()
			for _, name := range []string{"foo-bar-package-install/10-foo-package", "foo-bar-source-install/10-foo-source", "bar-source-install/20-bar-source"} {
				save(t, filepath.Join(hooks, "install.d", name), "", 0o755)
			}
			if got, errs := run(t, "", nil, append(strings.Fields(tt.env), "TMP_HOOKS_PATH="+hooks), hook); got.Status != 0 {
				t.Fatalf("%v %s", got, errs)
			}
			got, _ := run(t, filepath.Join(hooks, "install.d"), nil, nil, "find", ".", "-maxdepth", "1", "-xtype", "f", "-printf", "%f\n")
			names := strings.Fields(got.Stdout)
			if len(names) == 2 && names[0] > names[1] {
				names[0], names[1] = names[1], names[0]
			}
			if strings.Join(names, " ") != tt.want {
				t.Errorf("%v, want %s", names, tt.want)
			}
		})
	}
}

func TestSvcMap(t *testing.T) {
	tool := filepath.Join(written(t), "svc-map/bin/svc-map")
	if _, err := os.Stat("/usr/share/svc-map/services"); err == nil {
		t.Fatal("this machine has a service map of its own")
	}
	if got, errs := run(t, "", nil, nil, tool, "a-service", "b-service"); got.Stdout != "a-service\nb-service\n" {
		t.Errorf("%v %s", got, errs)
	}
}

func TestCacheURL(t *testing.T) {
	tool := filepath.Join(written(t), "cache-url/bin/cache-url")
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal("install curl")
	}
	changed := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/file", http.StatusFound)
		case "/file":
			http.ServeContent(w, r, "", changed, strings.NewReader("content"))
		case "/error":
			w.WriteHeader(http.StatusInternalServerError)
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "sub/file")
	fetch := func(args ...string) int {
		got, errs := run(t, dir, nil, nil, append([]string{tool}, args...)...)
		t.Log(args, got, errs)
		return got.Status
	}
	content := func() string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if status := fetch(server.URL+"/moved", file); status != 0 || content() != "content" {
		t.Errorf("first: %d %q", status, content())
	}
	save(t, file, "local", 0o644)
	if status := fetch(server.URL+"/file", file); status != 0 || content() != "local" {
		t.Errorf("current copy: %d %q", status, content())
	}
	if status := fetch("-f", server.URL+"/file", file); status != 0 || content() != "content" {
		t.Errorf("forced: %d %q", status, content())
	}
	if status := fetch(server.URL+"/nosuch", file); status != 44 || content() != "content" {
		t.Errorf("missing: %d %q", status, content())
	}
	source := filepath.Join(dir, "source")
	save(t, source, "from a file", 0o644)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if status := fetch("file://"+source, file); status != 0 || content() != "from a file" {
		t.Errorf("file: %d %q", status, content())
	}
	if status := fetch("only-one"); status != 1 {
		t.Errorf("usage: %d", status)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "sub/.download*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// TestInstallStatic lets the hook write into a directory in place of the root.
func TestInstallStatic(t *testing.T) {
	hooks, root, bin := t.TempDir(), t.TempDir(), t.TempDir()
	save(t, filepath.Join(bin, "tar"), "#!/bin/bash\nargs=()\nfor a; do if [ \"$a\" = / ]; then a=$ROOT; fi; args+=(\"$a\"); done\nexec "+lookTar(t)+" \"${args[@]}\"\n", 0o755)
	hook, err := os.ReadFile("install-static/install.d/10-install-static-files")
	if err != nil {
		t.Fatal(err)
	}
	save(t, filepath.Join(hooks, "install.d/10-x"), string(hook), 0o755)
	save(t, filepath.Join(hooks, "static/etc/secret"), "s", 0o600)
	save(t, filepath.Join(hooks, "static/lib/tool"), "t", 0o755)
	save(t, filepath.Join(hooks, "static/etc/backup~"), "b", 0o644)
	save(t, filepath.Join(hooks, "static/etc/_$x"), "b", 0o644)
	save(t, filepath.Join(hooks, "static/.hidden"), "h", 0o644)
	save(t, filepath.Join(hooks, "static/etc/.git/config"), "g", 0o644)
	for link, target := range map[string]string{filepath.Join(hooks, "static/etc/link"): "secret", filepath.Join(root, "lib"): "usr/lib"} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	save(t, filepath.Join(root, "usr/lib/other"), "o", 0o644)
	if err := os.Chmod(root, 0o711); err != nil {
		t.Fatal(err)
	}
	if got, errs := run(t, "", []string{bin}, []string{"ROOT=" + root}, filepath.Join(hooks, "install.d/10-x")); got.Status != 0 {
		t.Fatalf("%v %s", got, errs)
	}
	got, _ := run(t, root, nil, nil, "find", ".", "-printf", "%p %M %l\n")
	lines := strings.Split(strings.TrimSuffix(got.Stdout, "\n"), "\n")
	want := map[string]bool{
		". drwx--x--x ": true, "./lib lrwxrwxrwx usr/lib": true, "./usr drwxr-xr-x ": true, "./usr/lib drwxr-xr-x ": true, "./usr/lib/other -rw-r--r-- ": true, "./usr/lib/tool -rwxr-xr-x ": true,
		"./etc drwxr-xr-x ": true, "./etc/secret -rw------- ": true, "./etc/link lrwxrwxrwx secret": true, "./.hidden -rw-r--r-- ": true,
	}
	found := map[string]bool{}
	for _, line := range lines {
		found[line] = true
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Error(diff)
	}
}

func lookTar(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("tar")
	if err != nil {
		t.Fatal("install tar")
	}
	return path
}
