// Package layer reads and writes the layers of OCI images: stored blobs become
// one merged, immutable tree with random access to every file's bytes, without
// anything being unpacked; and a list of changes becomes a new layer.
//
//	blob ──one pass──▶ index (.idx)  digests checked, resume points and span digests
//	  │                                │
//	  └─ tar stream ─▶ toc (.toc)      │       entries, and where their data lies
//	                    │ bottom-up    │
//	                    ▼              ▼
//	                merger ─encode─▶ Tree (.tree, mapped) + Blobs = Image
//
// What is learnt of a blob is kept in a Cache, by digest, and the merged tree by
// the list of its layers, so an image is read through once in its life; opening
// it again costs the same for any size. The formats are in docs/tree-format.md,
// docs/toc-format.md and docs/blob-index-format.md.
//
// Nothing read is trusted. Blobs are checked against the digest, size and diffID
// of their descriptors while they are indexed, and every span again when it is
// read. Tar streams may hold anything (scan.go); paths are resolved inside the
// image's root alone (merge_path.go). What a stream asks for in memory and time has
// a budget (toc_budget.go, merge_budget.go). Cache files are checked record by record,
// so that a damaged one is an error and made again.
//
// The package knows nothing of image layouts (a Source gives bytes), of upper
// directories, or of FUSE.
//
// Lock order:
//
//	lazyBlob.mu               held while a layer is opened, or indexed anew
//	  a file below locks/     flock(2); one at a time
//	span cache                see spancache.go
//	hashQueue.mu              while layers are indexed; never held while hashing
//
// Trees take no lock. What reads a tree or a layer's index for longer holds a shared
// flock(2) on the file, which is never waited for but a moment (cache_use.go).
package layer
