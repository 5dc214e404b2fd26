package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
)

// FileCopy is a file or a directory that is copied into an image.
type FileCopy struct {
	// Source is a path of the host or, where From is set, of that image. A symlink there
	// is followed; those below a directory are copied as they are.
	Source string
	From   *cas.Path
	// Dest is a path of the image. A file goes into it where it ends in "/" or is a
	// directory; a directory's content goes into it always. Symlinks are followed within
	// the image, and what is missing on the way is made: 0755, root's.
	Dest string
	// Owner is "USER[:GROUP]" by the image's own files, "keep", or "": root's for what
	// comes from the host, kept for what comes from an image.
	Owner string
	Mode  *uint32 // permission bits of files; nil: kept
}

// OwnerKeep leaves a copied file the owner it has.
const OwnerKeep = "keep"

// Copy makes an image of opt.From and one layer of files of the host or of other
// images. The layout itself is left out of directories that it is in. now is the time of
// directories that are made on the way.
func Copy(ctx context.Context, opt DeriveOptions, list []FileCopy, now time.Time) (_ *cas.Path, err error) {
	im, err := opt.open(ctx, opt.From)
	if err != nil {
		return nil, err
	}
	c := &copying{opt: &opt, im: im, now: now.Unix(), entries: map[string]*copied{}}
	defer func() { err = errors.Join(err, c.close()) }()
	if c.layout, err = filepath.EvalSymlinks(opt.Layout.Path()); err != nil {
		return nil, err
	}
	for i := range list {
		if err := c.add(ctx, &list[i]); err != nil {
			return nil, &InputError{i, list[i].Source, err}
		}
	}
	return derive(ctx, &opt, nil, func(out io.Writer) ([]byte, error) {
		return layer.WriteDiff(out, c.records(ctx), layer.DiffOptions{Epoch: opt.Epoch, Skipped: func(p string) {
			opt.log().Warn("no layer can hold a socket: left out", "path", p)
		}})
	})
}

// copied is one entry of the layer.
type copied struct {
	planned
	view versionedTree // that has the content; nil: none
}

// copying is one Copy under way.
type copying struct {
	opt     *DeriveOptions
	im      *Image // that is copied into
	layout  string // its path without symlinks
	now     int64  // seconds
	entries map[string]*copied
	closers []func() error
}

