package build

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"

	"cairn/sandbox"
	"cairn/sandbox/shim"
)

// Hooks of built-in elements ask the build for a base over a socket. One
// connection carries one question: a line of JSON there, lines of JSON back,
// of which the last says done or error.

// serveHelpers answers hooks until the worker ends.
func (w *worker) serveHelpers(ctx context.Context) error {
	name := filepath.Join(w.dirs.shared, "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return fail(err, "listen for the hooks' questions")
	}
	w.undo = append(w.undo, l.Close)
	if err := errors.Join(os.Chmod(name, 0o600), os.Lchown(name, sandbox.IDShift, sandbox.IDShift)); err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return // closed
			}
			w.answerHelper(ctx, c) // one at a time: the questions are about the same tree
			c.Close()
		}
	}()
	return nil
}

func (w *worker) answerHelper(ctx context.Context, c *net.UnixConn) {
	out := json.NewEncoder(c)
	line, err := bufio.NewReaderSize(c, 64<<10).ReadSlice('\n')
	var q shim.Request
	if err == nil {
		err = json.Unmarshal(line, &q)
	}
	if err == nil {
		err = w.help(ctx, q)
	}
	a := shim.Reply{Done: true}
	if f := asFailure(err); f != nil {
		a = shim.Reply{Error: f.What, Hint: f.Hint}
	}
	_ = out.Encode(a) // a hook that has gone away needs no answer
}

// help does what a hook asks for. Only root.d may: later the tree is the
// hooks' own.
func (w *worker) help(ctx context.Context, q shim.Request) error {
	if w.step != "root.d" {
		return refuse("", "cairn-helper %s works in root.d only", q.Verb)
	}
	switch q.Verb {
	case "bootstrap-deb":
		return w.bootstrapBase(ctx, q.Args["suite"], strings.FieldsFunc(q.Args["include"], func(c rune) bool { return c == ',' }))
	case "base-image":
		if q.Args["image"] == "" {
			return refuse("set DIB_BASE_IMAGE to a registry reference or oci:DIR[:TAG]", "no base image is named")
		}
		return w.imageBase(ctx, q.Args["image"])
	}
	return refuse("", "cairn-helper does not know %q", q.Verb)
}
