package overlay

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// All whiteouts of an upper are links to one inode in the work directory, as kernel
// overlayfs makes them: a link is cheaper than a node. It is character device 0/0;
// where that cannot be made, an empty file with an attribute, the form that Linux
// 6.7 has for an upper that is itself on overlayfs.
const whiteoutName = "whiteout"

// isWhiteout reports whether the object at a, which is st, is a whiteout.
func (u *Upper) isWhiteout(a at, st *unix.Statx_t) (bool, error) {
	switch uint32(st.Mode) & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev_major == 0 && st.Rdev_minor == 0, nil
	case unix.S_IFREG:
		if !u.fileWhiteouts || st.Size != 0 {
			return false, nil
		}
		_, err := u.getxattrInto(a, xattrWhiteout, nil)
		if errors.Is(err, unix.ENODATA) {
			return false, nil
		}
		return err == nil, err
	}
	return false, nil
}

// readyWhiteout makes work/whiteout where it is missing.
func (u *Upper) readyWhiteout() error {
	u.whiteoutMu.Lock()
	defer u.whiteoutMu.Unlock()
	return u.readyWhiteoutLocked()
}

// readyWhiteoutLocked is readyWhiteout. Preconditions: whiteoutMu is held.
func (u *Upper) readyWhiteoutLocked() error {
	if u.whiteoutReady {
		return nil
	}
	if err := u.step("mknod"); err != nil {
		return err
	}
	a := at{u.work, whiteoutName}
	if err := u.makeWhiteout(a); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var st unix.Statx_t
	if err := u.stat(a, &st); err != nil {
		return err
	}
	white, err := u.isWhiteout(a, &st)
	if err != nil {
		return err
	}
	if !white {
		return pathError("mknod", a, unix.EOPNOTSUPP)
	}
	u.whiteoutReady = true
	return nil
}

func (u *Upper) makeWhiteout(a at) error {
	if !u.fileWhiteouts {
		return pathError("mknod", a, unix.Mknodat(a.dir, a.name, unix.S_IFCHR, 0))
	}
	fd, err := unix.Openat(a.dir, a.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return pathError("create", a, err)
	}
	defer unix.Close(fd)
	if err := u.setxattr(at{fd, ""}, xattrWhiteout, []byte("y"), 0); err != nil {
		_ = unix.Unlinkat(a.dir, a.name, 0)
		return err
	}
	return nil
}

// moveLeavingWhiteout is RENAME_WHITEOUT, which the file systems that take no
// whiteout devices do not have: what moves changes places with a whiteout, or with
// what it replaces, which a whiteout then replaces. A failure is undone; a crash
// between the two leaves a whiteout where nothing of the upper was, or what is
// replaced at the old name. occupied says what the upper has at the new name.
func (u *Upper) moveLeavingWhiteout(from, to at, occupied verdict, overDir bool) error {
	if !u.fileWhiteouts {
		return u.rename(from, to, unix.RENAME_WHITEOUT)
	}
	if occupied == nameFree || occupied == nameLower {
		if err := u.whiteout(to); err != nil {
			return err
		}
	}
	err := u.rename(from, to, unix.RENAME_EXCHANGE)
	switch {
	case err == nil && occupied == nameUpper:
		if overDir {
			err = u.retireDir(from, true)
		} else {
			err = u.whiteoutOver(from)
		}
		if err != nil {
			_ = u.rename(from, to, unix.RENAME_EXCHANGE)
		}
	case err != nil && (occupied == nameFree || occupied == nameLower):
		_ = u.unlink(to, 0)
	}
	return err
}

// forgetWhiteoutLocked drops a node whose link count is used up. Preconditions: whiteoutMu
// is held.
func (u *Upper) forgetWhiteoutLocked() error {
	u.whiteoutReady = false
	err := u.unlink(at{u.work, whiteoutName}, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// whiteout puts a whiteout at a free name. The lock keeps the node that is linked; links to
// one inode wait for each other anyway (vfs_link).
func (u *Upper) whiteout(to at) error {
	u.whiteoutMu.Lock()
	defer u.whiteoutMu.Unlock()
	for {
		if err := u.readyWhiteoutLocked(); err != nil {
			return err
		}
		err := u.link(at{u.work, whiteoutName}, to)
		if !errors.Is(err, unix.EMLINK) {
			return err
		}
		if err := u.forgetWhiteoutLocked(); err != nil {
			return err
		}
	}
}

// whiteoutOver replaces what is at a name that is no directory.
func (u *Upper) whiteoutOver(to at) error {
	name := u.stageName()
	if err := u.whiteout(at{u.work, name}); err != nil {
		return err
	}
	if err := u.rename(at{u.work, name}, to, 0); err != nil {
		u.discard(name)
		return err
	}
	return nil
}

// retireDir takes the directory at a out of the tree, leaves a whiteout where asked, and
// removes it with the whiteouts in it.
func (u *Upper) retireDir(a at, leaveWhiteout bool) error {
	name, err := u.retire(a, leaveWhiteout)
	if err == nil {
		u.discard(name)
	}
	return err
}

// retire takes the directory at a out of the tree into work/, under a name that it
// returns, and leaves a whiteout where asked.
func (u *Upper) retire(a at, leaveWhiteout bool) (name string, err error) {
	name = u.stageName()
	if !leaveWhiteout {
		return name, u.rename(a, at{u.work, name}, unix.RENAME_NOREPLACE)
	}
	if err := u.whiteout(at{u.work, name}); err != nil {
		return "", err
	}
	if err := u.rename(at{u.work, name}, a, unix.RENAME_EXCHANGE); err != nil {
		u.discard(name)
		return "", err
	}
	return name, nil
}
