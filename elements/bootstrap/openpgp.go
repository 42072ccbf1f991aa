package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

const (
	armorBegin  = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
	armorEnd    = "-----END PGP PUBLIC KEY BLOCK-----"
	signedBegin = "-----BEGIN PGP SIGNED MESSAGE-----"
	// maxSignatures bounds the work that a hostile file can ask for. Debian's
	// stable releases have three to five.
	maxSignatures = 32
)

// readKeyring reads OpenPGP public keys: any number of binary and armored
// keyring files, one after the other.
func readKeyring(data []byte) (openpgp.EntityList, error) {
	var keys openpgp.EntityList
	for len(bytes.TrimSpace(data)) > 0 {
		var part openpgp.EntityList
		var err error
		begin := bytes.Index(data, []byte(armorBegin))
		switch {
		case begin == 0 || begin > 0 && data[0] < 0x80:
			part, data, err = readArmoredKeys(data[begin:])
		case begin > 0:
			part, err = openpgp.ReadKeyRing(bytes.NewReader(data[:begin]))
			data = data[begin:]
		default:
			part, err = openpgp.ReadKeyRing(bytes.NewReader(data))
			data = nil
		}
		if err != nil {
			return nil, fmt.Errorf("read keyring: %w", err)
		}
		keys = append(keys, part...)
	}
	if len(keys) == 0 {
		return nil, errors.New("read keyring: no key in it")
	}
	return keys, nil
}

// readArmoredKeys reads one armored block and returns what follows it.
func readArmoredKeys(data []byte) (openpgp.EntityList, []byte, error) {
	end := bytes.Index(data, []byte(armorEnd))
	if end < 0 {
		return nil, nil, errors.New("armored block without end")
	}
	end += len(armorEnd)
	block, err := armor.Decode(bytes.NewReader(append(bytes.Clone(data[:end]), '\n')))
	if err != nil {
		return nil, nil, err
	}
	keys, err := openpgp.ReadKeyRing(block.Body)
	return keys, data[end:], err
}

// verifyClearsigned checks a clearsigned message, which must be the whole of
// data, and returns the text that was signed. One valid signature by a key of
// the keyring suffices; signatures by other keys are ignored, but one that is
// wrong, though its key is known, condemns the file. Keys and signatures are
// judged at the time now, or, if that is zero, at the time at which the
// signature says it was made. url only serves the error, a *SignatureError.
func verifyClearsigned(url string, data []byte, keyring openpgp.EntityList, now time.Time) ([]byte, error) {
	fail := func(err error) ([]byte, error) { return nil, &SignatureError{URL: url, Err: err} }
	if !bytes.HasPrefix(data, []byte(signedBegin)) {
		return fail(errors.New("not a clearsigned message"))
	}
	block, rest := clearsign.Decode(data)
	if block == nil {
		return fail(errors.New("damaged clearsigned message"))
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return fail(errors.New("unsigned text after the signed message"))
	}
	signatures, err := splitSignatures(block.ArmoredSignature.Body)
	if err != nil {
		return fail(err)
	}
	if err := checkSignatures(url, block.Bytes, signatures, keyring, now); err != nil {
		return nil, err
	}
	return block.Bytes, nil
}

// splitSignatures returns the signature packets, each as its own stream.
func splitSignatures(r io.Reader) ([][]byte, error) {
	var signatures [][]byte
	packets := packet.NewOpaqueReader(r)
	for {
		p, err := packets.Next()
		if errors.Is(err, io.EOF) {
			return signatures, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read signature: %w", err)
		}
		if len(signatures) == maxSignatures {
			return nil, fmt.Errorf("more than %d signatures", maxSignatures)
		}
		var b bytes.Buffer
		if err := p.Serialize(&b); err != nil {
			return nil, fmt.Errorf("read signature: %w", err)
		}
		signatures = append(signatures, b.Bytes())
	}
}

// checkSignatures applies the rule of verifyClearsigned.
func checkSignatures(url string, signed []byte, signatures [][]byte, keyring openpgp.EntityList, now time.Time) error {
	failure := &SignatureError{URL: url}
	valid := false
	for _, signature := range signatures {
		by, made := issuer(signature)
		if !now.IsZero() {
			made = now
		}
		config := &packet.Config{Time: func() time.Time { return made }}
		_, err := openpgp.CheckDetachedSignature(keyring, bytes.NewReader(signed), bytes.NewReader(signature), config)
		var unsupported pgperrors.UnsupportedError
		switch {
		case err == nil:
			valid = true
		case errors.Is(err, pgperrors.ErrUnknownIssuer):
			failure.Unknown = append(failure.Unknown, by)
		case errors.Is(err, pgperrors.ErrKeyExpired), errors.Is(err, pgperrors.ErrSignatureExpired), errors.As(err, &unsupported):
			failure.Err = errors.Join(failure.Err, fmt.Errorf("key %s: %w", by, err))
		default:
			failure.Err = fmt.Errorf("key %s: %w", by, err)
			return failure
		}
	}
	if valid {
		return nil
	}
	return failure
}

// issuer returns the id of the key that a signature packet names, and when it
// says it was made.
func issuer(signature []byte) (id string, made time.Time) {
	p, err := packet.Read(bytes.NewReader(signature))
	s, ok := p.(*packet.Signature)
	if !ok || err != nil || s.IssuerKeyId == nil {
		return "of no name", time.Time{}
	}
	return fmt.Sprintf("%016X", *s.IssuerKeyId), s.CreationTime
}

// clearsignedText returns the text of a clearsigned message, nil if data does
// not start with one, and what follows it.
func clearsignedText(data []byte) (text, rest []byte) {
	if !bytes.HasPrefix(data, []byte(signedBegin)) {
		return nil, data
	}
	block, rest := clearsign.Decode(data)
	if block == nil {
		return nil, data
	}
	return block.Bytes, rest
}
