package overlay

import (
	"errors"

	"golang.org/x/sys/unix"
)

// SetAttr changes attributes and describes the result.
func (fs *FS) SetAttr(ino Ino, set SetAttr) (Attr, error) {
	if err := fs.change(); err != nil {
		return Attr{}, err
	}
	defer fs.changed()
	n, err := fs.setSize(ino, &set)
	if err != nil {
		return Attr{}, err
	}
	defer fs.unref(n)
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.upper.Load() {
		return fs.nodeAttrLocked(n) // chown(dir, -1, -1): nothing to drop, nothing to copy up
	}
	p, err := fs.reachLocked(n)
	if err != nil {
		return Attr{}, err
	}
	defer fs.put(p)
	n.ctime = keptCtime{}
	if err := fs.setOwnerModeLocked(n, p.at, &set); err != nil {
		return Attr{}, err
	}
	if set.Valid&(SetAtime|SetMtime|SetAtimeNow|SetMtimeNow) != 0 {
		if err := fs.upper.utimes(p.at, setTime(&set, SetAtime, SetAtimeNow, set.Atime),
			setTime(&set, SetMtime, SetMtimeNow, set.Mtime)); err != nil {
			return Attr{}, err
		}
	}
	var st unix.Statx_t
	if err := fs.upper.stat(p.at, &st); err != nil {
		return Attr{}, err
	}
	if n.filling != nil {
		n.filling.setTimes(&set, &st)
		if err := fs.upper.mark(p.at, n.filling); err != nil {
			return Attr{}, err
		}
	}
	return fs.upperAttrLocked(n, &st)
}

// setSize is the first part of SetAttr: copy-up, with what that has set taken out of
// set, and the length. The node comes back referenced.
func (fs *FS) setSize(ino Ino, set *SetAttr) (*node, error) {
	fs.treeMu.RLock()
	n, err := fs.node(ino, true)
	if err == nil && !(set.Valid == KillSuidgid && n.typ != unix.S_IFREG) {
		if err = fs.copyUpAs(n, set); err != nil {
			fs.treeMu.RUnlock()
			fs.unref(n)
			return nil, err
		}
	}
	fs.treeMu.RUnlock()
	if err != nil || set.Valid&SetSize == 0 {
		return n, err
	}
	switch n.typ {
	case unix.S_IFREG:
		err = fs.truncate(n, set.Size)
	case unix.S_IFDIR:
		err = ErrIsDir
	default:
		err = ErrInvalid
	}
	if err != nil {
		fs.unref(n)
		return nil, err
	}
	return n, nil
}

// setObject gives an object that is to be a copy of a lower one the owner and mode of set,
// and reports what of set that is: nothing where one changes more than itself, as an
// ACL, a capability or a set-id bit.
func (fs *FS) setObject(o *object, set *SetAttr) (SetattrMask, error) {
	const mask = SetMode | SetUID | SetGID
	if set == nil || set.Valid&mask == 0 || len(o.xattrs) > 0 || o.typ() == unix.S_IFLNK ||
		o.mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		return 0, nil
	}
	uid, gid, err := fs.imageIDs(set)
	if err != nil {
		return 0, err
	}
	if uid >= 0 {
		o.uid = uint32(uid)
	}
	if gid >= 0 {
		o.gid = uint32(gid)
	}
	if set.Valid&SetMode != 0 {
		o.mode = o.typ() | set.Mode&0o7777
	}
	return set.Valid & mask, nil
}

// without takes out what is done. set may be nil.
func (set *SetAttr) without(done SetattrMask) {
	if set != nil {
		set.Valid &^= done
	}
}

func setTime(set *SetAttr, given, now SetattrMask, t Timespec) unix.Timespec {
	switch {
	case set.Valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case set.Valid&given != 0:
		return toUnix(t)
	}
	return timeOmit
}

// setOwnerModeLocked applies owner, mode and the dropping of privileges. Preconditions:
// treeMu and n.mu are held.
func (fs *FS) setOwnerModeLocked(n *node, a at, set *SetAttr) error {
	if set.Valid&SetMode != 0 && n.typ == unix.S_IFLNK {
		return ErrUnsupported // as notify_change answers for a symlink's mode
	}
	if set.Valid&(SetMode|SetUID|SetGID|KillSuidgid) == 0 {
		return nil
	}
	n.inherit = nil
	uid, gid, err := fs.imageIDs(set)
	if err != nil {
		return err
	}
	kill, err := fs.killedByLocked(n, a, set)
	if err != nil {
		return err
	}
	if fs.upper.rootless {
		return fs.overrideOwnerModeLocked(n, a, set, uid, gid, kill)
	}
	if uid >= 0 || gid >= 0 {
		if err := fs.upper.chown(a, uid, gid); err != nil {
			return err
		}
		if n.filling != nil {
			n.filling.caps = nil // chown(2) drops it
			if err := fs.upper.mark(a, n.filling); err != nil {
				return err
			}
		}
	}
	if set.Valid&SetMode != 0 {
		return fs.upper.chmod(a, set.Mode&0o7777)
	}
	if kill == 0 {
		return nil
	}
	var st unix.Statx_t
	if err := fs.upper.stat(a, &st); err != nil {
		return err
	}
	mode := uint32(st.Mode) & 0o7777
	if mode&kill != 0 {
		return fs.upper.chmod(a, mode&^kill)
	}
	return nil
}

