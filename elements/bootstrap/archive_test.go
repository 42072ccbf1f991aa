package bootstrap

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const canonical = "http://canonical.example/debian"

// fakeArchive is an archive of one suite, "test", in memory.
type fakeArchive struct {
	mu    sync.Mutex
	files map[string][]byte // by path below the archive
	asked []string
	// serve answers in place of the archive if it returns true.
	serve func(w http.ResponseWriter, r *http.Request, body []byte) bool
	url   string
}

// archiveOptions are what differs from a good archive.
type archiveOptions struct {
	release   string // more fields of Release
	noByHash  bool
	ext       string // of Packages; ".gz" if empty
	signers   []testKey
	sections  map[string]string // more index files, by path, listed in Release
	suiteName string
}

// debBody is the content of a fake package file: what matters is its digest.
func debBody(name string, size int) []byte {
	return bytes.Repeat([]byte(name+" "), size/(len(name)+1)+1)[:size]
}

// debStanza is the paragraph of a fake package.
func debStanza(name, version, more string, body []byte) string {
	return fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\nFilename: pool/main/%s/%s_%s_amd64.deb\nSize: %d\nSHA256: %x\n%s\n",
		name, version, name, name, version, len(body), sha256.Sum256(body), more)
}

func newArchiveFor(t *testing.T, o archiveOptions, names ...string) *fakeArchive {
	t.Helper()
	a := &fakeArchive{files: make(map[string][]byte)}
	var packages strings.Builder
	for _, n := range names {
		body := debBody(n, 300<<10)
		packages.WriteString(debStanza(n, "1.0+x", "", body))
		a.files["pool/main/"+n+"/"+n+"_1.0+x_amd64.deb"] = body
	}
	index := []byte(packages.String())
	file := "main/binary-amd64/Packages.gz"
	if o.ext == "none" {
		file = "main/binary-amd64/Packages"
	} else {
		index = gzipped(t, index)
	}
	listed := map[string][]byte{file: index}
	for p, text := range o.sections {
		listed[p] = gzipped(t, []byte(text))
	}
	suite := "test"
	if o.suiteName != "" {
		suite = o.suiteName
	}
	release := "Origin: Debian\nSuite: stable\nCodename: " + suite + "\nDate: Wed, 01 May 2024 11:00:00 UTC\nArchitectures: amd64\nComponents: main\n" + o.release
	if !o.noByHash {
		release += "Acquire-By-Hash: yes\n"
	}
	release += "SHA256:\n"
	for p, data := range listed {
		a.files["dists/test/"+p] = data
		a.files[fmt.Sprintf("dists/test/%s/by-hash/SHA256/%x", path.Dir(p), sha256.Sum256(data))] = data
		release += fmt.Sprintf(" %x %d %s\n", sha256.Sum256(data), len(data), p)
	}
	a.files["dists/test/InRelease"] = sign(t, release, o.signers...)
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	a.url = server.URL + "/debian"
	return a
}

