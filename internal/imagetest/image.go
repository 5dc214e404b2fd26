package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// How a layer is stored.
const (
	Gzip  = "gzip" // one member; the default
	Zstd  = "zstd" // one frame
	Plain = "none"
)

// Layer is one layer of an image to make.
type Layer struct {
	Text      string        // see the package comment
	Tar       []byte        // the plain stream itself, in place of Text
	Compress  string        // "" is Gzip
	MediaType string        // "" follows Compress
	Stored    []byte        // the blob as it is to lie in the layout, whatever the stream is
	DiffID    digest.Digest // "" is the stream's
}

// Image is an image to make.
type Image struct {
	Tag    string
	Config ispec.ImageConfig
	Layers []Layer // bottom first
}

// Layout makes an image-layout that holds images, in a directory that goes with
// the test, and returns its path.
func Layout(t testing.TB, images ...Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "images")
	if err := WriteLayout(dir, images...); err != nil {
		t.Fatalf("make image-layout: %v", err)
	}
	return dir
}

// WriteLayout makes an image-layout in dir, which it creates.
func WriteLayout(dir string, images ...Image) error {
	if err := os.MkdirAll(filepath.Join(dir, ispec.ImageBlobsDir, "sha256"), 0o755); err != nil {
		return err
	}
	index := ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageIndex, Manifests: []ispec.Descriptor{}}
	for _, img := range images {
		desc, err := writeImage(dir, img)
		if err != nil {
			return fmt.Errorf("image %s: %w", img.Tag, err)
		}
		index.Manifests = append(index.Manifests, desc)
	}
	if err := writeJSONFile(filepath.Join(dir, ispec.ImageLayoutFile), ispec.ImageLayout{Version: ispec.ImageLayoutVersion}); err != nil {
		return err
	}
	return writeJSONFile(filepath.Join(dir, ispec.ImageIndexFile), index)
}

func writeImage(dir string, img Image) (ispec.Descriptor, error) {
	created := time.Unix(DefaultTime, 0).UTC()
	config := ispec.Image{
		Created:  &created,
		Platform: ispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   img.Config,
		RootFS:   ispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
	manifest := ispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageManifest, Layers: []ispec.Descriptor{},
	}
	for i, l := range img.Layers {
		plain, err := l.plain()
		if err != nil {
			return ispec.Descriptor{}, fmt.Errorf("layer %d: %w", i, err)
		}
		stored, mediaType, err := l.store(plain)
		if err != nil {
			return ispec.Descriptor{}, fmt.Errorf("layer %d: %w", i, err)
		}
		desc, err := writeBlob(dir, mediaType, stored)
		if err != nil {
			return ispec.Descriptor{}, err
		}
		manifest.Layers = append(manifest.Layers, desc)
		diffID := l.DiffID
		if diffID == "" {
			diffID = digest.FromBytes(plain)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		config.History = append(config.History, ispec.History{Created: &created, CreatedBy: "imagetest"})
	}
	var err error
	if manifest.Config, err = writeJSONBlob(dir, ispec.MediaTypeImageConfig, config); err != nil {
		return ispec.Descriptor{}, err
	}
	desc, err := writeJSONBlob(dir, ispec.MediaTypeImageManifest, manifest)
	if img.Tag != "" {
		desc.Annotations = map[string]string{ispec.AnnotationRefName: img.Tag}
	}
	return desc, err
}

// plain is the layer's tar stream.
func (l Layer) plain() ([]byte, error) {
	if l.Tar != nil {
		return l.Tar, nil
	}
	entries, err := parseLayer(l.Text)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := w.WriteHeader(&e.hdr); err != nil {
			return nil, fmt.Errorf("%s: %w", e.hdr.Name, err)
		}
		if _, err := w.Write(e.body); err != nil {
			return nil, fmt.Errorf("%s: %w", e.hdr.Name, err)
		}
	}
	err = w.Close()
	return buf.Bytes(), err
}

