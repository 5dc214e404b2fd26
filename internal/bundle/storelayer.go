package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
)

var compressions = map[string]layer.Compression{
	cas.CompressNone: layer.CompressNone,
	cas.CompressGzip: layer.CompressGzip,
	cas.CompressZstd: layer.CompressZstd,
}

// storedLayer is a layer's blob in a layout, to which nothing refers yet.
type storedLayer struct {
	res layer.BlobResult
	toc []byte // nil: not known
}

// storeLayer writes the plain stream that write makes as a blob. compress is one of
// cas's names, not auto. The toc that write gives is passed on.
func storeLayer(ctx context.Context, l *cas.Layout, compress string, write func(io.Writer) (toc []byte, err error)) (_ *storedLayer, err error) {
	blob, err := l.NewBlob(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	out := layer.NewBlobWriter(blob, compressions[compress])
	toc, err := write(out)
	if err != nil {
		_ = out.Close() // the first error counts
		return nil, fmt.Errorf("write layer: %w", err)
	}
	if err := out.Close(); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	res, err := out.Result()
	if err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	d, size, err := blob.Commit(ctx)
	if err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	if d != res.Digest || size != res.Size {
		return nil, fmt.Errorf("write layer: stored are %d bytes %s, written were %d bytes %s", size, d, res.Size, res.Digest)
	}
	return &storedLayer{res, toc}, nil
}

// layer describes it as img's next layer.
func (s *storedLayer) layer(img *cas.Image, compress string) *cas.NewLayer {
	return &cas.NewLayer{
		Digest: s.res.Digest, Size: s.res.Size, DiffID: s.res.DiffID, PlainSize: s.res.PlainSize,
		MediaType: img.LayerMediaType(compress),
	}
}

// remember makes the next mount of the layer a warm one. That is worth no failure. The
// cache directory is one that CacheDir chooses.
func (s *storedLayer) remember(ctx context.Context, cacheDir string, log *slog.Logger) {
	cache, err := openCache(cacheDir, log)
	if err == nil {
		err = errors.Join(cache.PutIndex(ctx, s.res, s.toc), cache.close())
	}
	if err != nil {
		log.Warn("the new layer's index could not be cached: its first mount will make it", "error", err)
	}
}
