package boot

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// fakeGuest is a machine of which only the ssh server exists. It knows the
// user "debian" with one key, and commands are "cat" and "false".
func fakeGuest(t *testing.T, key *Key) (*Machine, string) {
	t.Helper()
	host, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() == "debian" && string(k.Marshal()) == string(key.signer.PublicKey().Marshal()) {
			return nil, nil
		}
		return nil, errors.New("unknown key")
	}}
	config.AddHostKey(host.signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) //nolint:errcheck // ends with the test
	go func() {
		for refuse := 1; ; refuse-- {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if refuse > 0 { // the guest is not up yet
				conn.Close() //nolint:errcheck // on purpose
				continue
			}
			go serveSSH(conn, config)
		}
	}()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() }) //nolint:errcheck // only read
	addr, _ := l.Addr().(*net.TCPAddr)
	return &Machine{dir: dir, exited: make(chan struct{}), stderr: &tailBuffer{}, sshPort: addr.Port}, host.Public()
}

func serveSSH(conn net.Conn, config *ssh.ServerConfig) {
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for n := range channels {
		c, requests, err := n.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range requests {
				r.Reply(r.Type == "exec", nil) //nolint:errcheck // a broken client fails by itself
				if r.Type != "exec" {
					continue
				}
				status := byte(0)
				if strings.HasSuffix(string(r.Payload), "cat") {
					io.Copy(c, c) //nolint:errcheck // as above
				} else {
					io.WriteString(c.Stderr(), "wrong\n") //nolint:errcheck // as above
					status = 3
				}
				c.SendRequest("exit-status", false, []byte{0, 0, 0, status}) //nolint:errcheck // as above
				c.Close()                                                    //nolint:errcheck // as above
			}
		}()
	}
}

func TestLogin(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	m, hostKey := fakeGuest(t, key)
	s, err := m.Login(within(t, patience), "debian", key)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.HostKey() != hostKey {
		t.Errorf("HostKey() = %s, want %s", s.HostKey(), hostKey)
	}
	if out, err := s.RunInput(t.Context(), "cat", strings.NewReader("there and back")); err != nil || out != "there and back" {
		t.Errorf("RunInput() = %q, %v", out, err)
	}
	_, err = s.Run(t.Context(), "false")
	if e, ok := errors.AsType[*RunError](err); !ok || e.Status != 3 || e.Stderr != "wrong\n" || e.Command != "false" {
		t.Errorf("Run() error = %#v", err)
	}
	if _, err := m.Login(within(t, 10*time.Second), "root", key); err == nil || !strings.Contains(err.Error(), "log in as root") || !strings.Contains(err.Error(), "unable to authenticate") {
		t.Errorf("Login(root) error = %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Login(ended, "root", key); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "dial tcp") {
		t.Errorf("Login() when there is no time: error = %v", err)
	}
	if _, err := m.LoginWithPassword(within(t, patience), "debian", "x"); err == nil || !strings.Contains(err.Error(), "unable to authenticate") {
		t.Errorf("LoginWithPassword() error = %v", err)
	}
	close(m.exited)
	if _, err := m.Login(within(t, patience), "root", key); !errors.Is(err, errExited) {
		t.Errorf("Login() after the end: error = %v", err)
	}
}
