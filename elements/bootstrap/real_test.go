package bootstrap

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/reproducibility/store"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if s, err := realStore(); err == nil && filepath.Base(s.Dir()) != "" {
		_ = os.RemoveAll(s.Dir())
	}
	os.Exit(code)
}

// TestRealSid expects the mirror's unstable to be refused when its
// clock says so, and to be opened when that is allowed.
func TestRealSid(t *testing.T) {
	config := realConfig(t, "sid")
	_, err := Open(t.Context(), config)
	var expired *ExpiredError
	if err != nil && !errors.As(err, &expired) {
		t.Fatal(err)
	}
	if err == nil {
		config.Now = config.Now.AddDate(0, 1, 0)
		if _, err = Open(t.Context(), config); !errors.As(err, &expired) {
			t.Errorf("a month later: %v", err)
		}
	}
	config.AllowExpired = true
	x, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := x.Resolve(Minbase()); err != nil || len(list) < 50 {
		t.Errorf("%d packages, %v", len(list), err)
	}
}

// differences between our tree and mmdebstrap's that are meant, by path. Each
// must occur for at least one suite.
var differences = map[string]string{
	"debs":                           "made by this test",
	"etc/apt/sources.list":           "policy of the image",
	"etc/hostname":                   "policy of the image",
	"etc/resolv.conf":                "policy of the image",
	"etc/shells":                     "same lines, but order depends on links into /usr that mmdebstrap makes later",
	"var/cache/apt/archives/lock":    "left by apt outside of the tree",
	"var/cache/apt/archives/partial": "made by apt when it is needed",
	"var/cache/apt/pkgcache.bin":     "made by this test's apt-get check",
	"var/cache/apt/srcpkgcache.bin":  "made by this test's apt-get check",
	"var/cache/ldconfig/aux-cache":   "removed by mmdebstrap",
	"var/lib/apt/extended_states":    "order",
	"var/lib/apt/lists/lock":         "left by apt outside of the tree",
	"var/lib/apt/lists/partial":      "made by apt when it is needed",
	"var/lib/dpkg/arch":              "written by mmdebstrap for its own purposes",
	"var/lib/dpkg/available":         "as debootstrap makes it",
	"var/lib/dpkg/diversions-old":    "state before the last change",
	"var/lib/dpkg/status-old":        "state before the last change",
	"var/log/alternatives.log":       "removed by mmdebstrap",
	"var/log/dpkg.log":               "removed by mmdebstrap",
}

func TestTreeEqualsMmdebstrap(t *testing.T) {
	tool(t, "mmdebstrap", "mmdebstrap")
	tool(t, "unshare", "util-linux")
	if os.Getuid() != 0 {
		t.Fatal("this test configures a tree with chroot: run it as root")
	}
	occurred := make(map[string]bool)
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) {
			config := realConfig(t, suite)
			x, err := Open(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			packages, err := x.Resolve(Minbase())
			if err != nil {
				t.Fatal(err)
			}
			if err := x.Fetch(t.Context(), packages); err != nil {
				t.Fatal(err)
			}
			root := makeTree(t, config, packages)
			for _, check := range [][]string{{"dpkg", "--audit"}, {"dpkg", "--verify"}} {
				if out := inside(t, config, root, Step{Args: check, Env: stepEnv()}); out != "" {
					t.Errorf("%v: %s", check, out)
				}
			}
			inside(t, config, root, Step{Args: []string{"apt-get", "check"}, Env: stepEnv()})
			compareTrees(t, mmdebstrap(t, config, suite), readTree(t, root), occurred)
		})
	}
	for name := range differences {
		if !occurred[name] {
			t.Errorf("%s does not differ", name)
		}
	}
}

// makeTree unpacks and configures the packages.
func makeTree(t *testing.T, config Config, packages []Package) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	var debs []Deb
	for _, p := range packages {
		path := config.Store.Path(p.Digest)
		debs = append(debs, Deb{
			Path: path, Digest: p.Digest, Base: p.Base, Auto: p.Auto,
			Inside: "/debs/" + filepath.Base(filepath.Dir(path)) + "/" + filepath.Base(path),
		})
	}
	u, err := Unpack(t.Context(), root, debs, UnpackOptions{Arch: config.Arch})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "debs"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, s := range u.Steps {
		s.Env = append(s.Env, "SOURCE_DATE_EPOCH=1700000000")
		inside(t, config, root, s)
	}
	return root
}

