package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
)

// diffing is what compares an open view with the image that its next layer goes
// on: the mounted one or, after a refresh, a later one.
type diffing struct {
	view  *View
	image *cas.Image   // the image compared with
	base  *layer.Image // its tree
	owned bool         // base is not the view's
	// above are the layers that base has on top of the mounted image; known is
	// false where the two do not lie on each other.
	above []StateLayer
	known bool

	comparison comparison
}

func newDiffing(ctx context.Context, v *View, log *slog.Logger) (*diffing, error) {
	d := &diffing{view: v, base: v.Base, known: true}
	var err error
	d.image, err = v.Layout.Image(ctx, &cas.Path{Walk: v.From})
	if err != nil {
		return nil, otherLayout(err)
	}
	layers := stateLayers(d.image)
	if n := len(v.State.Layers); !slices.Equal(layers, v.State.Layers) {
		if d.base, err = v.lower.cache.Open(ctx, sources(ctx, v.Layout, layers), indexOptions(&v.State.Options, nil)); err != nil {
			return nil, otherLayout(err)
		}
		d.owned = true
		if d.known = len(layers) > n && slices.Equal(layers[:n], v.State.Layers); d.known {
			d.above = layers[n:]
		}
	}
	d.comparison = comparison{base: imageTree{d.base}, view: viewTree{v.FS}, log: log}
	if d.known {
		d.comparison.same = func(now, was layer.Ino) (bool, error) {
			return sameContent(v.FS, v.Base, d.base, now, was)
		}
	}
	return d, nil
}

func (d *diffing) close() error {
	if d.owned {
		return d.base.Close()
	}
	return nil
}

// changes compares all paths that can differ.
func (d *diffing) changes(ctx context.Context) ([]*pathPair, error) {
	list, err := d.candidates(ctx)
	if err != nil {
		return nil, err
	}
	return d.comparison.run(ctx, list)
}

// candidates are the paths of which the upper directory says something, and those
// of the layers that the mounted image has not.
func (d *diffing) candidates(ctx context.Context) (candidates, error) {
	list := recorded(ctx, viewTree{d.view.FS})
	if d.known && len(d.above) == 0 {
		return list, nil
	}
	w := newTreeWalk(d.comparison.base, d.comparison.view)
	if !d.known {
		err := w.everything(ctx, ".")
		return w.paths(), err
	}
	for _, src := range sources(ctx, d.view.Layout, d.above) {
		paths, err := d.view.lower.cache.LayerPaths(ctx, src)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", src.Digest, err)
		}
		if err := w.named(ctx, paths); err != nil {
			return nil, err
		}
	}
	return both(list, w.paths()), nil
}

// planner makes a layer's entries of a comparison.
func (d *diffing) planner(pairs []*pathPair) *planner {
	view := d.comparison.view
	return &planner{
		base: d.comparison.base, view: view, pairs: pairs,
		baseNames: func(ino layer.Ino) ([]string, error) { return namesIn(d.base, ino) },
		viewNames: func(ino layer.Ino) ([]string, error) {
			if int(ino) > d.view.Base.Len() {
				return nil, nil // it began in the upper, which lists all its names
			}
			names, err := namesIn(d.view.Base, ino)
			if err != nil {
				return nil, err
			}
			var have []string
			for _, name := range names {
				a, err := view.stat(name)
				if err == nil && a.Ino == ino {
					have = append(have, name)
				} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return nil, fmt.Errorf("look at %q: %w", name, err)
				}
			}
			return have, nil
		},
	}
}

// namesIn is every path of an inode of an image.
func namesIn(im *layer.Image, ino layer.Ino) ([]string, error) {
	var out []string
	for dir, name := range im.Names(ino) {
		parent, err := im.PathOf(dir)
		if err != nil {
			return nil, err
		}
		out = append(out, path.Join(parent, name))
	}
	return out, nil
}

// Change is one path that differs between a bundle and its base image. Attributes
// are in the image's ids; of a deleted path they are those it had.
type Change struct {
	Kind  string    `json:"kind"` // "A", "C" or "D": added, changed, deleted
	Path  string    `json:"path"` // absolute
	Type  string    `json:"type"` // as mtree names it: "file", "dir", "link", ...
	Mode  uint32    `json:"mode"` // type and permission bits, as in struct stat
	UID   uint32    `json:"uid"`
	GID   uint32    `json:"gid"`
	Size  int64     `json:"size"` // bytes
	Mtime time.Time `json:"mtime"`
	Link  string    `json:"link,omitempty"` // a symlink's target
}

// ModeString writes the mode as ls(1) does.
func (c *Change) ModeString() string { return ModeString(c.Mode) }

// ModeString writes a mode, as in struct stat, as ls(1) does.
func ModeString(mode uint32) string {
	kinds := map[uint32]byte{
		unix.S_IFDIR: 'd', unix.S_IFLNK: 'l', unix.S_IFCHR: 'c', unix.S_IFBLK: 'b', unix.S_IFIFO: 'p', unix.S_IFSOCK: 's',
	}
	b := []byte("-rwxrwxrwx")
	if k := kinds[mode&unix.S_IFMT]; k != 0 {
		b[0] = k
	}
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	for i, special := range []struct {
		bit uint32
		c   byte
	}{{unix.S_ISUID, 's'}, {unix.S_ISGID, 's'}, {unix.S_ISVTX, 't'}} {
		if mode&special.bit == 0 {
			continue
		}
		at := 3 * (i + 1)
		if b[at] == '-' {
			special.c -= 'a' - 'A'
		}
		b[at] = special.c
	}
	return string(b)
}

func newChange(p *pathPair) Change {
	o := p.now
	if o == nil {
		o = p.old
	}
	a := &o.attr
	return Change{
		Kind: p.kind.String(), Path: path.Join("/", p.path), Type: mtreeTypes[o.typ()], Mode: a.Mode,
		UID: a.UID, GID: a.GID, Size: a.Size, Link: o.target,
		Mtime: time.Unix(a.Mtime.Sec, int64(a.Mtime.Nsec)).UTC(),
	}
}

// Diff lists what differs between a bundle and the image that a repack would
// compare it with, sorted by path. It masks nothing.
func Diff(ctx context.Context, bundle string, log *slog.Logger) (out []Change, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := flushBundle(bundle, log); err != nil {
		return nil, err
	}
	v, err := OpenView(ctx, bundle, "", log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	d, err := newDiffing(ctx, v, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	pairs, err := d.changes(ctx)
	if err != nil {
		return nil, err
	}
	for p := range changed(pairs) {
		out = append(out, newChange(p))
	}
	return out, nil
}

// String is the letter that diff prints.
func (k changeKind) String() string {
	switch k {
	case changeAdded:
		return "A"
	case changeModified:
		return "C"
	case changeDeleted:
		return "D"
	case changeNone:
	}
	return "-"
}
