package lock

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/reproducibility/store"
)

var update = flag.Bool("update", false, "rewrite testdata")

func sha(text string) store.Digest { return store.Of([]byte(text)) }

// example is a lock with every field, in no order.
func example() *Lock {
	archive := "http://deb.example.org/debian"
	return &Lock{
		Request: Request{
			Elements: []string{"vm", "debian-minimal"}, Arch: "amd64", Types: []string{"raw", "qcow2"},
			Options: map[string]string{"DIB_RELEASE": "bookworm", "DIB_BOOTLOADER_DEFAULT_CMDLINE": "a & <b>\nc"},
		},
		Epoch: 1_760_000_000,
		Seed:  sha("seed").Hex(),
		Releases: []Release{
			{URL: archive, Suite: "bookworm-updates", Digest: sha("u"), Size: 1, Date: 1_760_000_000},
			{URL: archive, Suite: "bookworm", Digest: sha("r"), Size: 1, Date: 1_750_000_000, Indexes: []Index{
				{Path: "main/binary-amd64/Packages.xz", Digest: sha("p"), Size: 1},
				{Path: "main/binary-all/Packages.xz", Digest: sha(""), Size: 0},
			}},
		},
		Base: Base{Kind: KindDeb, Packages: []Package{
			{Name: "libc6", Version: "2.36-9+deb12u10", Arch: "amd64", URL: archive + "/pool/main/g/glibc/libc6_2.36-9%2bdeb12u10_amd64.deb", Digest: sha("libc6"), Size: 5},
			{Name: "base-files", Version: "12.4", Arch: "amd64", URL: archive + "/pool/main/b/base-files/base-files_12.4_amd64.deb", Digest: sha("bf"), Size: 2},
		}},
		Tools: &Base{Kind: KindOCI, Reference: "registry.example.org/tools:1", Digest: sha("manifest"), Layers: []Layer{{sha("z"), 1}, {sha("a"), 1}}},
		Elements: []Element{
			{Name: "vm", Digest: sha("vm"), Origin: OriginBuiltin},
			{Name: "mine", Digest: sha("mine"), Origin: "elements"},
		},
		Fetched: []Fetched{
			{URL: "https://example.org/x?token=REDACTED", Status: 200, Digest: sha("x"), Size: 1, Headers: map[string]string{"Etag": `"1"`, "Content-Type": "text/plain"}},
			{URL: "https://example.org/gone", Status: 404, Digest: sha(""), Size: 0},
		},
		Outputs: []Output{{Format: "raw", Size: 3, Digest: sha("raw")}, {Format: "qcow2", Size: 2, Digest: sha("qc")}},
	}
}

func encode(t *testing.T, l *Lock) []byte {
	t.Helper()
	b, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const golden = "testdata/golden.lock.json"

func TestGolden(t *testing.T) {
	got := encode(t, example())
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
	l, err := Parse(want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(encode(t, l))); diff != "" {
		t.Errorf("parsed and encoded again: %s", diff)
	}
	if _, err = Parse(bytes.ReplaceAll(want, []byte("\n"), []byte("\r\n"))); err != nil {
		t.Errorf("with CR LF: %v", err)
	}
	// The form is also that of another JSON writer, where it has no option
	// to differ.
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("python3 is missing: install python3-minimal")
	}
	out, err := exec.Command(python, "-c", "import json,sys; print(json.dumps(json.load(open(sys.argv[1])), indent=2))", golden).Output()
	if err != nil || !bytes.Equal(out, want) {
		t.Errorf("python writes %s, %v", out, err)
	}
}

