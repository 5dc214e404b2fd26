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
		case strings.HasSuffix(d.MediaType, "+zstd"), strings.HasSuffix(d.MediaType, ".zstd"):
			return CompressZstd, nil
		case strings.HasSuffix(d.MediaType, "+gzip"), strings.HasSuffix(d.MediaType, ".gzip"):
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
	Edit    func(config, manifest Document) error // may be nil
}

// Commit writes the image with the change applied, and every index on its path,
// and returns the new path. Nothing refers to it yet: see SetRef. Hold a Pin from
// before the first blob is written until the reference is set. Fields that are not
// known here stay, in configs, manifests, indexes and descriptors. The image itself
// is not changed: the same change can be tried again.
func (l *Layout) Commit(ctx context.Context, img *Image, c Change) (*Path, error) {
	if len(img.Path.Walk) == 0 {
		return nil, fmt.Errorf("an empty path leads to no manifest: %w", ErrMalformed)
	}
	config, err := img.changedConfig(c)
	if err != nil {
		return nil, err
	}
	manifest := img.manifest.clone()
	if c.Edit != nil {
		if err := c.Edit(Document{config}, Document{manifest}); err != nil {
			return nil, err
		}
	}
	data, err := config.bytes()
	if err != nil {
		return nil, err
	}
	d, size, err := l.putDocument(ctx, data)
	if err != nil {
		return nil, fmt.Errorf("write config: %w", err)
	}
	if err := changeManifest(manifest, c, d, size); err != nil {
		return nil, err
	}
	if data, err = manifest.bytes(); err != nil {
		return nil, err
	}
	if d, size, err = l.putDocument(ctx, data); err != nil {
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

// PlainSize is the size of a layer's uncompressed stream, in bytes, as its descriptor
// says: the stored one where it says nothing. ErrMalformed.
func PlainSize(d ispec.Descriptor) (int64, error) {
	s, ok := d.Annotations[uncompressedSizeAnnotation]
	if !ok {
		return d.Size, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("layer %s: %s is %q: %w", d.Digest, uncompressedSizeAnnotation, s, ErrMalformed)
	}
	return n, nil
}

// changedConfig is the config with diff_ids and history added.
func (img *Image) changedConfig(c Change) (*object, error) {
	config := img.config.clone()
	rootfs, err := parseObject(config.fields["rootfs"])
	if err != nil {
		return nil, fmt.Errorf("config: rootfs: %w", err)
	}
	if err := rootfs.exact("type", "diff_ids"); err != nil {
		return nil, fmt.Errorf("config: rootfs: %w", err)
	}
	for _, layer := range c.Layers {
		if err := rootfs.appendTo("diff_ids", layer.DiffID); err != nil {
			return nil, err
		}
	}
	raw, err := rootfs.bytes()
	if err != nil {
		return nil, err
	}
	config.setRaw("rootfs", raw)
	for _, h := range c.History {
		if err := config.appendTo("history", h); err != nil {
			return nil, err
		}
	}
	return config, nil
}

// changeManifest adds layers to a manifest and leads it to another config.
func changeManifest(manifest *object, c Change, config digest.Digest, size int64) error {
	raw, err := repoint(manifest.fields["config"], config, size)
	if err != nil {
		return fmt.Errorf("manifest: config: %w", err)
	}
	manifest.setRaw("config", raw)
	for _, layer := range c.Layers {
		if err := manifest.appendTo("layers", layer.descriptor()); err != nil {
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
		walk[i].Digest, walk[i].Size, walk[i].Data, walk[i].URLs = d, size, nil, nil
		if i == 0 {
			entry, err := l.entryOf(ctx, old)
			if err == nil && entry != nil {
				entry, err = repoint(entry, d, size)
			}
			if err != nil {
				return nil, fmt.Errorf("entry of index.json: %w", err)
			}
			return &Path{walk, entry}, nil
		}
		ix, err := l.nestedIndex(ctx, walk[i-1])
		if err != nil {
			return nil, err
		}
		if err := ix.repoint(was, d, size); err != nil {
			return nil, fmt.Errorf("index %s: %w", walk[i-1].Digest, err)
		}
		data, err := ix.bytes()
		if err != nil {
			return nil, err
		}
		if d, size, err = l.putDocument(ctx, data); err != nil {
			return nil, fmt.Errorf("write index: %w", err)
		}
	}
}

// repoint leads the entries that are was elsewhere. An entry for another platform is
// another one, even where it leads to the same manifest.
func (ix *Index) repoint(was ispec.Descriptor, d digest.Digest, size int64) error {
	found := false
	for i := range ix.Entries {
		e := &ix.Entries[i]
		if e.Digest != was.Digest || !samePlatform(e.Platform, was.Platform) {
			continue
		}
		raw, err := repoint(e.raw, d, size)
		if err != nil {
			return err
		}
		if e.Descriptor, err = parseDescriptor(raw); err != nil {
			return err
		}
		e.raw, found = raw, true
	}
	if !found {
		return fmt.Errorf("it does not list %s: %w", was.Digest, ErrMalformed)
	}
	return nil
}

func samePlatform(a, b *ispec.Platform) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.OS == b.OS && a.Architecture == b.Architecture && a.Variant == b.Variant
}

// repoint leads a descriptor elsewhere and keeps whatever else it says, but for what
// is the old content.
func repoint(raw json.RawMessage, d digest.Digest, size int64) (json.RawMessage, error) {
	o, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	if err := o.exact("digest", "size", "data", "urls"); err != nil {
		return nil, err
	}
	o.remove("data")
	o.remove("urls")
	if err := o.set("digest", d); err != nil {
		return nil, err
	}
	if err := o.set("size", size); err != nil {
		return nil, err
	}
	return o.bytes()
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
	d, size, err := l.putDocument(ctx, data)
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
	if d, size, err = l.putDocument(ctx, data); err != nil {
		return nil, fmt.Errorf("write manifest: %w", err)
	}
	return &Path{Walk: []ispec.Descriptor{{MediaType: ispec.MediaTypeImageManifest, Digest: d, Size: size}}}, nil
}
