package vfat

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/tree"
)

// TestShortNames: aliases count in canonical order and take no name that
// another entry has, case bits replace long names in one case.
func TestShortNames(t *testing.T) {
	for name, c := range map[string]struct {
		names []string
		want  []string // short name, then case bits, then "+" with a long name
	}{
		"upper":             {[]string{"README.TXT", "A", "12345678.123"}, []string{"12345678123 0", "A           0", "README  TXT 0"}},
		"case bits":         {[]string{"lower.txt", "x.TXT", "Y.txt", "vmlinuz"}, []string{"Y       TXT 16", "LOWER   TXT 24", "VMLINUZ     8", "X       TXT 8"}},
		"mixed case":        {[]string{"Readme.txt", "a.Txt"}, []string{"README  TXT 0+", "A       TXT 0+"}},
		"long":              {[]string{"meta-data", "user-data"}, []string{"META-D~1    0+", "USER-D~1    0+"}},
		"series":            {[]string{"long name 1", "long name 2", "long name 3"}, []string{"LONGNA~1    0+", "LONGNA~2    0+", "LONGNA~3    0+"}},
		"taken":             {[]string{"LONGNA~1", "longna~3", "long name 1", "long name 2"}, []string{"LONGNA~1    0", "LONGNA~2    0+", "LONGNA~4    0+", "LONGNA~3    8"}},
		"taken, mixed case": {[]string{"LongNa~1", "long name 1"}, []string{"LONGNA~1    0+", "LONGNA~2    0+"}},
		"dots":              {[]string{".profile", "a.b.c", "..x", "x.tar.gz"}, []string{"X~1         0+", "PROFIL~1    0+", "AB~1    C   0+", "XTAR~1  GZ  0+"}},
		"replaced":          {[]string{"a+b.t=t", "Straße", "日本.語", "😀"}, []string{"STRA_E~1    0+", "A_B~1   T_T 0+", "__~1    _   0+", "_~1         0+"}},
		"long extension":    {[]string{"a.html", "spaces in.t x"}, []string{"A~1     HTM 0+", "SPACES~1TX  0+"}},
		"short, no tail":    {[]string{"a b"}, []string{"AB~1        0+"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := &directory{}
			slices.Sort(c.names)
			for _, name := range c.names {
				units, err := longName(name)
				if err != nil {
					t.Fatal(err)
				}
				d.entries = append(d.entries, entry{node: &tree.Node{Path: name, Type: tree.Regular}, long: units})
			}
			if err := d.nameEntries(); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range d.entries {
				s := fmt.Sprintf("%s %d", e.short[:], e.caseBits)
				if e.long != nil {
					s += "+"
				}
				got = append(got, s)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("short names of %q (-want +got):\n%s", c.names, diff)
			}
		})
	}
}

// TestManyAliases: as many names as a directory holds have different aliases,
// in time that is linear.
func TestManyAliases(t *testing.T) {
	a := newAliases()
	for i := range maxSlots / 2 {
		name := fmt.Sprintf("file %c%c%d.text", 'a'+i%26, 'a'+i/26%26, i)
		s, err := a.alias(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(string(s[:]), ".abc") || s[0] == ' ' {
			t.Fatalf("alias of %q is %q", name, s[:])
		}
	}
	if len(a.used) != maxSlots/2 {
		t.Errorf("%d aliases for %d names", len(a.used), maxSlots/2)
	}
}

// TestNoAlias: when all numbers are taken, that is an error.
func TestNoAlias(t *testing.T) {
	a := newAliases()
	for digits := 1; digits <= 6; digits++ {
		a.next[series{"LONGNA"[:7-digits], [3]byte([]byte("   ")), digits}] = pow10(digits)
	}
	if s, err := a.alias("long name"); err == nil {
		t.Errorf("alias is %q", s[:])
	}
}

// TestTimes: times round down to two seconds and saturate.
func TestTimes(t *testing.T) {
	at := func(s string) tree.Time {
		u, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return tree.Time{Sec: u.Unix(), Nsec: uint32(u.Nanosecond())}
	}
	for in, want := range map[string]struct {
		back   string
		centis byte
	}{
		"1980-01-01T00:00:00Z":         {"1980-01-01T00:00:00Z", 0},
		"1979-12-31T23:59:59.99Z":      {"1980-01-01T00:00:00Z", 0},
		"1901-01-01T12:00:00Z":         {"1980-01-01T00:00:00Z", 0},
		"2024-02-29T12:34:57.999Z":     {"2024-02-29T12:34:56Z", 199},
		"2024-02-29T12:34:56.015Z":     {"2024-02-29T12:34:56Z", 1},
		"2107-12-31T23:59:59.5Z":       {"2107-12-31T23:59:58Z", 150},
		"2108-01-01T00:00:00Z":         {"2107-12-31T23:59:58Z", 199},
		"9999-01-01T00:00:00Z":         {"2107-12-31T23:59:58Z", 199},
		"2024-01-01T00:30:00.5+01:00":  {"2023-12-31T23:30:00Z", 50},
		"2038-01-19T03:14:08.0000001Z": {"2038-01-19T03:14:08Z", 0},
	} {
		d := toDOS(at(in))
		if got := fromDOS(d.date, d.time); got != at(want.back) || d.centis != want.centis {
			t.Errorf("%s: %s and %d, want %s and %d", in, time.Unix(got.Sec, 0).UTC(), d.centis, want.back, want.centis)
		}
	}
	first := at("1980-01-01T00:00:00Z")
	for _, bad := range [][2]uint16{{0, 0}, {1 << 5, 0}, {13<<5 | 1, 0}, {2<<5 | 31, 0}, {1<<5 | 1, 24 << 11}, {1<<5 | 1, 60 << 5}, {1<<5 | 1, 30}, {0xffff, 0xffff}} {
		if got := fromDOS(bad[0], bad[1]); got != first {
			t.Errorf("date %#x, time %#x: %v", bad[0], bad[1], got)
		}
	}
}