// store compresses the stream.
func (l Layer) store(plain []byte) (stored []byte, mediaType string, err error) {
	switch l.Compress {
	case "", Gzip:
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		if _, err = w.Write(plain); err == nil {
			err = w.Close()
		}
		stored, mediaType = buf.Bytes(), ispec.MediaTypeImageLayerGzip
	case Zstd:
		var w *zstd.Encoder
		if w, err = zstd.NewWriter(nil); err == nil {
			stored = w.EncodeAll(plain, nil)
			err = w.Close()
		}
		mediaType = ispec.MediaTypeImageLayerZstd
	case Plain:
		stored, mediaType = plain, ispec.MediaTypeImageLayer
	default:
		err = fmt.Errorf("unknown compression %q", l.Compress)
	}
	if l.MediaType != "" {
		mediaType = l.MediaType
	}
	if l.Stored != nil {
		stored = l.Stored
	}
	return stored, mediaType, err
}

func writeBlob(dir, mediaType string, b []byte) (ispec.Descriptor, error) {
	d := digest.FromBytes(b)
	desc := ispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	return desc, os.WriteFile(BlobPath(dir, d), b, 0o644)
}

func writeJSONBlob(dir, mediaType string, v any) (ispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ispec.Descriptor{}, err
	}
	return writeBlob(dir, mediaType, b)
}

func writeJSONFile(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o644)
}

// BlobPath is where a layout keeps a blob.
func BlobPath(layout string, d digest.Digest) string {
	return filepath.Join(layout, ispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// Manifest is what a tag of a layout points at, and its config. The tag must point
// straight at a manifest.
func Manifest(t testing.TB, layout, tag string) (ispec.Descriptor, ispec.Manifest, ispec.Image) {
	t.Helper()
	var index ispec.Index
	readJSON(t, filepath.Join(layout, ispec.ImageIndexFile), &index)
	for _, d := range index.Manifests {
		if d.Annotations[ispec.AnnotationRefName] != tag {
			continue
		}
		var m ispec.Manifest
		var config ispec.Image
		readJSON(t, BlobPath(layout, d.Digest), &m)
		readJSON(t, BlobPath(layout, m.Config.Digest), &config)
		return d, m, config
	}
	t.Fatalf("no tag %s in %s", tag, layout)
	panic("unreachable")
}

// AsGzip copies an image into a layout of its own in which every layer is one gzip
// member: there are tools that read nothing else. The tag and the diffIDs are the
// same.
func AsGzip(t testing.TB, layout, tag string) string {
	t.Helper()
	_, manifest, config := Manifest(t, layout, tag)
	img := Image{Tag: tag, Config: config.Config}
	for i, d := range manifest.Layers {
		plain, err := readLayer(layout, d)
		if err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		if got := digest.FromBytes(plain); got != config.RootFS.DiffIDs[i] {
			t.Fatalf("layer %d: diffID is %s, the config has %s", i, got, config.RootFS.DiffIDs[i])
		}
		img.Layers = append(img.Layers, Layer{Tar: plain})
	}
	return Layout(t, img)
}

// TopLayer reads the entries of a tag's last layer.
func TopLayer(t testing.TB, layout, tag string) []*tar.Header {
	t.Helper()
	_, m, _ := Manifest(t, layout, tag)
	plain, err := readLayer(layout, m.Layers[len(m.Layers)-1])
	if err != nil {
		t.Fatal(err)
	}
	var out []*tar.Header
	for r := tar.NewReader(bytes.NewReader(plain)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h)
	}
}

// readLayer is a layer's plain stream.
func readLayer(layout string, d ispec.Descriptor) (plain []byte, err error) {
	f, err := os.Open(BlobPath(layout, d.Digest))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var r io.Reader = f
	switch d.MediaType {
	case ispec.MediaTypeImageLayerGzip:
		if r, err = gzip.NewReader(f); err != nil {
			return nil, err
		}
	case ispec.MediaTypeImageLayerZstd:
		z, err := zstd.NewReader(f)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	}
	return io.ReadAll(r)
}

func readJSON(t testing.TB, name string, v any) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatalf("read %s: %v", name, err)
	}
}
