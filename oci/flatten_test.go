package oci

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/tree"
)

// scratch returns a maker of files that are gone when the test ends.
func scratch(t testing.TB) func() (*os.File, error) {
	dir := t.TempDir()
	return func() (*os.File, error) { return os.CreateTemp(dir, "") }
}

func contentOf(t testing.TB, n *tree.Node) string {
	t.Helper()
	r, err := n.Content.Open()
	must(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	must(t, err)
	return string(b)
}

// TestOpenLayout: layers become one tree, the plain ones without a copy.
func TestOpenLayout(t *testing.T) {
	low, high := tarOf(t, "a=low", "gone=x", "dev/null"), tarOf(t, "a=high", ".wh.gone", "b=new")
	img := newImage(t, "amd64", low, high)
	img.layers[1] = high
	layers, _ := img.mani["layers"].([]any)
	layers[1] = descriptor("application/vnd.oci.image.layer.v1.tar", high)
	manifest, blobs := img.manifest(t)
	dir := t.TempDir()
	writeLayout(t, dir, map[string]any{"schemaVersion": 2, "manifests": []any{descriptor(typeManifest, manifest)}}, append(blobs, manifest)...)
	made := 0
	count := func() (*os.File, error) {
		made++
		return os.CreateTemp(t.TempDir(), "")
	}
	flat, err := OpenLayout(t.Context(), "oci:"+dir, "amd64", count)
	must(t, err)
	got := map[string]string{}
	for n := range flat.Tree.All() {
		got[n.Path] = n.Type.String()
		if n.Type == tree.Regular {
			got[n.Path] = contentOf(t, n)
		}
	}
	if d := cmp.Diff(map[string]string{".": "d", "a": "high", "b": "new", "dev": "d", "dev/null": "c"}, got); d != "" {
		t.Errorf("tree (-want +got):\n%s", d)
	}
	if made != 1 || flat.Image.Platform != "linux/amd64" {
		t.Errorf("%d files made for one compressed layer, platform %s", made, flat.Image.Platform)
	}
	must(t, flat.Close())
	if _, err := io.ReadAll(io.NewSectionReader(flat.files[1], 0, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}

	refuse := func(what, ref, arch string, want error) {
		t.Helper()
		_, err := OpenLayout(t.Context(), ref, arch, scratch(t))
		var e *Error
		if !errors.Is(err, want) || !errors.As(err, &e) || e.Hint() == "" {
			t.Errorf("%s: %v, want %v with a hint", what, err, want)
		}
	}
	refuse("registry", "debian:12", "amd64", ErrReference)
	refuse("platform", "oci:"+dir, "arm64", ErrPlatform)
	refuse("no layout", "oci:"+t.TempDir(), "amd64", ErrNotFound)
	config := strings.TrimPrefix(blobDigest(blobs[0]), "sha256:")
	for what, name := range map[string]string{"plain layer": strings.TrimPrefix(blobDigest(high), "sha256:"), "configuration": config} {
		p := filepath.Join(dir, "blobs/sha256", name)
		whole, err := os.ReadFile(p)
		must(t, err, os.WriteFile(p, append(whole[:len(whole)-1:len(whole)-1], 'x'), 0o600))
		refuse("damaged "+what, "oci:"+dir, "amd64", ErrMismatch)
		must(t, os.WriteFile(p, whole, 0o600))
	}
	img.config["rootfs"] = map[string]any{"type": "layers", "diff_ids": []string{img.diffIDs[0], img.diffIDs[0]}}
	delete(img.mani, "config")
	manifest, blobs = img.manifest(t)
	writeLayout(t, dir, map[string]any{"schemaVersion": 2, "manifests": []any{descriptor(typeManifest, manifest)}}, append(blobs, manifest)...)
	refuse("archive of another digest", "oci:"+dir, "amd64", ErrMismatch)
}
