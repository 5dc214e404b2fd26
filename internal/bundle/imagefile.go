package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// maxSymlinks is the kernel's bound on links followed in one path (MAXSYMLINKS).
const maxSymlinks = 40

// openInImage opens a regular file of an image by path. Symlinks are followed
// within the image, never out of it. nil: there is no such file.
func openInImage(im *layer.Image, name string) (io.ReadCloser, error) {
	ino, err := resolveInImage(im.Tree, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	a, err := im.Attr(ino)
	if err != nil {
		return nil, err
	}
	if a.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil
	}
	f, err := im.Open(ino)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(io.NewSectionReader(f, 0, f.Size())), nil
}

// resolveInImage walks a path as a process does whose root is the image's: each
// symlink is followed, the last one too, and ".." of the root is the root. Errors are
// *fs.PathError of fs.ErrNotExist, ENOTDIR or ELOOP (path_resolution(7)).
func resolveInImage(t *layer.Tree, name string) (layer.Ino, error) {
	fail := func(err error) (layer.Ino, error) {
		return 0, &fs.PathError{Op: "look up", Path: path.Join("/", name), Err: err}
	}
	links := 0
	above := []layer.Ino{layer.RootIno} // the directories down to where the walk is
	for rest := strings.Split(name, "/"); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		a, err := t.Attr(above[len(above)-1])
		if err != nil {
			return fail(err)
		}
		if a.Mode&unix.S_IFMT != unix.S_IFDIR {
			return fail(unix.ENOTDIR)
		}
		switch part {
		case "", ".":
			continue
		case "..":
			above = above[:max(len(above)-1, 1)]
			continue
		}
		ino, err := t.Lookup(a.Ino, part)
		if err != nil {
			return fail(err)
		}
		if a, err = t.Attr(ino); err != nil {
			return fail(err)
		}
		if a.Mode&unix.S_IFMT != unix.S_IFLNK {
			above = append(above, ino)
			continue
		}
		if links++; links > maxSymlinks {
			return fail(unix.ELOOP)
		}
		target, err := t.Readlink(ino)
		if err != nil {
			return fail(err)
		}
		if path.IsAbs(target) {
			above = above[:1]
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return above[len(above)-1], nil
}

// ErrNotFile: what a path leads to has no content.
var ErrNotFile = errors.New("not a regular file")

// CopyFile writes the content of one of the image's files to w. Symlinks are
// followed within the image.
func (im *Image) CopyFile(ctx context.Context, w io.Writer, name string) error {
	ino, err := resolveInImage(im.Tree, name)
	if err != nil {
		return err
	}
	a, err := im.Attr(ino)
	if err != nil {
		return err
	}
	if a.Mode&unix.S_IFMT != unix.S_IFREG {
		return &fs.PathError{Op: "read", Path: path.Join("/", name), Err: fmt.Errorf("%w: %s", ErrNotFile, mtreeTypes[a.Mode&unix.S_IFMT])}
	}
	f, err := im.Open(ino)
	if err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for off := int64(0); off < f.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), f.Size()-off)], off)
		if n == 0 && err != nil {
			return fmt.Errorf("read %q: %w", path.Join("/", name), err)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		off += int64(n)
	}
	return nil
}
