package overlay

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// creation is one name about to be filled in.
type creation struct {
	dir  *node // locked
	d    dirRef
	f    found        // nameFree or nameWhiteout
	p    place        // the name in the upper
	made unix.Statx_t // what was made there, once it is known; Ino 0: not yet

	// presumed: f is nameFree since the lower has no such name, and the upper was not
	// asked. What makes an object there refuses with EEXIST where it has one.
	presumed bool
}

// beginCreate makes the directory's upper and locks it, and sees that the name
// is free, or presumes it. On success the caller calls endCreate. Preconditions:
// treeMu is held.
func (fs *FS) beginCreate(dir Ino, name string) (c creation, err error) {
	if err := checkName(name); err != nil {
		return c, err
	}
	if c.dir, err = fs.changeableDir(dir); err != nil {
		return c, err
	}
	c.d = dirRef{dir, c.dir, c.dir.lower}
	c.dir.mu.Lock()
	defer func() {
		if err != nil {
			c.dir.mu.Unlock()
		}
	}()
	if c.dir.removed.Load() {
		return c, errNotFound
	}
	inLower, err := fs.lowerHas(c.d, name)
	if err != nil {
		return c, err
	}
	if c.p, err = fs.dirPlace(c.dir, name); err != nil {
		return c, err
	}
	if c.presumed = !inLower; c.presumed {
		return c, nil
	}
	if err = fs.look(&c); err != nil {
		fs.put(c.p)
	}
	return c, err
}

// look asks the upper too whether the name is free.
func (fs *FS) look(c *creation) (err error) {
	c.presumed = false
	if c.f, err = fs.resolve(c.d, c.p.name, false); err == nil && c.f.exists() {
		err = errExists
	}
	return err
}

// lookAgain reports whether to try again what failed with err, as the name was only
// presumed to be free and has a whiteout.
func (fs *FS) lookAgain(c *creation, err error) (bool, error) {
	if !c.presumed || !errors.Is(err, unix.EEXIST) {
		return false, err
	}
	err = fs.look(c)
	return err == nil, err
}

func (fs *FS) endCreate(c *creation) {
	fs.put(c.p)
	c.dir.mu.Unlock()
}

// changeableDir is a directory's node with an upper directory. Preconditions:
// treeMu is held.
func (fs *FS) changeableDir(dir Ino) (*node, error) {
	n, err := fs.dirNode(dir)
	if err != nil {
		return nil, err
	}
	return n, fs.copyUpDir(n)
}

// newObjectLocked is an object as caller creates it in a directory: with the group and
// the ACL that the directory passes on. Preconditions: dir.mu is held.
func (fs *FS) newObjectLocked(dir *node, mode uint32, c Caller) (*object, error) {
	in, err := fs.inheritanceLocked(dir)
	if err != nil {
		return nil, err
	}
	o := &object{mode: mode}
	if o.uid, err = fs.creatorUID(&c); err != nil {
		return nil, err
	}
	if in.setgid {
		o.gid = in.gid
		if o.typ() == unix.S_IFDIR {
			o.mode |= unix.S_ISGID
		}
	} else if o.gid, err = fs.creatorGID(&c); err != nil {
		return nil, err
	}
	if o.typ() == unix.S_IFLNK {
		o.mode |= 0o777
		return o, nil
	}
	if in.defaultACL != nil {
		if access, newMode, ok := inheritACL(in.defaultACL, o.mode); ok {
			o.mode = newMode
			if access != nil {
				o.xattrs = append(o.xattrs, xattr{xattrACLAccess, access})
			}
			if o.typ() == unix.S_IFDIR {
				o.xattrs = append(o.xattrs, xattr{xattrACLDefault, in.defaultACL})
			}
			return o, nil
		}
	}
	o.mode &^= c.Umask & 0o777
	return o, nil
}

