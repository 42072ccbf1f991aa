package bootstrap

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/oci/layer"
	"cairn/reproducibility/store"
)

const alphaControl = "Package: alpha\nVersion: 1:2-3\nArchitecture: amd64\nMulti-Arch: same\nMaintainer: A <a@example.org>\nDescription: test\n more\n"

func TestReadDeb(t *testing.T) {
	good := makeDeb(t, alphaControl, []tarEntry{{name: "./postinst", body: "#!/bin/sh\n", mode: 0o755}}, []tarEntry{{name: "./usr/"}})
	members := func(list ...[]byte) []byte { return append([]byte(arMagic), bytes.Join(list, nil)...) }
	version := arEntry("debian-binary", []byte("2.0\n"))
	control := arEntry("control.tar.gz", gzipped(t, makeTar(t, []tarEntry{{name: "./control", body: alphaControl}})))
	data := arEntry("data.tar", makeTar(t, nil))
	for name, test := range map[string]struct {
		data []byte
		want string // part of the error
	}{
		"good":             {good, ""},
		"extra member":     {members(version, arEntry("_x", []byte("1")), control, data), ""},
		"after data":       {append(members(version, control, data), "anything"...), ""},
		"slash after name": {members(arEntry("debian-binary/", []byte("2.1\n")), control, data), ""},
		"empty":            {nil, "no ar archive"},
		"magic only":       {[]byte(arMagic), "no debian-binary"},
		"wrong first":      {members(control, version, data), "no debian-binary"},
		"old format":       {members(arEntry("debian-binary", []byte("0.9\n")), control, data), "unknown version"},
		"no data":          {members(version, control), "1 archives"},
		"two controls":     {members(version, control, control, data), "3 archives"},
		"swapped":          {members(version, data), "1 archives"},
		"lzma":             {members(version, control, arEntry("data.tar.lzma", nil)), "is wanted"},
		"truncated":        {good[:len(good)-100], "truncated"},
		"cut header":       {good[:len(arMagic)+30], "read ar header"},
		"bad header":       {bytes.Replace(good, []byte("`\n"), []byte("'\n"), 1), "bad magic"},
		"negative size":    {bytes.Replace(good, []byte("4         `"), []byte("-4        `"), 1), "bad size"},
		"path as name":     {members(arEntry("../x", nil)), "bad member name"},
	} {
		_, _, err := readDeb(bytes.NewReader(test.data), int64(len(test.data)))
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// TestReadDebOfDpkg reads what dpkg-deb writes, in every compression.
func TestReadDebOfDpkg(t *testing.T) {
	tool(t, "dpkg-deb", "dpkg")
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "p/DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "p/DEBIAN/control"), []byte(alphaControl), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"xz", "gzip", "zstd", "none"} {
		file := filepath.Join(dir, format+".deb")
		if out, err := exec.Command("dpkg-deb", "-Z"+format, "--uniform-compression", "-b", filepath.Join(dir, "p"), file).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		p := &packageFile{deb: Deb{Path: file}}
		if err := p.open(); err != nil || p.control.infoName() != "alpha:amd64" || p.control.version != "1:2-3" {
			t.Errorf("%s: %+v, %v", format, p.control, err)
		}
		closeDebs([]*packageFile{p})
	}
}

func TestReadControl(t *testing.T) {
	entry := func(name, body string) tarEntry { return tarEntry{name: name, body: body} }
	good := entry("./control", alphaControl)
	for name, test := range map[string]struct {
		entries []tarEntry
		fails   bool
	}{
		"good":           {[]tarEntry{{name: "./"}, good, entry("preinst", "x")}, false},
		"none":           {[]tarEntry{entry("./preinst", "x")}, true},
		"twice":          {[]tarEntry{good, good}, true},
		"below":          {[]tarEntry{good, entry("./a/b", "x")}, true},
		"above":          {[]tarEntry{good, entry("../x", "x")}, true},
		"hidden":         {[]tarEntry{good, entry("./.x", "x")}, true},
		"list":           {[]tarEntry{good, entry("./list", "x")}, true},
		"link":           {[]tarEntry{good, {name: "./postinst", kind: tar.TypeSymlink, link: "/etc/passwd"}}, true},
		"status":         {[]tarEntry{entry("control", alphaControl+"Status: install ok installed\n")}, true},
		"two paragraphs": {[]tarEntry{entry("control", alphaControl+"\n"+alphaControl)}, true},
		"bad name":       {[]tarEntry{entry("control", strings.Replace(alphaControl, "alpha", "../alpha", 1))}, true},
		"bad arch":       {[]tarEntry{entry("control", strings.Replace(alphaControl, "amd64", "a/b", 1))}, true},
		"no version":     {[]tarEntry{entry("control", strings.Replace(alphaControl, "Version", "Vers", 1))}, true},
	} {
		c, err := readControl(bytes.NewReader(makeTar(t, test.entries)))
		if (err != nil) != test.fails {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

// writeDebs makes package files for Unpack.
func writeDebs(t *testing.T, debs ...[]byte) []Deb {
	t.Helper()
	var list []Deb
	for _, data := range debs {
		f, err := os.CreateTemp(t.TempDir(), "*.deb")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		list = append(list, Deb{Path: f.Name(), Digest: store.Of(data), Base: true})
	}
	return list
}

func TestUnpackDatabase(t *testing.T) {
	tool(t, "dpkg-query", "dpkg")
	base := makeDeb(t, "Package: base-files\nVersion: 1\nArchitecture: amd64\nMaintainer: M <m@example.org>\nDescription: d\n", nil,
		[]tarEntry{{name: "./bin", kind: tar.TypeSymlink, link: "usr/bin"}, {name: "./usr/"}, {name: "./usr/bin/"}})
	alpha := makeDeb(t, alphaControl, []tarEntry{
		{name: "./conffiles", body: "/etc/alpha.conf\nremove-on-upgrade /etc/old\n"},
		{name: "./preinst", body: "#!/bin/sh\n", mode: 0o755},
		{name: "./triggers", body: "# x\ninterest-noawait /usr/share/alpha\ninterest named\nactivate other\n"},
	}, []tarEntry{
		{name: "./etc/"},
		{name: "./etc/alpha.conf", body: "conf\n", mode: 0o640},
		{name: "./bin/"},
		{name: "./bin/alpha", body: "alpha", mode: 0o4755},
	})
	rest := makeDeb(t, strings.NewReplacer("alpha", "rest", "Multi-Arch: same\n", "").Replace(alphaControl), nil, nil)
	debs := writeDebs(t, base, alpha, rest)
	debs[2].Base, debs[2].Auto, debs[2].Inside = false, true, "/debs/rest"
	root := t.TempDir()
	u, err := Unpack(t.Context(), root, debs, UnpackOptions{Arch: "amd64", IDShift: -1})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"usr/bin/alpha":                          "alpha",
		"etc/alpha.conf":                         "conf\n",
		"etc/alpha.conf.dpkg-new":                "conf\n",
		"var/lib/dpkg/info/alpha:amd64.list":     "/.\n/etc\n/etc/alpha.conf\n/bin\n/bin/alpha\n",
		"var/lib/dpkg/info/format":               "1\n",
		"var/lib/dpkg/triggers/File":             "/usr/share/alpha alpha:amd64/noawait\n",
		"var/lib/dpkg/triggers/named":            "alpha:amd64\n",
		"var/lib/apt/extended_states":            "Package: rest\nArchitecture: amd64\nAuto-Installed: 1\n\n",
		"var/lib/dpkg/info/alpha:amd64.preinst":  "#!/bin/sh\n",
		"var/lib/dpkg/info/alpha:amd64.triggers": "# x\ninterest-noawait /usr/share/alpha\ninterest named\nactivate other\n",
	} {
		got, readErr := os.ReadFile(filepath.Join(root, file))
		if readErr != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", file, got, readErr, want)
		}
	}
	if link, linkErr := os.Readlink(filepath.Join(root, "bin")); link != "usr/bin" {
		t.Errorf("bin: %q, %v", link, linkErr)
	}
	if _, err = os.Lstat(filepath.Join(root, "libx32")); err == nil {
		t.Error("libx32 is there though base-files has its own links")
	}
	if info, statErr := os.Stat(filepath.Join(root, "etc/alpha.conf.dpkg-new")); statErr != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("staged conffile: %v, %v", info, statErr)
	}
	var steps []string
	for _, s := range u.Steps {
		steps = append(steps, strings.Join(s.Args, " "))
	}
	want := "/var/lib/dpkg/info/alpha:amd64.preinst install\n/usr/bin/dpkg --configure -a\n/usr/bin/dpkg --unpack /debs/rest\n/usr/bin/dpkg --configure -a"
	if got := strings.Join(steps, "\n"); got != want {
		t.Errorf("steps:\n%s\nwant:\n%s", got, want)
	}
	out, err := exec.Command("dpkg-query", "--admindir="+filepath.Join(root, "var/lib/dpkg"), "-W", "-f", "${binary:Package} ${Version} ${Status}|${Conffiles}\n").CombinedOutput()
	if got := string(out); err != nil || got != "alpha:amd64 1:2-3 install ok unpacked| /etc/alpha.conf newconffile\nbase-files 1 install ok unpacked|\n" {
		t.Errorf("dpkg-query: %v\n%s", err, got)
	}
}

func TestUnpackRefuses(t *testing.T) {
	with := func(scripts, data []tarEntry) []byte { return makeDeb(t, alphaControl, scripts, data) }
	good := with(nil, nil)
	damaged := bytes.Clone(with(nil, []tarEntry{{name: "./x", body: strings.Repeat("x", 5000)}}))
	damaged[len(damaged)-8] ^= 1
	for name, test := range map[string]struct {
		deb  []byte
		want string
	}{
		"above the root":        {with(nil, []tarEntry{{name: "../x", body: "x"}}), "unpack"},
		"conffile above":        {with([]tarEntry{{name: "./conffiles", body: "/../x\n"}}, nil), "invalid conffile"},
		"conffile not there":    {with([]tarEntry{{name: "./conffiles", body: "/etc/x\n"}}, nil), "is not in the package"},
		"conffile is a link":    {with([]tarEntry{{name: "./conffiles", body: "/x\n"}}, []tarEntry{{name: "./x", kind: tar.TypeSymlink, link: "/etc/shadow"}}), "not a regular file"},
		"trigger with path":     {with([]tarEntry{{name: "./triggers", body: "interest ../../x\n"}}, nil), "invalid trigger name"},
		"unknown directive":     {with([]tarEntry{{name: "./triggers", body: "frob x\n"}}, nil), "unknown directive"},
		"database through link": {with(nil, []tarEntry{{name: "./var/"}, {name: "./var/lib/"}, {name: "./var/lib/dpkg", kind: tar.TypeSymlink, link: "/tmp"}}), ""},
		"newline in name":       {with(nil, []tarEntry{{name: "./a\nb", body: "x"}}), "newline"},
		"damaged":               {damaged, "unpack package alpha"},
		"no package":            {[]byte("hello"), "no ar archive"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Unpack(t.Context(), t.TempDir(), writeDebs(t, test.deb), UnpackOptions{Arch: "amd64", IDShift: -1})
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
	t.Run("wrong digest", func(t *testing.T) {
		debs := writeDebs(t, good)
		debs[0].Digest = store.Of([]byte("else"))
		if _, err := Unpack(t.Context(), t.TempDir(), debs, UnpackOptions{Arch: "amd64", IDShift: -1}); !is[*store.MismatchError](err) {
			t.Errorf("%v", err)
		}
	})
	t.Run("twice", func(t *testing.T) {
		if _, err := Unpack(t.Context(), t.TempDir(), writeDebs(t, good, good), UnpackOptions{Arch: "amd64", IDShift: -1}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("not empty", func(t *testing.T) {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Unpack(t.Context(), root, writeDebs(t, good), UnpackOptions{Arch: "amd64", IDShift: -1}); err == nil {
			t.Error("no error")
		}
	})
}

func TestBatches(t *testing.T) {
	file := func(stanza string) *packageFile {
		c := &control{stanza: []byte(stanza)}
		if err := c.parse(); err != nil {
			t.Fatal(err)
		}
		return &packageFile{control: c}
	}
	p := func(name, more string) *packageFile {
		return file("Package: " + name + "\nVersion: 1\nArchitecture: all\n" + more)
	}
	list := []*packageFile{
		p("a", "Pre-Depends: b (>= 1), virtual:any | x\n"), p("b", ""), p("c", "Provides: virtual\nPre-Depends: b\n"),
		p("d", ""), p("e", "Pre-Depends: f\n"), p("f", "Pre-Depends: e\n"),
	}
	var got []string
	for _, batch := range batches(list) {
		var names []string
		for _, p := range batch {
			names = append(names, p.control.name)
		}
		got = append(got, strings.Join(names, ","))
	}
	if want := "b,d|c|a|e,f"; strings.Join(got, "|") != want {
		t.Errorf("batches %q, want %q", strings.Join(got, "|"), want)
	}
}

func TestDevices(t *testing.T) {
	list := addDevices(layer.Ledger{{Path: "dev/null", Mode: 0o600}, {Path: "dev/zz"}})
	if len(list) != 9 || list[0].Path != "dev/console" || list[0].Major != 5 || list[2].Mode != 0o600 || list[8].Path != "dev/zz" {
		t.Errorf("%v", list)
	}
}
