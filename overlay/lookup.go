package overlay

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// verdict is what a name in a directory of the view resolves to.
type verdict uint8

const (
	// nameFree: nothing, and nothing in the upper; an object can be published there.
	nameFree verdict = iota
	// nameWhiteout: nothing, but a whiteout is in the upper; creation must replace it.
	nameWhiteout
	// nameLower: a lower object that has nothing at this name in the upper.
	nameLower
	// nameUpper: an upper object; found.n is its node.
	nameUpper
)

// found is the result of resolving one name.
type found struct {
	verdict verdict
	ino     Ino          // nameLower, nameUpper
	typ     uint32       // S_IFMT bits; nameLower, nameUpper
	n       *node        // nameUpper
	st      unix.Statx_t // nameUpper
	lower   layer.Attr   // nameLower
}

func (f *found) exists() bool { return f.verdict == nameLower || f.verdict == nameUpper }

// dirRef is a directory of the view: with no node it is lower alone.
type dirRef struct {
	ino   Ino
	n     *node // may be nil
	lower Ino   // the lower directory that shows through; 0: none
}

func (d dirRef) hasUpper() bool { return d.n != nil && d.n.upper.Load() }

// dir finds a directory by number. Preconditions: treeMu is held.
func (fs *FS) dir(ino Ino) (dirRef, error) {
	n, touched := fs.table.get(ino)
	if n == nil && touched {
		var err error
		if n, err = fs.dirNode(ino); err != nil {
			return dirRef{}, err
		}
	}
	if n != nil {
		if !n.isDir() {
			return dirRef{}, ErrNotDir
		}
		return dirRef{ino, n, n.lower}, nil
	}
	if !isLower(ino) {
		return dirRef{}, ErrStale
	}
	a, err := fs.lower.Attr(ino)
	if err != nil {
		return dirRef{}, err
	}
	if a.Mode&unix.S_IFMT != unix.S_IFDIR {
		return dirRef{}, ErrNotDir
	}
	return dirRef{ino, nil, ino}, nil
}

// dirNode is the node of a directory, made where it had none by going down from
// the nearest ancestor that has one. Preconditions: treeMu is held.
func (fs *FS) dirNode(ino Ino) (*node, error) {
	if n, _ := fs.table.get(ino); n != nil {
		if !n.isDir() {
			return nil, ErrNotDir
		}
		return n, nil
	}
	if !isLower(ino) {
		return nil, ErrStale
	}
	for dir, name := range fs.lower.Names(ino) {
		parent, err := fs.dirNode(dir)
		if err != nil {
			return nil, err
		}
		f, err := fs.resolve(dirRef{dir, parent, parent.lower}, name, false)
		if err != nil {
			return nil, err
		}
		switch {
		case !f.exists() || f.ino != ino || f.typ != unix.S_IFDIR:
			return nil, ErrStale
		case f.verdict == nameUpper:
			return f.n, nil
		}
		return fs.table.add(newLowerNode(parent, name, ino, unix.S_IFDIR), false), nil
	}
	return nil, ErrStale
}

func newLowerNode(parent *node, name string, ino Ino, typ uint32) *node {
	n := newNode(ino, typ, ino)
	n.parent, n.name = parent, name
	return n
}

// resolve finds what a name in a directory is. ref counts a reference of the
// kernel to a node that is found. Preconditions: treeMu is held.
func (fs *FS) resolve(d dirRef, name string, ref bool) (found, error) {
	if len(name) > NameMax {
		return found{}, ErrNameTooLong
	}
	var f found
	if d.n != nil && d.n.removed.Load() {
		return f, nil
	}
	if d.hasUpper() {
		p, err := fs.dirPlace(d.n, name)
		if err != nil {
			return f, err
		}
		defer fs.put(p)
		switch err := fs.upper.stat(p.at, &f.st); {
		case err == nil:
			white, err := fs.upper.isWhiteout(p.at, &f.st)
			if err != nil {
				return f, err
			}
			if white {
				f.verdict = nameWhiteout
				return f, nil
			}
			return f, fs.adopt(d, p.at, &f, ref)
		case !isNotExist(err):
			return f, err
		}
	}
	if d.lower == 0 {
		return f, nil
	}
	ino, err := fs.lower.Lookup(d.lower, name)
	if isNotExist(err) {
		return f, nil
	}
	if err != nil {
		return f, err
	}
	if f.lower, err = fs.lower.Attr(ino); err != nil {
		return f, err
	}
	f.verdict, f.ino, f.typ = nameLower, ino, f.lower.Mode&unix.S_IFMT
	return f, nil
}