func TestEncodeDoesNotChangeTheLock(t *testing.T) {
	l := example()
	encode(t, l)
	if _, err := l.Inputs(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(example(), l); diff != "" {
		t.Error(diff)
	}
}

func TestEmptyLock(t *testing.T) {
	l := &Lock{Request: Request{Arch: "amd64"}, Seed: noSeed, Base: Base{Kind: KindNone}}
	b := encode(t, l)
	if strings.Contains(string(b), "null") {
		t.Errorf("null in %s", b)
	}
	if _, err := Parse(b); err != nil {
		t.Error(err)
	}
}

// Each line changes the golden file so that it must be refused.
func TestParseRefuses(t *testing.T) {
	file, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, replacement, want string }{
		{"unknown field", `"epoch"`, `"epic": 1, "epoch"`, `unknown field "epic"`},
		{"field twice", `"epoch": 1760000000`, `"epoch": 1760000000, "epoch": 1760000000`, "line 19: not in the canonical form"},
		{"other case", `"epoch"`, `"Epoch"`, "line 19: not in the canonical form"},
		{"missing field", "  \"epoch\": 1760000000,\n", "", "line 19: not in the canonical form"},
		{"spacing", `"epoch": 1`, `"epoch":  1`, "line 19: not in the canonical form"},
		{"number form", `"epoch": 1760000000`, `"epoch": 1.76e9`, "epoch: has the type number 1.76e9"},
		{"escape", `"amd64"`, `"\u0061md64"`, "not in the canonical form"},
		{"null list", `"packages": []`, `"packages": null`, "not in the canonical form"},
		{"type", `"status": 200`, `"status": "200"`, "fetched.status: has the type string"},
		{"no JSON", `"elements"`, `elements`, "line 4: invalid character"},
		{"tail", "]\n}\n", "]\n}\n{}", "after top-level value"},
		{"no version", `"version": 1`, `"fersion": 1`, "version: is missing"},
		{"newer", `"version": 1`, `"version": 2`, "written by a newer program"},
		{"older", `"version": 1`, `"version": 0`, "knows only 1"},
		{"path-like digest", sha("vm").Hex(), "../../../../../../../../../../../../../../../../../../etc/passwd", "elements[1].digest"},
		{"upper-case digest", string(sha("vm")), "sha256:" + strings.ToUpper(sha("vm").Hex()), "elements[1].digest"},
		{"short digest", sha("bf").Hex(), sha("bf").Hex()[1:], "base.packages[0].digest"},
		{"seed", sha("seed").Hex(), "0x1", "seed: "},
		{"negative size", `"size": 5`, `"size": -5`, "base.packages[1].size: -5 is negative"},
		{"size of something", `"size": 5`, `"size": 0`, "base.packages[1].size: 0 does not go with"},
		{"negative epoch", `"epoch": 1`, `"epoch": -1`, "epoch: "},
		{"types order", "\"qcow2\",\n      \"raw\"", "\"raw\",\n      \"qcow2\"", "request.types[1]: is not in order"},
		{"types twice", "\"qcow2\",\n      \"raw\"", "\"raw\",\n      \"raw\"", "request.types[1]: is listed twice"},
		{"releases twice", `"suite": "bookworm-updates"`, `"suite": "bookworm"`, "releases[1]: is listed twice"},
		{"elements order", `"name": "mine"`, `"name": "zzz"`, "elements[1]: is not in order"},
		{"fetched twice", `https://example.org/gone`, `https://example.org/x?token=REDACTED`, "fetched[1]: is listed twice"},
		{"status", `"status": 404`, `"status": 504`, "fetched[0].status: 504"},
		{"scheme", `https://example.org/gone`, `file:///etc/passwd`, "fetched[0].url: "},
		{"credentials", `https://example.org/gone`, `https://user:pw@example.org/gone`, "fetched[0].url: URL of example.org contains credentials"},
		{"fragment", `https://example.org/gone`, `https://example.org/gone#x`, "fetched[0].url: "},
		{"index path", "main/binary-amd64/", "main/../../", "releases[0].indexes[1].path: "},
		{"absolute index path", `"main/binary-all/`, `"/main/binary-all/`, "releases[0].indexes[0].path: "},
		{"suite", `"suite": "bookworm",`, `"suite": "../x",`, "releases[0].suite: "},
		{"kind", `"kind": "deb"`, `"kind": "rpm"`, "base.kind: "},
		{"kind of others' fields", `"kind": "deb"`, `"kind": "none"`, "base: has fields of another kind"},
		{"origin", `"origin": "elements"`, `"origin": "/home/me/elements"`, `elements[0].origin: "/home/me/elements" is a path`},
		{"element name", `"name": "mine"`, `"name": "../mine"`, "elements[0].name: "},
		{"control character", `"origin": "elements"`, `"origin": "ele\u0007ments"`, "elements[0].origin: "},
		{"invalid UTF-8", `"origin": "elements"`, "\"origin\": \"ele\xffments\"", ""},
		{"header", `"Etag": "\"1\""`, `"Etag": "1\r\nX: y"`, "fetched[1].headers.Etag: "},
		{"option name", `"DIB_RELEASE"`, `"DIB RELEASE"`, "request.options: "},
		{"empty", string(file), "", "unexpected end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := strings.Replace(string(file), c.old, c.replacement, 1)
			if bad == string(file) {
				t.Fatalf("the golden file has no %q", c.old)
			}
			_, err := Parse([]byte(bad))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestEncodeRefuses(t *testing.T) {
	l := example()
	l.Fetched = append(l.Fetched, l.Fetched[0])
	_, err := l.Encode()
	var field *FieldError
	if !errors.As(err, &field) || field.Field != "fetched[2]" {
		t.Errorf("Encode: %v", err)
	}
	if err := l.Validate(); !errors.As(err, &field) {
		t.Errorf("Validate: %v", err)
	}
}

// What the seed is made from changes with every input and with nothing else.
func TestInputs(t *testing.T) {
	inputs := func(change func(*Lock)) (string, string) {
		l := example()
		change(l)
		a, err := l.Inputs()
		b, err2 := l.Plan()
		if err = errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		return string(a), string(b)
	}
	all, plan := inputs(func(*Lock) {})
	for name, c := range map[string]struct {
		change      func(*Lock)
		input, plan bool
	}{
		"seed":    {func(l *Lock) { l.Seed = sha("other").Hex() }, false, false},
		"outputs": {func(l *Lock) { l.Outputs = nil }, false, false},
		"order":   {func(l *Lock) { l.Elements[0], l.Elements[1] = l.Elements[1], l.Elements[0] }, false, false},
		"fetched": {func(l *Lock) { l.Fetched = nil }, true, false},
		"epoch":   {func(l *Lock) { l.Epoch++ }, true, true},
		"element": {func(l *Lock) { l.Elements[0].Digest = sha("vm2") }, true, true},
		"layers":  {func(l *Lock) { y := l.Tools.Layers; y[0], y[1] = y[1], y[0] }, true, true},
		"release": {func(l *Lock) { l.Releases[0].Digest = sha("v") }, true, true},
	} {
		a, p := inputs(c.change)
		if (a != all) != c.input || (p != plan) != c.plan {
			t.Errorf("%s: inputs changed %v, plan changed %v", name, a != all, p != plan)
		}
	}
}

func TestVerify(t *testing.T) {
	l := example()
	if err := l.Verify(l.Request, l.Elements); err != nil {
		t.Error(err)
	}
	r := l.Request
	r.Elements = []string{"vm"}
	err := l.Verify(r, []Element{{Name: "vm", Digest: sha("changed"), Origin: OriginBuiltin}})
	var stale *StaleError
	if !errors.As(err, &stale) {
		t.Fatal(err)
	}
	want := []string{
		"- element mine: elements " + sha("mine").Hex()[:12],
		"~ element vm: builtin " + sha("vm").Hex()[:12] + " -> builtin " + sha("changed").Hex()[:12],
		"~ request elements: vm debian-minimal -> vm",
	}
	if diff := cmp.Diff(want, stale.Changes); diff != "" {
		t.Error(diff)
	}
}

func TestVerifyOutputs(t *testing.T) {
	l := example()
	if err := l.VerifyOutputs(append(l.Outputs, Output{Format: "tar", Digest: sha("t")})); err != nil {
		t.Error(err)
	}
	err := l.VerifyOutputs([]Output{{Format: "raw", Digest: sha("other")}})
	var output *OutputError
	if !errors.As(err, &output) || output.Name != "raw" || output.Got != sha("other") ||
		!strings.Contains(err.Error(), "output qcow2 of the lock was not built") {
		t.Error(err)
	}
	other := Output{Format: "raw", Disk: "data", Digest: sha("data")}
	l.Outputs = append(l.Outputs, other)
	if err := l.VerifyOutputs(l.Outputs); err != nil {
		t.Error(err)
	}
	other.Digest = sha("other")
	if err := l.VerifyOutputs(append(l.Outputs[:2:2], other)); err == nil || !strings.HasPrefix(err.Error(), "output data raw has digest") {
		t.Errorf("another disk: %v", err)
	}
}

func TestDiff(t *testing.T) {
	a, b := example(), example()
	if d := Diff(a, b); d != "" {
		t.Errorf("Diff of equal locks: %s", d)
	}
	b.Base.Packages[0].Version, b.Base.Packages[0].Digest = "2.36-9+deb12u11", sha("new")
	b.Base.Packages[1].Name = "dash"
	b.Epoch++
	b.Tools = nil
	want := `- base package base-files:amd64: 12.4 ` + sha("bf").Hex()[:12] + `
+ base package dash:amd64: 12.4 ` + sha("bf").Hex()[:12] + `
~ base package libc6:amd64: 2.36-9+deb12u10 ` + sha("libc6").Hex()[:12] + ` -> 2.36-9+deb12u11 ` + sha("new").Hex()[:12] + `
~ epoch: 2025-10-09T08:53:20Z -> 2025-10-09T08:53:21Z
- tools: oci registry.example.org/tools:1 ` + sha("manifest").Hex()[:12] + `
- tools layer 0: ` + sha("z").Hex()[:12] + `
- tools layer 1: ` + sha("a").Hex()[:12] + "\n"
	if diff := cmp.Diff(want, Diff(a, b)); diff != "" {
		t.Error(diff)
	}
}

func TestBlobs(t *testing.T) {
	l := example()
	l.Fetched = append(l.Fetched, Fetched{URL: "http://again.example.org/", Status: 200, Digest: sha("libc6"), Size: 5})
	blobs := l.Blobs()
	byURL := map[string]store.Digest{}
	for _, b := range blobs {
		byURL[b.URL] = b.Digest
	}
	if len(blobs) != 8 || byURL["http://deb.example.org/debian/dists/bookworm/main/binary-amd64/Packages.xz"] != sha("p") {
		t.Errorf("Blobs = %v", blobs)
	}
}

func FuzzParse(f *testing.F) {
	file, err := os.ReadFile(golden)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte(`{"version": 1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Parse(b)
		if err != nil {
			return
		}
		again, err := l.Encode()
		if err != nil || !bytes.Equal(again, bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))) {
			t.Errorf("encoded again: %v\n%s", err, again)
		}
	})
}

// Whatever strings and numbers a lock is made of, it comes back the same or is
// refused.
func FuzzRoundTrip(f *testing.F) {
	f.Add("vm", "https://example.org/a?b=c&d", "value\n", int64(5))
	f.Fuzz(func(t *testing.T, name, url, value string, n int64) {
		l := example()
		l.Request.Elements = append(l.Request.Elements, name)
		l.Request.Options[name] = value
		l.Fetched[0].URL, l.Fetched[0].Headers["X"] = url, value
		l.Epoch, l.Base.Packages[0].Size = n, n
		l.Elements[0].Origin = value
		b, err := l.Encode()
		if err != nil {
			return
		}
		if !json.Valid(b) {
			t.Fatalf("not JSON: %s", b)
		}
		back, err := Parse(b)
		if err != nil {
			t.Fatalf("Parse: %v\n%s", err, b)
		}
		if diff := cmp.Diff(l.canonical(), back.canonical()); diff != "" {
			t.Error(diff)
		}
	})
}

func ExampleDiff() {
	before := &Lock{Epoch: 0, Request: Request{Arch: "amd64"}}
	after := &Lock{Epoch: 60, Request: Request{Arch: "amd64", Packages: []string{"htop"}}}
	fmt.Print(Diff(before, after))
	// Output:
	// ~ epoch: 1970-01-01T00:00:00Z -> 1970-01-01T00:01:00Z
	// ~ request packages:  -> htop
}
