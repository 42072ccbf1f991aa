package oci

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cairn/fsbuild/tree"
	"cairn/fsbuild/tree/dir"
	"cairn/oci/layer"
)

// run runs a tool, which package pkg has.
func run(t testing.TB, pkg, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("install %s: %v", pkg, err)
	}
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// text is a directory as package tree writes it, devices included.
func text(t testing.TB, root string, devices layer.Ledger) string {
	t.Helper()
	tr, err := dir.Read(t.Context(), root, dir.Options{Devices: devices})
	must(t, err)
	return textOf(t, tr)
}

func textOf(t testing.TB, tr *tree.Tree) string {
	t.Helper()
	for n := range tr.All() {
		n.MTime.Nsec = 0 // umoci keeps seconds
		if n.Type == tree.Symlink {
			n.Mode = 0o777
		}
	}
	var b strings.Builder
	must(t, tr.WriteText(&b))
	return b.String()
}

// umociImage makes an image layout of three layers with umoci alone.
func umociImage(t testing.TB) (layout string) {
	t.Helper()
	layout = filepath.Join(t.TempDir(), "layout")
	image := layout + ":v1"
	run(t, "umoci", "umoci", "init", "--layout", layout)
	run(t, "umoci", "umoci", "new", "--image", image)
	when := time.Unix(1_650_000_000, 0)
	stamp := func(root string) {
		must(t, filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			ts := unix.NsecToTimespec(when.UnixNano())
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
		}))
		when = when.Add(time.Hour)
	}
	for i, change := range []func(at func(string) string){
		func(at func(string) string) {
			must(t, os.MkdirAll(at("usr/lib/x"), 0o755), os.MkdirAll(at("opt/old/deep"), 0o755), os.MkdirAll(at("dev"), 0o755),
				os.WriteFile(at("usr/lib/x/a"), []byte("a"), 0o644), os.WriteFile(at("opt/old/deep/f"), []byte("f"), 0o600),
				os.WriteFile(at("usr/su"), []byte("su"), 0o755), os.Link(at("usr/su"), at("usr/su2")),
				os.Symlink("usr/lib", at("lib")), os.Chown(at("usr/su"), 5, 6), unix.Chmod(at("usr/su"), 0o6755),
				unix.Setxattr(at("usr/su"), "user.test", []byte("1"), 0),
				unix.Setxattr(at("usr/lib/x/a"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20"+strings.Repeat("\x00", 14)), 0),
				unix.Mkfifo(at("dev/fifo"), 0o622), unix.Mknod(at("dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
				os.Mkdir(at("closed"), 0o000), os.Chown(at("closed"), 77, 78), os.WriteFile(at(strings.Repeat("n", 180)), nil, 0o644))
		},
		func(at func(string) string) {
			must(t, os.RemoveAll(at("opt/old")), os.Remove(at("usr/su2")), os.WriteFile(at("opt/old"), []byte("now a file"), 0o644),
				os.WriteFile(at("usr/lib/x/a"), []byte("changed"), 0o644), os.Remove(at("dev/null")))
		},
		func(at func(string) string) {
			must(t, os.Remove(at("opt/old")), os.MkdirAll(at("opt/old/again"), 0o711), os.Remove(at("lib")), os.Mkdir(at("lib"), 0o755),
				os.WriteFile(at("lib/b"), []byte("b"), 0o644), unix.Mknod(at("dev/zero"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
		},
	} {
		bundle := filepath.Join(t.TempDir(), "bundle")
		run(t, "umoci", "umoci", "unpack", "--image", image, bundle)
		root := filepath.Join(bundle, "rootfs")
		change(func(name string) string { return filepath.Join(root, name) })
		if i == 0 {
			stamp(root)
		}
		run(t, "umoci", "umoci", "repack", "--image", image, bundle)
	}
	return layout
}

// TestAgreesWithUmoci makes an image with umoci, brings it to a registry with
// skopeo, and compares our tree with the one that umoci unpacks.
func TestAgreesWithUmoci(t *testing.T) {
	layout := umociImage(t)
	bundle := filepath.Join(t.TempDir(), "bundle")
	run(t, "umoci", "umoci", "unpack", "--image", layout+":v1", bundle)
	want := text(t, filepath.Join(bundle, "rootfs"), nil)
	flat, err := OpenLayout(t.Context(), "oci:"+layout+":v1", "amd64", scratch(t))
	must(t, err)
	if d := cmp.Diff(want, textOf(t, flat.Tree)); d != "" {
		t.Errorf("tree in place (-umoci +cairn):\n%s", d)
	}
	must(t, flat.Close())
	srv, zstd := newServer(t), newServer(t) // two, since skopeo takes blobs that a registry has
	for tag, args := range map[string][]string{"oci": nil, "docker": {"--format=v2s2"}, "zstd": {"--dest-compress-format=zstd", "--dest-compress"}} {
		args = append([]string{"copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"}, args...)
		host := srv.host
		if tag == "zstd" {
			host = zstd.host
		}
		run(t, "skopeo", "skopeo", append(args, "oci:"+layout+":v1", "docker://"+host+"/base:"+tag)...)
	}
	const vnd = "application/vnd."
	for ref, mediaType := range map[string]string{
		"oci:" + layout + ":v1": vnd + "oci.image.layer.v1.tar+gzip", srv.host + "/base:oci": vnd + "oci.image.layer.v1.tar+gzip",
		srv.host + "/base:docker": vnd + "docker.image.rootfs.diff.tar.gzip", zstd.host + "/base:zstd": vnd + "oci.image.layer.v1.tar+zstd",
	} {
		t.Run(ref[strings.LastIndex(ref, ":")+1:], func(t *testing.T) {
			s := newStore(t)
			img, err := Pull(t.Context(), ref, options(s))
			must(t, err)
			if len(img.Layers) != 3 || img.Layers[0].MediaType != mediaType {
				t.Errorf("layers %v, want 3 of type %s", img.Layers, mediaType)
			}
			root := filepath.Join(t.TempDir(), "root")
			must(t, os.Mkdir(root, 0o755))
			ledger, err := Unpack(t.Context(), s, img, root, layer.Options{})
			must(t, err)
			if d := cmp.Diff(want, text(t, root, ledger)); d != "" {
				t.Errorf("tree (-umoci +cairn):\n%s", d)
			}
		})
	}
}
