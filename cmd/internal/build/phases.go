package build

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"cairn/sandbox"
	"cairn/sandbox/shim"
)

// hostPhase runs one of diskimage-builder's phases outside the image: in the
// tools root, as the image's root.
func (w *worker) hostPhase(phase string) func(context.Context) error {
	return func(ctx context.Context) error {
		if !w.hasPhase(phase) {
			return nil
		}
		return w.runHooks(ctx, phase, func(c sandbox.Command) (sandbox.Status, error) {
			c.Args = []string{path.Join(seenBin, "dib-run-parts"), path.Join(seenHooks, phase)}
			c.Dir = w.seenCwd()
			c.Env = w.env.of(phase)
			return w.session.Run(ctx, c)
		})
	}
}

// targetPhase runs one of the phases inside the image. One container serves
// the whole phase.
func (w *worker) targetPhase(phase string) func(context.Context) error {
	return func(ctx context.Context) error {
		if !w.hasPhase(phase) {
			return nil
		}
		return w.inTarget(ctx, phase, []string{path.Join(inTarget, "dib-run-parts"), path.Join(inTarget, phase)})
	}
}

// installPackages installs what -p asked for, between install.d and
// post-install.d.
func (w *worker) installPackages(ctx context.Context) error {
	if len(w.req.Packages) == 0 {
		return nil
	}
	return w.inTarget(ctx, "packages", append([]string{"/usr/local/bin/install-packages"}, w.req.Packages...))
}

// hasPhase says whether any element, or a hook before, gave the phase
// something to run.
func (w *worker) hasPhase(phase string) bool {
	fi, err := os.Stat(filepath.Join(w.dirs.hooks, phase))
	return err == nil && fi.IsDir()
}

// inTarget runs args in a container over the tree, with the merged hooks
// mounted read-only.
func (w *worker) inTarget(ctx context.Context, phase string, args []string) (err error) {
	if err := w.copyRunner(); err != nil {
		return err
	}
	c, err := w.session.Container(ctx, sandbox.ContainerSpec{
		Rootfs:   seenMnt,
		Hostname: hostname,
		Mounts:   w.targetMounts(),
	})
	if err != nil {
		return fail(err, "%s: start the container over the image", phase)
	}
	defer func() {
		if cerr := c.Close(); err == nil && cerr != nil {
			err = fail(cerr, "%s: end the container over the image", phase)
		}
	}()
	return w.runHooks(ctx, phase, func(cmd sandbox.Command) (sandbox.Status, error) {
		cmd.Args, cmd.Dir, cmd.Env = args, "/", w.env.of(phase)
		return c.Run(ctx, cmd)
	})
}

// targetMounts are what target hooks see beside the tree itself.
func (w *worker) targetMounts() []sandbox.Mount {
	mounts := []sandbox.Mount{
		{Source: seenHooks, Target: inTarget, ReadOnly: true},
		{Source: outTarget, Target: seenTarget, ReadOnly: true},
	}
	// What would look at real block devices answers from the plan instead.
	for _, tool := range shim.TargetPaths() {
		mounts = append(mounts, sandbox.Mount{Source: path.Join(seenBin, "cairn"), Target: tool, ReadOnly: true, IfExists: true})
	}
	return mounts
}

// runHooks runs one command with its output sent line by line to the parent,
// and turns a bad end into an error that names the hook.
func (w *worker) runHooks(ctx context.Context, phase string, run func(sandbox.Command) (sandbox.Status, error)) error {
	r, out, err := os.Pipe()
	if err != nil {
		return err
	}
	follow := &hookFollower{phase: phase, tell: w.host.tell}
	done := make(chan struct{})
	go func() {
		defer close(done)
		follow.read(r)
	}()
	status, err := run(sandbox.Command{Stdout: out, Stderr: out})
	out.Close()
	<-done
	r.Close()
	switch {
	case ctx.Err() != nil:
		return fail(context.Cause(ctx), "%s", w.where(phase, follow.hook))
	case err != nil:
		return fail(err, "%s", w.where(phase, follow.hook))
	case status.Shell() != 0:
		return &Failure{
			What: w.where(phase, follow.hook) + ": " + status.String(),
			Hint: "the hook's own output is above; -x traces it",
			Code: status.Shell(),
		}
	}
	return nil
}

// where names a hook with the element that it came from.
func (w *worker) where(phase, hook string) string {
	if hook == "" {
		return phase
	}
	for _, e := range w.job.Elements {
		if _, err := os.Lstat(filepath.Join(w.stagedElement(e), phase, hook)); err == nil {
			return "element " + e.Name + ": " + phase + "/" + hook
		}
	}
	return phase + "/" + hook
}

// hookFollower reads what a phase prints and sees which hook is under way.
type hookFollower struct {
	phase string
	hook  string
	tell  func(Event)
}

// The hook runner's lines begin with its name.
const runnerPrefix = "dib-run-parts "

func (f *hookFollower) read(r io.Reader) {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := in.ReadString('\n')
		if line = strings.TrimRight(line, "\r\n"); line != "" || err == nil {
			f.line(line)
		}
		if err != nil {
			return
		}
	}
}

func (f *hookFollower) line(text string) {
	f.tell(Event{Kind: Line, Step: f.phase, Hook: f.hook, Text: text})
	_, said, ok := strings.Cut(text, runnerPrefix)
	if !ok {
		return
	}
	if script, ok := strings.CutPrefix(said, "Running "); ok {
		f.hook = path.Base(script)
		f.tell(Event{Kind: HookStarted, Step: f.phase, Hook: f.hook})
	} else if name, ok := strings.CutSuffix(said, " completed"); ok && name == f.hook {
		f.tell(Event{Kind: HookDone, Step: f.phase, Hook: f.hook})
		f.hook = ""
	}
}

// copyRunner puts the hook runner where target phases look for it.
func (w *worker) copyRunner() error {
	name := filepath.Join(w.dirs.hooks, "dib-run-parts")
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fail(err, "replace the hook runner")
	}
	if err := os.Link(filepath.Join(w.dirs.shared, "bin", "cairn"), name); err != nil {
		return fail(err, "place the hook runner")
	}
	return nil
}
