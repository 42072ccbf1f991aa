package fsbuild

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/tests/require"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// names lists a folder.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

// makers are the two ways to make an output.
var makers = map[string]func(path string) (*OutputFile, error){
	"nameless": CreateOutput,
	"named": func(path string) (*OutputFile, error) {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		o := &OutputFile{dir: dir, path: path}
		return o, o.createNamed()
	},
}

func TestOutputAppearsWhenCommitted(t *testing.T) {
	for name, create := range makers {
		for _, old := range []string{"", "old", "link"} {
			t.Run(name+"/"+old, func(t *testing.T) {
				dir := t.TempDir()
				path := filepath.Join(dir, "image.raw")
				switch old {
				case "old":
					must(t, os.WriteFile(path, []byte("old"), 0o600))
				case "link":
					must(t, os.Symlink("/nonexistent", path))
				}
				o, err := create(path)
				must(t, err)
				_, err = o.File().WriteString("new")
				must(t, err)
				if got, _ := os.ReadFile(path); (string(got) == "old") != (old == "old") {
					t.Errorf("before commit the file holds %q", got)
				}
				if o.File().Name() != path {
					t.Errorf("file is called %q, want %q", o.File().Name(), path)
				}
				must(t, o.Commit())
				if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
					t.Errorf("after commit the file holds %q, %v", got, err)
				}
				must(t, o.Abort())
				if got := names(t, dir); got != "image.raw" {
					t.Errorf("folder holds %q, want only image.raw", got)
				}
				if err := o.Commit(); !errors.Is(err, os.ErrClosed) {
					t.Errorf("second commit: error = %v, want ErrClosed", err)
				}
			})
		}
	}
}

func TestAbortedOutputLeavesNothing(t *testing.T) {
	for name, create := range makers {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o, err := create(filepath.Join(dir, "image.raw"))
			must(t, err)
			_, err = o.File().WriteString("new")
			must(t, err)
			must(t, o.Abort())
			must(t, o.Abort())
			if got := names(t, dir); got != "" {
				t.Errorf("folder holds %q, want nothing", got)
			}
		})
	}
}

// TestUnfinishedOutputIsInvisible is what kill -9 would leave.
func TestUnfinishedOutputIsInvisible(t *testing.T) {
	dir := t.TempDir()
	o, err := CreateOutput(filepath.Join(dir, "image.raw"))
	must(t, err)
	defer o.Abort()
	if got := names(t, dir); got != "" {
		t.Errorf("folder holds %q while writing, want nothing", got)
	}
}

func TestNamedOutputTakesOverAStaleOne(t *testing.T) {
	dir := t.TempDir()
	create := makers["named"]
	must(t, os.WriteFile(filepath.Join(dir, ".cairn-partial-0"), []byte("stale"), 0o600))
	victim := filepath.Join(t.TempDir(), "victim")
	must(t, os.WriteFile(victim, []byte("precious"), 0o600))
	must(t, os.Link(victim, filepath.Join(dir, ".cairn-partial-1")))
	first, err := create(filepath.Join(dir, "a"))
	must(t, err)
	second, err := create(filepath.Join(dir, "b"))
	must(t, err)
	if first.temp != ".cairn-partial-0" || second.temp != ".cairn-partial-2" {
		t.Errorf("names are %s and %s, want 0 (stale) and 2 (1 is a hard link)", first.temp, second.temp)
	}
	must(t, first.Commit())
	must(t, second.Commit())
	if got, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || len(got) != 0 {
		t.Errorf("a holds %q, %v; want nothing of the stale file", got, err)
	}
	if got, err := os.ReadFile(victim); err != nil || string(got) != "precious" {
		t.Errorf("victim holds %q, %v", got, err)
	}
}

func TestOutputModeFollowsUmask(t *testing.T) {
	old := syscall.Umask(0o027)
	defer syscall.Umask(old)
	for name, create := range makers {
		path := filepath.Join(t.TempDir(), "f")
		o, err := create(path)
		must(t, err)
		must(t, o.Commit())
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode() != 0o640 {
			t.Errorf("%s: mode %v, want 0640", name, info.Mode())
		}
	}
}

func TestCreateOutputRefuses(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	must(t, syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	for name, tc := range map[string]struct {
		path string
		want error
		hint string
	}{
		"folder missing": {"missing/out.raw", fs.ErrNotExist, "create the folder"},
		"folder is file": {"file/out.raw", syscall.ENOTDIR, "is not a folder"},
		"is a folder":    {".", syscall.EISDIR, "name a file in it"},
		"is a fifo":      {"fifo", nil, ""},
		"long name":      {strings.Repeat("x", 256), syscall.ENAMETOOLONG, "shorter"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, tc.path)
			_, err := CreateOutput(path)
			checkOutputError(t, err, path, tc.want, tc.hint)
		})
	}
	if _, err := CreateOutput(""); err == nil {
		t.Error("an empty path: no error")
	}
}

// checkOutputError wants an *OutputError that names path once, has a cause and
// a hint.
func checkOutputError(t *testing.T, err error, path string, cause error, hint string) {
	t.Helper()
	var oe *OutputError
	if !errors.As(err, &oe) {
		t.Fatalf("error = %v, want an *OutputError", err)
	}
	if oe.Path != path || strings.Count(err.Error(), path) != 1 {
		t.Errorf("error %q does not name %s once", err, path)
	}
	if cause != nil && !errors.Is(err, cause) {
		t.Errorf("error = %v, want %v", err, cause)
	}
	if !strings.Contains(oe.Hint(), hint) || hint == "" && oe.Hint() != "" {
		t.Errorf("hint = %q, want one with %q", oe.Hint(), hint)
	}
}

func TestCommitOntoAFolder(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	o, err := CreateOutput(path)
	must(t, err)
	must(t, os.Mkdir(path, 0o700))
	err = o.Commit()
	checkOutputError(t, err, path, syscall.EISDIR, "name a file in it")
	if got := names(t, dir); got != "out" {
		t.Errorf("folder holds %q, want only out", got)
	}
}

func TestReadOnlyFolder(t *testing.T) {
	if !require.InNamespace(t) {
		return
	}
	dir := t.TempDir()
	must(t, syscall.Mount("none", dir, "tmpfs", syscall.MS_RDONLY, ""))
	defer syscall.Unmount(dir, 0)
	path := filepath.Join(dir, "out.raw")
	_, err := CreateOutput(path)
	checkOutputError(t, err, path, syscall.EROFS, "read-only file system: write to another folder")
}
