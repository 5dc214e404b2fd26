package overlay

import (
	"encoding/binary"
	"errors"
	"math"

	"golang.org/x/sys/unix"
)

// XattrRootless holds an owner where the inode cannot: rootlesscontainers/proto's
// Resource, a message of two varints, 1 the user and 2 the group. A view that shows
// everything as one user's has it on files and directories of others than the
// image's root, and takes it as an owner when it is set, so that stock umoci's
// rootless repack writes the right owners.
const XattrRootless = "user.rootlesscontainers"

// ErrRootlessOwner: the value of XattrRootless is no owner (EINVAL).
var ErrRootlessOwner = errors.Join(errors.New("malformed "+XattrRootless), ErrInvalid)

// keepID in a Resource means "as it is".
const keepID = math.MaxUint32

// AppendRootlessOwner appends an owner as XattrRootless holds it, and as umoci writes
// it: nothing for 0:0, and an id of 0 beside another as one that stays.
func AppendRootlessOwner(b []byte, o Owner) []byte {
	if o == (Owner{}) {
		return b
	}
	for i, id := range []uint32{o.UID, o.GID} {
		if id == 0 {
			id = keepID
		}
		b = binary.AppendUvarint(append(b, byte(i+1)<<3), uint64(id)) // field number<<3 | varint
	}
	return b
}

// ParseRootlessOwner reads an owner; an empty message is the image's root, and an id
// that is to stay as it is 2^32-1. ErrRootlessOwner.
func ParseRootlessOwner(b []byte) (Owner, error) {
	var o Owner
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return o, ErrRootlessOwner
		}
		value, m := binary.Uvarint(b[n:])
		if m <= 0 || value > math.MaxUint32 {
			return o, ErrRootlessOwner
		}
		b = b[n+m:]
		switch tag {
		case 1 << 3:
			o.UID = uint32(value)
		case 2 << 3:
			o.GID = uint32(value)
		default:
			return o, ErrRootlessOwner
		}
	}
	return o, nil
}

// presents reports whether name is XattrRootless of a view that makes it up.
func (fs *FS) presents(name string) bool { return fs.squash != nil && name == XattrRootless }

// rootlessOwner is the value of XattrRootless of an inode; empty: it has none.
// Preconditions: treeMu is held.
func (fs *FS) rootlessOwner(ino Ino) ([]byte, error) {
	a, err := fs.getAttr(ino)
	if err != nil {
		return nil, err
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR: // user.* attributes are on no others (xattr(7))
		return AppendRootlessOwner(nil, a.Image), nil
	}
	return nil, nil
}

// getRootlessOwner is GetXattr of XattrRootless. Preconditions: treeMu is held.
func (fs *FS) getRootlessOwner(ino Ino, buf []byte) (int, error) {
	value, err := fs.rootlessOwner(ino)
	if err != nil {
		return 0, err
	}
	if len(value) == 0 {
		return 0, ErrNoXattr
	}
	return fill(buf, value)
}

// setRootlessOwner is SetXattr of XattrRootless: it sets the owner; no value is the
// image's root.
func (fs *FS) setRootlessOwner(ino Ino, value []byte, flags uint32) error {
	owner, err := ParseRootlessOwner(value)
	if err != nil {
		return err
	}
	if flags != 0 {
		fs.treeMu.RLock()
		have, err := fs.rootlessOwner(ino)
		fs.treeMu.RUnlock()
		switch {
		case err != nil:
			return err
		case flags&unix.XATTR_CREATE != 0 && len(have) > 0:
			return pathError("setxattr", at{}, unix.EEXIST)
		case flags&unix.XATTR_REPLACE != 0 && len(have) == 0:
			return ErrNoXattr
		}
	}
	set := SetAttr{ImageIDs: true, UID: owner.UID, GID: owner.GID}
	if owner.UID != keepID {
		set.Valid |= SetUID
	}
	if owner.GID != keepID {
		set.Valid |= SetGID
	}
	_, err = fs.SetAttr(ino, set)
	return err
}
