package overlay

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// object is everything about an upper object that is to be made.
type object struct {
	mode     uint32 // type and permission bits
	uid, gid uint32 // in the image's ids
	rdev     uint64
	link     string  // symlinks
	size     int64   // regular files
	xattrs   []xattr // names of the view
	mtime    *Timespec
	atime    *Timespec
	lower    Ino // recorded where not 0
	metacopy bool
	opaque   bool
	redirect string
}

type xattr struct {
	name  string
	value []byte
}

func (o *object) typ() uint32 { return o.mode & unix.S_IFMT }

// stage makes the object in work/ with everything set, so that one rename can
// publish it. fd is that of a regular file, else -1.
func (u *Upper) stage(o *object) (s staged, err error) {
	name := u.stageName()
	s = staged{at{u.work, name}, -1}
	if s.fd, err = u.makeNode(s.at, o); err != nil {
		return s, err
	}
	defer func() {
		if err != nil {
			u.unstage(s)
		}
	}()
	a := s.at
	if s.fd >= 0 {
		a = at{s.fd, ""}
	}
	if o.size > 0 && o.typ() == unix.S_IFREG {
		if err := u.step("truncate"); err != nil {
			return s, err
		}
		if err := unix.Ftruncate(s.fd, o.size); err != nil {
			return s, pathError("truncate", a, err)
		}
	}
	return s, u.applyObject(a, o)
}

// unstage gives up a staged object.
func (u *Upper) unstage(s staged) {
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
	}
	if s.name != "" {
		u.discard(s.name)
	}
}

// standIn reports whether a plain user's upper keeps the object as a regular
// file that only says what it is: what takes no user attribute, and so could not
// be given an owner. A symlink that is the image's root's stays one.
func (u *Upper) standIn(o *object) bool {
	if !u.rootless {
		return false
	}
	switch o.typ() {
	case unix.S_IFREG, unix.S_IFDIR:
		return false
	case unix.S_IFLNK:
		return o.uid != 0 || o.gid != 0
	}
	return true
}

