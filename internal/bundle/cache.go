package bundle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
)

// CacheEntries lists what a cache directory holds, what was used last first.
func CacheEntries(dir string, log *slog.Logger) (_ []layer.CacheEntry, err error) {
	c, err := openCache(dir, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	return c.Entries()
}

// CachePruneOptions of PruneCache. An entry goes where one of them says so.
type CachePruneOptions struct {
	CacheDir  string        // "" chooses: see CacheDir
	All       bool          // all that is not in use
	OlderThan time.Duration // what was not used for as long; 0: says nothing
	Layouts   []string      // what none of these image layouts needs; none: says nothing
	MaxBytes  int64         // what is too much, the longest unused first; negative: says nothing
	DryRun    bool          // only say what would go
	Now       time.Time
	Log       *slog.Logger
}

// PruneCache removes entries of a cache that nobody has in use, and returns them.
func PruneCache(ctx context.Context, opt CachePruneOptions) (_ []layer.CacheEntry, err error) {
	c, err := openCache(opt.CacheDir, opt.Log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	o := layer.PruneOptions{MaxBytes: opt.MaxBytes, DryRun: opt.DryRun}
	if opt.OlderThan > 0 {
		o.Before = opt.Now.Add(-opt.OlderThan)
	}
	switch {
	case opt.All:
		o.Unwanted = func(layer.CacheEntry) bool { return true }
	case len(opt.Layouts) > 0:
		wanted, err := wantedEntries(ctx, opt.Layouts)
		if err != nil {
			return nil, err
		}
		o.Unwanted = func(e layer.CacheEntry) bool { return !wanted[e.Name] }
	}
	return c.Prune(ctx, opt.Now, o)
}

// wantedEntries are the names of what the images of layouts need.
func wantedEntries(ctx context.Context, layouts []string) (map[string]bool, error) {
	wanted := map[string]bool{}
	for _, path := range layouts {
		if err := addWanted(ctx, path, wanted); err != nil {
			return nil, err
		}
	}
	return wanted, nil
}

func addWanted(ctx context.Context, path string, wanted map[string]bool) (err error) {
	l, err := cas.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	g, err := l.Check(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, img := range g.Images {
		var layers []layer.Source
		for i, d := range img.Layers {
			wanted[d.Digest.String()] = true
			layers = append(layers, layer.Source{Digest: d.Digest, DiffID: img.DiffIDs[i]})
		}
		for _, keep := range []bool{false, true} {
			wanted[layer.TreeName(layers, keep)] = true
		}
	}
	return nil
}
