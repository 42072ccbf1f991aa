package build

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"

	"cairn/elements/shell"
	"cairn/sandbox"
)

// resolver is the build's resolv.conf: every name leads to the recording server.
const resolver = "nameserver 127.0.0.1\n"

// gitConfig lets git read repositories of the caller, whom hooks see as nobody.
const gitConfig = "[safe]\n\tdirectory = *\n"

// hostname is what hooks see, in every build.
const hostname = "localhost"

// startSession prepares what hooks see and starts their namespaces.
func (w *worker) startSession(ctx context.Context) error {
	if err := w.stage(); err != nil {
		return err
	}
	mounts, err := w.sessionMounts()
	if err != nil {
		return err
	}
	w.mounts = mounts
	upper, work := filepath.Join(w.dirs.work, "root-upper"), filepath.Join(w.dirs.work, "root-work")
	for _, d := range []string{upper, work, w.dirs.root} {
		if err := makeImageDir(d); err != nil {
			return fail(err, "make the session's root")
		}
	}
	if err := sandbox.MountOverlay([]string{w.tools}, upper, work, w.dirs.root); err != nil {
		return fail(err, "mount the tools root")
	}
	w.undo = append(w.undo, func() error { return sandbox.Unmount(w.dirs.root) })
	s, err := sandbox.StartSession(ctx, sandbox.SessionSpec{
		Root: w.dirs.root, Mounts: mounts, Hostname: hostname,
		Network: sandbox.NetworkRecorded, TCPPorts: w.job.TCPPorts, Binary: path.Join(seenBin, "cairn"),
	})
	if err != nil {
		return fail(err, "start the hooks' session")
	}
	w.session = s
	w.undo = append(w.undo, s.Close)
	return errors.Join(w.offerNetwork(ctx, s), w.serveHelpers(ctx))
}

// offerNetwork hands the session's listening sockets to the parent, which
// answers on them.
func (w *worker) offerNetwork(ctx context.Context, s *sandbox.Session) error {
	files := []*os.File{s.Listening.UDP[53]}
	for _, port := range slices.Sorted(maps.Keys(s.Listening.TCP)) {
		files = append(files, s.Listening.TCP[port])
	}
	defer s.Listening.Close()
	if err := sandbox.SendFiles(w.host.conn.FDs, nil, files...); err != nil {
		return fail(err, "hand the hooks' network to the parent")
	}
	var answer Refusal
	if err := w.host.ask(ctx, askServe, None{}, &answer); err != nil {
		return err
	}
	if answer.Failure != nil {
		return answer.Failure
	}
	return nil
}

// stage copies the elements, the shell library and our own binary to where the
// session finds them, and merges the hooks.
func (w *worker) stage() error {
	_, selection, err := openElements(w.req)
	if err != nil {
		return err
	}
	if err := w.stageElements(selection); err != nil {
		return err
	}
	w.env = hookEnv{w.environment(selection)}
	if err := shell.Write(filepath.Join(w.dirs.stage, "lib")); err != nil {
		return fail(err, "copy the shell library")
	}
	for name, content := range map[string]string{"resolv.conf": resolver, "gitconfig": gitConfig} {
		if err := os.WriteFile(filepath.Join(w.dirs.stage, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := w.stageDisk(); err != nil {
		return err
	}
	if err := giveToImage(w.dirs.stage, w.dirs.hooks); err != nil {
		return fail(err, "give the hooks to the image's root")
	}
	return w.stageBinaryOnce()
}

// stagedElement is where an element's copy lies.
func (w *worker) stagedElement(e Staged) string {
	return filepath.Join(w.dirs.stage, "elements", e.Name)
}

// stageBinary copies the running program to the shared directory.
func (w *worker) stageBinary() error {
	bin := filepath.Join(w.dirs.shared, "bin")
	if err := makeImageDir(bin); err != nil {
		return err
	}
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(bin, "cairn"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Chmod(0o755), out.Close()); err != nil {
		return fail(err, "copy the program for the hooks")
	}
	for _, name := range append(ShimNames(), "dib-run-parts") {
		if err := os.Symlink("cairn", filepath.Join(bin, name)); err != nil {
			return err
		}
	}
	return giveToImage(w.dirs.shared)
}

// sessionMounts lists all that the session has beside the tools.
func (w *worker) sessionMounts() ([]sandbox.Mount, error) {
	cache := filepath.Join(w.req.Store, "hooks")
	if err := makeImageDir(cache); err != nil {
		return nil, fail(err, "make the hooks' cache %s", cache)
	}
	home, err := w.stageHome()
	if err != nil {
		return nil, err
	}
	mounts, err := w.shareDirs(home)
	if err != nil {
		return nil, fail(err, "show the caller's directories to the hooks")
	}
	mounts = append(mounts,
		sandbox.Mount{Source: w.dirs.build, Target: seenBuild},
		sandbox.Mount{Source: w.dirs.image, Target: seenImage},
		sandbox.Mount{Source: cache, Target: seenCache},
		sandbox.Mount{Source: w.dirs.shared, Target: seenShared},
		sandbox.Mount{Source: filepath.Join(w.dirs.stage, "lib"), Target: seenLib, ReadOnly: true},
		sandbox.Mount{Source: filepath.Join(w.dirs.stage, "resolv.conf"), Target: "/etc/resolv.conf", ReadOnly: true},
		sandbox.Mount{Source: filepath.Join(w.dirs.stage, "gitconfig"), Target: "/etc/gitconfig", ReadOnly: true},
	)
	for _, e := range w.job.Elements {
		mounts = append(mounts, sandbox.Mount{Source: w.stagedElement(e), Target: e.Seen, ReadOnly: true})
	}
	return mounts, nil
}
