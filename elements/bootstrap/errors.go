package bootstrap

import (
	"fmt"
	"strings"
	"time"

	"cairn/reproducibility/store"
)

// Every typed error of this package has a Hint method: one line, for people,
// saying what to do next.

// SignatureError tells that a signed index was not signed by a key of the
// keyring, or not validly.
type SignatureError struct {
	URL     string   // of the signed file
	Unknown []string // key ids of signatures by keys that the keyring lacks
	Err     error    // nil if all keys were unknown
}

func (e *SignatureError) Error() string {
	switch {
	case e.Err != nil:
		return fmt.Sprintf("verify signature: %s: %v", e.URL, e.Err)
	case len(e.Unknown) > 0:
		return fmt.Sprintf("verify signature: %s: signed by unknown key %s", e.URL, strings.Join(e.Unknown, ", "))
	}
	return fmt.Sprintf("verify signature: %s: no signature", e.URL)
}

func (e *SignatureError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *SignatureError) Hint() string {
	if e.Err == nil && len(e.Unknown) > 0 {
		return "give the archive's keyring, for Debian the package debian-archive-keyring in a version that knows the suite, or set DIB_APT_KEYRING"
	}
	return "the mirror or something in between changes files: do not use it; try another mirror"
}

// ExpiredError tells that a Release file is past its Valid-Until, so that a
// mirror that withholds updates could not be told from one that is current.
type ExpiredError struct {
	URL             string
	Suite           string
	ValidUntil, Now time.Time
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("check %s: expired %s ago (Valid-Until %s)", e.URL,
		e.Now.Sub(e.ValidUntil).Round(time.Minute), e.ValidUntil.UTC().Format(time.RFC3339))
}

// Hint says what to do.
func (e *ExpiredError) Hint() string {
	return fmt.Sprintf("the mirror's copy of %s is stale (or this machine's clock is wrong): use a current mirror, or allow expired indexes explicitly if that is what you want", e.Suite)
}

// NotYetValidError tells that a Release file is dated in the future.
type NotYetValidError struct {
	URL       string
	Date, Now time.Time
}

func (e *NotYetValidError) Error() string {
	return fmt.Sprintf("check %s: dated %s, which is still to come (now %s)", e.URL,
		e.Date.UTC().Format(time.RFC3339), e.Now.UTC().Format(time.RFC3339))
}

// Hint says what to do.
func (e *NotYetValidError) Hint() string { return "set this machine's clock" }

// HashError tells that a file is not the one that its signed index names.
type HashError struct {
	URL      string
	Want     store.Digest
	WantSize int64
	Err      error // usually a *store.MismatchError
}

func (e *HashError) Error() string {
	return fmt.Sprintf("verify %s: want %s of %d bytes: %v", e.URL, e.Want, e.WantSize, e.Err)
}

func (e *HashError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *HashError) Hint() string {
	return "the mirror is being updated or serves damaged files: try again in a while, or use another mirror"
}

// MissingError tells that something needed is not in the store and cannot be
// fetched, because there is no network (Config.Client is nil).
type MissingError struct {
	URL    string       // canonical
	Digest store.Digest // "" if any state would do
}

func (e *MissingError) Error() string {
	if e.Digest == "" {
		return fmt.Sprintf("read %s: no network", e.URL)
	}
	return fmt.Sprintf("read %s: not in the store: %s", e.URL, e.Digest)
}

// Hint says what to do.
func (e *MissingError) Hint() string {
	return "build once with the network, or copy the store of a machine that did"
}

// ResolveError tells that the wanted packages cannot be installed together.
type ResolveError struct {
	Problems []string // one per line for people, in a stable order
}

func (e *ResolveError) Error() string {
	return "resolve packages: " + strings.Join(e.Problems, "; ")
}

// Hint says what to do.
func (e *ResolveError) Hint() string {
	return "check the spelling, and that the suite, component and architecture have the package"
}

// FetchKind says how a transfer failed.
type FetchKind uint8

// The ways in which a transfer fails.
const (
	FetchUnreachable FetchKind = iota // no connection, or no answer to the request
	FetchStalled                      // no bytes for the stall timeout
	FetchCut                          // the connection ended before the file
	FetchStatus                       // an HTTP status that is not success
	FetchLength                       // more or fewer bytes than the index names
)

// FetchError tells that a file could not be fetched in any of the tries.
type FetchError struct {
	URL    string // what was asked for at last
	Mirror string // the mirror's URL prefix
	Kind   FetchKind
	Status int // HTTP status code, 0 if there was none
	Tries  int
	Err    error

	retryAfter time.Duration // what the server asks for
}

func (e *FetchError) Error() string {
	tries := "1 try"
	if e.Tries != 1 {
		tries = fmt.Sprintf("%d tries", e.Tries)
	}
	return fmt.Sprintf("fetch %s: %v (%s)", e.URL, e.Err, tries)
}

func (e *FetchError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *FetchError) Hint() string {
	switch e.Kind {
	case FetchStalled:
		return fmt.Sprintf("the mirror %s is too slow or hangs: try again, what came so far is kept; or use another mirror", e.Mirror)
	case FetchCut:
		return fmt.Sprintf("the mirror %s cuts connections: try again, what came so far is kept; or use another mirror", e.Mirror)
	case FetchStatus:
		return statusHint(e.Status, e.Mirror)
	case FetchLength:
		return fmt.Sprintf("the mirror %s is being updated or serves damaged files: try again in a while, or use another mirror", e.Mirror)
	default:
		return fmt.Sprintf("the mirror %s cannot be reached: check the network, http_proxy, https_proxy and no_proxy, or use another mirror", e.Mirror)
	}
}

func statusHint(status int, mirror string) string {
	switch status {
	case 401, 403, 407:
		return fmt.Sprintf("the mirror %s or the proxy refuses access: check apt's auth.conf and the proxy settings", mirror)
	case 404, 410:
		return fmt.Sprintf("the mirror %s does not have the file: check mirror and suite; if the archive has moved on, resolve again without the lock", mirror)
	}
	return fmt.Sprintf("the mirror %s has trouble: try again in a while, or use another mirror", mirror)
}

// SuiteError tells that a Release file is that of another suite.
type SuiteError struct {
	URL                   string
	Want, Suite, Codename string
}

func (e *SuiteError) Error() string {
	return fmt.Sprintf("check %s: is the Release of %s (%s), not of %s", e.URL, e.Codename, e.Suite, e.Want)
}

// Hint says what to do.
func (e *SuiteError) Hint() string {
	return "check the suite's name; if it is right, the mirror is broken: use another"
}

// ComponentError tells that a suite has no packages of a component for the
// architecture.
type ComponentError struct {
	URL, Component, Arch      string
	Components, Architectures []string // what the suite has
}

func (e *ComponentError) Error() string {
	return fmt.Sprintf("check %s: no packages of component %s for %s", e.URL, e.Component, e.Arch)
}

// Hint says what to do.
func (e *ComponentError) Hint() string {
	return fmt.Sprintf("the suite has the components %s for the architectures %s",
		strings.Join(e.Components, ", "), strings.Join(e.Architectures, ", "))
}
