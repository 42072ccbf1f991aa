package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
)

// A Digest names content: "sha256:" and 64 lower-case hexadecimal digits.
// The zero value "" is no digest.
type Digest string

const digestPrefix = "sha256:"

// ErrBadDigest is wrapped by errors about a Digest that is not of its form.
var ErrBadDigest = errors.New("not of the form sha256:<64 hexadecimal digits>")

// ParseDigest returns s as a Digest, or an error that wraps [ErrBadDigest].
func ParseDigest(s string) (Digest, error) {
	d := Digest(s)
	if !d.Valid() {
		return "", fmt.Errorf("digest %q: %w", s, ErrBadDigest)
	}
	return d, nil
}

// FromHex returns the Digest with the given 64 hexadecimal digits, or an error
// that wraps [ErrBadDigest].
func FromHex(digits string) (Digest, error) {
	return ParseDigest(digestPrefix + digits)
}

// Of returns the digest of b.
func Of(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest(digestPrefix + hex.EncodeToString(sum[:]))
}

// Valid reports whether d has the form of a digest.
func (d Digest) Valid() bool {
	digits, ok := strings.CutPrefix(string(d), digestPrefix)
	return ok && isHex(digits)
}

// Hex returns the 64 digits of d, or "" if d is not valid.
func (d Digest) Hex() string {
	if !d.Valid() {
		return ""
	}
	return string(d[len(digestPrefix):])
}

// isHex reports whether s is 64 lower-case hexadecimal digits.
func isHex(s string) bool {
	if len(s) != 2*sha256.Size {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// sum returns what h has hashed so far as a Digest.
func sum(h hash.Hash) Digest {
	return Digest(digestPrefix + hex.EncodeToString(h.Sum(nil)))
}

// A MismatchError tells that content does not have the digest or the size that
// it was said to have.
type MismatchError struct {
	Want, Got Digest // Got is "" if reading stopped at the wrong size
	WantSize  int64  // bytes, -1 if unknown
	GotSize   int64  // bytes read, WantSize+1 if there were more
}

func (e *MismatchError) Error() string {
	switch {
	case e.WantSize >= 0 && e.GotSize > e.WantSize:
		return fmt.Sprintf("content is longer than the %d bytes of %s", e.WantSize, e.Want)
	case e.WantSize >= 0 && e.GotSize < e.WantSize:
		return fmt.Sprintf("content has %d of the %d bytes of %s", e.GotSize, e.WantSize, e.Want)
	}
	return fmt.Sprintf("content has digest %s, want %s", e.Got, e.Want)
}

// Verify returns a reader of r's bytes that fails with a [*MismatchError]
// instead of io.EOF if they do not have digest want, and as soon as there are
// more or fewer than size of them (-1 if unknown). What was read before is to
// be trusted only once io.EOF has come.
func Verify(r io.Reader, want Digest, size int64) io.Reader {
	return &verifier{r: r, want: want, size: size, hash: sha256.New()}
}

type verifier struct {
	r    io.Reader
	want Digest
	size int64 // expected bytes, -1 if unknown
	n    int64 // bytes read
	hash hash.Hash
	err  error // sticky
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	if v.size >= 0 && v.n+int64(n) > v.size {
		v.err = &MismatchError{Want: v.want, WantSize: v.size, GotSize: v.size + 1}
		return 0, v.err
	}
	v.n += int64(n)
	v.hash.Write(p[:n])
	if errors.Is(err, io.EOF) {
		err = v.end()
	}
	v.err = err
	return n, err
}

// end judges the whole content.
func (v *verifier) end() error {
	e := &MismatchError{Want: v.want, WantSize: v.size, GotSize: v.n}
	if v.size >= 0 && v.n != v.size {
		return e
	}
	if e.Got = sum(v.hash); e.Got != v.want {
		return e
	}
	return io.EOF
}