// dirPlace is a name in a directory that is in the upper. Preconditions: treeMu
// is held.
func (fs *FS) dirPlace(dir *node, name string) (place, error) {
	d, err := fs.dirFD(dir)
	if err != nil {
		return place{}, err
	}
	return place{at{d.fd, name}, d}, nil
}

// adopt finds or makes the node of an upper object. A moved directory's stays for
// good: what is lower below it is found through it alone. Preconditions: treeMu
// is held.
func (fs *FS) adopt(d dirRef, a at, f *found, ref bool) error {
	if n := fs.table.byUpper(f.st.Ino, ref); n != nil {
		fs.relocate(n, d.n, a.name)
		f.verdict, f.ino, f.typ, f.n = nameUpper, n.ino, n.typ, n
		return nil
	}
	m, err := fs.upper.meta(a)
	if err != nil {
		return err
	}
	id, err := fs.identify(d, a.name, uint32(f.st.Mode)&unix.S_IFMT, f.st.Ino, m)
	if err != nil {
		return err
	}
	n := newNode(id.ino, id.typ, id.lower)
	n.parent, n.name, n.over = d.n, a.name, m.override
	if n.metacopy.Store(m.metacopy && id.lower != 0); n.metacopy.Load() {
		n.filling = m.filling
	}
	n.upper.Store(true)
	n.pinned = id.typ == unix.S_IFDIR && id.lower != 0 && !fs.atHome(d, a.name, id.lower)
	have := fs.table.add(n, ref)
	if have == n {
		fs.table.touch(n)
	} else {
		fs.published(have, n)
		fs.relocate(have, d.n, a.name)
	}
	fs.table.setUpper(have, f.st.Ino)
	f.verdict, f.ino, f.typ, f.n = nameUpper, have.ino, have.typ, have
	return nil
}

// atHome reports whether the lower tree has inode ino at this name.
func (fs *FS) atHome(d dirRef, name string, ino Ino) bool {
	if d.lower == 0 {
		return false
	}
	got, err := fs.lower.Lookup(d.lower, name)
	return err == nil && got == ino
}

// published gives a node that was lower alone the upper object that seen was read
// from: a copy-up whose end it has not been told yet, or whose other names were
// not linked before a crash.
func (fs *FS) published(n, seen *node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.upper.Load() {
		return
	}
	n.over, n.filling = seen.over, seen.filling
	n.metacopy.Store(seen.metacopy.Load())
	fs.moveLocked(n, seen.parent, seen.name)
	n.upper.Store(true)
	fs.table.touch(n)
}

// relocate tells a node that was in the table already of a name that leads to it.
func (fs *FS) relocate(n, parent *node, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.heldLocked() || n.isDir() {
		return
	}
	fs.unholdLocked(n)
	n.orphan = false
	fs.moveLocked(n, parent, name)
}

// moveLocked records where a node is now. Preconditions: n.mu is held, and of a
// directory treeMu.W.
func (fs *FS) moveLocked(n, parent *node, name string) {
	if n.parent != parent {
		fs.table.reparent(n.parent, parent)
		n.parent = parent
	}
	if n.name != name {
		n.name = name
	}
}

// identity is which inode of the view an upper object is.
type identity struct {
	ino   Ino
	typ   uint32
	lower Ino
}