func (a *fakeArchive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	file := strings.TrimPrefix(r.URL.Path, "/debian/")
	a.mu.Lock()
	a.asked = append(a.asked, file)
	body, ok := a.files[file]
	serve := a.serve
	a.mu.Unlock()
	if serve != nil && serve(w, r, body) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// config opens the archive with a fresh store.
func (a *fakeArchive) config(t *testing.T, keys ...testKey) Config {
	t.Helper()
	var keyring []byte
	for _, k := range keys {
		keyring = append(keyring, k.public(t)...)
	}
	return Config{
		Archives: []Archive{{Canonical: canonical, Mirror: a.url, Suites: []string{"test"}}},
		Arch:     "amd64", Keyring: keyring, Now: testTime.Add(time.Minute), Store: newStore(t),
		Client:   &http.Client{Transport: &http.Transport{}},
		Transfer: Transfer{Parallel: 4, Tries: 3, Stall: 5 * time.Minute, Backoff: time.Millisecond},
	}
}

func TestOpenAndFetch(t *testing.T) {
	key := newKey(t, "key")
	for name, o := range map[string]archiveOptions{
		"by hash":     {},
		"plain":       {noByHash: true},
		"not packed":  {ext: "none"},
		"two signers": {signers: []testKey{newKey(t, "stranger")}},
	} {
		t.Run(name, func(t *testing.T) {
			o.signers = append(o.signers, key)
			a := newArchiveFor(t, o, "one", "two", "three")
			config := a.config(t, key)
			var last Progress
			config.Progress = func(p Progress) { last = p }
			x, err := Open(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			packages, err := x.Resolve(Request{Include: []string{"one", "three"}, Bare: true})
			if err != nil || len(packages) != 2 {
				t.Fatal(packages, err)
			}
			if err := x.Fetch(t.Context(), packages); err != nil {
				t.Fatal(err)
			}
			if want := (Progress{Files: 2, TotalFiles: 2, Bytes: 600 << 10, TotalBytes: 600 << 10, Name: last.Name}); last != want {
				t.Errorf("progress %+v, want %+v", last, want)
			}
			for _, p := range packages {
				if _, _, err := config.Store.OpenVerified(p.Digest); err != nil {
					t.Error(err)
				}
			}
			byHash := slices.ContainsFunc(a.asked, func(s string) bool { return strings.Contains(s, "/by-hash/") })
			if byHash == o.noByHash {
				t.Errorf("asked for %q", a.asked)
			}
			asked := len(a.asked)
			if err := x.Fetch(t.Context(), packages); err != nil || len(a.asked) != asked {
				t.Errorf("second fetch: %v, asked for %q", err, a.asked[asked:])
			}
		})
	}
}

func TestByHashFallsBack(t *testing.T) {
	key := newKey(t, "key")
	a := newArchiveFor(t, archiveOptions{signers: []testKey{key}}, "one")
	for f := range a.files {
		if strings.Contains(f, "by-hash") {
			delete(a.files, f)
		}
	}
	if _, err := Open(t.Context(), a.config(t, key)); err != nil {
		t.Fatal(err)
	}
}

func TestOpenFails(t *testing.T) {
	key, stranger := newKey(t, "key"), newKey(t, "stranger")
	for name, test := range map[string]struct {
		o      archiveOptions
		change func(a *fakeArchive, c *Config)
		check  func(err error) bool
	}{
		"unknown key":  {o: archiveOptions{signers: []testKey{stranger}}, check: is[*SignatureError]},
		"bad keyring":  {change: func(_ *fakeArchive, c *Config) { c.Keyring = []byte("x") }, check: func(err error) bool { return strings.Contains(err.Error(), "keyring") }},
		"forged":       {change: func(a *fakeArchive, _ *Config) { a.replace("dists/test/InRelease", "Debian", "Debiam") }, check: is[*SignatureError]},
		"expired":      {o: archiveOptions{release: "Valid-Until: Wed, 01 May 2024 11:30:00 UTC\n"}, check: is[*ExpiredError]},
		"future":       {change: func(_ *fakeArchive, c *Config) { c.Now = testTime.Add(-2 * time.Hour) }, check: is[*SignatureError]},
		"dated ahead":  {o: archiveOptions{release: "Date: Wed, 01 May 2024 18:00:00 UTC\n"}, check: is[*NotYetValidError]},
		"other suite":  {o: archiveOptions{suiteName: "evil"}, check: is[*SuiteError]},
		"no component": {change: func(_ *fakeArchive, c *Config) { c.Archives[0].Components = []string{"contrib"} }, check: is[*ComponentError]},
		"no arch":      {change: func(_ *fakeArchive, c *Config) { c.Arch = "s390x" }, check: is[*ComponentError]},
		"wrong index":  {change: func(a *fakeArchive, _ *Config) { a.damage("Packages") }, check: is[*HashError]},
		"no suite":     {change: func(a *fakeArchive, _ *Config) { delete(a.files, "dists/test/InRelease") }, check: fetchKind(FetchStatus)},
		"down":         {change: func(_ *fakeArchive, c *Config) { c.Archives[0].Mirror = "http://127.0.0.1:1/debian" }, check: fetchKind(FetchUnreachable)},
		"bad URL":      {change: func(_ *fakeArchive, c *Config) { c.Archives[0].Mirror = "ftp://u:secret@x" }, check: func(err error) bool { return !strings.Contains(err.Error(), "secret") }},
		"offline":      {change: func(_ *fakeArchive, c *Config) { c.Client = nil }, check: is[*MissingError]},
	} {
		t.Run(name, func(t *testing.T) {
			if test.o.signers == nil {
				test.o.signers = []testKey{key}
			}
			a := newArchiveFor(t, test.o, "one")
			config := a.config(t, key)
			if test.change != nil {
				test.change(a, &config)
			}
			_, err := Open(t.Context(), config)
			if err == nil || !test.check(err) {
				t.Errorf("error %T: %v", err, err)
			}
			var hinted interface{ Hint() string }
			if errors.As(err, &hinted) && hinted.Hint() == "" {
				t.Errorf("no hint for %v", err)
			}
		})
	}
	t.Run("expired but allowed", func(t *testing.T) {
		a := newArchiveFor(t, archiveOptions{release: "Valid-Until: Wed, 01 May 2024 11:30:00 UTC\n", signers: []testKey{key}}, "one")
		config := a.config(t, key)
		config.AllowExpired = true
		if _, err := Open(t.Context(), config); err != nil {
			t.Error(err)
		}
	})
}

func is[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

func fetchKind(kind FetchKind) func(error) bool {
	return func(err error) bool {
		var e *FetchError
		return errors.As(err, &e) && e.Kind == kind && e.Hint() != "" && e.Mirror != ""
	}
}

func (a *fakeArchive) replace(file, old, text string) {
	a.files[file] = bytes.Replace(a.files[file], []byte(old), []byte(text), 1)
}

// damage changes the last byte of every file with part in its path.
func (a *fakeArchive) damage(part string) {
	for f, data := range a.files {
		if strings.Contains(f, part) || strings.Contains(f, "by-hash") {
			data = bytes.Clone(data)
			data[len(data)-1] ^= 1
			a.files[f] = data
		}
	}
}

// TestFetchTrouble has mirrors that misbehave in one way each.
func TestFetchTrouble(t *testing.T) {
	key := newKey(t, "key")
	var count atomic.Int32
	deb := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, ".deb") }
	cut := func(w http.ResponseWriter, body []byte, n int) {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:n])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	for name, test := range map[string]struct {
		serve  func(w http.ResponseWriter, r *http.Request, body []byte) bool
		check  func(error) bool // nil: it must work in the end
		silent bool             // it is given up
	}{
		"cut, resumes": {serve: func(w http.ResponseWriter, r *http.Request, body []byte) bool {
			if deb(r) && r.Header.Get("Range") == "" {
				cut(w, body, 100_000)
			}
			return false
		}},
		"cut often, with progress": {serve: func(w http.ResponseWriter, r *http.Request, body []byte) bool {
			from, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-"))
			if !deb(r) || len(body)-from < 70_000 {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(body)-1, len(body)))
			w.Header().Set("Content-Length", strconv.Itoa(len(body)-from))
			if from > 0 {
				w.WriteHeader(http.StatusPartialContent)
			}
			_, _ = w.Write(body[from : from+70_000])
			panic(http.ErrAbortHandler)
		}},
		"cut, no ranges": {serve: func(w http.ResponseWriter, r *http.Request, body []byte) bool {
			if !deb(r) {
				return false
			}
			if count.Add(1) == 1 {
				cut(w, body, 100_000)
			}
			_, _ = w.Write(body)
			return true
		}},
		"cut, lies about the range": {serve: func(w http.ResponseWriter, r *http.Request, body []byte) bool {
			if !deb(r) {
				return false
			}
			if count.Add(1) == 1 {
				cut(w, body, 100_000)
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(body)
			return true
		}},
		"resumed something else": {serve: func(w http.ResponseWriter, r *http.Request, body []byte) bool {
			if deb(r) && count.Add(1) == 1 {
				cut(w, bytes.Repeat([]byte("z"), len(body)), 100_000)
			}
			return false
		}},
		"busy for a while": {serve: func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			if deb(r) && count.Add(1) < 3 {
				http.Error(w, "busy", http.StatusServiceUnavailable)
				return true
			}
			return false
		}},
		"always cut": {serve: func(w http.ResponseWriter, r *http.Request, body []byte) bool {
			if deb(r) {
				cut(w, body, 1)
			}
			return false
		}, check: fetchKind(FetchCut)},
		"stalls": {serve: func(w http.ResponseWriter, r *http.Request, body []byte) bool {
			if !deb(r) {
				return false
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			_, _ = w.Write(body[:10])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}, check: fetchKind(FetchStalled), silent: true},
		"never answers": {serve: func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
			if deb(r) {
				<-r.Context().Done()
			}
			return deb(r)
		}, check: fetchKind(FetchStalled), silent: true},
		"always busy": {serve: func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			if deb(r) {
				http.Error(w, "busy", http.StatusBadGateway)
			}
			return deb(r)
		}, check: fetchKind(FetchStatus)},
		"forbidden": {serve: func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			if deb(r) {
				http.Error(w, "no", http.StatusForbidden)
			}
			return deb(r)
		}, check: fetchKind(FetchStatus)},
		"gone": {serve: func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			if deb(r) {
				http.NotFound(w, r)
			}
			return deb(r)
		}, check: fetchKind(FetchStatus)},
		"too short": {serve: func(w http.ResponseWriter, r *http.Request, body []byte) bool {
			if deb(r) {
				_, _ = w.Write(body[:1000])
			}
			return deb(r)
		}, check: fetchKind(FetchLength)},
		"too long, unannounced": {serve: func(w http.ResponseWriter, r *http.Request, body []byte) bool {
			if deb(r) {
				_, _ = w.Write(body)
				_ = http.NewResponseController(w).Flush()
				_, _ = w.Write(body)
			}
			return deb(r)
		}, check: fetchKind(FetchLength)},
		"wrong bytes": {serve: func(w http.ResponseWriter, r *http.Request, body []byte) bool {
			if deb(r) {
				_, _ = w.Write(bytes.Repeat([]byte("z"), len(body)))
			}
			return deb(r)
		}, check: is[*HashError]},
	} {
		t.Run(name, func(t *testing.T) {
			count.Store(0)
			a := newArchiveFor(t, archiveOptions{signers: []testKey{key}}, "one")
			a.serve = test.serve
			config := a.config(t, key)
			if test.silent {
				config.Transfer.Stall = time.Second
			}
			var last Progress
			config.Progress = func(p Progress) { last = p }
			x, err := Open(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			packages, err := x.Resolve(Request{Include: []string{"one"}, Bare: true})
			if err != nil {
				t.Fatal(err)
			}
			err = x.Fetch(t.Context(), packages)
			if test.check == nil {
				if err != nil || !config.Store.Has(packages[0].Digest) || last.Bytes != last.TotalBytes {
					t.Errorf("%v, progress %+v", err, last)
				}
				return
			}
			if err == nil || !test.check(err) {
				t.Errorf("error %T: %v", err, err)
			}
			if config.Store.Has(packages[0].Digest) {
				t.Error("the store has what was not verified")
			}
			a.mu.Lock()
			a.serve = nil
			a.mu.Unlock()
			if err := x.Fetch(t.Context(), packages); err != nil {
				t.Errorf("after the trouble: %v", err)
			}
		})
	}
}