// inheritanceLocked reads what a directory passes on. Preconditions: n.mu is held
// and n has an upper directory.
func (fs *FS) inheritanceLocked(n *node) (*inheritance, error) {
	if n.inherit != nil {
		return n.inherit, nil
	}
	p, err := fs.placeLocked(n)
	if err != nil {
		return nil, err
	}
	defer fs.put(p)
	var st unix.Statx_t
	if err := fs.upper.stat(p.at, &st); err != nil {
		return nil, err
	}
	in := &inheritance{setgid: st.Mode&unix.S_ISGID != 0, gid: st.Gid}
	if fs.upper.rootless {
		in.gid = 0
	}
	if n.over != nil {
		in.setgid, in.gid = n.over.mode&unix.S_ISGID != 0, n.over.gid
	}
	in.defaultACL, err = fs.upper.getxattr(p.at, xattrACLDefault)
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, err
	}
	n.inherit = in
	return in, nil
}

// make creates the object at the name. fd is a regular file's.
func (fs *FS) make(c *creation, o *object) (fd int, err error) {
	for again := true; again; {
		if fd, err = fs.makeAt(c, o); err == nil {
			return fd, nil
		}
		again, err = fs.lookAgain(c, err)
	}
	return -1, err
}

// makeAt creates the object in place where one system call makes it whole, else in
// work/, published by one rename.
func (fs *FS) makeAt(c *creation, o *object) (fd int, err error) {
	u := fs.upper
	if c.f.verdict == nameFree && u.natural(o) {
		return fs.makeInPlace(c, o)
	}
	if o.typ() == unix.S_IFDIR && c.f.verdict == nameWhiteout {
		if o.opaque, err = fs.hidesDir(c.d, c.p.name); err != nil {
			return -1, err
		}
	}
	s, err := u.stage(o)
	if err != nil {
		return -1, err
	}
	flags := uint(unix.RENAME_NOREPLACE)
	if c.f.verdict == nameWhiteout {
		flags = 0
		if o.typ() == unix.S_IFDIR {
			flags = unix.RENAME_EXCHANGE
		}
	}
	if err := u.rename(s.at, c.p.at, flags); err != nil {
		u.unstage(s)
		return -1, err
	}
	if flags == unix.RENAME_EXCHANGE {
		u.discard(s.name) // the whiteout
	}
	return s.fd, nil
}

// makeInPlace makes an object that the creating system call makes whole, unless the
// process's umask or a setgid parent has its say.
func (fs *FS) makeInPlace(c *creation, o *object) (fd int, err error) {
	u := fs.upper
	if fd, err = u.makeNode(c.p.at, o); err != nil {
		return -1, err
	}
	st := &c.made
	a := c.p.at
	if fd >= 0 {
		a = at{fd, ""}
	}
	changed := false
	if err = u.stat(a, st); err == nil && o.typ() != unix.S_IFLNK && uint32(st.Mode)&0o7777 != o.mode&0o7777 {
		changed = true
		err = u.chmod(a, o.mode&0o7777)
	}
	if err == nil && !u.rootless && (st.Gid != o.gid || st.Uid != o.uid) {
		changed = true
		err = u.chown(a, int(o.uid), int(o.gid))
	}
	if err == nil && changed {
		err = u.stat(a, st)
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		flags := 0
		if o.typ() == unix.S_IFDIR {
			flags = unix.AT_REMOVEDIR
		}
		_ = unix.Unlinkat(c.p.dir, c.p.name, flags)
		return -1, err
	}
	return fd, nil
}

// hidesDir reports whether the lower has a directory at a name, which a new upper
// directory there must not show.
func (fs *FS) hidesDir(d dirRef, name string) (bool, error) {
	if d.lower == 0 {
		return false, nil
	}
	ino, err := fs.lowerPath(d.lower, name)
	return ino != 0, err
}

// created enters a new object into the table, with one reference of the kernel.
func (fs *FS) created(c *creation, o *object) (*node, Attr, error) {
	st := &c.made
	if st.Ino == 0 {
		if err := fs.upper.stat(c.p.at, st); err != nil {
			return nil, Attr{}, err
		}
	}
	n := newNode(upperIno(st.Ino), o.typ(), 0)
	n.parent, n.name = c.dir, c.p.name
	n.over = overrideOf(fs.upper, o)
	n.upper.Store(true)
	n.upperIno = st.Ino
	n.noCaps = true
	if n.isDir() {
		n.subdirs = 0
		if c.dir.subdirs >= 0 {
			c.dir.subdirs++
		}
	}
	n = fs.table.add(n, true)
	n.mu.Lock()
	defer n.mu.Unlock()
	a, err := fs.upperAttrLocked(n, st)
	return n, a, err
}

