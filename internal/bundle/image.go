package bundle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
)

// ImageOptions say which image is read, and how.
type ImageOptions struct {
	Layout   string // path of an image layout
	Tag      string
	Platform *ispec.Platform // see cas.ResolveOptions
	From     *cas.Path       // the image itself, in place of a tag's; may be nil

	CacheDir     string // "" chooses: see CacheDir
	KeepDirlinks bool
	SpanCache    int64 // bytes of memory for decoded content; 0: some
	Progress     layer.Progress
	Log          *slog.Logger
}

// defaultSpanCache is ImageOptions.SpanCache where it is 0.
const defaultSpanCache = 32 << 20

// Image is an image of a layout with its merged tree, read in this process without
// a mount.
type Image struct {
	lowerTree
	Path     *cas.Path
	Manifest *cas.Image
}

// OpenImage finds an image and indexes the layers that the cache does not know. Its
// blobs stay where they are until it is closed.
func OpenImage(ctx context.Context, opt ImageOptions) (*Image, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	im := &Image{}
	if err := im.open(ctx, opt); err != nil {
		return nil, errors.Join(err, im.Close())
	}
	return im, nil
}

func (im *Image) open(ctx context.Context, opt ImageOptions) error {
	layout, err := cas.Open(opt.Layout)
	if err != nil {
		return err
	}
	if err := im.pin(ctx, layout); err != nil {
		return err
	}
	if im.Path = opt.From; im.Path == nil {
		if im.Path, err = im.layout.Resolve(ctx, opt.Tag, cas.ResolveOptions{Platform: opt.Platform}); err != nil {
			return err
		}
	}
	if im.Manifest, err = im.layout.Image(ctx, im.Path); err != nil {
		return fmt.Errorf("%s:%s: %w", opt.Layout, opt.Tag, err)
	}
	if opt.SpanCache == 0 {
		opt.SpanCache = defaultSpanCache
	}
	return im.merge(ctx, stateLayers(im.Manifest), opt.CacheDir, layer.IndexOptions{
		Progress: opt.Progress, SpanCacheBytes: opt.SpanCache, KeepDirlinks: opt.KeepDirlinks,
	}, opt.Log)
}

// diffID is the digest of the plain stream of a layer, by its number.
func (im *Image) diffID(n int) digest.Digest { return im.Manifest.Config.RootFS.DiffIDs[n] }
