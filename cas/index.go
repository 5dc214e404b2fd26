package cas

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Index is an image index with the bytes it was read from. Entries that are not
// touched are written as they were.
type Index struct {
	Entries []Entry // in the order of the document

	obj *object
}

// Entry is one descriptor of an index. An entry that was read is written as it was:
// to change one, put an Entry{Descriptor: d} in its place.
type Entry struct {
	ispec.Descriptor
	raw json.RawMessage // nil: Descriptor counts
}

// RefName is the reference name an entry carries, or "".
func (e *Entry) RefName() string { return e.Annotations[ispec.AnnotationRefName] }

func emptyIndex() *object {
	o := &object{fields: map[string]json.RawMessage{}}
	for _, f := range []struct{ key, value string }{
		{"schemaVersion", "2"},
		{"mediaType", `"` + ispec.MediaTypeImageIndex + `"`},
		{"manifests", "[]"},
	} {
		o.keys = append(o.keys, f.key)
		o.fields[f.key] = json.RawMessage(f.value)
	}
	return o
}

// parseIndex reads an index and refuses one that could also be read as a manifest
// (CVE-2021-41190). want is the media type its descriptor has, "" for index.json,
// which has none. ErrMalformed.
func parseIndex(data []byte, want string) (*Index, error) {
	o, err := parseObject(data)
	if err != nil {
		return nil, err
	}
	if err := o.exact("schemaVersion", "mediaType", "manifests", "config", "layers"); err != nil {
		return nil, err
	}
	var mediaType string
	if err := o.get("mediaType", &mediaType); err != nil {
		return nil, err
	}
	if mediaType != "" && mediaType != want && (want != "" || !isIndexType(mediaType)) {
		return nil, fmt.Errorf("an index says it is a %q: %w", mediaType, ErrMalformed)
	}
	for _, key := range []string{"config", "layers"} {
		if _, have := o.fields[key]; have {
			return nil, fmt.Errorf("an index has the field %q of a manifest: %w", key, ErrMalformed)
		}
	}
	var raw []json.RawMessage
	if err := o.get("manifests", &raw); err != nil {
		return nil, err
	}
	ix := &Index{obj: o}
	for _, r := range raw {
		d, err := parseDescriptor(r)
		if err != nil {
			return nil, fmt.Errorf("index entry: %w", err)
		}
		ix.Entries = append(ix.Entries, Entry{d, r})
	}
	return ix, nil
}

func parseDescriptor(raw json.RawMessage) (d ispec.Descriptor, err error) {
	o, err := parseObject(raw)
	if err != nil {
		return d, err
	}
	if err := o.exact("mediaType", "digest", "size", "data", "urls", "annotations", "platform"); err != nil {
		return d, err
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		return d, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	return d, nil
}

func (ix *Index) bytes() ([]byte, error) {
	var list []json.RawMessage
	for _, e := range ix.Entries {
		raw := e.raw
		if raw == nil {
			var err error
			if raw, err = marshal(e.Descriptor); err != nil {
				return nil, err
			}
		}
		list = append(list, raw)
	}
	ix.obj.setRaw("manifests", joinArray(list))
	return ix.obj.bytes()
}

// Index reads index.json.
func (l *Layout) Index(ctx context.Context) (*Index, error) {
	ix, _, err := l.index(ctx)
	return ix, err
}

// index is Index, and the file's bytes.
func (l *Layout) index(ctx context.Context) (*Index, []byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	data, err := l.readFile(indexFile)
	if err != nil {
		return nil, nil, err
	}
	ix, err := parseIndex(data, "")
	if err != nil {
		return nil, nil, fmt.Errorf("%s/%s: %w", l.path, indexFile, err)
	}
	return ix, data, nil
}

// errIndexChanged: somebody who takes no lock has replaced index.json.
var errIndexChanged = errors.New("index.json has changed")

// Update changes index.json: fn is called with what is there now, under the lock
// that every writer of this program takes, and the result replaces the file in one
// step. Where another program has changed it meanwhile, fn is called again with that.
// An error of fn leaves it as it was, and what fn does not touch keeps its bytes.
func (l *Layout) Update(ctx context.Context, fn func(*Index) error) (err error) {
	release, err := l.lock(ctx, lockIndex, unix.F_WRLCK, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	for {
		if err := l.tryUpdate(ctx, fn); !errors.Is(err, errIndexChanged) {
			return err
		}
	}
}

func (l *Layout) tryUpdate(ctx context.Context, fn func(*Index) error) error {
	ix, was, err := l.index(ctx)
	if err != nil {
		return err
	}
	if err := fn(ix); err != nil {
		return err
	}
	data, err := ix.bytes()
	if err != nil {
		return err
	}
	return l.replaceIf(indexFile, append(data, '\n'), func() error {
		if now, err := l.readFile(indexFile); err != nil || bytes.Equal(now, was) {
			return err
		}
		return errIndexChanged
	})
}

// RemoveRef removes every entry of a name, and reports how many there were.
func (l *Layout) RemoveRef(ctx context.Context, tag string) (n int, err error) {
	err = l.Update(ctx, func(ix *Index) error {
		n = ix.removeRef(tag)
		return nil
	})
	return n, err
}

func (ix *Index) removeRef(tag string) int {
	var kept []Entry
	for _, e := range ix.Entries {
		if e.RefName() != tag {
			kept = append(kept, e)
		}
	}
	n := len(ix.Entries) - len(kept)
	ix.Entries = kept
	return n
}

// Refs lists the reference names in the order of index.json, repeated ones too.
func (l *Layout) Refs(ctx context.Context) ([]string, error) {
	ix, err := l.Index(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range ix.Entries {
		if name := e.RefName(); name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}
