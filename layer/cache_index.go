package layer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

func blobPath(d digest.Digest, ext string) string {
	return path.Join("blobs", d.Algorithm().String(), d.Encoded()+ext)
}

func indexPath(d digest.Digest) string { return blobPath(d, ".idx") }
func tocPath(d digest.Digest) string   { return blobPath(d, ".toc") }
func sidePath(d digest.Digest) string  { return blobPath(d, ".side") }
func keptPath(d digest.Digest) string  { return blobPath(d, keptExt) }

// layerKey stands in a table of contents for the layer that was found to have
// both digests. An image that claims another diffID for the blob does not get
// the table, and so no tree: its claim is checked by reading the blob.
func layerKey(blob, diffID digest.Digest) [sha256.Size]byte {
	return sha256.Sum256([]byte(blob.String() + " " + diffID.String() + "\n"))
}

// lockBlob takes the lock of what the cache holds of one blob.
func (c *Cache) lockBlob(ctx context.Context, d digest.Digest) (func() error, error) {
	return c.lock(ctx, d.Algorithm().String()+"-"+d.Encoded())
}

// indexAll makes what the cache lacks of these layers, several at a time, the
// largest first, so that none is left to run alone at the end.
func (c *Cache) indexAll(ctx context.Context, held *heldSources, opt IndexOptions) error {
	order := slices.Clone(held.layers)
	slices.SortStableFunc(order, func(a, b *heldSource) int { return cmp.Compare(b.src.Size, a.src.Size) })
	if opt.Progress != nil {
		for _, h := range order {
			opt.Progress(h.src, 0)
		}
	}
	passes := min(opt.workers(), len(order))
	shared := newSharedWork(passes, opt.workers())
	defer shared.close()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(passes)
	for _, h := range order {
		group.Go(func() error {
			if err := c.index(ctx, h, opt.Progress, shared); err != nil {
				return fmt.Errorf("layer %s: %w", h.src.Digest, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// index makes one layer's index and table of contents unless they are there and
// sound.
func (c *Cache) index(ctx context.Context, h *heldSource, progress Progress, shared *sharedWork) (err error) {
	defer catchFault(guardFaults(), &err)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	ready, err := c.ready(h.src)
	if err == nil && !ready {
		var unlock func() error
		if unlock, err = c.lockBlob(ctx, h.src.Digest); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unlock()) }()
		ready, err = c.ready(h.src) // another process may have made them
	}
	if err != nil {
		return err
	}
	tell := func(n int64) {
		if progress != nil {
			progress(h.src, n)
		}
	}
	if ready {
		tell(h.src.Size)
		return nil
	}
	return c.makeIndex(ctx, h, tell, shared)
}

// ready reports whether the cache has all of a layer, for the diffID that is
// claimed for it.
func (c *Cache) ready(src Source) (bool, error) {
	if err := c.checkIndex(src); err != nil {
		if c.missing(indexPath(src.Digest), err) {
			return false, nil
		}
		return false, err
	}
	if err := c.withTOC(src, func(*toc) error { return nil }); err != nil {
		if c.missing(tocPath(src.Digest), err) {
			return false, nil
		}
		return false, err
	}
	return true, nil
}

// checkIndex reads a blob's index and looks for its side file.
func (c *Cache) checkIndex(src Source) error {
	b, err := c.mapFile(indexPath(src.Digest))
	if err != nil {
		return err
	}
	ix, err := decodeIndexOf(b, src)
	if err == nil && ix.usesSide() {
		err = c.checkSide(src.Digest, ix.dataSize)
	}
	return errors.Join(err, sys.Unmap(b))
}

func (c *Cache) checkSide(d digest.Digest, size int64) error {
	f, fi, err := c.open(sidePath(d))
	if err != nil {
		return err
	}
	if fi.Size() != size {
		err = fmt.Errorf("%w: side file of %d bytes, indexed were %d", ErrCorrupt, fi.Size(), size)
	}
	return errors.Join(err, f.Close())
}

// decodeIndexOf decodes an index, which must be of src's blob. ErrDiffID where what
// was found when it was made is not what is claimed for the blob now.
func decodeIndexOf(b []byte, src Source) (*blobIndex, error) {
	ix, err := decodeBlobIndex(b)
	if err != nil {
		return nil, err
	}
	switch {
	case src.Digest != sha256Digest(ix.digest):
		return nil, fmt.Errorf("%w: index of another layer", ErrCorrupt)
	case src.DiffID != sha256Digest(ix.diffID):
		return nil, diffIDError(sha256Digest(ix.diffID), src.DiffID)
	}
	return ix, nil
}

// withTOC calls fn with a layer's table of contents, valid during the call.
func (c *Cache) withTOC(src Source, fn func(*toc) error) error {
	b, err := c.mapFile(tocPath(src.Digest))
	if err != nil {
		return err
	}
	t, err := decodeTOC(b)
	if err == nil && t.layer != layerKey(src.Digest, src.DiffID) {
		err = fmt.Errorf("%w: table of contents of another layer", ErrCorrupt)
	}
	if err == nil {
		err = fn(t)
	}
	return errors.Join(err, sys.Unmap(b))
}

// makeIndex reads a whole layer once, verifies it, and writes what was learnt;
// the index comes last, so that where it is all is. The blob's lock is held.
func (c *Cache) makeIndex(ctx context.Context, h *heldSource, progress func(int64), shared *sharedWork) (err error) {
	if err := h.rewind(); err != nil {
		return err
	}
	var side *tempFile
	defer func() {
		if side != nil {
			err = errors.Join(err, side.discard())
		}
	}()
	openSide := func() (_ *os.File, err error) {
		if side, err = c.create(sidePath(h.src.Digest)); err != nil {
			return nil, err
		}
		return side.f, nil
	}
	var t *toc
	scan := func(r io.Reader) (err error) {
		t, err = scanTar(r)
		return err
	}
	ix, err := buildBlobIndex(ctx, h.f, h.src, passOptions{side: openSide, scan: scan, progress: progress, shared: shared})
	if err != nil {
		return err
	}
	if ix.usesSide() {
		publish := side.publish
		side = nil
		if err := publish(); err != nil {
			return err
		}
	}
	t.layer = layerKey(h.src.Digest, h.src.DiffID)
	if err := c.write(tocPath(h.src.Digest), func(f *os.File) error { return t.encode(f) }); err != nil {
		return err
	}
	return c.write(indexPath(h.src.Digest), func(f *os.File) error { return ix.encode(f) })
}

// PutIndex keeps the index and table of contents (ScanTOC) of a layer that was
// just written, so that its first mount is as quick as any.
func (c *Cache) PutIndex(ctx context.Context, res BlobResult, tocBytes []byte) (err error) {
	if err := errors.Join(res.Digest.Validate(), res.DiffID.Validate()); err != nil {
		return fmt.Errorf("keep index: %w", err)
	}
	t, err := decodeTOC(tocBytes)
	if err != nil {
		return fmt.Errorf("keep table of contents of %s: %w", res.Digest, err)
	}
	if _, err := decodeIndexOf(res.Index, Source{Digest: res.Digest, DiffID: res.DiffID, Size: res.Size}); err != nil {
		return fmt.Errorf("keep index of %s: %w", res.Digest, err)
	}
	unlock, err := c.lockBlob(ctx, res.Digest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	t.layer = layerKey(res.Digest, res.DiffID)
	if err := c.write(tocPath(res.Digest), func(f *os.File) error { return t.encode(f) }); err != nil {
		return err
	}
	return c.write(indexPath(res.Digest), func(f *os.File) error {
		_, err := f.Write(res.Index)
		return err
	})
}

// openLayer opens a layer of an image for reading and takes over its blob. An
// index that turns out to be broken now is made again, from the blob that is
// held: reads wait for that rather than fail.
func (c *Cache) openLayer(h *heldSource, spans *spanCache) (*openedBlob, error) {
	o, err := c.openIndexed(h, spans)
	if err != nil && h.f != nil && c.missing(indexPath(h.src.Digest), err) {
		shared := newSharedWork(1, runtime.GOMAXPROCS(0))
		err = c.index(context.Background(), h, nil, shared)
		shared.close()
		if err == nil {
			o, err = c.openIndexed(h, spans)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open layer %s: %w", h.src.Digest, err), h.close())
	}
	return o, nil
}

func (c *Cache) openIndexed(h *heldSource, spans *spanCache) (*openedBlob, error) {
	b, err := c.mapFile(indexPath(h.src.Digest))
	if err != nil {
		return nil, err
	}
	blob, err := c.openMapped(h, b, spans)
	if err != nil {
		return nil, errors.Join(err, sys.Unmap(b))
	}
	return &openedBlob{Blob: blob, release: func() error { return errors.Join(sys.Unmap(b), h.close()) }}, nil
}

// openMapped gives openBlob the file that the index in b is about: the blob,
// which it takes over, or the side file. The blob then stays held.
func (c *Cache) openMapped(h *heldSource, b []byte, spans *spanCache) (Blob, error) {
	ix, err := decodeIndexOf(b, h.src)
	if err != nil {
		return nil, err
	}
	f := h.f
	if ix.usesSide() {
		if f, _, err = c.open(sidePath(h.src.Digest)); err != nil {
			return nil, err
		}
	} else {
		h.f = nil
	}
	return openBlob(f, h.src, ix, spans)
}
