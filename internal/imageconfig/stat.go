package imageconfig

import (
	"context"
	"encoding/json"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umoci-mount/umoci-mount/cas"
)

// Stat is what an image says of itself. Its JSON is that of umoci stat --json.
type Stat struct {
	Manifest Blob           `json:"manifest"`
	Config   Blob           `json:"config"`
	History  []HistoryLayer `json:"history"`

	image *cas.Image
}

// Blob is a document as it is stored.
type Blob struct {
	Descriptor ispec.Descriptor `json:"descriptor"`
	Raw        json.RawMessage  `json:"blob"`
}

// HistoryLayer is an entry of the history with the layer that it stands for.
type HistoryLayer struct {
	Layer  *ispec.Descriptor `json:"layer"`   // nil: it changed no file, or there is no such layer
	DiffID digest.Digest     `json:"diff_id"` // "" like that
	ispec.History
}

// NewStat reads an image's documents.
func NewStat(ctx context.Context, l *cas.Layout, img *cas.Image) (*Stat, error) {
	s := &Stat{
		Manifest: Blob{Descriptor: img.Path.Descriptor()}, Config: Blob{Descriptor: img.Manifest.Config},
		History: []HistoryLayer{}, image: img,
	}
	for _, b := range []*Blob{&s.Manifest, &s.Config} {
		raw, err := l.ReadBlob(ctx, b.Descriptor)
		if err != nil {
			return nil, err
		}
		b.Raw = raw
	}
	next := 0
	for _, h := range img.Config.History {
		e := HistoryLayer{History: h}
		if !h.EmptyLayer && next < len(img.Manifest.Layers) {
			e.Layer, e.DiffID = &img.Manifest.Layers[next], img.Config.RootFS.DiffIDs[next]
			next++
		}
		s.History = append(s.History, e)
	}
	return s, nil
}
