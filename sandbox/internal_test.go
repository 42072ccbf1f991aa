package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/tests/require"
)

// TestFilterShape checks what the kernel would: jumps stay inside, the last
// instruction returns, and the length is allowed.
func TestFilterShape(t *testing.T) {
	for name, f := range map[string]filter{"hook": hookFilter(), "container": containerFilter()} {
		if len(f) > 4096 {
			t.Errorf("%s: %d instructions", name, len(f))
		}
		for i, in := range f {
			far := int(max(in.Jt, in.Jf))
			if in.Code == unix.BPF_JMP|unix.BPF_JA {
				far = int(in.K)
			}
			if in.Code&7 == unix.BPF_JMP && i+1+far >= len(f) {
				t.Errorf("%s: instruction %d jumps out", name, i)
			}
		}
		if f[len(f)-1].Code != unix.BPF_RET|unix.BPF_K {
			t.Errorf("%s: does not end with a return", name)
		}
	}
}

// TestELFHeader asks file(1) what the programs are that CheckArch tries.
func TestELFHeader(t *testing.T) {
	for arch, want := range map[string]string{
		"amd64": "64-bit LSB executable, x86-64", "x86_64": "64-bit LSB executable, x86-64", "i386": "32-bit LSB executable, Intel 80386",
		"arm64": "64-bit LSB executable, ARM aarch64", "aarch64": "64-bit LSB executable, ARM aarch64",
		"armel": "32-bit LSB executable, ARM", "armhf": "32-bit LSB executable, ARM",
		"mips64el": "64-bit LSB executable, MIPS", "mipsel": "32-bit LSB executable, MIPS",
		"ppc64el": "64-bit LSB executable, 64-bit PowerPC", "ppc64le": "64-bit LSB executable, 64-bit PowerPC",
		"riscv64": "64-bit LSB executable, UCB RISC-V", "s390x": "64-bit MSB executable, IBM S/390",
	} {
		header, ok := elfHeader(arch)
		c := exec.Command(require.Tool(t, "file", "file"), "-")
		c.Stdin = bytes.NewReader(header)
		if out, err := c.Output(); !ok || err != nil || !strings.Contains(string(out), "ELF "+want) {
			t.Errorf("%s: file says %q, %v; want %q", arch, out, err, want)
		}
	}
	if len(foreign) != 13 {
		t.Errorf("%d architectures, not all tested", len(foreign))
	}
}

// TestRecvFilesRefusesNoise: a container's agent may send anything.
func TestRecvFilesRefusesNoise(t *testing.T) {
	for name, in := range map[string][]byte{
		"cut head": {0, 0}, "cut note": {0, 0, 0, 9, 0, 'x'}, "huge": {0xff, 0xff, 0xff, 0xff, 0}, "files that are not there": {0, 0, 0, 0, 3},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs, err := socketpair()
			if err != nil {
				t.Fatal(err)
			}
			defer ours.Close()
			if _, err := theirs.Write(in); err != nil {
				t.Fatal(err)
			}
			theirs.Close()
			if note, files, err := RecvFiles(ours); err == nil || len(files) > 0 {
				t.Errorf("RecvFiles = %q, %v, want an error", note, files)
			}
		})
	}
}

func TestSendFiles(t *testing.T) {
	ours, theirs, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	peer, err := connOf(theirs)
	if err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("note"), 1<<18)
	files := make([]*os.File, maxFiles)
	for i := range files {
		if files[i], err = os.Open(os.DevNull); err != nil {
			t.Fatal(err)
		}
		defer files[i].Close()
	}
	sent := make(chan error, 1)
	go func() {
		sent <- errors.Join(SendFiles(peer, big, files...), SendFiles(peer, nil), SendFiles(peer, []byte("x"), files[0]), peer.Close())
	}()
	for i, want := range []struct {
		note  string
		files int
	}{{string(big), maxFiles}, {"", 0}, {"x", 1}} {
		note, got, err := RecvFiles(ours)
		if err != nil || string(note) != want.note || len(got) != want.files {
			t.Errorf("message %d: %d bytes, %d files, %v", i, len(note), len(got), err)
		}
		for _, f := range got {
			if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("message %d: a file is not close-on-exec", i)
			}
		}
		closeAll(got)
	}
	if _, _, err := RecvFiles(ours); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v, want EOF", err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if err := SendFiles(ours, nil, append(files, files[0])...); err == nil { //nolint:makezero // one more than it takes
		t.Error("65 files were not refused")
	}
}

