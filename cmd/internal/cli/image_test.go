package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/cmd/internal/build"
)

func TestOutputs(t *testing.T) {
	for name, tc := range map[string]struct {
		output  string
		types   []string
		want    string // the output's name, or the error
		formats []string
	}{
		"nothing said":    {"", nil, "image", []string{"qcow2"}},
		"suffix":          {"x.raw", []string{"raw"}, "x", []string{"raw"}},
		"other suffix":    {"x.raw", []string{"vhd"}, "x.raw", []string{"vhd"}},
		"fixed vhd":       {"x.vhd", []string{"vhd-fixed"}, "x", []string{"vhd-fixed"}},
		"several":         {"x.raw", []string{"raw", "vmdk", "vhd"}, "x.raw", []string{"raw", "vmdk", "vhd"}},
		"unknown":         {"x", []string{"raw", "vdi"}, `option -t: format "vdi" is not one of qcow2, raw, vhd, vhd-fixed, vmdk`, nil},
		"twice":           {"x", []string{"raw", "raw"}, "option -t: format raw is named twice", nil},
		"the same suffix": {"x", []string{"vhd-fixed", "vhd"}, "option -t: vhd-fixed and vhd would both be NAME.vhd", nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := &build.Request{Output: tc.output, Formats: tc.types}
			err := (&program{env: func(string) (string, bool) { return "", false }}).outputs(&flags{}, r)
			if err != nil {
				if err.Error() != tc.want || tc.formats != nil {
					t.Errorf("error = %v, want %s", err, tc.want)
				}
				return
			}
			if r.Output != tc.want || cmp.Diff(tc.formats, r.Formats) != "" {
				t.Errorf("output %q, formats %v; want %q, %v", r.Output, r.Formats, tc.want, tc.formats)
			}
		})
	}
}
