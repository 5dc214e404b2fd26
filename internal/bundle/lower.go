package bundle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// lowerTree is the layers of an image opened to be read as one tree: below a mount, below
// a bundle's upper directory in a command, or alone (Image). The layout comes first (pin),
// then the tree (merge), or both as a bundle's state says (openState). The zero lowerTree
// has neither; Close releases what there is.
type lowerTree struct {
	*layer.Image // nil: not merged yet

	layout *cas.Layout
	unpin  func() error // until then gc leaves the blobs where they are
	cache  *dirCache
}

// pin takes a layout, and keeps its blobs there.
func (l *lowerTree) pin(ctx context.Context, layout *cas.Layout) (err error) {
	l.layout = layout
	l.unpin, err = layout.Pin(ctx)
	return err
}

// merge opens the tree of some layers, and indexes those that the cache does not know.
func (l *lowerTree) merge(ctx context.Context, layers []StateLayer, cacheDir string, opt layer.IndexOptions, log *slog.Logger) (err error) {
	if l.cache, err = openCache(cacheDir, log); err != nil {
		return err
	}
	l.Image, err = l.cache.Open(ctx, sources(ctx, l.layout, layers), opt)
	return err
}

// openState opens what a bundle is mounted on: from the layout that is named, or from the
// one that the state names.
func (l *lowerTree) openState(ctx context.Context, s *State, layout string, log *slog.Logger) error {
	from, err := s.openLayout(layout)
	if err != nil {
		return err
	}
	if err := l.pin(ctx, from); err != nil {
		return err
	}
	return l.merge(ctx, s.Layers, s.Options.CacheDir, indexOptions(&s.Options, nil), log)
}

// Close releases all of it.
func (l *lowerTree) Close() error {
	var errs []error
	if l.Image != nil {
		errs = append(errs, l.Image.Close())
	}
	if l.cache != nil {
		errs = append(errs, l.cache.close())
	}
	if l.unpin != nil {
		errs = append(errs, l.unpin())
	}
	if l.layout != nil {
		errs = append(errs, l.layout.Close())
	}
	return errors.Join(errs...)
}

func indexOptions(o *StateOptions, progress layer.Progress) layer.IndexOptions {
	return layer.IndexOptions{Progress: progress, SpanCacheBytes: o.SpanCache, KeepBytes: o.DiskCache, KeepDirlinks: o.KeepDirlinks}
}

func stateLayers(img *cas.Image) []StateLayer {
	var out []StateLayer
	for i, d := range img.Manifest.Layers {
		out = append(out, StateLayer{d.MediaType, d.Digest, d.Size, img.Config.RootFS.DiffIDs[i]})
	}
	return out
}

// sources are the layers as package layer takes them.
func sources(ctx context.Context, l *cas.Layout, layers []StateLayer) []layer.Source {
	var out []layer.Source
	for _, sl := range layers {
		out = append(out, layer.Source{
			Digest: sl.Digest, DiffID: sl.DiffID, Size: sl.Size, MediaType: sl.MediaType,
			Open: func() (*os.File, error) { return l.Blob(ctx, sl.Digest) },
		})
	}
	return out
}

// openOverlay joins the lower tree and the bundle's upper. What is read only is in the
// image's ids, as a repack takes it.
func (d *dir) openOverlay(lower *layer.Image, o *StateOptions, readOnly bool, log *slog.Logger) (*overlay.FS, error) {
	opt := overlay.Options{ReadOnly: readOnly, Log: log}
	if !readOnly {
		o.show(&opt)
	}
	return d.joinUpper(lower, o, opt)
}

// joinUpper is openOverlay with other options.
func (d *dir) joinUpper(lower *layer.Image, o *StateOptions, opt overlay.Options) (*overlay.FS, error) {
	upper, err := d.top.folder(upperName)
	if err != nil {
		return nil, fmt.Errorf("open upper directory: %w", err)
	}
	defer upper.close()
	work, err := d.top.folder(workName)
	if err != nil {
		return nil, fmt.Errorf("open work directory: %w", err)
	}
	defer work.close()
	u, err := overlay.OpenUpper(overlay.UpperOptions{
		Upper: upper.fd, Work: work.fd, Rootless: o.Rootless, Volatile: o.Volatile, KeepAtime: opt.ReadOnly || o.ReadOnly,
	})
	if err != nil {
		return nil, err
	}
	tree, err := overlay.New(lower, u, opt)
	if err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return tree, nil
}
