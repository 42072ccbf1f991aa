package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
)

// A Request is the line that cairn-helper sends to the builder.
type Request struct {
	Verb string            `json:"verb"`
	Args map[string]string `json:"args"`
}

// A Reply is one of the lines that come back: any number of logs, then an error or done.
type Reply struct {
	Log   string `json:"log,omitempty"`
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
	Done  bool   `json:"done,omitempty"`
}

// Remote returns the verbs that the builder answers:
//
//   - bootstrap-deb suite=NAME arch=ARCH root=DIR [components=A,B] [include=PKG,...]: fills the empty directory with a
//     configured Debian tree; archives and keyrings are the builder's business;
//   - base-image image=REFERENCE arch=ARCH root=DIR: fills it from a container image.
//
// Their arguments are words NAME=VALUE.
func Remote() []string { return []string{"base-image", "bootstrap-deb"} }

// helper is cairn-helper.
func helper(p Process, verbs map[string]Verb) int {
	if len(p.Args) < 2 {
		known := slices.Concat(Remote(), slices.Collect(maps.Keys(verbs)))
		slices.Sort(known)
		_, _ = fmt.Fprintf(p.Stderr, "usage: cairn-helper VERB [ARGUMENT ...]\nverbs: %s\n", strings.Join(known, " "))
		return 1
	}
	verb, args := p.Args[1], p.Args[2:]
	if v, ok := verbs[verb]; ok {
		return v(args, p.Env, p.Stdout, p.Stderr)
	}
	err := fmt.Errorf("unknown verb: %s", verb)
	hint := ""
	if slices.Contains(Remote(), verb) {
		hint, err = call(p, verb, args)
	}
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintf(p.Stderr, "cairn-helper: error: %s: %v\n", verb, err)
	if hint != "" {
		_, _ = fmt.Fprintf(p.Stderr, "cairn-helper: hint: %s\n", hint)
	}
	return 1
}

func call(p Process, verb string, args []string) (hint string, err error) {
	request := Request{Verb: verb, Args: map[string]string{}}
	for _, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok {
			return "", fmt.Errorf("argument %q is not NAME=VALUE", arg)
		}
		request.Args[name] = value
	}
	socket := variable(p.Env, "CAIRN_SOCKET")
	if socket == "" {
		return "this command works in host hooks of a build", errors.New("CAIRN_SOCKET is not set")
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return "", fmt.Errorf("reach the builder: %w", err)
	}
	hint, err = Exchange(conn, request, p.Stderr)
	return hint, errors.Join(err, conn.Close())
}

// Exchange sends a request over conn and reads the replies to their end. Logs go to log, a line each. An error of the
// builder comes back with its hint.
func Exchange(conn io.ReadWriter, request Request, log io.Writer) (hint string, err error) {
	if err = json.NewEncoder(conn).Encode(request); err != nil {
		return "", fmt.Errorf("send request: %w", err)
	}
	for replies := json.NewDecoder(conn); ; {
		var r Reply
		if err = replies.Decode(&r); err != nil {
			return "", fmt.Errorf("read reply of the builder: %w", err)
		}
		switch {
		case r.Error != "":
			return r.Hint, errors.New(r.Error)
		case r.Done:
			return "", nil
		case r.Log != "":
			_, _ = fmt.Fprintln(log, r.Log)
		}
	}
}
