package overlay

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

// node is the node of any inode, made where it had none. ref keeps it in the
// table until unref. Preconditions: treeMu is held.
func (fs *FS) node(ino Ino, ref bool) (*node, error) {
	t := &fs.table
	t.mu.Lock()
	n := t.nodes[ino]
	_, touched := t.touched[ino]
	if n != nil && ref {
		n.refs++
	}
	t.mu.Unlock()
	if n != nil {
		return n, nil
	}
	if !isLower(ino) {
		return nil, ErrStale
	}
	a, err := fs.lower.Attr(ino)
	if err != nil {
		return nil, err
	}
	switch {
	case a.Mode&unix.S_IFMT == unix.S_IFDIR:
		n, err = fs.dirNode(ino)
	case touched:
		n, err = fs.findUpper(ino)
	default:
		n = t.add(newNode(ino, a.Mode&unix.S_IFMT, ino), false)
	}
	if err == nil && ref {
		t.ref(n)
	}
	return n, err
}

// findUpper finds the upper object of a lower inode through the inode's names.
func (fs *FS) findUpper(ino Ino) (*node, error) {
	for dir, name := range fs.lower.Names(ino) {
		parent, err := fs.dirNode(dir)
		if errors.Is(err, ErrStale) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f, err := fs.resolve(dirRef{dir, parent, parent.lower}, name, false)
		if err != nil {
			return nil, err
		}
		if f.verdict == nameUpper && f.ino == ino {
			return f.n, nil
		}
	}
	return nil, ErrStale
}

// copyUp gives a node an upper object with the lower's metadata. The data of a
// regular file stays where it is. Preconditions: treeMu is held; no node.mu is.
func (fs *FS) copyUp(n *node) error { return fs.copyUpAs(n, nil) }

// copyUpAs is copyUp of an inode whose owner or mode is about to be set. Where it can, it
// makes the upper object with them, and takes them out of set.
func (fs *FS) copyUpAs(n *node, set *SetAttr) error {
	if n.upper.Load() {
		return nil
	}
	if n.isDir() && !n.removed.Load() { // else it has no name, as an unlinked file
		return fs.copyUpDirAs(n, set)
	}
	names, err := fs.lowerNames(n)
	if err != nil {
		return err
	}
	for _, at := range names {
		if err := fs.copyUpDir(at.parent); err != nil {
			return err
		}
	}
	n.copyMu.Lock()
	defer n.copyMu.Unlock()
	if n.upper.Load() {
		return nil
	}
	o, err := fs.lowerSource(n.lower)
	if err != nil {
		return err
	}
	done, err := fs.setObject(o, set)
	if err != nil {
		return err
	}
	o.lower = n.lower
	if o.typ() == unix.S_IFREG {
		o.metacopy = o.size > 0
	}
	s, err := fs.upper.stage(o)
	if err != nil {
		return err
	}
	if s.fd >= 0 {
		defer unix.Close(s.fd)
	}
	if err := fs.publishAll(n, s, o, names); err != nil {
		return err
	}
	set.without(done)
	return nil
}

// publishAll links a staged copy to every name of its lower inode, and moves it
// to the last. A name that was taken meanwhile is left out; with none left the
// object lives on its descriptor alone, as an unlinked file does. A crash in
// between is completed by finishPublishes.
func (fs *FS) publishAll(n *node, s staged, o *object, names []namedIn) error {
	if n.typ != unix.S_IFREG {
		var st unix.Statx_t
		if err := fs.upper.stat(s.at, &st); err != nil {
			fs.upper.discard(s.name)
			return err
		}
		fs.table.setUpper(n, st.Ino)
		fs.table.pin(n) // found again by its node alone
	}
	var home *namedIn
	moved := false
	for i := range names {
		to := &names[i]
		moved = i == len(names)-1 && home == nil
		err := fs.publishCopy(s.at, to, moved)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			if fs.unpublish(n, s, names[:i]) {
				fs.upper.discard(s.name)
			}
			return err
		}
		home = to
	}
	if home == nil {
		return fs.publishAnonymous(n, s, o)
	}
	if !moved {
		if err := fs.upper.unlink(s.at, 0); err != nil {
			if fs.unpublish(n, s, names) {
				fs.upper.discard(s.name)
			}
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.upper.Load() {
		return nil // a lookup found the copy before this, and may have changed it since
	}
	n.over = overrideOf(fs.upper, o)
	n.metacopy.Store(o.metacopy)
	fs.moveLocked(n, home.parent, home.name)
	n.upper.Store(true)
	fs.table.touch(n)
	return nil
}

func overrideOf(u *Upper, o *object) *overrideStat {
	if !u.rootless {
		return nil
	}
	over := &overrideStat{uid: o.uid, gid: o.gid, mode: o.mode & 0o7777}
	if u.standIn(o) {
		over.typ, over.rdev = o.typ(), o.rdev
	}
	return over
}

// publishCopy puts a staged copy at one name, and leaves the directory's times
// as they were: a copy-up is no change of it. EEXIST: the name is no longer the lower's.
func (fs *FS) publishCopy(s at, to *namedIn, move bool) error {
	to.parent.mu.Lock()
	defer to.parent.mu.Unlock()
	if to.parent.removed.Load() { // its name can be another directory's
		return pathError("copy up", at{name: to.name}, unix.EEXIST)
	}
	p, err := fs.dirPlace(to.parent, to.name)
	if err != nil {
		return err
	}
	defer fs.put(p)
	dir := at{p.dir, ""}
	var st unix.Statx_t
	if err := fs.upper.stat(dir, &st); err != nil {
		return err
	}
	if move {
		err = fs.upper.rename(s, p.at, unix.RENAME_NOREPLACE)
	} else {
		err = fs.upper.link(s, p.at)
	}
	if err != nil {
		return err
	}
	if err := fs.restoreTimesLocked(to.parent, dir, &st); err != nil {
		// The copy is there, and whole; only the directory looks changed.
		fs.log.Warn("restore a directory's times after a copy-up", "name", to.name, "error", err)
	}
	return nil
}

// unpublish takes back the names that a copy-up which failed had published, and
// reports whether it could. If not, the staged copy must stay: the next mount
// completes what it was part of.
func (fs *FS) unpublish(n *node, s staged, names []namedIn) bool {
	if n.upper.Load() {
		return false // a lookup found the copy
	}
	fs.table.unsetUpper(n)
	var copied unix.Statx_t
	if err := fs.upper.stat(s.at, &copied); err != nil {
		fs.log.Warn("take back a partial copy-up", "error", err)
		return false
	}
	ok := true
	for i := range names {
		to := &names[i]
		to.parent.mu.Lock()
		if p, err := fs.dirPlace(to.parent, to.name); err == nil {
			dir := at{p.dir, ""}
			var st, is unix.Statx_t
			err = fs.upper.stat(dir, &st)
			if err == nil && fs.upper.stat(p.at, &is) == nil && is.Ino == copied.Ino {
				if err = fs.upper.unlink(p.at, 0); err == nil {
					err = fs.restoreTimesLocked(to.parent, dir, &st)
				}
			}
			if err != nil {
				fs.log.Warn("take back a partial copy-up", "name", to.name, "error", err)
				ok = false
			}
			fs.put(p)
		}
		to.parent.mu.Unlock()
	}
	return ok
}

// publishAnonymous keeps a staged copy of an inode that has no name left.
func (fs *FS) publishAnonymous(n *node, s staged, o *object) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if fs.crowded() {
		n.parked = s.name
	} else {
		fd, err := fs.upper.unlinkStaged(s, o)
		if err != nil {
			fs.table.unsetUpper(n)
			fs.upper.discard(s.name)
			return err
		}
		fs.anchorLocked(n, fd)
	}
	n.orphan = true
	n.over = overrideOf(fs.upper, o)
	n.metacopy.Store(o.metacopy)
	n.upper.Store(true)
	return nil
}

