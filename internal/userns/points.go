package userns

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// madePoints are mountpoints that an image has not got, made in its tree for the time
// of a run, so that no layer gets them. They are noted in the bundle: of several runs the
// last one removes them, also those of one that was killed.
type madePoints struct {
	root int // O_PATH descriptor
	hold *bundle.Hold
	made []madePoint // as far as they are noted
}

// madePoint is one of them, as it is noted.
type madePoint struct {
	Name  string
	Dir   bool
	Ino   uint64
	Mtime unix.Timespec // of the directory it is in, before it was made
	After unix.Timespec // and thereafter
}

// notes calls f with what is noted, and notes what f has made of it.
func (m *madePoints) notes(leaving bool, f func(last bool) error) error {
	return m.hold.Notes(leaving, func(notes *os.File, last bool) error {
		data, err := io.ReadAll(io.NewSectionReader(notes, 0, maxNotes))
		if err != nil {
			return err
		}
		m.made = nil
		if len(data) > 0 {
			if err := json.Unmarshal(data, &m.made); err != nil {
				return fmt.Errorf("read the notes of mountpoints: %w", err)
			}
		}
		before := len(m.made)
		err = f(last)
		if len(m.made) == before {
			return err
		}
		made, jerr := json.Marshal(m.made)
		if jerr == nil {
			// Filled up with blanks, one write leaves no tail of longer notes.
			made = append(made, bytes.Repeat([]byte(" "), max(0, len(data)-len(made)))...)
			_, jerr = notes.WriteAt(made, 0)
		}
		return errors.Join(err, jerr)
	})
}

// maxNotes bounds the notes in bytes.
const maxNotes = 64 << 10

// wantedPoints are the paths that setUpMounts mounts on. Parents come first.
var wantedPoints = []struct {
	name string
	dir  bool
}{{"proc", true}, {"sys", true}, {"dev", true}, {"etc/resolv.conf", false}, {tmpName, true}}

// tmpName is mounted on where Options.Tmpfs asks for it.
const tmpName = "tmp"

// makePoints makes the mountpoints that are missing. Where that cannot be done, as in a
// tree that is mounted read-only, the program does without them.
func makePoints(rootfs string, tmpfs bool, hold *bundle.Hold) (m *madePoints, err error) {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "run in bundle: open", Path: rootfs, Err: err}
	}
	m = &madePoints{root: root, hold: hold}
	err = m.notes(false, func(bool) error {
		for _, p := range wantedPoints {
			if p.name == tmpName && !tmpfs {
				continue
			}
			if err := m.make(p.name, p.dir); err != nil {
				return fmt.Errorf("run in bundle: make mountpoint /%s: %w", p.name, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, m.remove())
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
	p := madePoint{Name: name, Dir: dir, Mtime: st.Mtim}
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
	p.After = st.Mtim
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	p.Ino = st.Ino
	m.made = append(m.made, p)
	return nil
}

// remove takes away what was made, and the trace in the times of the directories
// where nothing else has changed since. What the program has put something into stays.
func (m *madePoints) remove() error {
	err := m.notes(true, func(last bool) error {
		var errs []error
		for i := len(m.made) - 1; i >= 0 && last; i-- {
			if err := m.removeOne(&m.made[i]); err != nil {
				errs = append(errs, fmt.Errorf("remove mountpoint /%s: %w", m.made[i].Name, err))
			}
		}
		if last {
			m.made = nil
		}
		return errors.Join(errs...)
	})
	return errors.Join(err, unix.Close(m.root))
}

func (m *madePoints) removeOne(p *madePoint) error {
	parent, err := m.parent(p.Name)
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
	base := filepath.Base(p.Name)
	var point unix.Stat_t
	err = unix.Fstatat(parent, base, &point, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err != nil:
	case point.Ino != p.Ino, !p.Dir && point.Size > 0:
		return nil // another, or not empty
	case p.Dir:
		err = unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
	default:
		err = unix.Unlinkat(parent, base, 0)
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTEMPTY):
		return nil
	case err != nil:
		return err
	}
	if st.Mtim != p.After && !m.ownTrace(p, st.Mtim) {
		return nil
	}
	omit := unix.Timespec{Nsec: unix.UTIME_OMIT}
	return unix.UtimesNanoAt(unix.AT_FDCWD, sys.ProcPath(parent, ""), []unix.Timespec{omit, p.Mtime}, 0)
}

// ownTrace reports whether a directory's time is that of another mountpoint made or
// removed here: points of one directory are removed in the reverse of their order, and
// each removal sets the time back to what it was before that one was made.
func (m *madePoints) ownTrace(p *madePoint, now unix.Timespec) bool {
	for _, o := range m.made {
		if filepath.Dir(o.Name) == filepath.Dir(p.Name) && (o.Mtime == now || o.After == now) {
			return true
		}
	}
	return false
}
