package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// Operations of an Edit.
const (
	EditOwner       = "chown"
	EditMknod       = "mknod"
	EditSetXattr    = "setxattr"
	EditRemoveXattr = "removexattr"
	// EditActor changes nothing: it says as whom a thread creates files from now on.
	EditActor = "actor"
)

// Edit is a change that the kernel refuses a plain user before the server of the mount
// sees it: it is made on the overlay directly. All ids are the image's.
type Edit struct {
	Op string `json:"op"`

	// What is changed: an inode by its number (st_ino in the mount), or, where that
	// is 0, the one at a path of the image. For mknod the number is that of the
	// directory, and Name is the name in it; a path has both.
	Ino    uint64 `json:"ino,omitempty"`
	Path   string `json:"path,omitempty"`
	Follow bool   `json:"follow,omitempty"` // a symlink at the path's end is followed

	UID       *uint32 `json:"uid,omitempty"` // of chown: nil stays; of mknod: nil is 0
	GID       *uint32 `json:"gid,omitempty"`
	Owner     string  `json:"owner,omitempty"`     // in place of UID and GID: [USER][:[GROUP]], see owner
	Recursive bool    `json:"recursive,omitempty"` // chown: everything below a directory too

	Mode uint32 `json:"mode,omitempty"` // of mknod: S_IFMT bits and permissions
	Rdev uint64 `json:"rdev,omitempty"` // encoding of struct stat

	TID int `json:"tid,omitempty"` // of actor: a thread of the daemon's pid namespace

	Name  string `json:"name,omitempty"`  // of the attribute, or of what mknod makes
	Value []byte `json:"value,omitempty"` // of the attribute
	Flags uint32 `json:"flags,omitempty"` // unix.XATTR_CREATE, XATTR_REPLACE
}

// kernelTold is told of what has changed. *fusefs.Server satisfies it.
type kernelTold interface {
	InodeChanged(ino overlay.Ino)
	NameMade(dir overlay.Ino, name string)
	SetActor(tid int, as overlay.Owner) error
}

// editing makes changes on an overlay.
type editing struct {
	fs   *overlay.FS
	told kernelTold // nil: not mounted
}

// apply makes one change. Errors are the overlay's, with the path.
func (c *editing) apply(ch *Edit) error {
	err := c.owner(ch)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", ch.Op, err)
	case ch.Op == EditActor && c.told != nil && ch.UID != nil && ch.GID != nil:
		err = c.told.SetActor(ch.TID, overlay.Owner{UID: *ch.UID, GID: *ch.GID})
	case ch.Op == EditMknod:
		err = c.mknod(ch)
	case slices.Contains([]string{EditOwner, EditSetXattr, EditRemoveXattr}, ch.Op):
		w := &pathWalk{fs: c.fs}
		defer w.close()
		var a overlay.Attr
		if a, err = w.find(ch.Ino, ch.Path, ch.Follow); err == nil {
			err = c.applyTo(ch, a)
		}
	default:
		return fmt.Errorf("change %q: %w", ch.Op, overlay.ErrInvalid)
	}
	if err != nil && ch.Path != "" {
		return fmt.Errorf("%s %s: %w", ch.Op, path.Join("/", ch.Path), err)
	}
	return err
}

func (c *editing) applyTo(ch *Edit, a overlay.Attr) error {
	var err error
	switch ch.Op {
	case EditOwner:
		return c.chown(ch, a)
	case EditSetXattr:
		err = c.fs.SetXattr(a.Ino, ch.Name, ch.Value, ch.Flags, false)
	case EditRemoveXattr:
		err = c.fs.RemoveXattr(a.Ino, ch.Name)
	}
	c.tellInode(a.Ino)
	return err
}

func (c *editing) tellInode(ino overlay.Ino) {
	if c.told != nil {
		c.told.InodeChanged(ino)
	}
}

