package runparts

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// oracle is the program that this package answers to.
const oracle = "/usr/lib/python3/dist-packages/diskimage_builder/lib/dib-run-parts"

// TestMain lets the test binary be dib-run-parts, as the multi-call program is.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "dib-run-parts" {
		os.Exit(Main(Process{Args: os.Args, Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Self: executable(), Now: time.Now}))
	}
	os.Exit(m.Run())
}

func executable() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

// binary links dib-run-parts to the test binary.
func binary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dib-run-parts")
	if err := os.Symlink(executable(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

type result struct {
	Status         int
	Stdout, Stderr string
}

func run(t *testing.T, program string, env []string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	c := exec.Command(program, args...)
	c.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TMPDIR=" + t.TempDir()}, env...)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil && c.ProcessState == nil {
		t.Fatal(err)
	}
	return result{c.ProcessState.ExitCode(), out.String(), errs.String()}
}

// tree makes files below a new directory, executable where the content starts with "#!" or a "+" that is cut off;
// "->" makes a link and a name with a final slash a directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "p.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		mode := os.FileMode(0o644)
		if rest, ok := strings.CutPrefix(text, "+"); ok || strings.HasPrefix(text, "#!") {
			text, mode = rest, 0o755
		}
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		switch {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		case strings.HasPrefix(text, "->"):
			err = os.Symlink(text[2:], path)
		case err == nil:
			err = os.WriteFile(path, []byte(text), mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const order = "#!/bin/sh\necho ${0##*/}\n"

func TestRun(t *testing.T) {
	tests := []struct {
		name   string
		files  map[string]string
		env    []string
		status int
		stdout string
		stderr []string // in it
		absent []string // not in stderr
	}{
		{
			name: "order", files: map[string]string{"p.d/100-late": order, "p.d/20-link": "->../x", "x": order, "p.d/9-early": order, "p.d/alpha": order, "p.d/55-ok": order},
			stdout: "alpha\n9-early\n20-link\n55-ok\n100-late\n",
		},
		{
			name: "ignored", files: map[string]string{"p.d/50-nonexec": "x", "p.d/50-has.dot": order, "p.d/sub/": "", "p.d/dangling": "->nowhere"},
			absent: []string{"Ignoring", "Running"}, stderr: []string{"END PROFILING"},
		},
		{
			name: "notices", files: map[string]string{"p.d/50-nonexec": "x", "p.d/50-has.dot": order}, env: []string{"DIB_DEBUG_TRACE=1"},
			stderr: []string{"dib-run-parts Ignoring non-executable files: 50-nonexec\n", "dib-run-parts Ignoring non-conforming filenames: 50-has.dot\n"},
		},
		{name: "pattern", files: map[string]string{"p.d/50-has.dot": order, "p.d/10-x": order}, env: []string{`RUN_PARTS_REGEX=\.dot$`}, stdout: "50-has.dot\n"},
		{name: "wrong pattern", files: map[string]string{"p.d/10-x": order}, env: []string{`RUN_PARTS_REGEX=(`}, status: 1, stderr: []string{"RUN_PARTS_REGEX"}},
		{name: "no shebang", files: map[string]string{"p.d/10-x": "+[[ a == a ]] && echo $0 | sed s,.*/,,\n"}, stdout: "10-x\n"},
		{name: "failure", files: map[string]string{"p.d/10-x": "#!/bin/sh\nexit 7\n", "p.d/20-y": order}, status: 7, absent: []string{"PROFILING", "completed"}},
		{name: "signal", files: map[string]string{"p.d/10-x": "#!/bin/sh\nkill -9 $$\n"}, status: 137},
		{name: "no interpreter", files: map[string]string{"p.d/10-x": "#!/nonexist\n"}, status: 127, stderr: []string{"10-x"}},
		{
			name: "environment in bytewise order", files: map[string]string{
				"environment.d/100-a": "export V=a", "environment.d/20-b": "export V=b", "environment.d/10.bash": "export D=dot", "environment.d/.hidden": "export H=hidden",
				"environment.d/bad~name": "exit 1", "p.d/10-x": "#!/bin/sh\necho $V $D $H\n",
			},
			stdout: "b dot hidden\n", stderr: []string{"p.d/../environment.d/100-a\n", "+ export V=b\n"},
		},
		{
			name: "environment persists", files: map[string]string{
				"environment.d/1": "cd /; umask 027; f() { echo from f; }; export -f f; ulimit -n 123; declare -A local_only=([a]=b)\nreturn 0\nexit 5",
				"p.d/10-x":        "#!/bin/bash\nf; pwd; umask; ulimit -n\n",
			},
			stdout: "from f\n/\n0027\n123\n",
		},
		{name: "environment exits", files: map[string]string{"environment.d/1": "exit 3", "p.d/10-x": order}, status: 3},
		{name: "environment fails", files: map[string]string{"environment.d/1": "false", "p.d/10-x": order}, status: 1},
		{name: "unset variable", files: map[string]string{"environment.d/1": "echo $NAME", "p.d/10-x": order}, status: 1, stderr: []string{"NAME: unbound variable"}},
		{name: "empty environment", files: map[string]string{"environment.d/": "", "p.d/10-x": order}, stdout: "10-x\n"},
		{
			name: "own path", files: map[string]string{"environment.d/1": "echo ${BASH_SOURCE[0]##*/p.d} ${0##*/} ${target_dir##*/}", "p.d/10-x": order},
			stdout: "/../environment.d/1 dib-run-parts p.d\n10-x\n",
		},
		{name: "empty directory", stderr: []string{"END PROFILING"}},
	}
	program := binary(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := run(t, program, tt.env, filepath.Join(tree(t, tt.files), "p.d"))
			if got.Status != tt.status || got.Stdout != tt.stdout {
				t.Errorf("status %d stdout %q, want %d %q; stderr:\n%s", got.Status, got.Stdout, tt.status, tt.stdout, got.Stderr)
			}
			for _, s := range tt.stderr {
				if !strings.Contains(got.Stderr, s) {
					t.Errorf("no %q in stderr:\n%s", s, got.Stderr)
				}
			}
			for _, s := range tt.absent {
				if strings.Contains(got.Stderr, s) {
					t.Errorf("%q in stderr:\n%s", s, got.Stderr)
				}
			}
		})
	}
}

func TestArguments(t *testing.T) {
	program := binary(t)
	dir := tree(t, map[string]string{"p.d/1-a": order, "p.d/b": order, "file": ""})
	tests := []struct {
		name   string
		args   []string
		status int
		stdout string
		stderr string
	}{
		{"none", nil, 1, "", "Usage: dib-run-parts"},
		{"file", []string{dir + "/file"}, 1, "", "dib-run-parts Scripts directory [" + dir + "/file] must exist and be a directory\nUsage: "},
		{"list", []string{"--list", dir + "/p.d"}, 0, dir + "/p.d/b\n" + dir + "/p.d/1-a\n", ""},
		{"list nothing", []string{"--list", dir}, 0, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := run(t, program, nil, tt.args...)
			if got.Status != tt.status || got.Stdout != tt.stdout || !strings.HasPrefix(got.Stderr, tt.stderr) || tt.stderr == "" && got.Stderr != "" {
				t.Errorf("%+v", got)
			}
		})
	}
}

