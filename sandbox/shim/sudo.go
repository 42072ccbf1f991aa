package shim

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A user is a line of /etc/passwd.
type user struct {
	name, home, shell string
	uid, gid          uint32
}

// request is a parsed sudo command line.
type request struct {
	user         string
	home, login  bool
	shell, plain bool // -s; an option that only asks about or forgets credentials
	assignments  []string
	command      []string
}

// errUsage is a command line that sudo does not understand.
var errUsage = errors.New("usage: sudo [-EHinSs] [-u user] [VAR=value] [--] command [argument ...]")

// withValue are the options of sudo that take a value; of those only the user matters here.
var withValue = map[string]string{
	"u": "user", "g": "group", "p": "prompt", "C": "close-from", "D": "chdir", "h": "host", "R": "chroot", "r": "role", "t": "type", "T": "command-timeout", "U": "other-user",
}

// sudo runs a command as root or another user of the tools root. Like with -E, the environment stays, but for what
// the real one always removes: exported functions and the dynamic linker's variables.
func sudo(p Process) int {
	r, err := parseSudo(p.Args[1:])
	if err != nil {
		_, _ = fmt.Fprintln(p.Stderr, err)
		return 1
	}
	u, err := lookupUser("/etc/passwd", r.user)
	if err != nil {
		_, _ = fmt.Fprintf(p.Stderr, "sudo: %v\n", err)
		return 1
	}
	if r.plain {
		return 0
	}
	env := sudoEnvironment(p.Env, r, u)
	argv, dir := r.command, ""
	if r.login {
		dir = u.home
	}
	if r.login || r.shell {
		argv = shellCommand(r, u)
	}
	if len(argv) == 0 {
		_, _ = fmt.Fprintln(p.Stderr, errUsage)
		return 1
	}
	return run(p, argv, env, dir, credential(u))
}

// credential changes the user, but to root, which a hook is already.
func credential(u user) *syscall.SysProcAttr {
	if u.uid == 0 && u.gid == 0 {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: []uint32{u.gid}}}
}

func parseSudo(args []string) (request, error) {
	r := request{user: "root"}
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "-" {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			break
		}
		var err error
		if strings.HasPrefix(arg, "--") {
			args, err = r.long(arg[2:], args)
		} else {
			args, err = r.short(arg[1:], args)
		}
		if err != nil {
			return r, err
		}
	}
	for len(args) > 0 && strings.Contains(args[0], "=") && isName(args[0][:strings.Index(args[0], "=")]) {
		r.assignments = append(r.assignments, args[0])
		args = args[1:]
	}
	r.command = args
	return r, nil
}

// short takes the letters of one argument, and its value from the next where it has none.
func (r *request) short(letters string, args []string) ([]string, error) {
	for i := range len(letters) {
		letter := letters[i : i+1]
		if _, ok := withValue[letter]; ok {
			value := letters[i+1:]
			if value == "" {
				if len(args) == 0 {
					return nil, errUsage
				}
				value, args = args[0], args[1:]
			}
			return args, r.value(withValue[letter], value)
		}
		if err := r.flag(letter); err != nil {
			return nil, err
		}
	}
	return args, nil
}

func (r *request) long(name string, args []string) ([]string, error) {
	name, value, attached := strings.Cut(name, "=")
	letters := map[string]string{
		"preserve-env": "E", "set-home": "H", "login": "i", "non-interactive": "n", "stdin": "S", "shell": "s", "validate": "v", "reset-timestamp": "k", "background": "b",
	}
	if letter, ok := letters[name]; ok {
		return args, r.flag(letter)
	}
	for _, option := range withValue {
		if name != option {
			continue
		}
		if !attached {
			if len(args) == 0 {
				return nil, errUsage
			}
			value, args = args[0], args[1:]
		}
		return args, r.value(name, value)
	}
	return nil, fmt.Errorf("sudo: unrecognized option '--%s'\n%w", name, errUsage)
}

func (r *request) value(option, value string) error {
	switch option {
	case "user":
		r.user = value
	case "group", "prompt":
	default:
		return fmt.Errorf("sudo: the option %s does not work in the sandbox\n%w", option, errUsage)
	}
	return nil
}

func (r *request) flag(letter string) error {
	switch letter {
	case "E", "n", "S", "P", "A":
	case "H":
		r.home = true
	case "i":
		r.login = true
	case "s":
		r.shell = true
	case "v", "k", "K", "l":
		r.plain = true
	default:
		return fmt.Errorf("sudo: invalid option -- '%s'\n%w", letter, errUsage)
	}
	return nil
}

// sudoEnvironment is the environment of the command.
func sudoEnvironment(env []string, r request, u user) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		return strings.HasPrefix(kv, "BASH_FUNC_") || strings.HasPrefix(kv, "LD_")
	})
	env = append(env, "USER="+u.name, "LOGNAME="+u.name, "SUDO_USER=root")
	if r.home || r.login {
		env = append(env, "HOME="+u.home)
	}
	if r.login {
		env = append(env, "SHELL="+u.shell)
	}
	return append(env, r.assignments...)
}

// shellCommand is the shell that -s and -i start, with the command as one string.
func shellCommand(r request, u user) []string {
	argv := []string{u.shell}
	if r.login {
		argv = append(argv, "-l")
	}
	if len(r.command) > 0 {
		var words []string
		for _, word := range r.command {
			words = append(words, escape(word))
		}
		argv = append(argv, "-c", strings.Join(words, " "))
	}
	return argv
}

// escape puts a backslash before what means something to a shell, but for "$", as sudo does.
func escape(word string) string {
	var out strings.Builder
	for _, c := range word {
		if !isWord(c) && c != '-' && c != '$' && c < 0x80 {
			out.WriteByte('\\')
		}
		out.WriteRune(c)
	}
	return out.String()
}

func isWord(c rune) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func isName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return !isWord(c) }) && (s[0] < '0' || s[0] > '9')
}

// lookupUser finds a user by name or "#" and number. Root needs no file.
func lookupUser(passwd, name string) (user, error) {
	file, err := os.Open(passwd)
	if err == nil {
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if u, ok := parseUser(lines.Text()); ok && (u.name == name || "#"+strconv.Itoa(int(u.uid)) == name) {
				return u, nil
			}
		}
	}
	if name == "root" || name == "#0" {
		return user{name: "root", home: "/root", shell: "/bin/bash"}, nil
	}
	if id, err := strconv.ParseUint(strings.TrimPrefix(name, "#"), 10, 32); err == nil && name[0] == '#' {
		return user{name: name, home: "/", shell: "/bin/sh", uid: uint32(id), gid: uint32(id)}, nil
	}
	return user{}, fmt.Errorf("unknown user %s", name)
}

func parseUser(line string) (user, bool) {
	f := strings.Split(line, ":")
	if len(f) != 7 {
		return user{}, false
	}
	uid, err1 := strconv.ParseUint(f[2], 10, 32)
	gid, err2 := strconv.ParseUint(f[3], 10, 32)
	u := user{name: f[0], home: f[5], shell: f[6], uid: uint32(uid), gid: uint32(gid)}
	if u.shell == "" {
		u.shell = "/bin/sh"
	}
	return u, err1 == nil && err2 == nil
}
