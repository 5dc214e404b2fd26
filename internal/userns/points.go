package userns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// madePoints are mountpoints that an image has not got, made in its tree for the time
// of a run, so that no layer gets them.
type madePoints struct {
	root int // O_PATH descriptor
	made []madePoint
}

type madePoint struct {
	name  string
	dir   bool
	mtime unix.Timespec // of the directory it is in, before it was made
	after unix.Timespec // and thereafter
}

// wantedPoints are the paths that setUpMounts mounts on. Parents come first.
var wantedPoints = []struct {
	name string
	dir  bool
}{{"proc", true}, {"sys", true}, {"dev", true}, {"etc/resolv.conf", false}, {tmpName, true}}

// tmpName is mounted on where Options.Tmpfs asks for it.
const tmpName = "tmp"

// makePoints makes the mountpoints that are missing. Where that cannot be done, as in a
// tree that is mounted read-only, the program does without them.
func makePoints(rootfs string, tmpfs bool) (m *madePoints, err error) {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "run in bundle: open", Path: rootfs, Err: err}
	}
	m = &madePoints{root: root}
	for _, p := range wantedPoints {
		if p.name == tmpName && !tmpfs {
			continue
		}
		if err := m.make(p.name, p.dir); err != nil {
			return nil, errors.Join(fmt.Errorf("run in bundle: make mountpoint /%s: %w", p.name, err), m.remove())
		}
	}
	return m, nil
}

// parent opens the directory that a path of the tree is in.
func (m *madePoints) parent(name string) (int, error) {
	return inRoot(m.root).open(filepath.Dir(name), unix.O_DIRECTORY)
}

func (m *madePoints) make(name string, dir bool) error {
	parent, err := m.parent(name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	base := filepath.Base(name)
	var st unix.Stat_t
	err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := unix.Fstat(parent, &st); err != nil {
		return err
	}
	p := madePoint{name: name, dir: dir, mtime: st.Mtim}
	if dir {
		err = unix.Mkdirat(parent, base, 0o755)
	} else {
		err = unix.Mknodat(parent, base, unix.S_IFREG|0o644, 0)
	}
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Fstat(parent, &st); err != nil {
		return err
	}
	p.after = st.Mtim
	m.made = append(m.made, p)
	return nil
}

// remove takes away what was made, and the trace in the times of the directories
// where nothing else has changed since. What the program has put something into stays.
func (m *madePoints) remove() error {
	var errs []error
	for i := len(m.made) - 1; i >= 0; i-- {
		if err := m.removeOne(&m.made[i]); err != nil {
			errs = append(errs, fmt.Errorf("remove mountpoint /%s: %w", m.made[i].name, err))
		}
	}
	return errors.Join(append(errs, unix.Close(m.root))...)
}

func (m *madePoints) removeOne(p *madePoint) error {
	parent, err := m.parent(p.name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil // the program has removed it
	}
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	var st unix.Stat_t
	if err := unix.Fstat(parent, &st); err != nil {
		return err
	}
	base := filepath.Base(p.name)
	if p.dir {
		err = unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
	} else {
		var file unix.Stat_t
		if err = unix.Fstatat(parent, base, &file, unix.AT_SYMLINK_NOFOLLOW); err == nil {
			if file.Size > 0 || file.Mode&unix.S_IFMT != unix.S_IFREG {
				return nil
			}
			err = unix.Unlinkat(parent, base, 0)
		}
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTEMPTY):
		return nil
	case err != nil:
		return err
	}
	if st.Mtim != p.after && !m.ownTrace(p, st.Mtim) {
		return nil
	}
	omit := unix.Timespec{Nsec: unix.UTIME_OMIT}
	return unix.UtimesNanoAt(unix.AT_FDCWD, fdPath(parent), []unix.Timespec{omit, p.mtime}, 0)
}

// ownTrace reports whether a directory's time is that of another mountpoint made or
// removed here: points of one directory are removed in the reverse of their order, and
// each removal sets the time back to what it was before that one was made.
func (m *madePoints) ownTrace(p *madePoint, now unix.Timespec) bool {
	for _, o := range m.made {
		if filepath.Dir(o.name) == filepath.Dir(p.name) && (o.mtime == now || o.after == now) {
			return true
		}
	}
	return false
}
