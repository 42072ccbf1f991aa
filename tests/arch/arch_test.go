// Package arch checks the import rules of the module.
package arch

import (
	"go/doc"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "cairn"
	root   = "../.."
)

// policy names every package, lowest level first, with the packages of this
// module and the third-party modules that it may import. It states a decision:
// a change here is a change of the architecture. A package may import only
// what stands above it, and each third-party module has one owner
// (golang.org/x/sys/unix excepted).
const policy = `
fsbuild/tree:
fsbuild/compress:       github.com/klauspost/compress github.com/therootcompany/xz github.com/ulikunitz/xz
sandbox/idmap:
reproducibility/store:  golang.org/x/sys
fsbuild/internal/contents: fsbuild/tree
fsbuild/tree/dir:       fsbuild/internal/contents fsbuild/tree golang.org/x/sys
fsbuild/internal/fstest: fsbuild/tree
fsbuild/ext4:           fsbuild/internal/contents fsbuild/tree
fsbuild/swap:
fsbuild/vfat:           fsbuild/internal/contents fsbuild/tree
fsbuild/cpio:           fsbuild/internal/contents fsbuild/tree
fsbuild/tar/entry:      fsbuild/tree
fsbuild/squashfs:       fsbuild/compress fsbuild/internal/contents fsbuild/tree github.com/klauspost/compress
fsbuild/tar:            fsbuild/internal/contents fsbuild/tar/entry fsbuild/tree
fsbuild/partition:
fsbuild/grub:
fsbuild/internal/disk:  fsbuild/tree
fsbuild/internal/deflate:
fsbuild/internal/disktest: fsbuild/tree
fsbuild/vhd:            fsbuild/tree fsbuild/internal/disk
fsbuild/vmdk:           fsbuild/tree fsbuild/internal/disk fsbuild/internal/deflate
fsbuild/qcow2:          fsbuild/tree fsbuild/internal/disk fsbuild/internal/deflate github.com/klauspost/compress
fsbuild:                fsbuild/tree fsbuild/ext4 fsbuild/partition fsbuild/grub fsbuild/qcow2 fsbuild/vhd fsbuild/vmdk golang.org/x/sys golang.org/x/sync
oci/layer:              fsbuild/tar/entry fsbuild/tree golang.org/x/sys golang.org/x/sync
reproducibility:        fsbuild/tree
reproducibility/lock:   reproducibility/store
reproducibility/record: reproducibility/store golang.org/x/net golang.org/x/sync
oci:                    oci/layer fsbuild/compress fsbuild/tar fsbuild/tree reproducibility/store github.com/google/go-containerregistry golang.org/x/sys golang.org/x/sync
elements/builtin:
elements/shell:
elements/runparts:      golang.org/x/sys
elements:               go.yaml.in/yaml
elements/blockdevice:   fsbuild/partition go.yaml.in/yaml
elements/bootstrap:     fsbuild/tree fsbuild/compress oci/layer reproducibility/store github.com/ProtonMail/go-crypto golang.org/x/sync golang.org/x/sys
sandbox/shim:           golang.org/x/sys
sandbox:                sandbox/idmap golang.org/x/sys github.com/opencontainers/runc github.com/opencontainers/cgroups github.com/vishvananda/netlink
cmd/internal/boot:      golang.org/x/crypto
cmd/internal/mkfs:      fsbuild fsbuild/compress fsbuild/cpio fsbuild/ext4 fsbuild/partition fsbuild/squashfs fsbuild/tar fsbuild/tree fsbuild/tree/dir fsbuild/vfat oci reproducibility
cmd/internal/convert:   cmd/internal/mkfs fsbuild fsbuild/qcow2 fsbuild/vhd reproducibility
cmd/internal/disk:      cmd/internal/convert cmd/internal/mkfs elements/blockdevice fsbuild fsbuild/ext4 fsbuild/partition fsbuild/swap fsbuild/tree fsbuild/vfat reproducibility
cmd/internal/build:     cmd/internal/disk elements elements/blockdevice elements/bootstrap elements/builtin elements/runparts elements/shell fsbuild fsbuild/ext4 fsbuild/partition fsbuild/tree fsbuild/tree/dir fsbuild/vhd fsbuild/vmdk oci oci/layer reproducibility reproducibility/lock reproducibility/record reproducibility/store sandbox sandbox/idmap sandbox/shim golang.org/x/sys
cmd/internal/cli:       cmd/internal/build cmd/internal/convert cmd/internal/disk cmd/internal/mkfs fsbuild sandbox github.com/spf13/cobra github.com/spf13/pflag golang.org/x/term
cmd/cairn:              cmd/internal/build cmd/internal/cli sandbox
`

