package cas

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func b64(data []byte) string { return base64.StdEncoding.EncodeToString(data) }

func TestIndexesThatMeanTwoThingsAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"no object":                           `[]`,
		"no JSON":                             `{`,
		"nothing":                             ``,
		"something after it":                  `{"manifests":[]}{}`,
		"garbage after it":                    `{"manifests":[]} x`,
		"a manifest's config":                 `{"manifests":[],"config":{}}`,
		"a manifest's layers":                 `{"manifests":[],"layers":[]}`,
		"a manifest's layers in capitals":     `{"manifests":[],"LAYERS":[]}`,
		"a manifest's media type":             `{"mediaType":"` + ispec.MediaTypeImageManifest + `","manifests":[]}`,
		"entries twice":                       `{"manifests":[],"manifests":[]}`,
		"entries under another case":          `{"Manifests":[]}`,
		"entries under a letter that folds":   `{"manifeſts":[]}`,
		"an entry that is null":               `{"manifests":[null]}`,
		"an entry that is a list":             `{"manifests":[[]]}`,
		"an entry with a digest in two cases": `{"manifests":[{"digest":"a","Digest":"b"}]}`,
		"an entry with a size that is text":   `{"manifests":[{"size":"1"}]}`,
		"an entry with a size of a fraction":  `{"manifests":[{"size":1.5}]}`,
		"an entry with data that is no data":  `{"manifests":[{"data":"?"}]}`,
		"entries that are an object":          `{"manifests":{}}`,
		"a media type that is a number":       `{"mediaType":1}`,
		"nested beyond reason":                `{"manifests":` + strings.Repeat("[", 1<<20) + strings.Repeat("]", 1<<20) + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			writeIndex(t, l, text)
			if _, err := l.Index(ctx); !errors.Is(err, ErrMalformed) {
				t.Errorf("got %v", err)
			}
			if err := l.Update(ctx, func(*Index) error { return nil }); !errors.Is(err, ErrMalformed) {
				t.Errorf("update: %v", err)
			}
			if got := readIndex(t, l); got != text {
				t.Errorf("it was changed to %s", got)
			}
		})
	}
}

