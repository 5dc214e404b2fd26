package extract

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
	"github.com/umoci-mount/umoci-mount/layer"
)

// Wherever it ends early, what it made is gone.
func TestAnExtractionThatFailsLeavesNothing(t *testing.T) {
	imagetest.NeedRoot(t)
	im := openImage(t, everyKind)
	for n := 0; ; n++ {
		dest := filepath.Join(t.TempDir(), "rootfs")
		fault, steps := failAt(n)
		_, err := Tree(t.Context(), im, dest, Options{Workers: 1, Record: n%2 == 0, fault: fault})
		if err == nil {
			if *steps < 25 {
				t.Errorf("%d steps only", *steps)
			}
			break
		}
		if !errors.Is(err, errFault) {
			t.Fatalf("step %d: %v", n, err)
		}
		if _, err := os.Lstat(dest); err == nil {
			t.Fatalf("step %d: something is left", n)
		}
		failMerge(t, im, n)
	}
}

// failMerge makes an extraction fail into a directory with other things in it.
func failMerge(t *testing.T, im *layer.Image, n int) {
	t.Helper()
	dest := filepath.Join(t.TempDir(), "old")
	writeFiles(t, dest, map[string]string{"d/mine": "mine", "mine": "mine"})
	if err := os.Chmod(filepath.Join(dest, "d"), 0o711); err != nil {
		t.Fatal(err)
	}
	fault, _ := failAt(n)
	if _, err := Tree(t.Context(), im, dest, Options{Workers: 1, fault: fault}); err == nil {
		return
	}
	tree := imagetest.MustReadTree(t, dest)
	if len(tree) != 4 || tree["d"].Mode != 0o040711 || tree["d"].UID != 0 || tree["mine"] == nil || tree["d/mine"] == nil {
		t.Fatalf("step %d: left is %v, d has mode %#o", n, tree.Paths(), tree["d"].Mode)
	}
}

func TestACanceledExtractionLeavesNothing(t *testing.T) {
	im := openImage(t, "dir d 0755\nfile d/f 0644 @100000\nfile g 0644 x")
	ctx, cancel := context.WithCancel(t.Context())
	dest := filepath.Join(t.TempDir(), "rootfs")
	steps := 0
	_, err := Tree(ctx, im, dest, Options{Workers: 1, Rootless: os.Geteuid() != 0, fault: func() error {
		if steps++; steps == 3 {
			cancel()
		}
		return nil
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(dest); err == nil {
		t.Error("something is left")
	}
}

func TestADamagedLayerLeavesNothing(t *testing.T) {
	layout := imagetest.Layout(t, imagetest.Image{Tag: "t", Layers: []imagetest.Layer{{Text: "file a 0644 @400000\nfile b 0644 @400000"}}})
	_, manifest, config := imagetest.Manifest(t, layout, "t")
	d := manifest.Layers[0]
	src := layer.Source{
		Digest: d.Digest, DiffID: config.RootFS.DiffIDs[0], Size: d.Size, MediaType: d.MediaType,
		Open: func() (*os.File, error) { return os.Open(imagetest.BlobPath(layout, d.Digest)) },
	}
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	cache, err := layer.OpenCache(root, layer.CacheOptions{})
	if err != nil {
		t.Fatal(err)
	}
	im, err := cache.Open(t.Context(), []layer.Source{src}, layer.IndexOptions{SpanCacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	f, err := os.OpenFile(imagetest.BlobPath(layout, d.Digest), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff, 0xff, 0xff}, d.Size/2); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	dest := filepath.Join(t.TempDir(), "rootfs")
	_, err = Tree(t.Context(), im, dest, Options{Rootless: os.Geteuid() != 0})
	var corrupt *layer.CorruptError
	if !errors.As(err, &corrupt) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(dest); err == nil {
		t.Error("something is left")
	}
}
