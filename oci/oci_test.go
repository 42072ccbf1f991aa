package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log" //nolint:depguard // what the test registry takes
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	testregistry "github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"cairn/oci/layer"
	"cairn/reproducibility/store"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// image is a test image as blobs; its fields may be changed before it is put
// somewhere.
type image struct {
	layers  [][]byte // compressed
	diffIDs []string
	config  map[string]any
	mani    map[string]any
}

func blobDigest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func tarOf(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		name, data, _ := strings.Cut(f, "=")
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(1_700_000_000, 0)}
		if strings.HasPrefix(name, "dev/") {
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 1, 3
		}
		must(t, w.WriteHeader(h))
		_, err := io.WriteString(w, data)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	must(t, err, w.Close())
	return out.Bytes()
}

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

func newImage(t testing.TB, arch string, tars ...[]byte) *image {
	t.Helper()
	img := &image{}
	var layers []any
	for _, b := range tars {
		img.diffIDs = append(img.diffIDs, blobDigest(b))
		img.layers = append(img.layers, gz(t, b))
		layers = append(layers, descriptor(typeLayer, img.layers[len(img.layers)-1]))
	}
	img.config = map[string]any{
		"architecture": arch, "os": "linux", "created": "2024-05-06T07:08:09Z",
		"config": map[string]any{"Labels": map[string]string{"who": "me"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": img.diffIDs},
	}
	img.mani = map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "layers": layers}
	return img
}

func descriptor(mediaType string, b []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": blobDigest(b), "size": len(b)}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return b
}

// manifest returns the manifest, and the blobs that it needs.
func (i *image) manifest(t testing.TB) ([]byte, [][]byte) {
	config := marshal(t, i.config)
	if i.mani["config"] == nil {
		i.mani["config"] = descriptor(typeConfig, config)
	}
	return marshal(t, i.mani), append([][]byte{config}, i.layers...)
}

// server is a registry on loopback. It counts requests, and fault may answer
// in its place.
type server struct {
	*httptest.Server
	host     string
	requests atomic.Int64
	fault    func(w http.ResponseWriter, r *http.Request) bool
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{}
	h := testregistry.New(testregistry.Logger(log.New(io.Discard, "", 0)))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		if s.fault == nil || !s.fault(w, r) {
			h.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	s.host = strings.TrimPrefix(s.URL, "http://")
	return s
}

func (s *server) send(t testing.TB, method, path, contentType string, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, bytes.NewReader(body))
	must(t, err)
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	must(t, err, resp.Body.Close())
	if resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

func (s *server) push(t testing.TB, repo, tag, mediaType string, manifest []byte, blobs [][]byte) {
	t.Helper()
	for _, b := range blobs {
		s.send(t, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+url.QueryEscape(blobDigest(b)), "application/octet-stream", b)
	}
	s.send(t, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, mediaType, manifest)
}

func (s *server) pushImage(t testing.TB, repo, tag string, i *image) []byte {
	t.Helper()
	m, blobs := i.manifest(t)
	s.push(t, repo, tag, typeManifest, m, blobs)
	return m
}

// writeLayout makes an image layout.
func writeLayout(t testing.TB, dir string, index map[string]any, blobs ...[]byte) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755),
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644),
		os.WriteFile(filepath.Join(dir, "index.json"), marshal(t, index), 0o644))
	for _, b := range blobs {
		must(t, os.WriteFile(filepath.Join(dir, "blobs/sha256", strings.TrimPrefix(blobDigest(b), "sha256:")), b, 0o644))
	}
}

func newStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.TempDir())
	must(t, err)
	return s
}

func options(s *store.Store) Options {
	return Options{
		Arch: "amd64", Store: s, RetryDelay: time.Millisecond, Stall: 5 * time.Minute,
		Insecure: func(host string) bool { return strings.HasPrefix(host, "127.0.0.1:") },
	}
}

// files lists a directory: names and contents.
func files(t testing.TB, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(root, p)
		all[rel] = string(b)
		return err
	}))
	return all
}

