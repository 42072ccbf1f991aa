package builtin_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/elements"
	"cairn/elements/builtin"
)

func load(t *testing.T) *elements.Catalog {
	t.Helper()
	c, err := elements.Load(nil, elements.Builtin{FS: builtin.FS(), Dir: "/builtin"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// each calls fn for every file of an element.
func each(t *testing.T, fn func(name string, text []byte)) {
	t.Helper()
	err := fs.WalkDir(builtin.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(name, "/") {
			return err
		}
		text, err := fs.ReadFile(builtin.FS(), name)
		fn(name, text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCheckout compares what is embedded with the working copy, and permissions with the rule.
func TestCheckout(t *testing.T) {
	embedded := map[string]bool{}
	each(t, func(name string, text []byte) {
		embedded[name] = true
		onDisk, err := os.ReadFile(name)
		if err != nil || !bytes.Equal(onDisk, text) {
			t.Errorf("%s: differs from the checkout (%v)", name, err)
		}
		st, err := os.Lstat(name)
		if err != nil || !st.Mode().IsRegular() || (st.Mode()&0o100 != 0) != bytes.HasPrefix(text, []byte("#!")) {
			t.Errorf("%s: mode %v", name, st.Mode())
		}
	})
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(name, "/") && !embedded[name] {
			t.Errorf("%s: not embedded", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestDependencies(t *testing.T) {
	c := load(t)
	provided := map[string]bool{}
	for _, name := range c.Names() {
		for _, p := range c.Lookup(name).Provides {
			provided[p] = true
		}
	}
	for _, name := range c.Names() {
		for _, dep := range c.Lookup(name).Deps {
			if c.Lookup(dep) == nil && !provided[dep] {
				t.Errorf("%s depends on %s, which is unknown", name, dep)
			}
		}
		if text, err := c.Lookup(name).ReadFile("README.md"); err != nil || !strings.HasPrefix(string(text), "# "+name+"\n") {
			t.Errorf("%s: README.md: %v", name, err)
		}
	}
}

// TestSelections resolves and merges what people ask for.
func TestSelections(t *testing.T) {
	for _, request := range []string{
		"base debian-minimal vm cloud-init openssh-server growroot",
		"base debian vm growroot cloud-init-datasources element-manifest svc-map cache-url",
		"debian-minimal",
		"debian-minimal vm block-device-gpt growroot",
		"debian-minimal vm block-device-efi growroot",
		"debian-minimal vm block-device-efi-4k",
	} {
		t.Run(request, func(t *testing.T) {
			s, err := load(t).Resolve(strings.Fields(request), "amd64")
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(t.TempDir(), "hooks")
			if err := s.Merge(dir, elements.MergeOptions{}); err != nil {
				t.Fatal(err)
			}
			for _, phase := range elements.Phases() {
				checkPhase(t, filepath.Join(dir, phase.Dir()))
			}
		})
	}
}

// checkPhase finds hooks that would be ignored.
func checkPhase(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, entry := range entries {
		st, err := os.Stat(filepath.Join(dir, entry.Name()))
		if err != nil || st.Mode()&0o111 == 0 || strings.Contains(entry.Name(), ".") {
			t.Errorf("%s/%s would not run", dir, entry.Name())
		}
	}
}

// TestUpstreamElements resolves diskimage-builder's own elements over ours where only they come from the search path.
func TestUpstreamElements(t *testing.T) {
	const upstream = "/usr/lib/python3/dist-packages/diskimage_builder/elements"
	dir := t.TempDir()
	names := []string{"source-repositories", "pip-cache", "local-config", "devuser", "cloud-init-nocloud", "manifests"}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(upstream, name)); err != nil {
			t.Fatalf("install python3-diskimage-builder: %v", err)
		}
		if err := os.Symlink(filepath.Join(upstream, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := elements.Load([]string{dir}, elements.Builtin{FS: builtin.FS(), Dir: "/builtin"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Resolve(append(names, "debian-minimal", "vm", "cloud-init", "openssh-server"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Merge(filepath.Join(t.TempDir(), "hooks"), elements.MergeOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestShell parses all scripts, and checks that hooks begin as they should.
func TestShell(t *testing.T) {
	var checked []string
	each(t, func(name string, text []byte) {
		first, _, _ := strings.Cut(string(text), "\n")
		snippet := path.Base(path.Dir(name)) == "environment.d"
		if !snippet && first != "#!/bin/bash" && first != "#!/bin/sh" {
			if strings.HasPrefix(first, "#!") && first != "#!/sbin/openrc-run" {
				t.Errorf("%s: unexpected interpreter %s", name, first)
			}
			return
		}
		checked = append(checked, name)
		if out, err := exec.Command("bash", "-n", name).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if !snippet && !strings.Contains(string(text), "\nset -eu\n") {
			t.Errorf("%s: no set -eu", name)
		}
		if bytes.Contains(text, []byte("\t")) || !bytes.HasSuffix(text, []byte("\n")) {
			t.Errorf("%s: tabs, or no newline at the end", name)
		}
	})
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Fatal("install shellcheck")
	}
	slices.Sort(checked)
	out, err := exec.Command("shellcheck", append([]string{"-s", "bash", "-e", "SC2153,SC2154"}, checked...)...).CombinedOutput()
	if err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
}
