package cli

import (
	"fmt"
	"sort"
	"strings"
)

// option is one option of a personality whose command line follows
// getopt_long(3): options and operands in any order, long names abbreviated
// to an unambiguous prefix, "--" ends the options.
type option struct {
	short byte   // 0 if it has none
	long  string // "" if it has none
	arg   bool   // takes an argument
	set   func(value string) error
}

// getopt parses args and returns the operands. program begins each message, as
// getopt(1) does.
func getopt(program string, options []option, args []string) ([]string, error) {
	var operands []string
	for i := 0; i < len(args); i++ {
		a := args[i]
		var n int
		var err error
		switch {
		case a == "--":
			return append(operands, args[i+1:]...), nil
		case strings.HasPrefix(a, "--"):
			n, err = longOption(program, options, a[2:], args[i+1:])
		case len(a) > 1 && a[0] == '-':
			n, err = shortOptions(program, options, a[1:], args[i+1:])
		default:
			operands = append(operands, a)
		}
		if err != nil {
			return nil, err
		}
		i += n
	}
	return operands, nil
}

// longOption sets one --name[=value] and returns how many further arguments it
// took.
func longOption(program string, options []option, text string, rest []string) (int, error) {
	name, value, hasValue := strings.Cut(text, "=")
	o, err := findLong(program, options, name)
	if err != nil {
		return 0, err
	}
	switch {
	case !o.arg && hasValue:
		return 0, fmt.Errorf("%s: option '--%s' doesn't allow an argument", program, o.long)
	case !o.arg || hasValue:
		return 0, o.set(value)
	case len(rest) == 0:
		return 0, fmt.Errorf("%s: option '--%s' requires an argument", program, o.long)
	}
	return 1, o.set(rest[0])
}

// findLong finds the option called name, or the only one that begins so.
func findLong(program string, options []option, name string) (option, error) {
	var found []option
	for _, o := range options {
		if o.long == name && name != "" {
			return o, nil
		}
		if o.long != "" && strings.HasPrefix(o.long, name) {
			found = append(found, o)
		}
	}
	switch len(found) {
	case 0:
		return option{}, fmt.Errorf("%s: unrecognized option '--%s'", program, name)
	case 1:
		return found[0], nil
	}
	var names []string
	for _, o := range found {
		names = append(names, "'--"+o.long+"'")
	}
	sort.Strings(names)
	return option{}, fmt.Errorf("%s: option '--%s' is ambiguous; possibilities: %s", program, name, strings.Join(names, " "))
}

// shortOptions sets a cluster such as "xuo" and returns how many further
// arguments it took.
func shortOptions(program string, options []option, cluster string, rest []string) (int, error) {
	for i := 0; i < len(cluster); i++ {
		o, ok := findShort(options, cluster[i])
		switch {
		case !ok:
			return 0, fmt.Errorf("%s: invalid option -- '%c'", program, cluster[i])
		case !o.arg:
			if err := o.set(""); err != nil {
				return 0, err
			}
		case i+1 < len(cluster):
			return 0, o.set(cluster[i+1:])
		case len(rest) == 0:
			return 0, fmt.Errorf("%s: option requires an argument -- '%c'", program, cluster[i])
		default:
			return 1, o.set(rest[0])
		}
	}
	return 0, nil
}

func findShort(options []option, c byte) (option, bool) {
	for _, o := range options {
		if o.short == c {
			return o, true
		}
	}
	return option{}, false
}
