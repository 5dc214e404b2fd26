package cas

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// writeIndex puts text in the place of index.json.
func writeIndex(t *testing.T, l *Layout, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(l.Path(), indexFile), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readIndex(t *testing.T, l *Layout) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(l.Path(), indexFile))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestEntriesThatAreNotTouchedKeepTheirBytes(t *testing.T) {
	l := newLayout(t)
	d := digest.FromString("x")
	kept := fmt.Sprintf("{ \"size\" : 1.0e0,\n\t\"digest\":%q, \"mediaType\":\"a/b\",\"é\":[ ],\"big\":123456789012345678901234567890,\"esc\":\"<\\u003c\\/\" }", d)
	gone := fmt.Sprintf(`{"mediaType":"a/b","digest":%q,"size":1,"annotations":{"org.opencontainers.image.ref.name":"t"}}`, d)
	kept = strings.Replace(kept, "1.0e0", "1", 1)
	writeIndex(t, l, "{ \"x-first\": {\"b\":1, \"a\":2},\n \"manifests\": [\n"+gone+" ,\n"+kept+",\n"+gone+"],\"schemaVersion\": 2,\n\"x-last\":null}")
	if err := l.SetRef(ctx, "t", ispec.Descriptor{MediaType: "a/b", Digest: d, Size: 2}); err != nil {
		t.Fatal(err)
	}
	added := strings.Replace(gone, `"size":1`, `"size":2`, 1)
	want := `{"x-first":{"b":1, "a":2},"manifests":[` + kept + "," + added + `],"schemaVersion":2,"x-last":null}` + "\n"
	if got := readIndex(t, l); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestOneReferenceIsLeftOfSeveral(t *testing.T) {
	l := newLayout(t)
	img := blank(t, l, "a")
	e := img.Path.Root()
	if err := l.Update(ctx, func(ix *Index) error {
		ix.Entries = append(ix.Entries, ix.Entries[0], ix.Entries[0])
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if refs, err := l.Refs(ctx); err != nil || len(refs) != 3 {
		t.Fatal(refs, err)
	}
	if err := l.SetRef(ctx, "a", e); err != nil {
		t.Fatal(err)
	}
	if refs, err := l.Refs(ctx); err != nil || len(refs) != 1 {
		t.Fatal(refs, err)
	}
	if n, err := l.RemoveRef(ctx, "no such tag"); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if err := l.SetRef(ctx, "no such tag", e); !errors.Is(err, ErrBadTag) {
		t.Fatal(err)
	}
	sentinel := errors.New("stop")
	if err := l.Update(ctx, func(ix *Index) error { ix.Entries = nil; return sentinel }); !errors.Is(err, sentinel) {
		t.Fatal(err)
	}
	image(t, l, "a")
}

func TestTheSameChangeCanBeMadeAgain(t *testing.T) {
	l := newLayout(t)
	img := blank(t, l, "a")
	d := digest.FromString("layer")
	c := Change{Layers: []NewLayer{{Digest: d, Size: 5, DiffID: d, PlainSize: 5, MediaType: ispec.MediaTypeImageLayer}}, History: []ispec.History{{Comment: "x"}}}
	a, err := l.Commit(ctx, img, c)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Commit(ctx, img, c)
	if err != nil || a.Root().Digest != b.Root().Digest {
		t.Fatalf("%v, then %v, %v", a.Root(), b.Root(), err)
	}
	same, err := l.Commit(ctx, img, Change{})
	if err != nil || same.Root().Digest != img.Path.Root().Digest {
		t.Errorf("no change made %v of %v, %v", same.Root(), img.Path.Root(), err)
	}
}

func TestOnlyThePlatformOnThePathChanges(t *testing.T) {
	l := newLayout(t)
	d := imageFor(t, l, "linux/amd64")
	amd, arm := d, d
	amd.Platform, arm.Platform = platform(t, "linux/amd64"), platform(t, "linux/arm64")
	amd.URLs, amd.Annotations = []string{"https://old"}, map[string]string{"keep": "me"}
	if err := l.SetRef(ctx, "x", putIndex(t, l, amd, arm)); err != nil {
		t.Fatal(err)
	}
	p, err := l.Resolve(ctx, "x", ResolveOptions{Platform: amd.Platform})
	if err != nil {
		t.Fatal(err)
	}
	img, err := l.Image(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	made, err := l.Commit(ctx, img, Change{History: []ispec.History{{Comment: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	ix, err := l.nestedIndex(ctx, made.Root())
	if err != nil {
		t.Fatal(err)
	}
	e := ix.Entries[0]
	if e.Digest == d.Digest || e.Digest != made.Descriptor().Digest || e.URLs != nil || e.Annotations["keep"] != "me" || e.Platform == nil {
		t.Errorf("amd64 is %s", e.raw)
	}
	if e := ix.Entries[1]; e.Digest != d.Digest || e.Size != d.Size {
		t.Errorf("arm64 is %s", e.raw)
	}
	foreign := &Path{Walk: []ispec.Descriptor{putIndex(t, l), p.Descriptor()}}
	if _, err := l.commitPath(ctx, foreign, d.Digest, d.Size); !errors.Is(err, ErrMalformed) {
		t.Errorf("an index that does not list the manifest: %v", err)
	}
}

func TestEmbeddedDataIsReadVerifiedAndReplaced(t *testing.T) {
	l := newLayout(t)
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"x":1}`)
	manifest := fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q,"size":%d,"data":%q,"annotations":{"a":"b"}},"layers":[]}`,
		ispec.MediaTypeImageConfig, digest.FromBytes(config), len(config), b64(config))
	d := ispec.Descriptor{
		MediaType: ispec.MediaTypeImageManifest, Digest: digest.FromString(manifest), Size: int64(len(manifest)), Data: []byte(manifest),
	}
	if err := l.SetRef(ctx, "x", d); err != nil {
		t.Fatal(err)
	}
	img := image(t, l, "x") // no blob is in the layout
	p, err := l.Commit(ctx, img, Change{History: []ispec.History{{Comment: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	if p.Root().Data != nil {
		t.Error("the descriptor has the old manifest embedded")
	}
	if err := l.SetRef(ctx, "y", p.Root()); err != nil {
		t.Fatal(err)
	}
	got := image(t, l, "y")
	if c := got.Manifest.Config; c.Data != nil || c.Annotations["a"] != "b" || len(got.Config.History) != 1 {
		t.Errorf("%+v", got)
	}
	d.Data = []byte(strings.Replace(manifest, `"layers"`, `"Layers"`, 1))
	if _, err := l.ReadBlob(ctx, d); !errors.Is(err, ErrDigest) {
		t.Errorf("other data: %v", err)
	}
}

func TestADockerImageStaysOne(t *testing.T) {
	l := newLayout(t)
	cd, cs := putBlob(t, l, `{"architecture":"amd64","os":"linux","container_config":{},"docker_version":"1","rootfs":{"type":"layers","diff_ids":["`+
		digest.FromString("d").String()+`"]}}`)
	md, ms := putBlob(t, l, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"size":%d,"digest":%q},"layers":[{"mediaType":%q,"size":1,"digest":%q}]}`,
		dockerManifest, dockerConfig, cs, cd, dockerLayerGzip, digest.FromString("l")))
	id, is := putBlob(t, l, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"size":%d,"digest":%q,"platform":{"os":"linux","architecture":"amd64"}}]}`,
		dockerIndex, dockerManifest, ms, md))
	if err := l.SetRef(ctx, "x", ispec.Descriptor{MediaType: dockerIndex, Digest: id, Size: is}); err != nil {
		t.Fatal(err)
	}
	img := image(t, l, "x")
	for compress, want := range map[string]string{CompressNone: dockerLayer, CompressGzip: dockerLayerGzip, CompressZstd: dockerLayer + ".zstd"} {
		if got := img.LayerMediaType(compress); got != want {
			t.Errorf("%s: %s", compress, got)
		}
	}
	d, size := putBlob(t, l, "layer")
	p, err := l.Commit(ctx, img, Change{Layers: []NewLayer{{Digest: d, Size: size, DiffID: d, PlainSize: 7, MediaType: img.LayerMediaType(CompressZstd)}}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.Image(ctx, p)
	if err != nil || got.Manifest.MediaType != dockerManifest || got.Manifest.Config.MediaType != dockerConfig || len(got.Manifest.Layers) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, have := got.config.fields["docker_version"]; !have {
		t.Error("the config lost a field of Docker's")
	}
	if c, err := got.LayerCompression(CompressAuto); c != CompressZstd || err != nil {
		t.Errorf("auto over it is %s, %v", c, err)
	}
}

func TestAutoCompressionFollowsTheLastCompressedLayer(t *testing.T) {
	for name, c := range map[string]struct {
		layers []string
		ask    string
		want   string
	}{
		"no layer":                 {nil, CompressAuto, CompressGzip},
		"gzip":                     {[]string{"+gzip"}, "", CompressGzip},
		"zstd on gzip":             {[]string{"+gzip", "+zstd"}, CompressAuto, CompressZstd},
		"plain on zstd":            {[]string{"+gzip", "+zstd", ""}, CompressAuto, CompressZstd},
		"plain alone":              {[]string{""}, CompressAuto, CompressGzip},
		"unsupported on zstd":      {[]string{"+zstd", "+bzip2"}, CompressAuto, CompressZstd},
		"what is asked for":        {[]string{"+zstd"}, CompressNone, CompressNone},
		"what is asked for, gzip":  {[]string{"+zstd"}, CompressGzip, CompressGzip},
		"what nobody has heard of": {nil, "lz4", ""},
	} {
		t.Run(name, func(t *testing.T) {
			img := &Image{}
			for _, suffix := range c.layers {
				img.Manifest.Layers = append(img.Manifest.Layers, ispec.Descriptor{MediaType: ispec.MediaTypeImageLayer + suffix})
			}
			got, err := img.LayerCompression(c.ask)
			if got != c.want || (err == nil) != (c.want != "") {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}
