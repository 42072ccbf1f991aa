package record

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// Redacted stands in recorded URLs for the value of a query parameter that
// carries a secret.
const Redacted = "REDACTED"

// secretParams are query parameters, in lower case, whose values are secrets.
var secretParams = map[string]bool{
	"sig": true, "signature": true, "token": true, "access_token": true, "auth_token": true,
	"private_token": true, "id_token": true, "refresh_token": true, "jwt": true, "api_key": true,
	"apikey": true, "password": true, "passwd": true, "secret": true, "client_secret": true,
	"awsaccesskeyid": true,
}

// secretPrefixes begin the names of query parameters of signed URLs.
var secretPrefixes = []string{"x-amz-", "x-goog-"}

// Redact returns the URL as records have it: without user information and
// fragment, with [Redacted] for the values of query parameters that carry
// secrets. What cannot be parsed as a URL is returned as "invalid URL".
func Redact(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "invalid URL"
	}
	return redact(u)
}

func redact(u *url.URL) string {
	c := *u
	c.User, c.Fragment, c.RawFragment = nil, "", ""
	params := strings.Split(c.RawQuery, "&")
	for i, p := range params {
		name, _, has := strings.Cut(p, "=")
		if has && isSecret(name) {
			params[i] = name + "=" + Redacted
		}
	}
	c.RawQuery = strings.Join(params, "&")
	return c.String()
}

func isSecret(param string) bool {
	if plain, err := url.QueryUnescape(param); err == nil {
		param = plain
	}
	param = strings.ToLower(param)
	for _, prefix := range secretPrefixes {
		if strings.HasPrefix(param, prefix) {
			return true
		}
	}
	return secretParams[param]
}

var errNoHost = errors.New("request names no host")

// target returns the URL that request r, which came over c, asks for: scheme
// and host in lower case, without the scheme's default port, the rest as sent.
func target(r *http.Request, c *conn) (*url.URL, error) {
	u := *r.URL
	if !u.IsAbs() {
		u.Scheme, u.Host = "http", r.Host
		if r.TLS != nil {
			u.Scheme = "https"
		}
		if u.Host == "" {
			u.Host = c.tunnel // HTTP/1.0 after CONNECT
		}
	}
	if u.Opaque != "" || u.Fragment != "" {
		return nil, fmt.Errorf("request target %q is not a URL with a path", r.RequestURI)
	}
	u.Scheme = strings.ToLower(u.Scheme)
	host, err := canonicalHost(u.Scheme, u.Host)
	if err != nil {
		return nil, err
	}
	u.Host = host
	if u.Path == "" {
		u.Path = "/"
	}
	return &u, nil
}

var defaultPorts = map[string]string{"http": "80", "https": "443"}

// canonicalHost returns the host of a URL in lower case, without final dot and
// without the default port of its scheme, which must be http or https.
func canonicalHost(scheme, host string) (string, error) {
	std, ok := defaultPorts[scheme]
	if !ok {
		return "", fmt.Errorf("scheme %q is neither http nor https", scheme)
	}
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), ""
	}
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if name == "" {
		return "", errNoHost
	}
	if !validName(name) {
		return "", fmt.Errorf("host %q is neither a name nor an address", host)
	}
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	if port == "" || port == std {
		return name, nil
	}
	return name + ":" + port, nil
}

// validName reports whether s is an IP address or has the letters of a host
// name.
func validName(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	for _, c := range []byte(s) {
		ok := c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_'
		if !ok {
			return false
		}
	}
	return true
}

// isLocal reports whether the host names this machine or its link: a request
// for it, made on behalf of a hook, would reach services that trust their
// neighbours.
func isLocal(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && (ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast())
}

// checkLocation judges where the answer to a request for base redirects to.
func checkLocation(base *url.URL, location string) error {
	u, err := base.Parse(location)
	if err != nil {
		return fmt.Errorf("redirect to what is no URL: %w", err)
	}
	if _, err := canonicalHost(strings.ToLower(u.Scheme), strings.ToLower(u.Host)); err != nil {
		return fmt.Errorf("redirect to %s refused: %w", redact(u), err)
	}
	return nil
}