func sample(t testing.TB) *image {
	return newImage(t, "amd64", tarOf(t, "a=low", "b=low", "dev/null"), tarOf(t, "a=up", ".wh.b", "c=new"))
}

func TestPullAndUnpack(t *testing.T) {
	srv, img := newServer(t), sample(t)
	m := srv.pushImage(t, "some/base", "v1", img)
	dir := t.TempDir()
	manifest, blobs := img.manifest(t)
	d := descriptor(typeManifest, manifest)
	d["annotations"] = map[string]string{refName: "v1"}
	writeLayout(t, dir, map[string]any{"schemaVersion": 2, "manifests": []any{d}}, append(blobs, manifest)...)
	for _, ref := range []string{srv.host + "/some/base:v1", srv.host + "/some/base@" + blobDigest(m), "oci:" + dir, "oci:" + dir + ":v1", "oci:" + dir + "@" + blobDigest(m)} {
		t.Run(ref[:9], func(t *testing.T) {
			s := newStore(t)
			o := options(s)
			var done, total int64
			o.Progress = func(d, t int64) { done, total = d, t }
			got, err := Pull(t.Context(), ref, o)
			must(t, err)
			size := int64(len(img.layers[0]) + len(img.layers[1]))
			want := &Image{
				Reference: ref, ResolvedDigest: store.Of(m), ManifestDigest: store.Of(m), ConfigDigest: store.Of(blobs[0]), Platform: "linux/amd64",
				Created: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC), Labels: map[string]string{"who": "me"},
				Layers: []Layer{
					{store.Of(img.layers[0]), store.Digest(img.diffIDs[0]), typeLayer, int64(len(img.layers[0]))},
					{store.Of(img.layers[1]), store.Digest(img.diffIDs[1]), typeLayer, int64(len(img.layers[1]))},
				},
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("image (-want +got):\n%s", d)
			}
			if done != size || total != size {
				t.Errorf("progress ended at %d of %d, want %d", done, total, size)
			}
			root := t.TempDir()
			ledger, err := Unpack(t.Context(), s, got, root, layer.Options{})
			must(t, err)
			if d := cmp.Diff(map[string]string{"a": "up", "c": "new"}, files(t, root)); d != "" {
				t.Errorf("tree (-want +got):\n%s", d)
			}
			if len(ledger) != 1 || ledger[0].Path != "dev/null" {
				t.Errorf("ledger = %v, want dev/null", ledger)
			}
		})
	}
}

// TestPinnedNeedsNoNetwork pulls by tag, then by digest with the registry gone.
func TestPinnedNeedsNoNetwork(t *testing.T) {
	srv, s := newServer(t), newStore(t)
	m, blobs := sample(t).manifest(t)
	index := marshal(t, map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []any{platformDescriptor(m, "linux", "amd64", "")}})
	srv.push(t, "base", blobDigest(m), typeManifest, m, blobs)
	srv.push(t, "base", "v1", typeIndex, index, nil)
	first, err := Pull(t.Context(), srv.host+"/base:v1", options(s))
	must(t, err)
	pinned, err := first.Pinned()
	must(t, err)
	if want := srv.host + "/base@" + blobDigest(index); pinned != want {
		t.Errorf("Pinned = %q, want %q", pinned, want)
	}
	srv.Close()
	n := srv.requests.Load()
	second, err := Pull(t.Context(), pinned, options(s))
	must(t, err)
	second.Reference = first.Reference
	if d := cmp.Diff(first, second); d != "" {
		t.Errorf("image (-first +second):\n%s", d)
	}
	if got := srv.requests.Load(); got != n {
		t.Errorf("%d requests were made", got-n)
	}
}

// TestSecondTagFetchesNothingTwice: only the manifest of the new tag is new.
func TestSecondPullFetchesOnlyTheTag(t *testing.T) {
	srv, s := newServer(t), newStore(t)
	srv.pushImage(t, "base", "v1", sample(t))
	_, err := Pull(t.Context(), srv.host+"/base:v1", options(s))
	must(t, err)
	var paths []string
	srv.fault = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.TLS == nil && r.URL.Path != "/v2/" {
			paths = append(paths, r.URL.Path)
		}
		return false
	}
	_, err = Pull(t.Context(), srv.host+"/base:v1", options(s))
	must(t, err)
	if d := cmp.Diff([]string{"/v2/base/manifests/v1"}, paths); d != "" {
		t.Errorf("requests (-want +got):\n%s", d)
	}
}

