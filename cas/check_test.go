package cas

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// nest puts an index around descriptors.
func nest(t testing.TB, l *Layout, list ...ispec.Descriptor) ispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageIndex, Manifests: list})
	if err != nil {
		t.Fatal(err)
	}
	d, size, err := l.putJSON(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	return ispec.Descriptor{MediaType: ispec.MediaTypeImageIndex, Digest: d, Size: size}
}

func TestCheckEndsOnIndexesThatAreNestedWithoutMeasure(t *testing.T) {
	l, err := Create(t.TempDir() + "/layout")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// Each level lists the one below a hundred times, under other names: followed one
	// by one that would be 100^40 of them.
	d := nest(t, l)
	for range 40 {
		var list []ispec.Descriptor
		for i := range 100 {
			e := d
			e.Annotations = map[string]string{"n": string(rune('a' + i%26))}
			list = append(list, e)
		}
		d = nest(t, l, list...)
	}
	for _, tag := range []string{"b", "a", "b"} {
		if err := l.Update(t.Context(), func(ix *Index) error {
			e := d
			e.Annotations = map[string]string{ispec.AnnotationRefName: tag}
			ix.Entries = append(ix.Entries, Entry{Descriptor: e})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	g, err := l.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(g.Problems) != 1 || !errors.Is(g.Problems[0].Err, ErrMalformed) || g.Problems[0].Harmless {
		t.Errorf("problems: %v", g.Problems)
	}
	if tags := g.Blobs[d.Digest]; len(tags) != 2 || tags[0] != "a" || tags[1] != "b" {
		t.Errorf("tags of the outermost index: %v", tags)
	}
	if len(g.Tags) != 2 || len(g.Images) != 0 {
		t.Errorf("tags %v, images %v", g.Tags, g.Images)
	}
}
