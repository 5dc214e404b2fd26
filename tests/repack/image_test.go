package repack

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// image is what a tag's config and manifest say.
type image struct {
	Layers []struct {
		MediaType string        `json:"mediaType"`
		Digest    digest.Digest `json:"digest"`
	} `json:"layers"`
	Config struct {
		Digest digest.Digest `json:"digest"`
	} `json:"config"`
	digest  digest.Digest
	history []map[string]any
}

func (f *fixture) image(tag string) image {
	f.t.Helper()
	var ix struct {
		Manifests []struct {
			Digest      digest.Digest     `json:"digest"`
			Annotations map[string]string `json:"annotations"`
		} `json:"manifests"`
	}
	f.readJSON("index.json", &ix)
	var img image
	for _, m := range ix.Manifests {
		if m.Annotations["org.opencontainers.image.ref.name"] == tag {
			img.digest = m.Digest
		}
	}
	f.readJSON(blobName(img.digest), &img)
	var config struct {
		History []map[string]any `json:"history"`
	}
	f.readJSON(blobName(img.Config.Digest), &config)
	img.history = config.History
	return img
}

func blobName(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

func (f *fixture) readJSON(name string, v any) {
	f.t.Helper()
	data, err := os.ReadFile(filepath.Join(f.layout, name))
	must(f.t, err)
	must(f.t, json.Unmarshal(data, v))
}

// entries are the names in a tag's last layer, which is gzip or plain.
func (f *fixture) entries(tag string) []string {
	f.t.Helper()
	layers := f.image(tag).Layers
	last := layers[len(layers)-1]
	file, err := os.Open(filepath.Join(f.layout, blobName(last.Digest)))
	must(f.t, err)
	defer file.Close()
	var r io.Reader = file
	if strings.HasSuffix(last.MediaType, "gzip") {
		r, err = gzip.NewReader(file)
		must(f.t, err)
	}
	var out []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		must(f.t, err)
		name := h.Name
		if h.Typeflag == tar.TypeLink {
			name += " = " + h.Linkname
		}
		out = append(out, name)
	}
}

func (f *fixture) wantEntries(tag string, want ...string) {
	f.t.Helper()
	if got := f.entries(tag); !slices.Equal(got, want) {
		f.t.Errorf("the layer of %s holds %q, want %q", tag, got, want)
	}
}