// makeNode is the system call that creates the object. Directories are made
// 0700 and files 0600 where applyObject has more to set. An image can have devices that
// would be whiteouts in the upper: those of a container's own overlayfs.
func (u *Upper) makeNode(a at, o *object) (fd int, err error) {
	if err := u.step("create"); err != nil {
		return -1, err
	}
	perm := o.mode & 0o7777
	typ := o.typ()
	if u.standIn(o) {
		typ = unix.S_IFREG
		perm = 0o600
	}
	if typ == unix.S_IFCHR && o.rdev == 0 {
		return -1, errWhiteoutNode
	}
	switch typ {
	case unix.S_IFREG:
		if u.rootless {
			perm = perm&0o777 | 0o600
		}
		fd, err = unix.Openat(a.dir, a.name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
		if err != nil {
			return -1, pathError("create", a, err)
		}
		return fd, u.writeStandIn(a, fd, o)
	case unix.S_IFDIR:
		if u.rootless {
			perm = perm&0o777 | 0o700
		}
		err = unix.Mkdirat(a.dir, a.name, perm)
	case unix.S_IFLNK:
		err = unix.Symlinkat(o.link, a.dir, a.name)
	default:
		err = unix.Mknodat(a.dir, a.name, typ|perm, int(o.rdev))
	}
	return -1, pathError("create", a, err)
}

// writeStandIn gives a symlink's stand-in its target as content. It is synced: nobody can
// ask for that with fsync(2), which is for files, and no symlink is ever half made.
func (u *Upper) writeStandIn(a at, fd int, o *object) error {
	if o.typ() != unix.S_IFLNK {
		return nil
	}
	_, err := unix.Pwrite(fd, []byte(o.link), 0)
	if err = pathError("write", a, err); err == nil && !u.volatile {
		err = u.fsync(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		_ = unix.Unlinkat(a.dir, a.name, 0)
	}
	return err
}

// applyObject sets owner, attributes, mode and times, in the order in which none
// undoes another: chown clears suid and capabilities.
func (u *Upper) applyObject(a at, o *object) error {
	if err := u.applyOwnerMode(a, o); err != nil {
		return err
	}
	for _, x := range o.xattrs {
		if err := u.setXattrIfHeld(a, u.storedXattr(x.name), x.value); err != nil {
			return err
		}
	}
	if err := u.applyPrivate(a, o); err != nil {
		return err
	}
	if o.mtime == nil && o.atime == nil {
		return nil
	}
	atime, mtime := timeOmit, timeOmit
	if o.atime != nil {
		atime = toUnix(*o.atime)
	}
	if o.mtime != nil {
		mtime = toUnix(*o.mtime)
	}
	return u.utimes(a, atime, mtime)
}

// setXattrIfHeld sets a stored attribute. One that the file system cannot hold is as
// with an extracted tree: not there.
func (u *Upper) setXattrIfHeld(a at, name string, value []byte) error {
	err := u.setxattr(a, name, value, 0)
	if errors.Is(err, unix.EOPNOTSUPP) || u.rootless && errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

func (u *Upper) applyPrivate(a at, o *object) error {
	typ := o.typ()
	if u.standIn(o) {
		typ = unix.S_IFREG
	}
	if o.lower != 0 {
		if err := u.setLower(a, typ, o.lower); err != nil {
			return err
		}
	}
	if o.redirect != "" {
		if err := u.setxattr(a, xattrRedirect, []byte(o.redirect), 0); err != nil {
			return err
		}
	}
	if o.metacopy {
		if err := u.setxattr(a, xattrMetacopy, nil, 0); err != nil {
			return err
		}
	}
	if o.opaque {
		return u.setxattr(a, xattrOpaque, []byte("y"), 0)
	}
	return nil
}

// applyOwnerMode sets owner and mode where the creating system call did not.
func (u *Upper) applyOwnerMode(a at, o *object) error {
	mode := o.mode & 0o7777
	var over *overrideStat
	if u.rootless {
		want := overrideStat{uid: o.uid, gid: o.gid, mode: mode, typ: o.typ(), rdev: o.rdev}
		mode, over = want.split(u.standIn(o))
	} else if o.uid != u.euid || o.gid != u.egid {
		if err := u.chown(a, int(o.uid), int(o.gid)); err != nil {
			return err
		}
	}
	if o.typ() != unix.S_IFLNK || u.standIn(o) {
		var st unix.Statx_t
		if err := u.stat(a, &st); err != nil {
			return err
		}
		if uint32(st.Mode)&0o7777 != mode {
			if err := u.chmod(a, mode); err != nil {
				return err
			}
		}
	}
	if over == nil {
		return nil
	}
	return u.setxattr(a, xattrOverride, []byte(over.String()), 0)
}

// setOverride stores owner and mode in a plain user's upper. want.typ is the type of the
// view. It gives what is stored in an attribute, or nil.
func (u *Upper) setOverride(a at, want overrideStat, standIn bool) (*overrideStat, error) {
	perm, over := want.split(standIn)
	if want.typ != unix.S_IFLNK || standIn {
		if err := u.chmod(a, perm); err != nil {
			return nil, err
		}
	}
	if over != nil {
		return over, u.setxattr(a, xattrOverride, []byte(over.String()), 0)
	}
	err := u.removexattr(a, xattrOverride)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		err = nil
	}
	return nil, err
}

// natural reports whether the creating system call alone gives the object its
// owner, so that it can be made in place.
func (u *Upper) natural(o *object) bool {
	if len(o.xattrs) > 0 || o.opaque || o.lower != 0 {
		return false
	}
	if u.rootless {
		need := uint32(0o600)
		if o.typ() == unix.S_IFDIR {
			need = 0o700
		}
		return !u.standIn(o) && o.uid == 0 && o.gid == 0 &&
			(o.typ() == unix.S_IFLNK || o.mode&0o7000 == 0 && o.mode&need == need)
	}
	return o.uid == u.euid && o.gid == u.egid
}

// lowerSource is a lower inode as an object to be made, with no link to it
// recorded yet.
func (fs *FS) lowerSource(ino Ino) (*object, error) {
	a, err := fs.lower.Attr(ino)
	if err != nil {
		return nil, err
	}
	o := &object{
		mode: a.Mode, uid: a.UID, gid: a.GID, rdev: a.Rdev, size: a.Size,
		mtime: &a.Mtime, atime: &a.Mtime,
	}
	if o.typ() == unix.S_IFLNK {
		if o.link, err = fs.lower.Readlink(ino); err != nil {
			return nil, err
		}
	}
	for name, value := range fs.lower.Xattrs(ino) {
		o.xattrs = append(o.xattrs, xattr{name, value})
	}
	return o, nil
}

// lowerPathOf is the absolute path of a lower inode in the lower tree, for a
// redirect; empty where it is too long to be recorded as one.
func (fs *FS) lowerPathOf(ino Ino) string {
	p := ""
	for ino != layer.RootIno {
		found := false
		for dir, name := range fs.lower.Names(ino) {
			p, ino, found = "/"+name+p, dir, true
			break
		}
		if !found || len(p) > maxRedirect {
			return ""
		}
	}
	return p
}

// maxRedirect is the longest redirect that kernel overlayfs follows by default
// (its module parameter redirect_max); for a longer path the recorded inode
// number alone leads to the lower object.
const maxRedirect = 256