// identify applies the format's rules (docs/upper-format.md): a recorded lower
// number; for directories also a redirect, or the lower directory of that name.
func (fs *FS) identify(d dirRef, name string, typ uint32, stIno uint64, m upperMeta) (identity, error) {
	if m.override != nil && m.override.typ != 0 {
		typ = m.override.typ
	}
	id := identity{ino: upperIno(stIno), typ: typ}
	lower := m.lower
	switch typ {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		var err error
		if lower, err = fs.mergedBelow(d, name, m); err != nil {
			return id, err
		}
	}
	if lower == 0 {
		return id, nil
	}
	a, err := fs.lower.Attr(lower)
	if err != nil || a.Mode&unix.S_IFMT != typ {
		fs.log.Warn("upper object records a lower inode that is not its kind", "name", name, "ino", lower)
		return id, nil //nolint:nilerr // treated as an object of its own
	}
	id.ino, id.lower = lower, lower
	return id, nil
}

// mergedBelow is the lower directory that shows through an upper one; 0: none.
func (fs *FS) mergedBelow(d dirRef, name string, m upperMeta) (Ino, error) {
	switch {
	case m.opaque:
		return 0, nil
	case m.lower != 0:
		return m.lower, nil
	case strings.HasPrefix(m.redirect, "/"):
		return fs.lowerPath(layer.RootIno, path.Clean(m.redirect)[1:])
	case m.redirect != "":
		name = m.redirect
	}
	if d.lower == 0 {
		return 0, nil
	}
	return fs.lowerPath(d.lower, name)
}

// lowerPath walks a path in the lower tree; 0 where it leads to no directory.
func (fs *FS) lowerPath(dir Ino, p string) (Ino, error) {
	if p == "" || p == "." {
		return dir, nil
	}
	for _, name := range strings.Split(p, "/") {
		next, err := fs.lower.Lookup(dir, name)
		if err != nil {
			if isNotExist(err) {
				return 0, nil
			}
			return 0, err
		}
		a, err := fs.lower.Attr(next)
		if err != nil {
			return 0, err
		}
		if a.Mode&unix.S_IFMT != unix.S_IFDIR {
			return 0, nil
		}
		dir = next
	}
	return dir, nil
}

// Lookup finds name in dir and counts one reference of the kernel to it.
func (fs *FS) Lookup(dir Ino, name string) (Attr, error) {
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	d, err := fs.dir(dir)
	if err != nil {
		return Attr{}, err
	}
	f, err := fs.resolve(d, name, true)
	if err != nil {
		return Attr{}, err
	}
	a, err := fs.foundAttr(&f)
	switch {
	case f.verdict == nameLower && err == nil:
		fs.table.refLower(f.ino)
	case f.verdict == nameUpper && err != nil:
		fs.table.unrefLookup(f.n) // the kernel sends no FORGET for a failure
	}
	return a, err
}

// LookupPath finds a path ("a/b"; "." is the root) with no symlink followed and
// no reference counted.
func (fs *FS) LookupPath(p string) (Attr, error) {
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	ino := fs.root.ino
	if p == "." || p == "" {
		return fs.getAttr(ino)
	}
	var f found
	for _, name := range strings.Split(p, "/") {
		d, err := fs.dir(ino)
		if err != nil {
			return Attr{}, err
		}
		if f, err = fs.resolve(d, name, false); err != nil {
			return Attr{}, err
		}
		if !f.exists() {
			return Attr{}, errNotFound
		}
		ino = f.ino
	}
	return fs.foundAttr(&f)
}

// foundAttr describes what resolve found.
func (fs *FS) foundAttr(f *found) (Attr, error) {
	switch f.verdict {
	case nameLower:
		if n, touched := fs.table.get(f.ino); n != nil || touched {
			return fs.getAttr(f.ino)
		}
		return fs.lowerAttr(f.lower), nil
	case nameUpper:
		f.n.mu.Lock()
		defer f.n.mu.Unlock()
		return fs.upperAttrLocked(f.n, &f.st)
	case nameFree, nameWhiteout:
	}
	return Attr{}, errNotFound
}
