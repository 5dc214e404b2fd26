package layer

import "io"

// File is the content of one regular file of a lower tree. It is safe for
// concurrent use and holds no descriptor of its own.
type File interface {
	io.ReaderAt // holes read as zeros; io.EOF at Size, as io.ReaderAt asks
	// Size is the length in bytes.
	Size() int64
	// Data is the next run of data from off on, start ≥ off, with holes around it;
	// both are Size where there is none. A BlockSize that has data is data.
	Data(off int64) (start, end int64)
	// Ready reports whether n bytes at off can be read at once: nothing has to be
	// decoded, nor read from a disk. It may not be so any more when it returns.
	Ready(off int64, n int) bool
	// Direct reports where n bytes at off lie as they are in an open file, so
	// that they can be spliced without a copy: m ≤ n bytes at fdOff of fd. ok is
	// false where the content is compressed, a hole, or must first be verified.
	Direct(off int64, n int) (fd int, fdOff int64, m int, ok bool)
}

// Blob is random access to the uncompressed stream of one layer. Every byte it
// returns was checked against the digests taken when the layer was indexed; a
// mismatch is a *CorruptError.
type Blob interface {
	io.ReaderAt
	io.Closer
	// Size is the length of the uncompressed stream in bytes.
	Size() int64
	// Ready is as in File; a blob stored uncompressed cannot tell, and says no.
	Ready(off int64, n int) bool
	// Direct is as in File; only a blob stored uncompressed can answer ok.
	Direct(off int64, n int) (fd int, fdOff int64, m int, ok bool)
}