// TestImports reads the source itself rather than running "go list", so that
// the test cache sees its inputs: with a subprocess a stale "ok (cached)"
// hides a violation.
func TestImports(t *testing.T) {
	got := imports(t)
	rules := make(map[string]bool)
	for line := range strings.Lines(policy) {
		pkg, list, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		allowed := strings.Fields(list)
		for _, a := range allowed {
			if !isThirdParty(a) && !rules[a] {
				t.Errorf("policy: %s imports %s, which is not declared above it", pkg, a)
			}
		}
		rules[pkg] = true
		if _, ok := got[pkg]; !ok {
			t.Errorf("policy: %s does not exist", pkg)
		}
		for _, imp := range got[pkg] {
			if !slices.ContainsFunc(allowed, func(a string) bool {
				return imp == a || isThirdParty(a) && strings.HasPrefix(imp, a+"/")
			}) {
				t.Errorf("%s must not import %s", pkg, imp)
			}
		}
	}
	for pkg := range got {
		if !rules[pkg] {
			t.Errorf("%s has no line in the policy", pkg)
		}
	}
}

// shared are the third-party modules that more than one package may import.
var shared = []string{"golang.org/x/sys", "golang.org/x/sync", "github.com/klauspost/compress", "go.yaml.in/yaml"}

// TestOneOwner checks the policy itself.
func TestOneOwner(t *testing.T) {
	owner := make(map[string]string)
	for line := range strings.Lines(policy) {
		pkg, list, _ := strings.Cut(strings.TrimSpace(line), ":")
		for _, a := range strings.Fields(list) {
			if !isThirdParty(a) || slices.Contains(shared, a) {
				continue
			}
			if other, ok := owner[a]; ok {
				t.Errorf("%s has two owners: %s and %s", a, other, pkg)
			}
			owner[a] = pkg
		}
	}
}

// public are packages for programs of others. They do their work on values,
// readers and writers alone.
var public = []string{
	"fsbuild/tree", "fsbuild/ext4", "fsbuild/vfat", "fsbuild/squashfs", "fsbuild/cpio", "fsbuild/tar", "fsbuild/swap",
	"fsbuild/partition", "fsbuild/grub", "fsbuild/qcow2", "fsbuild/vhd", "fsbuild/vmdk",
}

// TestPublic: no public package logs, or looks at the machine, and each shows
// by an example what it does.
func TestPublic(t *testing.T) {
	for _, pkg := range public {
		files, err := filepath.Glob(filepath.Join(root, pkg, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no files: %v", pkg, err)
		}
		example := false
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(file, "_test.go") {
				example = example || slices.ContainsFunc(doc.Examples(f), func(e *doc.Example) bool { return e.Output != "" })
				continue
			}
			for _, spec := range f.Imports {
				if imp, _ := strconv.Unquote(spec.Path.Value); slices.Contains([]string{"flag", "log", "log/slog", "net", "net/http", "os", "os/exec", "os/user"}, imp) {
					t.Errorf("%s imports %s", file, imp)
				}
			}
		}
		if !example {
			t.Errorf("%s has no example with output", pkg)
		}
	}
}

func isThirdParty(pkg string) bool {
	first, _, _ := strings.Cut(pkg, "/")
	return strings.Contains(first, ".")
}

// imports returns, for every package outside tests/, what its non-test files
// import from this module (as a path relative to it) and from third parties.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	got := make(map[string][]string)
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		if d.IsDir() {
			hidden := strings.HasPrefix(d.Name(), ".") && rel != "."
			if rel == "tests" || d.Name() == "testdata" || hidden {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(rel))
		got[pkg] = slices.Grow(got[pkg], 1)
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if local, ok := strings.CutPrefix(imp, module+"/"); ok {
				got[pkg] = append(got[pkg], local)
			} else if isThirdParty(imp) {
				got[pkg] = append(got[pkg], imp)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}
