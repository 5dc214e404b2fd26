package layer

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// writeLayout makes an image layout with one image of these layers, tagged "t".
func writeLayout(t *testing.T, layers [][]byte) string {
	t.Helper()
	dir := t.TempDir()
	put := func(b []byte) ispec.Descriptor {
		d := digest.FromBytes(b)
		path := filepath.Join(dir, "blobs", "sha256", d.Encoded())
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return ispec.Descriptor{Digest: d, Size: int64(len(b))}
	}
	putJSON := func(mediaType string, v any) ispec.Descriptor {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d := put(b)
		d.MediaType = mediaType
		return d
	}
	config := ispec.Image{Platform: ispec.Platform{OS: "linux", Architecture: "amd64"}}
	config.RootFS.Type = "layers"
	manifest := ispec.Manifest{MediaType: ispec.MediaTypeImageManifest}
	manifest.SchemaVersion = 2
	for _, l := range layers {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		if _, err := w.Write(l); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		d := put(z.Bytes())
		d.MediaType = ispec.MediaTypeImageLayerGzip
		manifest.Layers = append(manifest.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
	}
	manifest.Config = putJSON(ispec.MediaTypeImageConfig, config)
	top := putJSON(ispec.MediaTypeImageManifest, manifest)
	top.Annotations = map[string]string{ispec.AnnotationRefName: "t"}
	index := ispec.Index{Manifests: []ispec.Descriptor{top}}
	index.SchemaVersion = 2
	for name, v := range map[string]any{"index.json": index, "oci-layout": ispec.ImageLayout{Version: ispec.ImageLayoutVersion}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// maskClock blanks what stock umoci takes from the time of day and the caller's
// umask: all metadata of directories that no entry described, and the time of
// those it changed while it made one of them or followed a whiteout.
func maskClock(ours, stock string, start time.Time) (string, string) {
	a, b := strings.Split(ours, "\n"), strings.Split(stock, "\n")
	for i := range min(len(a), len(b)) {
		path, meta, _ := strings.Cut(b[i], " d ")
		if !strings.HasPrefix(a[i], path+" d ") {
			continue
		}
		if a[i] == path+" d 0755 @0.000000000" && path != "." {
			b[i] = a[i]
		}
		before, at, ok := strings.Cut(meta, " @")
		sec, err := strconv.ParseInt(strings.Split(at, ".")[0], 10, 64)
		if ok && err == nil && sec >= start.Unix() {
			own, _, _ := strings.Cut(a[i], " @")
			a[i], b[i] = own, path+" d "+before
		}
	}
	return strings.Join(a, "\n"), strings.Join(b, "\n")
}

func TestTheMergedTreeEqualsStockUmociUnpack(t *testing.T) {
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		t.Skip("umoci is not installed")
	}
	if os.Geteuid() != 0 {
		t.Skip("extracting owners and devices takes root")
	}
	for _, c := range oddLayers {
		if c.stock != "" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			layers := c.layers(t)
			root := filepath.Join(t.TempDir(), "rootfs")
			args := []string{"raw", "unpack", "--image", writeLayout(t, layers) + ":t"}
			if c.keepDirlinks {
				args = append(args, "--keep-dirlinks")
			}
			start := time.Now()
			out, err := exec.Command(umoci, append(args, root)...).CombinedOutput()
			if c.fails != "" {
				if err == nil {
					t.Errorf("stock umoci takes it; we fail with %q", c.fails)
				}
				return
			}
			if err != nil {
				t.Fatalf("stock umoci: %v\n%s", err, out)
			}
			im, err := imageOf(t, c.keepDirlinks, layers...)
			if err != nil {
				t.Fatal(err)
			}
			ours, stock := maskClock(dump(walkImage(t, im)), dump(walkDisk(t, root)), start)
			if ours != stock {
				t.Errorf("ours\n%s\nstock\n%s", ours, stock)
			}
		})
	}
}
