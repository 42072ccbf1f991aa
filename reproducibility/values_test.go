package reproducibility

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"testing"
	"time"
)

func TestEpoch(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 5) }
	given := at(7)
	early, late := at(-1), time.Unix(1<<34, 0)
	for name, c := range map[string]struct {
		given *time.Time
		dates []time.Time
		want  int64 // -1 for an error
	}{
		"given wins":    {&given, []time.Time{at(100)}, 7},
		"newest":        {nil, []time.Time{at(3), at(100), at(50)}, 100},
		"none":          {nil, nil, -1},
		"before 1970":   {&early, nil, -1},
		"beyond ext4":   {&late, nil, -1},
		"inputs beyond": {nil, []time.Time{late}, -1},
	} {
		got, err := Epoch(c.given, c.dates...)
		if c.want < 0 {
			if err == nil {
				t.Errorf("%s: got %v", name, got)
			}
			continue
		}
		if err != nil || got != time.Unix(c.want, 0).UTC() {
			t.Errorf("%s: got %v, %v, want %d", name, got, err, c.want)
		}
	}
	if _, err := Epoch(nil); !errors.Is(err, ErrNoEpoch) {
		t.Errorf("without anything: %v", err)
	}
}

func TestParseSourceDateEpoch(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1760000000": 1760000000,
		"": -1, "-1": -1, "+1": -1, " 1": -1, "1.0": -1, "0x10": -1, "1_000": -1, "99999999999999999999": -1, "20000000000": -1,
	} {
		got, err := ParseSourceDateEpoch(in)
		if (err == nil) != (want >= 0) || err == nil && got.Unix() != want {
			t.Errorf("ParseSourceDateEpoch(%q) = %v, %v", in, got, err)
		}
	}
}

func uuid(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// The derivation is fixed: other values would change every image. They are
// computed a second time by openssl.
func TestSeed(t *testing.T) {
	s := NewSeed([]byte("inputs"))
	if got := openssl(t, "cairn seed 1\x00inputs", "-sha256"); s.String() != got {
		t.Errorf("seed %s, openssl says %s", s, got)
	}
	if back, err := ParseSeed(s.String()); back != s || err != nil {
		t.Errorf("ParseSeed = %s, %v", back, err)
	}
	good := s.String()
	for _, bad := range []string{"", good[1:], good + "0", "x" + good[1:]} {
		if _, err := ParseSeed(bad); err == nil {
			t.Errorf("ParseSeed(%q) succeeded", bad)
		}
	}
	mac := openssl(t, "uuid\x00file system root", "-sha256", "-mac", "HMAC", "-macopt", "hexkey:"+s.String())
	b, err := hex.DecodeString(mac[:32])
	if err != nil {
		t.Fatal(err)
	}
	b[6], b[8] = b[6]&15|0x80, b[8]&63|0x80
	if got := s.UUID(Root); got != [16]byte(b) {
		t.Errorf("UUID %s, openssl says %s", uuid(got), uuid([16]byte(b)))
	}
}

func openssl(t *testing.T, input string, args ...string) string {
	t.Helper()
	c := exec.Command(tool(t, "openssl", "openssl"), append([]string{"dgst", "-r", "-binary"}, args...)...)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = in.Write([]byte(input))
		_ = in.Close()
	}()
	out, err := c.Output()
	if err != nil {
		t.Fatalf("openssl: %v", err)
	}
	return hex.EncodeToString(out)
}

func tool(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: install %s", name, pkg)
	}
	return path
}

func TestIdentifiersDiffer(t *testing.T) {
	seen := map[string]string{}
	add := func(what, id string) {
		if other, ok := seen[id]; ok {
			t.Errorf("%s and %s are both %s", what, other, id)
		}
		seen[id] = what
	}
	for _, inputs := range []string{"a", "b"} {
		s := NewSeed([]byte(inputs))
		for _, n := range []Name{Disk, Root, Partition("root"), Partition("boot"), FileSystem("boot"), OtherDisk("a"), Container("raw", ""), Container("vhd", ""), Container("raw", "a"), Container("raw", "b")} {
			what := inputs + " " + string(n)
			u, h := s.UUID(n), s.HashSeed(n)
			add(what+" UUID", uuid(u))
			add(what+" hash seed", uuid(h))
			add(what+" signature", fmt.Sprint(s.DiskSignature(n)))
			add(what+" serial", fmt.Sprint(s.VolumeSerial(n)))
			if u[6]>>4 != 8 || u[8]>>6 != 2 {
				t.Errorf("%s: version %d, variant %d", uuid(u), u[6]>>4, u[8]>>6)
			}
		}
	}
	if FileSystem("root") != Root {
		t.Errorf("FileSystem(root) = %q", FileSystem("root"))
	}
}

func ExampleSeed_UUID() {
	s := NewSeed([]byte("the canonical bytes of all inputs"))
	u := s.UUID(Root)
	fmt.Printf("%x-%x-%x-%x-%x\n", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	// Output: 4e36735d-f0b2-81d5-94cc-80c00b7b7010
}