func TestADocumentIsWhatItsDescriptorSays(t *testing.T) {
	l := newLayout(t)
	id, is := putBlob(t, l, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[]}`, ispec.MediaTypeImageIndex))
	if err := l.SetRef(ctx, "x", ispec.Descriptor{MediaType: dockerIndex, Digest: id, Size: is}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Resolve(ctx, "x", ResolveOptions{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("an OCI index as a Docker one: %v", err)
	}
	config := `{"rootfs":{"type":"layers","diff_ids":[]}}`
	layer := fmt.Sprintf(`{"mediaType":"x","digest":%q,"size":1}`, digest.FromString("l"))
	for name, c := range map[string]struct {
		manifest string // CONFIG stands for a good config's fields
		config   string
		want     error
	}{
		"a good one":                        {`{"config":{CONFIG},"layers":[]}`, config, nil},
		"no layers at all":                  {`{"config":{CONFIG}}`, config, nil},
		"a Docker manifest as an OCI one":   {`{"mediaType":"` + dockerManifest + `","config":{CONFIG},"layers":[]}`, config, ErrMalformed},
		"an index's entries":                {`{"config":{CONFIG},"layers":[],"manifests":[]}`, config, ErrMalformed},
		"layers twice":                      {`{"config":{CONFIG},"layers":[],"layers":[]}`, config, ErrMalformed},
		"layers in two cases":               {`{"config":{CONFIG},"layers":[],"Layers":[` + layer + `]}`, config, ErrMalformed},
		"a config of another type":          {`{"config":{CONFIG,"mediaType":"x"},"layers":[]}`, config, ErrMediaType},
		"no config":                         {`{"layers":[]}`, config, ErrMediaType},
		"an artifact":                       {`{"config":{"mediaType":"application/vnd.oci.empty.v1+json"},"layers":[]}`, config, ErrMediaType},
		"a layer with a negative size":      {`{"config":{CONFIG},"layers":[` + strings.Replace(layer, ":1}", ":-1}", 1) + `]}`, config, ErrMalformed},
		"a layer with a digest like a path": {`{"config":{CONFIG},"layers":[{"mediaType":"x","digest":"sha256:../../x","size":1}]}`, config, ErrMalformed},
		"more layers than diff_ids":         {`{"config":{CONFIG},"layers":[` + layer + `]}`, config, ErrMalformed},
		"a config with another rootfs type": {`{"config":{CONFIG},"layers":[]}`, `{"rootfs":{"type":"x"}}`, ErrMalformed},
		"a config with no rootfs":           {`{"config":{CONFIG},"layers":[]}`, `{}`, ErrMalformed},
		"a config that is a list":           {`{"config":{CONFIG},"layers":[]}`, `[]`, ErrMalformed},
		"a config with rootfs in two cases": {`{"config":{CONFIG},"layers":[]}`, `{"Rootfs":1,"rootfs":{"type":"layers"}}`, ErrMalformed},
		"a config with a wrong time":        {`{"config":{CONFIG},"layers":[]}`, `{"created":1,"rootfs":{"type":"layers"}}`, ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			cd, cs := putBlob(t, l, c.config)
			fields := fmt.Sprintf(`"mediaType":%q,"digest":%q,"size":%d`, ispec.MediaTypeImageConfig, cd, cs)
			md, ms := putBlob(t, l, strings.Replace(c.manifest, "CONFIG", fields, 1))
			_, err := l.Image(ctx, &Path{Walk: []ispec.Descriptor{{MediaType: ispec.MediaTypeImageManifest, Digest: md, Size: ms}}})
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	if _, err := l.Image(ctx, &Path{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("an empty path: %v", err)
	}
	if _, err := l.Image(ctx, &Path{Walk: []ispec.Descriptor{{MediaType: "text/plain"}}}); !errors.Is(err, ErrMediaType) {
		t.Errorf("another type: %v", err)
	}
}

func TestWhatIsNoFileIsNotRead(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"a fifo":                     func(path string) error { return syscall.Mkfifo(path, 0o666) },
		"a directory":                func(path string) error { return os.Mkdir(path, 0o777) },
		"a link out of the layout":   func(path string) error { return os.Symlink("/etc/hostname", path) },
		"a relative link out of it":  func(path string) error { return os.Symlink("../../../outside", path) },
		"a link to itself":           func(path string) error { return os.Symlink(filepath.Base(path), path) },
		"a link through the root":    func(path string) error { return os.Symlink("/proc/self/root/etc/hostname", path) },
		"a device that never ends":   func(path string) error { return os.Symlink("/dev/zero", path) },
		"a file of half a terabyte":  func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o666), os.Truncate(path, 1<<39)) },
		"a fifo at the layout's top": func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o666), topFifo(path)) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			if err := os.WriteFile(filepath.Join(filepath.Dir(l.Path()), "outside"), nil, 0o666); err != nil {
				t.Fatal(err)
			}
			d := digest.FromString(name)
			if err := put(filepath.Join(l.Path(), "blobs", "sha256", d.Encoded())); err != nil {
				t.Fatal(err)
			}
			if _, err := l.ReadBlob(ctx, ispec.Descriptor{Digest: d, Size: 3}); err == nil {
				t.Error("it was read")
			}
			if strings.Contains(name, "top") {
				if _, err := l.Index(ctx); !errors.Is(err, ErrMalformed) {
					t.Errorf("index: %v", err)
				}
			}
		})
	}
}

func topFifo(blob string) error {
	index := filepath.Join(filepath.Dir(blob), "..", "..", indexFile)
	return errors.Join(os.Remove(index), syscall.Mkfifo(index, 0o666))
}

func TestAnIndexBeyondTheBoundIsRefused(t *testing.T) {
	l := newLayout(t)
	if err := os.Truncate(filepath.Join(l.Path(), indexFile), MaxDocument+1); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Index(ctx); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

func TestOpenSaysWhatIsNoLayout(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"no version": "{}", "a later version": `{"imageLayoutVersion":"2.0.0"}`, "no JSON": "x"} {
		if err := os.WriteFile(filepath.Join(dir, ispec.ImageLayoutFile), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); !errors.Is(err, ErrNotLayout) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrNotLayout) {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	if _, err := Create(dir); !errors.Is(err, ErrExists) {
		t.Errorf("create: %v", err)
	}
}
