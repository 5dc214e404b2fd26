package layer

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// names are "KIND NAME" of entries, sorted.
func names(entries []CacheEntry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, string(e.Kind)+" "+e.Name)
	}
	slices.Sort(out)
	return out
}

func entriesOf(t testing.TB, c *Cache) []CacheEntry {
	t.Helper()
	list, err := c.Entries()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// age sets the times of the files of an entry.
func age(t testing.TB, dir string, e CacheEntry, when time.Time) {
	t.Helper()
	for _, name := range e.files {
		if err := os.Chtimes(filepath.Join(dir, name), when, when); err != nil {
			t.Fatal(err)
		}
	}
}

func TestACacheListsWhatItHolds(t *testing.T) {
	dir := t.TempDir()
	c, layers := cacheIn(t, dir), testLayers(t, t.TempDir())
	if list := entriesOf(t, c); len(list) > 0 {
		t.Errorf("an empty cache holds %v", names(list))
	}
	mustClose(t, mustOpen(t, c, IndexOptions{}, layers...))
	list := entriesOf(t, c)
	want := []string{"layer " + layers[0].Digest.String(), "layer " + layers[1].Digest.String(), "tree " + TreeName(layers, false)}
	slices.Sort(want)
	if got := names(list); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	usage, err := c.Usage()
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, e := range list {
		sum += e.Bytes
		if e.InUse || time.Since(e.Used) > time.Minute {
			t.Errorf("%s: in use %v, used %v", e.Name, e.InUse, e.Used)
		}
	}
	if sum != usage.Bytes {
		t.Errorf("%d bytes in all, the cache holds %d", sum, usage.Bytes)
	}
}

// newerBytes stands for what the newer entries of a test take.
const newerBytes = -2

func TestPruningRemovesWhatItIsToldTo(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		opt  PruneOptions
		want func(oldLayer, oldTree, newLayer, newTree string) []string
	}{
		"nothing":             {PruneOptions{MaxBytes: -1}, func(_, _, _, _ string) []string { return nil }},
		"what is old":         {PruneOptions{MaxBytes: -1, Before: now.Add(-24 * time.Hour)}, func(a, b, _, _ string) []string { return []string{a, b} }},
		"only to say so":      {PruneOptions{MaxBytes: -1, Before: now.Add(-24 * time.Hour), DryRun: true}, func(a, b, _, _ string) []string { return []string{a, b} }},
		"what is unwanted":    {PruneOptions{MaxBytes: -1, Unwanted: func(e CacheEntry) bool { return e.Kind == EntryTree }}, func(_, b, _, d string) []string { return []string{b, d} }},
		"all":                 {PruneOptions{MaxBytes: 0}, func(a, b, c, d string) []string { return []string{a, b, c, d} }},
		"the oldest for size": {PruneOptions{MaxBytes: newerBytes}, func(a, b, _, _ string) []string { return []string{a, b} }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cache := cacheIn(t, dir)
			blobs := t.TempDir()
			older := sourceOf(t, blobs, tarOf(t, tReg("a", strings.Repeat("x", 1<<20))), ispec.MediaTypeImageLayer)
			newer := sourceOf(t, blobs, tarOf(t, tReg("b", "b")), ispec.MediaTypeImageLayerGzip)
			mustClose(t, mustOpen(t, cache, IndexOptions{}, older))
			for _, e := range entriesOf(t, cache) {
				age(t, dir, e, now.Add(-48*time.Hour))
			}
			mustClose(t, mustOpen(t, cache, IndexOptions{}, newer))
			if c.opt.MaxBytes == newerBytes {
				c.opt.MaxBytes = 0
				for _, e := range entriesOf(t, cache) {
					if now.Sub(e.Used) < time.Hour {
						c.opt.MaxBytes += e.Bytes
					}
				}
			}
			before := cacheFiles(t, dir)
			removed, err := cache.Prune(t.Context(), now, c.opt)
			if err != nil {
				t.Fatal(err)
			}
			want := c.want("layer "+older.Digest.String(), "tree "+TreeName([]Source{older}, false),
				"layer "+newer.Digest.String(), "tree "+TreeName([]Source{newer}, false))
			slices.Sort(want)
			if got := names(removed); !slices.Equal(got, want) {
				t.Errorf("removed %v, want %v", got, want)
			}
			left := len(entriesOf(t, cache))
			if c.opt.DryRun && (left != 4 || len(cacheFiles(t, dir)) != len(before)) || !c.opt.DryRun && left != 4-len(want) {
				t.Errorf("%d entries are left", left)
			}
			mustClose(t, mustOpen(t, cache, IndexOptions{}, older, newer)) // made again
		})
	}
}