// killedByLocked is which of the set-id bits a file loses by a change of its owner or by an
// unprivileged write: suid, and sgid where it means "run as the group" or the caller
// may not keep it (setattr_should_drop_suidgid in the kernel). Preconditions: treeMu and
// n.mu are held.
func (fs *FS) killedByLocked(n *node, a at, set *SetAttr) (bits uint32, err error) {
	if n.typ != unix.S_IFREG || set.Valid&(SetUID|SetGID|KillSuidgid) == 0 {
		return 0, nil
	}
	var st unix.Statx_t
	if err := fs.upper.stat(a, &st); err != nil {
		return 0, err
	}
	cur, err := fs.upperAttrLocked(n, &st)
	if err != nil {
		return 0, err
	}
	bits = cur.Mode & unix.S_ISUID
	if cur.Mode&unix.S_ISGID != 0 && (cur.Mode&unix.S_IXGRP != 0 || set.KeepSgid != nil && !set.KeepSgid(cur.GID)) {
		bits |= unix.S_ISGID
	}
	return bits, nil
}

// overrideOwnerModeLocked is setOwnerModeLocked in a plain user's upper. The file loses
// the bits of kill. Preconditions: treeMu and n.mu are held.
func (fs *FS) overrideOwnerModeLocked(n *node, a at, set *SetAttr, uid, gid int, kill uint32) error {
	var st unix.Statx_t
	if err := fs.upper.stat(a, &st); err != nil {
		return err
	}
	standIn := n.over != nil && n.over.typ != 0
	want := overrideStat{mode: uint32(st.Mode) & 0o7777, typ: n.typ}
	if n.over != nil {
		want = *n.over
		want.typ = n.typ
	}
	if uid >= 0 {
		want.uid = uint32(uid)
	}
	if gid >= 0 {
		want.gid = uint32(gid)
	}
	switch {
	case set.Valid&SetMode != 0:
		want.mode = set.Mode & 0o7777
	case n.typ == unix.S_IFREG && (uid >= 0 || gid >= 0 || set.Valid&KillSuidgid != 0):
		want.mode &^= kill
		if err := fs.upper.dropCapabilities(a); err != nil {
			return err
		}
	}
	if !standIn && n.typ == unix.S_IFLNK {
		if want.uid == 0 && want.gid == 0 {
			return nil
		}
		return fs.replaceByStandInLocked(n, a, &st, want)
	}
	over, err := fs.upper.setOverride(a, want, standIn)
	if err != nil {
		return err
	}
	n.over = over
	return nil
}

// dropCapabilities removes what the kernel removes of a file that it changes the owner
// of: a plain user's attribute in its place is none to it.
func (u *Upper) dropCapabilities(a at) error {
	err := u.removexattr(a, u.storedXattr(xattrCapability))
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// replaceByStandInLocked turns a plain user's symlink into a regular file that can hold
// an owner. Preconditions: treeMu and n.mu are held.
func (fs *FS) replaceByStandInLocked(n *node, a at, st *unix.Statx_t, want overrideStat) error {
	if a.name == "" || st.Nlink != 1 {
		return ErrUnsupported // another name would stay as it is
	}
	link, err := fs.upper.readlink(a)
	if err != nil {
		return err
	}
	atime, mtime := toTimespec(st.Atime), toTimespec(st.Mtime)
	o := &object{
		mode: unix.S_IFLNK | 0o777, uid: want.uid, gid: want.gid, link: link,
		lower: n.lower, mtime: &mtime, atime: &atime,
	}
	// The inode that goes keeps its number, which the node goes on using.
	keep, err := fs.upper.open(a, unix.O_PATH)
	if err != nil {
		return err
	}
	var made unix.Statx_t
	s, err := fs.upper.stage(o)
	if err == nil {
		if err = fs.upper.stat(at{s.fd, ""}, &made); err == nil {
			err = fs.upper.rename(s.at, a, 0)
		}
		if err != nil {
			fs.upper.unstage(s)
		} else {
			_ = unix.Close(s.fd)
		}
	}
	if err != nil {
		_ = unix.Close(keep)
		return err
	}
	fs.table.setUpper(n, made.Ino)
	n.keep = keep
	n.over = overrideOf(fs.upper, o)
	return nil
}
