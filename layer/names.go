package layer

import (
	"encoding/binary"
	"iter"
)

// nameRefOf is one name of an inode.
type nameRefOf struct {
	parent Ino
	name   string
}

// numNames is how many names an inode has: 0 for the root alone.
func (r *inodeRow) numNames() uint32 {
	switch {
	case r.flags&flagNames != 0:
		return r.dirent
	case r.parent != 0:
		return 1
	}
	return 0
}

// nameRef is the i-th name of the inode in row r.
func (t *Tree) nameRef(r *inodeRow, i uint32) (nameRefOf, error) {
	if i >= r.numNames() {
		return nameRefOf{}, ErrCorrupt
	}
	parent, dirent := r.parent, r.dirent
	if r.flags&flagNames != 0 {
		at := (uint64(r.parent) + uint64(i)) * nameSize
		if at+nameSize > uint64(len(t.names)) {
			return nameRefOf{}, ErrCorrupt
		}
		parent = binary.LittleEndian.Uint32(t.names[at:])
		dirent = binary.LittleEndian.Uint32(t.names[at+4:])
	}
	at := uint64(dirent) * direntSize
	if at+direntSize > uint64(len(t.dirents)) || parent == 0 {
		return nameRefOf{}, ErrCorrupt
	}
	var d direntRow
	d.get(t.dirents[at:])
	name, err := t.outStr(uint64(d.name), uint64(d.nameLen))
	return nameRefOf{Ino(parent), name}, err
}

// Names yields every (parent directory, name) of an inode, by number of the
// directory, then by name. A directory has one, the root none. It stops at a
// damaged record.
func (t *Tree) Names(ino Ino) iter.Seq2[Ino, string] {
	return func(yield func(Ino, string) bool) {
		var err error // of a fault: the end, as of damage
		defer catchFault(guardFaults(), &err)
		var r inodeRow
		if t.row(ino, &r) != nil {
			return
		}
		for i := range r.numNames() {
			ref, err := t.nameRef(&r, i)
			if err != nil || !yield(ref.parent, ref.name) {
				return
			}
		}
	}
}
