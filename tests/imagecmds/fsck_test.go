package imagecmds

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// report is what fsck --json says.
type report struct {
	Tags         int   `json:"tags"`
	Images       int   `json:"images"`
	Blobs        int   `json:"blobs"`
	Bytes        int64 `json:"bytes"`
	Unreferenced int   `json:"unreferenced_blobs"`
	Problems     []struct {
		Kind    string   `json:"kind"`
		Digest  string   `json:"digest"`
		Tags    []string `json:"tags"`
		Warning bool     `json:"warning"`
		Message string   `json:"message"`
	} `json:"problems"`
}

func fsck(t testing.TB, code int, layout string) report {
	t.Helper()
	r := env.Run(t, "fsck", "--json", "--layout", layout)
	if r.Code != code {
		t.Errorf("exit %d, want %d\n%s%s", r.Code, code, r.Stdout, r.Stderr)
	}
	var out report
	if err := json.Unmarshal([]byte(r.Stdout), &out); err != nil {
		t.Fatalf("%v\n%s%s", err, r.Stdout, r.Stderr)
	}
	return out
}

// checked is a layout with two images, of which the lower layer is shared.
func checked(t testing.TB) string {
	t.Helper()
	return imagetest.Layout(t,
		imagetest.Image{Tag: "one", Layers: []imagetest.Layer{{Text: base}}},
		imagetest.Image{Tag: "two", Layers: []imagetest.Layer{{Text: base}, {Text: above, Compress: imagetest.Zstd}}},
	)
}

func TestFsckFindsNothingInASoundLayout(t *testing.T) {
	layout := checked(t)
	r := fsck(t, 0, layout)
	if len(r.Problems) > 0 || r.Tags != 2 || r.Images != 2 || r.Blobs != 6 || r.Unreferenced != 0 {
		t.Errorf("%+v", r)
	}
	if out := env.Must(t, "fsck", "--layout", layout); strings.Count(out, "\n") != 1 {
		t.Errorf("more than one line:\n%s", out)
	}
	// What nothing refers to is no damage.
	writeBlob(t, layout, []byte("left over"))
	if r = fsck(t, 0, layout); r.Unreferenced != 1 || len(r.Problems) > 0 {
		t.Errorf("with a blob too many: %+v", r)
	}
	mustFail(t, 2, "fsck")
	mustFail(t, 3, "fsck", "--layout", t.TempDir())
}

func writeBlob(t testing.TB, layout string, b []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	if err := os.WriteFile(imagetest.BlobPath(layout, d), b, 0o644); err != nil {
		t.Fatal(err)
	}
	return d
}

// change writes a document with something else in place of a part of it, as a blob of
// its own, and returns that.
func change(t testing.TB, layout string, d digest.Digest, old, new string) ispec.Descriptor {
	t.Helper()
	b, err := os.ReadFile(imagetest.BlobPath(layout, d))
	if err != nil {
		t.Fatal(err)
	}
	s := strings.Replace(string(b), old, new, 1)
	if s == string(b) {
		t.Fatalf("%s does not have %s", b, old)
	}
	return ispec.Descriptor{Digest: writeBlob(t, layout, []byte(s)), Size: int64(len(s))}
}

