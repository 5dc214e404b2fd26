package extract

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
	"github.com/umoci-mount/umoci-mount/layer"
)

// openImage is the merged tree of layers in imagetest's language.
func openImage(t testing.TB, layers ...string) *layer.Image {
	t.Helper()
	img := imagetest.Image{Tag: "t"}
	for _, text := range layers {
		img.Layers = append(img.Layers, imagetest.Layer{Text: text})
	}
	return openLayers(t, img)
}

func openLayers(t testing.TB, img imagetest.Image) *layer.Image {
	t.Helper()
	layout := imagetest.Layout(t, img)
	_, manifest, config := imagetest.Manifest(t, layout, img.Tag)
	var sources []layer.Source
	for i, d := range manifest.Layers {
		sources = append(sources, layer.Source{
			Digest: d.Digest, DiffID: config.RootFS.DiffIDs[i], Size: d.Size, MediaType: d.MediaType,
			Open: func() (*os.File, error) { return os.Open(imagetest.BlobPath(layout, d.Digest)) },
		})
	}
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cache, err := layer.OpenCache(root, layer.CacheOptions{})
	if err != nil {
		t.Fatal(err)
	}
	im, err := cache.Open(t.Context(), sources, layer.IndexOptions{SpanCacheBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	})
	return im
}

// extractTo extracts into a new directory, which must work.
func extractTo(t testing.TB, im *layer.Image, opt Options) (string, *Result) {
	t.Helper()
	dest := filepath.Join(t.TempDir(), "rootfs")
	res, err := Tree(t.Context(), im, dest, opt)
	if err != nil {
		t.Fatal(err)
	}
	return dest, res
}

// failAt gives a fault at the n-th step, from 0 on, and counts the steps.
func failAt(n int) (fault func() error, steps *int) {
	steps = new(int)
	return func() error {
		*steps++
		if *steps > n {
			return errFault
		}
		return nil
	}, steps
}

var errFault = errors.New("fault")