func platformDescriptor(manifest []byte, os, arch, variant string) map[string]any {
	d := descriptor(typeManifest, manifest)
	p := map[string]string{"os": os, "architecture": arch}
	if variant != "" {
		p["variant"] = variant
	}
	d["platform"] = p
	return d
}

func TestPlatforms(t *testing.T) {
	srv := newServer(t)
	var entries []any
	digests := map[string]store.Digest{}
	for _, p := range [][2]string{{"amd64", ""}, {"arm", "v5"}, {"arm", "v7"}, {"arm64", "v8"}, {"386", ""}} {
		img := newImage(t, p[0], tarOf(t, "a="+p[0]+p[1]))
		m, blobs := img.manifest(t)
		srv.push(t, "base", blobDigest(m), typeManifest, m, blobs)
		entries = append(entries, platformDescriptor(m, "linux", p[0], p[1]))
		digests[p[0]+p[1]] = store.Of(m)
	}
	attestation := descriptor(typeManifest, []byte("{}"))
	srv.push(t, "base", blobDigest([]byte("{}")), typeManifest, []byte("{}"), nil)
	attestation["platform"] = map[string]string{"os": "unknown", "architecture": "unknown"}
	index := marshal(t, map[string]any{"schemaVersion": 2, "manifests": append(entries, attestation)})
	srv.push(t, "base", "all", typeIndex, index, nil)
	for arch, want := range map[string]string{
		"amd64": "amd64", "amd64/v1": "amd64", "armhf": "armv7", "armel": "armv5", "arm/v7": "armv7", "arm64": "arm64v8", "arm64/v8": "arm64v8", "i386": "386",
	} {
		t.Run(arch, func(t *testing.T) {
			o := options(newStore(t))
			o.Arch = arch
			img, err := Pull(t.Context(), srv.host+"/base:all", o)
			must(t, err)
			if img.ManifestDigest != digests[want] || img.ResolvedDigest != store.Of(index) {
				t.Errorf("manifest %s, want that of %s", img.ManifestDigest, want)
			}
		})
	}
	o := options(newStore(t))
	o.Arch = "riscv64"
	_, err := Pull(t.Context(), srv.host+"/base:all", o)
	var platform *PlatformError
	if !errors.Is(err, ErrPlatform) || !errors.As(err, &platform) {
		t.Fatalf("Pull = %v, want ErrPlatform", err)
	}
	if d := cmp.Diff([]string{"linux/amd64", "linux/arm/v5", "linux/arm/v7", "linux/arm64", "linux/386"}, platform.Offered); d != "" {
		t.Errorf("offered (-want +got):\n%s", d)
	}
}