func (c *copying) close() error {
	errs := []error{c.im.Close()}
	for _, f := range c.closers {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (c *copying) add(ctx context.Context, f *FileCopy) error {
	view, at, err := c.source(ctx, f)
	if err != nil {
		return err
	}
	owner, err := c.owner(f)
	if err != nil {
		return err
	}
	o, err := find(view, at)
	if err != nil {
		return err
	}
	if o == nil {
		return &fs.PathError{Op: "copy", Path: f.Source, Err: fs.ErrNotExist}
	}
	dest, err := c.dest(f, o.isDir())
	if err != nil {
		return err
	}
	w := copyWalk{c: c, view: view, file: f, owner: owner}
	if t, ok := view.(*dirTree); ok {
		w.host = t.root.Name()
	}
	return w.walk(ctx, at, dest, o)
}

// source is the tree that a file comes from, and its path there.
func (c *copying) source(ctx context.Context, f *FileCopy) (versionedTree, string, error) {
	if f.From == nil {
		real, err := filepath.EvalSymlinks(f.Source)
		if err != nil {
			return nil, "", err
		}
		if real, err = filepath.Abs(real); err != nil {
			return nil, "", err
		}
		t, err := newDirTree(filepath.Dir(real), &mapOptions{})
		if err != nil {
			return nil, "", err
		}
		c.closers = append(c.closers, t.close)
		base := filepath.Base(real)
		if real == "/" {
			base = "."
		}
		return t, base, nil
	}
	im, err := c.opt.open(ctx, f.From)
	if err != nil {
		return nil, "", err
	}
	c.closers = append(c.closers, im.Close)
	ino, err := resolveInImage(im.Tree, f.Source)
	if err != nil {
		return nil, "", err
	}
	at, err := im.PathOf(ino)
	return stillTree{imageTree{im.Image}}, at, err
}

// owner is whose the copies are to be; nil: as they are.
func (c *copying) owner(f *FileCopy) (*[2]uint32, error) {
	switch {
	case f.Owner == OwnerKeep, f.Owner == "" && f.From != nil:
		return nil, nil
	case f.Owner == "":
		return &[2]uint32{}, nil
	}
	who, err := lookupUser(f.Owner, func(name string) (io.ReadCloser, error) { return openInImage(c.im.Image, name) })
	if err != nil {
		return nil, err
	}
	return &[2]uint32{uint32(who.Uid), uint32(who.Gid)}, nil
}

// dest is the path in the image, without symlinks, that the source becomes.
func (c *copying) dest(f *FileCopy, isDir bool) (string, error) {
	at, mode, err := c.resolve(f.Dest)
	if err != nil {
		return "", err
	}
	if mode == unix.S_IFDIR && !isDir || !isDir && strings.HasSuffix(f.Dest, "/") {
		if at, mode, err = c.resolve(path.Join("/", at, filepath.Base(f.Source))); err != nil {
			return "", err
		}
	}
	switch {
	case isDir && mode != 0 && mode != unix.S_IFDIR:
		return "", fmt.Errorf("/%s is no directory: %w", at, unix.ENOTDIR)
	case !isDir && mode == unix.S_IFDIR:
		return "", fmt.Errorf("/%s is a directory: %w", at, unix.EISDIR)
	}
	return at, c.makeParents(at)
}

// resolve walks a path of the image, with what was copied before, as a process does
// whose root is the image's. What is missing has no mode.
func (c *copying) resolve(name string) (at string, mode uint32, err error) {
	at, mode = ".", unix.S_IFDIR
	links := 0
	for rest := strings.Split(name, "/"); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at, mode = path.Dir(at), unix.S_IFDIR // of the root: itself
			continue
		}
		if mode != 0 && mode != unix.S_IFDIR {
			return "", 0, fmt.Errorf("/%s: %w", at, unix.ENOTDIR)
		}
		next := path.Join(at, part)
		var target string
		if mode, target, err = c.look(next); err != nil {
			return "", 0, err
		}
		if mode != unix.S_IFLNK {
			at = next
			continue
		}
		if links++; links > maxSymlinks {
			return "", 0, &fs.PathError{Op: "look up", Path: name, Err: unix.ELOOP}
		}
		mode = unix.S_IFDIR
		if path.IsAbs(target) {
			at = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, mode, nil
}

// look says of what type a path without symlinks is, 0 for nothing, and where a
// symlink leads.
func (c *copying) look(p string) (mode uint32, target string, err error) {
	o := (*object)(nil)
	if e := c.entries[p]; e != nil {
		o = e.now
	} else if o, err = find(imageTree{c.im.Image}, p); err != nil || o == nil {
		return 0, "", err
	}
	return o.typ(), o.target, nil
}

// makeParents makes the directories above a path.
func (c *copying) makeParents(p string) error {
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		mode, _, err := c.look(dir)
		if err != nil || mode == unix.S_IFDIR {
			return err
		}
		o := &object{attr: layer.Attr{Mode: unix.S_IFDIR | 0o755, Nlink: 2, Mtime: layer.Timespec{Sec: c.now}}}
		c.entries[dir] = &copied{planned: planned{path: dir, now: o}}
	}
	return nil
}

// copyWalk copies one source.
type copyWalk struct {
	c     *copying
	view  versionedTree
	file  *FileCopy
	owner *[2]uint32
	host  string // the directory of the host that paths are below; "": those of an image
}

func (w *copyWalk) walk(ctx context.Context, from, to string, o *object) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.host != "" && filepath.Join(w.host, from) == w.c.layout {
		return nil
	}
	if layer.IsWhiteoutName(path.Base(to)) {
		return fmt.Errorf("%q: %w", from, layer.ErrReservedName)
	}
	have, _, err := w.c.look(to)
	if err != nil {
		return err
	}
	if !o.isDir() {
		if have == unix.S_IFDIR {
			return fmt.Errorf("/%s is a directory: %w", to, unix.EISDIR)
		}
		w.add(to, o)
		return nil
	}
	switch have {
	case unix.S_IFDIR: // keeps what it has
	case unix.S_IFLNK: // as for a path that is named
		at, mode, err := w.c.resolve(to)
		if err != nil {
			return err
		}
		if mode != unix.S_IFDIR {
			return fmt.Errorf("/%s is no directory: %w", to, unix.ENOTDIR)
		}
		to = at
	case 0:
		w.add(to, o)
	default:
		return fmt.Errorf("/%s is no directory: %w", to, unix.ENOTDIR)
	}
	names, err := w.view.list(o.attr.Ino)
	if err != nil {
		return err
	}
	for _, name := range names {
		below := path.Join(from, name)
		o, err := find(w.view, below)
		if err != nil {
			return err
		}
		if o == nil {
			continue // it was removed meanwhile
		}
		if err := w.walk(ctx, below, path.Join(to, name), o); err != nil {
			return err
		}
	}
	return nil
}

// add makes an entry of an object.
func (w *copyWalk) add(to string, o *object) {
	w.c.entries[to] = &copied{planned: planned{path: to, now: o}, view: w.view}
	if w.file.From == nil {
		maps.DeleteFunc(o.xattrs, func(name, _ string) bool { return !strings.HasPrefix(name, "user.") })
	}
	if w.owner != nil {
		o.attr.UID, o.attr.GID = w.owner[0], w.owner[1]
	}
	if w.file.Mode != nil && o.typ() == unix.S_IFREG {
		o.attr.Mode = unix.S_IFREG | *w.file.Mode&0o7777
	}
}

// sameFile tells inodes of all sources apart.
type sameFile struct {
	view versionedTree
	ino  layer.Ino
}

// records are the entries, in a layer's order.
func (c *copying) records(ctx context.Context) iter.Seq2[layer.Record, error] {
	return func(yield func(layer.Record, error) bool) {
		first := map[sameFile]string{} // names of what has several
		for _, p := range slices.SortedFunc(maps.Keys(c.entries), layer.ComparePaths) {
			e := c.entries[p]
			if o := e.now; e.view != nil && !o.isDir() && o.attr.Nlink > 1 {
				id := sameFile{e.view, o.attr.Ino}
				if e.link = first[id]; e.link == "" {
					first[id] = p
				}
			}
			more := true
			s := recordSource{view: e.view}
			for r, err := range s.records(ctx, []planned{e.planned}) {
				if more = yield(r, err); !more {
					break
				}
			}
			if !more {
				return
			}
		}
	}
}
