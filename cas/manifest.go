package cas

import (
	"context"
	"encoding/json"
	"fmt"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's own media types, which OCI's were made after. They are read, and kept
// where an image has them.
const (
	dockerManifest  = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig    = "application/vnd.docker.container.image.v1+json"
	dockerLayer     = "application/vnd.docker.image.rootfs.diff.tar"
	dockerLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

func isIndexType(mediaType string) bool {
	return mediaType == ispec.MediaTypeImageIndex || mediaType == dockerIndex
}

func isManifestType(mediaType string) bool {
	return mediaType == ispec.MediaTypeImageManifest || mediaType == dockerManifest
}

// Image is one manifest and its config, decoded and as the bytes they were. It is
// not changed by Commit.
type Image struct {
	Path     *Path
	Manifest ispec.Manifest
	Config   ispec.Image

	manifest *object
	config   *object
}

// Image reads the manifest at the end of a path, and its config. There are as many
// diff_ids as layers, and the layers' digests and sizes are possible ones; whether
// their blobs are there is not looked at. ErrMediaType, ErrMalformed, ErrDigest,
// ErrBlobNotFound, ErrTooLarge.
func (l *Layout) Image(ctx context.Context, p *Path) (*Image, error) {
	img, _, err := l.openManifest(ctx, p)
	if err != nil {
		return nil, err
	}
	if t := img.Manifest.Config.MediaType; !IsImageConfig(t) {
		return nil, fmt.Errorf("manifest %s: its config is a %q: %w", p.Descriptor().Digest, t, ErrMediaType)
	}
	data, err := l.ReadBlob(ctx, img.Manifest.Config)
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	if img.config, err = parseObject(data); err != nil {
		return nil, fmt.Errorf("config %s: %w", img.Manifest.Config.Digest, err)
	}
	if err := img.config.exact("rootfs", "history", "config"); err != nil {
		return nil, fmt.Errorf("config %s: %w", img.Manifest.Config.Digest, err)
	}
	if err := json.Unmarshal(data, &img.Config); err != nil {
		return nil, fmt.Errorf("config %s: %w: %v", img.Manifest.Config.Digest, ErrMalformed, err)
	}
	if t := img.Config.RootFS.Type; t != "layers" {
		return nil, fmt.Errorf("config %s: rootfs.type is %q: %w", img.Manifest.Config.Digest, t, ErrMalformed)
	}
	if len(img.Config.RootFS.DiffIDs) != len(img.Manifest.Layers) {
		return nil, fmt.Errorf("config %s has %d diff_ids for %d layers: %w", img.Manifest.Config.Digest,
			len(img.Config.RootFS.DiffIDs), len(img.Manifest.Layers), ErrMalformed)
	}
	return img, nil
}

// Manifest reads the manifest at the end of a path, of an image or of something else,
// and the bytes that it was read from. Errors are Image's.
func (l *Layout) Manifest(ctx context.Context, p *Path) (*ispec.Manifest, []byte, error) {
	img, data, err := l.openManifest(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	return &img.Manifest, data, nil
}

// IsImageConfig reports whether a media type is that of an image's config.
func IsImageConfig(mediaType string) bool {
	return mediaType == ispec.MediaTypeImageConfig || mediaType == dockerConfig
}

// openManifest reads the manifest alone.
func (l *Layout) openManifest(ctx context.Context, p *Path) (*Image, []byte, error) {
	if len(p.Walk) == 0 {
		return nil, nil, fmt.Errorf("an empty path leads to no manifest: %w", ErrMalformed)
	}
	desc := p.Descriptor()
	if !isManifestType(desc.MediaType) {
		return nil, nil, fmt.Errorf("%s is a %q, not an image manifest: %w", desc.Digest, desc.MediaType, ErrMediaType)
	}
	data, err := l.ReadBlob(ctx, desc)
	if err != nil {
		return nil, nil, fmt.Errorf("read manifest: %w", err)
	}
	img := &Image{Path: p}
	if img.manifest, err = parseObject(data); err != nil {
		return nil, nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	if err := json.Unmarshal(data, &img.Manifest); err != nil {
		return nil, nil, fmt.Errorf("manifest %s: %w: %v", desc.Digest, ErrMalformed, err)
	}
	if err := img.checkManifest(); err != nil {
		return nil, nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	return img, data, nil
}

// checkManifest refuses a manifest that could also be read as an index
// (CVE-2021-41190).
func (img *Image) checkManifest() error {
	if err := img.manifest.exact("schemaVersion", "mediaType", "config", "layers", "manifests", "annotations"); err != nil {
		return err
	}
	if _, have := img.manifest.fields["manifests"]; have {
		return fmt.Errorf("it has the field \"manifests\" of an index: %w", ErrMalformed)
	}
	if t := img.Manifest.MediaType; t != "" && t != img.Path.Descriptor().MediaType {
		return fmt.Errorf("it says it is a %q, its descriptor that it is a %q: %w", t, img.Path.Descriptor().MediaType, ErrMalformed)
	}
	for _, d := range img.Manifest.Layers {
		if d.Size < 0 {
			return fmt.Errorf("layer %s has size %d: %w", d.Digest, d.Size, ErrMalformed)
		}
		if err := d.Digest.Validate(); err != nil {
			return fmt.Errorf("layer digest %q: %w: %v", d.Digest, ErrMalformed, err)
		}
	}
	return nil
}