// TestRefusedImages are images that are wrong in one thing.
func TestRefusedImages(t *testing.T) {
	tests := map[string]struct {
		change func(i *image)
		want   error
	}{
		"other architecture":     {func(i *image) { i.config["architecture"] = "arm64" }, ErrPlatform},
		"one diff id too few":    {func(i *image) { i.config["rootfs"] = map[string]any{"type": "layers", "diff_ids": i.diffIDs[:1]} }, ErrUnsupported},
		"malformed diff id":      {func(i *image) { i.config["rootfs"] = map[string]any{"type": "layers", "diff_ids": []string{"a", "b"}} }, ErrUnsupported},
		"foreign layer":          {func(i *image) { layerOf(i, 0)["urls"] = []string{"http://example.com/x"} }, ErrUnsupported},
		"unknown layer type":     {func(i *image) { layerOf(i, 0)["mediaType"] = "application/x-qcow2" }, ErrUnsupported},
		"no container image":     {func(i *image) { i.mani["config"] = descriptor("application/vnd.oci.empty.v1+json", []byte("{}")) }, ErrUnsupported},
		"sha512":                 {func(i *image) { layerOf(i, 0)["digest"] = "sha512:" + strings.Repeat("a", 128) }, ErrUnsupported},
		"path as digest":         {func(i *image) { layerOf(i, 0)["digest"] = "sha256:../../../etc/passwd" }, ErrUnsupported},
		"negative size":          {func(i *image) { layerOf(i, 0)["size"] = -1 }, ErrUnsupported},
		"layer longer than said": {func(i *image) { layerOf(i, 0)["size"] = len(i.layers[0]) - 1 }, ErrMismatch},
		"layer shorter":          {func(i *image) { layerOf(i, 0)["size"] = len(i.layers[0]) + 1 }, ErrUnreachable},
		"layer missing":          {func(i *image) { layerOf(i, 0)["digest"] = blobDigest([]byte("other")) }, ErrNotFound},
		"index and image":        {func(i *image) { i.mani["manifests"] = []any{} }, ErrUnsupported},
		"both, without a type":   {func(i *image) { i.mani["manifests"] = []any{}; delete(i.mani, "mediaType") }, ErrUnsupported},
		"no layers but diff ids": {func(i *image) { i.mani["layers"] = []any{} }, ErrUnsupported},
		"schema 1":               {func(i *image) { i.mani["schemaVersion"] = 1 }, ErrUnsupported},
		"fsLayers too":           {func(i *image) { i.mani["fsLayers"] = []any{map[string]string{}} }, ErrUnsupported},
		"other media type":       {func(i *image) { i.mani["mediaType"] = typeIndex }, ErrUnsupported},
		"config too big": {func(i *image) {
			i.mani["config"] = map[string]any{"mediaType": typeConfig, "digest": blobDigest(nil), "size": 1 << 40}
		}, ErrUnsupported},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			srv, img := newServer(t), sample(t)
			tt.change(img)
			m, blobs := img.manifest(t)
			for _, b := range blobs {
				srv.send(t, http.MethodPost, "/v2/base/blobs/uploads/?digest="+url.QueryEscape(blobDigest(b)), "application/octet-stream", b)
			}
			srv.fault = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "/manifests/") {
					w.Write(m) //nolint:errcheck // a test
					return true
				}
				return false
			}
			checkKind(t, srv.host+"/base:v1", options(newStore(t)), tt.want)
		})
	}
}

func layerOf(i *image, n int) map[string]any {
	return i.mani["layers"].([]any)[n].(map[string]any) //nolint:forcetypeassert,errcheck // a test
}

func checkKind(t *testing.T, ref string, o Options, want error) {
	t.Helper()
	img, err := Pull(t.Context(), ref, o)
	var e *Error
	if !errors.Is(err, want) || !errors.As(err, &e) {
		t.Fatalf("Pull = %v, %v; want kind %q", img, err, want)
	}
	if e.Hint() == "" || !strings.Contains(e.Error(), e.Reference) {
		t.Errorf("error %q with hint %q", e, e.Hint())
	}
}

