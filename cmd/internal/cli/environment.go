package cli

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"
)

// program is what the outside world gives to a run: the only place where the
// environment, the clock, the user and the terminal are read.
type program struct {
	name   string // that it was started by
	args   []string
	env    func(string) (string, bool)
	all    []string // the environment as NAME=value
	stdout io.Writer
	stderr io.Writer
	tty    bool
	width  func() int
	now    func() time.Time
	uid    int
	gid    int
	user   string
	home   string
	cwd    string
}

// thisProgram reads them.
func thisProgram(args []string) (*program, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("find the working directory: %w", err)
	}
	p := &program{
		name: filepath.Base(args[0]), args: args[1:], env: os.LookupEnv, all: os.Environ(),
		stdout: os.Stdout, stderr: os.Stderr, now: time.Now, uid: os.Getuid(), gid: os.Getgid(), cwd: cwd,
		tty: term.IsTerminal(int(os.Stderr.Fd())) && os.Getenv("CI") == "" && os.Getenv("TERM") != "dumb",
	}
	p.width = func() int {
		w, _, err := term.GetSize(int(os.Stderr.Fd()))
		if err != nil {
			return 80
		}
		return w
	}
	p.user, p.home = strconv.Itoa(p.uid), os.Getenv("HOME")
	if u, err := user.LookupId(p.user); err == nil {
		p.user = u.Username
		if p.home == "" {
			p.home = u.HomeDir
		}
	}
	return p, nil
}

// value is an environment variable, or other if it is unset or empty.
func (p *program) value(name, other string) string {
	if v, ok := p.env(name); ok && v != "" {
		return v
	}
	return other
}

// flagSet says whether a variable such as DIB_OFFLINE holds a true value.
func (p *program) flagSet(name string) bool {
	v := p.value(name, "")
	return v != "" && v != "0"
}

// abs makes a path of the caller absolute.
func (p *program) abs(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(p.cwd, path)
}

// arch is Debian's name for the machine's architecture.
func (p *program) arch() string {
	if a := p.value("ARCH", ""); a != "" {
		return a
	}
	if runtime.GOARCH == "arm" {
		return "armhf"
	}
	return runtime.GOARCH
}

// storeDir is where the content store lies.
func (p *program) storeDir(option string) string {
	if option == "" {
		option = p.value("DIB_IMAGE_CACHE", "")
	}
	if option != "" {
		return p.abs(option)
	}
	if x := p.value("XDG_CACHE_HOME", ""); filepath.IsAbs(x) {
		return filepath.Join(x, "cairn")
	}
	return filepath.Join(p.home, ".cache", "cairn")
}

// readAll reads the files that exist, by name.
func readAll(patterns ...string) map[string][]byte {
	files := make(map[string][]byte)
	for _, pattern := range patterns {
		names, err := filepath.Glob(pattern)
		if err != nil {
			continue
		}
		for _, name := range names {
			if b, err := os.ReadFile(name); err == nil {
				files[name] = b
			}
		}
	}
	return files
}

// findTool is a helper's path, or "" if it is not installed. The sbin
// directories are searched too: an ordinary user's PATH may lack them.
func findTool(name string) string {
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, dir := range strings.Fields("/usr/bin /usr/sbin /bin /sbin") {
		if p := filepath.Join(dir, name); isExecutable(p) {
			return p
		}
	}
	return ""
}

func isExecutable(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}
