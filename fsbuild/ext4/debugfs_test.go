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

// entryPattern is a line of "ls -p", whose name may hold a newline.
var entryPattern = regexp.MustCompile(`(?s)/(\d+)/(\d{6})/(-?\d+)/(-?\d+)/([^/]+)/(\d*)/\n`)

// reader reads an image back into a tree with debugfs alone.
type reader struct {
	t       testing.TB
	image   string
	scratch string
	inodes  map[string]tree.Node // by inode number
	paths   map[string][]string  // of an inode
}

// readBack reads a whole image, except that a lost+found which is as the
// writer makes it is left out.
func readBack(t testing.TB, image string) *tree.Tree {
	t.Helper()
	r := reader{t: t, image: image, scratch: t.TempDir(), inodes: map[string]tree.Node{}, paths: map[string][]string{"2": {"."}}}
	r.names()
	numbers := slices.Sorted(func(yield func(string) bool) {
		for n := range r.paths {
			if !yield(n) {
				return
			}
		}
	})
	r.stat(numbers)
	return r.tree(numbers)
}

// names walks the directories, all of one level by one run.
func (r *reader) names() {
	level := []string{"2"}
	for len(level) > 0 {
		var commands []string
		for _, n := range level {
			commands = append(commands, "ls -p <"+n+">")
		}
		outs := debugfs(r.t, r.image, commands)
		var next []string
		for i, n := range level {
			base := r.paths[n][0] + "/"
			if n == "2" {
				base = ""
			}
			for _, m := range entryPattern.FindAllStringSubmatch(outs[i], -1) {
				if m[5] == "." || m[5] == ".." || m[1] == "0" {
					continue
				}
				r.paths[m[1]] = append(r.paths[m[1]], base+m[5])
				if m[2][:2] == "04" {
					next = append(next, m[1])
				}
			}
		}
		level = next
	}
}

var (
	statHead  = regexp.MustCompile(`Inode: \d+   Type: (\S+(?: \S+)?)    Mode:  (\d+)   Flags: 0x([0-9a-f]+)`)
	statOwner = regexp.MustCompile(`User:\s+(-?\d+)\s+Group:\s+(-?\d+)\s+Project:\s+0\s+Size: (\d+)`)
	statMtime = regexp.MustCompile(`mtime: 0x([0-9a-f]{8}):([0-9a-f]{8})`)
	statLinks = regexp.MustCompile(`Links: (\d+)`)
	statFast  = regexp.MustCompile(`(?s)Fast link dest: "(.*)"`)
	statDev   = regexp.MustCompile(`Device major/minor number: (\d+):(\d+)`)
	statXattr = regexp.MustCompile(`(?m)^  (\S+) \((\d+)\)`)
)

var debugfsTypes = map[string]tree.Type{
	"regular": tree.Regular, "directory": tree.Directory, "symlink": tree.Symlink, "character special": tree.CharDevice,
	"block special": tree.BlockDevice, "FIFO": tree.FIFO, "socket": tree.Socket,
}

// stat reads the metadata, then contents and attributes, of all inodes.
func (r *reader) stat(numbers []string) {
	var commands, more []string
	for _, n := range numbers {
		commands = append(commands, "stat <"+n+">")
	}
	for i, out := range debugfs(r.t, r.image, commands) {
		n := numbers[i]
		r.inodes[n] = r.parse(n, out)
		if r.inodes[n].Type == tree.Regular && r.inodes[n].Size > 0 || r.inodes[n].Type == tree.Symlink && r.inodes[n].Target == "" {
			more = append(more, "dump <"+n+"> "+filepath.Join(r.scratch, n))
		}
		for _, x := range r.inodes[n].Xattrs {
			more = append(more, "ea_get -f "+filepath.Join(r.scratch, n+"."+x.Name)+" <"+n+"> "+x.Name)
		}
	}
	if len(more) > 0 {
		debugfs(r.t, r.image, more)
	}
}

func (r *reader) parse(number, out string) (n tree.Node) {
	r.t.Helper()
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
	low, extra := num(mtime[1], 16), num(mtime[2], 16)
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
	if links := num(must(statLinks)[1], 10); n.Type != tree.Directory && links > 1 {
		n.Inode = num(number, 10)
		if int(links) != len(r.paths[number]) {
			r.t.Errorf("inode %s has %d links and %d names", number, links, len(r.paths[number]))
		}
	}
	for _, m := range statXattr.FindAllStringSubmatch(out, -1) {
		n.Xattrs = append(n.Xattrs, tree.Xattr{Name: m[1]})
	}
	return n
}

// tree puts nodes together.
func (r *reader) tree(numbers []string) *tree.Tree {
	r.t.Helper()
	var nodes []tree.Node
	for _, number := range numbers {
		n := r.inodes[number]
		file := filepath.Join(r.scratch, number)
		switch {
		case n.Size > 0:
			n.Content = fileContent(file)
		case n.Type == tree.Symlink && n.Target == "":
			b, err := os.ReadFile(file)
			if err != nil {
				r.t.Fatal(err)
			}
			n.Target = string(b)
		}
		for i, x := range n.Xattrs {
			b, err := os.ReadFile(file + "." + x.Name)
			if err != nil {
				r.t.Fatal(err)
			}
			if strings.HasPrefix(x.Name, "system.posix_acl_") {
				for e := b[4:]; len(e) > 0; e = e[8:] { // debugfs leaves 0 where the kernel has -1
					if e[0] != 0x02 && e[0] != 0x08 {
						copy(e[4:], "\xff\xff\xff\xff")
					}
				}
			}
			n.Xattrs[i].Value = b
		}
		slices.SortFunc(n.Xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
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
