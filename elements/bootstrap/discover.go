package bootstrap

import (
	"context"
	"errors"
	"slices"
	"strings"
)

// Mirrors are where a suite can be fetched from, as the host's apt does.
type Mirrors struct {
	Main, Security string // URL prefixes without trailing slash; "" if none was found
	// SignedBy and Key are those of the entry of Main.
	SignedBy []string
	Key      []byte
}

// Discover picks from apt's sources the mirrors that serve a suite of Debian:
// Main is the first whose InRelease for the suite says Origin: Debian, Security
// the first for SUITE-security. The suites that the host itself uses do not
// matter. Nothing is verified here, Open does that; config gives Client, Auth
// and Transfer. The error is that of ctx, or, if no main mirror was found, the
// errors of the attempts.
func Discover(ctx context.Context, config Config, sources []Source, suite string) (Mirrors, error) {
	config.Transfer = config.Transfer.complete()
	f := newFetcher(config)
	var found Mirrors
	var failures error
	var tried []string
	for _, s := range sources {
		for _, uri := range s.URIs {
			prefix := strings.TrimRight(uri, "/")
			if !strings.HasPrefix(uri, "http://") && !strings.HasPrefix(uri, "https://") || slices.Contains(tried, prefix) {
				continue
			}
			tried = append(tried, prefix)
			if found.Main == "" {
				ok, err := isDebian(ctx, f, prefix, suite)
				failures = errors.Join(failures, err)
				if ok {
					found.Main, found.SignedBy, found.Key = prefix, s.SignedBy, s.Key
					continue
				}
			}
			if ok, err := isDebian(ctx, f, prefix, suite+"-security"); ok && err == nil && found.Security == "" {
				found.Security = prefix
			}
			if ctx.Err() != nil {
				return Mirrors{}, ctx.Err()
			}
		}
	}
	if found.Main == "" {
		return Mirrors{}, errors.Join(errors.New("find a mirror: none of apt's sources serves Debian "+suite), failures)
	}
	return found, nil
}

// isDebian reports whether a mirror has the suite and it is Debian's.
func isDebian(ctx context.Context, f *fetcher, prefix, suite string) (bool, error) {
	data, err := f.fetchText(ctx, prefix+"/dists/"+suite+"/InRelease", prefix, maxRelease)
	var failed *FetchError
	if errors.As(err, &failed) && failed.Kind == FetchStatus {
		return false, nil // it does not have the suite
	}
	if err != nil {
		return false, err
	}
	text, err := unverifiedText(prefix, data)
	if err != nil {
		return false, nil //nolint:nilerr // not an archive of the kind that is wanted
	}
	r, err := ParseRelease(text)
	return err == nil && r.Origin == "Debian", nil
}
