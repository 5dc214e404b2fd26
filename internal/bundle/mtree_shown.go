package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// shownTree is what a bundle's rootfs shows when it is mounted, at one moment. It ends
// with its view.
type shownTree struct {
	lower   *layer.Image
	objects map[layer.Ino]*shownObject
	digests map[layer.Ino]string // of files of the upper directory; hexadecimal
	unread  []layer.Ino          // files whose content is the image's, which stays as it is
	hasher  comparison
}

// shownObject is one inode of it.
type shownObject struct {
	attr   layer.Attr // in the host's ids
	target string     // of a symlink
	xattrs map[string]string
	names  []layer.Dirent // of a directory, sorted
}

// look records what the bundle shows, where it has a manifest to be renewed; else it
// returns nil.
func (v *View) look(ctx context.Context, log *slog.Logger) (_ *shownTree, err error) {
	_, err = v.dir.top.stat(mtreeName(digestOf(v.meta.From.Walk)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // no manifest is no error
	}
	if err != nil {
		return nil, fmt.Errorf("look for a manifest: %w", err)
	}
	opt := overlay.Options{ReadOnly: true, Log: log}
	v.State.Options.show(&opt)
	tree, err := v.dir.joinUpper(v.Base, &v.State.Options, opt)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	s := &shownTree{lower: v.Base, objects: map[layer.Ino]*shownObject{}, digests: map[layer.Ino]string{}}
	_, err = s.add(ctx, viewTree{tree}, ".")
	return s, err
}

// add records what is at a path and below.
func (s *shownTree) add(ctx context.Context, t viewTree, p string) (layer.Attr, error) {
	if err := ctx.Err(); err != nil {
		return layer.Attr{}, err
	}
	a, err := t.stat(p)
	if err != nil {
		return a, fmt.Errorf("look at %q: %w", p, err)
	}
	if s.objects[a.Ino] != nil { // another name of it was there
		return a, nil
	}
	o := &shownObject{attr: a}
	s.objects[a.Ino] = o
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		o.target, err = t.readlink(a.Ino)
	case unix.S_IFREG:
		if err = s.addXattrs(t, o); err == nil {
			err = s.addFile(t, o)
		}
	case unix.S_IFDIR:
		if err = s.addXattrs(t, o); err == nil {
			return a, s.addNames(ctx, t, p, o)
		}
	}
	if err != nil {
		return a, fmt.Errorf("read %q: %w", p, err)
	}
	return a, nil
}

func (s *shownTree) addXattrs(t viewTree, o *shownObject) error {
	x, err := viewXattrs(t.fs, o.attr.Ino)
	o.xattrs = walkedXattrs(x)
	return err
}

// addFile hashes what is in the upper directory; the image's content can wait.
func (s *shownTree) addFile(t viewTree, o *shownObject) error {
	h, err := t.fs.Open(o.attr.Ino, unix.O_RDONLY)
	if err != nil {
		return err
	}
	_, upper := h.Upper()
	if err := h.Close(); err != nil {
		return err
	}
	if !upper && int(o.attr.Ino) <= s.lower.Len() {
		s.unread = append(s.unread, o.attr.Ino)
		return nil
	}
	s.digests[o.attr.Ino], err = s.hasher.digest(t, &object{attr: o.attr})
	return err
}

func (s *shownTree) addNames(ctx context.Context, t viewTree, p string, o *shownObject) error {
	names, err := t.list(o.attr.Ino)
	if err != nil {
		return fmt.Errorf("list %q: %w", p, err)
	}
	for _, name := range names {
		a, err := s.add(ctx, t, path.Join(p, name))
		if err != nil {
			return err
		}
		o.names = append(o.names, layer.Dirent{Name: name, Ino: a.Ino, Mode: a.Mode & unix.S_IFMT})
	}
	return nil
}

// manifest is the tree with all digests.
func (s *shownTree) manifest(ctx context.Context) (*mtreeTree, error) {
	t := &mtreeTree{
		lower: s.lower, digests: s.digests,
		names:  func(dir layer.Ino) ([]layer.Dirent, error) { return s.objects[dir].names, nil },
		attr:   func(ino layer.Ino) (layer.Attr, error) { return s.objects[ino].attr, nil },
		target: func(ino layer.Ino) (string, error) { return s.objects[ino].target, nil },
		xattrs: func(ino layer.Ino) (map[string]string, error) { return s.objects[ino].xattrs, nil },
	}
	return t, t.hashContent(ctx, slices.Values(s.unread))
}
