package boot

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Key is a pair of ssh keys.
type Key struct {
	signer ssh.Signer
}

// NewKey makes an Ed25519 key pair.
func NewKey() (*Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make ssh key: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, fmt.Errorf("make ssh key: %w", err)
	}
	return &Key{signer}, nil
}

// Public is the public key as a line of authorized_keys, without its end.
func (k *Key) Public() string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(k.signer.PublicKey())), "\n")
}

// Session is a login on a guest. Several goroutines may use it.
type Session struct {
	client *ssh.Client
	host   ssh.PublicKey
}

// HostKey is the key that the guest's ssh server proved to hold, as a line of
// authorized_keys without its end.
func (s *Session) HostKey() string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(s.host)), "\n")
}

// Close ends the login.
func (s *Session) Close() error { return s.client.Close() }

// Address is where this host reaches the guest's ssh server.
func (m *Machine) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(m.sshPort)) }

// Login waits until the guest's ssh server lets the user in with the key.
// While the guest boots, refused and broken connections and even refused keys
// are expected and tried again until ctx or QEMU ends; the error then tells
// the last of them.
func (m *Machine) Login(ctx context.Context, user string, key *Key) (*Session, error) {
	var session *Session
	last := errors.New("never tried")
	err := m.poll(ctx, time.Second, func() (bool, error) {
		attempt, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		s, err := m.dial(attempt, user, ssh.PublicKeys(key.signer))
		if timeout, ok := errors.AsType[net.Error](err); attempt.Err() == nil && (!ok || !timeout.Timeout()) {
			last = err // a mere end of time would say nothing
		}
		session = s
		return err == nil, nil
	})
	if err != nil {
		return nil, m.explain("log in as "+user, errors.Join(err, last))
	}
	return session, nil
}

// LoginWithPassword tries once to log in with a password, by the methods
// "password" and "keyboard-interactive".
func (m *Machine) LoginWithPassword(ctx context.Context, user, password string) (*Session, error) {
	answer := func(_, _ string, questions []string, _ []bool) ([]string, error) {
		answers := make([]string, len(questions))
		for i := range answers {
			answers[i] = password
		}
		return answers, nil
	}
	return m.dial(ctx, user, ssh.Password(password), ssh.KeyboardInteractive(answer))
}

// dialTimeout bounds one of many attempts: behind QEMU's forwarded port a guest that
// does not listen yet looks like a server that says nothing.
const dialTimeout = 30 * time.Second

func (m *Machine) dial(ctx context.Context, user string, methods ...ssh.AuthMethod) (*Session, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", m.Address())
	if err != nil {
		return nil, err
	}
	expire := context.AfterFunc(ctx, func() { conn.Close() })
	defer expire()
	s := &Session{}
	c, channels, requests, err := ssh.NewClientConn(conn, m.Address(), &ssh.ClientConfig{
		User: user,
		Auth: methods,
		// The guest made its key a moment ago; HostKey hands it out.
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			s.host = key
			return nil
		},
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	s.client = ssh.NewClient(c, channels, requests)
	return s, nil
}

// RunError tells how a command in a guest ended that did not end well.
type RunError struct {
	Command string
	Status  int // exit status; -1 when a signal or a broken connection ended it
	Stderr  string
	Err     error
}

func (e *RunError) Error() string {
	return fmt.Sprintf("run in guest: %s: %v: %s", e.Command, e.Err, strings.TrimSpace(e.Stderr))
}

// Unwrap returns what the ssh connection said.
func (e *RunError) Unwrap() error { return e.Err }

// Run runs a command line with the user's shell in the guest and returns its
// standard output, also when it fails. The error is a *RunError.
func (s *Session) Run(ctx context.Context, command string) (string, error) {
	return s.RunInput(ctx, command, nil)
}

// RunInput is Run with something to read for the command.
func (s *Session) RunInput(ctx context.Context, command string, stdin io.Reader) (string, error) {
	run, err := s.client.NewSession()
	if err != nil {
		return "", &RunError{Command: command, Status: -1, Err: err}
	}
	defer run.Close()
	expire := context.AfterFunc(ctx, func() { run.Close() })
	defer expire()
	var stdout, stderr bytes.Buffer
	run.Stdin, run.Stdout, run.Stderr = stdin, &stdout, &stderr
	if err := run.Run(command); err != nil {
		status := -1
		if exit, ok := errors.AsType[*ssh.ExitError](err); ok && exit.Signal() == "" {
			status = exit.ExitStatus()
		}
		return stdout.String(), &RunError{command, status, stderr.String(), errors.Join(ctx.Err(), err)}
	}
	return stdout.String(), nil
}
