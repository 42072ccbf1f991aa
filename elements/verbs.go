package elements

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Verb is a command of the helper that built-in elements' host hooks call. It reads the hook's environment and
// returns an exit status.
type Verb = func(args, env []string, stdout, stderr io.Writer) int

// Verbs returns the commands of this package by name:
//
//   - package-installs [--json]: the joined package lists, see [PackageInstalls], as [PackageLists.Text] or as JSON;
//   - svc-map-data: the joined service names, see [Services], as YAML.
func Verbs() map[string]Verb {
	return map[string]Verb{"package-installs": packageInstallsVerb, "svc-map-data": servicesVerb}
}

func packageInstallsVerb(args, env []string, stdout, stderr io.Writer) int {
	dirs, lookup, err := hookEnvironment(env)
	var lists PackageLists
	if err == nil {
		lists, err = PackageInstalls(dirs, lookup)
	}
	out := []byte(lists.Text())
	if err == nil && len(args) > 0 && args[0] == "--json" {
		out, err = json.MarshalIndent(lists, "", " ")
	}
	return finish(out, err, stdout, stderr)
}

func servicesVerb(_, env []string, stdout, stderr io.Writer) int {
	dirs, lookup, err := hookEnvironment(env)
	var out []byte
	if err == nil {
		distribution, _ := lookup("DISTRO_NAME")
		var services map[string]string
		if services, err = Services(dirs, distribution); err == nil {
			out, err = yaml.Marshal(services)
		}
	}
	return finish(out, err, stdout, stderr)
}

func finish(out []byte, err error, stdout, stderr io.Writer) int {
	if err == nil {
		_, err = stdout.Write(out)
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

func hookEnvironment(env []string) ([]Dir, func(string) (string, bool), error) {
	variables := map[string]string{}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		variables[name] = value
	}
	dirs, err := DirsOf(variables["IMAGE_ELEMENT_YAML"], variables["IMAGE_ELEMENT"])
	return dirs, func(name string) (string, bool) { v, ok := variables[name]; return v, ok }, err
}
