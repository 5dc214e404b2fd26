package layer

import (
	"errors"
	"io"
)

// blobIndex is what random access to one layer needs: where decoding can start,
// and the states of the digest in between, see docs/blob-index-format.md.
type blobIndex struct {
	side bool // the spans are those of the side file
}

// usesSide reports whether reads go to the side file that buildBlobIndex wrote
// instead of the layer's blob: openBlob must then be given that file.
func (ix *blobIndex) usesSide() bool { return ix.side }

// encode writes the index in its file form.
func (ix *blobIndex) encode(io.Writer) error { return errors.ErrUnsupported }

// decodeBlobIndex checks b and gives the index, which keeps b. Errors: ErrMagic,
// ErrVersion, ErrChecksum, ErrCorrupt.
func decodeBlobIndex([]byte) (*blobIndex, error) { return nil, errors.ErrUnsupported }
