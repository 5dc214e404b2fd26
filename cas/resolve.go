package cas

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ResolveOptions chooses between several manifests of one reference.
type ResolveOptions struct {
	// Platform that the image must be for. Nil is no condition where a reference
	// leads to one manifest, and the machine's own where it leads to several.
	Platform *ispec.Platform
}

// Path leads from an entry of index.json through nested indexes to a manifest.
type Path struct {
	Walk []ispec.Descriptor // never empty

	entry json.RawMessage // of index.json, as it stands there; nil: Walk[0] is all that is known
}

// Root is the entry of index.json.
func (p *Path) Root() ispec.Descriptor { return p.Walk[0] }

// Descriptor is the manifest's.
func (p *Path) Descriptor() ispec.Descriptor { return p.Walk[len(p.Walk)-1] }

const (
	// maxIndexDepth bounds nested indexes. The specification sets no bound; no tool
	// is known to nest more than two.
	maxIndexDepth = 16
	// maxIndexEntries bounds the descriptors looked at for one reference: a few small
	// indexes that list each other often would make more of them than there is time.
	maxIndexEntries = 1 << 16
)

// Resolve finds the manifest of a reference: among all entries of index.json with
// that name, through nested indexes, by platform where there are several. *TagError
// of ErrTagNotFound, ErrNoPlatform or ErrAmbiguous; ErrMalformed; ErrDigest.
func (l *Layout) Resolve(ctx context.Context, tag string, opt ResolveOptions) (*Path, error) {
	ix, err := l.Index(ctx)
	if err != nil {
		return nil, err
	}
	w := indexWalk{l: l, left: maxIndexEntries, above: map[digest.Digest]bool{}}
	found := false
	for _, e := range ix.Entries {
		if e.RefName() != tag {
			continue
		}
		found = true
		before := len(w.paths)
		if err := w.walk(ctx, []ispec.Descriptor{e.Descriptor}); err != nil {
			return nil, fmt.Errorf("%s: %w", tag, err)
		}
		for _, p := range w.paths[before:] {
			p.entry = e.raw
		}
	}
	w.paths = withoutAttestations(w.paths)
	switch {
	case !found:
		return nil, &TagError{Tag: tag, Err: ErrTagNotFound, Near: nearTags(ix, tag)}
	case len(w.paths) == 0:
		return nil, fmt.Errorf("%s: its index lists no image: %w", tag, ErrMalformed)
	case opt.Platform == nil && sameManifest(w.paths):
		return w.paths[0], nil
	}
	return l.choosePlatform(ctx, tag, w.paths, opt.Platform)
}

// withoutAttestations drops BuildKit's manifests about other manifests. It gives them
// the platform unknown/unknown so that nobody takes them for images.
func withoutAttestations(paths []*Path) []*Path {
	return slices.DeleteFunc(paths, func(p *Path) bool {
		have := p.Descriptor().Platform
		return have != nil && have.OS == "unknown" && have.Architecture == "unknown"
	})
}

func sameManifest(paths []*Path) bool {
	return !slices.ContainsFunc(paths, func(p *Path) bool {
		return p.Descriptor().Digest != paths[0].Descriptor().Digest
	})
}

// indexWalk collects what is below indexes, depth-first.
type indexWalk struct {
	l     *Layout
	left  int                    // descriptors that may still be looked at
	above map[digest.Digest]bool // the indexes being walked
	paths []*Path
}

// walk adds the paths to the manifests below the last descriptor of path. What is
// no index counts as a manifest: its type is looked at when it is read.
func (w *indexWalk) walk(ctx context.Context, path []ispec.Descriptor) error {
	desc := path[len(path)-1]
	if w.left--; w.left < 0 {
		return fmt.Errorf("its indexes have more than %d entries: %w", maxIndexEntries, ErrMalformed)
	}
	if !isIndexType(desc.MediaType) {
		w.paths = append(w.paths, &Path{Walk: slices.Clone(path)})
		return nil
	}
	if w.above[desc.Digest] || len(path) > maxIndexDepth {
		return fmt.Errorf("index %s is nested in itself or too deep: %w", desc.Digest, ErrMalformed)
	}
	w.above[desc.Digest] = true
	defer delete(w.above, desc.Digest)
	ix, err := w.l.nestedIndex(ctx, desc)
	if err != nil {
		return err
	}
	for _, e := range ix.Entries {
		if err := w.walk(ctx, append(path, e.Descriptor)); err != nil {
			return err
		}
	}
	return nil
}

// nestedIndex reads an index that is a blob.
func (l *Layout) nestedIndex(ctx context.Context, desc ispec.Descriptor) (*Index, error) {
	data, err := l.ReadBlob(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	ix, err := parseIndex(data, desc.MediaType)
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", desc.Digest, err)
	}
	return ix, nil
}
