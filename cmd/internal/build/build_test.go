package build

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/sandbox"
)

func TestCanonical(t *testing.T) {
	in := &inputs{p: &parent{req: &Request{Debian: Debian{
		Suite: "bookworm", Mirror: "http://mirror.example/debian", SecurityMirror: "https://mirror.example/security/",
	}}}}
	tests := map[string]string{
		"http://ftp.debian.org/debian/pool/a.deb":               "http://ftp.debian.org/debian/pool/a.deb",
		"http://mirror.example/debian/dists/bookworm/InRelease": "http://ftp.debian.org/debian/dists/bookworm/InRelease",
		"http://mirror.example/security/pool/a.deb":             "http://security.debian.org/debian-security/pool/a.deb",
		"http://security.debian.org/debian-security/pool/a.deb": "http://security.debian.org/debian-security/pool/a.deb",
		"http://mirror.example/debianish/pool/a.deb":            "",
		"http://other.example/debian/pool/a.deb":                "",
		"http://ftp.debian.org.evil.example/debian/pool/a.deb":  "",
	}
	for asked, want := range tests {
		got, ours := in.canonical(asked)
		if got != want || ours != (want != "") {
			t.Errorf("canonical(%s) = %q, %v; want %q", asked, got, ours, want)
		}
	}
}

func TestFailure(t *testing.T) {
	preflight := fmt.Errorf("look: %w", &sandbox.PreflightError{Hint: "install uidmap", Err: errors.New("no newuidmap")})
	err := fail(preflight, "start %s", "it")
	f := asFailure(fmt.Errorf("outer: %w", err))
	if f.What != "outer: start it: look: no sandbox: no newuidmap" || f.Hint != "install uidmap" || f.Code != 1 {
		t.Errorf("asFailure = %+v", f)
	}
	hook := asFailure(fail(&Failure{What: "hook", Code: 42}, "phase"))
	if hook.Code != 42 {
		t.Errorf("a hook's status became %d", hook.Code)
	}
	if fail(nil, "x") != nil || asFailure(nil) != nil {
		t.Error("no error became one")
	}
}

func TestHookFollower(t *testing.T) {
	var got []string
	f := &hookFollower{phase: "install.d", tell: func(e Event) { got = append(got, fmt.Sprint(e.Kind, " ", e.Hook)) }}
	f.read(strings.NewReader("dib-run-parts Running /tmp/in_target.d/install.d/10-a\nhello\ndib-run-parts 10-a completed\nlast"))
	want := []string{"4 ", "2 10-a", "4 10-a", "4 10-a", "3 10-a", "4 "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if f.hook != "" {
		t.Errorf("%s is still under way", f.hook)
	}
}

// TestResolvConf goes through what may become of /etc/resolv.conf.
func TestResolvConf(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("the tree's files are given away: run as root")
	}
	tests := []struct {
		name   string
		before string // content; "" for none
		during func(r *os.Root) error
		after  string // content, "-> target", or "" for none
	}{
		{"kept", "own\n", func(*os.Root) error { return nil }, "own\n"},
		{"none", "", func(*os.Root) error { return nil }, ""},
		{"edited original", "own\n", func(r *os.Root) error { return r.WriteFile(resolvOrig, []byte("edited\n"), 0o644) }, "edited\n"},
		{"became a link", "own\n", func(r *os.Root) error {
			return errors.Join(r.Remove(resolvConf), r.Symlink("../run/x", resolvConf))
		}, "-> ../run/x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			if tt.before != "" {
				if err := os.WriteFile(filepath.Join(dir, resolvConf), []byte(tt.before), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			r, err := os.OpenRoot(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if err := errors.Join(swapResolvConf(r, resolver), tt.during(r), restoreResolvConf(r)); err != nil {
				t.Fatal(err)
			}
			if got := resolvConfOf(t, dir); got != tt.after {
				t.Errorf("resolv.conf = %q, want %q", got, tt.after)
			}
			if _, err := os.Lstat(filepath.Join(dir, resolvOrig)); err == nil {
				t.Error("the original is left under the other name")
			}
		})
	}
}

// resolvConfOf is what resolv.conf is at the end.
func resolvConfOf(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(dir, resolvConf)
	if target, err := os.Readlink(name); err == nil {
		return "-> " + target
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return string(b)
}

func TestOldName(t *testing.T) {
	at := time.Date(2026, 11, 21, 9, 8, 7, 0, time.FixedZone("", 3600))
	if got, want := oldName("/o/x.raw", "raw", at), "/o/x-2026.11.21-08.08.07.raw"; got != want {
		t.Errorf("oldName = %s, want %s", got, want)
	}
}
