package overlay

import (
	"golang.org/x/sys/unix"
)

// Link gives an inode another name.
func (fs *FS) Link(ino, dir Ino, name string) (Attr, error) {
	if err := fs.change(); err != nil {
		return Attr{}, err
	}
	defer fs.changed()
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	n, err := fs.node(ino, false)
	if err != nil {
		return Attr{}, err
	}
	if n.isDir() {
		return Attr{}, errLinkDir
	}
	if err := fs.copyUp(n); err != nil {
		return Attr{}, err
	}
	cr, err := fs.beginCreate(dir, name)
	if err != nil {
		return Attr{}, err
	}
	defer fs.endCreate(&cr)
	if err := fs.look(&cr); err != nil { // not later: n may be what is there, and is locked then
		return Attr{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := fs.linkLocked(n, &cr); err != nil {
		return Attr{}, err
	}
	if n.parent != cr.dir || n.name != name {
		fs.table.setOther(n, cr.dir, name)
	}
	fs.table.refLookup(n)
	var st unix.Statx_t
	if err := fs.upper.stat(cr.p.at, &st); err != nil {
		return Attr{}, err
	}
	return fs.upperAttrLocked(n, &st)
}

// linkLocked puts one more link to n at a name. Preconditions: n.mu is held.
func (fs *FS) linkLocked(n *node, cr *creation) error {
	from, err := fs.placeLocked(n)
	if err != nil {
		return err
	}
	defer fs.put(from)
	if cr.f.verdict == nameFree {
		err = fs.upper.link(from.at, cr.p.at)
	} else {
		name := fs.upper.stageName()
		if err = fs.upper.link(from.at, at{fs.upper.work, name}); err == nil {
			if err = fs.upper.rename(at{fs.upper.work, name}, cr.p.at, 0); err != nil {
				fs.upper.discard(name)
			}
		}
	}
	if err != nil {
		return err
	}
	if n.heldLocked() {
		fs.unholdLocked(n)
		fs.moveLocked(n, cr.dir, cr.p.name)
	}
	n.orphan = false
	if n.lower != 0 {
		fs.table.pin(n)
	}
	return nil
}
