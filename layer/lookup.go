package layer

import (
	"errors"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// dir gives a directory's dirents as the index of the first and their number.
func (t *Tree) dir(ino Ino) (first, n uint64, err error) {
	var r inodeRow
	if err := t.row(ino, &r); err != nil {
		return 0, 0, err
	}
	if r.mode&unix.S_IFMT != unix.S_IFDIR {
		return 0, 0, ErrType
	}
	total := uint64(len(t.dirents) / direntSize)
	if r.data > total || r.size > total-r.data {
		return 0, 0, ErrCorrupt
	}
	return r.data, r.size, nil
}

// direntName is a dirent's name.
func (t *Tree) direntName(d *direntRow) (string, error) {
	return t.str(uint64(d.name), uint64(d.nameLen))
}

// Lookup finds name in directory dir by binary search. The error is
// fs.ErrNotExist where there is no such name, ErrType where dir is no directory.
func (t *Tree) Lookup(dir Ino, name string) (_ Ino, err error) {
	defer catchFault(guardFaults(), &err)
	lo, n, err := t.dir(dir)
	if err != nil {
		return 0, err
	}
	prefix := namePrefix(name)
	var d direntRow
	for hi := lo + n; lo < hi; {
		mid := lo + (hi-lo)/2
		d.get(t.dirents[mid*direntSize:])
		if d.prefix != prefix {
			if d.prefix < prefix {
				lo = mid + 1
			} else {
				hi = mid
			}
			continue
		}
		have, err := t.direntName(&d)
		if err != nil {
			return 0, err
		}
		switch strings.Compare(have, name) {
		case -1:
			lo = mid + 1
		case 1:
			hi = mid
		default:
			return Ino(d.ino), nil
		}
	}
	return 0, fs.ErrNotExist
}

// NumEntries is how many names directory dir holds, "." and ".." not among them.
func (t *Tree) NumEntries(dir Ino) (_ int, err error) {
	defer catchFault(guardFaults(), &err)
	_, n, err := t.dir(dir)
	return int(n), err
}

// Entry is the i-th name of directory dir, sorted by bytes, 0 ≤ i < NumEntries;
// beyond it is fs.ErrNotExist.
func (t *Tree) Entry(dir Ino, i int) (_ Dirent, err error) {
	defer catchFault(guardFaults(), &err)
	first, n, err := t.dir(dir)
	if err != nil {
		return Dirent{}, err
	}
	if i < 0 || uint64(i) >= n {
		return Dirent{}, fs.ErrNotExist
	}
	var d direntRow
	d.get(t.dirents[(first+uint64(i))*direntSize:])
	name, err := t.outStr(uint64(d.name), uint64(d.nameLen))
	if err != nil {
		return Dirent{}, err
	}
	return Dirent{Name: name, Ino: Ino(d.ino), Mode: uint32(d.typ)}, nil
}

// LookupPath finds the inode at path: "a/b", or "." for the root. No symlink is
// followed, and "." and ".." are no names. The error is fs.ErrNotExist where the
// path leads nowhere, also through something that is no directory.
func (t *Tree) LookupPath(path string) (Ino, error) {
	ino := RootIno
	if path == "." {
		return ino, nil
	}
	for {
		name, rest, more := strings.Cut(path, "/")
		next, err := t.Lookup(ino, name)
		if errors.Is(err, ErrType) {
			return 0, fs.ErrNotExist
		}
		if err != nil || !more {
			return next, err
		}
		ino, path = next, rest
	}
}

// PathOf is the path of an inode's first name, as LookupPath takes it.
func (t *Tree) PathOf(ino Ino) (_ string, err error) {
	defer catchFault(guardFaults(), &err)
	if ino == RootIno {
		return ".", nil
	}
	var parts []string
	for ino != RootIno {
		var r inodeRow
		if err := t.row(ino, &r); err != nil {
			return "", err
		}
		ref, err := t.nameRef(&r, 0)
		if err != nil {
			return "", err
		}
		// A directory's number is below those of all in it, and the first name is
		// in the lowest: a cycle would be corrupt.
		if ref.parent >= ino {
			return "", ErrCorrupt
		}
		parts = append(parts, ref.name)
		ino = ref.parent
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/"), nil
}