// inside runs a step in the tree, in a mount namespace of its own.
func inside(t *testing.T, config Config, root string, s Step) string {
	t.Helper()
	debs := filepath.Dir(filepath.Dir(config.Store.Path(store.Of(nil))))
	script := `set -e; mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; mount --bind "$1" "$0/debs"; r=$0; shift; exec chroot "$r" "$@"`
	args := append([]string{"-m", "sh", "-c", script, root, debs, "env", "-i"}, s.Env...)
	out, err := exec.Command("unshare", append(args, s.Args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", s.Args, err, out)
	}
	return string(out)
}

// mmdebstrap makes its tree of the same suite and mirror and returns its text.
func mmdebstrap(t *testing.T, config Config, suite string) map[string]string {
	t.Helper()
	keyring := filepath.Join(t.TempDir(), "keyring.gpg")
	write(t, keyring, string(config.Keyring))
	file := filepath.Join(t.TempDir(), "tree.tar")
	args := []string{"--quiet", "--variant=minbase", "--mode=root", "--keyring=" + keyring, suite, file}
	for _, a := range config.Archives {
		for _, s := range a.Suites {
			args = append(args, fmt.Sprintf("deb %s %s main", a.Mirror, s))
		}
	}
	cmd := exec.Command("mmdebstrap", args...)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mmdebstrap: %v\n%s", err, out)
	}
	return readTarText(t, file)
}

func line(kind string, mode fs.FileMode, uid, gid int, content string) string {
	return fmt.Sprintf("%s %v %d:%d %s", kind, mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky), uid, gid, content)
}

func readTarText(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tree := make(map[string]string)
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return tree
		}
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Clean(h.Name)
		mode := h.FileInfo().Mode()
		switch h.Typeflag {
		case tar.TypeDir:
			tree[name] = line("dir", mode, h.Uid, h.Gid, "")
		case tar.TypeSymlink:
			tree[name] = line("link", 0, h.Uid, h.Gid, h.Linkname)
		case tar.TypeLink:
			tree[name] = tree[filepath.Clean(h.Linkname)]
		case tar.TypeReg:
			sum := sha256.New()
			if _, err := io.Copy(sum, r); err != nil {
				t.Fatal(err)
			}
			tree[name] = line("file", mode, h.Uid, h.Gid, fmt.Sprintf("%x", sum.Sum(nil)))
		}
	}
}

func readTree(t *testing.T, root string) map[string]string {
	t.Helper()
	tree := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		uid, gid := owner(info)
		switch {
		case d.IsDir():
			tree[name] = line("dir", info.Mode(), uid, gid, "")
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			tree[name] = line("link", 0, uid, gid, target)
			return err
		default:
			data, err := os.ReadFile(path)
			tree[name] = line("file", info.Mode(), uid, gid, fmt.Sprintf("%x", sha256.Sum256(data)))
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func compareTrees(t *testing.T, want, got map[string]string, occurred map[string]bool) {
	t.Helper()
	if len(want) < 5000 {
		t.Errorf("mmdebstrap's tree has only %d entries", len(want))
	}
	all := make(map[string]bool)
	for name := range want {
		all[name] = true
	}
	for name := range got {
		all[name] = true
	}
	var unexplained []string
	for name := range all {
		if want[name] != got[name] {
			occurred[name] = true
		}
		if want[name] != got[name] && differences[name] == "" && !strings.HasPrefix(name, "dev") && name != "." {
			unexplained = append(unexplained, fmt.Sprintf("%s:\n  mmdebstrap %s\n  ours       %s", name, want[name], got[name]))
		}
	}
	slices.Sort(unexplained)
	for _, u := range unexplained {
		t.Error(u)
	}
}
