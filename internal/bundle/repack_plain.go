package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
)

// isPlain reports whether a bundle was made by stock umoci: it has umoci.json, an
// unpacked rootfs and an mtree manifest, and nothing of ours.
func isPlain(bundle string) (bool, error) {
	_, err := readState(bundle)
	switch {
	case err == nil:
		return false, nil
	case !errors.Is(err, ErrNotBundle) || fileExists(filepath.Join(bundle, stateDir, stateName)):
		return false, err
	case !fileExists(filepath.Join(bundle, umociName)):
		return false, err
	}
	return true, nil
}

// repackPlain is Repack of a bundle that stock umoci unpacked. The whole rootfs is
// compared with the manifest, by go-mtree alone, as umoci does.
func repackPlain(ctx context.Context, opt RepackOptions) (res *RepackResult, err error) {
	bundle, err := filepath.Abs(opt.Bundle)
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	unlock, err := lockPlain(bundle)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	meta, err := readUmoci(bundle)
	if err != nil {
		return nil, err
	}
	l, err := cas.Open(opt.Layout)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	img, err := l.Image(ctx, &cas.Path{Walk: meta.From.Walk})
	if errors.Is(err, cas.ErrBlobNotFound) {
		return nil, fmt.Errorf("%w: %w", ErrOtherLayout, err)
	}
	if err != nil {
		return nil, err
	}
	root, err := newDirTree(filepath.Join(bundle, rootfsName), &meta.MapOptions)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.close()) }()
	pairs, err := checkManifest(filepath.Join(bundle, mtreeName(digestOf(meta.From.Walk))), root, opt.Log)
	if err != nil {
		return nil, err
	}
	plan, err := plainPlan(pairs, maskList(opt, img))
	if err != nil {
		return nil, err
	}
	w := &layerWriting{opt: opt, layout: l, image: img, view: root}
	cache, err := w.openCache()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cache.close()) }()
	if res, err = w.write(ctx, plan); err != nil {
		return nil, err
	}
	if opt.RefreshBundle {
		err = refreshPlain(bundle, meta, w.path, opt.Tag)
	}
	return res, err
}

// lockPlain keeps two commands of ours off one bundle.
func lockPlain(bundle string) (func() error, error) {
	d, err := os.Open(bundle)
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = d.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, fmt.Errorf("%s: %w", bundle, err)
	}
	return d.Close, nil
}

// openCache opens the cache for what is learnt of the new layer.
func (w *layerWriting) openCache() (*openCache, error) {
	dir, err := CacheDir(w.opt.CacheDir)
	if err != nil {
		return nil, err
	}
	c, err := newCache(dir, w.opt.Log)
	if err != nil {
		return nil, err
	}
	w.cache = c.Cache
	return c, nil
}

// plainPlan is the entries of a layer. A manifest says nothing of which names are
// one inode, so all that differ in their number of links are written.
func plainPlan(pairs []*pathPair, m masks) ([]planned, error) {
	var out []planned
	for _, p := range pairs {
		if m.match(p.path) {
			continue
		}
		if p.kind != changeDeleted && layer.IsWhiteoutName(filepath.Base(p.path)) {
			return nil, fmt.Errorf("%q: %w", p.path, layer.ErrReservedName)
		}
		out = append(out, planned{path: p.path, whiteout: p.kind == changeDeleted, now: p.now})
	}
	slices.SortFunc(out, func(a, b planned) int { return layer.ComparePaths(a.path, b.path) })
	link(out)
	return out, nil
}

// refreshPlain makes the new image what the bundle says it was made from.
func refreshPlain(bundle string, meta *umociMeta, path *cas.Path, tag string) error {
	old := filepath.Join(bundle, mtreeName(digestOf(meta.From.Walk)))
	fresh := filepath.Join(bundle, mtreeName(path.Descriptor().Digest))
	if old == fresh {
		return nil
	}
	if err := writeWalk(filepath.Join(bundle, rootfsName), fresh); err != nil {
		return err
	}
	meta.From.Walk = taggedWalk(path.Walk, tag)
	if err := writeUmoci(bundle, meta); err != nil {
		return err
	}
	if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old manifest: %w", err)
	}
	return nil
}
