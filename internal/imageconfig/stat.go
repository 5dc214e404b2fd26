package imageconfig

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umoci-mount/umoci-mount/cas"
)

// Stat is what an image says of itself. Its JSON is that of umoci stat --json. A
// manifest of something else than an image has no History, and Config where that is
// image-spec's empty document.
type Stat struct {
	Manifest Blob           `json:"manifest"`
	Config   *Blob          `json:"config,omitzero"`
	History  []HistoryLayer `json:"history,omitzero"`

	manifest *ispec.Manifest
	image    ispec.Image
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

// ReadStat reads the documents at the end of a path. An image is described as far as it
// can be read: whether its layers are there is not looked at, nor whether there are as
// many as the config and its history say.
func ReadStat(ctx context.Context, l *cas.Layout, path *cas.Path) (*Stat, error) {
	manifest, raw, err := l.Manifest(ctx, path)
	if err != nil {
		return nil, err
	}
	s := &Stat{Manifest: Blob{path.Descriptor(), raw}, manifest: manifest}
	if !cas.IsImageConfig(manifest.Config.MediaType) && manifest.Config.MediaType != ispec.MediaTypeEmptyJSON {
		return s, nil
	}
	if raw, err = l.ReadBlob(ctx, manifest.Config); err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	s.Config = &Blob{manifest.Config, raw}
	if !cas.IsImageConfig(manifest.Config.MediaType) {
		return s, nil
	}
	if err := json.Unmarshal(raw, &s.image); err != nil {
		return nil, fmt.Errorf("config %s: %w: %v", manifest.Config.Digest, cas.ErrMalformed, err)
	}
	s.joinHistory()
	return s, nil
}

// joinHistory gives each entry that made a layer the next layer.
func (s *Stat) joinHistory() {
	s.History = []HistoryLayer{}
	next := 0
	for _, h := range s.image.History {
		e := HistoryLayer{History: h}
		if !h.EmptyLayer {
			if next < len(s.manifest.Layers) {
				e.Layer = &s.manifest.Layers[next]
			}
			if next < len(s.image.RootFS.DiffIDs) {
				e.DiffID = s.image.RootFS.DiffIDs[next]
			}
			next++
		}
		s.History = append(s.History, e)
	}
}
