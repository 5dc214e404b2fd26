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
	makeFile := fs.upper.makeTmpfile
	if fs.crowded() {
		makeFile = fs.upper.stage
	}
	s, err := makeFile(o)
	if err != nil {
		return nil, Attr{}, err
	}
	h, a, err := fs.openTmpfile(s, o)
	if err != nil {
		fs.upper.unstage(s)
	}
	return h, a, err
}

// makeTmpfile makes a file that has no name in work/ either.
func (u *Upper) makeTmpfile(o *object) (s staged, err error) {
	if err := u.step("create"); err != nil {
		return s, err
	}
	fd, err := unix.Openat(u.work, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return s, pathError("create", at{name: "(unnamed file)"}, err)
	}
	if err := u.applyObject(at{fd, ""}, o); err != nil {
		_ = unix.Close(fd)
		return s, err
	}
	return staged{fd: fd}, nil
}

func (fs *FS) openTmpfile(s staged, o *object) (*Handle, Attr, error) {
	var st unix.Statx_t
	if err := fs.upper.stat(at{s.fd, ""}, &st); err != nil {
		return nil, Attr{}, err
	}
	n := newNode(upperIno(st.Ino), unix.S_IFREG, 0)
	if n.parked = s.name; s.name == "" {
		anchor, err := fs.upper.open(at{s.fd, ""}, unix.O_PATH)
		if err != nil {
			return nil, Attr{}, err
		}
		fs.anchorLocked(n, anchor)
	}
	n.orphan = true
	n.over = overrideOf(fs.upper, o)
	n.upper.Store(true)
	n.upperIno = st.Ino
	fs.table.add(n, true)
	h := fs.openCreated(n, s.fd)
	n.mu.Lock()
	defer n.mu.Unlock()
	a, err := fs.upperAttrLocked(n, &st)
	return h, a, err
}
