package layer

import (
	"context"
	"errors"
	"log/slog"
	"os"
)

// CacheOptions configures OpenCache.
type CacheOptions struct {
	Log *slog.Logger // told of files that are ignored or rebuilt; nil: nobody is
}

// IndexOptions says how layers are indexed and read.
type IndexOptions struct {
	Progress       Progress // may be nil
	SpanCacheBytes int64    // memory for decoded spans, shared by the image's layers
	Workers        int      // layers indexed at a time; 0: GOMAXPROCS
	KeepDirlinks   bool     // a directory entry over a symlink to a directory keeps the symlink
}

// Cache holds what was learnt of layers.
type Cache struct{}

// OpenCache opens the cache below dir, which must stay open as long as the
// cache and its images are used.
func OpenCache(dir *os.Root, opt CacheOptions) (*Cache, error) { return nil, errors.ErrUnsupported }

// Open gives the image of layers, the bottom one first.
func (c *Cache) Open(ctx context.Context, layers []Source, opt IndexOptions) (*Image, error) {
	return nil, errors.ErrUnsupported
}

// LayerPaths is every path that a layer's entries and whiteouts name, sorted, cleaned.
func (c *Cache) LayerPaths(ctx context.Context, src Source) ([]string, error) {
	return nil, errors.ErrUnsupported
}
