// Package build carries out a request: it resolves the elements, brings in the
// base, runs the phases' hooks in the sandbox and has the tree written.
//
// A build is shared by two processes. The parent is the caller: it owns the
// terminal and the network, so it resolves and fetches packages, pulls base
// images and serves what hooks ask for. The worker lives in the sandbox's outer
// namespace, where it sees the image's own owners: it unpacks, starts the hooks,
// reads the tree and writes the outputs. They talk over a socket pair
// (net/rpc); the worker asks, the parent answers.
//
// The order of the phases and what each of them sees is diskimage-builder's.
package build
