package overlay

import (
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// GetAttr describes an inode. ErrStale for the root of an upper that was removed: the
// kernel then looks at the path again (retry_estale), where OnRemoval's f has bared the
// mountpoint.
func (fs *FS) GetAttr(ino Ino) (Attr, error) {
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	a, err := fs.getAttr(ino)
	if err == nil || !fs.upperGone() {
		return a, err
	}
	if fs.leaveRoot(ino) {
		return a, ErrStale
	}
	// Whoever removes all has to know only of what kind it is.
	if n, _ := fs.table.get(ino); n != nil {
		return fs.shown(Attr{Ino: ino, Mode: n.typ | 0o700, Nlink: 1, Blksize: 4096}), nil
	}
	return a, err
}

// leaveRoot calls OnRemoval's f where it is the root that is asked for. Preconditions:
// the upper is gone.
func (fs *FS) leaveRoot(ino Ino) bool {
	if ino != fs.root.ino || fs.removed == nil {
		return false
	}
	fs.removed()
	return true
}

// getAttr is GetAttr. Preconditions: treeMu is held.
func (fs *FS) getAttr(ino Ino) (Attr, error) {
	n, touched := fs.table.get(ino)
	if n == nil && !touched {
		if !isLower(ino) {
			return Attr{}, ErrStale
		}
		a, err := fs.lower.Attr(ino)
		return fs.lowerAttr(a), err
	}
	if n == nil {
		var err error
		if n, err = fs.node(ino, false); err != nil {
			return Attr{}, err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return fs.nodeAttrLocked(n)
}

// nodeAttrLocked describes a node. Preconditions: treeMu and n.mu are held.
func (fs *FS) nodeAttrLocked(n *node) (Attr, error) {
	if !n.upper.Load() {
		a, err := fs.lower.Attr(n.lower)
		if err != nil {
			return Attr{}, err
		}
		out := fs.lowerAttr(a)
		if n.orphan {
			out.Nlink = 0
		}
		return out, nil
	}
	p, err := fs.reachLocked(n)
	if err != nil {
		return Attr{}, err
	}
	defer fs.put(p)
	var st unix.Statx_t
	if err := fs.upper.stat(p.at, &st); err != nil {
		return Attr{}, err
	}
	return fs.upperAttrLocked(n, &st)
}

// upperAttrLocked describes a node whose upper object is st. Preconditions:
// treeMu and n.mu are held.
func (fs *FS) upperAttrLocked(n *node, st *unix.Statx_t) (Attr, error) {
	a := Attr{
		Ino: n.ino, Mode: n.typ | uint32(st.Mode)&0o7777, Nlink: st.Nlink, UID: st.Uid, GID: st.Gid,
		Size: int64(st.Size), Blocks: int64(st.Blocks), Blksize: 4096,
		Atime: toTimespec(st.Atime), Mtime: toTimespec(st.Mtime),
		Ctime: n.ctimeLocked(st), Btime: toTimespec(st.Btime),
	}
	if n.parked != "" {
		a.Nlink = 0
	}
	switch n.typ {
	case unix.S_IFDIR:
		a.Size, a.Blocks = layer.DirSize, layer.DirSize/512
		nlink, err := fs.dirNlinkLocked(n)
		if err != nil {
			return a, err
		}
		a.Nlink = nlink
	case unix.S_IFREG:
		if n.metacopy.Load() {
			// A crash in the middle of a truncate leaves another length there.
			was, err := fs.lower.Attr(n.lower)
			if err != nil {
				return a, err
			}
			a.Size, a.Blocks = was.Size, was.Blocks
		}
		if k := n.filling; k != nil {
			a.Atime, a.Mtime = k.atime, k.mtime
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		a.Rdev = unix.Mkdev(st.Rdev_major, st.Rdev_minor)
		a.Size, a.Blocks = 0, 0
	case unix.S_IFIFO, unix.S_IFSOCK:
		a.Size, a.Blocks = 0, 0
	}
	if fs.upper.rootless {
		a.UID, a.GID = 0, 0
		if o := n.over; o != nil {
			a.UID, a.GID, a.Mode = o.uid, o.gid, n.typ|o.mode
			if o.typ == unix.S_IFCHR || o.typ == unix.S_IFBLK {
				a.Rdev = o.rdev
			}
		}
		if n.typ == unix.S_IFLNK {
			a.Mode = unix.S_IFLNK | 0o777
		}
	}
	return fs.shown(a), nil
}

// dirNlinkLocked is 2 and the number of subdirectories of the merged view, as on
// ext4; 0 for a directory that was removed. Preconditions: treeMu and n.mu held.
func (fs *FS) dirNlinkLocked(n *node) (uint32, error) {
	if n.removed.Load() {
		return 0, nil
	}
	if n.subdirs < 0 {
		count, err := fs.countSubdirs(n)
		if err != nil {
			return 0, err
		}
		n.subdirs = count
	}
	return uint32(2 + n.subdirs), nil
}

func (fs *FS) countSubdirs(n *node) (int, error) {
	count := 0
	if n.lower != 0 {
		a, err := fs.lower.Attr(n.lower)
		if err != nil {
			return 0, err
		}
		count = int(a.Nlink) - 2
	}
	d, err := fs.dirFD(n)
	if err != nil {
		return 0, err
	}
	defer fs.dirFDs.release(d)
	entries, err := fs.upper.readDir(d.fd)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		hides, err := fs.hidesDir(dirRef{n.ino, n, n.lower}, e.name)
		if err != nil {
			return 0, err
		}
		typ := e.typ
		if typ == 0 {
			var st unix.Statx_t
			if err := fs.upper.stat(at{d.fd, e.name}, &st); err != nil {
				return 0, err
			}
			typ = uint32(st.Mode) & unix.S_IFMT
		}
		switch {
		case typ == unix.S_IFDIR && !hides:
			count++
		case typ != unix.S_IFDIR && hides:
			count--
		}
	}
	return count, nil
}

// Readlink is a symlink's target.
func (fs *FS) Readlink(ino Ino) (string, error) {
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	n, touched := fs.table.get(ino)
	if n == nil && touched {
		var err error
		if n, err = fs.node(ino, false); err != nil {
			return "", err
		}
	}
	if n == nil || !n.upper.Load() {
		if !isLower(ino) {
			return "", ErrStale
		}
		return fs.lower.Readlink(ino)
	}
	if n.typ != unix.S_IFLNK {
		return "", ErrInvalid
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p, err := fs.placeLocked(n)
	if err != nil {
		return "", err
	}
	defer fs.put(p)
	if n.over != nil && n.over.typ == unix.S_IFLNK {
		return fs.upper.readStandIn(p.at)
	}
	return fs.upper.readlink(p.at)
}

// readStandIn reads the target of a symlink kept as a regular file.
func (u *Upper) readStandIn(a at) (string, error) {
	fd, err := u.open(a, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Pread(fd, buf, 0)
	if err != nil {
		return "", pathError("read", a, err)
	}
	return string(buf[:n]), nil
}

// SyncDir is fsync(2) of a directory.
func (fs *FS) SyncDir(ino Ino) error {
	fs.treeMu.RLock()
	d, err := fs.dir(ino)
	if err != nil || !d.hasUpper() || d.n.removed.Load() {
		fs.treeMu.RUnlock()
		return err
	}
	fd, err := fs.openUpper(d.n, unix.O_RDONLY|unix.O_DIRECTORY)
	fs.treeMu.RUnlock()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return syncFD(fd, false)
}
