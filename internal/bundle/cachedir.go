package bundle

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/umoci-mount/umoci-mount/layer"
)

// cacheEnv names the cache directory where no option does.
const cacheEnv = "UMOCI_MOUNT_CACHE"

// CacheDir chooses the cache directory: the option, $UMOCI_MOUNT_CACHE,
// /var/cache/umoci-mount for root (not a user namespace's), $XDG_CACHE_HOME/umoci-mount or
// ~/.cache/umoci-mount.
func CacheDir(option string) (string, error) {
	for _, dir := range []string{option, os.Getenv(cacheEnv)} {
		if dir != "" {
			return filepath.Abs(dir)
		}
	}
	if OwnsIDs() {
		return "/var/cache/umoci-mount", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("choose a cache directory (set %s or --cache-dir): %w", cacheEnv, err)
	}
	return filepath.Abs(filepath.Join(dir, "umoci-mount"))
}

// openCacheDir makes and opens the cache directory. One that belongs to somebody
// else, or that others can write to, is refused: what it says of layers is
// believed.
func openCacheDir(path string) (*os.Root, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("create cache directory: %w (choose another with --cache-dir or %s)", err, cacheEnv)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open cache directory: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, errors.New("open cache directory: no owner")
	}
	if uid := uint32(os.Geteuid()); st.Uid != uid && st.Uid != 0 {
		return nil, fmt.Errorf("cache directory %s belongs to user %d, not to %d or root: choose another with --cache-dir", path, st.Uid, uid)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("cache directory %s can be written to by others: chmod go-w it, or choose another with --cache-dir", path)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open cache directory: %w", err)
	}
	return root, nil
}

// dirCache is a cache with the directory it is in.
type dirCache struct {
	*layer.Cache
	root *os.Root
}

// openCache opens the cache in the directory that CacheDir chooses. log may be nil.
func openCache(option string, log *slog.Logger) (*dirCache, error) {
	dir, err := CacheDir(option)
	if err != nil {
		return nil, err
	}
	root, err := openCacheDir(dir)
	if err != nil {
		return nil, err
	}
	c, err := layer.OpenCache(root, layer.CacheOptions{Log: log})
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &dirCache{c, root}, nil
}

func (c *dirCache) close() error { return c.root.Close() }
