package bundle

import (
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
	ino, err := resolveInImage(im, name)
	if errors.Is(err, fs.ErrNotExist) {
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

// resolveInImage walks a path with the image's root as "/".
func resolveInImage(im *layer.Image, name string) (layer.Ino, error) {
	links := 0
	done, rest := "", strings.Split(path.Clean("/" + name)[1:], "/")
	ino := layer.RootIno
	for len(rest) > 0 {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		if next == "" || next == "." {
			continue
		}
		var err error
		if ino, err = im.LookupPath(next); err != nil {
			return 0, err
		}
		a, err := im.Attr(ino)
		if err != nil {
			return 0, err
		}
		if a.Mode&unix.S_IFMT != unix.S_IFLNK {
			done = next
			continue
		}
		if links++; links > maxSymlinks {
			return 0, fmt.Errorf("%s: too many symbolic links", name)
		}
		target, err := im.Readlink(ino)
		if err != nil {
			return 0, err
		}
		if !path.IsAbs(target) {
			target = path.Join("/", done, target)
		}
		full := path.Join(append([]string{"/", target}, rest...)...)
		done, rest = "", strings.Split(full[1:], "/")
		ino = layer.RootIno
	}
	return ino, nil
}
