// Package cas reads and writes OCI image layouts (image-spec v1.1,
// image-layout.md). It knows nothing of what is in a layer.
//
//	LAYOUT/oci-layout                   {"imageLayoutVersion":"1.0.0"}
//	LAYOUT/index.json                   references: descriptors with a ref.name
//	LAYOUT/blobs/ALGORITHM/HEX          content, named by its digest
//	LAYOUT/.umoci-XXXX/                 blobs being written; held by flock(2)
//	LAYOUT/.lock-umoci-mount            byte 0: index.json; byte 1: blobs in use
//
// # Crash rules
//
// A blob is written to a temporary file, fsynced, and renamed to its name; then
// the directory is fsynced. index.json is replaced in the same way, after every
// blob it leads to. A crash leaves unreferenced blobs and a temporary directory
// at most; GC removes both.
//
// # Locks
//
// Locks are open file description locks (fcntl(2), F_OFD_SETLK) and end with the
// process. Byte 0 is held for writing while index.json is read, changed and
// replaced. Byte 1 is held for reading by whoever needs blobs to stay (mounts,
// and commands between the first blob written and the reference set), for writing
// by GC. Byte 1 comes before byte 0.
//
// JSON documents are changed field by field: what this package does not know
// stays as it was, byte for byte where a whole entry is not touched.
package cas
