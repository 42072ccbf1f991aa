package ext4_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cairn/fsbuild/ext4"
	"cairn/fsbuild/tree"
)

// fsck runs e2fsck -fn and fails the test unless it is silent.
func fsck(t testing.TB, image string) {
	t.Helper()
	requireTool(t, "e2fsck", "e2fsprogs")
	out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput()
	if err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		quiet := strings.HasPrefix(line, "e2fsck 1.") || strings.HasPrefix(line, "Pass ") || strings.Contains(line, " files (")
		if !quiet && !strings.Contains(line, "Using EXT2FS Library") {
			t.Fatalf("e2fsck is not silent: %s\n%s", line, out)
		}
	}
}

// debugfs runs commands and returns what each printed.
func debugfs(t testing.TB, image string, commands []string) []string {
	t.Helper()
	requireTool(t, "debugfs", "e2fsprogs")
	script := filepath.Join(t.TempDir(), "commands")
	if err := os.WriteFile(script, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("debugfs", "-f", script, image)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("debugfs: %v\n%s", err, stderr.String())
	}
	if lines := strings.SplitN(stderr.String(), "\n", 3); len(lines) > 2 || len(lines) == 2 && lines[1] != "" {
		t.Fatalf("debugfs: %s", stderr.String())
	}
	parts := make([]string, len(commands))
	rest := string(out)
	for i, c := range commands {
		head := "debugfs: " + c + "\n"
		if !strings.HasPrefix(rest, head) {
			t.Fatalf("debugfs: %q does not start with %q", rest[:min(100, len(rest))], head)
		}
		rest = rest[len(head):]
		end := len(rest)
		if i+1 < len(commands) {
			end = strings.Index(rest, "debugfs: "+commands[i+1]+"\n")
		}
		parts[i], rest = rest[:end], rest[end:]
	}
	return parts
}

// reader reads an image back into a tree with debugfs alone.
type reader struct {
	t      testing.TB
	image  string
	inodes map[string]*tree.Node // by inode number
	paths  map[string][]string   // of an inode
	links  map[string]int        // link counts
	lists  map[string]string     // output of ls, of a directory
}

// readBack reads a whole image, except that a lost+found which is as the
// writer makes it is left out. The writer leaves no gaps between inode numbers,
// so two runs of debugfs are enough; e2fsck finds what they would miss.
func readBack(t testing.TB, image string, s ext4.Summary) *tree.Tree {
	t.Helper()
	r := reader{
		t: t, image: image,
		inodes: map[string]*tree.Node{}, paths: map[string][]string{}, links: map[string]int{}, lists: map[string]string{},
	}
	numbers := []string{"2"}
	for n := int64(11); n <= s.UsedInodes; n++ {
		numbers = append(numbers, strconv.FormatInt(n, 10))
	}
	r.stat(numbers)
	r.names("2", ".")
	return r.tree(numbers)
}