// mknod is the common way of every operation that makes a new inode.
func (fs *FS) mknod(dir Ino, name string, mode uint32, rdev uint64, link string, c Caller) (Attr, error) {
	if err := fs.change(); err != nil {
		return Attr{}, err
	}
	defer fs.changed()
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	cr, err := fs.beginCreate(dir, name)
	if err != nil {
		return Attr{}, err
	}
	defer fs.endCreate(&cr)
	o, err := fs.newObjectLocked(cr.dir, mode, c)
	if err != nil {
		return Attr{}, err
	}
	o.rdev, o.link = rdev, link
	fd, err := fs.make(&cr, o)
	if err != nil {
		return Attr{}, err
	}
	if fd >= 0 {
		defer unix.Close(fd)
	}
	_, a, err := fs.created(&cr, o)
	return a, err
}

// Mkdir makes a directory. It counts one reference of the kernel, as Mknod,
// Symlink, Link, Create and Tmpfile do.
func (fs *FS) Mkdir(dir Ino, name string, mode uint32, c Caller) (Attr, error) {
	return fs.mknod(dir, name, mode&0o1777|unix.S_IFDIR, 0, "", c)
}

// Mknod makes a file, device, fifo or socket. Character device 0/0 is the
// format's whiteout and refused, as kernel overlayfs refuses it.
func (fs *FS) Mknod(dir Ino, name string, mode uint32, rdev uint64, c Caller) (Attr, error) {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFBLK:
	case unix.S_IFCHR:
		if rdev == 0 {
			return Attr{}, errWhiteoutNode
		}
	default:
		return Attr{}, ErrInvalid
	}
	return fs.mknod(dir, name, mode, rdev, "", c)
}

// Symlink makes a symbolic link.
func (fs *FS) Symlink(dir Ino, name, target string, c Caller) (Attr, error) {
	return fs.mknod(dir, name, unix.S_IFLNK|0o777, 0, target, c)
}

// Create makes a regular file and opens it. The flags of open(2) say nothing here: the
// name must not exist, whether or not O_EXCL is among them.
func (fs *FS) Create(dir Ino, name string, _, mode uint32, c Caller) (*Handle, Attr, error) {
	if err := fs.change(); err != nil {
		return nil, Attr{}, err
	}
	defer fs.changed()
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	cr, err := fs.beginCreate(dir, name)
	if err != nil {
		return nil, Attr{}, err
	}
	defer fs.endCreate(&cr)
	o, err := fs.newObjectLocked(cr.dir, mode&0o7777|unix.S_IFREG, c)
	if err != nil {
		return nil, Attr{}, err
	}
	fd, err := fs.make(&cr, o)
	if err != nil {
		return nil, Attr{}, err
	}
	n, a, err := fs.created(&cr, o)
	if err != nil {
		_ = unix.Close(fd)
		return nil, Attr{}, err
	}
	return fs.openCreated(n, fd), a, nil
}

// openCreated is the handle of a file that was made and is open as fd.
func (fs *FS) openCreated(n *node, fd int) *Handle {
	fs.table.ref(n)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.opens++
	if n.file.Load() == nil {
		n.file.Store(&openFile{fd: fd, writable: true})
	} else {
		_ = unix.Close(fd)
	}
	return &Handle{fs: fs, n: n}
}

var (
	errExists       = &fs.PathError{Op: "create", Path: "name", Err: fs.ErrExist}
	errLinkDir      = &fs.PathError{Op: "link", Path: "directory", Err: fs.ErrPermission}
	errWhiteoutNode = &fs.PathError{Op: "mknod", Path: "character device 0/0", Err: fs.ErrPermission}
)