func TestFetchCancelled(t *testing.T) {
	key := newKey(t, "key")
	a := newArchiveFor(t, archiveOptions{signers: []testKey{key}}, "one")
	ctx, cancel := context.WithCancel(t.Context())
	x, err := Open(ctx, a.config(t, key))
	if err != nil {
		t.Fatal(err)
	}
	packages, err := x.Resolve(Request{Include: []string{"one"}, Bare: true})
	if err != nil {
		t.Fatal(err)
	}
	a.serve = func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		cancel()
		<-r.Context().Done()
		return true
	}
	if err := x.Fetch(ctx, packages); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestCredentials(t *testing.T) {
	key := newKey(t, "key")
	a := newArchiveFor(t, archiveOptions{signers: []testKey{key}}, "one")
	a.serve = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if user, password, _ := r.BasicAuth(); user == "u" && password == "secret" {
			return false
		}
		http.Error(w, "no", http.StatusUnauthorized)
		return true
	}
	config := a.config(t, key)
	_, err := Open(t.Context(), config)
	if !fetchKind(FetchStatus)(err) {
		t.Errorf("without: %v", err)
	}
	host := strings.TrimPrefix(strings.TrimSuffix(a.url, "/debian"), "http://")
	config.Auth = Auth{{Scheme: "http", Host: host, Login: "u", Password: "secret"}}
	if _, err = Open(t.Context(), config); err != nil {
		t.Errorf("by auth.conf: %v", err)
	}
	config.Auth = nil
	config.Archives[0].Mirror = "http://u:secret@" + host + "/debian"
	x, err := Open(t.Context(), config)
	if err != nil {
		t.Fatalf("by URL: %v", err)
	}
	delete(a.files, "pool/main/one/one_1.0+x_amd64.deb")
	packages, _ := x.Resolve(Request{Include: []string{"one"}, Bare: true})
	if err := x.Fetch(t.Context(), packages); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("password in %v", err)
	}
}

