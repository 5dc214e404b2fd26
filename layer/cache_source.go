package layer

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
)

// blobID is which layer a Source is.
type blobID struct{ digest, diffID digest.Digest }

func idOf(src Source) blobID { return blobID{src.Digest, src.DiffID} }

// heldSource is a Source with its blob open.
type heldSource struct {
	src Source
	f   *os.File // nil once given away or closed
}

func (h *heldSource) close() error {
	if h.f == nil {
		return nil
	}
	f := h.f
	h.f = nil
	return f.Close()
}

// heldSources are the distinct layers of an image.
type heldSources struct{ layers []*heldSource }

// holdSources opens every distinct layer and checks what costs nothing: digests
// must be well-formed, as they become file names, sizes right, and types known.
func holdSources(layers []Source) (_ *heldSources, err error) {
	held := &heldSources{}
	defer func() {
		if err != nil {
			err = errors.Join(err, held.close())
		}
	}()
	seen := make(map[blobID]bool, len(layers))
	for _, src := range layers {
		if seen[idOf(src)] {
			continue
		}
		seen[idOf(src)] = true
		h, err := holdSource(src)
		if err != nil {
			return held, fmt.Errorf("layer %s: %w", src.Digest, err)
		}
		held.layers = append(held.layers, h)
	}
	return held, nil
}

func holdSource(src Source) (*heldSource, error) {
	if err := src.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDigest, err)
	}
	if err := src.DiffID.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDiffID, err)
	}
	if _, err := ParseMediaType(src.MediaType); err != nil {
		return nil, err
	}
	f, err := src.Open()
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() != src.Size {
		err = fmt.Errorf("%w: %d bytes stored, %d expected", ErrDigest, fi.Size(), src.Size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &heldSource{src: src, f: f}, nil
}

func (s *heldSources) close() error {
	var errs []error
	for _, h := range s.layers {
		errs = append(errs, h.close())
	}
	return errors.Join(errs...)
}

// indexed reports whether the cache has every layer's index, as far as can be
// told without reading them.
func (s *heldSources) indexed(c *Cache) bool {
	for _, h := range s.layers {
		f, _, err := c.open(indexPath(h.src.Digest))
		if err != nil {
			return false
		}
		if f.Close() != nil {
			return false
		}
	}
	return true
}

// rewind makes the blob ready to be read from its start.
func (h *heldSource) rewind() error {
	_, err := h.f.Seek(0, io.SeekStart)
	return err
}
