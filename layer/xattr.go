package layer

import (
	"encoding/binary"
	"iter"
)

// xattrRun is an inode's attributes as a run of the xattr section.
func (t *Tree) xattrRun(r *inodeRow) ([]byte, error) {
	if r.xattrs == 0 {
		return nil, nil
	}
	at := (uint64(r.xattrs) - 1) * xattrSetSize
	if at+xattrSetSize > uint64(len(t.xattrSets)) {
		return nil, ErrCorrupt
	}
	first := uint64(binary.LittleEndian.Uint32(t.xattrSets[at:])) * xattrSize
	size := uint64(binary.LittleEndian.Uint32(t.xattrSets[at+4:])) * xattrSize
	if first > uint64(len(t.xattrs)) || size > uint64(len(t.xattrs))-first {
		return nil, ErrCorrupt
	}
	return t.xattrs[first : first+size], nil
}

// xattr decodes one record of the xattr section.
func (t *Tree) xattr(b []byte) (name, value string, err error) {
	le := binary.LittleEndian
	if name, err = t.outStr(uint64(le.Uint32(b[0:])), uint64(le.Uint32(b[4:]))); err != nil {
		return "", "", err
	}
	value, err = t.outStr(uint64(le.Uint32(b[8:])), uint64(le.Uint32(b[12:])))
	return name, value, err
}

// Xattrs yields an inode's extended attributes, sorted by name, values maybe
// empty. It stops at a damaged record.
func (t *Tree) Xattrs(ino Ino) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		var err error // of a fault: the end, as of damage
		defer catchFault(guardFaults(), &err)
		var r inodeRow
		if t.row(ino, &r) != nil {
			return
		}
		run, err := t.xattrRun(&r)
		if err != nil {
			return
		}
		for ; len(run) > 0; run = run[xattrSize:] {
			name, value, err := t.xattr(run)
			if err != nil || !yield(name, bytesOf(value)) {
				return
			}
		}
	}
}
