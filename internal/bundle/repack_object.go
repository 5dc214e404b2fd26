package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// object is what one side of a comparison has at a path, in the image's ids.
type object struct {
	attr   layer.Attr
	target string            // of a symlink
	xattrs map[string]string // without those that no layer holds; see keepXattr
}

func (o *object) typ() uint32 { return o.attr.Mode & unix.S_IFMT }

func (o *object) isDir() bool { return o.typ() == unix.S_IFDIR }

// content is an open regular file.
type content interface {
	io.ReaderAt
	io.Closer
}

// tree is one side of a comparison.
type tree interface {
	// stat describes what is at a path ("a/b", "." is the root), with no symlink
	// followed; fs.ErrNotExist also where the path leads through no directory.
	stat(path string) (layer.Attr, error)
	// list is the names in a directory, sorted.
	list(dir layer.Ino) ([]string, error)
	// readlink is a symlink's target.
	readlink(ino layer.Ino) (string, error)
	// xattrs are the extended attributes.
	xattrs(ino layer.Ino) (map[string]string, error)
	// open opens a regular file.
	open(ino layer.Ino) (content, error)
}

// find is what a tree has at a path; nil where there is nothing.
func find(t tree, path string) (*object, error) {
	a, err := t.stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // "nothing there" is an answer here
	}
	if err != nil {
		return nil, fmt.Errorf("look at %q: %w", path, err)
	}
	return load(t, path, a)
}

// load completes what stat said.
func load(t tree, path string, a layer.Attr) (o *object, err error) {
	o = &object{attr: a}
	if o.typ() == unix.S_IFLNK {
		if o.target, err = t.readlink(a.Ino); err != nil {
			return nil, fmt.Errorf("read link %q: %w", path, err)
		}
		o.target = strings.Clone(o.target) // an image's strings end with it
	}
	if o.xattrs, err = t.xattrs(a.Ino); err != nil {
		return nil, fmt.Errorf("read extended attributes of %q: %w", path, err)
	}
	return o, nil
}

// keepXattr reports whether a layer holds an extended attribute: not what belongs
// to the host (as umoci has it), and none without a value, which PAX cannot say.
func keepXattr(name, value string) bool {
	return value != "" && name != "security.selinux" && name != "system.nfs4_acl"
}

// imageTree is the merged tree of an image.
type imageTree struct{ im *layer.Image }

func (t imageTree) stat(path string) (layer.Attr, error) {
	ino, err := t.im.LookupPath(path)
	if err != nil {
		return layer.Attr{}, err
	}
	return t.im.Attr(ino)
}

func (t imageTree) list(dir layer.Ino) ([]string, error) {
	n, err := t.im.NumEntries(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, n)
	for i := range names {
		e, err := t.im.Entry(dir, i)
		if err != nil {
			return nil, err
		}
		names[i] = e.Name
	}
	return names, nil
}

func (t imageTree) readlink(ino layer.Ino) (string, error) { return t.im.Readlink(ino) }

func (t imageTree) xattrs(ino layer.Ino) (map[string]string, error) {
	var out map[string]string
	for name, value := range t.im.Xattrs(ino) {
		out = addXattr(out, name, string(value))
	}
	return out, nil
}

func addXattr(m map[string]string, name, value string) map[string]string {
	if !keepXattr(name, value) {
		return m
	}
	if m == nil {
		m = map[string]string{}
	}
	m[strings.Clone(name)] = value
	return m
}

// imageContent is a file of an image, which needs no close.
type imageContent struct{ layer.File }

func (imageContent) Close() error { return nil }

func (t imageTree) open(ino layer.Ino) (content, error) {
	f, err := t.im.Open(ino)
	if err != nil {
		return nil, err
	}
	return imageContent{f}, nil
}

// viewTree is the tree of a bundle, as its upper directory has it.
type viewTree struct{ fs *overlay.FS }

func (t viewTree) stat(path string) (layer.Attr, error) {
	a, err := t.fs.LookupPath(path)
	if errors.Is(err, overlay.ErrNotDir) {
		err = fs.ErrNotExist
	}
	return imageAttr(a), err
}

// imageAttr is the part of an attribute that a layer can hold.
func imageAttr(a overlay.Attr) layer.Attr {
	return layer.Attr{
		Ino: a.Ino, Mode: a.Mode, UID: a.UID, GID: a.GID, Nlink: a.Nlink,
		Rdev: a.Rdev, Size: a.Size, Mtime: a.Mtime,
	}
}

func (t viewTree) list(dir layer.Ino) (names []string, err error) {
	d, err := t.fs.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	for i := 2; i < d.Len(); i++ { // after "." and ".."
		e, _, err := d.EntryName(i)
		if err != nil {
			return nil, err
		}
		names = append(names, e.Name)
	}
	slices.Sort(names)
	return names, nil
}

func (t viewTree) readlink(ino layer.Ino) (string, error) { return t.fs.Readlink(ino) }

func (t viewTree) xattrs(ino layer.Ino) (map[string]string, error) {
	all, err := viewXattrs(t.fs, ino)
	maps.DeleteFunc(all, func(name, value string) bool { return !keepXattr(name, value) })
	return all, err
}

// viewXattrs are the extended attributes that a view shows.
func viewXattrs(fs *overlay.FS, ino layer.Ino) (map[string]string, error) {
	list, err := growBuffer(func(buf []byte) (int, error) { return fs.ListXattr(ino, buf, nil) })
	if err != nil || len(list) == 0 {
		return nil, err
	}
	out := map[string]string{}
	for name := range bytes.SplitSeq(bytes.TrimSuffix(list, []byte{0}), []byte{0}) {
		value, err := growBuffer(func(buf []byte) (int, error) { return fs.GetXattr(ino, string(name), buf) })
		if errors.Is(err, overlay.ErrNoXattr) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out[string(name)] = string(value)
	}
	return out, nil
}

// growBuffer calls get, which fills a buffer or, given none, says how large it
// must be, until the answer fits.
func growBuffer(get func(buf []byte) (int, error)) ([]byte, error) {
	for {
		n, err := get(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		buf := make([]byte, n)
		if n, err = get(buf); !errors.Is(err, overlay.ErrRange) {
			return buf[:n], err
		}
	}
}

func (t viewTree) open(ino layer.Ino) (content, error) { return t.fs.Open(ino, unix.O_RDONLY) }

// sameContent reports whether a file of the view and one of the image that is
// compared with have their bytes at the same place of the same layers: then they
// need not be read. mounted is the view's lower image; of the two images one has
// all layers of the other at its bottom.
func sameContent(view *overlay.FS, mounted, base *layer.Image, now, was layer.Ino) (same bool, err error) {
	h, err := view.Open(now, unix.O_RDONLY)
	if err != nil {
		return false, err
	}
	_, upper := h.Upper()
	if err := h.Close(); err != nil || upper {
		return false, err
	}
	if mounted == base && now == was {
		return true, nil
	}
	a, err := mounted.Extents(now)
	if err != nil {
		return false, nil //nolint:nilerr // not a file of the lower tree: empty, or not known
	}
	b, err := base.Extents(was)
	return err == nil && len(a) > 0 && slices.Equal(a, b), err
}