// TestFaults are registries that misbehave, once or for good.
func TestFaults(t *testing.T) {
	big := newImage(t, "amd64", tarOf(t, "big="+random(400_000)))
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	stall := func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(200)
		w.(http.Flusher).Flush() //nolint:forcetypeassert,errcheck // the test server's
		<-r.Context().Done()
		return true
	}
	cut := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "100000")
		w.Write(big.layers[0][:100]) //nolint:errcheck // a test
		panic(http.ErrAbortHandler)
	}
	tests := map[string]struct {
		path  string // of requests at fault
		times int    // then the registry works
		fault func(http.ResponseWriter, *http.Request) bool
		want  error
	}{
		"unauthorized":     {"/", 1e6, status(401), ErrUnauthorized},
		"forbidden blob":   {"/blobs/", 1e6, status(403), ErrUnauthorized},
		"unknown tag":      {"/manifests/", 1e6, status(404), ErrNotFound},
		"always busy":      {"/manifests/", 1e6, status(503), ErrUnreachable},
		"busy twice":       {"/manifests/", 2, status(503), nil},
		"rate limit twice": {"/blobs/", 2, status(429), nil},
		"cut twice":        {"/blobs/", 2, func(w http.ResponseWriter, _ *http.Request) bool { cut(w); return true }, nil},
		"always cut":       {"/blobs/", 1e6, func(w http.ResponseWriter, _ *http.Request) bool { cut(w); return true }, ErrUnreachable},
		"wrong blob":       {"/blobs/", 1e6, func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "x"); return true }, ErrMismatch},
		"wrong tag digest": {"/manifests/", 1e6, func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Docker-Content-Digest", blobDigest(nil))
			fmt.Fprint(w, "{}")
			return true
		}, ErrMismatch},
		"endless manifest": {"/manifests/", 1e6, func(w http.ResponseWriter, _ *http.Request) bool {
			fmt.Fprint(w, strings.Repeat("\x00", 8<<20))
			return true
		}, ErrUnsupported},
		"no json": {"/manifests/", 1e6, func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "<html>"); return true }, ErrUnsupported},
		"redirect elsewhere": {"/blobs/", 1e6, func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://example.invalid/x", http.StatusFound)
			return true
		}, ErrInsecure},
		"token by http": {"/v2/", 1e6, func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://example.invalid/token"`)
			w.WriteHeader(401)
			return true
		}, ErrInsecure},
		"stalls":            {"/blobs/", 1e6, stall, ErrUnreachable},
		"stalls in a layer": {blobDigest(big.layers[0]), 1e6, stall, ErrUnreachable},
		"stalls once":       {"/manifests/", 1, func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			srv, s := newServer(t), newStore(t)
			srv.pushImage(t, "base", "v1", big)
			var n atomic.Int64
			srv.fault = func(w http.ResponseWriter, r *http.Request) bool {
				return strings.Contains(r.URL.Path, tt.path) && n.Add(1) <= int64(tt.times) && tt.fault(w, r)
			}
			o := options(s)
			if strings.HasPrefix(name, "stalls") {
				o.Stall = time.Second
			}
			if tt.want != nil {
				checkKind(t, srv.host+"/base:v1", o, tt.want)
				n.Store(1e9) // the registry works again, and the store is as good as new
			}
			_, err := Pull(t.Context(), srv.host+"/base:v1", o)
			must(t, err)
		})
	}
}

// random returns bytes that do not compress, the same ones every time.
func random(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		sum := sha256.Sum256(fmt.Append(nil, i))
		b.Write(sum[:])
	}
	return b.String()
}

// TestResume cuts a transfer in the middle and checks what is asked for next.
func TestResume(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprint("ranges ", ranges), func(t *testing.T) {
			srv, s := newServer(t), newStore(t)
			img := newImage(t, "amd64", tarOf(t, "big="+random(2_000_000)))
			srv.pushImage(t, "base", "v1", img)
			blob := img.layers[0]
			var asked []string
			srv.fault = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, blobDigest(blob)) {
					return false
				}
				asked = append(asked, r.Header.Get("Range"))
				if len(asked) == 1 {
					w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
					w.Write(blob[:1_000_000]) //nolint:errcheck // a test
					panic(http.ErrAbortHandler)
				}
				if !ranges {
					r.Header.Del("Range")
				}
				return false
			}
			_, err := Pull(t.Context(), srv.host+"/base:v1", options(s))
			must(t, err)
			if len(asked) != 2 || asked[0] != "" || !strings.HasPrefix(asked[1], "bytes=") || asked[1] == fmt.Sprintf("bytes=0-%d", len(blob)-1) {
				t.Errorf("ranges asked for: %q", asked)
			}
		})
	}
}

