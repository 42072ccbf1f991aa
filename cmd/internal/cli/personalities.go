package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cairn/cmd/internal/build"
)

// personalities are the programs that this one is when started under their
// name: commands of diskimage-builder for its callers, and what hooks find on
// their PATH.
func personalities() map[string]func(context.Context, *program) error {
	all := map[string]func(context.Context, *program) error{
		"disk-image-create": diskImageCreate,
		"element-info":      elementInfo,
		"dib-run-parts":     dibRunParts,
	}
	for _, name := range build.ShimNames() {
		all[name] = shim
	}
	return all
}

// elementPaths is the search path of elements.
func (p *program) elementPaths() []string { return filepath.SplitList(p.value("ELEMENTS_PATH", "")) }

// elementInfo is the personality element-info: it prints the expanded set, or
// with --env shell definitions of it.
func elementInfo(_ context.Context, p *program) error {
	var env, expand bool
	on := func(to *bool) func(string) error { return func(string) error { *to = true; return nil } }
	names, err := getopt("element-info", []option{
		{'e', "env", false, on(&env)}, {'d', "expand-dependencies", false, on(&expand)},
	}, p.args)
	if err != nil {
		fmt.Fprintln(p.stderr, err)
		return errSilent(exitFailure)
	}
	info, err := build.ElementInfo(p.elementPaths(), names, p.arch(), env)
	if err != nil {
		return err
	}
	fmt.Fprintln(p.stdout, strings.TrimRight(info, "\n"))
	return nil
}

// dibRunParts is the personality dib-run-parts.
func dibRunParts(_ context.Context, p *program) error {
	if status := build.RunParts(append([]string{p.name}, p.args...), p.all, os.Stdin, p.stdout, p.stderr); status != 0 {
		return errSilent(status)
	}
	return nil
}

// shim is what hooks find instead of a privileged tool.
func shim(_ context.Context, p *program) error {
	if status := build.Shim(append([]string{p.name}, p.args...), p.all); status != 0 {
		return errSilent(status)
	}
	return nil
}
