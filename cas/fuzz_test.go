package cas

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:00","size":1}]}`))
	f.Add([]byte("{ \"x\" : [1, 2] ,\"manifests\":[ {\"size\": 1,\n\"annotations\":{\"a\":\"b\"}} , {} ]}\n"))
	f.Add([]byte(`{"manifests":null,"\u0061":1e400}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		ix, err := parseIndex(data, "")
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("%s: %v", data, err)
			}
			return
		}
		out, err := ix.bytes()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseIndex(out, "")
		if err != nil {
			t.Fatalf("%s\nbecame\n%s: %v", data, out, err)
		}
		for i, e := range again.Entries {
			if !bytes.Equal(e.raw, ix.Entries[i].raw) {
				t.Fatalf("entry %s became %s", ix.Entries[i].raw, e.raw)
			}
		}
		ix.removeRef("a")
	})
}

func FuzzRepoint(f *testing.F) {
	f.Add([]byte(`{"mediaType":"x","digest":"sha256:00","size":1,"data":"eA==","urls":["u"],"z":{"a": 1}}`))
	d := digest.FromString("x")
	f.Fuzz(func(t *testing.T, data []byte) {
		raw, err := repoint(data, d, 7)
		if err != nil {
			return
		}
		got, err := parseDescriptor(raw)
		if errors.Is(err, ErrMalformed) {
			return // another field has no sense; it is not what is tested
		}
		if err != nil || got.Digest != d || got.Size != 7 || got.Data != nil || got.URLs != nil {
			t.Fatalf("%s became %s: %+v, %v", data, raw, got, err)
		}
	})
}

func FuzzParseImage(f *testing.F) {
	for _, s := range []string{"", "a", "a:b", ":b", "a:", "a:b:c", "a/b:c--d", "a:b/c", "a:-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		path, tag, err := ParseImage(s)
		if err != nil {
			return
		}
		if path == "" || strings.Contains(path, ":") || CheckTag(tag) != nil {
			t.Fatalf("%q: path %q, tag %q", s, path, tag)
		}
		if s != path+":"+tag && (s != path || tag != DefaultTag) {
			t.Fatalf("%q became %q %q", s, path, tag)
		}
	})
}

func FuzzParsePlatform(f *testing.F) {
	f.Add("linux/amd64")
	f.Add("linux/arm/v7")
	f.Add("\"/0")
	f.Add(strings.Repeat("a", 2*maxNearTag) + "/b")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePlatform(s)
		if err != nil {
			return
		}
		if got := platformName(*p); got != s && len(s) <= maxNearTag { // longer ones are cut
			t.Fatalf("%q became %q", s, got)
		}
		if fitOf(p, *p) != fitExact {
			t.Fatalf("%q does not fit itself", s)
		}
	})
}

// FuzzImage reads documents that nothing but their digests is right of.
func FuzzImage(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"layers":[]}`), []byte(`{"rootfs":{"type":"layers","diff_ids":[]}}`))
	f.Add([]byte(`{"layers":[{"digest":"sha256:x","size":-1}]}`), []byte(`{"rootfs":null}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		o, err := parseObject(manifest)
		if err != nil {
			return
		}
		l := &Layout{path: "fuzz"} // documents are embedded: nothing is opened
		if err := o.set("config", ispec.Descriptor{
			MediaType: ispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config)), Data: config,
		}); err != nil {
			t.Fatal(err)
		}
		data, err := o.bytes()
		if err != nil {
			t.Fatal(err)
		}
		if len(config) == 0 {
			return
		}
		img, err := l.Image(ctx, &Path{Walk: []ispec.Descriptor{{
			MediaType: ispec.MediaTypeImageManifest, Digest: digest.FromBytes(data), Size: int64(len(data)), Data: data,
		}}})
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrMediaType) {
				t.Fatalf("%s %s: %v", data, config, err)
			}
			return
		}
		c := Change{Layers: []NewLayer{{Digest: digest.FromString("l"), DiffID: digest.FromString("d")}}, History: []ispec.History{{}}}
		changed, err := img.changedConfig(c)
		if err != nil {
			return
		}
		if data, err = changed.bytes(); err != nil || !json.Valid(data) {
			t.Fatalf("%s became %s, %v", config, data, err)
		}
	})
}