// TestPoisonedPartial: what an earlier run left is of another blob.
func TestPoisonedPartial(t *testing.T) {
	srv, s, img := newServer(t), newStore(t), sample(t)
	srv.pushImage(t, "base", "v1", img)
	for _, n := range []int{3, len(img.layers[0]), len(img.layers[0]) + 10} {
		f, err := s.Partial("oci blob " + blobDigest(img.layers[0]))
		must(t, err)
		_, err = f.Write(bytes.Repeat([]byte("x"), n))
		must(t, err, f.Close())
		_, err = Pull(t.Context(), srv.host+"/base:v1", options(s))
		must(t, err, s.Remove(store.BlobEntry, blobDigest(img.layers[0])))
	}
}

func TestUnreachable(t *testing.T) {
	srv := newServer(t)
	srv.Close()
	checkKind(t, srv.host+"/base:v1", options(newStore(t)), ErrUnreachable)
	o := options(newStore(t))
	o.Insecure = nil
	checkKind(t, srv.host+"/base:v1", o, ErrUnreachable)
	checkKind(t, "oci:"+t.TempDir(), o, ErrNotFound)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Pull(ctx, srv.host+"/base:v1", o); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestPlainHTTPMustBeAllowed(t *testing.T) {
	srv := newServer(t)
	srv.pushImage(t, "base", "v1", sample(t))
	o := options(newStore(t))
	o.Insecure = nil
	checkKind(t, srv.host+"/base:v1", o, ErrInsecure)
}

func TestTLSAndCredentials(t *testing.T) {
	inner := newServer(t)
	inner.pushImage(t, "base", "v1", sample(t))
	u, err := url.Parse(inner.URL)
	must(t, err)
	tls := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); user != "me" || pass != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		resp, err := http.Get(u.JoinPath(r.URL.Path).String())
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body) //nolint:errcheck // a test
	}))
	defer tls.Close()
	host := strings.TrimPrefix(tls.URL, "https://")
	o := Options{Arch: "amd64", Store: newStore(t), RetryDelay: time.Millisecond}
	checkKind(t, host+"/base:v1", o, ErrUnreachable) // unknown authority
	o.Transport = tls.Client().Transport
	checkKind(t, host+"/base:v1", o, ErrUnauthorized)
	o.Credentials = map[string]Credential{host: {Username: "me", Password: "secret"}}
	_, err = Pull(t.Context(), host+"/base:v1", o)
	must(t, err)
}

func TestUnpackFindsDamage(t *testing.T) {
	pull := func(t *testing.T, change func(*image)) (*store.Store, *Image) {
		srv, s, img := newServer(t), newStore(t), sample(t)
		if change != nil {
			change(img)
		}
		srv.pushImage(t, "base", "v1", img)
		got, err := Pull(t.Context(), srv.host+"/base:v1", options(s))
		must(t, err)
		return s, got
	}
	t.Run("diff id", func(t *testing.T) {
		s, img := pull(t, func(i *image) {
			i.config["rootfs"] = map[string]any{"type": "layers", "diff_ids": []string{i.diffIDs[1], i.diffIDs[0]}}
		})
		var mismatch *store.MismatchError
		if _, err := Unpack(t.Context(), s, img, t.TempDir(), layer.Options{}); !errors.As(err, &mismatch) {
			t.Errorf("Unpack = %v, want a MismatchError", err)
		}
	})
	t.Run("damaged store", func(t *testing.T) {
		s, img := pull(t, nil)
		p := s.Path(img.Layers[1].Digest)
		b, err := os.ReadFile(p)
		must(t, err)
		b[9] ^= 1 // the OS byte of gzip's header: the archive stays the same
		must(t, os.Chmod(p, 0o600), os.WriteFile(p, b, 0o400))
		var damaged *store.CorruptError
		if _, err := Unpack(t.Context(), s, img, t.TempDir(), layer.Options{}); !errors.As(err, &damaged) {
			t.Errorf("Unpack = %v, want a CorruptError", err)
		}
	})
	t.Run("hostile layer", func(t *testing.T) {
		bad := newImage(t, "amd64", tarOf(t, "../x=1"))
		srv, s := newServer(t), newStore(t)
		srv.pushImage(t, "base", "v1", bad)
		img, err := Pull(t.Context(), srv.host+"/base:v1", options(s))
		must(t, err)
		if _, err := Unpack(t.Context(), s, img, t.TempDir(), layer.Options{}); !errors.Is(err, layer.ErrUnsafe) {
			t.Errorf("Unpack = %v, want ErrUnsafe", err)
		}
	})
	t.Run("bomb after the archive", func(t *testing.T) {
		srv, s := newServer(t), newStore(t)
		srv.pushImage(t, "base", "v1", newImage(t, "amd64", append(tarOf(t, "a=1"), make([]byte, 80<<20)...)))
		img, err := Pull(t.Context(), srv.host+"/base:v1", options(s))
		must(t, err)
		if _, err := Unpack(t.Context(), s, img, t.TempDir(), layer.Options{}); !errors.Is(err, layer.ErrLimit) {
			t.Errorf("Unpack = %v, want ErrLimit", err)
		}
	})
}

