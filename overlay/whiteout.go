package overlay

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// All whiteouts of an upper are links to one device node in the work directory,
// as kernel overlayfs makes them: a link is cheaper than a node.
const whiteoutName = "whiteout"

// readyWhiteout makes work/whiteout where it is missing.
func (u *Upper) readyWhiteout() error {
	u.whiteoutMu.Lock()
	defer u.whiteoutMu.Unlock()
	if u.whiteoutReady {
		return nil
	}
	if err := u.step("mknod"); err != nil {
		return err
	}
	a := at{u.work, whiteoutName}
	err := unix.Mknodat(a.dir, a.name, unix.S_IFCHR, 0)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return pathError("mknod", a, err)
	}
	var st unix.Statx_t
	if err := u.stat(a, &st); err != nil {
		return err
	}
	if !isWhiteout(&st) {
		return pathError("mknod", a, unix.EOPNOTSUPP)
	}
	u.whiteoutReady = true
	return nil
}

// forgetWhiteout drops a node whose link count is used up.
func (u *Upper) forgetWhiteout() error {
	u.whiteoutMu.Lock()
	defer u.whiteoutMu.Unlock()
	u.whiteoutReady = false
	err := u.unlink(at{u.work, whiteoutName}, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// whiteout puts a whiteout at a free name.
func (u *Upper) whiteout(to at) error {
	for {
		if err := u.readyWhiteout(); err != nil {
			return err
		}
		err := u.link(at{u.work, whiteoutName}, to)
		if !errors.Is(err, unix.EMLINK) {
			return err
		}
		if err := u.forgetWhiteout(); err != nil {
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

// retireDir takes the directory at a out of the tree into work/, leaves a
// whiteout where asked, and removes it with the whiteouts in it.
func (u *Upper) retireDir(a at, leaveWhiteout bool) error {
	name := u.stageName()
	if leaveWhiteout {
		if err := u.whiteout(at{u.work, name}); err != nil {
			return err
		}
		if err := u.rename(at{u.work, name}, a, unix.RENAME_EXCHANGE); err != nil {
			u.discard(name)
			return err
		}
	} else if err := u.rename(a, at{u.work, name}, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	u.discard(name)
	return nil
}
