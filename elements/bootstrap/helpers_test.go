package bootstrap

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"cairn/reproducibility/store"
)

// tool fails the test unless a program is there.
func tool(t *testing.T, name, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%v: install %s", err, pkg)
	}
}

func newStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// hostSources reads the machine's own apt sources.
func hostSources(t *testing.T) []Source {
	t.Helper()
	var list []Source
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	for _, f := range append([]string{"/etc/apt/sources.list"}, files...) {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var part []Source
		switch filepath.Ext(f) {
		case ".sources":
			part, err = ParseSources(data)
		case ".list":
			part, err = ParseSourcesList(data)
		}
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		list = append(list, part...)
	}
	return list
}

// hostKeyring reads Debian's keyring.
func hostKeyring(t *testing.T) []byte {
	t.Helper()
	for _, p := range KeyringPaths() {
		if data, err := os.ReadFile(p); err == nil {
			return data
		}
	}
	t.Fatal("no Debian keyring: install debian-archive-keyring")
	return nil
}

var realClient = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 16}}

// realStore is shared by the tests that use a real mirror.
var realStore = sync.OnceValues(func() (*store.Store, error) {
	dir, err := os.MkdirTemp("", "cairn-bootstrap-test-*")
	if err != nil {
		return nil, err
	}
	return store.Open(dir)
})

// realConfig is the configuration for a suite of the machine's own mirror.
func realConfig(t *testing.T, suite string) Config {
	t.Helper()
	s, err := realStore()
	if err != nil {
		t.Fatal(err)
	}
	config := Config{
		Archives: DefaultArchives(suite), Arch: "amd64", Keyring: hostKeyring(t),
		Now: time.Now(), Store: s, Client: realClient,
	}
	mirrors, err := Discover(t.Context(), config, hostSources(t), suite)
	if err != nil {
		t.Fatalf("this test needs a Debian mirror among apt's sources: %v", err)
	}
	config.Archives[0].Mirror = mirrors.Main
	if len(config.Archives) > 1 {
		if mirrors.Security == "" {
			t.Fatal("this test needs a mirror of Debian's security archive among apt's sources")
		}
		config.Archives[1].Mirror = mirrors.Security
	}
	return config
}

// testKey is an OpenPGP key made for a test.
type testKey struct{ *openpgp.Entity }

var testTime = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

func newKey(t *testing.T, name string) testKey {
	t.Helper()
	return newKeyAt(t, name, testTime.Add(-time.Hour), 0)
}

func newKeyAt(t *testing.T, name string, made time.Time, lifetime time.Duration) testKey {
	t.Helper()
	e, err := openpgp.NewEntity(name, "", name+"@example.org", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return made },
		KeyLifetimeSecs: uint32(lifetime / time.Second),
	})
	if err != nil {
		t.Fatal(err)
	}
	return testKey{e}
}

// public returns the key as a binary keyring.
func (k testKey) public(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := k.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sign clearsigns text with keys.
func sign(t *testing.T, text string, keys ...testKey) []byte {
	t.Helper()
	var private []*packet.PrivateKey
	for _, k := range keys {
		private = append(private, k.PrivateKey)
	}
	var b bytes.Buffer
	w, err := clearsign.EncodeMulti(&b, private, &packet.Config{Time: func() time.Time { return testTime }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), '\n')
}

// tarEntry is one entry of a test archive.
type tarEntry struct {
	name, body, link string
	mode             int64
	kind             byte
}

func makeTar(t *testing.T, entries []tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, ModTime: testTime, Size: int64(len(e.body))}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// arEntry formats one member.
func arEntry(name string, data []byte) []byte {
	b := fmt.Appendf(nil, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, 0, 0, 0, "100644", len(data))
	b = append(b, data...)
	if len(data)%2 == 1 {
		b = append(b, '\n')
	}
	return b
}

// makeDeb makes a package of a control paragraph, other control files and data.
func makeDeb(t *testing.T, control string, scripts, data []tarEntry) []byte {
	t.Helper()
	entries := append([]tarEntry{{name: "./"}, {name: "./control", body: control}}, scripts...)
	b := []byte(arMagic)
	b = append(b, arEntry("debian-binary", []byte("2.0\n"))...)
	b = append(b, arEntry("control.tar.gz", gzipped(t, makeTar(t, entries)))...)
	return append(b, arEntry("data.tar.gz", gzipped(t, makeTar(t, append([]tarEntry{{name: "./"}}, data...))))...)
}
