package build

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

// How long a result that no build used is kept, and how many are.
const (
	cacheKeep = 30 * 24 * time.Hour
	cacheMax  = 1000
)

// cacheFile is what a layout remembers of builds (bundle.BuildCacheName).
type cacheFile struct {
	Version int                    `json:"version"` // 1; another is as none
	Entries map[string]*cacheEntry `json:"entries"` // by key
}

// cacheEntry is one step's result.
type cacheEntry struct {
	Manifest ispec.Descriptor `json:"manifest"`
	Spec     string           `json:"spec"` // absolute path
	Target   string           `json:"target"`
	Step     string           `json:"step"` // its label
	Key      stepKey          `json:"key"`
	Used     int64            `json:"used"` // seconds since 1970
}

// cache is the results that a layout has.
type cache struct {
	layout *cas.Layout
	spec   string
	now    time.Time
	off    bool // --no-cache: nothing is found, all is kept

	mu    sync.Mutex
	file  cacheFile              // protected by mu; as it was read
	fresh map[string]*cacheEntry // protected by mu; what this build made or used
}

func (c *cache) path() string { return filepath.Join(c.layout.Path(), bundle.BuildCacheName) }

// openCache reads the results of earlier builds. A file that cannot be read has none.
func openCache(l *cas.Layout, spec string, now time.Time, off bool) (*cache, error) {
	abs, err := filepath.Abs(spec)
	if err != nil {
		return nil, err
	}
	c := &cache{layout: l, spec: abs, now: now, off: off, fresh: map[string]*cacheEntry{}}
	c.file, err = readCacheFile(c.path())
	return c, err
}

func readCacheFile(path string) (cacheFile, error) {
	f := cacheFile{Version: 1, Entries: map[string]*cacheEntry{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("read the cache of steps: %w", err)
	}
	var have cacheFile
	if json.Unmarshal(data, &have) == nil && have.Version == 1 && have.Entries != nil {
		maps.DeleteFunc(have.Entries, func(_ string, e *cacheEntry) bool { return e == nil })
		return have, nil
	}
	return f, nil
}

// find is the result of a step, or why there is none.
func (c *cache) find(ctx context.Context, target, label string, k *stepKey) (*cas.Path, string) {
	key := k.digest()
	c.mu.Lock()
	e := c.fresh[key]
	if e == nil {
		e = c.file.Entries[key]
	}
	c.mu.Unlock()
	switch {
	case c.off:
		return nil, "--no-cache"
	case e == nil:
		return nil, c.why(target, label, k)
	}
	p := &cas.Path{Walk: []ispec.Descriptor{e.Manifest}}
	if err := complete(ctx, c.layout, p); err != nil {
		return nil, "its result is gone from the layout"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	used := *e
	used.Spec, used.Target, used.Step, used.Used = c.spec, target, label, c.now.Unix()
	c.fresh[key] = &used
	return p, ""
}

// complete reports what an image lacks in a layout.
func complete(ctx context.Context, l *cas.Layout, p *cas.Path) error {
	img, err := l.Image(ctx, p)
	if err != nil {
		return err
	}
	for _, d := range img.Manifest.Layers {
		f, err := l.Blob(ctx, d.Digest)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		if info.Size() != d.Size {
			return fmt.Errorf("layer %s: %w", d.Digest, cas.ErrDigest)
		}
	}
	return nil
}

// why compares a step with its last result.
func (c *cache) why(target, label string, k *stepKey) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var last *cacheEntry
	for _, e := range c.file.Entries {
		if e.Spec == c.spec && e.Target == target && e.Step == label && (last == nil || e.Used > last.Used) {
			last = e
		}
	}
	if last == nil {
		return "it was not built before"
	}
	return cmp.Or(k.differs(&last.Key), "it was built otherwise last")
}

// put remembers a result.
func (c *cache) put(target, label string, k *stepKey, p *cas.Path) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := p.Descriptor()
	c.fresh[k.digest()] = &cacheEntry{
		Manifest: ispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size},
		Spec:     c.spec, Target: target, Step: label, Key: *k, Used: c.now.Unix(),
	}
}

// save adds this build's results to the layout's, drops old ones, and holds the rest
// against gc. The caller holds a Pin.
func (c *cache) save(ctx context.Context) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.fresh) == 0 {
		return nil
	}
	dir, err := os.Open(c.layout.Path())
	if err != nil {
		return fmt.Errorf("keep the results of steps: %w", err)
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil { // builds beside this one
		return fmt.Errorf("keep the results of steps: %w", err)
	}
	f, err := readCacheFile(c.path())
	if err != nil {
		return err
	}
	maps.Copy(f.Entries, c.fresh)
	trimCache(&f, c.now)
	data, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return err
	}
	if err := writeFile(c.path(), append(data, '\n')); err != nil {
		return fmt.Errorf("keep the results of steps: %w", err)
	}
	if err := chownLike(dir, c.path()); err != nil {
		return err
	}
	return c.hold(ctx, &f)
}

// chownLike gives root's file the owner of a directory.
func chownLike(dir *os.File, name string) error {
	info, err := dir.Stat()
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 || st.Uid == 0 && st.Gid == 0 {
		return nil
	}
	return os.Lchown(name, int(st.Uid), int(st.Gid))
}

// trimCache drops results that are old or too many.
func trimCache(f *cacheFile, now time.Time) {
	keys := slices.SortedFunc(maps.Keys(f.Entries), func(a, b string) int {
		return cmp.Or(cmp.Compare(f.Entries[b].Used, f.Entries[a].Used), cmp.Compare(a, b))
	})
	for i, key := range keys {
		if i >= cacheMax || now.Sub(time.Unix(f.Entries[key].Used, 0)) > cacheKeep {
			delete(f.Entries, key)
		}
	}
}

// hold keeps the results from gc, for as long as the cache's file is there.
func (c *cache) hold(ctx context.Context, f *cacheFile) error {
	owner, err := filepath.EvalSymlinks(c.path())
	if err != nil {
		return err
	}
	byDigest := map[digest.Digest]ispec.Descriptor{}
	for _, e := range f.Entries {
		byDigest[e.Manifest.Digest] = e.Manifest
	}
	h := cas.Hold{Owner: owner}
	for _, d := range slices.Sorted(maps.Keys(byDigest)) {
		h.Manifests = append(h.Manifests, byDigest[d])
	}
	release, err := c.layout.Hold(ctx, h)
	if err != nil {
		return err
	}
	return release()
}