// addEntry adds an entry to index.json.
func addEntry(t testing.TB, layout, tag, mediaType string, d ispec.Descriptor) {
	t.Helper()
	name := filepath.Join(layout, "index.json")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var ix ispec.Index
	if err := json.Unmarshal(b, &ix); err != nil {
		t.Fatal(err)
	}
	d.MediaType = mediaType
	if tag != "" {
		d.Annotations = map[string]string{ispec.AnnotationRefName: tag}
	}
	ix.Manifests = append(ix.Manifests, d)
	if b, err = json.Marshal(ix); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFsckSaysWhatIsWrongAndForWhichTags(t *testing.T) {
	both := []string{"one", "two"}
	for _, c := range []struct {
		name string
		do   func(t testing.TB, layout string)
		code int
		kind string
		tags []string
	}{
		{"a byte of a shared layer", func(t testing.TB, l string) { flip(t, l, lower(t, l)) }, 4, "digest", both},
		{"a byte of the upper layer", func(t testing.TB, l string) { flip(t, l, upper(t, l)) }, 4, "digest", []string{"two"}},
		{"a layer cut short", func(t testing.TB, l string) { cut(t, l, lower(t, l)) }, 4, "digest", both},
		{"a layer that is missing", func(t testing.TB, l string) { drop(t, l, upper(t, l)) }, 4, "missing", []string{"two"}},
		{"a config that is missing", func(t testing.TB, l string) {
			_, m, _ := imagetest.Manifest(t, l, "one")
			drop(t, l, m.Config.Digest)
		}, 4, "missing", []string{"one"}},
		{"a manifest that is missing", func(t testing.TB, l string) {
			d, _, _ := imagetest.Manifest(t, l, "two")
			drop(t, l, d.Digest)
		}, 4, "missing", []string{"two"}},
		{"a byte of a config", func(t testing.TB, l string) {
			_, m, _ := imagetest.Manifest(t, l, "two")
			flip(t, l, m.Config.Digest)
		}, 4, "digest", []string{"two"}},
		{"a wrong diffID", func(t testing.TB, l string) {
			d, m, config := imagetest.Manifest(t, l, "one")
			n := change(t, l, m.Config.Digest, config.RootFS.DiffIDs[0].String(), digest.FromString("x").String())
			addEntry(t, l, "three", ispec.MediaTypeImageManifest, change(t, l, d.Digest, m.Config.Digest.String(), n.Digest.String()))
		}, 4, "diffid", []string{"one", "three", "two"}},
		{"a config with a diffID too few", func(t testing.TB, l string) {
			d, m, config := imagetest.Manifest(t, l, "one")
			n := change(t, l, m.Config.Digest, `"`+config.RootFS.DiffIDs[0].String()+`"`, "")
			s := change(t, l, d.Digest, m.Config.Digest.String(), n.Digest.String())
			n2 := change(t, l, s.Digest, sizeField(m.Config.Size), sizeField(n.Size))
			addEntry(t, l, "three", ispec.MediaTypeImageManifest, n2)
		}, 4, "document", []string{"three"}},
		{"a manifest that is no JSON", func(t testing.TB, l string) {
			b := []byte("{")
			addEntry(t, l, "three", ispec.MediaTypeImageManifest, ispec.Descriptor{Digest: writeBlob(t, l, b), Size: 1})
		}, 4, "document", []string{"three"}},
		{"a manifest of another size", func(t testing.TB, l string) {
			d, _, _ := imagetest.Manifest(t, l, "one")
			addEntry(t, l, "three", ispec.MediaTypeImageManifest, ispec.Descriptor{Digest: d.Digest, Size: d.Size + 1})
		}, 4, "digest", []string{"one", "three"}},
		{"an index with a manifest's fields", func(t testing.TB, l string) {
			d, _, _ := imagetest.Manifest(t, l, "one")
			addEntry(t, l, "three", ispec.MediaTypeImageIndex, ispec.Descriptor{Digest: d.Digest, Size: d.Size})
		}, 4, "document", []string{"one", "three"}},
		{"a nested index whose manifest is missing", func(t testing.TB, l string) {
			inner := ispec.Descriptor{MediaType: ispec.MediaTypeImageManifest, Digest: digest.FromString("gone"), Size: 4}
			addEntry(t, l, "nested", ispec.MediaTypeImageIndex, index(t, l, index(t, l, inner)))
		}, 4, "missing", []string{"nested"}},
		{"an entry without a name that leads nowhere", func(t testing.TB, l string) {
			addEntry(t, l, "", ispec.MediaTypeImageManifest, ispec.Descriptor{Digest: digest.FromString("gone"), Size: 4})
		}, 4, "missing", []string{}},
		{"a layer that is no tar", func(t testing.TB, l string) {
			addImage(t, l, "three", []byte("no tar at all"), ispec.MediaTypeImageLayer)
		}, 4, "layer", []string{"three"}},
		{"a layer that is no gzip", func(t testing.TB, l string) {
			addImage(t, l, "three", make([]byte, 1024), ispec.MediaTypeImageLayerGzip)
		}, 4, "layer", []string{"three"}},
		{"a layer of an unknown type", func(t testing.TB, l string) {
			addImage(t, l, "three", make([]byte, 1024), ispec.MediaTypeImageLayer+"+bzip2")
		}, 0, "unknown", []string{"three"}},
		{"a file that is no blob", func(t testing.TB, l string) {
			if err := os.WriteFile(filepath.Join(l, "blobs/sha256/README"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, 0, "stray", []string{}},
		{"a damaged blob that nothing refers to", func(t testing.TB, l string) { flip(t, l, writeBlob(t, l, []byte("left over"))) }, 4, "digest", []string{}},
		{"a name that is no tag", func(t testing.TB, l string) {
			d, _, _ := imagetest.Manifest(t, l, "one")
			addEntry(t, l, "-x", ispec.MediaTypeImageManifest, ispec.Descriptor{Digest: d.Digest, Size: d.Size})
		}, 0, "tag", []string{}},
		{"index.json itself", func(t testing.TB, l string) {
			if err := os.WriteFile(filepath.Join(l, "index.json"), []byte("{"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, 4, "document", []string{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			layout := checked(t)
			c.do(t, layout)
			r := fsck(t, c.code, layout)
			if len(r.Problems) == 0 {
				t.Fatal("nothing was found")
			}
			p := r.Problems[0]
			slices.Sort(p.Tags)
			if len(r.Problems) > 1 || p.Kind != c.kind || !slices.Equal(p.Tags, c.tags) || p.Warning != (c.code == 0) || p.Message == "" {
				t.Errorf("got %+v, want %s for %v", r.Problems, c.kind, c.tags)
			}
		})
	}
}

func sizeField(n int64) string { b, _ := json.Marshal(n); return `"size":` + string(b) }

func lower(t testing.TB, layout string) digest.Digest {
	_, m, _ := imagetest.Manifest(t, layout, "two")
	return m.Layers[0].Digest
}

func upper(t testing.TB, layout string) digest.Digest {
	_, m, _ := imagetest.Manifest(t, layout, "two")
	return m.Layers[1].Digest
}

func flip(t testing.TB, layout string, d digest.Digest) {
	t.Helper()
	name := imagetest.BlobPath(layout, d)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func cut(t testing.TB, layout string, d digest.Digest) {
	t.Helper()
	if err := os.Truncate(imagetest.BlobPath(layout, d), 100); err != nil {
		t.Fatal(err)
	}
}

func drop(t testing.TB, layout string, d digest.Digest) {
	t.Helper()
	if err := os.Remove(imagetest.BlobPath(layout, d)); err != nil {
		t.Fatal(err)
	}
}

// index is an index with one entry, as a blob.
func index(t testing.TB, layout string, d ispec.Descriptor) ispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(ispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageIndex, Manifests: []ispec.Descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	return ispec.Descriptor{MediaType: ispec.MediaTypeImageIndex, Digest: writeBlob(t, layout, b), Size: int64(len(b))}
}

// addImage adds an image of one layer.
func addImage(t testing.TB, layout, tag string, stored []byte, mediaType string) {
	t.Helper()
	put := func(v any, mediaType string) ispec.Descriptor {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return ispec.Descriptor{MediaType: mediaType, Digest: writeBlob(t, layout, b), Size: int64(len(b))}
	}
	d := writeBlob(t, layout, stored)
	config := put(ispec.Image{RootFS: ispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{d}}}, ispec.MediaTypeImageConfig)
	manifest := put(ispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageManifest, Config: config,
		Layers: []ispec.Descriptor{{MediaType: mediaType, Digest: d, Size: int64(len(stored))}},
	}, ispec.MediaTypeImageManifest)
	addEntry(t, layout, tag, ispec.MediaTypeImageManifest, manifest)
}

// An artifact is no image: its layers are not file systems.
func TestFsckTakesArtifactsAsTheyAre(t *testing.T) {
	layout := checked(t)
	d := writeBlob(t, layout, []byte("not a tar"))
	config := writeBlob(t, layout, []byte("{}"))
	b, err := json.Marshal(ispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ispec.MediaTypeImageManifest,
		Config: ispec.Descriptor{MediaType: "application/vnd.oci.empty.v1+json", Digest: config, Size: 2},
		Layers: []ispec.Descriptor{{MediaType: "text/plain", Digest: d, Size: 9}},
	})
	if err != nil {
		t.Fatal(err)
	}
	addEntry(t, layout, "artifact", ispec.MediaTypeImageManifest, ispec.Descriptor{Digest: writeBlob(t, layout, b), Size: int64(len(b))})
	if r := fsck(t, 0, layout); len(r.Problems) > 0 || r.Images != 2 || r.Unreferenced != 0 {
		t.Errorf("%+v", r)
	}
	flip(t, layout, d)
	if r := fsck(t, 4, layout); len(r.Problems) != 1 || !slices.Equal(r.Problems[0].Tags, []string{"artifact"}) {
		t.Errorf("%+v", r)
	}
}
