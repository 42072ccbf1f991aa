// Package record is the network that hooks see: a server that answers their
// HTTP requests from the real network and keeps what it answered (recording),
// or from what was kept earlier and nothing else (replaying).
//
// It is transparent. Hooks run in an empty network namespace in which every
// name resolves to 127.0.0.1, where this server listens: it takes the host from
// the Host header (RFC 9112, also in absolute form and after CONNECT), or from
// the server name of a TLS client hello, on any port and told apart by the
// first byte. Certificates come from a CA that lives as long as the [Server],
// in memory. No proxy variable is needed, and nothing of it is meant to enter
// an image.
//
// The rules:
//   - Only GET and HEAD without a body; anything else is refused with 405 or
//     400 and reported.
//   - The first response to a URL is the response to it for the whole build.
//     Not kept are answers that a client is to ask again for: 401, 408, 429,
//     and all of 5xx.
//   - Upstream is asked for the whole content, unconditionally and unencoded;
//     ranges and conditions are met here, from the store.
//   - Content goes to the content store and is verified whenever it is served.
//     Of the headers only [KeptHeaders] are kept. There is no Date header.
//   - Redirects are answers like others; their target must be http or https.
//   - A [Resolver] is asked first, so that package archives can be answered
//     from a verified index.
//   - When replaying, a URL that is not listed is answered with 504. A listed
//     one that is missing from the store may be fetched again, and must have
//     the listed digest.
//   - URLs are kept without credentials: user information is dropped, and the
//     values of query parameters that carry secrets are replaced.
//
// It does not speak HTTP/2, nor relay other protocols through CONNECT, and it
// does not follow redirects or authenticate.
package record
