package overlay

import (
	"golang.org/x/sys/unix"
)

// renaming is one rename with both directories resolved. treeMu is held for
// writing, so nothing else looks at or moves names meanwhile.
type renaming struct {
	old, new  removal // locked directories; new may not exist
	src, dst  *node   // dst: nil where there is none
	oldDir    *node
	newDir    *node
	exchange  bool
	noReplace bool
}

// Rename is renameat2(2) with RENAME_NOREPLACE and RENAME_EXCHANGE.
// RENAME_WHITEOUT is ErrInvalid, as on kernel overlayfs: a whiteout cannot be an
// object of the view. A lower directory moves by a redirect: nothing below it is
// copied.
func (fs *FS) Rename(oldDir Ino, oldName string, newDir Ino, newName string, flags uint32) error {
	if flags&^uint32(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return ErrInvalid
	}
	if err := fs.change(); err != nil {
		return err
	}
	defer fs.changed()
	fs.treeMu.Lock()
	r := renaming{
		exchange:  flags&unix.RENAME_EXCHANGE != 0,
		noReplace: flags&unix.RENAME_NOREPLACE != 0,
	}
	err := fs.renameTree(&r, oldDir, oldName, newDir, newName)
	fs.treeMu.Unlock()
	if r.dst != nil && !r.exchange {
		fs.treeMu.RLock()
		fs.letGo(r.dst)
		fs.treeMu.RUnlock()
	}
	return err
}

// letGo drops the node of an object at the new name, where it has no name left.
func (fs *FS) letGo(n *node) {
	n.mu.Lock()
	gone := n.orphan
	n.mu.Unlock()
	if gone {
		fs.orphaned(n)
	}
}

// renameTree does the rename. Preconditions: treeMu is held for writing.
func (fs *FS) renameTree(r *renaming, oldDir Ino, oldName string, newDir Ino, newName string) error {
	if err := checkName(oldName); err != nil {
		return err
	}
	if err := checkName(newName); err != nil {
		return err
	}
	var err error
	if r.oldDir, err = fs.dirNode(oldDir); err != nil {
		return err
	}
	if r.newDir, err = fs.dirNode(newDir); err != nil {
		return err
	}
	if err := fs.resolveRename(r, oldName, newName); err != nil {
		return err
	}
	if r.dst == r.src {
		return nil // two links of one inode: rename(2) does nothing
	}
	if err := fs.prepareRename(r, oldName, newName); err != nil {
		return err
	}
	defer fs.put(r.old.p)
	defer fs.put(r.new.p)
	if r.exchange {
		err = fs.upper.rename(r.old.p.at, r.new.p.at, unix.RENAME_EXCHANGE)
	} else {
		err = fs.publishRename(r)
	}
	if err != nil {
		return err
	}
	fs.renamed(r)
	return nil
}

// resolveRename finds both names and applies the rules of rename(2).
func (fs *FS) resolveRename(r *renaming, oldName, newName string) (err error) {
	r.old.dir, r.old.d = r.oldDir, dirRef{r.oldDir.ino, r.oldDir, r.oldDir.lower}
	r.new.dir, r.new.d = r.newDir, dirRef{r.newDir.ino, r.newDir, r.newDir.lower}
	if r.old.f, err = fs.resolve(r.old.d, oldName, false); err != nil {
		return err
	}
	if r.new.f, err = fs.resolve(r.new.d, newName, false); err != nil {
		return err
	}
	switch {
	case !r.old.f.exists(), r.exchange && !r.new.f.exists():
		return errNotFound
	case r.noReplace && r.new.f.exists():
		return errExists
	}
	if r.src, err = fs.foundNode(&r.old.f); err != nil {
		return err
	}
	if !r.new.f.exists() {
		return nil
	}
	if r.dst, err = fs.foundNode(&r.new.f); err != nil || r.exchange || r.dst == r.src {
		return err
	}
	switch {
	case r.src.isDir() && !r.dst.isDir():
		return ErrNotDir
	case !r.src.isDir() && r.dst.isDir():
		return ErrIsDir
	case r.dst.isDir():
		_, err = fs.emptyLocked(r.dst)
	}
	return err
}

// foundNode is the node of what resolve found.
func (fs *FS) foundNode(f *found) (*node, error) {
	if f.verdict == nameUpper {
		return f.n, nil
	}
	return fs.node(f.ino, false)
}