// chown changes the owner as chown(2) does: set-id bits of files go.
func (c *editing) chown(ch *Edit, a overlay.Attr) error {
	set := overlay.SetAttr{ImageIDs: true}
	if ch.UID != nil {
		set.Valid |= overlay.SetUID
		set.UID = *ch.UID
	}
	if ch.GID != nil {
		set.Valid |= overlay.SetGID
		set.GID = *ch.GID
	}
	if a.Mode&unix.S_IFMT != unix.S_IFDIR {
		set.Valid |= overlay.KillSuidgid
	}
	if _, err := c.fs.SetAttr(a.Ino, set); err != nil {
		return err
	}
	c.tellInode(a.Ino)
	if !ch.Recursive || a.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	dir, err := c.fs.OpenDir(a.Ino)
	if err != nil {
		return err
	}
	for i := range dir.Len() {
		e, ok, err := dir.EntryName(i)
		if err != nil {
			return err
		}
		if !ok || e.Name == "." || e.Name == ".." {
			continue
		}
		if err := c.chownBelow(ch, a.Ino, e.Name); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return nil
}

func (c *editing) chownBelow(ch *Edit, dir overlay.Ino, name string) error {
	a, err := c.fs.Lookup(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	defer c.fs.Forget(a.Ino, 1)
	return c.chown(ch, a)
}

func (c *editing) mknod(ch *Edit) error {
	name, dirPath := ch.Name, ch.Path
	if ch.Ino == 0 {
		clean := path.Clean("/" + ch.Path)
		dirPath, name = path.Split(clean)
	}
	w := &pathWalk{fs: c.fs}
	defer w.close()
	dir, err := w.find(ch.Ino, dirPath, true)
	if err != nil {
		return err
	}
	owner := overlay.Caller{ImageIDs: true}
	if ch.UID != nil {
		owner.UID = *ch.UID
	}
	if ch.GID != nil {
		owner.GID = *ch.GID
	}
	a, err := c.fs.Mknod(dir.Ino, name, ch.Mode, ch.Rdev, owner)
	if err != nil {
		return err
	}
	c.fs.Forget(a.Ino, 1)
	if c.told != nil {
		c.told.NameMade(dir.Ino, name)
	}
	return nil
}

// pathWalk finds inodes by path, and keeps those on the way until it is closed.
type pathWalk struct {
	fs   *overlay.FS
	kept []overlay.Ino
}

func (w *pathWalk) close() {
	for _, ino := range w.kept {
		w.fs.Forget(ino, 1)
	}
}

// find describes the inode of a number that whoever asks has open, or, where it is
// 0, of a path as a process sees it whose root is the image's (path_resolution(7)).
func (w *pathWalk) find(ino uint64, name string, follow bool) (overlay.Attr, error) {
	if ino != 0 {
		return w.fs.GetAttr(overlay.Ino(ino))
	}
	root, err := w.fs.GetAttr(layer.RootIno)
	if err != nil {
		return root, err
	}
	above := []overlay.Attr{root} // down to where the walk is
	links := 0
	for rest := strings.Split(name, "/"); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		here := above[len(above)-1]
		if here.Mode&unix.S_IFMT != unix.S_IFDIR {
			return here, overlay.ErrNotDir
		}
		switch part {
		case "", ".":
			continue
		case "..":
			above = above[:max(len(above)-1, 1)]
			continue
		}
		a, err := w.fs.Lookup(here.Ino, part)
		if err != nil {
			return a, err
		}
		w.kept = append(w.kept, a.Ino)
		if a.Mode&unix.S_IFMT != unix.S_IFLNK || len(rest) == 0 && !follow {
			above = append(above, a)
			continue
		}
		if links++; links > maxSymlinks {
			return a, unix.ELOOP
		}
		target, err := w.fs.Readlink(a.Ino)
		if err != nil {
			return a, err
		}
		if strings.HasPrefix(target, "/") {
			above = above[:1]
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return above[len(above)-1], nil
}