// stat reads the metadata, then directories, contents and attributes.
func (r *reader) stat(numbers []string) {
	var commands, more []string
	var take []func(out string)
	for _, n := range numbers {
		commands = append(commands, "stat <"+n+">")
	}
	ask := func(f func(out string), command ...string) {
		more = append(more, strings.Join(command, " "))
		take = append(take, f)
	}
	for i, out := range debugfs(r.t, r.image, commands) {
		n, node := "<"+numbers[i]+">", r.parse(numbers[i], out)
		r.inodes[numbers[i]] = node
		switch {
		case node.Type == tree.Directory:
			ask(func(out string) { r.lists[numbers[i]] = out }, "ls -p", n)
		case node.Type == tree.Symlink && node.Target == "":
			ask(func(out string) { node.Target = out }, "cat", n)
		case node.Size > 0:
			ask(func(out string) { node.Content = tree.Bytes([]byte(out)) }, "cat", n)
		}
		for k, x := range node.Xattrs {
			ask(func(out string) { node.Xattrs[k].Value = xattrValue(x.Name, out) }, "ea_get -V", n, x.Name)
		}
	}
	for i, out := range debugfs(r.t, r.image, more) {
		take[i](out)
	}
	for _, node := range r.inodes {
		slices.SortFunc(node.Xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	}
}

// xattrValue is what ea_get printed, without the newline that it adds.
func xattrValue(name, out string) []byte {
	b := []byte(strings.TrimSuffix(out, "\n"))
	if strings.HasPrefix(name, "system.posix_acl_") {
		for e := b[4:]; len(e) > 0; e = e[8:] { // debugfs leaves 0 where the kernel has -1
			if e[0] != 0x02 && e[0] != 0x08 {
				copy(e[4:], "\xff\xff\xff\xff")
			}
		}
	}
	return b
}

// names gives the inodes below a directory their paths.
func (r *reader) names(number, path string) {
	r.paths[number] = append(r.paths[number], path)
	base := path + "/"
	if path == "." {
		base = ""
	}
	// Lines are /inode/mode/uid/gid/name/size/, and a name may hold a newline.
	for f := strings.Split(r.lists[number], "/"); len(f) > 7; f = f[7:] {
		switch inode, mode, name := f[1], f[2], f[5]; {
		case name == "." || name == ".." || inode == "0":
		case strings.HasPrefix(mode, "04"):
			r.names(inode, base+name)
		default:
			r.paths[inode] = append(r.paths[inode], base+name)
		}
	}
}

var (
	statHead  = regexp.MustCompile(`Inode: \d+   Type: (\S+(?: \S+)?)    Mode:  (\d+)   Flags: 0x([0-9a-f]+)`)
	statOwner = regexp.MustCompile(`User:\s+(-?\d+)\s+Group:\s+(-?\d+)\s+(?:Project:\s+0\s+)?Size: (\d+)`)
	statMtime = regexp.MustCompile(`mtime: 0x([0-9a-f]{8})(?::([0-9a-f]{8}))?`)
	statLinks = regexp.MustCompile(`Links: (\d+)`)
	statFast  = regexp.MustCompile(`(?s)Fast link dest: "(.*)"`)
	statDev   = regexp.MustCompile(`Device major/minor number: (\d+):(\d+)`)
	statXattr = regexp.MustCompile(`(?m)^  (\S+) \((\d+)\)`)
)

var debugfsTypes = map[string]tree.Type{
	"regular": tree.Regular, "directory": tree.Directory, "symlink": tree.Symlink, "character special": tree.CharDevice,
	"block special": tree.BlockDevice, "FIFO": tree.FIFO, "socket": tree.Socket,
}

func (r *reader) parse(number, out string) *tree.Node {
	r.t.Helper()
	n := &tree.Node{}
	must := func(re *regexp.Regexp) []string {
		m := re.FindStringSubmatch(out)
		if m == nil {
			r.t.Fatalf("debugfs: stat <%s>: %s is not in\n%s", number, re, out)
		}
		return m
	}
	num := func(s string, base int) uint64 {
		v, err := strconv.ParseUint(s, base, 64)
		if err != nil {
			r.t.Fatal(err)
		}
		return v
	}
	id := func(s string) uint32 { // debugfs prints ids signed
		v, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			r.t.Fatal(err)
		}
		return uint32(v)
	}
	head, owner, mtime := must(statHead), must(statOwner), must(statMtime)
	n.Type = debugfsTypes[head[1]]
	n.Mode = uint32(num(head[2], 8))
	n.UID, n.GID = id(owner[1]), id(owner[2])
	low, extra := num(mtime[1], 16), uint64(0)
	if mtime[2] != "" { // inodes of 128 bytes have seconds only
		extra = num(mtime[2], 16)
	}
	n.MTime = tree.Time{Sec: int64(int32(low)) + int64(extra&3)<<32, Nsec: uint32(extra >> 2)}
	switch n.Type {
	case tree.Regular:
		n.Size = int64(num(owner[3], 10))
	case tree.Symlink:
		if m := statFast.FindStringSubmatch(out); m != nil {
			n.Target = m[1]
		}
	case tree.CharDevice, tree.BlockDevice:
		m := must(statDev)
		n.Major, n.Minor = uint32(num(m[1], 10)), uint32(num(m[2], 10))
	default: // nothing more
	}
	r.links[number] = int(num(must(statLinks)[1], 10))
	if n.Type != tree.Directory && r.links[number] > 1 {
		n.Inode = num(number, 10)
	}
	_, list, _ := strings.Cut(out, "\nExtended attributes:")
	for _, m := range statXattr.FindAllStringSubmatch(list, -1) {
		n.Xattrs = append(n.Xattrs, tree.Xattr{Name: m[1]})
	}
	return n
}

// tree puts nodes together.
func (r *reader) tree(numbers []string) *tree.Tree {
	r.t.Helper()
	var nodes []tree.Node
	for _, number := range numbers {
		n := *r.inodes[number]
		if n.Type != tree.Directory && r.links[number] != len(r.paths[number]) {
			r.t.Errorf("inode %s has %d links and %d names", number, r.links[number], len(r.paths[number]))
		}
		for _, n.Path = range r.paths[number] {
			nodes = append(nodes, n)
		}
	}
	slices.SortFunc(nodes, func(a, b tree.Node) int { return strings.Count(a.Path, "/") - strings.Count(b.Path, "/") })
	t := tree.New()
	for _, n := range nodes {
		switch {
		case n.Path == ".":
			*t.Lookup(".") = n
		case n.Path == "lost+found" && fmt.Sprint(n) == fmt.Sprint(lostFound):
		default:
			if err := t.Add(n); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	return t
}

// lostFound is what the writer makes of a lost+found that a tree lacks.
var lostFound = tree.Node{Path: "lost+found", Type: tree.Directory, Mode: 0o700, MTime: tree.Time{Sec: params().Time.Unix()}}
