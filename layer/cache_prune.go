package layer

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// EntryKind is what a CacheEntry is about.
type EntryKind string

const (
	EntryLayer  EntryKind = "layer"  // index, table of contents and transcoded copy of a blob
	EntryTree   EntryKind = "tree"   // the merged tree of a list of layers
	EntryDebris EntryKind = "debris" // what an interrupted process left
)

// CacheEntry is what a cache holds of one layer, or of one image.
type CacheEntry struct {
	Kind EntryKind `json:"kind"`
	// Name is a layer's digest, a tree's name (TreeName), or a file's path.
	Name  string    `json:"name"`
	Bytes int64     `json:"bytes"` // that its files take
	Used  time.Time `json:"used"`  // last, to the hour
	InUse bool      `json:"in_use"`

	files []string
}

// TreeName is the name of the merged tree of layers, the bottom one first.
func TreeName(layers []Source, keepDirlinks bool) string {
	key := treeKey(layers, keepDirlinks)
	return hex.EncodeToString(key[:])
}

// BuildDir is a directory in the cache's that is none of its affair: what builds of images
// work in, and keep (package internal/build). Live mounts are in there.
const BuildDir = "build"

// Entries lists what the cache holds, what was used last first. Files that come and
// go meanwhile may or may not be listed.
func (c *Cache) Entries() ([]CacheEntry, error) {
	found := map[string]*CacheEntry{}
	err := fs.WalkDir(c.dir.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && (name == lockDir || name == BuildDir) {
			return fs.SkipDir
		}
		if err == nil && !d.IsDir() {
			var fi fs.FileInfo
			if fi, err = d.Info(); err == nil {
				add(found, name, fi)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read cache: %w", err)
	}
	out := make([]CacheEntry, 0, len(found))
	for _, e := range found {
		// Removed in this order: where the index is, all is said to be.
		slices.SortFunc(e.files, func(a, b string) int { return cmp.Compare(fileRank(a), fileRank(b)) })
		e.InUse = e.Kind != EntryDebris && c.inUse(e.files[0])
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b CacheEntry) int { return cmp.Or(b.Used.Compare(a.Used), cmp.Compare(a.Name, b.Name)) })
	return out, nil
}

func fileRank(name string) int {
	return slices.Index([]string{".idx", ".toc", ".side", keptExt}, path.Ext(name))
}

// add puts a file to the entry that it belongs to.
func add(found map[string]*CacheEntry, name string, fi fs.FileInfo) {
	kind, id := entryOf(name)
	e := found[string(kind)+id]
	if e == nil {
		e = &CacheEntry{Kind: kind, Name: id}
		found[string(kind)+id] = e
	}
	e.files = append(e.files, name)
	e.Bytes += onDisk(fi)
	if t := lastUsed(fi); t.After(e.Used) {
		e.Used = t
	}
}

// entryOf says what a file of the cache is about. What the cache does not make is
// debris by its name.
func entryOf(name string) (EntryKind, string) {
	ext := path.Ext(name)
	base := strings.TrimSuffix(path.Base(name), ext)
	dir := path.Dir(name)
	switch ext {
	case ".idx", ".toc", ".side", keptExt:
		d := digest.NewDigestFromEncoded(digest.Algorithm(path.Base(dir)), base)
		if path.Dir(dir) == "blobs" && d.Validate() == nil {
			return EntryLayer, d.String()
		}
	case ".tree":
		if dir == "trees" {
			return EntryTree, base
		}
	}
	return EntryDebris, name
}

// inUse reports whether somebody holds a file, or nobody can tell.
func (c *Cache) inUse(name string) bool {
	f, err := c.lockFile(name)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return f.Close() != nil
}

// lockFile opens a file of the cache and locks it exclusively.
func (c *Cache) lockFile(name string) (*os.File, error) {
	f, err := c.dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&os.PathError{Op: "flock", Path: f.Name(), Err: err}, f.Close())
	}
	return f, nil
}

// PruneOptions say what Prune removes. What is in use stays in any case.
type PruneOptions struct {
	// Before removes what was not used since; the zero time removes nothing.
	Before time.Time
	// Unwanted removes what it reports true of; nil: nothing.
	Unwanted func(CacheEntry) bool
	// MaxBytes is what may be left; of more, what was used longest ago goes. Negative:
	// no limit.
	MaxBytes int64
	DryRun   bool // only say what would be removed
}

// debrisAge is how old debris must be: what is younger may be being written.
const debrisAge = 24 * time.Hour

// Prune removes entries, and debris older than a day, and returns what it removed.
// Whatever is removed is made again when it is needed.
func (c *Cache) Prune(ctx context.Context, now time.Time, opt PruneOptions) (removed []CacheEntry, err error) {
	entries, err := c.Entries()
	if err != nil {
		return nil, err
	}
	var left int64
	goes := make([]bool, len(entries))
	for i, e := range entries {
		switch {
		case e.InUse:
		case e.Kind == EntryDebris:
			goes[i] = now.Sub(e.Used) > debrisAge
		default:
			goes[i] = e.Used.Before(opt.Before) || opt.Unwanted != nil && opt.Unwanted(e)
		}
		if !goes[i] {
			left += e.Bytes
		}
	}
	for i := len(entries) - 1; i >= 0 && opt.MaxBytes >= 0 && left > opt.MaxBytes; i-- {
		if e := entries[i]; !goes[i] && !e.InUse && e.Kind != EntryDebris {
			goes[i] = true
			left -= e.Bytes
		}
	}
	for i, e := range entries {
		if !goes[i] {
			continue
		}
		if err := context.Cause(ctx); err != nil {
			return removed, err
		}
		gone := opt.DryRun
		if !gone {
			if gone, err = c.remove(ctx, &e); err != nil {
				return removed, fmt.Errorf("prune cache: %w", err)
			}
		}
		if gone {
			removed = append(removed, e)
		}
	}
	return removed, nil
}

// remove removes an entry's files unless somebody has come to use it.
func (c *Cache) remove(ctx context.Context, e *CacheEntry) (gone bool, err error) {
	if e.Kind == EntryLayer {
		// Nobody makes the layer's files while some of them go.
		unlock, lockErr := c.lockBlob(ctx, digest.Digest(e.Name))
		if lockErr != nil {
			return false, lockErr
		}
		defer func() { err = errors.Join(err, unlock()) }()
	}
	if e.Kind != EntryDebris {
		f, lockErr := c.lockFile(e.files[0])
		switch {
		case errors.Is(lockErr, unix.EWOULDBLOCK), errors.Is(lockErr, fs.ErrNotExist):
			return false, nil
		case lockErr != nil:
			return false, lockErr
		}
		defer func() { err = errors.Join(err, f.Close()) }()
	}
	for _, name := range e.files {
		if err := c.dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return true, nil
}
