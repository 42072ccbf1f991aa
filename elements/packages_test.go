package elements

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPackageInstalls(t *testing.T) {
	tests := []struct {
		name, env string
		files     map[string]string // element/yaml or element/json
		want, err string
	}{
		{name: "plain", files: map[string]string{"a/yaml": "pkg:\nother: {}\nthird: []\n"}, want: "install.d install a pkg|install.d install a other|install.d install a third"},
		{name: "empty file", files: map[string]string{"a/yaml": "# nothing\n"}},
		{name: "json with tabs", files: map[string]string{"a/json": "{\n\t\"pkg\": {\"phase\": \"post-install.d\"}}"}, want: "post-install.d install a pkg"},
		{name: "json in yaml file", files: map[string]string{"a/yaml": "{\"pkg\": null}"}, want: "install.d install a pkg"},
		{name: "phase", files: map[string]string{"a/yaml": "pkg:\n  phase: pre-install.d\n"}, want: "pre-install.d install a pkg"},
		{name: "uninstall by presence", files: map[string]string{"a/yaml": "pkg:\n  uninstall: false\n"}, want: "install.d uninstall a pkg"},
		{name: "build only", files: map[string]string{"a/yaml": "pkg:\n  build-only: True\n"}, want: "install.d install a pkg|install.d uninstall a pkg"},
		{name: "install beats later uninstall", files: map[string]string{"a/yaml": "pkg:\n", "b/yaml": "pkg:\n  uninstall: True\n"}, want: "install.d install a pkg"},
		{name: "install beats earlier uninstall", files: map[string]string{"a/yaml": "pkg:\n  uninstall: True\n", "b/yaml": "pkg:\n"}, want: "install.d install b pkg"},
		{name: "install beats build only", files: map[string]string{"a/yaml": "pkg:\n  build-only: True\n", "b/yaml": "pkg:\n"}, want: "install.d install a pkg|install.d install b pkg"},
		{name: "other phase", files: map[string]string{"a/yaml": "pkg:\n- phase: pre-install.d\n- uninstall: True\n"}, want: "install.d uninstall a pkg|pre-install.d install a pkg"},
		{name: "list of maps", env: "ARCH=arm64", files: map[string]string{"a/yaml": "pkg:\n- arch: amd64\n  phase: pre-install.d\n- arch: arm64\n"}, want: "install.d install a pkg"},
		{name: "installtype", files: map[string]string{"a/yaml": "s:\n  installtype: source\np:\n  installtype: package\n"}, want: "install.d install a s"},
		{name: "installtype of the element", env: "DIB_INSTALLTYPE_a_b=package DIB_DEFAULT_INSTALLTYPE=source", files: map[string]string{"a-b/yaml": "s:\n  installtype: source\np:\n  installtype: package\n"}, want: "install.d install a-b p"},
		{name: "default installtype", env: "DIB_DEFAULT_INSTALLTYPE=package", files: map[string]string{"a/yaml": "s:\n  installtype: source\np:\n  installtype: package\n"}, want: "install.d install a p"},
		{name: "arch", env: "ARCH=arm64", files: map[string]string{"a/yaml": "x:\n  arch: amd64, arm64\ny:\n  arch: amd64\nz:\n  not-arch: amd64\nw:\n  not-arch: amd64, arm64\n"}, want: "install.d install a x|install.d install a z"},
		{name: "arch and not-arch", env: "ARCH=arm64", files: map[string]string{"a/yaml": "x:\n  arch: amd64\n  not-arch: arm64\n"}, err: "package-installs configuration error: arch and not_arch given for package [x]"},
		{name: "python version", env: "DIB_PYTHON_VERSION=3", files: map[string]string{"a/yaml": "x:\n  dib_python_version: 2\ny:\n  dib_python_version: 3\n"}, want: "install.d install a y"},
		{name: "when", env: "A=1 B=two", files: map[string]string{"a/yaml": "x:\n  when: A = 1\ny:\n  when: A!=1\nz:\n  when:\n  - A=1\n  - B != one\nw:\n  when:\n  - A=1\n  - B=one\n"}, want: "install.d install a x|install.d install a z"},
		{name: "when unset", files: map[string]string{"a/yaml": "x:\n  when: A = 1\n"}, err: "The variable <A> is not set"},
		{name: "when malformed", files: map[string]string{"a/yaml": "x:\n  when: A is 1\n"}, err: "Malformed when line: <A is 1>"},
		{name: "not a map", files: map[string]string{"a/yaml": "- pkg\n"}, err: "not a map of packages"},
		{name: "options not a map", files: map[string]string{"a/yaml": "x: yes please\n"}, err: "package [x]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string]string{}
			for name, content := range tt.files {
				element, kind := filepath.Split(name)
				files[element+"package-installs."+kind] = content
			}
			root := write(t, files)
			var dirs []Dir
			for _, name := range []string{"a", "a-b", "b"} {
				dirs = append(dirs, Dir{name, filepath.Join(root, name)})
			}
			_, lookup, err := hookEnvironment(strings.Fields(tt.env))
			if err != nil {
				t.Fatal(err)
			}
			lists, err := PackageInstalls(dirs, lookup)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.ReplaceAll(strings.TrimSuffix(lists.Text(), "\n"), "\n", "|"); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestVerbs(t *testing.T) {
	root := write(t, map[string]string{
		"a/package-installs.yaml": "pkg:\n  build-only: 1\n", "a/svc-map": "ssh:\n  debian: ssh\n  default: sshd\nweb:\n  redhat: httpd\n  default: apache2\n",
		"b/svc-map": "own: {}\nredhat-only:\n  redhat: x\n", "c/svc-map": "ssh:\n  default: x\n",
	})
	run := func(verb string, env ...string) (int, string, string) {
		var out, errs bytes.Buffer
		args := strings.Fields(verb)
		status := Verbs()[args[0]](args[1:], env, &out, &errs)
		return status, out.String(), errs.String()
	}
	all := "IMAGE_ELEMENT_YAML={a: " + root + "/a, b: " + root + "/b}"
	if status, out, _ := run("package-installs", all); status != 0 || out != "install.d install a pkg\ninstall.d uninstall a pkg\n" {
		t.Errorf("%d %q", status, out)
	}
	status, out, _ := run("package-installs --json", all)
	var lists map[string]map[string][][2]string
	if err := json.Unmarshal([]byte(out), &lists); err != nil || status != 0 {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]map[string][][2]string{"install.d": {"install": {{"pkg", "a"}}, "uninstall": {{"pkg", "a"}}}}, lists); diff != "" {
		t.Error(diff)
	}
	for distribution, want := range map[string]string{
		"debian": "own: own\nredhat-only: redhat-only\nssh: ssh\nweb: apache2\n", "rocky": "own: own\nredhat-only: x\nssh: sshd\nweb: httpd\n",
	} {
		if code, names, errs := run("svc-map-data", all, "DISTRO_NAME="+distribution); code != 0 || names != want {
			t.Errorf("%s: %d %q %q", distribution, code, names, errs)
		}
	}
	status, _, errs := run("svc-map-data", "IMAGE_ELEMENT_YAML={a: "+root+"/a, c: "+root+"/c}", "IMAGE_ELEMENT=a c")
	if status != 1 || !strings.Contains(errs, "ssh already found in services list.  Check c for duplicate service name.") {
		t.Errorf("duplicate: %d %q", status, errs)
	}
}
