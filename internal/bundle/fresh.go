package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// mount --fresh replaces all that a bundle has but its mountpoint. What takes its place is
// made in stateDir/fresh, and served from there: until the tree is live the bundle is what
// it was, whatever fails or is killed. One rename, to stateDir/next, decides. What is in
// that is then moved to its places, by who has the bundle to itself: the mount's daemon,
// or the next command that locks the bundle where it was killed.
const (
	freshName = "fresh"
	nextName  = "next"
	oldPrefix = "old-" // of what was in the place, in next
)

// makeStage makes stateDir/fresh.
func (d *dir) makeStage() (*dir, error) {
	if err := d.inner.mkdir(freshName, 0o700); err != nil {
		return nil, fmt.Errorf("create bundle: %w", err)
	}
	return d.openStage()
}

// openStage opens stateDir/fresh as if it were the bundle. Messages have the paths of the
// places where things are to be.
func (d *dir) openStage() (_ *dir, err error) {
	s := &dir{path: d.path}
	for path, to := range map[string]*folder{d.path: &s.top, d.file(stateDir): &s.inner} {
		f, err := d.inner.folder(freshName)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open bundle: %w", err), s.close())
		}
		fd, err := unix.FcntlInt(f.fd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err = errors.Join(err, f.close()); err != nil {
			return nil, errors.Join(fmt.Errorf("open bundle: %w", err), s.close())
		}
		*to = folder{os.NewFile(uintptr(fd), path)}
	}
	return s, nil
}

// publish makes a stage what the bundle is. Preconditions: nobody else serves the bundle.
func (d *dir) publish(stage *dir) error {
	var made unix.Stat_t
	err := unix.Fstat(int(stage.top.fd.Fd()), &made)
	if err != nil {
		return err
	}
	// Another --fresh may have begun, where the command that began this one was killed.
	if now, err := d.inner.stat(freshName); err != nil || now.Dev != made.Dev || now.Ino != made.Ino {
		return fmt.Errorf("%s: %w", d.path, ErrInUse)
	}
	if err = d.inner.rename(freshName, nextName); err == nil {
		err = d.inner.fd.Sync()
	}
	if err == nil {
		err = d.finishPublish()
	}
	if err != nil {
		return fmt.Errorf("throw away changes: %w", err)
	}
	return nil
}

// finishPublish moves what is in stateDir/next to its places. It can be repeated wherever
// it was killed. Preconditions: as of publish.
func (d *dir) finishPublish() error {
	next, err := d.inner.folder(nextName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer next.close()
	if next.exists(upperName) { // nothing was moved so far: a manifest is of what was there
		if err := d.removeManifests(); err != nil {
			return err
		}
	}
	names, err := next.names()
	if err != nil {
		return err
	}
	for _, name := range append([]string{workName, upperName, stateName}, names...) { // gc looks at the state
		switch {
		case !next.exists(name) || name == oldPrefix+workName || name == oldPrefix+upperName:
		case name == stateName:
			err = next.move(name, d.inner, name)
		case name == workName || name == upperName:
			if d.top.exists(name) {
				err = d.top.move(name, next, oldPrefix+name)
			}
			if err == nil {
				err = next.move(name, d.top, name)
			}
		default:
			err = next.move(name, d.top, name)
		}
		if err != nil {
			return err
		}
	}
	for _, f := range []folder{d.top, d.inner, next} {
		if err := f.fd.Sync(); err != nil {
			return err
		}
	}
	return d.inner.removeAll(nextName)
}

// settle finishes a publish whose process was killed. Preconditions: the bundle is locked.
// ErrInUse where a daemon is at it.
func (d *dir) settle() error {
	if !d.inner.exists(nextName) {
		return nil
	}
	held, err := d.holdMounted()
	switch {
	case errors.Is(err, ErrMounted) && !d.inner.exists(nextName): // it has finished meanwhile
		return nil
	case errors.Is(err, ErrMounted):
		return fmt.Errorf("%s: %w", d.path, ErrInUse)
	case err != nil:
		return err
	}
	if err = d.finishPublish(); err != nil {
		err = fmt.Errorf("throw away changes: %w", err)
	}
	return errors.Join(err, unlock(held))
}

// removeManifests removes those of --mtree.
func (d *dir) removeManifests() error {
	names, err := d.top.names()
	if err != nil {
		return fmt.Errorf("remove old manifest: %w", err)
	}
	for _, name := range slices.DeleteFunc(names, func(name string) bool {
		ok, err := filepath.Match("sha256_*.mtree", name)
		return !ok || err != nil
	}) {
		if err := d.top.remove(name); err != nil {
			return fmt.Errorf("remove old manifest: %w", err)
		}
	}
	return nil
}