// prepareRename brings everything that moves into the upper, and makes each
// directory say itself what shows through it.
func (fs *FS) prepareRename(r *renaming, oldName, newName string) (err error) {
	for _, n := range []*node{r.oldDir, r.newDir} {
		if err := fs.copyUpDir(n); err != nil {
			return err
		}
	}
	if err := fs.copyUp(r.src); err != nil {
		return err
	}
	if r.dst != nil && (r.exchange || !r.dst.isDir() && fs.severalNames(&r.new.f)) {
		if err := fs.copyUp(r.dst); err != nil {
			return err
		}
	}
	// Names again, where copy-up may have published some.
	again := r.old.f.verdict == nameLower || r.new.f.verdict == nameLower
	for _, x := range []struct {
		end  *removal
		name string
	}{{&r.old, oldName}, {&r.new, newName}} {
		if again {
			if x.end.f, err = fs.resolve(x.end.d, x.name, false); err != nil {
				return err
			}
		}
		if x.end.cover, err = fs.lowerHas(x.end.d, x.name); err != nil {
			return err
		}
	}
	if err := fs.markMoved(r.src, r.new.d, newName); err != nil {
		return err
	}
	if r.exchange {
		if err := fs.markMoved(r.dst, r.old.d, oldName); err != nil {
			return err
		}
	}
	if r.old.p, err = fs.dirPlace(r.oldDir, oldName); err != nil {
		return err
	}
	if r.new.p, err = fs.dirPlace(r.newDir, newName); err != nil {
		fs.put(r.old.p)
	}
	return err
}

// severalNames reports whether what is at a name is a lower inode with other
// names too, whose link count the upper must then keep.
func (fs *FS) severalNames(f *found) bool {
	return f.verdict == nameLower && f.lower.Nlink > 1
}

// markMoved records in an upper object, before it moves to a name, what of the
// lower belongs to it there.
func (fs *FS) markMoved(n *node, to dirRef, name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, err := fs.placeLocked(n)
	if err != nil {
		return err
	}
	defer fs.put(p)
	switch {
	case n.lower != 0 && (n.isDir() || n.metacopy.Load()):
		if path := fs.lowerPathOf(n.lower); path != "" {
			if err := fs.upper.setxattr(p.at, xattrRedirect, []byte(path), 0); err != nil {
				return err
			}
		}
		if n.isDir() {
			if err := fs.upper.setLower(p.at, n.typ, n.lower); err != nil {
				return err
			}
		}
	case n.isDir():
		hides, err := fs.hidesDir(to, name)
		if err != nil || !hides {
			return err
		}
		return fs.upper.setxattr(p.at, xattrOpaque, []byte("y"), 0)
	}
	if n.lower != 0 {
		fs.table.pin(n)
	}
	return nil
}

// publishRename moves the source over whatever is at the new name.
func (fs *FS) publishRename(r *renaming) error {
	emptied := ""
	if r.dst != nil {
		var err error
		if emptied, err = fs.makeReplaceable(r); err != nil {
			return err
		}
	}
	err := fs.moveOver(r)
	if err != nil && r.dst != nil {
		r.dst.mu.Lock()
		fs.unparkLocked(r.dst)
		r.dst.mu.Unlock()
	}
	if emptied != "" {
		if err != nil {
			fs.putBack(r, emptied)
		}
		fs.upper.discard(emptied)
	}
	return err
}

// moveOver publishes a rename, by one system call but where whiteouts are files, and
// leaves a whiteout behind where the lower has the old name. A whiteout of nothing may
// stay there: what fails after the rename fails nothing.
func (fs *FS) moveOver(r *renaming) error {
	if r.new.f.verdict == nameWhiteout && r.src.isDir() {
		// rename(2) puts no directory over a device: the whiteout changes places
		// with it, and stays where one is needed.
		if err := fs.upper.rename(r.old.p.at, r.new.p.at, unix.RENAME_EXCHANGE); err != nil {
			return err
		}
		if r.old.cover {
			return nil
		}
		if err := fs.upper.unlink(r.old.p.at, 0); err != nil {
			fs.log.Warn("remove a whiteout that hides nothing", "name", r.old.p.name, "error", err)
		}
		return nil
	}
	if !r.old.cover {
		return fs.upper.rename(r.old.p.at, r.new.p.at, 0)
	}
	overDir := r.dst != nil && r.dst.isDir()
	return fs.upper.moveLeavingWhiteout(r.old.p.at, r.new.p.at, r.new.f.verdict, overDir)
}

