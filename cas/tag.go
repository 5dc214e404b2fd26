package cas

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Tag points a reference at what a path begins with: every entry of that name goes,
// and one is added at the end, as umoci does. Where Resolve, FindRef or Commit gave the
// path, the new entry has every field of the one that it came from, also those that
// are not known here. ErrBadTag.
func (l *Layout) Tag(ctx context.Context, tag string, p *Path) error {
	if err := CheckTag(tag); err != nil {
		return err
	}
	e, err := p.named(tag)
	if err != nil {
		return fmt.Errorf("tag %s: %w", tag, err)
	}
	return l.Update(ctx, func(ix *Index) error {
		ix.removeRef(tag)
		ix.Entries = append(ix.Entries, e)
		return nil
	})
}

// SetRef is Tag for a descriptor of which nothing else is known.
func (l *Layout) SetRef(ctx context.Context, tag string, desc ispec.Descriptor) error {
	return l.Tag(ctx, tag, &Path{Walk: []ispec.Descriptor{desc}})
}

// named is the entry of index.json for a path under a name.
func (p *Path) named(tag string) (Entry, error) {
	raw := p.entry
	if raw == nil {
		var err error
		if raw, err = marshal(p.Root()); err != nil {
			return Entry{}, err
		}
	}
	o, err := parseObject(raw)
	if err != nil {
		return Entry{}, err
	}
	err = Document{o}.Within("annotations", func(annotations Document) error {
		return annotations.Set(ispec.AnnotationRefName, tag)
	})
	if err != nil {
		return Entry{}, err
	}
	if raw, err = o.bytes(); err != nil {
		return Entry{}, err
	}
	d, err := parseDescriptor(raw)
	return Entry{d, raw}, err
}

// FindRef is the path to what a name means as a whole: its one entry of index.json,
// which may be an index of images for several platforms. Where several entries that
// differ have the name, it is the one with the image that Resolve chooses. Errors are
// Resolve's.
func (l *Layout) FindRef(ctx context.Context, tag string, opt ResolveOptions) (*Path, error) {
	ix, err := l.Index(ctx)
	if err != nil {
		return nil, err
	}
	var found []Entry
	for _, e := range ix.Entries {
		if e.RefName() == tag && !slices.ContainsFunc(found, func(f Entry) bool { return f.Digest == e.Digest }) {
			found = append(found, e)
		}
	}
	if len(found) != 1 {
		return l.Resolve(ctx, tag, opt)
	}
	return &Path{Walk: []ispec.Descriptor{found[0].Descriptor}, entry: found[0].raw}, nil
}

// entryOf is the entry of index.json that a path begins with, as it stands there, also
// where the path was kept elsewhere; nil where there is none any more.
func (l *Layout) entryOf(ctx context.Context, p *Path) (json.RawMessage, error) {
	if p.entry != nil {
		return p.entry, nil
	}
	ix, err := l.Index(ctx)
	if err != nil {
		return nil, err
	}
	root := Entry{Descriptor: p.Root()}
	for _, e := range ix.Entries {
		if e.Digest == root.Digest && e.RefName() == root.RefName() {
			return e.raw, nil
		}
	}
	return nil, nil
}
