package layer

import (
	"context"
	"errors"
	"io"
	"os"
)

// buildBlobIndex makes one pass over f. It verifies src.Digest, src.Size and
// src.DiffID, hands the plain stream to scan, and records where reading can
// resume. The stored stream is read to its end even where scan stops early.
//
// side gives the file for a transcoded copy; it is called at most once, for a
// layer that is one long zstd frame and so cannot be read at random. The caller
// keeps the file and publishes it beside the index where usesSide says so. With
// a nil side such a layer is ErrUnsupported. scan and progress may be nil.
func buildBlobIndex(ctx context.Context, f *os.File, src Source, side func() (*os.File, error),
	scan func(io.Reader) error, progress func(bytes int64),
) (*blobIndex, error) {
	return nil, errors.ErrUnsupported
}

// openBlob gives the plain stream of a layer. f is the layer's blob, or the side
// file where ix.usesSide; it is taken over, also when an error is returned.
func openBlob(f *os.File, src Source, ix *blobIndex, cache *spanCache) (Blob, error) {
	return nil, errors.Join(errors.ErrUnsupported, f.Close())
}
