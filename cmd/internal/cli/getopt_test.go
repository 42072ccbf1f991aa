package cli

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestGetopt(t *testing.T) {
	tests := []struct {
		name string
		args string
		want string // the options set, then the operands
		err  string
	}{
		{name: "operands and options mixed", args: "a -o x b -u", want: "o=x u= | a b"},
		{name: "cluster with an argument", args: "-uoname e", want: "u= o=name | e"},
		{name: "long with equals", args: "--image-size=3 e", want: "image-size=3 | e"},
		{name: "long with a separate value", args: "--image-size 3", want: "image-size=3 |"},
		{name: "unambiguous prefix", args: "--image-c d", want: "image-cache=d |"},
		{name: "exact name wins over a longer one", args: "--image d", err: "prog: option '--image' is ambiguous; possibilities: '--image-cache' '--image-size'"},
		{name: "end of options", args: "-u -- -o x", want: "u= | -o x"},
		{name: "a lone dash is an operand", args: "- -u", want: "u= | -"},
		{name: "unknown long", args: "--bogus", err: "prog: unrecognized option '--bogus'"},
		{name: "unknown short", args: "-q", err: "prog: invalid option -- 'q'"},
		{name: "missing argument", args: "-o", err: "prog: option requires an argument -- 'o'"},
		{name: "missing long argument", args: "--image-size", err: "prog: option '--image-size' requires an argument"},
		{name: "argument not allowed", args: "--offline=1", err: "prog: option '--offline' doesn't allow an argument"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var set []string
			opt := func(short byte, long string, arg bool) option {
				key := long
				if key == "" {
					key = string(short)
				}
				return option{short, long, arg, func(v string) error { set = append(set, key+"="+v); return nil }}
			}
			operands, err := getopt("prog", []option{
				opt('o', "", true), opt('u', "", false), opt(0, "image-size", true), opt(0, "image-cache", true), opt(0, "offline", false),
			}, strings.Fields(tt.args))
			if got := errText(err); got != tt.err {
				t.Fatalf("error = %q, want %q", got, tt.err)
			}
			if err != nil {
				return
			}
			got := strings.TrimSpace(strings.Join(set, " ") + " | " + strings.Join(operands, " "))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
