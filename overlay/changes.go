package overlay

import (
	"context"
	"iter"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// Candidate is a path at which the view may differ from the lower tree. Whether
// it does is for the caller to compare.
type Candidate struct {
	Path   string // "a/b"; "." is the root
	Exists bool   // false: the view has nothing there, the lower tree does
	Attr   Attr   // what the view has; where Exists
}

// Candidates walks what the upper records, and yields in the order of paths by
// components' bytes, a directory before its content: each upper object; each name
// that is hidden, at its topmost; and everything below a directory that shows
// another lower directory than the one of its path. The walk reads only upper
// directories and moved ones. Changes made meanwhile may be missed: Freeze first.
func (fs *FS) Candidates(ctx context.Context) iter.Seq2[Candidate, error] {
	return func(yield func(Candidate, error) bool) {
		w := walker{ctx: ctx, fs: fs, yield: yield}
		if fs.upper == nil {
			return
		}
		fs.treeMu.RLock()
		a, err := fs.getAttr(fs.root.ino)
		fs.treeMu.RUnlock()
		if err != nil {
			yield(Candidate{}, err)
			return
		}
		if yield(Candidate{Path: ".", Exists: true, Attr: a}, nil) {
			w.walk(fs.root.ino, layer.RootIno, "")
		}
	}
}

// walker carries a walk over the candidates.
type walker struct {
	ctx   context.Context //nolint:containedctx // lives as long as one walk
	fs    *FS
	yield func(Candidate, error) bool
}

// walk visits the names of a directory of the view; below is the lower directory
// of the same path, or 0. It returns false when the walk is to end.
func (w *walker) walk(dir, below Ino, prefix string) bool {
	if err := w.ctx.Err(); err != nil {
		return w.yield(Candidate{}, err)
	}
	names, err := w.names(dir, below)
	if err != nil {
		w.yield(Candidate{}, err)
		return false
	}
	for _, name := range names {
		if !w.visit(dir, below, prefix, name) {
			return false
		}
	}
	return true
}

// names are the names to look at, sorted: those in the upper and, where the view
// shows another lower directory than the path's, those of both.
func (w *walker) names(dir, below Ino) ([]string, error) {
	fs := w.fs
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	d, err := fs.dir(dir)
	if err != nil {
		return nil, err
	}
	var sets [][]string
	if d.hasUpper() {
		raw, err := fs.listUpper(d.n)
		if err != nil {
			return nil, err
		}
		upper := make([]string, len(raw))
		for i, e := range raw {
			upper[i] = e.name
		}
		sets = append(sets, upper)
	}
	if d.lower != below {
		for _, ino := range []Ino{d.lower, below} {
			names, err := fs.lowerList(ino)
			if err != nil {
				return nil, err
			}
			sets = append(sets, names)
		}
	}
	return sortedUnion(sets), nil
}

func (fs *FS) lowerList(dir Ino) ([]string, error) {
	if dir == 0 {
		return nil, nil
	}
	n, err := fs.lower.NumEntries(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, n)
	for i := range names {
		e, err := fs.lower.Entry(dir, i)
		if err != nil {
			return nil, err
		}
		names[i] = e.Name
	}
	return names, nil
}

// visit yields one name and what is below it.
func (w *walker) visit(dir, below Ino, prefix, name string) bool {
	fs, path := w.fs, prefix+name
	fs.treeMu.RLock()
	var a Attr
	f, lower, err := w.look(dir, below, name)
	if err == nil && f.exists() {
		a, err = fs.foundAttr(&f)
	}
	fs.treeMu.RUnlock()
	if err != nil {
		w.yield(Candidate{Path: path}, err)
		return false
	}
	switch {
	case !f.exists():
		return lower == 0 || w.yield(Candidate{Path: path}, nil)
	case f.verdict == nameLower && f.ino == lower:
		return true // reached through a directory that moved back: as it was
	}
	if !w.yield(Candidate{Path: path, Exists: true, Attr: a}, nil) {
		return false
	}
	if f.typ != unix.S_IFDIR {
		return true
	}
	lowerDir, err := fs.asDir(lower)
	if err != nil {
		w.yield(Candidate{Path: path}, err)
		return false
	}
	return w.walk(f.ino, lowerDir, path+"/")
}

// look resolves a name in the view and in the lower directory of the same path.
func (w *walker) look(dir, below Ino, name string) (f found, lower Ino, err error) {
	d, err := w.fs.dir(dir)
	if err != nil {
		return f, 0, err
	}
	if f, err = w.fs.resolve(d, name, false); err != nil || below == 0 {
		return f, 0, err
	}
	lower, err = w.fs.lower.Lookup(below, name)
	if isNotExist(err) {
		return f, 0, nil
	}
	return f, lower, err
}

// asDir is ino where that is a lower directory, else 0.
func (fs *FS) asDir(ino Ino) (Ino, error) {
	if ino == 0 {
		return 0, nil
	}
	a, err := fs.lower.Attr(ino)
	if err != nil || a.Mode&unix.S_IFMT != unix.S_IFDIR {
		return 0, err
	}
	return ino, nil
}

// sortedUnion merges lists of names, each name once, by bytes.
func sortedUnion(sets [][]string) []string {
	all := slices.Concat(sets...)
	slices.Sort(all)
	return slices.Compact(all)
}
