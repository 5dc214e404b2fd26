package layer

import (
	"os"

	"github.com/opencontainers/go-digest"
)

// Source is one layer as its image describes it. The package knows nothing of
// image layouts: Open gives the stored bytes.
type Source struct {
	Digest    digest.Digest // of the stored bytes
	DiffID    digest.Digest // of the uncompressed stream
	Size      int64         // of the stored bytes
	MediaType string
	Open      func() (*os.File, error)
}

// Progress is told of the stored bytes of a Source that were consumed since the
// last call; first with none of each, so that the sum is known. It is called from
// several goroutines.
type Progress func(src Source, bytes int64)
