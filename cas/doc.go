// Package cas reads and writes OCI image layouts (image-spec v1.1,
// image-layout.md). It knows nothing of what is in a layer.
//
//	LAYOUT/oci-layout                   {"imageLayoutVersion":"1.0.0"}
//	LAYOUT/index.json                   references: descriptors with a ref.name
//	LAYOUT/blobs/ALGORITHM/HEX          content, named by its digest
//	LAYOUT/.umoci-XXXX/                 files being written; held by flock(2)
//	LAYOUT/.lock-umoci-mount            byte 0: index.json; byte 1: blobs in use
//	LAYOUT/.holds-umoci-mount/ID.json   a Hold; held by flock(2) while its process lives
//
// Every path is resolved below the layout's directory (os.Root): a symbolic link out
// of it is refused, but for blobs and blobs/ALGORITHM, which may be links of the caller's
// or of root's to a directory that several layouts share (linked.go). Nothing is removed
// there. Only regular files are read.
//
// # Crash rules
//
// A blob is written to a temporary file, fsynced, and renamed to its name; then
// the directory is fsynced. index.json is replaced in the same way, after every
// blob it leads to. A crash leaves unreferenced blobs and a temporary directory
// at most; GC removes both.
//
// Files get mode 0644 less the umask, where umoci gives 0600: a layout is often made
// by one user and mounted by another. Written by root, they get the owner of the
// layout's directory, as with umoci.
//
// # Locks
//
// Locks are open file description locks (fcntl(2), F_OFD_SETLK) and end with the
// process. Byte 0 is held for writing while index.json is read, changed and
// replaced. Byte 1 is held for reading by whoever needs blobs to stay for a while
// (commands that read an image, or that are between the first blob written and the
// reference set), for writing by GC. A mount is a Hold: GC keeps what it needs.
// docs/layout-locking.md says how this goes with umoci.
//
// Lock order:
//
//	byte 1 of the lock file
//	  byte 0 of the lock file
//	    flock of a temporary directory   never waited for
//	Layout.mu                            leaf but for the flock
//
// JSON documents are changed field by field: what this package does not know
// stays as it was, byte for byte where a whole entry is not touched.
//
// # What is refused
//
// Documents over MaxDocument, digests or sizes that do not match, a document that is
// not of its descriptor's media type or has the fields of another one
// (CVE-2021-41190), fields that are there twice or in another case of letters, and
// indexes that are nested without end or without measure.
package cas
