package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/umoci-mount/umoci-mount/layer"
)

// registryDir is where, in the cache, the bundles are listed that were ever mounted:
// one file each, named by a hash of the bundle's path, which is what it holds. A gc
// keeps what they need. A bundle that is gone is dropped from the list by then.
const registryDir = layer.UserDir

// register lists a bundle.
func register(cache *os.Root, bundle string) error {
	if err := cache.Mkdir(registryDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("register bundle: %w", err)
	}
	sum := sha256.Sum256([]byte(bundle))
	name := filepath.Join(registryDir, hex.EncodeToString(sum[:]))
	if data, err := cache.ReadFile(name); err == nil && string(data) == bundle+"\n" {
		return nil
	}
	if err := cache.WriteFile(name, []byte(bundle+"\n"), 0o600); err != nil {
		return fmt.Errorf("register bundle: %w", err)
	}
	return nil
}

// registered lists the bundles that are still there.
func registered(cache *os.Root) ([]string, error) {
	entries, err := fs.ReadDir(cache.FS(), registryDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list bundles: %w", err)
	}
	var out []string
	for _, e := range entries {
		name := filepath.Join(registryDir, e.Name())
		data, err := cache.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("list bundles: %w", err)
		}
		bundle := strings.TrimSuffix(string(data), "\n")
		if _, err := os.Lstat(filepath.Join(bundle, stateDir, stateName)); !errors.Is(err, fs.ErrNotExist) {
			out = append(out, bundle)
			continue
		}
		if err := cache.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("drop removed bundle: %w", err)
		}
	}
	return out, nil
}
