package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/rpc"
	"os"
	"path/filepath"
	"time"

	"cairn/elements/blockdevice"
	"cairn/fsbuild/tree"
	"cairn/sandbox"
)

// A Job is what the parent gives its worker: all values, so that the worker
// asks nobody else.
type Job struct {
	Request  Request
	Elements []Staged // in merge order
	Names    []string // of the selection, in order
	Work     string   // the work directory, empty, made by the parent
	Seed     [32]byte
	Epoch    time.Time
	MapBase  string   // names the id range, part of a snapshot's key
	ToolsFor []string // packages of the tools root
	CA       []byte   // certificate of the recording server, PEM
	TCPPorts []int    // ports that hooks may connect to beside 80 and 443
	// BlockDevice is the block-device configuration, which the parent has checked.
	BlockDevice []byte
}

// Staged is one element of the selection.
type Staged struct {
	Name    string
	Source  string // directory on the host, "" for a built-in one
	Seen    string // where hooks see it
	BuiltIn bool
}

// Done is the worker's last message.
type Done struct {
	Summary Summary
	Failure *Failure
}

// Worker is the main function of the worker process.
func Worker(ctx context.Context, conn *sandbox.WorkerConn) error {
	h := newHost(rpc.NewClient(conn.RPC), conn)
	var job Job
	if err := h.ask(ctx, askJob, None{}, &job); err != nil {
		return fmt.Errorf("get the job from the parent: %w", err)
	}
	w := &worker{job: job, req: &job.Request, host: h, dirs: workDirs(job.Work), begun: time.Now()}
	plan, err := parseBlockDevice(job.BlockDevice, w.req)
	if err != nil {
		return err
	}
	w.plan = plan
	summary, err := w.run(ctx)
	if cerr := w.close(); err == nil && cerr != nil {
		err = fail(cerr, "clean up the work directory %s", job.Work)
	}
	h.flush()
	return h.ask(context.WithoutCancel(ctx), askDone, Done{summary, asFailure(err)}, &None{})
}

// worker is the state of one build inside the outer namespace.
type worker struct {
	job     Job
	req     *Request
	host    *host
	dirs    dirs
	tools   string // root of the tools, a snapshot in the store
	session *sandbox.Session
	env     hookEnv
	step    string // under way
	begun   time.Time
	program string // digest of this program
	steps   []StepTime
	ledger  []tree.Node
	plan    *blockdevice.Plan // of the disk
	shared  []shared
	mounts  []sandbox.Mount
	summary Summary
	undo    []func() error // in order of making
}

// dirs are the directories below the work directory.
type dirs struct {
	work   string
	build  string // DIB's TMP_BUILD_DIR
	image  string // DIB's TMP_IMAGE_DIR
	mnt    string // the tree, DIB's TMP_MOUNT_PATH
	built  string // the tree while DIB's core would copy it
	hooks  string // DIB's TMP_HOOKS_PATH
	root   string // the session's root: an overlay over the tools
	stage  string // what is bound into the session
	empty  string // root of a session without tools
	shared string // the socket and the binary of hooks' helpers
}

func workDirs(work string) dirs {
	in := func(names ...string) string { return filepath.Join(append([]string{work}, names...)...) }
	return dirs{
		work: work, build: in("build"), image: in("image"), mnt: in("build", "mnt"), built: in("build", "built"),
		hooks: in("build", "hooks"), root: in("root"), stage: in("stage"), empty: in("empty"), shared: in("shared"),
	}
}

// Paths as hooks see them: the same in every build, so that a path that a hook
// writes into the image is the same too.
const (
	seenBuild    = "/tmp/dib_build.cairn"
	seenImage    = "/tmp/dib_image.cairn"
	seenMnt      = seenBuild + "/mnt"
	seenHooks    = seenBuild + "/hooks"
	seenElements = "/usr/share/cairn/elements"
	seenLib      = "/usr/share/cairn/lib"
	seenCache    = "/var/cache/image-create"
	seenShared   = "/run/cairn"
	seenBin      = "/run/cairn/bin"
	inTarget     = "/tmp/in_target.d"
)

// run carries the job out, step by step.
func (w *worker) run(ctx context.Context) (Summary, error) {
	if err := w.prepare(ctx); err != nil {
		return w.summary, err
	}
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"tools", w.makeTools},
		{"session", w.startSession},
		{"root.d", w.rootPhase},
		{"extra-data.d", w.hostPhase("extra-data.d")},
		{"pre-install.d", w.targetPhase("pre-install.d")},
		{"install.d", w.targetPhase("install.d")},
		{"packages", w.installPackages},
		{"post-install.d", w.targetPhase("post-install.d")},
		{"post-root.d", w.hostPhase("post-root.d")},
		{"unmount", w.leaveMnt},
		{"block-device.d", w.hostPhase("block-device.d")},
		{"create", w.createFilesystem},
		{"pre-finalise.d", w.hostPhase("pre-finalise.d")},
		{"finalise.d", w.targetPhase("finalise.d")},
		{"cleanup.d", w.cleanupPhase},
		{"collect", w.collectOutputs},
		{"image", w.writeImages},
	}
	for _, s := range steps {
		if err := w.timed(ctx, s.name, s.do); err != nil {
			return w.summary, err
		}
	}
	w.summary.Steps = w.steps
	return w.summary, nil
}

// timed runs one step and tells when it begins and ends.
func (w *worker) timed(ctx context.Context, name string, do func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	w.step = name
	w.host.tell(Event{Kind: StepStarted, Step: name})
	begin := time.Now()
	if err := do(ctx); err != nil {
		return err
	}
	t := StepTime{name, time.Since(begin)}
	w.steps = append(w.steps, t)
	w.host.tell(Event{Kind: StepDone, Step: name, Text: fmt.Sprintf("%-16s %6.1fs", name, t.Elapsed.Seconds())})
	w.host.flush()
	return nil
}

// close ends the session and removes what the build left, last first.
func (w *worker) close() error {
	var first error
	for len(w.undo) > 0 {
		f := w.undo[len(w.undo)-1]
		w.undo = w.undo[:len(w.undo)-1]
		if err := f(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// prepare makes the work directory's parts.
func (w *worker) prepare(context.Context) (err error) {
	if w.program, err = hashFile("/proc/self/exe", sha256.New()); err != nil {
		return fail(err, "read this program")
	}
	if w.req.Tmpfs {
		if err := sandbox.MountTmpfs(w.dirs.work, "mode=0711"); err != nil {
			return fail(err, "mount a tmpfs on the work directory %s", w.dirs.work)
		}
		w.undo = append(w.undo, func() error { return sandbox.Unmount(w.dirs.work) })
	}
	w.undo = append(w.undo, func() error { return removeBelow(w.dirs.work) })
	for _, d := range []string{w.dirs.build, w.dirs.mnt, w.dirs.image, w.dirs.hooks, w.dirs.stage, w.dirs.empty, w.dirs.shared} {
		if err := makeImageDir(d); err != nil {
			return fail(err, "make the work directory")
		}
	}
	return nil
}

// removeBelow empties a directory, whoever owns what is in it.
func removeBelow(dir string) error {
	names, err := os.ReadDir(dir)
	for _, n := range names {
		err = errors.Join(err, sandbox.RemoveAll(filepath.Join(dir, n.Name())))
	}
	return err
}

// giveToImage makes the image's root the owner of all below the directories.
func giveToImage(dirs ...string) error {
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return sandbox.Chown(name, 0, 0)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// makeImageDir makes a directory that belongs to the image's root.
func makeImageDir(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o755); err != nil {
		return err
	}
	return sandbox.Chown(path, 0, 0)
}