// TestCancelledStart: however far a start is when it is cancelled, and whatever
// its killed process makes fail, the error is why it was cancelled.
func TestCancelledStart(t *testing.T) {
	ours, theirs, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs.Close()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	reason := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	if err := (&Worker{process: dead.Process}).admit(ctx, WorkerSpec{}, ours); !errors.Is(err, reason) {
		t.Errorf("worker: %v", err)
	}
	if err := (&Session{runner: runner{conn: ours}, process: dead.Process}).handshake(ctx, SessionSpec{}); !errors.Is(err, reason) {
		t.Errorf("session: %v", err)
	}
}

func TestUnescapeMount(t *testing.T) {
	for in, want := range map[string]string{`/a`: "/a", `/a\040b`: "/a b", `/\134\012`: "/\\\n", `/a\04`: `/a\04`, `/a\999`: `/a\999`, `/x\`: `/x\`} {
		if got := unescapeMount(in); got != want {
			t.Errorf("unescapeMount(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestParentOf(t *testing.T) {
	for in, want := range map[string]int{"1 (init) S 0 1": 0, "5 (a) b) (c) S 42 1": 42, "5 (x) S": -1, "": -1, "garbage": -1, "5 (x) S y": -1} {
		if got := parentOf(in); got != want {
			t.Errorf("parentOf(%q) = %d, want %d", in, got, want)
		}
	}
}

func TestCurrentRole(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want role
	}{
		{[]string{"cairn", "build"}, ""},
		{[]string{"cairn", string(roleWorker)}, ""},
		{[]string{"/usr/bin/init", "init"}, ""},
		{nil, ""},
		{[]string{containerSelf}, ""},
		{[]string{string(roleHook)}, roleHook},
		{[]string{containerSelf, string(roleContainer)}, roleContainer},
	} {
		if got, _ := currentRole(tt.args); got != tt.want {
			t.Errorf("currentRole(%q) = %q, want %q", tt.args, got, tt.want)
		}
	}
}

// TestReportKeepsTheErrno: errors.Is must work across processes.
func TestReportKeepsTheErrno(t *testing.T) {
	r := failed("mount /x", &os.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT})
	err := r.error("session")
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "start session: mount /x: open /x: no such file") {
		t.Errorf("got %v", err)
	}
	var start *StartError
	if !errors.As(err, &start) || start.Step != "mount /x" {
		t.Errorf("got %#v", err)
	}
}

func TestStatus(t *testing.T) {
	for s, want := range map[Status]int{{}: 0, {Code: 3}: 3, {Signal: 9}: 137} {
		if got := s.Shell(); got != want {
			t.Errorf("%v.Shell() = %d, want %d", s, got, want)
		}
	}
}

// TestMountPointLeavesNoTrace makes mount points in a tree and removes them.
func TestMountPointLeavesNoTrace(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a", "outside"} {
		if err := os.Mkdir(dir+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("../../../../a", dir+"/up"), os.Symlink("/gone", dir+"/dangling")); err != nil {
		t.Fatal(err)
	}
	old := unix.NsecToTimespec(1_000_000_007)
	for _, d := range []string{"/a", "/outside", ""} {
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, dir+d, []unix.Timespec{old, old}, 0); err != nil {
			t.Fatal(err)
		}
	}
	r, err := openRooted(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	var all []created
	for _, m := range []struct {
		name string
		dir  bool
		made int
	}{{"/a/b/c", true, 2}, {"/up/x/file", false, 2}, {"/a", true, 0}, {"/", true, 0}, {"a/../../../a/y", true, 1}} {
		f, made, err := r.mountPoint(m.name, m.dir, os.Getuid())
		if err != nil || len(made) != m.made {
			t.Fatalf("mountPoint(%s) made %v, %v", m.name, made, err)
		}
		f.Close()
		all = append(all, made...)
	}
	if _, _, err := r.mountPoint("/dangling/x", true, 0); err == nil {
		t.Error("a dangling link was not refused")
	}
	// What a hook has put in the way stays.
	if err := os.WriteFile(dir+"/a/x/file", []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.remove(all); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"/a": true, "/a/b": false, "/a/y": false, "/a/x/file": true} {
		if _, err := os.Lstat(dir + name); (err == nil) != want {
			t.Errorf("%s: there is %v, want %v", name, err == nil, want)
		}
	}
	if err := os.RemoveAll(dir + "/a/x"); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"/outside", ""} {
		var st unix.Stat_t
		if err := unix.Stat(dir+d, &st); err != nil || st.Mtim != old {
			t.Errorf("mtime of %q is %v, want %v", d, st.Mtim, old)
		}
	}
}