// copyUpDir makes the upper directory of n and of its parents.
func (fs *FS) copyUpDir(n *node) error { return fs.copyUpDirAs(n, nil) }

// copyUpDirAs is copyUpDir, with what is to be set of n: see copyUpAs.
func (fs *FS) copyUpDirAs(n *node, set *SetAttr) error {
	if n.upper.Load() {
		return nil
	}
	if n == fs.root || n.removed.Load() {
		return ErrStale
	}
	if err := fs.copyUpDir(n.parent); err != nil {
		return err
	}
	n.copyMu.Lock()
	defer n.copyMu.Unlock()
	if n.upper.Load() {
		return nil
	}
	o, err := fs.lowerSource(n.lower)
	if err != nil {
		return err
	}
	showed := *o.mtime // a lower object's ctime
	done, err := fs.setObject(o, set)
	if err != nil {
		return err
	}
	s, err := fs.upper.stage(o)
	if err != nil {
		return err
	}
	if err := fs.publishCopy(s.at, &namedIn{n.parent, n.name}, true); err != nil {
		fs.upper.discard(s.name)
		if errors.Is(err, unix.EEXIST) {
			return ErrStale // removed while this was prepared
		}
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.upper.Load() {
		return nil // as in publishAll
	}
	n.over = overrideOf(fs.upper, o)
	n.subdirs = -1
	if set == nil { // else the ctime changes next
		if p, err := fs.placeLocked(n); err == nil {
			fs.keepCtimeLocked(n, p.at, showed)
			fs.put(p)
		}
	}
	n.upper.Store(true)
	fs.table.touch(n)
	set.without(done)
	return nil
}

// finishPublishes completes copy-ups of hard-linked files that a crash cut short
// between two names: a staged copy that has a link outside work/. The names that
// are still the lower's get theirs.
func (fs *FS) finishPublishes() error {
	entries, err := fs.upper.readDir(fs.upper.work)
	if err != nil {
		return err
	}
	for _, e := range entries {
		a := at{fs.upper.work, e.name}
		var st unix.Statx_t
		if err := fs.upper.stat(a, &st); err != nil {
			return err
		}
		if st.Nlink < 2 || uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		m, err := fs.upper.meta(a)
		if err != nil {
			return err
		}
		if m.lower == 0 {
			continue
		}
		if err := fs.finishPublish(a, m.lower); err != nil {
			return err
		}
	}
	return nil
}

func (fs *FS) finishPublish(a at, ino Ino) error {
	fs.log.Info("completing an interrupted copy-up of a hard-linked file", "ino", strconv.FormatUint(uint64(ino), 10))
	if err := fs.adoptRoot(true); err != nil {
		return err
	}
	lower, err := fs.lower.Attr(ino)
	if err != nil {
		return err
	}
	n := newNode(ino, lower.Mode&unix.S_IFMT, ino)
	names, err := fs.lowerNames(n)
	if err != nil {
		return err
	}
	for i := range names {
		if err := fs.copyUpDir(names[i].parent); err != nil {
			return err
		}
		if err := fs.publishCopy(a, &names[i], false); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}
