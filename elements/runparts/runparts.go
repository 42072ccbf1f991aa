// Package runparts is dib-run-parts: it runs the executable files of a hook directory in order, after sourcing the
// files of the environment.d directory beside it, and reports how long each took.
//
// The environment files are shell, so one bash sources them and then executes this program again, which runs the
// hooks; whatever the files change — exported variables and functions, working directory, umask, limits — is there.
// Apart from bash for these files, and what the hooks start themselves, nothing is needed in the image.
//
// The order, the filter, the messages and the exit statuses are those of diskimage_builder/lib/dib-run-parts (3.42),
// but that an empty environment.d is no error. Progress can be read from standard error: before a hook a line
// "dib-run-parts Running DIR/NAME", after its success "dib-run-parts NAME completed".
package runparts

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Process is what Main needs of the process it runs in.
type Process struct {
	Args   []string // including the program's name, whose last component is the prefix of messages
	Env    []string // NAME=VALUE; where a name occurs twice the last counts
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Self is the path of a program that, started under the name Args[0], calls Main.
	Self string
	// Now is the clock of the report.
	Now func() time.Time
}

// continuation is the internal first argument of the run that bash starts: DIR and the names of the hooks follow.
const continuation = "--run"

// Main does what the arguments ask for and returns the exit status: that of the first hook or environment file that
// failed, or 1 for wrong arguments. A hook ended by signal N counts as 128+N, one that cannot be started as 126 or 127.
func Main(p Process) int {
	r := runner{Process: p, name: filepath.Base(p.Args[0])}
	args := p.Args[1:]
	if len(args) >= 2 && args[0] == continuation {
		return r.run(args[1], args[2:])
	}
	list := len(args) > 0 && args[0] == "--list"
	if list {
		args = args[1:]
	}
	if len(args) == 0 {
		if list {
			r.say("Scripts directory [] must exist and be a directory")
		}
		return r.usage()
	}
	dir := args[0]
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		r.say("Scripts directory [%s] must exist and be a directory", dir)
		return r.usage()
	}
	return r.directory(dir, list)
}

type runner struct {
	Process
	name string
}

// say writes one message.
func (r *runner) say(format string, args ...any) {
	_, _ = fmt.Fprintf(r.Stderr, "%s %s\n", r.name, fmt.Sprintf(format, args...))
}

func (r *runner) usage() int {
	_, _ = fmt.Fprintf(r.Stderr, `Usage: %[1]s [OPTION] scripts_directory
Run the executable files of a directory, by the numbers their names start with.
Option:
      --list  print the files that would run, and run none

Examples:
      %[1]s --list /etc/os-refresh-config/configure.d
      %[1]s /etc/os-refresh-config/configure.d
`, r.name)
	return 1
}

// directory lists or runs the hooks of dir.
func (r *runner) directory(dir string, list bool) int {
	found, err := Scan(dir, r.env("RUN_PARTS_REGEX"))
	if err != nil {
		r.say("%v", err)
		return 1
	}
	if list {
		for _, name := range found.Hooks {
			_, _ = fmt.Fprintf(r.Stdout, "%s/%s\n", dir, name)
		}
		return 0
	}
	if level, err := strconv.Atoi(r.env("DIB_DEBUG_TRACE")); err == nil && level > 0 {
		r.notices(found)
	}
	if files := environmentFiles(dir); len(files) > 0 {
		return r.source(dir, files, found.Hooks)
	}
	return r.run(dir, found.Hooks)
}

func (r *runner) notices(found Listing) {
	if len(found.NotExecutable) > 0 {
		r.say("Ignoring non-executable files: %s", strings.Join(found.NotExecutable, " "))
	}
	if len(found.NotConforming) > 0 {
		r.say("Ignoring non-conforming filenames: %s", strings.Join(found.NotConforming, " "))
	}
}

// source starts the bash that sources the environment files and then becomes this program.
func (r *runner) source(dir string, files, hooks []string) int {
	var script strings.Builder
	fmt.Fprintf(&script, "set -ue -o pipefail\ntarget_dir=%s\nfunction source_environment {\n", quote(dir))
	for _, file := range files {
		message := r.name + " Sourcing environment file " + file
		fmt.Fprintf(&script, "echo %s >&2\nset -o xtrace\nsource %s\n{ set +o xtrace; } 2>/dev/null\n", quote(message), quote(file))
	}
	// In a subshell, for at the top level bash 5.2 complains about itself when a file fails.
	fmt.Fprintf(&script, "}\n(source_environment\nexec -a %s %s %s %s", quote(r.Args[0]), quote(r.self()), continuation, quote(dir))
	for _, hook := range hooks {
		script.WriteString(" " + quote(hook))
	}
	return r.start(r.bash(), []string{"bash", "-c", script.String() + ")", r.Args[0]})
}

// self is a path of this program that bash can execute.
func (r *runner) self() string {
	if _, err := os.Stat(r.Self); err != nil {
		return fmt.Sprintf("/proc/%d/exe", os.Getpid())
	}
	return r.Self
}

// run runs the hooks and reports.
func (r *runner) run(dir string, hooks []string) int {
	var seconds []float64
	for _, hook := range hooks {
		path := dir + "/" + hook
		r.say("Running %s", path)
		start := r.Now()
		if status := r.start(path, []string{path}); status != 0 {
			return status
		}
		seconds = append(seconds, r.Now().Sub(start).Seconds())
		r.say("%s completed", hook)
	}
	r.report(dir, hooks, seconds)
	return 0
}

// start runs a program to its end. A file that the kernel does not know how to run is given to bash.
func (r *runner) start(path string, args []string) int {
	err := r.command(path, args).Run()
	if errors.Is(err, syscall.ENOEXEC) {
		err = r.command(r.bash(), append([]string{"bash"}, args...)).Run()
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			r.say("%s: %s", path, ws.Signal())
			return 128 + int(ws.Signal())
		}
		return exit.ExitCode()
	case errors.Is(err, syscall.ENOENT):
		r.say("%s: cannot be started, is its interpreter there? %v", path, err)
		return 127
	}
	r.say("%s: cannot be started: %v", path, err)
	return 126
}

func (r *runner) command(path string, args []string) *exec.Cmd {
	return &exec.Cmd{Path: path, Args: args, Env: r.Env, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr}
}

// env returns the value of a variable.
func (r *runner) env(name string) string {
	value := ""
	for _, kv := range r.Env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			value = v
		}
	}
	return value
}

// bash finds bash on the PATH of the hooks.
func (r *runner) bash() string {
	for _, dir := range filepath.SplitList(r.env("PATH")) {
		path := filepath.Join(dir, "bash")
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path
		}
	}
	return "/bin/bash"
}

// quote makes one word of the shell of text.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// environmentName is what the name of a file in environment.d has to look like.
var environmentName = regexp.MustCompile(`^[0-9A-Za-z_.-]+$`)

// environmentFiles lists the files to source before the hooks of dir, in bytewise order.
func environmentFiles(dir string) []string {
	base := dir + "/../environment.d"
	entries, err := os.ReadDir(base)
	if err != nil {
		return nil
	}
	var files []string
	for _, entry := range entries { // sorted by name
		path := base + "/" + entry.Name()
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && environmentName.MatchString(entry.Name()) {
			files = append(files, path)
		}
	}
	return files
}
