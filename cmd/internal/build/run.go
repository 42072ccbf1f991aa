package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/rpc"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"cairn/reproducibility/store"
	"cairn/sandbox"
	"cairn/sandbox/idmap"
)

// Run carries a request out. event is called from one goroutine at a time.
// When ctx ends, the worker cleans up and Run returns the cause.
func Run(ctx context.Context, req *Request, event func(Event)) (*Summary, error) {
	p := &parent{req: req, event: event}
	if err := p.plan(); err != nil {
		return nil, err
	}
	ids, err := sandbox.Preflight(req.Host)
	if err != nil {
		return nil, fail(err, "start the sandbox")
	}
	p.ids = ids
	if err := sandbox.CheckArch(ctx, req.Arch, req.WorkParent); err != nil {
		return nil, hintFull(withHint(err), "TMPDIR names another place to try it in")
	}
	if p.store, err = store.Open(req.Store); err != nil {
		return nil, hintFull(fail(err, "open the content store %s", req.Store), "--image-cache names another directory")
	}
	if err := p.openInputs(ctx); err != nil {
		return nil, err
	}
	if err := p.makeWork(ctx); err != nil {
		return nil, err
	}
	summary, err := p.work(ctx)
	err = errors.Join(err, p.removeWork(context.WithoutCancel(ctx)))
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, flatten(err)
	}
	return summary, p.finish(summary)
}

// parent is the state of one build outside the sandbox.
type parent struct {
	req     *Request
	event   func(Event)
	store   *store.Store
	ids     idmap.Map
	eventMu sync.Mutex
	planned planned
	workDir string
	lockFD  *os.File
	inputs  *inputs
}

// makeWork makes the work directory. A lock on it tells a later run whether
// its build still lives; what dead builds left is removed first.
func (p *parent) makeWork(ctx context.Context) error {
	if err := p.sweep(ctx); err != nil {
		return err
	}
	var err error
	if p.workDir, p.lockFD, err = newWork(p.req.WorkParent); err != nil {
		return hintFull(fail(err, "make a work directory in %s", p.req.WorkParent), "TMPDIR names another place for it")
	}
	// The image's root, who is nobody to the caller, has to pass through.
	return os.Chmod(p.workDir, 0o711)
}

// newWork makes a directory below parent and locks it. Another build's sweep
// may take it for a dead build's before it is locked; then there is a next one.
func newWork(parent string) (dir string, lock *os.File, err error) {
	for {
		if dir, err = os.MkdirTemp(parent, workPrefix); err != nil {
			return "", nil, err
		}
		lock, err = lockDir(dir)
		if err == nil && isAt(lock, dir) {
			return dir, lock, nil
		}
		if err == nil {
			lock.Close()
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EWOULDBLOCK) {
			return "", nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), os.Remove(dir))
		}
	}
}

// isAt reports whether a path leads to the open file.
func isAt(f *os.File, path string) bool {
	open, err1 := f.Stat()
	found, err2 := os.Lstat(path)
	return err1 == nil && err2 == nil && os.SameFile(open, found)
}

const workPrefix = "cairn-work-"

// lockDir takes the lock that marks a directory as in use.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sweep removes the work directories of builds that were killed.
func (p *parent) sweep(ctx context.Context) error {
	found, err := filepath.Glob(filepath.Join(p.req.WorkParent, workPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range found {
		fi, err := os.Lstat(dir)
		if err != nil || !fi.IsDir() || !ownedBy(fi, p.req.Host.UID) {
			continue
		}
		lock, err := lockDir(dir)
		if err != nil {
			continue // in use
		}
		err = sandbox.RemoveOwned(ctx, p.req.Host, p.ids, dir)
		lock.Close()
		if err != nil {
			return fail(err, "remove what a killed build left in %s", dir)
		}
	}
	return nil
}

func ownedBy(fi fs.FileInfo, uid int) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == uid
}

// removeWork removes the work directory, with what a killed worker left in it.
func (p *parent) removeWork(ctx context.Context) error {
	defer p.lockFD.Close()
	err := os.Remove(p.workDir)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := sandbox.RemoveOwned(ctx, p.req.Host, p.ids, p.workDir); err != nil {
		return fail(err, "remove the work directory %s", p.workDir)
	}
	return nil
}

// work starts the worker and answers it until it is done.
func (p *parent) work(ctx context.Context) (*Summary, error) {
	w, err := sandbox.StartWorker(ctx, sandbox.WorkerSpec{Map: p.ids, Host: p.req.Host, Stderr: os.Stderr})
	if err != nil {
		return nil, fail(err, "start the worker")
	}
	service := &hostService{p: p, ctx: ctx, worker: w, done: make(chan Done, 1)}
	server := rpc.NewServer()
	if err := server.RegisterName("Host", service); err != nil {
		return nil, err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.ServeConn(w.Conn())
	}()
	stop := context.AfterFunc(ctx, func() { _ = w.Signal(syscall.SIGTERM) })
	defer stop()
	err = w.Wait()
	<-served
	service.close()
	select {
	case d := <-service.done:
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if d.Failure != nil {
			return nil, d.Failure
		}
		return &d.Summary, nil
	default:
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, &Failure{
		What: fmt.Sprintf("the worker ended without a result: %v", err), Code: 1,
		Hint: "it was killed, or ran out of memory; the kernel's log may say more",
	}
}

// finish writes the lock file and the checksum files.
func (p *parent) finish(s *Summary) error {
	if err := p.writeLock(s); err != nil {
		return err
	}
	return p.writeChecksums(s)
}

// flatten gives an error joined of several the first one's hint and status.
func flatten(err error) error {
	f := asFailure(err)
	f.What = strings.ReplaceAll(f.What, "\n", "; ")
	return f
}

// hintFull adds a hint when a file system is full or must not be written.
func hintFull(err error, hint string) error {
	var f *Failure
	if errors.As(err, &f) && f.Hint == "" {
		f.Hint = hint
	}
	return err
}

// oldName is what diskimage-builder renames an existing output to.
func oldName(path, format string, now time.Time) string {
	return strings.TrimSuffix(path, "."+format) + now.UTC().Format("-2006.01.02-15.04.05.") + format
}
