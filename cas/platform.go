package cas

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ParsePlatform reads "os/architecture[/variant]".
func ParsePlatform(s string) (*ispec.Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.ContainsFunc(parts, notPlatformPart) {
		return nil, fmt.Errorf("platform %q: want OS/ARCHITECTURE[/VARIANT]", s)
	}
	p := &ispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// notPlatformPart reports whether s can name no system, architecture or variant.
func notPlatformPart(s string) bool {
	return s == "" || strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune("._-", r)
	})
}

// fullPlatform is a platform with its parts spelt as image-spec has them (image-index.md,
// GOARCH), and with the variant that is meant where none is named.
func fullPlatform(p ispec.Platform) ispec.Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	}
	switch p.Architecture {
	case "amd64":
		if p.Variant == "" {
			p.Variant = "v1"
		}
	case "arm64":
		if p.Variant == "" || p.Variant == "8" {
			p.Variant = "v8"
		}
	case "arm":
		if p.Variant == "" {
			p.Variant = "v7"
		} else if !strings.HasPrefix(p.Variant, "v") {
			p.Variant = "v" + p.Variant
		}
	}
	return ispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
}

// fit is how well an image is what is asked for. The best that any has decides, and
// must lead to one image.
type fit uint8

const (
	fitNot     fit = iota // another platform: never take it
	fitUnknown            // no platform is given anywhere: take it where there is no other
	fitOther              // another variant of the architecture, and none was named
	fitExact              // the platform
)

// fitOf says how an image's platform, nil if unknown, fits what is asked for.
func fitOf(have *ispec.Platform, want ispec.Platform) fit {
	if have == nil {
		return fitUnknown
	}
	h, w := fullPlatform(*have), fullPlatform(want)
	switch {
	case h.OS == w.OS && h.Architecture == w.Architecture && h.Variant == w.Variant:
		return fitExact
	case h.OS == w.OS && h.Architecture == w.Architecture && want.Variant == "":
		return fitOther
	}
	return fitNot
}

// choosePlatform takes the one path for a platform; nil is the machine's own.
func (l *Layout) choosePlatform(ctx context.Context, tag string, paths []*Path, want *ispec.Platform) (*Path, error) {
	asked := ispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	if want != nil {
		asked = *want
	}
	best := fitNot
	var fitting []*Path
	var candidates, all []ispec.Descriptor
	for _, p := range paths {
		d := p.Descriptor()
		d.Platform = l.platformOf(ctx, p)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		all = append(all, d)
		how := fitOf(d.Platform, asked)
		if how > best {
			best, fitting, candidates = how, nil, nil
		}
		if how == best && how != fitNot {
			fitting, candidates = append(fitting, p), append(candidates, d)
		}
	}
	switch {
	case len(fitting) == 0 && want != nil:
		return nil, &TagError{Tag: tag, Err: ErrNoPlatform, Platform: want, Candidates: all}
	case len(fitting) == 0:
		return nil, &TagError{Tag: tag, Err: ErrAmbiguous, Candidates: all}
	case !sameManifest(fitting):
		return nil, &TagError{Tag: tag, Err: ErrAmbiguous, Candidates: candidates}
	}
	return fitting[0], nil
}

// platformOf is what an entry says of its platform, or what the image's config does.
// Nil is unknown; whether the image can be read at all shows when it is chosen.
func (l *Layout) platformOf(ctx context.Context, p *Path) *ispec.Platform {
	if d := p.Descriptor(); d.Platform != nil && d.Platform.OS != "" {
		return d.Platform
	}
	img, err := l.Image(ctx, p)
	if err != nil || img.Config.OS == "" {
		return nil
	}
	return &img.Config.Platform
}
