package cas

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func platform(t *testing.T, s string) *ispec.Platform {
	t.Helper()
	if s == "" {
		return nil
	}
	p, err := ParsePlatform(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// imageFor makes an image for a platform, without a reference.
func imageFor(t *testing.T, l *Layout, name string) ispec.Descriptor {
	t.Helper()
	p, err := l.Blank(ctx, *platform(t, name), time.Unix(1, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	return p.Root()
}

// putIndex makes an index of descriptors.
func putIndex(t *testing.T, l *Layout, entries ...ispec.Descriptor) ispec.Descriptor {
	t.Helper()
	ix := &Index{obj: emptyIndex()}
	for _, d := range entries {
		ix.Entries = append(ix.Entries, Entry{Descriptor: d})
	}
	data, err := ix.bytes()
	if err != nil {
		t.Fatal(err)
	}
	d, size := putBlob(t, l, string(data))
	return ispec.Descriptor{MediaType: ispec.MediaTypeImageIndex, Digest: d, Size: size}
}

func TestThePlatformIsChosen(t *testing.T) {
	host := runtime.GOOS + "/" + runtime.GOARCH
	for name, c := range map[string]struct {
		entries []string // platforms; "?x": image for x whose entry does not say so; "@x": as the first image, for x
		want    string
		chosen  int
		err     error
	}{
		"the machine's own":                               {[]string{"linux/s390x", host}, "", 1, nil},
		"the one that is asked for":                       {[]string{"linux/s390x", host}, "linux/s390x", 0, nil},
		"none fits the machine":                           {[]string{"linux/s390x", "linux/riscv64"}, "", 0, ErrAmbiguous},
		"none is what is asked for":                       {[]string{"linux/s390x", host}, "linux/riscv64", 0, ErrNoPlatform},
		"one image needs no choice":                       {[]string{"linux/s390x"}, "", 0, nil},
		"one image of another platform than asked for":    {[]string{"linux/s390x"}, "linux/amd64", 0, ErrNoPlatform},
		"the variant asked for":                           {[]string{"linux/arm/v6", "linux/arm/v7"}, "linux/arm/v6", 0, nil},
		"the usual variant where none is named":           {[]string{"linux/arm/v6", "linux/arm/v7"}, "linux/arm", 1, nil},
		"another variant where it is the only one":        {[]string{"linux/arm/v6", "linux/amd64"}, "linux/arm", 0, nil},
		"another variant than named is never taken":       {[]string{"linux/arm/v6", "linux/amd64"}, "linux/arm/v7", 0, ErrNoPlatform},
		"several other variants":                          {[]string{"linux/amd64/v2", "linux/amd64/v3"}, "linux/amd64", 0, ErrAmbiguous},
		"arm64 is arm64/v8":                               {[]string{"linux/amd64", "linux/arm64"}, "linux/arm64/v8", 1, nil},
		"arm64/v8 is arm64":                               {[]string{"linux/amd64", "linux/arm64/v8"}, "linux/aarch64", 1, nil},
		"the kernel's name of an architecture":            {[]string{"linux/s390x", "linux/amd64"}, "linux/x86_64", 1, nil},
		"two of one platform":                             {[]string{"linux/amd64", "linux/s390x", "linux/amd64"}, "linux/s390x", 1, nil},
		"one image for two platforms, the first":          {[]string{"linux/amd64", "@linux/arm64", "linux/s390x"}, "linux/amd64", 0, nil},
		"one image for two platforms, the second":         {[]string{"linux/amd64", "@linux/arm64", "linux/s390x"}, "linux/arm64", 1, nil},
		"the config says what the entry does not":         {[]string{"?linux/s390x", "?linux/arm64"}, "linux/arm64", 1, nil},
		"the config of one image says that it is another": {[]string{"?linux/s390x"}, "linux/arm64", 0, ErrNoPlatform},
		"an attestation is no image":                      {[]string{"linux/s390x", "unknown/unknown"}, "", 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			var entries []ispec.Descriptor
			for _, e := range c.entries {
				of := strings.TrimLeft(e, "?@")
				d := imageFor(t, l, of)
				if e[0] == '@' {
					d = imageFor(t, l, c.entries[0])
				}
				if e[0] != '?' {
					d.Platform = platform(t, of)
				}
				entries = append(entries, d)
			}
			root := putIndex(t, l, entries...)
			if err := l.SetRef(ctx, "x", root); err != nil {
				t.Fatal(err)
			}
			p, err := l.Resolve(ctx, "x", ResolveOptions{Platform: platform(t, c.want)})
			if !errors.Is(err, c.err) || c.err == nil && err != nil {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			d := p.Descriptor()
			if d.Digest != entries[c.chosen].Digest || !samePlatform(d.Platform, entries[c.chosen].Platform) || len(p.Walk) != 2 || p.Root().Digest != root.Digest {
				t.Errorf("%+v", p)
			}
		})
	}
}

func TestAnImageThatIsTwiceInTheIndexIsNotAmbiguous(t *testing.T) {
	l := newLayout(t)
	a, b := imageFor(t, l, "linux/amd64"), imageFor(t, l, "linux/s390x")
	a.Platform, b.Platform = platform(t, "linux/amd64"), platform(t, "linux/s390x")
	if err := l.SetRef(ctx, "x", putIndex(t, l, a, b, putIndex(t, l, a))); err != nil {
		t.Fatal(err)
	}
	p, err := l.Resolve(ctx, "x", ResolveOptions{Platform: a.Platform})
	if err != nil || p.Descriptor().Digest != a.Digest {
		t.Fatalf("%+v, %v", p, err)
	}
	if err := l.SetRef(ctx, "y", putIndex(t, l, a, putIndex(t, l, a))); err != nil {
		t.Fatal(err)
	}
	if p, err = l.Resolve(ctx, "y", ResolveOptions{}); err != nil || p.Descriptor().Digest != a.Digest {
		t.Fatalf("%+v, %v", p, err)
	}
}

func TestSeveralEntriesOfOneNameAreChosenByPlatform(t *testing.T) {
	l := newLayout(t)
	arm := imageFor(t, l, "linux/arm64")
	err := l.Update(ctx, func(ix *Index) error {
		for _, name := range []string{"linux/amd64", "linux/arm64"} {
			d := imageFor(t, l, name)
			d.Platform = platform(t, name)
			d.Annotations = map[string]string{ispec.AnnotationRefName: "x"}
			ix.Entries = append(ix.Entries, Entry{Descriptor: d})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Resolve(ctx, "x", ResolveOptions{Platform: platform(t, "linux/arm64")})
	if err != nil || p.Descriptor().Digest != arm.Digest || len(p.Walk) != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
}

func TestIndexesWithoutMeasureAreRefusedInTime(t *testing.T) {
	for name, root := range map[string]func(t *testing.T, l *Layout) ispec.Descriptor{
		"a few indexes that list each other often": func(t *testing.T, l *Layout) ispec.Descriptor {
			d := imageFor(t, l, "linux/amd64")
			for range maxIndexDepth - 1 {
				d = putIndex(t, l, d, d, d, d, d, d, d, d)
			}
			return d
		},
		"a deep one": func(t *testing.T, l *Layout) ispec.Descriptor {
			d := imageFor(t, l, "linux/amd64")
			for range maxIndexDepth + 1 {
				d = putIndex(t, l, d)
			}
			return d
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			if err := l.SetRef(ctx, "x", root(t, l)); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Resolve(ctx, "x", ResolveOptions{}); !errors.Is(err, ErrMalformed) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAnIndexOfNothingIsNotAMissingTag(t *testing.T) {
	l := newLayout(t)
	if err := l.SetRef(ctx, "x", putIndex(t, l)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Resolve(ctx, "x", ResolveOptions{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("got %v", err)
	}
}

func TestNearTagsAreNamedAndNothingElse(t *testing.T) {
	l := newLayout(t)
	d := imageFor(t, l, "linux/amd64")
	err := l.Update(ctx, func(ix *Index) error {
		for _, name := range []string{"debian-12", "debian-11", "debian-10", "alpine", "\x1b[31mdebian-1", strings.Repeat("d", 1<<20)} {
			e := d
			e.Annotations = map[string]string{ispec.AnnotationRefName: name}
			ix.Entries = append(ix.Entries, Entry{Descriptor: e})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for tag, want := range map[string]string{
		"debian-1":           "tag not found: debian-1 (did you mean debian-12, debian-11, debian-10?)",
		"alpin":              "tag not found: alpin (did you mean alpine?)",
		"quite-another-name": "tag not found: quite-another-name",
	} {
		if _, err := l.Resolve(ctx, tag, ResolveOptions{}); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestAMessageShowsNoControlCharacters(t *testing.T) {
	var many []ispec.Descriptor
	for i := range 100 {
		many = append(many, ispec.Descriptor{Platform: &ispec.Platform{OS: fmt.Sprintf("os%d\x1b[2J", i), Architecture: "x"}})
	}
	many = append(many, ispec.Descriptor{Digest: "\x07"})
	msg := (&TagError{Tag: "x", Err: ErrAmbiguous, Candidates: many}).Error()
	if strings.ContainsAny(msg, "\x1b\x07") || len(msg) > 1000 {
		t.Errorf("%q", msg)
	}
}

func TestImagesAreNamedAsUmociDoes(t *testing.T) {
	for s, want := range map[string][3]string{
		"a":       {"a", "latest"},
		"a/b:c":   {"a/b", "c"},
		"a:b:c":   {"a", "b:c"},
		"a:b/c":   {"a", "b/c"},
		":b":      {"", "", "image path is empty: want PATH[:TAG]"},
		"a:":      {"a", "", `invalid tag: ""`},
		"a:b c":   {"a", "b c", `invalid tag: "b c"`},
		"a:\x1b[": {"a", "\x1b[", `invalid tag: "\x1b["`},
	} {
		path, tag, err := ParseImage(s)
		msg := ""
		if err != nil {
			msg = err.Error()
		}
		if path != want[0] || tag != want[1] || msg != want[2] {
			t.Errorf("%q: %q %q %v", s, path, tag, err)
		}
	}
	for _, s := range []string{"", "linux", "linux/", "/amd64", "a/b/c/d"} {
		if _, err := ParsePlatform(s); err == nil {
			t.Errorf("platform %q", s)
		}
	}
}

func TestACancelledContextEndsEachRead(t *testing.T) {
	l := newLayout(t)
	img := blank(t, l, "x")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for name, f := range map[string]func() error{
		"Resolve":  func() error { _, err := l.Resolve(ended, "x", ResolveOptions{}); return err },
		"Image":    func() error { _, err := l.Image(ended, img.Path); return err },
		"Index":    func() error { _, err := l.Index(ended); return err },
		"Refs":     func() error { _, err := l.Refs(ended); return err },
		"Blob":     func() error { _, err := l.Blob(ended, img.Path.Root().Digest); return err },
		"ReadBlob": func() error { _, err := l.ReadBlob(ended, img.Path.Root()); return err },
		"NewBlob":  func() error { _, err := l.NewBlob(ended); return err },
		"Commit":   func() error { _, err := l.Commit(ended, img, Change{}); return err },
		"SetRef":   func() error { return l.SetRef(ended, "y", img.Path.Root()) },
		"GC":       func() error { _, err := l.GC(ended, GCOptions{}); return err },
	} {
		if err := f(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
