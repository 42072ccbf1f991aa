// Package lock reads and writes lock files: what went into an image, so that
// the same can go into it again.
//
// It does not fetch, build or compare anything, and knows nothing about where
// the inputs are; their contents are in the store under the digests named here.
//
// # The file
//
// A lock file is JSON in exactly one form: UTF-8, the fields in the order below,
// indented by two spaces, no HTML escapes, one final newline. Lists are never
// null; fields marked optional are left out when empty. [Parse] accepts nothing
// else, save that lines may end in CR LF. So two locks are the same if and only
// if their bytes are, and a re-made lock shows no difference where there is
// none.
//
//	version    1
//	request    what was asked for, without a path of the build host
//	  elements   names in the order given
//	  arch       Debian's name of the architecture
//	  types      output formats, sorted
//	  packages   additional packages in the order given
//	  options    object of strings: other settings that decide bytes
//	epoch      seconds since 1970: newest time in the image
//	seed       64 hexadecimal digits from which identifiers derive
//	releases   sorted by url, then suite
//	  url        canonical prefix of the archive, not the mirror's
//	  suite
//	  digest     of InRelease
//	  size       of InRelease, bytes
//	  date       of InRelease, seconds since 1970
//	  indexes    sorted by path: path relative to the suite, digest, size
//	base       where the tree began
//	  kind       "deb", "oci" or "none"
//	  packages   of deb, sorted by name, arch, version:
//	             name, version, arch, url, digest, size
//	  reference  of oci: the name that was asked for
//	  digest     of oci: of the manifest
//	  layers     of oci, lowest first: digest, size
//	tools      optional: the tree in which host hooks ran, like base
//	elements   sorted by name
//	  name
//	  digest     of the element's files
//	  origin     "builtin", or the last component of the directory's path
//	fetched    what hooks asked the network for, sorted by url
//	  url        without credentials
//	  status     200 to 499
//	  digest     of the body
//	  size       of the body, bytes
//	  headers    optional object of strings: response headers that were kept
//	outputs    optional, sorted by disk and format: what came of it
//	  format
//	  disk       optional: name of the disk, unless it is the image
//	  size       bytes
//	  digest
//
// Digests are "sha256:" and 64 lower-case hexadecimal digits. Sizes are not
// negative. Strings hold no control characters.
//
// Everything but seed and outputs is input: it is what the seed is made from,
// see [Lock.Inputs].
package lock
