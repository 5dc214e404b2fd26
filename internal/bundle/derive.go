package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
)

// DeriveOptions say which image another is made of, without a mount and without a tag.
// The caller holds a Pin of the layout until something refers to the result.
type DeriveOptions struct {
	Layout   *cas.Layout
	From     *cas.Path
	Compress string // cas.CompressAuto and so on
	History  []ispec.History
	Epoch    *time.Time // SOURCE_DATE_EPOCH; nil: not set
	CacheDir string     // "" chooses: see CacheDir
	Log      *slog.Logger
}

// InputError is what is wrong with one of several inputs.
type InputError struct {
	Index int // among them
	Name  string
	Err   error
}

func (e *InputError) Error() string { return e.Name + ": " + e.Err.Error() }

func (e *InputError) Unwrap() error { return e.Err }

func (o *DeriveOptions) log() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}

// open is an image of the layout, read in this process.
func (o *DeriveOptions) open(ctx context.Context, from *cas.Path) (*Image, error) {
	return OpenImage(ctx, ImageOptions{Layout: o.Layout.Path(), From: from, CacheDir: o.CacheDir, Log: o.log()})
}

// derive adds one layer, which write gives, to the image.
func derive(ctx context.Context, opt *DeriveOptions, edit func(config, manifest cas.Document) error,
	write func(io.Writer) (toc []byte, err error)) (*cas.Path, error) {
	img, err := opt.Layout.Image(ctx, opt.From)
	if err != nil {
		return nil, err
	}
	compress, err := img.LayerCompression(opt.Compress)
	if err != nil {
		return nil, err
	}
	stored, err := storeLayer(ctx, opt.Layout, compress, write)
	if err != nil {
		return nil, err
	}
	made, err := opt.Layout.Commit(ctx, img, cas.Change{
		Layers: []cas.NewLayer{*stored.layer(img, compress)}, History: opt.History, Edit: edit,
	})
	if err != nil {
		return nil, fmt.Errorf("write image: %w", err)
	}
	stored.remember(ctx, opt.CacheDir, opt.log())
	return made, nil
}

// Squash makes an image of opt.From and one layer of all that differs from it in top,
// which has all of its layers and more. Where nothing differs there is no layer. A top
// with one layer more, of the compression that is asked for, gives its layer.
func Squash(ctx context.Context, opt DeriveOptions, top *cas.Path, edit func(config, manifest cas.Document) error) (*cas.Path, error) {
	img, err := opt.Layout.Image(ctx, opt.From)
	if err != nil {
		return nil, err
	}
	topImage, err := opt.Layout.Image(ctx, top)
	if err != nil {
		return nil, err
	}
	below, all := stateLayers(img), stateLayers(topImage)
	if len(all) < len(below) || !slices.Equal(all[:len(below)], below) {
		return nil, errors.New("squash: the images do not lie on each other")
	}
	compress, err := img.LayerCompression(opt.Compress)
	if err != nil {
		return nil, err
	}
	above := topImage.Manifest.Layers[len(below):]
	change := cas.Change{History: opt.History, Edit: edit}
	switch {
	case len(above) == 0:
	case len(above) == 1 && above[0].MediaType == topImage.LayerMediaType(compress):
		return takeLayers(ctx, &opt, img, topImage, change)
	default:
		return squash(ctx, &opt, top, all[len(below):], edit)
	}
	made, err := opt.Layout.Commit(ctx, img, change)
	if err != nil {
		return nil, fmt.Errorf("write image: %w", err)
	}
	return made, nil
}

// takeLayers gives an image the layers that another has above its own.
func takeLayers(ctx context.Context, opt *DeriveOptions, img, top *cas.Image, change cas.Change) (*cas.Path, error) {
	for i, d := range top.Manifest.Layers[len(img.Manifest.Layers):] {
		l := cas.NewLayer{
			Digest: d.Digest, Size: d.Size, MediaType: d.MediaType,
			DiffID: top.Config.RootFS.DiffIDs[len(img.Manifest.Layers)+i],
		}
		var err error
		if l.PlainSize, err = cas.PlainSize(d); err != nil {
			return nil, err
		}
		change.Layers = append(change.Layers, l)
	}
	made, err := opt.Layout.Commit(ctx, img, change)
	if err != nil {
		return nil, fmt.Errorf("write image: %w", err)
	}
	return made, nil
}

// squash is Squash where a layer has to be written: above are the layers of top that
// opt.From has not.
func squash(ctx context.Context, opt *DeriveOptions, top *cas.Path, above []StateLayer,
	edit func(config, manifest cas.Document) error) (_ *cas.Path, err error) {
	was, err := opt.open(ctx, opt.From)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, was.Close()) }()
	now, err := opt.open(ctx, top)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, now.Close()) }()
	plan, err := planSquash(ctx, opt, was, now, above)
	if err != nil {
		return nil, err
	}
	if len(plan) == 0 {
		return opt.Layout.Commit(ctx, was.Manifest, cas.Change{History: opt.History, Edit: edit})
	}
	return derive(ctx, opt, edit, func(out io.Writer) ([]byte, error) {
		source := recordSource{view: stillTree{imageTree{now.Image}}}
		return layer.WriteDiff(out, source.records(ctx, plan), layer.DiffOptions{Epoch: opt.Epoch})
	})
}

func planSquash(ctx context.Context, opt *DeriveOptions, was, now *Image, above []StateLayer) ([]planned, error) {
	c := comparison{base: imageTree{was.Image}, view: imageTree{now.Image}, epoch: opt.Epoch, log: opt.log()}
	c.same = func(n, w layer.Ino) (bool, error) { return sameBytes(now, was, n, w) }
	walk := newTreeWalk(c.base, c.view)
	for _, src := range sources(ctx, now.layout, above) {
		paths, err := now.cache.LayerPaths(ctx, src)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", src.Digest, err)
		}
		if err := walk.named(ctx, paths); err != nil {
			return nil, err
		}
	}
	pairs, err := c.run(ctx, walk.paths())
	if err != nil {
		return nil, err
	}
	p := &planner{
		base: c.base, view: c.view, pairs: pairs,
		baseNames: func(ino layer.Ino) ([]string, error) { return namesIn(was.Image, ino) },
		viewNames: func(ino layer.Ino) ([]string, error) { return namesIn(now.Image, ino) },
	}
	return p.plan()
}

// stillTree is an image's tree, to which nobody writes.
type stillTree struct{ imageTree }

func (t stillTree) version(ino layer.Ino) (fileVersion, error) {
	a, err := t.im.Attr(ino)
	return fileVersion{size: a.Size, mtime: a.Mtime}, err
}
