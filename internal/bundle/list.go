package bundle

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// Listed is one name of an image's tree. Owners are the image's.
type Listed struct {
	Path   string            `json:"path"` // absolute
	Type   string            `json:"type"` // as mtree names it: "file", "dir", "link", ...
	Mode   uint32            `json:"mode"` // type and permission bits, as in struct stat
	Nlink  uint32            `json:"nlink"`
	UID    uint32            `json:"uid"`
	GID    uint32            `json:"gid"`
	Size   int64             `json:"size"` // bytes
	Mtime  time.Time         `json:"mtime"`
	Inode  uint64            `json:"inode"`            // the same for the names of one file
	Link   string            `json:"link,omitempty"`   // a symlink's target
	Device string            `json:"device,omitempty"` // MAJOR:MINOR
	Xattrs map[string][]byte `json:"xattrs,omitempty"` // values in base64
}

// List calls fn for what a path leads to and, where that is a directory, for all
// that is below, sorted, down to depth levels (negative: all). Symlinks in the path
// are followed within the image, those below are not. What is listed is named as
// without the symlinks.
func (im *Image) List(ctx context.Context, name string, depth int, fn func(*Listed) error) error {
	ino, err := resolveInImage(im.Tree, name)
	if err != nil {
		return err
	}
	at, err := im.PathOf(ino)
	if err != nil {
		return err
	}
	return im.list(ctx, ino, path.Join("/", at), depth, fn)
}

func (im *Image) list(ctx context.Context, ino layer.Ino, at string, depth int, fn func(*Listed) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e, err := im.listed(ino, at)
	if err != nil {
		return err
	}
	if err := fn(e); err != nil {
		return err
	}
	if e.Mode&unix.S_IFMT != unix.S_IFDIR || depth == 0 {
		return nil
	}
	n, err := im.NumEntries(ino)
	if err != nil {
		return err
	}
	for i := range n {
		d, err := im.Entry(ino, i)
		if err != nil {
			return err
		}
		if err := im.list(ctx, d.Ino, path.Join(at, d.Name), depth-1, fn); err != nil {
			return err
		}
	}
	return nil
}

func (im *Image) listed(ino layer.Ino, at string) (*Listed, error) {
	a, err := im.Attr(ino)
	if err != nil {
		return nil, err
	}
	typ := a.Mode & unix.S_IFMT
	e := &Listed{
		Path: at, Type: mtreeTypes[typ], Mode: a.Mode, Nlink: a.Nlink, UID: a.UID, GID: a.GID, Size: a.Size,
		Mtime: time.Unix(a.Mtime.Sec, int64(a.Mtime.Nsec)).UTC(), Inode: uint64(ino),
	}
	switch typ {
	case unix.S_IFLNK:
		target, err := im.Readlink(ino)
		if err != nil {
			return nil, err
		}
		e.Link = strings.Clone(target)
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Device = fmt.Sprintf("%d:%d", unix.Major(a.Rdev), unix.Minor(a.Rdev))
	}
	for name, value := range im.Xattrs(ino) {
		if e.Xattrs == nil {
			e.Xattrs = map[string][]byte{}
		}
		e.Xattrs[strings.Clone(name)] = append([]byte{}, value...)
	}
	return e, nil
}
