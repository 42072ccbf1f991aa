package bootstrap

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
)

// armored returns the key as an armored keyring.
func (k testKey) armored(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := armor.Encode(&b, "PGP PUBLIC KEY BLOCK", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(k.public(t)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), '\n')
}

func TestReadKeyring(t *testing.T) {
	a, b, c := newKey(t, "a"), newKey(t, "b"), newKey(t, "c")
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, test := range map[string]struct {
		data []byte
		want int
	}{
		"binary":          {a.public(t), 1},
		"two binary":      {join(a.public(t), b.public(t)), 2},
		"armored":         {a.armored(t), 1},
		"two armored":     {join(a.armored(t), b.armored(t)), 2},
		"mixed":           {join(a.public(t), b.armored(t), c.public(t)), 3},
		"text before":     {join([]byte("Comment\n"), a.armored(t)), 1},
		"empty":           {nil, 0},
		"blank":           {[]byte("\n"), 0},
		"garbage":         {[]byte("garbage"), 0},
		"truncated armor": {a.armored(t)[:100], 0},
		"damaged second":  {join(a.armored(t), []byte("rest")), 0},
	} {
		got, err := readKeyring(test.data)
		if len(got) != test.want || (err != nil) != (test.want == 0) {
			t.Errorf("%s: %d keys, %v, want %d", name, len(got), err, test.want)
		}
	}
}

func TestVerifyClearsigned(t *testing.T) {
	good, other, stranger := newKey(t, "good"), newKey(t, "other"), newKey(t, "stranger")
	old := newKeyAt(t, "old", testTime.AddDate(-2, 0, 0), 365*24*time.Hour)
	keyring, err := readKeyring(bytes.Join([][]byte{good.public(t), other.public(t), old.public(t)}, nil))
	if err != nil {
		t.Fatal(err)
	}
	text := "Origin: Test\n- dashed\nend\n"
	signed := sign(t, text, good)
	forged := bytes.Replace(sign(t, text, other), []byte("Test"), []byte("Tesu"), 1)
	for name, test := range map[string]struct {
		data []byte
		want string // part of the error, "" for none
	}{
		"good":                  {signed, ""},
		"with a stranger":       {sign(t, text, stranger, good), ""},
		"stranger first":        {sign(t, text, good, stranger), ""},
		"with an expired key":   {sign(t, text, old, good), ""},
		"expired key alone":     {sign(t, text, old), "expired"},
		"stranger alone":        {sign(t, text, stranger), "unknown key " + stranger.PrimaryKey.KeyIdString()},
		"changed text":          {bytes.Replace(signed, []byte("end"), []byte("enc"), 1), "verify signature"},
		"forged with known key": {forged, "verify signature"},
		"text before":           {append([]byte("Origin: Evil\n"), signed...), "not a clearsigned"},
		"text after":            {append(bytes.Clone(signed), "Origin: Evil\n"...), "unsigned text"},
		"second message":        {append(bytes.Clone(signed), signed...), "unsigned text"},
		"unsigned":              {[]byte(text), "not a clearsigned"},
		"truncated":             {signed[:len(signed)-60], "damaged"},
		"empty":                 {nil, "not a clearsigned"},
	} {
		got, err := verifyClearsigned("http://m/InRelease", test.data, keyring, testTime.Add(time.Minute))
		var typed *SignatureError
		switch {
		case test.want == "" && (err != nil || strings.ReplaceAll(string(got), "\r", "") != text):
			t.Errorf("%s: %q, %v", name, got, err)
		case test.want != "" && (!errors.As(err, &typed) || !strings.Contains(err.Error(), test.want) || typed.Hint() == ""):
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