var figures = regexp.MustCompile(` +[0-9]+\.[0-9]{3}\n`)

// TestOracle compares with diskimage-builder's own runner on generated directories.
func TestOracle(t *testing.T) {
	if _, err := os.Stat(oracle); err != nil {
		t.Fatalf("install python3-diskimage-builder: %v", err)
	}
	program := binary(t)
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			dir := tree(t, generate(r))
			args := []string{dir + "/p.d"}
			if r.IntN(5) == 0 {
				args = append([]string{"--list"}, args...)
			}
			got, want := run(t, program, nil, args...), run(t, oracle, nil, args...)
			for _, res := range []*result{&got, &want} {
				res.Stderr = figures.ReplaceAllString(res.Stderr, " SECONDS\n")
				// How tracing is switched off again differs and is dropped from logs.
				res.Stderr = strings.ReplaceAll(res.Stderr, "+ set +o xtrace\n", "")
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// generate makes a hooks directory with few surprises too many.
func generate(r *rand.Rand) map[string]string {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	files := map[string]string{}
	for range r.IntN(8) {
		name := "p.d/" + pick("", "-", "0", "007", "7", "10", "99", "100", "1_", "a", "Z", "-3") + pick("-x", "x", "_y", "-a-b", ".no", "-B") + pick("", "", "2", "~")
		files[name] = pick("#!/bin/bash\necho $0 $A $B; umask\n", "#!/bin/sh\necho $A >&2\n", "+echo plain $0 $#\n", "not executable", "->../outside", "#!/bin/sh\ncat\n", "+")
		if r.IntN(12) == 0 {
			files[name] = fmt.Sprintf("#!/bin/sh\nexit %d\n", r.IntN(20))
		}
	}
	files["outside"] = "#!/bin/sh\necho outside $0\n"
	for i := range r.IntN(4) {
		if i == 0 { // without any file to source the original fails silently
			files["environment.d/0-first"] = "# nothing\n"
		}
		name := "environment.d/" + pick("1", "10", "9", "x", ".") + pick("-a", ".bash", "_b", "~")
		files[name] = pick("export A=$RANDOM; A=1\n", "export A=two B=\"${A:-none} x\"\n", "umask 077\n", "return 0\n", "cd /\n", "# nothing\n", "export B=$(basename ${BASH_SOURCE[0]})\n", "set -x\nexport A=3\n")
		if strings.Contains(files[name], "RANDOM") {
			files[name] = "export A=1\n"
		}
		if r.IntN(15) == 0 {
			files[name] = pick("exit 4\n", "echo $UNSET\n", "false\n")
		}
	}
	return files
}

func TestSort(t *testing.T) {
	names := []string{"b", "10", "9", "a", "-1", "1.5x", "1.25", "007", "7", "-"}
	Sort(names)
	if diff := cmp.Diff([]string{"-1", "-", "a", "b", "1.25", "1.5x", "007", "7", "9", "10"}, names); diff != "" {
		t.Error(diff)
	}
}
