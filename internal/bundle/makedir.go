package bundle

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// makeDir opens the bundle's directory for a change, and makes what is missing of
// it. When it fails, what it has made is gone.
func (m *mounting) makeDir() (err error) {
	abs, err := filepath.Abs(m.opt.Bundle)
	if err != nil {
		return fmt.Errorf("open bundle: %w", err)
	}
	switch info, err := os.Stat(abs); {
	case err == nil && !info.IsDir():
		return fmt.Errorf("%s %w, and is no directory", abs, ErrExists)
	case err == nil:
		m.before = info
	case errors.Is(err, fs.ErrNotExist) && fileExists(abs):
		return fmt.Errorf("%s %w, and is a symbolic link to nothing", abs, ErrExists)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open bundle: %w", err)
	}
	if m.before == nil {
		m.parent = firstMissing(filepath.Dir(abs))
		if err := os.MkdirAll(abs, 0o700); err != nil {
			return errors.Join(fmt.Errorf("create bundle: %w", err), m.restore(abs))
		}
	}
	d, err := lookDir(abs)
	if err != nil {
		return errors.Join(err, m.restore(abs))
	}
	m.dir, m.to = d, d
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.inner.none() {
		defer func() {
			if err != nil && !errors.Is(err, ErrInUse) {
				_ = d.top.rmdir(stateDir) //nolint:errcheck // the error at hand says more
				err = errors.Join(err, m.restore(abs))
			}
		}()
		if err := d.claim(); err != nil {
			return err
		}
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	// The lock decides: another first mount may have ended just now.
	if d.hasState() {
		return nil
	}
	if err := m.checkHalfMade(); err != nil {
		return err
	}
	m.made = true
	return nil
}

// claim makes a directory a bundle's that holds none, nor part of one.
func (d *dir) claim() error {
	awaitAbandoned(d.file(rootfsName))
	for _, name := range []string{configName, rootfsName, umociName, upperName, workName, ispec.ImageLayoutFile} {
		if d.top.exists(name) {
			return fmt.Errorf("%s %w, and is not a umoci-mount bundle's", d.file(name), ErrExists)
		}
	}
	err := d.top.mkdir(stateDir, 0o700)
	if errors.Is(err, fs.ErrNotExist) && unlinked(d.top.fd) { // another first mount has failed, and removed it
		return fmt.Errorf("%s: %w", d.path, ErrInUse)
	}
	if err == nil {
		err = d.openInner()
	}
	if err == nil {
		err = d.top.fd.Chmod(0o700)
	}
	if err != nil {
		return fmt.Errorf("create bundle: %w", err)
	}
	return nil
}

// How long the daemon of a bundle that was removed may take to take its mount away, and
// then the mountpoint.
const (
	abandonedMount = 5 * time.Second
	abandonedPoint = time.Second
)

// awaitAbandoned waits for the daemon of a bundle that was removed while it was mounted:
// scripts do so, and make the next one of the same name at once.
func awaitAbandoned(rootfs string) {
	real, err := filepath.EvalSymlinks(rootfs)
	if err != nil {
		return
	}
	start := time.Now()
	for mounted := start; ; time.Sleep(2 * time.Millisecond) {
		now := time.Now()
		switch mount, err := mountAt(real); {
		case err != nil:
			return
		case mount != nil && now.Sub(start) < abandonedMount:
			mounted = now
		case mount != nil, !onlyEmpty(rootfs), now.Sub(mounted) >= abandonedPoint:
			return
		}
	}
}

// onlyEmpty reports whether an empty directory is all that is in the one it is in.
func onlyEmpty(dir string) bool {
	within, err := os.ReadDir(dir)
	if err != nil || len(within) > 0 {
		return false
	}
	beside, err := os.ReadDir(filepath.Dir(dir))
	return err == nil && len(beside) == 1
}

// checkHalfMade looks at a bundle without a state, as a killed first mount leaves
// it. What it has is made anew, but changes are nobody's to throw away.
func (m *mounting) checkHalfMade() error {
	upper, err := m.dir.top.folder(upperName)
	if errors.Is(err, fs.ErrNotExist) {
		return m.dir.clearMade()
	}
	if err != nil {
		return fmt.Errorf("open bundle: %w", err)
	}
	names, err := upper.names()
	if err := errors.Join(err, upper.close()); err != nil {
		return fmt.Errorf("open bundle: %w", err)
	}
	if len(names) > 0 {
		return fmt.Errorf("%s %w, and %s, which says of what image these are the changes, is missing",
			m.dir.file(upperName), ErrExists, filepath.Join(stateDir, stateName))
	}
	return m.dir.clearMade()
}

// makeUpper makes the directories for changes where there are none.
func (d *dir) makeUpper() error {
	for name, mode := range map[string]uint32{upperName: 0o755, workName: 0o700} {
		if err := d.top.mkdir(name, mode); err != nil {
			return fmt.Errorf("create bundle: %w", err)
		}
	}
	return nil
}

// clearUpper removes the changes: whenever this ends, all of them are there or none. They
// leave upper by one rename, into work, which a mount empties.
func (d *dir) clearUpper() error {
	if err := d.dropUpper(); err != nil {
		return fmt.Errorf("throw away changes: %w", err)
	}
	return nil
}

func (d *dir) dropUpper() error {
	if d.top.exists(upperName) {
		if err := d.retireUpper(); err != nil {
			return err
		}
	}
	return d.top.removeAll(workName)
}

// retireUpper moves upper into work, durably.
func (d *dir) retireUpper() error {
	if err := d.top.mkdir(workName, 0o700); err != nil {
		return err
	}
	work, err := d.top.folder(workName)
	if err != nil {
		return err
	}
	if err = work.removeAll(upperName); err == nil {
		err = d.top.move(upperName, work, upperName)
	}
	if err == nil {
		err = d.top.fd.Sync()
	}
	return errors.Join(err, work.close())
}

// clearMade removes what a first mount has made that was killed, but for what is written
// anew in one step.
func (d *dir) clearMade() error {
	if err := d.clearUpper(); err != nil {
		return err
	}
	return d.removeManifests()
}

// firstMissing is the topmost directory of path that is not there; "" for none.
func firstMissing(path string) string {
	missing := ""
	for !fileExists(path) {
		missing, path = path, filepath.Dir(path)
	}
	return missing
}

// undo removes what a failed first mount has made. A directory that was there
// before stays, with the mode it had.
func (m *mounting) undo() error {
	var errs []error
	for _, name := range append(m.wrote, configName, umociName, upperName, workName, stateDir) {
		errs = append(errs, m.dir.top.removeAll(name))
	}
	errs = append(errs, m.undoRootfs())
	return errors.Join(append(errs, m.restore(m.dir.path))...)
}

// restore puts the bundle's directory back as it was before makeDir: its mode, or
// nothing, with the directories above it that were not there either.
func (m *mounting) restore(bundle string) error {
	if m.before != nil {
		if m.dir == nil {
			return nil // nothing was changed
		}
		return m.dir.top.fd.Chmod(m.before.Mode().Perm())
	}
	return removeEmpty(bundle, cmp.Or(m.parent, bundle))
}

// removeEmpty removes the directories from dir up to top, which may be "", as far as they
// are empty: the names may be another's by now.
func removeEmpty(dir, top string) error {
	for top != "" {
		err := unix.Rmdir(dir)
		switch {
		case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EROFS): // nothing was made there
			return nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		case dir == top:
			return nil
		}
		dir = filepath.Dir(dir)
	}
	return nil
}
