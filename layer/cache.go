package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
)

// CacheOptions configures OpenCache.
type CacheOptions struct {
	// Log is told of files that are ignored or rebuilt; nil: nobody is.
	Log *slog.Logger
}

// IndexOptions says how layers are indexed and read.
type IndexOptions struct {
	// Progress is told of stored bytes consumed. Where anything has to be indexed,
	// the sums come up to the sizes of all distinct layers: one that is in the
	// cache already counts in one call. Where nothing has to be it is not called.
	Progress Progress
	// SpanCacheBytes bounds the memory for decoded spans that the image's layers
	// share.
	SpanCacheBytes int64
	// KeepBytes bounds the disk space that decoded spans of all images of the cache
	// take, so that they need not be decoded again when the kernel forgets them; 0:
	// none are kept.
	KeepBytes int64
	// Workers is how many layers are indexed at a time; 0: GOMAXPROCS.
	Workers int
	// KeepDirlinks keeps a symlink that leads to a directory where a layer has a
	// directory of its name.
	KeepDirlinks bool
}

func (o *IndexOptions) workers() int {
	if o.Workers > 0 {
		return o.Workers
	}
	return runtime.GOMAXPROCS(0)
}

// Cache keeps what was learnt of layers, so that it is learnt once:
//
//	blobs/<algorithm>/<hex>.idx   random access to a stored blob, by its digest
//	blobs/<algorithm>/<hex>.side  its content in another compression, where the own one allows no random access
//	blobs/<algorithm>/<hex>.toc   what its tar stream holds (docs/toc-format.md)
//	blobs/<algorithm>/<hex>.spans parts of its content, decoded (keptspans.go)
//	trees/<key>.tree              the merged tree of a list of layers (docs/tree-format.md)
//	locks/<name>                  held while one of these is made
//
// Files appear whole or not at all, are never changed (but .spans, which grow), and may
// be deleted at any time: they are made again. Only regular files that the caller or root owns are
// read. Several processes may use one directory at a time; one makes what
// another waits for. A Cache is safe for concurrent use.
type Cache struct {
	dir *os.Root
	log *slog.Logger
}

// OpenCache gives the cache in dir, which must stay open as long as the cache
// and its images are used. Nothing is written before something is learnt.
func OpenCache(dir *os.Root, opt CacheOptions) (*Cache, error) {
	fi, err := dir.Stat(".")
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	// In a directory that others can write, they could exchange files of ours.
	if !fi.IsDir() || !ownedBySelf(fi) || fi.Mode().Perm()&0o002 != 0 {
		return nil, fmt.Errorf("open cache: %s: not a directory of the caller's or root's that others cannot write: %w", dir.Name(), fs.ErrPermission)
	}
	log := opt.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Cache{dir: dir, log: log}, nil
}

// Open gives the image of layers, the bottom one first. What the cache lacks is
// made: layers are indexed in parallel, the largest first, and merged. Each
// Source is opened now and held until the image is closed, so that deleting its
// blob does no harm. A blob that is not what its descriptor says is ErrDigest or
// ErrDiffID, one that cannot be read as a layer ErrFormat or ErrUnsupported, with
// the layer's digest. The image reads a blob's index when it first needs it:
// opening a known image does not depend on its size.
func (c *Cache) Open(ctx context.Context, layers []Source, opt IndexOptions) (_ *Image, err error) {
	defer catchFault(guardFaults(), &err)
	held, err := holdSources(layers)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, held.close())
		}
	}()
	key := treeKey(layers, opt.KeepDirlinks)
	tree, err := c.openTree(key)
	switch {
	case err != nil && !c.missing(treePath(key), err):
		return nil, err
	case err == nil && held.indexed(c):
		return c.image(tree, layers, held, opt), nil
	case err == nil: // its layers' indexes were deleted
		defer func() {
			if err != nil {
				err = errors.Join(err, tree.Close())
			}
		}()
	}
	for range makeTries {
		err = c.indexAll(ctx, held, opt)
		if err == nil && tree == nil {
			tree, err = c.makeTree(ctx, key, layers, opt.KeepDirlinks)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return c.image(tree, layers, held, opt), nil
}

// makeTries is how often an image's files are made, where others prune the cache as
// they appear.
const makeTries = 10

// image joins a tree and the layers it was made of.
func (c *Cache) image(tree *Tree, layers []Source, held *heldSources, opt IndexOptions) *Image {
	im := &Image{Tree: tree, held: c.hold(held)}
	spans := newSpanCache(opt.SpanCacheBytes)
	spans.disk = c.newSpanDisk(opt.KeepBytes)
	blobs := make(map[blobID]*lazyBlob, len(held.layers))
	for _, h := range held.layers {
		blobs[idOf(h.src)] = &lazyBlob{
			open:    func() (*openedBlob, error) { return c.openLayer(h, spans) },
			abandon: h.close,
		}
	}
	for _, src := range layers {
		im.layers = append(im.layers, blobs[idOf(src)])
	}
	return im
}

// LayerPaths is every path that a layer's entries and whiteouts name, sorted by
// bytes, each once, as LookupPath takes them; an opaque marker names its
// directory. The layer is indexed if the cache lacks it.
func (c *Cache) LayerPaths(ctx context.Context, src Source) (_ []string, err error) {
	defer catchFault(guardFaults(), &err)
	held, err := holdSources([]Source{src})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, held.close()) }()
	if err := c.indexAll(ctx, held, IndexOptions{}); err != nil {
		return nil, err
	}
	var paths []string
	err = c.withTOC(src, func(t *toc) (err error) {
		paths, err = t.paths()
		return err
	})
	return paths, err
}

// missing reports whether err, of a file of the cache, only says that it must be
// made; the log is told why.
func (c *Cache) missing(path string, err error) bool {
	var changed *CorruptError // a side file
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true
	case errors.Is(err, ErrMagic), errors.Is(err, ErrVersion), errors.Is(err, ErrChecksum),
		errors.Is(err, ErrCorrupt), errors.Is(err, errUntrusted), errors.As(err, &changed):
		c.log.Warn("rebuild cache file", "file", path, "reason", err)
		return true
	}
	return false
}
