package cas

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

var ctx = context.Background()

func newLayout(t *testing.T) *Layout {
	t.Helper()
	l, err := Create(filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func putBlob(t *testing.T, l *Layout, content string) (digest.Digest, int64) {
	t.Helper()
	d, size, err := l.putJSON(ctx, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	return d, size
}

func blank(t *testing.T, l *Layout, tag string) *Image {
	t.Helper()
	p, err := l.Blank(ctx, ispec.Platform{OS: "linux", Architecture: "amd64", Variant: "v3"}, time.Unix(1, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetRef(ctx, tag, p.Root()); err != nil {
		t.Fatal(err)
	}
	return image(t, l, tag)
}

func image(t *testing.T, l *Layout, tag string) *Image {
	t.Helper()
	p, err := l.Resolve(ctx, tag, ResolveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := l.Image(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestALayerIsAppendedAndTheOldImageStays(t *testing.T) {
	l := newLayout(t)
	base := blank(t, l, "base")
	d, size := putBlob(t, l, "layer")
	p, err := l.Commit(ctx, base, Change{
		Layers:  []NewLayer{{Digest: d, Size: size, DiffID: d, PlainSize: 99, MediaType: ispec.MediaTypeImageLayerGzip}},
		History: []ispec.History{{CreatedBy: "a <test> & more"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetRef(ctx, "new", p.Root()); err != nil {
		t.Fatal(err)
	}
	got := image(t, l, "new")
	if len(got.Manifest.Layers) != 1 || got.Manifest.Layers[0].Annotations[uncompressedSizeAnnotation] != "99" {
		t.Errorf("layers %+v", got.Manifest.Layers)
	}
	if got.Config.Variant != "v3" || got.Config.History[0].CreatedBy != "a <test> & more" {
		t.Errorf("config %+v", got.Config)
	}
	if len(image(t, l, "base").Manifest.Layers) != 0 {
		t.Error("the old tag changed")
	}
}

func TestUnknownFieldsSurviveAChange(t *testing.T) {
	l := newLayout(t)
	config := `{"zzz":{"b":1,"a":"<>"},"architecture":"amd64","os":"linux","config":{"Healthcheck":{"Test":["x"]}},"rootfs":{"type":"layers","diff_ids":[],"future":7}}`
	cd, cs := putBlob(t, l, config)
	manifest := fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[],"x-note":[1,2]}`, ispec.MediaTypeImageConfig, cd, cs)
	md, ms := putBlob(t, l, manifest)
	index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"x-entry":true}],"x-index":"y"}`, ispec.MediaTypeImageManifest, md, ms)
	id, is := putBlob(t, l, index)
	if err := l.SetRef(ctx, "a", ispec.Descriptor{MediaType: ispec.MediaTypeImageIndex, Digest: id, Size: is}); err != nil {
		t.Fatal(err)
	}
	img := image(t, l, "a")
	p, err := l.Commit(ctx, img, Change{History: []ispec.History{{EmptyLayer: true}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Walk) != 2 || p.Root().MediaType != ispec.MediaTypeImageIndex {
		t.Fatalf("path %+v", p)
	}
	for _, want := range []struct {
		desc ispec.Descriptor
		text []string
	}{
		{p.Walk[0], []string{`"x-index":"y"`, `"x-entry":true`}},
		{p.Walk[1], []string{`"x-note":[1,2]`}},
	} {
		data, err := l.ReadBlob(ctx, want.desc)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range want.text {
			if !strings.Contains(string(data), s) {
				t.Errorf("%s lost %s", data, s)
			}
		}
	}
	got, err := l.Image(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := got.config.bytes()
	if err != nil || !strings.HasPrefix(string(raw), `{"zzz":{"b":1,"a":"<>"},"architecture"`) ||
		!strings.Contains(string(raw), `"Healthcheck":{"Test":["x"]}`) || !strings.Contains(string(raw), `"future":7`) {
		t.Errorf("config %s, %v", raw, err)
	}
}

func TestSeveralWritersLoseNothing(t *testing.T) {
	l := newLayout(t)
	img := blank(t, l, "base")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			own, err := Open(l.Path())
			if err != nil {
				t.Error(err)
				return
			}
			defer own.Close()
			for i := range 10 {
				if err := own.SetRef(ctx, fmt.Sprintf("w%d-%d", w, i), img.Path.Root()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	refs, err := l.Refs(ctx)
	if err != nil || len(refs) != 81 {
		t.Errorf("%d references, %v", len(refs), err)
	}
}

func TestResolveExplainsWhatItCannotFind(t *testing.T) {
	l := newLayout(t)
	img := blank(t, l, "debian-12")
	_, err := l.Resolve(ctx, "debian-21", ResolveOptions{})
	var te *TagError
	if !errors.As(err, &te) || !errors.Is(err, ErrTagNotFound) || !slices.Equal(te.Near, []string{"debian-12"}) {
		t.Errorf("%v", err)
	}
	var entries []string
	for _, arch := range []string{"arm64", "amd64"} {
		d := img.Path.Root()
		entries = append(entries, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":%q}}`,
			d.MediaType, d.Digest, d.Size, arch))
	}
	// Two entries of one manifest are one: make them differ.
	other, size := putBlob(t, l, "{}")
	entries[0] = strings.Replace(entries[0], img.Path.Root().Digest.String(), other.String(), 1)
	_ = size
	id, is := putBlob(t, l, `{"schemaVersion":2,"manifests":[`+strings.Join(entries, ",")+`]}`)
	if err := l.SetRef(ctx, "multi", ispec.Descriptor{MediaType: ispec.MediaTypeImageIndex, Digest: id, Size: is}); err != nil {
		t.Fatal(err)
	}
	p, err := l.Resolve(ctx, "multi", ResolveOptions{Platform: &ispec.Platform{OS: "linux", Architecture: "amd64"}})
	if err != nil || p.Descriptor().Digest != img.Path.Root().Digest || len(p.Walk) != 2 {
		t.Errorf("amd64: %+v, %v", p, err)
	}
	_, err = l.Resolve(ctx, "multi", ResolveOptions{Platform: &ispec.Platform{OS: "linux", Architecture: "s390x"}})
	if !errors.Is(err, ErrNoPlatform) || !errors.Is(err, ErrTagNotFound) ||
		err.Error() != "no image for this platform: multi for linux/s390x (linux/arm64, linux/amd64; choose one with --platform)" {
		t.Errorf("s390x: %v", err)
	}
}

func TestHostileDocumentsAreRefused(t *testing.T) {
	l := newLayout(t)
	d, size := putBlob(t, l, `{"schemaVersion":2,"manifests":[],"layers":[]}`)
	for name, desc := range map[string]ispec.Descriptor{
		"an index that is a manifest too": {MediaType: ispec.MediaTypeImageIndex, Digest: d, Size: size},
		"a size that lies":                {MediaType: ispec.MediaTypeImageIndex, Digest: d, Size: size - 1},
		"a size of a gigabyte":            {MediaType: ispec.MediaTypeImageIndex, Digest: d, Size: 1 << 30},
		"a negative size":                 {MediaType: ispec.MediaTypeImageIndex, Digest: d, Size: -1},
		"embedded data of another digest": {MediaType: ispec.MediaTypeImageIndex, Digest: d, Size: 2, Data: []byte("{}")},
		"a digest with a path in it":      {MediaType: ispec.MediaTypeImageIndex, Digest: "sha256:../../../etc/passwd", Size: 1},
	} {
		t.Run(name, func(t *testing.T) {
			if err := l.SetRef(ctx, "bad", desc); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Resolve(ctx, "bad", ResolveOptions{}); err == nil || errors.Is(err, ErrTagNotFound) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestTagsFollowTheGrammar(t *testing.T) {
	for tag, ok := range map[string]bool{
		"latest": true, "a:b": true, "a--b": true, "a/b.c": true, "x@y+z": true,
		"": false, "-a": false, "a_": false, "a//b": false, "a b": false, "a---b": false,
	} {
		if got := CheckTag(tag) == nil; got != ok {
			t.Errorf("%q: %v", tag, got)
		}
	}
}

func TestGCKeepsWhatIsReferredToAndIsRefusedWhilePinned(t *testing.T) {
	l := newLayout(t)
	blank(t, l, "keep")
	gone := blank(t, l, "gone")
	if p, err := l.Commit(ctx, gone, Change{History: []ispec.History{{Comment: "x"}}}); err != nil {
		t.Fatal(err)
	} else if err := l.SetRef(ctx, "gone", p.Root()); err != nil {
		t.Fatal(err)
	}
	if n, err := l.RemoveRef(ctx, "gone"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	release, err := l.Pin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.GC(ctx, GCOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("while pinned: %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	res, err := l.GC(ctx, GCOptions{})
	if err != nil || res.Blobs != 2 {
		t.Errorf("%+v, %v", res, err)
	}
	image(t, l, "keep")
}

func TestAPinThatWaitsForAGCEndsWithItsContext(t *testing.T) {
	l := newLayout(t)
	release, err := l.lock(ctx, lockBlobs, unix.F_WRLCK, false) // as GC does
	if err != nil {
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := l.Pin(limited); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while a gc runs: %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	unpin, err := l.Pin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := unpin(); err != nil {
		t.Fatal(err)
	}
}

func TestStockUmociReadsTheLayout(t *testing.T) {
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		t.Skip("umoci is not installed")
	}
	l := newLayout(t)
	blank(t, l, "v1")
	out, err := exec.Command(umoci, "ls", "--layout", l.Path()).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "v1" {
		t.Errorf("umoci ls: %s %v", out, err)
	}
	out, err = exec.Command(umoci, "stat", "--image", l.Path()+":v1", "--json").CombinedOutput()
	if err != nil || !json.Valid(out) {
		t.Errorf("umoci stat: %s %v", out, err)
	}
	out, err = exec.Command(umoci, "gc", "--layout", l.Path()).CombinedOutput()
	if err != nil {
		t.Errorf("umoci gc: %s %v", out, err)
	}
	if _, err := os.Stat(filepath.Join(l.Path(), lockFile)); err != nil {
		t.Errorf("umoci gc removed the lock: %v", err)
	}
}
