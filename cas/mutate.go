package cas

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// NewLayer is a layer to be added; its blob is in the layout already.
type NewLayer struct {
	Digest    digest.Digest // of the stored bytes
	Size      int64         // of the stored bytes
	DiffID    digest.Digest
	PlainSize int64  // of the uncompressed stream
	MediaType string // see LayerMediaType
}

// uncompressedSizeAnnotation is umoci's: the layer's uncompressed size in bytes,
// where it differs from the stored one.
const uncompressedSizeAnnotation = "ci.umo.uncompressed_blob_size"

// Compression names of LayerMediaType.
const (
	CompressAuto = "auto"
	CompressNone = "none"
	CompressGzip = "gzip"
	CompressZstd = "zstd"
)

// LayerCompression chooses how a new layer is compressed: for "auto" as the last
// layer that is, else gzip, as umoci does.
func (img *Image) LayerCompression(want string) (string, error) {
	switch want {
	case CompressNone, CompressGzip, CompressZstd:
		return want, nil
	case CompressAuto, "":
	default:
		return "", fmt.Errorf("compression %q: want auto, none, gzip or zstd", want)
	}
	for _, d := range slices.Backward(img.Manifest.Layers) {
		switch {
		case strings.HasSuffix(d.MediaType, "+zstd"):
			return CompressZstd, nil
		case strings.HasSuffix(d.MediaType, "gzip"):
			return CompressGzip, nil
		}
	}
	return CompressGzip, nil
}

// LayerMediaType is the type of a new layer of the image. A Docker manifest gets
// Docker's types, where there is one.
func (img *Image) LayerMediaType(compression string) string {
	docker := img.Path.Descriptor().MediaType == dockerManifest
	switch compression {
	case CompressNone:
		if docker {
			return dockerLayer
		}
		return ispec.MediaTypeImageLayer
	case CompressZstd:
		if docker {
			return dockerLayer + ".zstd"
		}
		return ispec.MediaTypeImageLayerZstd
	}
	if docker {
		return dockerLayerGzip
	}
	return ispec.MediaTypeImageLayerGzip
}

// Change is what Commit makes of an image.
type Change struct {
	Layers  []NewLayer
	History []ispec.History
}

// Commit writes the image with the change applied, and every index on its path,
// and returns the new path. Nothing refers to it yet: see SetRef. Hold a Pin from
// before the first blob is written until the reference is set.
func (l *Layout) Commit(ctx context.Context, img *Image, c Change) (*Path, error) {
	if err := img.applyConfig(c); err != nil {
		return nil, err
	}
	data, err := img.config.bytes()
	if err != nil {
		return nil, err
	}
	d, size, err := l.putJSON(ctx, data)
	if err != nil {
		return nil, fmt.Errorf("write config: %w", err)
	}
	if err := img.manifest.set("config", ispec.Descriptor{
		MediaType: img.Manifest.Config.MediaType, Digest: d, Size: size,
	}); err != nil {
		return nil, err
	}
	for _, layer := range c.Layers {
		if err := img.manifest.appendTo("layers", layer.descriptor()); err != nil {
			return nil, err
		}
	}
	if data, err = img.manifest.bytes(); err != nil {
		return nil, err
	}
	if d, size, err = l.putJSON(ctx, data); err != nil {
		return nil, fmt.Errorf("write manifest: %w", err)
	}
	return l.commitPath(ctx, img.Path, d, size)
}

func (n NewLayer) descriptor() ispec.Descriptor {
	d := ispec.Descriptor{MediaType: n.MediaType, Digest: n.Digest, Size: n.Size}
	if n.PlainSize != n.Size {
		d.Annotations = map[string]string{uncompressedSizeAnnotation: strconv.FormatInt(n.PlainSize, 10)}
	}
	return d
}

// applyConfig adds diff_ids and history.
func (img *Image) applyConfig(c Change) error {
	var raw json.RawMessage
	if err := img.config.get("rootfs", &raw); err != nil {
		return err
	}
	rootfs, err := parseObject(raw)
	if err != nil {
		return fmt.Errorf("config: rootfs: %w", err)
	}
	for _, layer := range c.Layers {
		if err := rootfs.appendTo("diff_ids", layer.DiffID); err != nil {
			return err
		}
	}
	if err := img.config.set("rootfs", rootfs); err != nil {
		return err
	}
	for _, h := range c.History {
		if err := img.config.appendTo("history", h); err != nil {
			return err
		}
	}
	return nil
}

// commitPath rewrites the indexes between a manifest that has changed and the root.
func (l *Layout) commitPath(ctx context.Context, old *Path, d digest.Digest, size int64) (*Path, error) {
	walk := slices.Clone(old.Walk)
	for i := len(walk) - 1; ; i-- {
		was := walk[i]
		walk[i].Digest, walk[i].Size, walk[i].Data = d, size, nil
		if i == 0 {
			return &Path{Walk: walk}, nil
		}
		data, err := l.ReadBlob(ctx, walk[i-1])
		if err != nil {
			return nil, fmt.Errorf("read index: %w", err)
		}
		ix, err := parseIndex(data)
		if err != nil {
			return nil, fmt.Errorf("index %s: %w", walk[i-1].Digest, err)
		}
		for j := range ix.Entries {
			if ix.Entries[j].Digest == was.Digest {
				if err := ix.Entries[j].replace(d, size); err != nil {
					return nil, err
				}
			}
		}
		if data, err = ix.bytes(); err != nil {
			return nil, err
		}
		if d, size, err = l.putJSON(ctx, data); err != nil {
			return nil, fmt.Errorf("write index: %w", err)
		}
	}
}

// replace points an entry elsewhere and keeps whatever else it says.
func (e *Entry) replace(d digest.Digest, size int64) error {
	e.Digest, e.Size, e.Data = d, size, nil
	if e.raw == nil {
		return nil
	}
	o, err := parseObject(e.raw)
	if err != nil {
		return err
	}
	o.remove("data")
	if err := o.set("digest", d); err != nil {
		return err
	}
	if err := o.set("size", size); err != nil {
		return err
	}
	e.raw, err = o.bytes()
	return err
}

// Blank is a new image without layers: what `umoci new` writes.
func (l *Layout) Blank(ctx context.Context, platform ispec.Platform, created time.Time) (*Path, error) {
	config := ispec.Image{
		Created: &created, Platform: platform,
		RootFS: ispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
	data, err := marshal(config)
	if err != nil {
		return nil, err
	}
	d, size, err := l.putJSON(ctx, data)
	if err != nil {
		return nil, fmt.Errorf("write config: %w", err)
	}
	manifest := ispec.Manifest{
		MediaType: ispec.MediaTypeImageManifest,
		Config:    ispec.Descriptor{MediaType: ispec.MediaTypeImageConfig, Digest: d, Size: size},
		Layers:    []ispec.Descriptor{},
	}
	manifest.SchemaVersion = 2
	if data, err = marshal(manifest); err != nil {
		return nil, err
	}
	if d, size, err = l.putJSON(ctx, data); err != nil {
		return nil, fmt.Errorf("write manifest: %w", err)
	}
	return &Path{Walk: []ispec.Descriptor{{MediaType: ispec.MediaTypeImageManifest, Digest: d, Size: size}}}, nil
}
