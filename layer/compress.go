package layer

import (
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
)

// BlobResult describes a blob that a BlobWriter wrote.
type BlobResult struct {
	Digest    digest.Digest // of the stored bytes
	DiffID    digest.Digest // of the plain stream
	Size      int64         // of the stored bytes
	PlainSize int64
	Index     []byte // the blob's index in its file form
}

// BlobWriter compresses a layer's plain stream.
type BlobWriter struct{}

// NewBlobWriter compresses what is written to it into w, as independent members
// or frames, in parallel. The output is a function of the input alone.
func NewBlobWriter(w io.Writer, c Compression) *BlobWriter { return &BlobWriter{} }

// Write takes the next bytes of the plain stream.
func (w *BlobWriter) Write(p []byte) (int, error) { return 0, errors.ErrUnsupported }

// Close finishes the blob.
func (w *BlobWriter) Close() error { return errors.ErrUnsupported }

// Result describes the blob, after Close.
func (w *BlobWriter) Result() (BlobResult, error) { return BlobResult{}, errors.ErrUnsupported }
