// Package bootstrap makes the base tree of a Debian system from the archive's
// signed package index.
//
// # Parent side: which packages, and their files
//
// Open fetches the InRelease file of each suite, verifies its OpenPGP signature
// against a keyring, its Date and Valid-Until, then fetches the Packages
// indexes that it names by digest. Index.Resolve chooses packages, Index.Fetch
// brings their files into the content store, each verified by the digest of
// its index. Index.Pins names the state that is open, OpenPinned opens exactly
// that state again, from the store and without a network if need be, and
// Index.Locate and Index.Ensure serve it to a server that stands in for the
// mirror: the InRelease, the indexes that it names, and the pool files that
// they list, by canonical URL; nothing else exists.
//
// The formats are those of https://wiki.debian.org/DebianRepository/Format,
// Debian Policy 4.7 chapters 5 and 7, deb822(5), sources.list(5),
// apt_auth.conf(5) and RFC 9580 clearsigned messages. Only SHA-256 digests
// count.
//
// # Resolving as apt does
//
// The choice is meant to be that of apt-get 2.6 with nothing installed and no
// pins but those of NotAutomatic releases: the newest version; the first
// alternative of a dependency that can be installed; among packages that
// provide a name the real one, then essential, then higher priority, then the
// one that the indexes mention last; conflicts of a chosen package rule out the
// others. The test TestResolveEqualsApt compares generated requests with
// apt-get -s install.
//
// One part of apt is left out: when its straight run ends with something
// broken, apt starts a second, scoring solver that removes and replaces what it
// has chosen. Here such a request is a ResolveError that says what is broken,
// and it must be made more precise. Where that is not so, and apt's second
// solver was not needed, any difference from apt is a bug. Nothing is ever
// removed, and the architecture is one: no foreign packages.
//
// Without Request.Bare, the essential packages and what they need are resolved
// first, as the base; then the rest on top of it. Minbase is the request with
// the package set of mmdebstrap --variant=minbase (its variant apt, without
// packages of priority required, is Request{Include: []string{"apt"}}).
//
// # Worker side: the tree
//
// Unpack unpacks the base without running anything of it, and writes dpkg's
// database so that the tree's own dpkg takes over: all base packages are
// unpacked but not configured, their conffiles are in place and, for dpkg's
// configuration, once more beside it as .dpkg-new. The steps that it returns
// run the preinst scripts, then dpkg --configure -a; the other packages are
// unpacked and configured by dpkg. That unpacking precedes the preinst scripts
// is the way of mmdebstrap and debootstrap too, which extract the base before
// they hand it to dpkg; here it is not unpacked a second time. The result is
// the tree of mmdebstrap but for what TestTreeEqualsMmdebstrap lists.
//
// From Debian 13 on, the links from / into /usr are those of base-files, before
// that those of debootstrap.
//
// # What it does not do
//
// It runs no command, and reads no clock, environment or apt configuration:
// ParseSources, ParseSourcesList and ParseAuth turn the bytes of apt's files
// into values, Discover asks the mirrors that they name. It does not write
// sources.list, host name or resolver configuration, which are policy of the
// image, and does not clean up logs and caches.
package bootstrap
