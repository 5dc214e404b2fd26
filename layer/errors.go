package layer

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Opening a cache file (tree, blob index, table of contents). Each means
// "rebuild it": cache files are never the only copy of anything.
var (
	// ErrMagic: the file is not of the format asked for.
	ErrMagic = errors.New("not a umoci-mount cache file")
	// ErrVersion: written by a newer or older program.
	ErrVersion = errors.New("unsupported format version")
	// ErrChecksum: damaged or truncated.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrCorrupt: the checksum holds but a record points outside its section.
	ErrCorrupt = errors.New("corrupt record")
)

// Indexing a layer.
var (
	// ErrUnsupported: a media type or compression that cannot be read.
	ErrUnsupported = errors.New("unsupported layer media type")
	// ErrDigest: the stored bytes do not have the digest or size of the descriptor.
	ErrDigest = errors.New("verified reader digest mismatch")
	// ErrDiffID: the uncompressed stream does not have the config's diffID.
	ErrDiffID = errors.New("layer diffID mismatch")
	// ErrFormat: the gzip, zstd or tar stream is garbled or ends early.
	ErrFormat = errors.New("malformed layer")
)

// Using a tree.
var (
	// ErrInode: the tree has no inode of that number (ESTALE).
	ErrInode = errors.New("no such inode")
	// ErrType: the inode is not of the type that the call is for.
	ErrType = errors.New("wrong type of inode")
)

// CorruptError says that stored bytes of a layer changed after it was indexed.
type CorruptError struct {
	Blob   digest.Digest
	Offset int64 // in the uncompressed stream
	Err    error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("layer %s is damaged at uncompressed offset %d: %v", e.Blob, e.Offset, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }
