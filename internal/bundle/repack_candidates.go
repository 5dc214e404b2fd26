package bundle

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// candidate is a path at which two trees may differ.
type candidate struct {
	path   string
	known  bool       // now and exists are set
	now    layer.Attr // what the view has
	exists bool       // the view has something
}

type candidates = iter.Seq2[candidate, error]

// recorded are the paths that the upper directory says something of: all at which
// the view may differ from the image that is mounted.
func recorded(ctx context.Context, view viewTree) candidates {
	return func(yield func(candidate, error) bool) {
		for c, err := range view.fs.Candidates(ctx) {
			if !yield(candidate{c.Path, true, imageAttr(c.Attr), c.Exists}, err) {
				return
			}
		}
	}
}

// both are the candidates of one list, then of another.
func both(a, b candidates) candidates {
	return func(yield func(candidate, error) bool) {
		for _, seq := range []candidates{a, b} {
			for c, err := range seq {
				if !yield(c, err) {
					return
				}
			}
		}
	}
}

// treeWalk collects paths of two trees.
type treeWalk struct {
	base, view tree
	seen       map[string]struct{}
}

func newTreeWalk(base, view tree) *treeWalk {
	return &treeWalk{base: base, view: view, seen: map[string]struct{}{}}
}

// paths are what was collected.
func (w *treeWalk) paths() candidates {
	list := make([]string, 0, len(w.seen))
	for p := range w.seen {
		list = append(list, p)
	}
	slices.SortFunc(list, layer.ComparePaths)
	return func(yield func(candidate, error) bool) {
		for _, p := range list {
			if !yield(candidate{path: p}, nil) {
				return
			}
		}
	}
}

// everything collects each path of the view, and each that is gone from it at its
// topmost.
func (w *treeWalk) everything(ctx context.Context, p string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w.seen[p] = struct{}{}
	now, was, err := w.dirs(p)
	if err != nil || now == 0 {
		return err
	}
	names, err := w.names(now, was)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.everything(ctx, path.Join(p, name)); err != nil {
			return err
		}
	}
	return nil
}

// named collects what may differ from the base image, where that has layers which
// the mounted one has not: paths are those that the layers name. A path that is a
// directory in the view alone was taken away by one of them, and all below it with
// it; what an opaque marker took away is missing among a directory's names.
func (w *treeWalk) named(ctx context.Context, paths []string) error {
	dirs := map[string]struct{}{}
	for _, p := range paths {
		for ; ; p = path.Dir(p) {
			if _, have := dirs[p]; have {
				break
			}
			dirs[p] = struct{}{}
			if p == "." {
				break
			}
		}
	}
	for p := range dirs {
		if err := ctx.Err(); err != nil {
			return err
		}
		w.seen[p] = struct{}{}
		now, was, err := w.dirs(p)
		if err != nil {
			return err
		}
		switch {
		case now != 0 && was != 0:
			err = w.differentNames(ctx, p, now, was)
		case now != 0:
			err = w.everything(ctx, p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// differentNames collects what is in one of two directories alone, with all below.
func (w *treeWalk) differentNames(ctx context.Context, p string, now, was layer.Ino) error {
	a, err := w.view.list(now)
	if err != nil {
		return err
	}
	b, err := w.base.list(was)
	if err != nil {
		return err
	}
	for len(a) > 0 || len(b) > 0 {
		var name string
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			name, a = a[0], a[1:]
		case len(a) == 0 || b[0] < a[0]:
			name, b = b[0], b[1:]
		default:
			a, b = a[1:], b[1:]
			continue
		}
		if err := w.everything(ctx, path.Join(p, name)); err != nil {
			return err
		}
	}
	return nil
}

// dirs are the directories of both sides at a path; 0 where a side has none.
func (w *treeWalk) dirs(p string) (now, was layer.Ino, err error) {
	if now, err = dirAt(w.view, p); err != nil {
		return 0, 0, err
	}
	was, err = dirAt(w.base, p)
	return now, was, err
}

func dirAt(t tree, p string) (layer.Ino, error) {
	a, err := t.stat(p)
	if errors.Is(err, fs.ErrNotExist) || err == nil && a.Mode&unix.S_IFMT != unix.S_IFDIR {
		return 0, nil
	}
	return a.Ino, err
}

// names are those in either directory.
func (w *treeWalk) names(now, was layer.Ino) ([]string, error) {
	list, err := w.view.list(now)
	if err != nil || was == 0 {
		return list, err
	}
	more, err := w.base.list(was)
	if err != nil {
		return nil, err
	}
	list = append(list, more...)
	slices.Sort(list)
	return slices.Compact(list), nil
}
