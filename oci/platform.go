package oci

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// platform is an operating system (always Linux here), an architecture and a
// variant of it, in OCI's names.
type platform struct{ os, arch, variant string }

func (p platform) String() string {
	s := p.os + "/" + p.arch
	if p.variant != "" {
		s += "/" + p.variant
	}
	return s
}

// debianArch maps Debian's names to OCI's, where they differ.
var debianArch = map[string]string{
	"armel": "arm/v5", "armhf": "arm/v7", "i386": "386",
	"mipsel": "mipsle", "mips64el": "mips64le", "ppc64el": "ppc64le", "loong64": "loong64",
}

func parsePlatform(arch string) (platform, error) {
	if a, ok := debianArch[arch]; ok {
		arch = a
	}
	a, variant, _ := strings.Cut(arch, "/")
	if a == "" || strings.Contains(variant, "/") {
		return platform{}, fmt.Errorf("pull image: %q is no architecture", arch)
	}
	return platform{"linux", a, variant}.canonical(), nil
}

// canonical leaves out a variant that every member of the architecture has.
func (p platform) canonical() platform {
	if p.arch == "arm64" && p.variant == "v8" || p.arch == "amd64" && p.variant == "v1" {
		p.variant = ""
	}
	return p
}

// runs reports whether an image for offer is one for p. Images often do not
// name their variant.
func (p platform) runs(offer platform) bool {
	return p.os == offer.os && p.arch == offer.arch && (p.variant == offer.variant || offer.variant == "")
}

func platformOf(p *v1.Platform) platform {
	return platform{p.OS, p.Architecture, p.Variant}.canonical()
}

// choose returns the manifest of an index for the platform: the first with
// its variant, or else the first without a variant. An index that names no
// platform and has one manifest has no choice.
func choose(manifests []v1.Descriptor, want platform) (v1.Descriptor, error) {
	var offered []string
	var fallback *v1.Descriptor
	images := slices.DeleteFunc(slices.Clone(manifests), isAttestation)
	if len(images) == 1 && images[0].Platform == nil {
		return images[0], nil
	}
	for i, d := range images {
		if d.Platform == nil {
			continue
		}
		have := platformOf(d.Platform)
		switch {
		case want == have:
			return d, nil
		case want.runs(have) && fallback == nil:
			fallback = &images[i]
		}
		if s := have.String(); !slices.Contains(offered, s) {
			offered = append(offered, s)
		}
	}
	if fallback != nil {
		return *fallback, nil
	}
	if offered == nil {
		offered = []string{"none"}
	}
	return v1.Descriptor{}, &PlatformError{Want: want.String(), Offered: offered}
}

// isAttestation recognises what BuildKit puts beside images in an index.
func isAttestation(d v1.Descriptor) bool {
	return d.Platform != nil && d.Platform.OS == "unknown"
}