func TestPins(t *testing.T) {
	key := newKey(t, "key")
	a := newArchiveFor(t, archiveOptions{signers: []testKey{key}, release: "Valid-Until: Wed, 01 May 2024 12:30:00 UTC\n"}, "one", "two")
	config := a.config(t, key)
	x, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	packages, err := x.Resolve(Request{Include: []string{"one"}, Bare: true})
	if err == nil {
		err = x.Fetch(t.Context(), packages)
	}
	if err != nil {
		t.Fatal(err)
	}
	offline := Config{Arch: "amd64", Store: config.Store, Keyring: config.Keyring, Now: testTime.AddDate(3, 0, 0)}
	y, err := OpenPinned(t.Context(), offline, x.Pins())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(pinText(x), pinText(y)) || !y.Date().Equal(x.Date()) {
		t.Errorf("pins %v, want %v", pinText(y), pinText(x))
	}
	again, err := y.Resolve(Request{Include: []string{"one"}, Bare: true})
	if err != nil || y.Fetch(t.Context(), again) != nil {
		t.Errorf("offline: %v", err)
	}
	other, err := y.Resolve(Request{Include: []string{"two"}, Bare: true})
	if err != nil {
		t.Fatal(err)
	}
	var missing *MissingError
	if err := y.Fetch(t.Context(), other); !errors.As(err, &missing) || missing.Digest != other[0].Digest || !strings.HasPrefix(missing.URL, canonical) {
		t.Errorf("missing package: %v", err)
	}
	offline.Store = newStore(t)
	if _, err := OpenPinned(t.Context(), offline, x.Pins()); !is[*MissingError](err) {
		t.Errorf("empty store: %v", err)
	}
	offline.Client = config.Client
	offline.Archives = config.Archives
	if _, err := OpenPinned(t.Context(), offline, x.Pins()); err != nil {
		t.Errorf("empty store with network: %v", err)
	}
	a.replace("dists/test/InRelease", "BEGIN PGP SIGNATURE", "BEGIN PGP SIGNATURF")
	offline.Store = newStore(t)
	if _, err := OpenPinned(t.Context(), offline, x.Pins()); !is[*HashError](err) {
		t.Errorf("archive has moved on: %v", err)
	}
}

