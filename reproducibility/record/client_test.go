package record

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// curl runs curl with every name leading to the server.
func (w *world) curl(args ...string) (string, error) {
	w.t.Helper()
	ca := filepath.Join(w.t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, w.s.CAPEM(), 0o600); err != nil {
		w.t.Fatal(err)
	}
	head := []string{"-q", "-sS", "--cacert", ca}
	if !slices.Contains(args, "-x") {
		head = append(head, "--connect-to", "::127.0.0.1:"+w.port)
	}
	c := exec.Command(tool(w.t, "curl", "curl"), append(head, args...)...)
	c.Env = []string{}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, &stderr)
	}
	return string(out), err
}

func TestCurl(t *testing.T) {
	var n atomic.Int64
	w := start(t, Options{Upstream: upstream(t, echo(&n))})
	proxy := "http://127.0.0.1:" + w.port
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		args []string
		want string // beginning of the output
	}{
		{"plain", []string{"http://a.test/1"}, "a.test/1 1"},
		{"odd port", []string{"http://a.test:8080/1"}, "a.test:8080/1 2"},
		{"TLS", []string{"https://a.test/1"}, "a.test/1 3"},
		{"keep-alive", []string{"https://a.test/1", "https://a.test/1"}, "a.test/1 3"},
		{"proxy", []string{"-x", proxy, "http://a.test/1"}, "a.test/1 1"},
		{"CONNECT TLS", []string{"-x", proxy, "https://a.test/1"}, "a.test/1 3"},
		{"CONNECT plain", []string{"-p", "-x", proxy, "http://a.test/1"}, "a.test/1 1"},
		{"CONNECT address", []string{"-x", proxy, "https://192.0.2.7/1"}, "192.0.2.7/1 4"},
		{"credentials", []string{"http://user:pw@a.test/1"}, "a.test/1 1"},
		{"redirect", []string{"-L", "http://a.test/moved"}, "other.test/to?X-Amz-Signature=s3cret&part=1 6"},
		{"compressed", []string{"--compressed", "http://a.test/1"}, "a.test/1 1"},
		{"range", []string{"-r", "2-5", "http://a.test/1"}, "test"},
		{"HTTP/1.0", []string{"-0", "http://a.test/1"}, "a.test/1 1"},
		{"HTTP/2", []string{"--http2", "https://a.test/1"}, "a.test/1 3"},
		{"silent body", []string{"-I", "http://a.test/1"}, "HTTP/1.1 200 OK"},
		{"large", []string{"-o", filepath.Join(dir, "big"), "http://a.test/big"}, ""},
	} {
		got, err := w.curl(c.args...)
		if err != nil || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: got %q, %v, want %q", c.name, got, err, c.want)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "big")); err != nil || fi.Size() != 3<<20 {
		t.Errorf("large file: %v, %v", fi, err)
	}
	if got, err := w.curl("-f", "-d", "data", "http://a.test/1"); err == nil || !strings.Contains(err.Error(), "405") {
		t.Errorf("POST: %q, %v", got, err)
	}
	// What curl began and lost it resumes.
	part := filepath.Join(dir, "part")
	if err := os.WriteFile(part, bytes.Repeat([]byte("b"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.curl("-C", "-", "-o", part, "http://a.test/big"); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(part); err != nil || !bytes.Equal(b, bytes.Repeat([]byte("b"), 3<<20)) {
		t.Errorf("resumed to %d bytes, %v", len(b), err)
	}
	if _, err := w.curl("--cacert", "/dev/null", "https://a.test/1"); err == nil {
		t.Error("curl trusted us without our CA")
	}
}

// The certificates are judged by openssl.
func TestCertificates(t *testing.T) {
	w := start(t, Options{})
	openssl := tool(t, "openssl", "openssl")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, w.s.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + ".test"
	for _, args := range [][]string{
		{"-servername", "a.test", "-verify_hostname", "a.test"},
		{"-servername", long, "-verify_hostname", long},
		{"-noservername", "-verify_ip", "127.0.0.1"},
	} {
		c := exec.Command(openssl, append([]string{"s_client", "-connect", "127.0.0.1:" + w.port, "-CAfile", ca, "-verify_return_error", "-x509_strict"}, args...)...)
		c.Stdin = strings.NewReader("")
		out, err := c.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Verify return code: 0 (ok)") {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	// A later clock must not matter.
	c := exec.Command(openssl, "verify", "-x509_strict", "-attime", "4102444800", "-CAfile", ca, ca)
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("in the year 2100: %v: %s", err, out)
	}
}

// An archive is a small Debian archive made by dpkg-deb.
func archive(t *testing.T) http.Handler {
	t.Helper()
	root := t.TempDir()
	var packages bytes.Buffer
	for i, name := range []string{"first", "second", "third"} {
		src := filepath.Join(t.TempDir(), name)
		control := fmt.Sprintf("Package: %s\nVersion: 1:%d.0+b1\nArchitecture: all\nMaintainer: T <t@example.org>\nDescription: test\n", name, i)
		write(t, filepath.Join(src, "DEBIAN/control"), []byte(control))
		write(t, filepath.Join(src, "usr/share", name), bytes.Repeat([]byte(name), 200_000*i+1))
		file := fmt.Sprintf("pool/main/%s_%d.0+b1_all.deb", name, i)
		write(t, filepath.Join(root, file), nil)
		c := exec.Command(tool(t, "dpkg-deb", "dpkg"), "-Znone", "-b", src, filepath.Join(root, file))
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("dpkg-deb: %v: %s", err, out)
		}
		deb := must(os.ReadFile(filepath.Join(root, file)))
		fmt.Fprintf(&packages, "%sFilename: %s\nSize: %d\nSHA256: %x\n\n", control, file, len(deb), sha256.Sum256(deb))
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	must(z.Write(packages.Bytes()))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(root, "dists/test/main/binary-amd64")
	write(t, filepath.Join(index, "Packages"), packages.Bytes())
	write(t, filepath.Join(index, "Packages.gz"), zipped.Bytes())
	release := "Suite: test\nCodename: test\nDate: Mon, 02 Jan 2023 03:04:05 UTC\nArchitectures: amd64\nComponents: main\nSHA256:\n"
	for name, b := range map[string][]byte{"Packages": packages.Bytes(), "Packages.gz": zipped.Bytes()} {
		release += fmt.Sprintf(" %x %d main/binary-amd64/%s\n", sha256.Sum256(b), len(b), name)
	}
	write(t, filepath.Join(root, "dists/test/Release"), []byte(release))
	return http.StripPrefix("/debian", http.FileServer(http.Dir(root)))
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// apt is an apt with files of its own that finds its archive at the server.
type apt struct{ dir string }

func newApt(t *testing.T) apt {
	t.Helper()
	a := apt{t.TempDir()}
	// The sandboxed download methods run as another user.
	for d := a.dir; d != os.TempDir() && len(d) > 1; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d", "etc/trusted.gpg.d"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(a.dir, "status"), nil)
	return a
}

func (a apt) run(t *testing.T, w *world, args ...string) string {
	t.Helper()
	write(t, filepath.Join(a.dir, "etc/sources.list"), fmt.Appendf(nil, "deb [trusted=yes] http://localhost:%s/debian test main\n", w.port))
	c := exec.Command(tool(t, "apt-get", "apt"), append([]string{
		"-q", "-o", "Dir::State=" + a.dir + "/state", "-o", "Dir::Cache=" + a.dir + "/cache", "-o", "Dir::Etc=" + a.dir + "/etc",
		"-o", "Dir::State::status=" + a.dir + "/status", "-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64",
		"-o", "Acquire::Languages=none", "-o", "Acquire::Retries=0", "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1",
		"-o", "Acquire::http::Proxy=DIRECT", "-o", "APT::Get::AllowUnauthenticated=1",
	}, args...)...)
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("apt-get %s: %v\n%s", args, err, out)
	}
	return string(out)
}

func (a apt) downloads(t *testing.T) map[string][32]byte {
	t.Helper()
	sums := map[string][32]byte{}
	for _, path := range must(filepath.Glob(filepath.Join(a.dir, "cache/archives/*.deb"))) {
		sums[filepath.Base(path)] = sha256.Sum256(must(os.ReadFile(path)))
	}
	return sums
}

func TestApt(t *testing.T) {
	w := start(t, Options{Upstream: upstream(t, archive(t)), AllowLocal: true})
	a := newApt(t)
	a.run(t, w, "update")
	if out := a.run(t, w, "update"); !strings.Contains(out, "Hit:2") {
		t.Errorf("second update was no hit:\n%s", out)
	}
	a.run(t, w, "-y", "-d", "install", "first", "second", "third")
	got := a.downloads(t)
	if len(got) != 3 {
		t.Fatalf("downloaded %v", got)
	}
	// apt resumes what it has a part of.
	deb := must(filepath.Glob(filepath.Join(a.dir, "cache/archives/third_*.deb")))[0]
	whole := must(os.ReadFile(deb))
	if err := os.Remove(deb); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(a.dir, "cache/archives/partial", filepath.Base(deb)), whole[:1000])
	a.run(t, w, "-y", "-d", "install", "third")
	if diff := cmp.Diff(got, a.downloads(t)); diff != "" {
		t.Errorf("after resuming: %s", diff)
	}

	entries := w.s.Entries()
	w.cancel()
	replay := start(t, Options{Store: w.store, Replay: true})
	for _, e := range entries { // the other server has another port
		e.URL = strings.Replace(e.URL, ":"+w.port+"/", ":"+replay.port+"/", 1)
		replay.s.listed[e.URL] = e
	}
	b := newApt(t)
	b.run(t, replay, "update")
	b.run(t, replay, "-y", "-d", "install", "first", "second", "third")
	if diff := cmp.Diff(got, b.downloads(t)); diff != "" {
		t.Errorf("replayed: %s", diff)
	}
}

func TestRefuseLocal(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	d := net.Dialer{Control: RefuseLocal}
	if c, err := d.Dial("tcp", l.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("connected to loopback")
	} else if !strings.Contains(err.Error(), "out of hooks' reach") {
		t.Error(err)
	}
	for address, local := range map[string]bool{
		"192.0.2.1:80": false, "10.1.2.3:80": false, "[2001:db8::1]:80": false,
		"127.0.0.53:53": true, "[::1]:80": true, "[fe80::1]:80": true, "0.0.0.0:80": true, "169.254.169.254:80": true, "[::ffff:127.0.0.1]:80": true,
	} {
		if got := RefuseLocal("tcp", address, nil) != nil; got != local {
			t.Errorf("RefuseLocal(%s) = %v, want %v", address, got, local)
		}
	}
}