func TestPruningLeavesWhatIsInUse(t *testing.T) {
	dir := t.TempDir()
	c, layers := cacheIn(t, dir), testLayers(t, t.TempDir())
	im := mustOpen(t, c, IndexOptions{}, layers...)
	for _, e := range entriesOf(t, c) {
		if !e.InUse {
			t.Errorf("%s %s is not in use", e.Kind, e.Name)
		}
	}
	before := cacheFiles(t, dir)
	all := PruneOptions{MaxBytes: 0, Before: time.Now().Add(time.Hour), Unwanted: func(CacheEntry) bool { return true }}
	if removed, err := c.Prune(t.Context(), time.Now(), all); err != nil || len(removed) > 0 {
		t.Errorf("removed %v (%v)", names(removed), err)
	}
	if after := cacheFiles(t, dir); len(after) != len(before) {
		t.Errorf("left are %v", after)
	}
	if got := readPath(t, im, "d/c"); got != "c" {
		t.Errorf("read %q", got)
	}
	mustClose(t, im)
	if removed, err := c.Prune(t.Context(), time.Now(), all); err != nil || len(removed) != 3 {
		t.Errorf("then removed %v (%v)", names(removed), err)
	}
}

func TestDebrisIsPrunedOnceItIsOld(t *testing.T) {
	dir := t.TempDir()
	c := cacheIn(t, dir)
	for name, when := range map[string]time.Time{"trees/x.tree.tmp": time.Now().Add(-25 * time.Hour), "trees/y.tree.tmp": time.Now(), "strange": time.Now().Add(-time.Hour)} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, nil, 0o600), os.Chtimes(name, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := c.Prune(t.Context(), time.Now(), PruneOptions{MaxBytes: -1})
	if got := names(removed); err != nil || !slices.Equal(got, []string{"debris trees/x.tree.tmp"}) {
		t.Errorf("removed %v (%v)", got, err)
	}
}

func TestWhatIsUsedIsNoted(t *testing.T) {
	dir := t.TempDir()
	c, layers := cacheIn(t, dir), testLayers(t, t.TempDir())
	mustClose(t, mustOpen(t, c, IndexOptions{}, layers...))
	for _, e := range entriesOf(t, c) {
		age(t, dir, e, time.Now().Add(-48*time.Hour))
	}
	mustClose(t, mustOpen(t, c, IndexOptions{}, layers...))
	for _, e := range entriesOf(t, c) {
		if time.Since(e.Used) > time.Minute {
			t.Errorf("%s %s was used %v", e.Kind, e.Name, e.Used)
		}
	}
}

// Whoever opens an image while the cache is being emptied gets it.
func TestImagesOpenWhileTheCacheIsPruned(t *testing.T) {
	dir := t.TempDir()
	c, layers := cacheIn(t, dir), testLayers(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	var pruning sync.WaitGroup
	pruning.Go(func() {
		for ctx.Err() == nil {
			if _, err := c.Prune(t.Context(), time.Now(), PruneOptions{MaxBytes: 0}); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
				return
			}
		}
	})
	for range 100 {
		im, err := c.Open(t.Context(), layers, IndexOptions{})
		if err != nil {
			t.Error(err)
			break
		}
		if got := readPath(t, im, "d/c"); got != "c" {
			t.Errorf("read %q", got)
		}
		mustClose(t, im)
	}
	cancel()
	pruning.Wait()
}
