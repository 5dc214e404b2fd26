package bundle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umoci-mount/umoci-mount/cas"
)

// GCOptions of GC.
type GCOptions struct {
	Layout   string
	CacheDir string // where bundles are listed
	Force    bool   // do not mind bundles, nor who uses or writes blobs
	Log      *slog.Logger
}

// GC removes from a layout what neither a reference nor a bundle needs: a mounted
// one, or one that was ever mounted with this cache and is still there. cas.ErrBusy,
// unless forced, while commands work on the layout.
func GC(ctx context.Context, opt GCOptions) (res cas.GCResult, err error) {
	l, err := cas.Open(opt.Layout)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	gc := cas.GCOptions{Force: opt.Force}
	if !opt.Force {
		if gc.Roots, err = bundleRoots(opt.Layout, opt.CacheDir, opt.Log); err != nil {
			return res, err
		}
	}
	return l.GC(ctx, gc)
}

// bundleRoots are the manifests of a layout that bundles were made from.
func bundleRoots(layout, cacheDir string, log *slog.Logger) (_ []ispec.Descriptor, err error) {
	here, err := os.Stat(layout)
	if err != nil {
		return nil, err
	}
	bundles, err := knownBundles(cacheDir)
	if err != nil {
		return nil, err
	}
	var roots []ispec.Descriptor
	for _, bundle := range bundles {
		state, err := readState(bundle)
		if err != nil {
			return nil, fmt.Errorf("what bundle %s needs of the layout is not known (--force does not mind): %w", bundle, err)
		}
		if there, err := os.Stat(state.Layout); err != nil || !os.SameFile(here, there) {
			continue
		}
		log.Info("keeping what a bundle needs", "bundle", bundle, "manifest", state.Manifest.Digest.String())
		roots = append(roots, state.Manifest)
		if meta, err := readUmoci(bundle); err == nil { // of a later image, after a refresh
			roots = append(roots, meta.From.Walk...)
		}
	}
	return roots, nil
}

// knownBundles are the mounted bundles, and those that the cache lists.
func knownBundles(cacheDir string) (_ []string, err error) {
	mounts, err := ownMounts()
	if err != nil {
		return nil, err
	}
	var bundles []string
	for _, e := range mounts {
		if e.FSType == fsType {
			if bundle := bundleAt(e.Point); bundle != "" {
				bundles = append(bundles, bundle)
			}
		}
	}
	if fileExists(cacheDir) {
		cache, err := openCacheDir(cacheDir)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, cache.Close()) }()
		listed, err := registered(cache)
		if err != nil {
			return nil, err
		}
		bundles = append(bundles, listed...)
	}
	slices.Sort(bundles)
	return slices.Compact(bundles), nil
}
