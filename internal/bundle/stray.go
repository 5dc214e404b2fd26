package bundle

import (
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"
)

// strayFile finds a file that was put where the mount was believed to be while there was
// none: after a restart of the machine, say. It would be in no layer. "" for none.
// Directories alone are no files of anybody's: a runtime makes them to mount on.
// Preconditions: nothing is mounted.
func (d *dir) strayFile() (path string, err error) {
	at, name := d.pointAt()
	if !at.exists(name) {
		return "", nil
	}
	path, err = fileBelow(at, name)
	if err != nil {
		return "", fmt.Errorf("look for files below the mountpoint: %w", err)
	}
	return path, nil
}

// fileBelow is the first path below a directory that is no directory; "" for none. It
// stays on the directory's file system.
func fileBelow(at folder, name string) (path string, err error) {
	f, err := at.folder(name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	own, err := f.stat(".")
	if err != nil {
		return "", err
	}
	names, err := f.names()
	for _, n := range names {
		if err != nil || path != "" {
			break
		}
		var st unix.Stat_t
		switch st, err = f.stat(n); {
		case err != nil || st.Dev != own.Dev:
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			path = f.shown(n)
		default:
			path, err = fileBelow(f, n)
		}
	}
	return path, err
}

// checkStray refuses a bundle that is not mounted, with a stray file. ErrNotMounted.
func (d *dir) checkStray() error {
	if e, err := mountAt(d.point()); err != nil || e != nil {
		return err
	}
	path, err := d.strayFile()
	if err != nil || path == "" {
		return err
	}
	return fmt.Errorf("%s was put there while the bundle was %w, and would be in no layer: move it away, and copy it there in the mount", path, ErrNotMounted)
}

// warnOfStray says that a mount will hide a stray file. Preconditions: as of strayFile.
func (d *dir) warnOfStray(log *slog.Logger) {
	switch path, err := d.strayFile(); {
	case err != nil: // a directory that is not the caller's, say: the mount hides that too
		log.Info("what the mount hides is not known", "cause", err)
	case path != "":
		log.Warn("the mount hides a file that was put there while there was none", "path", path)
	}
}
