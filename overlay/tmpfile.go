package overlay

import (
	"golang.org/x/sys/unix"
)

// Tmpfile makes a file with no name in the directory's file system (O_TMPFILE);
// Link can give it one. The flags of open(2) say nothing here.
func (fs *FS) Tmpfile(dir Ino, _, mode uint32, c Caller) (*Handle, Attr, error) {
	if err := fs.change(); err != nil {
		return nil, Attr{}, err
	}
	defer fs.changed()
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	dn, err := fs.changeableDir(dir)
	if err != nil {
		return nil, Attr{}, err
	}
	dn.mu.Lock()
	o, err := fs.newObjectLocked(dn, mode&0o7777|unix.S_IFREG, c)
	dn.mu.Unlock()
	if err != nil {
		return nil, Attr{}, err
	}
	fd, err := fs.upper.makeTmpfile(o)
	if err != nil {
		return nil, Attr{}, err
	}
	h, a, err := fs.openTmpfile(fd, o)
	if err != nil {
		_ = unix.Close(fd)
	}
	return h, a, err
}

func (u *Upper) makeTmpfile(o *object) (int, error) {
	if err := u.step("create"); err != nil {
		return -1, err
	}
	fd, err := unix.Openat(u.work, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, pathError("create", at{name: "(unnamed file)"}, err)
	}
	if err := u.applyObject(at{fd, ""}, o); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (fs *FS) openTmpfile(fd int, o *object) (*Handle, Attr, error) {
	var st unix.Statx_t
	if err := fs.upper.stat(at{fd, ""}, &st); err != nil {
		return nil, Attr{}, err
	}
	anchor, err := fs.upper.open(at{fd, ""}, unix.O_PATH)
	if err != nil {
		return nil, Attr{}, err
	}
	n := newNode(upperIno(st.Ino), unix.S_IFREG, 0)
	n.anchor, n.orphan = anchor, true
	n.over = overrideOf(fs.upper, o)
	n.upper.Store(true)
	n.upperIno = st.Ino
	fs.table.add(n, true)
	h := fs.openCreated(n, fd)
	n.mu.Lock()
	defer n.mu.Unlock()
	a, err := fs.upperAttrLocked(n, &st)
	return h, a, err
}