// makeReplaceable readies the object that a rename replaces: its node gets a
// descriptor, and where whiteouts in an upper directory would keep rename(2) from
// replacing it, an empty one takes its place. emptied is then its name in work/.
func (fs *FS) makeReplaceable(r *renaming) (emptied string, err error) {
	n := r.dst
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.upper.Load() {
		return "", nil
	}
	if !n.isDir() {
		return "", fs.holdNameLocked(n, r.newDir, r.new.p.name, r.new.f.st.Nlink < 2)
	}
	if err := fs.holdLocked(n, false); err != nil {
		return "", err
	}
	debris, err := fs.emptyLocked(n)
	if err != nil || !debris {
		return "", err
	}
	return fs.upper.exchangeEmptied(r.new.p.at)
}

// putBack undoes what makeReplaceable did to a directory, after a rename that failed.
func (fs *FS) putBack(r *renaming, emptied string) {
	err := fs.upper.rename(at{fs.upper.work, emptied}, r.new.p.at, unix.RENAME_EXCHANGE)
	if err == nil {
		return
	}
	// The view has a directory of the same attributes there, but it is another inode.
	fs.log.Warn("put back a directory that was to be replaced", "name", r.new.p.name, "error", err)
	r.dst.mu.Lock()
	fs.dirGoneLocked(r.newDir, r.dst)
	r.dst.mu.Unlock()
	fs.addSubdirs(r.newDir, 1)
}

// exchangeEmptied has a directory that holds only whiteouts change places with an
// empty, opaque one that is like it in all else, and returns the old one's name in
// work/. A crash after it changes nothing of the view but the directory's number.
func (u *Upper) exchangeEmptied(a at) (name string, err error) {
	s, err := u.stageEmptied(a)
	if err != nil {
		return "", err
	}
	if err := u.rename(s.at, a, unix.RENAME_EXCHANGE); err != nil {
		u.discard(s.name)
		return "", err
	}
	return s.name, nil
}

// stageEmptied makes an empty, opaque directory with owner, mode, times and stored
// attributes of the one at a: of a plain user's, the attributes have the owner.
func (u *Upper) stageEmptied(a at) (s staged, err error) {
	var st unix.Statx_t
	if err := u.stat(a, &st); err != nil {
		return s, err
	}
	mtime, atime := toTimespec(st.Mtime), toTimespec(st.Atime)
	o := &object{mode: uint32(st.Mode), uid: st.Uid, gid: st.Gid, opaque: true, mtime: &mtime, atime: &atime}
	if u.rootless {
		o.mode, o.uid, o.gid = o.mode&^0o7000, 0, 0
	}
	if s, err = u.stage(o); err != nil {
		return s, err
	}
	if err = u.copyXattrs(a, s.at); err != nil {
		u.unstage(s)
	}
	return s, err
}

// copyXattrs copies the stored attributes of a directory, but those that say what of
// the lower belongs to it.
func (u *Upper) copyXattrs(from, to at) error {
	list, err := u.listxattr(from)
	if err != nil {
		return err
	}
	for _, name := range splitNames(list) {
		switch name {
		case xattrOpaque, xattrRedirect, xattrIno:
			continue
		}
		value, err := u.getxattr(from, name)
		if err != nil {
			return err
		}
		if err := u.setXattrIfHeld(to, name, value); err != nil {
			return err
		}
	}
	return nil
}

// renamed brings the nodes up to date. Preconditions: treeMu is held for writing.
func (fs *FS) renamed(r *renaming) {
	fs.settle(r.src, r.newDir, r.new.p.name)
	srcDir, dstDir := r.src.isDir(), r.dst != nil && r.dst.isDir()
	if r.exchange {
		fs.settle(r.dst, r.oldDir, r.old.p.name)
		if srcDir != dstDir {
			delta := 1
			if dstDir {
				delta = -1
			}
			fs.addSubdirs(r.oldDir, -delta)
			fs.addSubdirs(r.newDir, delta)
		}
		return
	}
	if srcDir {
		fs.addSubdirs(r.oldDir, -1)
		fs.addSubdirs(r.newDir, 1)
	}
	if r.dst == nil {
		return
	}
	r.dst.mu.Lock()
	if dstDir {
		fs.dirGoneLocked(r.newDir, r.dst)
	} else if !r.dst.upper.Load() || r.new.f.st.Nlink < 2 {
		r.dst.orphan = true
	}
	r.dst.mu.Unlock()
}

func (fs *FS) addSubdirs(n *node, delta int) {
	n.mu.Lock()
	if n.subdirs >= 0 {
		n.subdirs += delta
	}
	n.mu.Unlock()
}

// settle records a node's new place. A node that was reached by descriptor, or by
// another of its names, is reached by this one from now on.
func (fs *FS) settle(n, dir *node, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.orphan {
		fs.unholdLocked(n)
	}
	fs.moveLocked(n, dir, name)
	n.ctime = keptCtime{}
}
