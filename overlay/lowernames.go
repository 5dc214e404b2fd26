package overlay

import (
	"errors"

	"golang.org/x/sys/unix"
)

// namedIn is a name in a directory.
type namedIn struct {
	parent *node
	name   string
}

// lowerNames lists the names of a lower inode that still lead to it.
func (fs *FS) lowerNames(n *node) ([]namedIn, error) {
	if err := fs.findMovedDirs(n.lower); err != nil {
		return nil, err
	}
	var out []namedIn
	for dir, name := range fs.lower.Names(n.lower) {
		parent, err := fs.dirNode(dir)
		if errors.Is(err, ErrStale) {
			continue // the directory itself is gone
		}
		if err != nil {
			return nil, err
		}
		f, err := fs.resolve(dirRef{dir, parent, parent.lower}, name, false)
		if err != nil {
			return nil, err
		}
		if f.verdict == nameLower && f.ino == n.lower {
			out = append(out, namedIn{parent, name})
		}
	}
	return out, nil
}

// findMovedDirs finds, once, the directories that an earlier mount moved: another
// name of a hard-linked file may lie below one. They are found in the upper alone.
func (fs *FS) findMovedDirs(ino Ino) error {
	a, err := fs.lower.Attr(ino)
	if err != nil || a.Nlink < 2 {
		return err
	}
	fs.movedMu.Lock()
	defer fs.movedMu.Unlock()
	if fs.movedFound {
		return nil
	}
	if err := fs.findMovedBelow(dirRef{fs.root.ino, fs.root, fs.root.lower}); err != nil {
		return err
	}
	fs.movedFound = true
	return nil
}

// findMovedBelow enters the moved directories below d into the table.
func (fs *FS) findMovedBelow(d dirRef) error {
	if !d.hasUpper() || d.n.removed.Load() {
		return nil
	}
	entries, err := fs.listUpper(d.n)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.typ != unix.S_IFDIR && e.typ != 0 {
			continue
		}
		f, err := fs.resolve(d, e.name, false)
		if err != nil {
			return err
		}
		if f.verdict != nameUpper || !f.n.isDir() {
			continue
		}
		if err := fs.findMovedBelow(dirRef{f.ino, f.n, f.n.lower}); err != nil {
			return err
		}
	}
	return nil
}
