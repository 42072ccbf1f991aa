package runparts

import (
	"cmp"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultPattern is the regular expression that the names of hooks match when RUN_PARTS_REGEX is not set.
const DefaultPattern = "^[0-9A-Za-z_-]+$"

// A Listing is what a hook directory holds, each list in the order of hooks. Directories and dangling links are in
// none of them.
type Listing struct {
	Hooks         []string // what runs
	NotExecutable []string
	NotConforming []string // executable, but for a name that does not match
}

// Scan reads a hook directory. An empty pattern is [DefaultPattern].
func Scan(dir, pattern string) (Listing, error) {
	if pattern == "" {
		pattern = DefaultPattern
	}
	names, err := regexp.Compile(pattern)
	if err != nil {
		return Listing{}, fmt.Errorf("read RUN_PARTS_REGEX: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Listing{}, fmt.Errorf("list hooks: %w", err)
	}
	var out Listing
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		st, err := os.Stat(path)
		switch {
		case err != nil || !st.Mode().IsRegular():
		case unix.Access(path, unix.X_OK) != nil:
			out.NotExecutable = append(out.NotExecutable, entry.Name())
		case !names.MatchString(entry.Name()):
			out.NotConforming = append(out.NotConforming, entry.Name())
		default:
			out.Hooks = append(out.Hooks, entry.Name())
		}
	}
	for _, list := range [][]string{out.Hooks, out.NotExecutable, out.NotConforming} {
		Sort(list)
	}
	return out, nil
}

// Sort sorts names as "LC_ALL=C sort -n" does: by the number they start with, else 0, and then bytewise.
func Sort(names []string) {
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(number(a).Cmp(number(b)), strings.Compare(a, b))
	})
}

var leadingNumber = regexp.MustCompile(`^[ \t]*(-?[0-9]*\.?[0-9]*)`)

func number(name string) *big.Rat {
	text := leadingNumber.FindStringSubmatch(name)[1]
	if value, ok := new(big.Rat).SetString(text); ok {
		return value
	}
	return new(big.Rat)
}

// report writes how long each hook took, sorted by name.
func (r *runner) report(dir string, hooks []string, seconds []float64) {
	order := make([]int, len(hooks))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(hooks[a], hooks[b]) })
	r.say("----------------------- PROFILING -----------------------")
	r.say("")
	r.say("Target: %s", filepath.Base(dir))
	r.say("")
	r.say("%-40s %9s", "Script", "Seconds")
	r.say("%-40s %9s", strings.Repeat("-", 39), strings.Repeat("-", 10))
	r.say("")
	for _, i := range order {
		r.say("%-40s %10.3f", hooks[i], seconds[i])
	}
	r.say("")
	r.say("--------------------- END PROFILING ---------------------")
}
