package swap_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/fsbuild/swap"
	"cairn/tests/require"
)

const uuid = "c0ffee00-0001-4002-8003-040506070809"

func params() swap.Params {
	return swap.Params{
		Size:  1 << 20,
		UUID:  [16]byte{0xc0, 0xff, 0xee, 0, 0, 1, 0x40, 2, 0x80, 3, 4, 5, 6, 7, 8, 9},
		Label: "fifteen bytes!!",
	}
}

// area writes a swap area of the given size to a file.
func area(t *testing.T, p swap.Params) string {
	t.Helper()
	b, err := swap.Header(p)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "swap")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, p.Size); err != nil {
		t.Fatal(err)
	}
	return name
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestMkswap: the bytes are mkswap's, for sizes that are and are not whole
// pages.
func TestMkswap(t *testing.T) {
	mkswap := require.Tool(t, "mkswap", "util-linux")
	for _, p := range []swap.Params{
		params(),
		{Size: 10 * 4096, UUID: params().UUID},
		{Size: 3<<30 + 4095, UUID: params().UUID, Label: "x"},
		{Size: 100 << 20, UUID: params().UUID, PageSize: 16 << 10},
		{Size: 100 << 20, UUID: params().UUID, PageSize: 64 << 10, Label: "large pages"},
	} {
		name := area(t, p)
		got, err := swap.Header(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(name, p.Size); err != nil {
			t.Fatal(err)
		}
		args := []string{"--uuid", uuid, "--pagesize", strconv.Itoa(len(got))}
		if p.Label != "" {
			args = append(args, "--label", p.Label)
		}
		run(t, mkswap, append(args, name)...)
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, len(got))
		if _, err := f.ReadAt(want, 0); err != nil {
			t.Fatal(err)
		}
		f.Close() //nolint:errcheck // only read
		if !bytes.Equal(got, want) {
			t.Errorf("%+v: header differs from mkswap's: %s", p, cmp.Diff(want, got))
		}
	}
}

// TestReaders: swaplabel and blkid find what was asked for.
func TestReaders(t *testing.T) {
	name := area(t, params())
	want := "LABEL: fifteen bytes!!\nUUID:  " + uuid + "\n"
	if got := run(t, require.Tool(t, "swaplabel", "util-linux"), name); got != want {
		t.Errorf("swaplabel says %q, want %q", got, want)
	}
	got := run(t, require.Tool(t, "blkid", "util-linux"), "-p", "-o", "export", name)
	for _, line := range []string{"TYPE=swap", "UUID=" + uuid, "VERSION=1", `LABEL=fifteen\ bytes!!`} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("blkid does not say %s:\n%s", line, got)
		}
	}
	if got := run(t, require.Tool(t, "file", "file"), "-b", name); !strings.Contains(got, "swap file, 4k page size, little endian, version 1, size 255 pages, 0 bad pages, LABEL=fifteen bytes!!, UUID="+uuid) {
		t.Errorf("file says %s", got)
	}
}

// TestRefusals: what cannot be represented is an error that says the limit.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		modify func(*swap.Params)
		want   string
	}{
		"small":       {func(p *swap.Params) { p.Size = 10*4096 - 1 }, "40960"},
		"negative":    {func(p *swap.Params) { p.Size = -1 }, "40960"},
		"large":       {func(p *swap.Params) { p.Size = (1<<32 + 1) * 4096 }, "2^32 pages"},
		"no UUID":     {func(p *swap.Params) { p.UUID = [16]byte{} }, "UUID"},
		"long label":  {func(p *swap.Params) { p.Label = "sixteen bytes!!!" }, "limit is 15"},
		"NUL":         {func(p *swap.Params) { p.Label = "a\x00" }, "NUL"},
		"small pages": {func(p *swap.Params) { p.PageSize = 2048 }, "4096"},
		"odd pages":   {func(p *swap.Params) { p.PageSize = 12288 }, "power of two"},
		"large pages": {func(p *swap.Params) { p.PageSize = 128 << 10 }, "65536"},
	} {
		t.Run(name, func(t *testing.T) {
			p := params()
			c.modify(&p)
			_, err := swap.Header(p)
			if !errors.Is(err, swap.ErrParams) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Header: %v, want ErrParams that says %q", err, c.want)
			}
		})
	}
	p := params()
	p.Size = 1 << 44
	if _, err := swap.Header(p); err != nil {
		t.Errorf("Header of the largest area: %v", err)
	}
}