func pinText(x *Index) []string {
	var list []string
	for _, p := range x.Pins() {
		list = append(list, fmt.Sprint(p))
	}
	return list
}

func TestLocate(t *testing.T) {
	key := newKey(t, "key")
	extra := debStanza("extra", "2", "", debBody("extra", 5000))
	sources := fmt.Sprintf("Package: src\nDirectory: pool/main/s/src\nChecksums-Sha256:\n %x 3 src_1.dsc\n", sha256.Sum256([]byte("dsc")))
	a := newArchiveFor(t, archiveOptions{signers: []testKey{key}, sections: map[string]string{
		"contrib/binary-amd64/Packages.gz": extra, "main/source/Sources.gz": sources,
	}}, "one")
	a.files["pool/main/extra/extra_2_amd64.deb"] = debBody("extra", 5000)
	config := a.config(t, key)
	x, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	located := func(url string) bool { _, ok := x.Locate(url); return ok }
	ensure := func(url string) Blob {
		t.Helper()
		b, ok := x.Locate(url)
		if !ok {
			t.Fatalf("not found: %s", url)
		}
		if err := x.Ensure(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if n, err := config.Store.Stat(b.Digest); err != nil || n != b.Size {
			t.Errorf("%s: %d bytes, %v, want %d", url, n, err, b.Size)
		}
		return b
	}
	inRelease := ensure(canonical + "/dists/test/InRelease")
	if data, err := config.Store.ReadAll(inRelease.Digest, maxRelease); err != nil || !bytes.Equal(data, a.files["dists/test/InRelease"]) {
		t.Errorf("InRelease: %v", err)
	}
	plain := ensure(canonical + "/dists/test/main/binary-amd64/Packages.gz")
	byHash := ensure(canonical + "/dists/test/main/binary-amd64/by-hash/SHA256/" + plain.Digest.Hex())
	if byHash.Digest != plain.Digest {
		t.Errorf("by hash: %v", byHash)
	}
	for _, url := range []string{
		canonical + "/pool/main/one/one_1.0+x_amd64.deb",
		canonical + "/pool/main/one/one_1.0%2bx_amd64.deb",
		"HTTP://Canonical.example:80/debian/pool/main/one/one_1.0%2Bx_amd64.deb",
		"https://canonical.example/debian/pool/main/one/one_1.0+x_amd64.deb",
	} {
		if b := ensure(url); b.Canonical != canonical+"/pool/main/one/one_1.0+x_amd64.deb" {
			t.Errorf("%s: %s", url, b.Canonical)
		}
	}
	extraURL, dscURL := canonical+"/pool/main/extra/extra_2_amd64.deb", canonical+"/pool/main/s/src/src_1.dsc"
	if located(extraURL) || located(dscURL) {
		t.Error("found before its index was read")
	}
	ensure(canonical + "/dists/test/contrib/binary-amd64/Packages.gz")
	ensure(canonical + "/dists/test/main/source/Sources.gz")
	ensure(extraURL)
	if !located(dscURL) {
		t.Error("source not found")
	}
	for _, url := range []string{
		canonical + "/dists/test/Release",
		canonical + "/dists/test/Release.gpg",
		canonical + "/dists/other/InRelease",
		canonical + "/dists/test/main/binary-amd64/Packages.xz",
		canonical + "/dists/test/main/binary-i386/by-hash/SHA256/" + plain.Digest.Hex(),
		canonical + "/dists/test/../test/InRelease",
		canonical + "/pool/main/one/one_2_amd64.deb",
		canonical + "/pool/../pool/main/one/one_1.0+x_amd64.deb",
		canonical + "x/dists/test/InRelease",
		canonical, canonical + "/", "", "::", "http://other.example/debian/dists/test/InRelease",
		"http://canonical.example:8080/debian/dists/test/InRelease",
	} {
		if b, ok := x.Locate(url); ok {
			t.Errorf("found %s: %v", url, b)
		}
	}
}

func TestDiscover(t *testing.T) {
	key := newKey(t, "key")
	main := newArchiveFor(t, archiveOptions{signers: []testKey{key}}, "one")
	security := newArchiveFor(t, archiveOptions{signers: []testKey{key}}, "one")
	security.files["dists/test-security/InRelease"] = security.files["dists/test/InRelease"]
	delete(security.files, "dists/test/InRelease")
	foreign := newArchiveFor(t, archiveOptions{signers: []testKey{key}}, "one")
	foreign.files["dists/test/InRelease"] = sign(t, strings.Replace(someRelease, "Debian", "Else", 1), key)
	sources := []Source{
		{URIs: []string{"cdrom:[x]", "file:/x", foreign.url}, Suites: []string{"stable"}},
		{URIs: []string{main.url + "/"}, Suites: []string{"old"}, SignedBy: []string{"/k.gpg"}},
		{URIs: []string{security.url, main.url}, Suites: []string{"old"}},
	}
	config := main.config(t, key)
	got, err := Discover(t.Context(), config, sources, "test")
	if err != nil || got.Main != main.url || got.Security != security.url || !slices.Equal(got.SignedBy, []string{"/k.gpg"}) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := Discover(t.Context(), config, sources[:1], "test"); err == nil || !strings.Contains(err.Error(), "none of apt's sources") {
		t.Errorf("%+v, %v", got, err)
	}
}
