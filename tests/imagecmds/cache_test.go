package imagecmds

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

type cacheEntry struct {
	Kind  string    `json:"kind"`
	Name  string    `json:"name"`
	Bytes int64     `json:"bytes"`
	Used  time.Time `json:"used"`
	InUse bool      `json:"in_use"`
}

func cacheCommand(t testing.TB, args ...string) []cacheEntry {
	t.Helper()
	var out []cacheEntry
	if err := json.Unmarshal([]byte(env.Must(t, append([]string{"cache"}, args...)...)), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTheCacheIsFilledListedAndPruned(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	list := func() []cacheEntry { return cacheCommand(t, "list", "--json", "--cache-dir", cache) }
	prune := func(args ...string) []cacheEntry {
		return cacheCommand(t, append([]string{"prune", "--json", "--cache-dir", cache}, args...)...)
	}
	layout, other := twoLayers(t), imagetest.Layout(t, imagetest.Image{Tag: "o", Layers: []imagetest.Layer{{Text: "file o 0644 o"}}})
	if len(list()) > 0 {
		t.Error("a new cache holds something")
	}
	env.Must(t, "cache", "warm", "--cache-dir", cache, "--image", layout+":t", "--image", other+":o")
	if n := len(list()); n != 5 { // three layers, two trees
		t.Errorf("%d entries, want 5: %+v", n, list())
	}
	if gone := prune("--older-than", "1h"); len(gone) > 0 {
		t.Errorf("older than an hour is %+v", gone)
	}
	if gone := prune("--layout", layout, "--dry-run"); len(gone) != 2 || len(list()) != 5 {
		t.Errorf("would remove %+v", gone)
	}
	if gone := prune("--layout", layout, "--layout", other); len(gone) > 0 {
		t.Errorf("of no layout is %+v", gone)
	}
	if gone := prune("--layout", layout); len(gone) != 2 || len(list()) != 3 {
		t.Errorf("of another layout is %+v", gone)
	}
	if gone := prune("--max-size", "1GiB"); len(gone) > 0 {
		t.Errorf("beyond a gigabyte is %+v", gone)
	}
	if gone := prune("--max-size", "1"); len(gone) != 3 || len(list()) != 0 {
		t.Errorf("beyond a byte is %+v", gone)
	}
	env.Must(t, "cat", "--cache-dir", cache, "--image", layout+":t", "etc/conf") // made again
	mustFail(t, 2, "cache", "prune")
	mustFail(t, 2, "cache", "prune", "--older-than", "soon")
	mustFail(t, 2, "cache", "prune", "--max-size", "-1")
	mustFail(t, 2, "cache", "nonsense")
	mustFail(t, 2, "cache", "warm")
	mustFail(t, 3, "cache", "prune", "--layout", filepath.Join(cache, "nothing"))
}

func TestALiveMountKeepsItsPartOfTheCache(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	cache := filepath.Join(t.TempDir(), "cache")
	layout := twoLayers(t)
	b := env.Mount(t, layout+":t", "--cache-dir", cache)
	list := cacheCommand(t, "list", "--json", "--cache-dir", cache)
	if len(list) != 3 || slices.ContainsFunc(list, func(e cacheEntry) bool { return !e.InUse }) {
		t.Errorf("not in use: %+v", list)
	}
	if gone := cacheCommand(t, "prune", "--all", "--json", "--cache-dir", cache); len(gone) > 0 {
		t.Errorf("removed %+v", gone)
	}
	if got, err := os.ReadFile(filepath.Join(b.Rootfs(), "to-dir/x")); err != nil || string(got) != "inside" {
		t.Errorf("read %q (%v)", got, err)
	}
	b.Umount(t)
	if gone := cacheCommand(t, "prune", "--all", "--json", "--cache-dir", cache); len(gone) != 3 {
		t.Errorf("then removed %+v", gone)
	}
	b.Remount(t, "--cache-dir", cache)
	b.Umount(t)
}

func TestDecodedContentIsKeptForTheNextMount(t *testing.T) {
	imagetest.NeedFuse(t)
	cache := filepath.Join(t.TempDir(), "cache")
	// One span: of several some are left out, where no writer is free.
	layout := imagetest.Layout(t, imagetest.Image{Tag: "t", Layers: []imagetest.Layer{{Text: "file large 0644 @90000"}}})
	read := func(flags ...string) ([]byte, error) {
		b := env.Mount(t, layout+":t", append(flags, "--cache-dir", cache)...)
		defer b.Umount(t)
		return os.ReadFile(filepath.Join(b.Rootfs(), "large"))
	}
	kept := func() []string {
		names, err := filepath.Glob(filepath.Join(cache, "blobs/*/*.spans"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	want, err := read("--disk-cache=0")
	if err != nil || len(want) != 90000 || len(kept()) > 0 {
		t.Fatalf("without: %d bytes, %v; kept: %v", len(want), err, kept())
	}
	if _, err := read(); err != nil || len(kept()) != 1 {
		t.Fatalf("%v; kept: %v", err, kept())
	}
	if fi, err := os.Stat(kept()[0]); err != nil || fi.Mode() != 0o600 {
		t.Errorf("%v, %v: others can read it", fi.Mode(), err)
	}
	_, manifest, _ := imagetest.Manifest(t, layout, "t")
	d := manifest.Layers[0]
	if err := os.WriteFile(imagetest.BlobPath(layout, d.Digest), make([]byte, d.Size), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := read(); err != nil || !slices.Equal(got, want) {
		t.Errorf("from the disk: %d bytes, %v", len(got), err)
	}
	if _, err := read("--disk-cache=0"); !errors.Is(err, unix.EIO) {
		t.Errorf("of a spoilt layer without what was kept: %v", err)
	}
}