func TestParseReference(t *testing.T) {
	d := "sha256:" + strings.Repeat("ab", 32)
	for in, want := range map[string]string{
		"debian":                        "index.docker.io/library/debian:latest",
		"debian:bookworm":               "index.docker.io/library/debian:bookworm",
		"example.org/a/b:c":             "example.org/a/b:c",
		"example.org:5000/a":            "example.org:5000/a:latest",
		"example.org/a:c@" + d:          "example.org/a@" + d,
		"example.org/a@" + d:            "example.org/a@" + d,
		"oci:dir":                       "oci:dir",
		"oci:/a/b:tag":                  "oci:/a/b:tag",
		"oci:/a:b/c":                    "oci:/a:b/c",
		"oci:/a@b":                      "oci:/a@b",
		"oci:/a:t@" + d:                 "oci:/a:t@" + d,
		"":                              "",
		"oci:":                          "",
		"oci::tag":                      "",
		"UPPER":                         "",
		"a b":                           "",
		"example.org/a@sha256:abc":      "",
		"example.org/a@sha512:" + d[7:]: "",
		"example.org/../a":              "",
		"https://example.org/a":         "",
	} {
		r, err := ParseReference(in)
		if want == "" {
			if !errors.Is(err, ErrReference) {
				t.Errorf("ParseReference(%q) = %v, %v; want ErrReference", in, r, err)
			}
			continue
		}
		if err != nil || r.String() != want {
			t.Errorf("ParseReference(%q) = %v, %v; want %s", in, r, err, want)
			continue
		}
		if again, err := ParseReference(r.String()); err != nil || again.String() != want {
			t.Errorf("ParseReference(%q) = %v, %v", r, again, err)
		}
	}
}

func TestLayoutTags(t *testing.T) {
	dir := t.TempDir()
	var entries []any
	var all [][]byte
	for _, tag := range []string{"one", "two"} {
		m, blobs := newImage(t, "amd64", tarOf(t, "tag="+tag)).manifest(t)
		d := descriptor(typeManifest, m)
		d["annotations"] = map[string]string{refName: tag}
		entries = append(entries, d)
		all = append(append(all, blobs...), m)
	}
	writeLayout(t, dir, map[string]any{"schemaVersion": 2, "manifests": entries}, all...)
	_, err := Pull(t.Context(), "oci:"+dir+":two", options(newStore(t)))
	must(t, err)
	for _, ref := range []string{"oci:" + dir, "oci:" + dir + ":three"} {
		checkKind(t, ref, options(newStore(t)), ErrNotFound)
	}
	for _, b := range all { // every blob replaced by other bytes, and by a fifo
		p := filepath.Join(dir, "blobs/sha256", strings.TrimPrefix(blobDigest(b), "sha256:"))
		must(t, os.WriteFile(p, append([]byte("x"), b[1:]...), 0o644))
	}
	checkKind(t, "oci:"+dir+":two", options(newStore(t)), ErrMismatch)
	must(t, os.Remove(filepath.Join(dir, "index.json")), unix.Mkfifo(filepath.Join(dir, "index.json"), 0o644))
	checkKind(t, "oci:"+dir+":two", options(newStore(t)), ErrUnsupported)
}
