package overlay

import (
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// removal is one name about to go, with its directory locked.
type removal struct {
	dir   *node // locked
	d     dirRef
	f     found
	p     place
	cover bool // the lower has the name: a whiteout must hide it
}

// beginRemove resolves a name with its directory, which is then in the upper,
// locked. On success the caller calls endRemove. Preconditions: treeMu is held.
func (fs *FS) beginRemove(dir Ino, name string) (r removal, err error) {
	if err := checkName(name); err != nil {
		return r, err
	}
	if r.dir, err = fs.dirNode(dir); err != nil {
		return r, err
	}
	r.d = dirRef{dir, r.dir, r.dir.lower}
	if !r.dir.upper.Load() {
		// A name that is not there copies nothing up.
		if r.f, err = fs.resolve(r.d, name, false); err != nil {
			return r, err
		}
		if !r.f.exists() {
			return r, errNotFound
		}
		if err := fs.copyUpDir(r.dir); err != nil {
			return r, err
		}
	}
	r.dir.mu.Lock()
	if err = fs.resolveRemoval(&r, name); err != nil {
		r.dir.mu.Unlock()
	}
	return r, err
}

// resolveRemoval resolves under the directory's lock.
func (fs *FS) resolveRemoval(r *removal, name string) (err error) {
	if r.f, err = fs.resolve(r.d, name, false); err != nil {
		return err
	}
	if !r.f.exists() {
		return errNotFound
	}
	if r.cover, err = fs.lowerHas(r.d, name); err != nil {
		return err
	}
	r.p, err = fs.dirPlace(r.dir, name)
	return err
}

func (fs *FS) endRemove(r *removal) {
	fs.put(r.p)
	r.dir.mu.Unlock()
}

// lowerHas reports whether the lower directory that shows through d has a name.
func (fs *FS) lowerHas(d dirRef, name string) (bool, error) {
	if d.lower == 0 {
		return false, nil
	}
	_, err := fs.lower.Lookup(d.lower, name)
	if isNotExist(err) {
		return false, nil
	}
	return err == nil, err
}

// allowIfGone has a removal succeed when the upper directory itself was removed: the
// whole bundle is being removed, and nothing can be recorded any more.
func (fs *FS) allowIfGone(err *error) {
	if *err != nil && fs.upperGone() {
		*err = nil
	}
}

// upperGone reports whether the upper directory was removed from outside.
func (fs *FS) upperGone() bool {
	if fs.upper == nil {
		return false
	}
	var st unix.Stat_t
	return unix.Fstat(fs.upper.root, &st) == nil && st.Nlink == 0
}

// Unlink removes a name that is no directory's.
func (fs *FS) Unlink(dir Ino, name string) (err error) {
	defer fs.allowIfGone(&err)
	if err := fs.change(); err != nil {
		return err
	}
	defer fs.changed()
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	r, err := fs.beginRemove(dir, name)
	if err != nil {
		return err
	}
	if r.f.verdict == nameLower && r.f.typ != unix.S_IFDIR && r.f.lower.Nlink > 1 && !fs.neverInUpper(r.f.lower) {
		// The upper counts the links of an inode with several names, before one goes.
		fs.endRemove(&r)
		if err := fs.countedInUpper(r.f.ino); err != nil {
			return err
		}
		if r, err = fs.beginRemove(dir, name); err != nil {
			return err
		}
	}
	n, err := fs.unlinkLocked(&r)
	fs.endRemove(&r)
	if n != nil {
		fs.orphaned(n)
	}
	return err
}

// neverInUpper reports whether a lower inode has no form in the upper: a whiteout has it.
func (fs *FS) neverInUpper(a layer.Attr) bool {
	return a.Mode&unix.S_IFMT == unix.S_IFCHR && a.Rdev == 0 && !fs.upper.rootless
}

// countedInUpper copies up the metadata of a lower inode.
func (fs *FS) countedInUpper(ino Ino) error {
	n, err := fs.node(ino, false)
	if err != nil {
		return err
	}
	return fs.copyUp(n)
}

// unlinkLocked removes the name and returns the node of an inode that now has
// none. Preconditions: r.dir.mu is held.
func (fs *FS) unlinkLocked(r *removal) (*node, error) {
	if r.f.typ == unix.S_IFDIR {
		return nil, ErrIsDir
	}
	if r.f.verdict == nameLower {
		return fs.unlinkLower(r)
	}
	n := r.f.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := fs.holdNameLocked(n, r.dir, r.p.name, r.f.st.Nlink < 2); err != nil {
		return nil, err
	}
	var err error
	if r.cover {
		err = fs.upper.whiteoutOver(r.p.at)
	} else {
		err = fs.upper.unlink(r.p.at, 0)
	}
	if err != nil {
		fs.unparkLocked(n)
		return nil, err
	}
	if r.f.st.Nlink > 1 {
		return nil, nil
	}
	n.orphan = true
	return n, nil
}

// holdNameLocked is holdLocked for a name of a file that is about to go, where no other is
// known. Preconditions: treeMu and n.mu are held.
func (fs *FS) holdNameLocked(n, dir *node, name string, last bool) error {
	if n.parent != dir || n.name != name || !n.heldLocked() && n.upper.Load() && fs.moveToOtherLocked(n) {
		return nil
	}
	return fs.holdLocked(n, last)
}

// unlinkLower hides a lower inode's only name, or one of an inode that the upper cannot
// have. The node remembers that it has none, for as long as it is open or known to the
// kernel.
func (fs *FS) unlinkLower(r *removal) (*node, error) {
	n, err := fs.node(r.f.ino, false)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.upper.Load() {
		return nil, ErrStale // published by another name while this was prepared
	}
	if err := fs.upper.whiteout(r.p.at); err != nil {
		return nil, err
	}
	if r.f.lower.Nlink > 1 {
		return nil, nil
	}
	n.orphan = true
	return n, nil
}

// Rmdir removes an empty directory.
func (fs *FS) Rmdir(dir Ino, name string) (err error) {
	defer fs.allowIfGone(&err)
	if err := fs.change(); err != nil {
		return err
	}
	defer fs.changed()
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	r, err := fs.beginRemove(dir, name)
	if err != nil {
		return err
	}
	n, err := fs.rmdirLocked(&r)
	fs.endRemove(&r)
	if n != nil {
		fs.orphaned(n)
	}
	return err
}

func (fs *FS) rmdirLocked(r *removal) (*node, error) {
	if r.f.typ != unix.S_IFDIR {
		return nil, ErrNotDir
	}
	n, err := fs.dirNode(r.f.ino)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	debris, err := fs.emptyLocked(n)
	if err != nil {
		return nil, err
	}
	if r.f.verdict == nameLower {
		err = fs.upper.whiteout(r.p.at)
	} else {
		err = fs.removeUpperDirLocked(r, n, debris)
	}
	if err != nil {
		return nil, err
	}
	fs.dirGoneLocked(r.dir, n)
	return n, nil
}

// removeUpperDirLocked takes an empty directory of the view out of the upper, where it
// may hold whiteouts (debris). Preconditions: n.mu is held.
func (fs *FS) removeUpperDirLocked(r *removal, n *node, debris bool) error {
	if fs.crowded() && !n.heldLocked() {
		if name, err := fs.upper.retire(r.p.at, r.cover); err == nil {
			n.parked = name
			return nil
		}
	}
	if err := fs.holdLocked(n, false); err != nil {
		return err
	}
	if r.cover || debris {
		return fs.upper.retireDir(r.p.at, r.cover)
	}
	return fs.upper.unlink(r.p.at, unix.AT_REMOVEDIR)
}

// dirGoneLocked records that a directory has no name any more. Preconditions: parent.mu
// and n.mu are held.
func (fs *FS) dirGoneLocked(parent, n *node) {
	n.orphan = true
	n.removed.Store(true)
	if parent.subdirs > 0 {
		parent.subdirs--
	}
	fs.dirFDs.drop(n)
}

// emptyLocked reports ErrNotEmpty for a directory with names in the view; debris
// says that its upper directory still holds whiteouts. Preconditions: n.mu is
// held.
func (fs *FS) emptyLocked(n *node) (debris bool, err error) {
	hidden := 0
	if n.upper.Load() {
		entries, err := fs.listUpper(n)
		if err != nil {
			return false, err
		}
		d, err := fs.dirFD(n)
		if err != nil {
			return false, err
		}
		defer fs.dirFDs.release(d)
		for _, e := range entries {
			white, err := fs.entryIsWhiteout(d.fd, e)
			if err != nil {
				return false, err
			}
			if !white {
				return false, ErrNotEmpty
			}
			has, err := fs.lowerHas(dirRef{n.ino, n, n.lower}, e.name)
			if err != nil {
				return false, err
			}
			if has {
				hidden++
			}
		}
		debris = len(entries) > 0
	}
	if n.lower == 0 {
		return debris, nil
	}
	count, err := fs.lower.NumEntries(n.lower)
	if err != nil {
		return false, err
	}
	if hidden < count {
		return false, ErrNotEmpty
	}
	return debris, nil
}

// listUpper lists the upper directory of n. Preconditions: treeMu is held.
func (fs *FS) listUpper(n *node) ([]rawEntry, error) {
	d, err := fs.dirFD(n)
	if err != nil {
		return nil, err
	}
	defer fs.dirFDs.release(d)
	return fs.upper.readDir(d.fd)
}

// entryIsWhiteout looks at what getdents said, and at the object where that is
// not enough.
func (fs *FS) entryIsWhiteout(dirfd int, e rawEntry) (bool, error) {
	if e.typ != 0 && e.typ != unix.S_IFCHR && !(e.typ == unix.S_IFREG && fs.upper.fileWhiteouts) {
		return false, nil
	}
	var st unix.Statx_t
	a := at{dirfd, e.name}
	err := fs.upper.stat(a, &st)
	if isNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return fs.upper.isWhiteout(a, &st)
}
