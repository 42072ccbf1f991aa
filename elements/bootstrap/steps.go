package bootstrap

import (
	"bytes"
	"maps"
	"slices"
	"strings"
)

// stepEnv is the environment of every step.
func stepEnv() []string {
	return []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		"LC_ALL=C.UTF-8",
		"TZ=UTC",
		"DEBIAN_FRONTEND=noninteractive",
		"DEBCONF_NONINTERACTIVE_SEEN=true",
	}
}

// steps lists what has to run inside the tree. Packages outside the base are
// unpacked and configured in batches, because dpkg wants what a package
// pre-depends on to be configured before it unpacks the package.
func steps(packages []*packageFile) []Step {
	var list []Step
	var rest []*packageFile
	dpkgVersion := ""
	for _, p := range packages {
		if p.control.name == "dpkg" {
			dpkgVersion = p.control.version
		}
	}
	for _, p := range packages {
		switch {
		case !p.deb.Base:
			rest = append(rest, p)
		case p.control.file("preinst") != nil:
			list = append(list, preinstStep(p.control, dpkgVersion))
		}
	}
	list = append(list, dpkgStep("--configure", "-a"))
	all, configured := batches(rest), make(map[string]bool)
	for i, batch := range all {
		args := []string{"--unpack"}
		for _, p := range batch {
			args = append(args, p.deb.Inside)
		}
		list = append(list, dpkgStep(args...))
		if i+1 < len(all) {
			early := slices.DeleteFunc(neededBy(all[i+1:], all[:i+1]), func(name string) bool { return configured[name] })
			for _, name := range early {
				configured[name] = true
			}
			if len(early) > 0 {
				list = append(list, dpkgStep(append([]string{"--configure"}, early...)...))
			}
		}
	}
	if len(all) > 0 {
		list = append(list, dpkgStep("--configure", "-a"))
	}
	return list
}

// neededBy lists those of the unpacked packages that must be configured before
// the later ones may be unpacked: what those pre-depend on, and what that
// depends on in turn. The rest waits for the end, since it may depend on what
// is not there yet.
func neededBy(later, unpacked [][]*packageFile) []string {
	needed := make(map[string]bool)
	for _, batch := range later {
		for _, p := range batch {
			maps.Copy(needed, fieldNames(p.control, "pre-depends"))
		}
	}
	var found []string
	done := make(map[*packageFile]bool)
	for again := true; again; {
		again = false
		for _, p := range slices.Concat(unpacked...) {
			if done[p] || !isNamed(p, needed) {
				continue
			}
			done[p], again = true, true
			found = append(found, p.control.name)
			maps.Copy(needed, fieldNames(p.control, "depends"))
			maps.Copy(needed, fieldNames(p.control, "pre-depends"))
		}
	}
	return found
}

// isNamed reports whether p, or what it provides, is one of the names.
func isNamed(p *packageFile, names map[string]bool) bool {
	if names[p.control.name] {
		return true
	}
	for provided := range fieldNames(p.control, "provides") {
		if names[provided] {
			return true
		}
	}
	return false
}

func dpkgStep(args ...string) Step {
	return Step{Args: append([]string{"/usr/bin/dpkg"}, args...), Env: stepEnv()}
}

// preinstStep runs the preinst script as dpkg does when a package that was
// never installed is unpacked (deb-preinst(5), dpkg(1) on its environment).
func preinstStep(c *control, dpkgVersion string) Step {
	return Step{
		Args: []string{"/" + infoDir + "/" + c.infoName() + ".preinst", "install"},
		Env: append(stepEnv(),
			"DPKG_MAINTSCRIPT_PACKAGE="+c.name,
			"DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1",
			"DPKG_MAINTSCRIPT_ARCH="+c.arch,
			"DPKG_MAINTSCRIPT_NAME=preinst",
			"DPKG_MAINTSCRIPT_DEBUG=0",
			"DPKG_RUNNING_VERSION="+dpkgVersion,
			"DPKG_ADMINDIR=/"+adminDir,
			"DPKG_ROOT=",
			"PERL_DL_NONLAZY=1",
			// dpkg runs the script out of tmp.ci, where debconf finds the name.
			"DEBCONF_PACKAGE="+c.name,
		),
	}
}

// batches splits packages so that none pre-depends on one of its own batch or
// of a later one. Where that is impossible, which dpkg will say, the order is
// kept.
func batches(packages []*packageFile) [][]*packageFile {
	var list [][]*packageFile
	for len(packages) > 0 {
		var now, later []*packageFile
		for _, p := range packages {
			if needsBefore(p, packages) {
				later = append(later, p)
			} else {
				now = append(now, p)
			}
		}
		if len(now) == 0 {
			now, later = packages, nil
		}
		list, packages = append(list, now), later
	}
	return list
}

// needsBefore reports whether p pre-depends on one of the packages.
func needsBefore(p *packageFile, packages []*packageFile) bool {
	names := fieldNames(p.control, "pre-depends")
	for _, q := range packages {
		if q == p {
			continue
		}
		if isNamed(q, names) {
			return true
		}
	}
	return false
}

// fieldNames returns the packages that a relation field names.
func fieldNames(c *control, field string) map[string]bool {
	s := newStanzaScanner(bytes.NewReader(c.stanza))
	if !s.scan() {
		return nil
	}
	groups, err := parseRelations(s.get(field))
	if err != nil {
		return nil
	}
	names := make(map[string]bool)
	for _, g := range groups {
		for _, t := range g {
			name, _, _ := strings.Cut(t.name, ":")
			names[name] = true
		}
	}
	return names
}
