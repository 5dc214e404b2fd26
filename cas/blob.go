package cas

import (
	"bytes"
	"context"
	_ "crypto/sha512" // makes go-digest read sha384 and sha512, which image-spec registers
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobName is a blob's path in the layout. ErrMalformed.
func blobName(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w: %w", d, ErrMalformed, err)
	}
	return path.Join("blobs", d.Algorithm().String(), d.Encoded()), nil
}

// Blob opens a blob for reading. Its content is not verified: whoever reads it is
// to compare it with d. ErrBlobNotFound; ErrMalformed for what cannot be a digest,
// or where a regular file is not what has the blob's name.
func (l *Layout) Blob(ctx context.Context, d digest.Digest) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name, err := blobName(d)
	if err != nil {
		return nil, err
	}
	f, err := l.openFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s in %s", ErrBlobNotFound, d, l.path)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	return f, nil
}

// ReadBlob reads a whole document, of at most MaxDocument bytes, and verifies size
// and digest. Embedded data is used in place of the blob (image-spec, descriptor.md),
// and verified just so. ErrTooLarge, ErrMalformed, ErrBlobNotFound, ErrDigest.
func (l *Layout) ReadBlob(ctx context.Context, desc ispec.Descriptor) ([]byte, error) {
	if desc.Size < 0 || desc.Size > MaxDocument {
		return nil, fmt.Errorf("document %s has %d bytes, read are 0 to %d: %w", desc.Digest, desc.Size, MaxDocument, ErrTooLarge)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := blobName(desc.Digest); err != nil {
		return nil, err
	}
	data := desc.Data
	if data == nil {
		f, err := l.Blob(ctx, desc.Digest)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		var b bytes.Buffer
		if _, err := io.Copy(&b, io.LimitReader(f, desc.Size+1)); err != nil {
			return nil, fmt.Errorf("read blob %s: %w", desc.Digest, err)
		}
		data = b.Bytes()
	}
	if got := desc.Digest.Algorithm().FromBytes(data[:min(int64(len(data)), desc.Size)]); got != desc.Digest {
		return nil, fmt.Errorf("blob %s in %s: %w", desc.Digest, l.path, ErrDigest)
	}
	if int64(len(data)) != desc.Size {
		return nil, fmt.Errorf("blob %s in %s has more than %d bytes: %w", desc.Digest, l.path, desc.Size, ErrSize)
	}
	return data, nil
}

// BlobWriter is a blob being written. Close it in any case. It is for one
// goroutine.
type BlobWriter struct {
	t    *tempFile
	hash hash.Hash // of what was written
	size int64     // bytes written
}

// NewBlob begins a blob.
func (l *Layout) NewBlob(ctx context.Context) (*BlobWriter, error) {
	t, err := l.newTemp(ctx)
	if err != nil {
		return nil, err
	}
	return &BlobWriter{t: t, hash: digest.SHA256.Hash()}, nil
}

// Write adds to the blob.
func (w *BlobWriter) Write(p []byte) (int, error) {
	if err := w.t.l.step("write"); err != nil {
		return 0, fmt.Errorf("write blob: %w", err)
	}
	n, err := w.t.f.Write(p)
	w.hash.Write(p[:n]) // never fails
	w.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("write blob: %w", err)
	}
	return n, nil
}

// Commit makes the blob durable under its digest, and returns that and its size in
// bytes. That it is there already is no error: it is replaced by the same content,
// which also mends one that had rotted. Commit once.
func (w *BlobWriter) Commit(ctx context.Context) (digest.Digest, int64, error) {
	if err := ctx.Err(); err != nil {
		return "", 0, err
	}
	d := digest.NewDigest(digest.SHA256, w.hash)
	name, err := blobName(d)
	if err != nil {
		return "", 0, err
	}
	if err := w.t.l.ensureDir(path.Dir(name)); err != nil {
		return "", 0, fmt.Errorf("publish blob: %w", err)
	}
	if err = w.t.sync(name); err == nil {
		err = w.t.publish(name)
	}
	if err != nil {
		return "", 0, err
	}
	return d, w.size, nil
}

// Close ends the writer; what was not committed is gone.
func (w *BlobWriter) Close() error { return w.t.discard() }

// putDocument writes a document as a blob, with the end of line that umoci's have.
func (l *Layout) putDocument(ctx context.Context, data []byte) (digest.Digest, int64, error) {
	return l.putJSON(ctx, append(data, '\n'))
}

// putJSON writes a document as a blob, as it is.
func (l *Layout) putJSON(ctx context.Context, data []byte) (d digest.Digest, size int64, err error) {
	w, err := l.NewBlob(ctx)
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := w.Write(data); err != nil {
		return "", 0, err
	}
	return w.Commit(ctx)
}
