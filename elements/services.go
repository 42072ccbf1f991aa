package elements

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
)

// families maps a distribution to its family. pkg-map, a shell script, has the same table.
var families = map[string]string{
	"almalinux": "redhat", "centos": "redhat", "centos7": "redhat", "fedora": "redhat", "openeuler": "redhat", "rhel": "redhat", "rhel7": "redhat",
	"rocky": "redhat", "debian": "debian", "ubuntu": "debian", "opensuse": "suse", "gentoo": "gentoo",
}

// Services joins the files svc-map of elements: it maps service names to what the distribution calls them. A name
// that two elements map is an error.
//
// diskimage_builder/elements/svc-map/extra-data.d/10-merge-svc-map-files.
func Services(dirs []Dir, distribution string) (map[string]string, error) {
	out := map[string]string{}
	for _, dir := range dirs {
		path := filepath.Join(dir.Path, "svc-map")
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = addServices(out, dir.Name, text, distribution)
		}
		if err != nil {
			return nil, fmt.Errorf("read service map: %s: %w", path, err)
		}
	}
	return out, nil
}

func addServices(out map[string]string, element string, text []byte, distribution string) error {
	services := map[string]map[string]string{}
	if err := yaml.Unmarshal(text, &services); err != nil {
		return err
	}
	names := make([]string, 0, len(services))
	for name := range services {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if _, ok := out[name]; ok {
			return fmt.Errorf("%s already found in services list.  Check %s for duplicate service name.", name, element) //nolint:revive,staticcheck // the text scripts look for
		}
		out[name] = name
		for _, key := range []string{distribution, families[distribution], "default"} {
			if value, ok := services[name][key]; ok && key != "" {
				out[name] = value
				break
			}
		}
	}
	return nil
}
