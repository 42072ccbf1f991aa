// Package store is the one content store: files by the digest of their bytes
// (blobs), file trees by the digest of what made them (snapshots), and
// downloads that may be resumed (partials).
//
//	DIR/blobs/sha256/ab/ab12…   one blob, mode 0400, named by all 64 digits
//	DIR/tmp/…                   blobs being written, each locked by its writer
//	DIR/partials/…              downloads under way or interrupted
//	DIR/snapshots/KEY/tree/     a snapshot's root directory
//	DIR/snapshots/KEY/manifest  a header line with the digest of the rest
//	DIR/snapshots/.new-KEY/     a snapshot being written
//	DIR/snapshots/.old-KEY/     a snapshot being removed
//	DIR/locks/…                 one lock file per snapshot being written
//
// Everything the store itself makes has mode 0700 or less. What is in a
// snapshot's tree is its writer's business, owners included: those are usually
// ids that only the worker's user namespace can name, so that snapshots are
// written, measured and deleted there, while blobs belong to the caller.
//
// Any number of processes may share a store. A blob or snapshot is visible only
// when it is whole and synced: it is written elsewhere and renamed. Locks are
// flock(2) on the file in question, so that they end with their process, and
// what a killed process leaves behind is recognised by its missing lock, never
// by its age; [Store.Sweep] deletes it.
//
// A blob is verified whenever it is read. One that does not have its digest is
// removed and reported as [*CorruptError], so that the next run fetches it
// again. Of a snapshot only the manifest is verified; the tree is not read.
//
// The store does not decide what to keep: it removes only what it is told to.
package store
