package elements

import (
	"regexp"
	"slices"
	"strings"
)

// A Place is a host path that must not get into an image, and what stands for it there.
type Place struct{ Path, Name string }

// outward are the options that do not change what is in the image, and whether they take a value.
var outward = map[string]bool{
	"-o": true, "-t": true, "-u": false, "-x": false, "--logfile": true, "--image-cache": true, "--checksum": false, "--no-tmpfs": false,
	"--min-tmpfs": true, "--qemu-img-options": true, "--docker-target": true, "--offline": false, "--locked": false,
	"--lock": true, "--tmpfs": false, "--output": true, "--type": true, "--allow-expired-release": false,
}

// shortWithValue are the one-letter options that take a value.
const shortWithValue = "aotp"

// CanonicalArgs is the command line as it is recorded in the image: one string, without the options that only say
// where and how outputs are written, and with places replaced. Builds that differ in these have the same string.
func CanonicalArgs(args []string, places []Place) string {
	var out []string
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			out = append(out, args[i:]...)
			break
		}
		words := splitOption(args[i])
		for j, word := range words {
			name, _, attached := strings.Cut(word, "=")
			value, drop := outward[name]
			takesNext := !attached && j == len(words)-1 && (value || len(name) == 2 && strings.Contains(shortWithValue, name[1:]) && name[0] == '-')
			if !drop {
				out = append(out, word)
			}
			if takesNext && i+1 < len(args) {
				if i++; !drop {
					out = append(out, args[i])
				}
			}
		}
	}
	return replacePlaces(strings.Join(out, " "), places)
}

// splitOption takes "-xup=" apart: the letters of one-letter options, the last with its value after "=".
func splitOption(arg string) []string {
	if len(arg) < 3 || arg[0] != '-' || arg[1] == '-' {
		return []string{arg}
	}
	var out []string
	for i := 1; i < len(arg); i++ {
		word := "-" + arg[i:i+1]
		if strings.ContainsRune(shortWithValue, rune(arg[i])) {
			if i+1 < len(arg) {
				word += "=" + arg[i+1:]
			}
			return append(out, word)
		}
		out = append(out, word)
	}
	return out
}

// private are the DIB_ variables that say where and how the build runs, not what is built.
var private = []string{
	"DIB_ARGS", "DIB_ENV", "DIB_IMAGE_CACHE", "DIB_LOCKFILES", "DIB_PYTHON_EXEC", "DIB_NO_TMPFS", "DIB_MIN_TMPFS", "DIB_DEBUG_TRACE", "DIB_QUIET",
	"DIB_NO_TIMESTAMP", "DIB_CHECKSUM", "DIB_OFFLINE", "DIB_DISTRIBUTION_MIRROR", "DIB_DEBIAN_DISTRIBUTION_MIRROR", "DIB_SHOW_IMAGE_USAGE",
	"DIB_SHOW_IMAGE_USAGE_FULL", "DIB_APT_KEYRING", "DIB_DEBIAN_KEYRING", "DIB_PYTHON_LOGGING_CONFIG_FILE", "DIB_GZIP_BIN", "DIB_MANIFEST_SAVE_DIR",
}

var (
	secretName = regexp.MustCompile(`(?i)PASSW|SECRET|TOKEN|CREDENTIAL|PRIVATE|API_?KEY|_AUTH(_|$)`)
	userInfo   = regexp.MustCompile(`://[^/@\s]+@`)
)

// CanonicalEnv is the caller's DIB_ variables as they are recorded in the image: a line "declare -x NAME="VALUE"" for
// each, sorted, without those that say where and how the build runs, with places replaced and secrets hidden.
func CanonicalEnv(env []string, places []Place) string {
	return declare(env, func(name, value string) (string, bool) {
		if slices.Contains(private, name) {
			return "", false
		}
		if secretName.MatchString(name) {
			return "***", true
		}
		return replacePlaces(userInfo.ReplaceAllString(value, "://***@"), places), true
	})
}

// FullEnv is the same with all of the caller's DIB_ variables as they are.
func FullEnv(env []string) string {
	return declare(env, func(_, value string) (string, bool) { return value, true })
}

// declare writes variables as "declare -p" of bash does.
func declare(env []string, change func(name, value string) (string, bool)) string {
	lines := map[string]string{}
	for _, kv := range env {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || !strings.HasPrefix(name, "DIB_") {
			continue
		}
		if value, ok = change(name, value); ok {
			lines[name] = `declare -x ` + name + `="` + inDoubleQuotes.Replace(value) + `"`
		}
	}
	var out []string
	for name := range lines {
		out = append(out, name)
	}
	slices.Sort(out)
	for i, name := range out {
		out[i] = lines[name]
	}
	return strings.Join(out, "\n")
}

var inDoubleQuotes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`")

// replacePlaces replaces paths, longest first, where a whole component ends.
func replacePlaces(text string, places []Place) string {
	sorted := slices.Clone(places)
	slices.SortFunc(sorted, func(a, b Place) int { return len(b.Path) - len(a.Path) })
	for _, p := range sorted {
		if len(p.Path) < 2 {
			continue
		}
		whole := regexp.MustCompile(regexp.QuoteMeta(p.Path) + `([/:,\s"']|$)`)
		text = whole.ReplaceAllString(text, strings.ReplaceAll(p.Name, "$", "$$")+"${1}")
	}
	return text
}
